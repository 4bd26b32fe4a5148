"""Credit: how many tasks one worker may hold, so that it neither runs dry nor hoards tasks.

A worker runs at most `childconcurrency` tasks at once, one in each *slot*. Credit decides how many
more wait at the worker behind them. That *backlog* is what the worker can start in `HORIZON`
seconds (CREDIT-6 varies that), by the rate measured so far for the function in question (`Pace`).
So trivial tasks travel by the thousand. Behind a task that takes longer than `HORIZON`, or whose
function was not measured yet, nothing waits while another worker may be idle.

Nothing tells in advance whether tasks wait (for a socket, say) and can therefore run side by side.
`concurrency_seen` follows how many did; it is the number of slots that credit counts on, for a
function of which tasks can run so (CREDIT-8). A worker that has more free slots and nothing to
start says so, in a NEED_WORK frame, and so does one that has free threads.

The queue (queue.py) asks `room` and `overtake` before it sends, reports each chunk that it sends
and each result that comes back, and passes on NEED_WORK; others only read. Nothing here does I/O or
reads a clock.

CREDIT-1  The unstarted tasks at a worker are at most the backlog of the function, plus the slots
    that are believed to be free.
CREDIT-2  A worker is never sent more than `lifetime` tasks in all (`maxtasksperchild`).
CREDIT-3  If work is ample (more tasks are left than twice the slots that all workers are believed
    to have), as many more tasks of a measured function may wait as were seen to run side by side:
    when all slots become free in one turn of the loop, the next tasks are there. At the end of a
    map work is not ample, and nothing waits behind tasks that take longer than `HORIZON`: it could
    start in another worker.
CREDIT-4  Beyond CREDIT-1, calls may overtake at a worker whose waiting tasks are a backlog, and so
    will start soon: as many calls as start within `HORIZON` (at least one, at most `concurrency`)
    may wait behind that backlog, and the next calls when all of these have started.
CREDIT-5  A worker that holds `MOST_BYTES` or more gets tasks for its free slots and no backlog:
    what waits there takes memory in both processes.
CREDIT-6  A call waits behind a map's backlog, and behind results that its worker has not sent. So
    while calls have to wait, a worker gets `1 / CONTENTION_PARTS` of that backlog, and sends
    results so many times as often. To a map that is alone both matter little, and each wake-up
    costs time: its backlog is `ALONE_TIMES` as long, and results are sent so much less often, until
    no more is left than twice what all workers may hold. A map is alone if for a second no call was
    sent and no other source was in line, and if the number of its tasks is known.
CREDIT-7  Behind tasks that are slow (fewer than one ends in `HORIZON`) or not measured yet and that
    have all slots, nothing waits that could start in another worker: no backlog of another
    function, and no call. One task of a plain function has all slots, as it blocks the loop.
CREDIT-8  Credit counts on one slot for a function that was not measured yet, and for a plain
    function, whose tasks run one after the other unless they return awaitables. A NEED_WORK frame
    shows that tasks of the function were suspended, if the worker holds no others. One that came
    before the first task of a function was sent tells nothing about that function.
CREDIT-9  In a worker that has threads, a plain function needs one (THREAD-1), and the items behind
    one that waits for a thread wait, too (WORKER-1). So a task that needs a thread is sent if a
    slot and a thread are free. CREDIT-3 adds a backlog, unless tasks of others that are slow or not
    measured yet have all threads; of a function that is slow itself, it adds what threads take
    within `THREAD_WAIT`, unless such a task of others has one. It adds nothing while all threads
    are busy and none has ended or begun a task for `THREAD_WAIT`: what runs there takes longer than
    the pace of its function tells. Tasks that need no thread have the slots, however many threads
    are busy. What was quick until now and then blocks does hold up what was sent behind it before.
"""

from __future__ import annotations

HORIZON = 0.004  # seconds of work that may wait at a worker; CREDIT-6 varies this and the next
BURST_US = 2000  # microseconds that a turn of a worker may take before it sends results: half of
# HORIZON, or the worker would run dry while they travel
CONTENTION_PARTS = 8  # by which backlog and burst are divided while calls wait (CREDIT-6)
CONTENDED_BURST_US = BURST_US // CONTENTION_PARTS
ALONE_TIMES = 4  # by which backlog and burst of a map that is alone are multiplied (CREDIT-6)
MOST_BYTES = 16 << 20  # sent to a worker and not reported yet
THREAD_WAIT = 0.05  # seconds that tasks may wait behind one that waits for a thread (CREDIT-9)
GROWTH = 16  # a measurement enlarges a backlog at most by this factor: the first one is short


class Pace:
    """How fast one worker ends tasks in the batches in which tasks of one function were reported.

    Tasks of all functions in such a batch count: how much of the time each function took is not
    known. So a function that shares its worker with a faster one looks faster than it is; counted
    by itself over all of that time, a quick one would look slow, and hold up others (CREDIT-7). Of
    a function that runs in threads only its own tasks count, over the time since the last of them
    were reported, or sent to a worker that held none: it takes nothing from those on the loop, and
    must not look as quick as they are (CREDIT-9).
    Tasks and seconds are summed, and older sums decay by `HORIZON / (HORIZON + elapsed)`. A mean of
    rates would be wrong: of tasks that end together but are reported one by one, all but the first
    seem to take no time.
    """

    __slots__ = ("backlog", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0.0  # tasks that ended
        self.seconds = 0.0  # the time that they took, while the worker had work
        self.backlog = 0  # tasks that start within `HORIZON`; 0: slower than that


class Credit:
    """The account of one worker: tasks are counted from the start of the worker."""

    __slots__ = (
        "_blocking",
        "_busy_seconds",
        "_busy_since",
        "_concurrency",
        "_ended",
        "_held",
        "_lifetime",
        "_overtaken",
        "_paces",
        "_recent",
        "_reported",
        "_threaded",
        "_threaded_ended",
        "_threaded_since",
        "_threaded_until",
        "_threads",
        "_threads_are_stuck",
        "_threads_free",
        "_threads_moved",
        "_wanted",
        "alone_times",
        "bytes",
        "concurrency_seen",
        "finished",
        "horizon",
        "scale",
        "sent",
        "spent",
    )

    def __init__(self, concurrency: int, lifetime: int, threads: int = 0) -> None:
        self.horizon = HORIZON  # not of the class: `settle` of each `apply` loads it (engine.py)
        self.alone_times = ALONE_TIMES
        self.scale: float = 1  # of a map's backlog and bursts, when it was served last (CREDIT-6)
        self._concurrency = concurrency
        self._lifetime = lifetime  # 0: no limit
        self._threads = threads  # 0: plain functions run on the loop
        self._threaded: set[int] = set()  # functions whose tasks need a thread (CREDIT-9)
        self._threaded_ended: dict[int, int] = {}  # tasks of these that `settle` has not seen yet
        self._threaded_since: dict[int, float] = {}  # `_busy_seconds` when their next pace begins
        self._busy_seconds = 0.0  # how long the worker had work, until the last settle()
        self._threaded_until = 0  # how many tasks had been sent with the last that needs a thread
        self._threads_moved = 0.0  # when a thread took a task, or ended one that was measured
        self._threads_are_stuck = False  # none has for `THREAD_WAIT`
        self._threads_free = 0  # by the last NEED_WORK frame, less such tasks sent since
        self._paces: dict[int, Pace] = {}  # by function
        self._reported: set[int] = set()  # functions of tasks reported since the last settle()
        self._ended = 0  # how many tasks these are
        self._held: dict[int, int] = {}  # tasks that were sent and not reported, by function
        self._busy_since = 0.0
        self.concurrency_seen = 1  # how many tasks were seen to run side by side
        self._wanted = 0  # free slots by the last NEED_WORK frame, less the tasks sent since
        self._blocking: set[int] = set()  # functions whose tasks run one after another (CREDIT-8)
        self._recent = 0  # the function of the tasks that were sent last
        self._overtaken = 0  # how many tasks had been sent with the last call that overtook
        self.bytes = 0  # of the chunks that are not reported whole
        self.sent = 0
        self.finished = 0
        self.spent = False
        """Whether this worker gets no more tasks (CREDIT-2)."""

    @property
    def in_flight(self) -> int:
        """Tasks that were sent and not reported."""
        return self.sent - self.finished

    @property
    def reported(self) -> int:
        """Tasks that were reported, those that `settle` has not seen yet included."""
        return self.finished + self._ended

    def room(
        self,
        started: int,
        function: int,
        *,
        work_is_ample: bool | None = None,
        scale: float = 1,
    ) -> int:
        """How many tasks of `function` may be sent now (all rules but CREDIT-4).

        `started`: how many tasks the worker has started in all. `work_is_ample`: whether many are
        left (CREDIT-3), None if that is unknown. `scale`: of the backlog (CREDIT-6).
        """
        pace = self._paces.get(function)
        running = started - self.finished
        threaded = function in self._threaded
        slots, wanted = self.concurrency_seen, self._wanted
        if pace is None or function in self._blocking:
            slots = 1
            if pace is None and function not in self._held:
                wanted = wanted and 1
        free = 0 if self._is_blocked() else slots - running
        if free < wanted:  # the worker said so when fewer tasks were running
            free = min(wanted, self._concurrency - running)
        unstarted = self.sent - started
        room = (free if free > 0 else 0) - unstarted
        if threaded:
            room = min(room, max(self.free_threads(), -unstarted))
        if (
            pace is not None
            and self.bytes < MOST_BYTES
            and not (pace.backlog and self.is_occupied(function))
        ):
            # CREDIT-3
            enough = min(slots, self._threads) if threaded else slots
            if work_is_ample or work_is_ample is None or pace.backlog >= enough:
                room += pace.backlog if scale == 1 else int(pace.backlog * scale)
            if work_is_ample:
                room += min(slots - 1, self._ahead(function, pace)) if threaded else slots - 1
        return min(room, self._lifetime - self.sent) if self._lifetime else room

    def backlog(self, function: int) -> int:
        """How many tasks of `function` this worker starts in `HORIZON` seconds; 0: unknown."""
        pace = self._paces.get(function)
        return pace.backlog if pace else 0

    def overtake(self, started: int, function: int) -> int:
        """How many calls of `function` may overtake (CREDIT-4, within CREDIT-2, -5 and -7)."""
        recent = self._paces.get(self._recent)
        if started < self._overtaken or recent is None or not recent.backlog:
            return 0
        if self.bytes >= MOST_BYTES or self.is_occupied(function):
            return 0
        pace = self._paces.get(function)
        room = min(max(pace.backlog, 1), self._concurrency) if pace else 1
        return min(room, self._lifetime - self.sent) if self._lifetime else room

    def is_occupied(self, function: int) -> bool:
        """CREDIT-7, CREDIT-9: whether slow or unmeasured tasks have all that `function` needs."""
        slow = sum(count for held, count in self._held.items() if self._is_slow(held))
        if slow >= self._concurrency or self._is_blocked():
            return True
        return function in self._threaded and self.threads_are_taken

    @property
    def threads_are_taken(self) -> bool:
        """CREDIT-9: whether the tasks in all threads are slow, not measured yet, or stuck."""
        if self.free_threads() > 0:
            return False
        return self._threads_are_stuck or self._threads <= sum(
            count
            for held, count in self._held.items()
            if held in self._threaded and self._is_slow(held)
        )

    def look_at_threads(self, now: float) -> None:
        """Find out whether the tasks in all threads take longer than the pace of their function."""
        self._threads_are_stuck = now - self._threads_moved > THREAD_WAIT

    def _ahead(self, function: int, pace: Pace) -> int:
        """CREDIT-9: how many tasks may wait until a thread is free."""
        if self._threads_are_stuck and self.free_threads() <= 0:
            return 0
        if not pace.backlog and any(
            held != function and held in self._threaded and self._is_slow(held)
            for held in self._held
        ):
            return 0
        return int(THREAD_WAIT * pace.count / pace.seconds)

    def free_threads(self) -> int:
        """How many threads are free: more than are seen here, if tasks have returned awaitables."""
        held = sum(count for function, count in self._held.items() if function in self._threaded)
        return max(self._threads - held, self._threads_free)

    def _is_blocked(self) -> bool:
        """Whether there is a task that is slow or not measured yet, and blocks the loop."""
        return not self._blocking.isdisjoint(self._held) and any(
            function in self._blocking and self._is_slow(function) for function in self._held
        )

    def _is_slow(self, function: int) -> bool:
        pace = self._paces.get(function)
        return pace is None or not pace.backlog

    def send(self, count: int, function: int, now: float, size: int = 0) -> None:
        """Count a chunk of `count` tasks of `function`, in `size` bytes, as sent."""
        if self.sent == self.finished:
            self._busy_since = now
            self._wanted = 0  # nothing is suspended any more
        elif self._wanted:
            new = function not in self._held and function not in self._paces  # CREDIT-8
            self._wanted = 0 if new else max(self._wanted - count, 0)
        self.sent += count
        if function in self._threaded:
            if self.free_threads() > 0:
                self._note_move(now)
            self._threads_free -= count
            self._threaded_until = self.sent
            if function not in self._held:
                self._threaded_since[function] = self._busy_seconds
        self._held[function] = self._held.get(function, 0) + count
        self.bytes += size
        self._recent = function
        if self._lifetime and self.sent >= self._lifetime:
            self.spent = True

    def take_back(self, count: int, function: int, size: int) -> None:
        """Uncount tasks that the link could not take, or a retiring worker returned (QUEUE-8)."""
        self.sent -= count
        if function in self._threaded:
            self._threads_free += count
            self._threaded_until = min(self._threaded_until, self.sent)
        self._held[function] -= count
        if not self._held[function]:
            del self._held[function]
        self.bytes -= size
        self.spent = 0 < self._lifetime <= self.sent

    def have_overtaken(self) -> None:
        """Record that the tasks sent last were calls that overtook (CREDIT-4)."""
        self._overtaken = self.sent

    def note_blocking(self, function: int) -> None:
        """The worker gets a plain function, which it runs on its loop (CREDIT-8)."""
        self._blocking.add(function)

    def note_threaded(self, function: int) -> None:
        """The worker runs tasks of this function in threads (CREDIT-9)."""
        self._threaded.add(function)

    def need_work(self, free: int, threads: int = 0, received: int = 0) -> None:
        """Record that the worker has `free` slots and nothing to start (0: it has).

        `threads`: how many are free, when the worker had `received` so many tasks in all. A frame
        that was sent before the last task that needs a thread had arrived tells nothing of them:
        another will follow.
        """
        self._wanted = free
        if received >= self._threaded_until:
            self._threads_free = threads
        if len(self._held) == 1:  # CREDIT-8
            self._blocking.difference_update(self._held)

    def report(self, count: int, function: int, size: int = 0) -> None:
        """Count `count` tasks as ended; the last of a chunk come with its `size` in bytes."""
        self._reported.add(function)
        if function in self._threaded:
            self._threaded_ended[function] = self._threaded_ended.get(function, 0) + count
        held = self._held[function] - count
        if held:
            self._held[function] = held
        else:
            del self._held[function]
        self._ended += count
        self.bytes -= size

    def settle(self, started: int, now: float) -> None:
        """Adapt the concurrency seen and the backlogs to a batch of reports."""
        count = self._ended
        if not count:
            return
        # `if`, not `min` and `max`, which are slower: every `apply` comes through here
        together = started - self.finished
        if together > self._concurrency:
            together = self._concurrency
        seen = self.concurrency_seen
        if together > seen:
            self.concurrency_seen = together
        elif together < seen:
            fewer = seen - 1 - seen // 8 or 1
            self.concurrency_seen = together if together > fewer else fewer
        self.finished += count
        self._ended = 0
        elapsed, self._busy_since = now - self._busy_since, now
        if elapsed > 0:
            if self._threads:
                self._busy_seconds += elapsed
            horizon = self.horizon
            kept = horizon / (horizon + elapsed)
            for function in self._reported:
                pace = self._paces.get(function)
                if pace is None:
                    pace = self._paces[function] = Pace()
                if function in self._threaded:
                    self._note_move(now)
                    self._measure_threaded(pace, function)
                    continue
                pace.count = tasks = count + kept * pace.count
                pace.seconds = seconds = elapsed + kept * pace.seconds
                backlog = int(tasks / seconds * horizon)
                most = pace.backlog * GROWTH or GROWTH
                pace.backlog = backlog if backlog < most else most
        self._reported.clear()

    def _note_move(self, now: float) -> None:
        """A thread has taken a task, or ended one."""
        self._threads_moved = now
        self._threads_are_stuck = False

    def _measure_threaded(self, pace: Pace, function: int) -> None:
        """Adapt the backlog of a function that runs in threads."""
        elapsed = max(self._busy_seconds - self._threaded_since.get(function, 0.0), 1e-6)
        kept = self.horizon / (self.horizon + elapsed)
        pace.count = self._threaded_ended.pop(function, 0) + kept * pace.count
        pace.seconds = elapsed + kept * pace.seconds
        most = pace.backlog * GROWTH or GROWTH
        pace.backlog = min(int(pace.count / pace.seconds * self.horizon), most)
        self._threaded_since[function] = self._busy_seconds

    def drop_function(self, function: int) -> None:
        """Drop the pace of a function that no later task has; tasks that have ended still count."""
        self._paces.pop(function, None)
        self._reported.discard(function)
        self._blocking.discard(function)
        self._threaded.discard(function)
        self._threaded_ended.pop(function, None)
        self._threaded_since.pop(function, None)
