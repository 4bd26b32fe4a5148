"""How many tasks one worker may hold: enough never to run dry, too few to hoard.

The worker itself runs at most `childconcurrency` tasks at once. Credit decides how many more wait
behind them: as many as the worker starts in `HORIZON` seconds, by the rate measured so far for the
function in question. So trivial tasks travel by the thousand; behind a task that takes longer than
that, or of which nothing is known yet, nothing waits while another worker may be idle; and the tail
of a map is shared evenly. Tasks that wait (for a socket, say) show themselves by running side by
side: `concurrency_seen` follows how many did, and a worker that has free slots and nothing to start
says so (frame WANT).

CREDIT-1  unstarted tasks at a worker <= backlog of the function + slots that are believed to be
    free.
CREDIT-2  a worker is never sent more than `lifetime` tasks in all (`maxtasksperchild`).
CREDIT-3  of a function that is known, as many more may wait as were seen to run side by side, if
    the caller says that there is plenty left for everybody: when all slots become free in one turn,
    the
    next are there. At the tail of a map there is not plenty, and nothing waits behind tasks that
    take longer than `HORIZON`: it could begin elsewhere.
CREDIT-4  beyond CREDIT-1, calls may pass: at a worker whose waiting tasks are a backlog, and so
    will soon have begun, as many calls as begin within `HORIZON` (at least one, at most
    `concurrency`) may wait
    behind them; the next when all of these have begun.
CREDIT-5  while a worker holds `MOST_BYTES` or more, it gets what it has free slots for and no
    backlog: what waits there is in memory twice, here and there.
CREDIT-6  while calls have to wait for workers, one part in `CONTENTION_PARTS` of a map's backlog
    waits there, and they answer `CONTENTION_PARTS` times as often: both are what calls wait behind.
    A map alone
    pays for fewer wake-ups.
CREDIT-7  behind tasks that take longer than `HORIZON`, or of which nothing is known, and that have
    all slots, nothing waits that could begin elsewhere: no backlog of another function, and no
    call.
"""

from __future__ import annotations

HORIZON = 0.004  # seconds of work that may wait at a worker
BURST_US = 2000  # microseconds that it may run before it answers; two to HORIZON, or it runs dry
CONTENTION_PARTS = 6  # into how many parts both are cut while calls compete (CREDIT-6)
MOST_BYTES = 16 << 20  # sent to a worker and not answered
GROWTH = 16  # a first, short measurement may enlarge a backlog by no more than this factor


class Pace:
    """How fast one function runs at one worker.

    What was measured counts for less the longer ago it was, `HORIZON` being the measure of that.
    (A mean of rates would be wrong: of tasks that end together but are reported one by one, all but
    the first seem to take no time.)
    """

    __slots__ = ("backlog", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0.0  # tasks that ended
        self.seconds = 0.0  # and the time that it took, while there was work
        self.backlog = 0


class Credit:
    """The account of one worker. Numbers are tasks since the worker was created."""

    __slots__ = (
        "_busy_since",
        "_concurrency",
        "_ended",
        "_heard",
        "_held",
        "_lifetime",
        "_overtaken",
        "_paces",
        "_recent",
        "_wanted",
        "bytes",
        "concurrency_seen",
        "finished",
        "sent",
        "spent",
    )

    def __init__(self, concurrency: int, lifetime: int) -> None:
        self._concurrency = concurrency
        self._lifetime = lifetime  # 0: no limit
        self._paces: dict[int, Pace] = {}  # by function
        self._heard: set[int] = set()  # functions that were reported since the last settle()
        self._ended = 0  # tasks that were
        self._held: dict[int, int] = {}  # tasks that were sent and not reported, by function
        self._busy_since = 0.0
        self.concurrency_seen = 1  # how many tasks were seen to run side by side
        self._wanted = 0
        self._recent = 0  # the function of those that were sent last
        self._overtaken = 0  # number of the last call that passed, and of all before it
        self.bytes = 0  # of the chunks that were sent and are not answered whole
        self.sent = 0
        self.finished = 0
        self.spent = False
        """CREDIT-2: this worker gets no more tasks."""

    @property
    def in_flight(self) -> int:
        """Tasks that were sent and not reported."""
        return self.sent - self.finished

    def room(
        self,
        started: int,
        function: int,
        *,
        work_is_ample: bool | None = None,
        contended: bool = False,
    ) -> int:
        """How many tasks of `function` may be sent now, `started` of all being begun (not
        CREDIT-4).

        `work_is_ample`: whether many are left (CREDIT-3), None if nobody knows.
        """
        pace = self._paces.get(function)
        running = started - self.finished
        free = self.concurrency_seen - running
        if free < self._wanted:  # which was said when less was running
            free = min(self._wanted, self._concurrency - running)
        room = (free if free > 0 else 0) - (self.sent - started)
        if (
            pace is not None
            and self.bytes < MOST_BYTES
            and not (pace.backlog and self._is_occupied())
        ):
            if (
                work_is_ample or work_is_ample is None or pace.backlog >= self.concurrency_seen
            ):  # CREDIT-3
                room += pace.backlog // CONTENTION_PARTS if contended else pace.backlog
            if work_is_ample:
                room += self.concurrency_seen - 1
        return min(room, self._lifetime - self.sent) if self._lifetime else room

    def overtake(self, started: int, function: int) -> int:
        """How many calls of `function` may be sent beyond that (CREDIT-4, CREDIT-2, CREDIT-5,
        CREDIT-7)."""
        recent = self._paces.get(self._recent)
        if started < self._overtaken or recent is None or not recent.backlog:
            return 0
        if self.bytes >= MOST_BYTES or self._is_occupied():
            return 0
        pace = self._paces.get(function)
        room = min(max(pace.backlog, 1), self._concurrency) if pace else 1
        return min(room, self._lifetime - self.sent) if self._lifetime else room

    def _is_occupied(self) -> bool:
        """CREDIT-7: whether tasks that are slow or unknown have all slots."""
        slow = 0
        for function, count in self._held.items():
            pace = self._paces.get(function)
            if pace is None or not pace.backlog:
                slow += count
        return slow >= self._concurrency

    def send(self, count: int, function: int, now: float, size: int = 0) -> None:
        """`count` tasks of `function` are on their way, a chunk of `size` bytes."""
        if self.sent == self.finished:
            self._busy_since = now
        self.sent += count
        self._held[function] = self._held.get(function, 0) + count
        self.bytes += size
        self._recent = function
        if self._wanted:
            self._wanted -= min(count, self._wanted)
        if self._lifetime and self.sent >= self._lifetime:
            self.spent = True

    def take_back(self, count: int, function: int, size: int) -> None:
        """The last that were sent were not: memory was refused."""
        self.sent -= count
        self._held[function] -= count
        self.bytes -= size
        self.spent = 0 < self._lifetime <= self.sent

    def have_overtaken(self) -> None:
        """The last that were sent were calls that passed."""
        self._overtaken = self.sent

    def need_work(self, free: int) -> None:
        """The worker has `free` slots and nothing to put into them."""
        self._wanted = free

    def report(self, count: int, function: int, size: int = 0) -> None:
        """`count` tasks have ended, and with them the last of a chunk of `size` bytes, if given."""
        self._heard.add(function)
        self._held[function] -= count
        if not self._held[function]:
            del self._held[function]
        self._ended += count
        self.bytes -= size

    def settle(self, started: int, now: float) -> None:
        """A batch of reports is over: adapt slots and backlogs to it."""
        count = self._ended
        if not count:
            return
        # `if` and not `min` and `max`: this is a part of every `apply`
        together = started - self.finished
        if together > self._concurrency:
            together = self._concurrency
        concurrency_seen = self.concurrency_seen
        fewer = concurrency_seen - 1 - concurrency_seen // 8 or 1
        self.concurrency_seen = together if together > fewer else fewer
        self.finished += count
        self._ended = 0
        elapsed, self._busy_since = now - self._busy_since, now
        if elapsed > 0:
            kept = HORIZON / (HORIZON + elapsed)
            for function in self._heard:
                pace = self._paces.get(function)
                if pace is None:
                    pace = self._paces[function] = Pace()
                pace.count = count + kept * pace.count
                pace.seconds = elapsed + kept * pace.seconds
                most = pace.backlog * GROWTH or GROWTH
                backlog = int(pace.count / pace.seconds * HORIZON)
                pace.backlog = backlog if backlog < most else most
        self._heard.clear()

    def forget(self, function: int) -> None:
        """No task of `function` will come any more; those that have ended still count."""
        self._paces.pop(function, None)
        self._heard.discard(function)
