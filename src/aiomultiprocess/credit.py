"""How many tasks one worker may hold: enough never to run dry, too few to hoard.

The worker itself runs at most `childconcurrency` tasks at once. Credit decides how many more wait
behind them: as many as the worker starts in `HORIZON` seconds, by the rate measured so far, and at
least one. So trivial tasks travel by the thousand, a slow task has one other behind it at most, and
the tail of a map is shared evenly. Tasks that wait (for a socket, say) show themselves by running
side by side: `slots` follows how many did, and a worker that has free slots and nothing to start
says so (frame WANT).

K1  unstarted tasks at a worker <= backlog + slots that are believed to be free.
K2  a worker is never sent more than `lifetime` tasks in all (`maxtasksperchild`).
"""

from __future__ import annotations

HORIZON = 0.004  # seconds of work that may wait at a worker
FIRST_BACKLOG = 1
GROWTH = 16  # a first, short measurement may enlarge the backlog by no more than this factor


class Credit:
    """The account of one worker. Numbers are tasks since the worker was created."""

    __slots__ = (
        "_busy_since",
        "_concurrency",
        "_lifetime",
        "_rate",
        "_slots",
        "_wanted",
        "backlog",
        "finished",
        "sent",
    )

    def __init__(self, concurrency: int, lifetime: int) -> None:
        self._concurrency = concurrency
        self._lifetime = lifetime  # 0: no limit
        self._rate = 0.0  # tasks finished per second while there was work
        self._busy_since = 0.0
        self._slots = 1  # how many tasks were seen to run side by side
        self._wanted = 0
        self.backlog = FIRST_BACKLOG
        self.sent = 0
        self.finished = 0

    @property
    def in_flight(self) -> int:
        return self.sent - self.finished

    @property
    def spent(self) -> bool:
        """K2: this worker gets no more tasks."""
        return bool(self._lifetime) and self.sent >= self._lifetime

    def room(self, started: int) -> int:
        """How many tasks the worker may be sent now, `started` of them being begun."""
        running = started - self.finished
        free = max(self._slots - running, self._wanted, 0)
        room = self.backlog + free - (self.sent - started)
        if self._lifetime:
            room = min(room, self._lifetime - self.sent)
        return room

    def send(self, count: int, now: float) -> None:
        if self.sent == self.finished:
            self._busy_since = now
        self.sent += count
        self._wanted -= min(count, self._wanted)

    def want(self, free: int) -> None:
        """The worker has `free` slots and nothing to put into them."""
        self._wanted = free

    def finish(self, count: int, started: int, now: float) -> None:
        """`count` tasks were reported at once; adapt slots and backlog."""
        together = min(started - self.finished, self._concurrency)
        self._slots = max(together, self._slots - 1 - self._slots // 8, 1)
        self.finished += count
        elapsed = now - self._busy_since
        self._busy_since = now
        if elapsed <= 0:
            return
        rate = count / elapsed
        self._rate = (self._rate + rate) / 2 if self._rate else rate
        wanted = int(self._rate * HORIZON)
        self.backlog = max(FIRST_BACKLOG, min(wanted, self.backlog * GROWTH))
