"""Time limits: tasks of one worker that have one (`task_timeout=`), judged by the parent.

    started --limit--> CANCEL frame --grace--> the worker is killed
       |                  |                      |
       +-- ends --+-------+-- ends               +--> TaskTimeoutError(killed=True)

A worker may block its loop, or hold the GIL in C code, so it cannot watch its own tasks. It stores
the start time of each task with a limit in memory that it shares with the parent (`RunningItems`
in _transport/link.py), and this module reads that memory. Nothing polls: there is one timer for
each worker, armed for the moment at which the first of its tasks could be over its limit.

The queue (queue.py) reports each chunk with a limit that it sends, and asks after the death of the
worker which of its tasks were over their limits. The cancellation itself, and the error of a task
that ends by it, are the worker's (_worker/limits.py).

DEADLINE-1  A limit counts from the start of a task in its worker. A task that waits, here or there,
    uses nothing of it.
DEADLINE-2  A task is judged by the table alone, which has no task whose result is in the journal.
    So a parent that was blocked for seconds cancels nothing that has ended meanwhile, whether or
    not it has handled the results; and where a task ends at the last moment, its result stands: the
    worker ignores the CANCEL frame, and after a kill the journal is read first. A worker that has
    died, which the parent may not have noticed yet, is not judged: its table says nothing new. A
    stream is judged value by value, as its worker renews its start time (limits.py, LIMITS-3).
DEADLINE-3  A task has the whole grace period, from the moment at which it was cancelled. If it
    still runs then, its worker is killed. Tasks that were cancelled before are over their limits,
    and do not run again; the worker's other tasks are lost (retry.py).
DEADLINE-4  The timer is armed while the worker holds tasks with a limit, for the first moment at
    which one can be over it: a task that is not in the table now can be so only after its limit.
    Between two looks at the table are at least `PAUSE` seconds, however many tasks there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_right
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from .. import _accel
from .._transport.link import Link
from .._wire.frames import TIMED, Kind
from .errors import task_label

if TYPE_CHECKING:
    from .chunk import Chunk

#: Seconds by which a start time may lie before the start (STARTER-9): what items share, and a tick
#: of a coarse clock.
TICK = 0.015
PAUSE = 0.01  # seconds (DEADLINE-4)
EARLY = 0.002  # seconds by which a loop's timer may be early
LONGEST = 86400.0  # seconds for which a timer is armed at most: loops take no arbitrary time

log = logging.getLogger(__name__)


class LimitedWorker(Protocol):
    """What this module needs of a worker."""

    link: Link
    chunks: dict[int, Chunk]

    @property
    def pid(self) -> int | None:
        """The process id."""

    def is_alive(self) -> bool:
        """Whether the process runs."""

    def kill(self) -> None:
        """End the process at once."""


class Deadlines:
    """The time limits of the tasks at one worker."""

    def __init__(
        self, worker: LimitedWorker, loop: asyncio.AbstractEventLoop, grace: float
    ) -> None:
        self._worker = worker
        self._loop = loop
        self._grace = grace  # seconds
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = math.inf
        self._kill_at: dict[int, float] = {}  # of tasks that were cancelled, by their numbers
        self._stopped = False
        self.why_killed = ""
        """Why this has killed the worker, in a sentence; empty as long as it has not."""

    def sent(self, limit: float) -> None:
        """A chunk with this limit, in seconds, was sent just now."""
        when = monotonic() + limit + TICK
        if when < self._next_look:  # as `_look_at` asks, without a call for each chunk
            self._look_at(when)

    def is_over(self, number: int) -> bool:
        """Whether a task was cancelled by its limit, and still ran at the last look."""
        return number in self._kill_at

    def stop(self) -> None:
        """The worker has ended, or is about to."""
        self._stopped = True
        self._disarm()

    # -- the timer -----------------------------------------------------------------------------

    def _look_at(self, when: float) -> None:
        if when < self._next_look and not self._stopped:
            self._disarm()
            self._next_look = when
            delay = min(max(when - monotonic(), 0.0) + EARLY, LONGEST)
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _disarm(self) -> None:
        self._next_look = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._disarm()
        now = when = monotonic()  # look again soon if KeyboardInterrupt strikes here
        try:
            when = self._look(now)
        finally:
            self._look_at(max(when, now + PAUSE))

    # -- judging -------------------------------------------------------------------------------

    def _look(self, now: float) -> float:
        """Judge the tasks that run; returns when to look again."""
        if not self._worker.is_alive():  # DEADLINE-2
            return math.inf
        when = min((now + limit + TICK for limit in self._limits()), default=math.inf)
        running = self._worker.link.counter.running()
        kill_at = self._kill_at
        for number in [number for number in kill_at if number not in running]:
            del kill_at[number]
        for number, chunk, limit in self._find(running):
            due = running[number] / 1e9 + limit + TICK
            if number not in kill_at and now >= due:
                self._cancel(number, chunk, limit)
                kill_at[number] = now + self._grace
            elif number in kill_at and now >= kill_at[number]:
                self._kill(task_label(chunk.owner, chunk.handles[number - 1 - chunk.first]))
                break
            when = min(when, kill_at.get(number, due))
        self._worker.link.flush()
        return when

    def _limits(self) -> set[float]:
        """The limits of the tasks that the worker holds."""
        limits = {chunk.owner.options.timeout for chunk in self._worker.chunks.values()}
        return {limit for limit in limits if limit is not None}

    def _find(self, numbers: dict[int, Any]) -> Iterator[tuple[int, Chunk, float]]:
        """The tasks with these numbers that are not reported: number, chunk and limit.

        The numbers come from the worker's memory, which may hold anything.
        """
        chunks = self._worker.chunks
        firsts = list(chunks)  # in order: a chunk is sent under the number of its first task
        for number in numbers:
            at = bisect_right(firsts, number - 1) - 1
            if at < 0:
                continue
            chunk = chunks[firsts[at]]
            offset, limit = number - 1 - chunk.first, chunk.owner.options.timeout
            if limit is not None and chunk.unreported(offset, min(offset + 1, len(chunk.handles))):
                yield number, chunk, limit

    def _cancel(self, number: int, chunk: Chunk, limit: float) -> None:
        offset = number - 1 - chunk.first
        label = task_label(chunk.owner, chunk.handles[offset])
        self._worker.link.send(
            Kind.CANCEL,
            flags=TIMED,
            chunk_id=chunk.first,
            offset=offset,
            payload=[_accel.dumps((label, limit))],
        )

    def _kill(self, label: str) -> None:
        """DEADLINE-3: end the worker, whose exit settles all that it held."""
        self.why_killed = (
            f"worker {self._worker.pid} was killed: {label} still ran {self._grace:g} s after it "
            "was cancelled, as it was over its time limit. It blocks the worker's loop, or ignores "
            "its cancellation"
        )
        log.warning(self.why_killed)
        self.stop()
        self._worker.kill()
