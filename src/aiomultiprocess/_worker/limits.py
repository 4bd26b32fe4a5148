"""Items with a time limit, as their worker sees them: since when each runs, and which ran too long.

The worker only keeps the start times, in memory that the parent reads (`RunningItems` in
_transport/link.py); the parent judges (_parent/deadlines.py), because a worker that blocks its loop
cannot. If an item is over its limit the parent sends a CANCEL frame, and here the item is cancelled
as by `asyncio.timeout`.

The engine (engine.py) makes a `TimeLimits` at its first chunk with a limit, so a worker without
such chunks does not import this module.

LIMITS-1  An item with a limit is in the table from before its function is called (STARTER-9) until
    its result is in the journal. While it runs its first step it has entry 0; when it suspends, it
    gets an entry of its own before entry 0 is free.
LIMITS-2  A cancellation by the limit is the item's end only if a CancelledError comes out. A value
    or another exception stands, and a request that comes after the end changes nothing.
LIMITS-3  The limit of a stream (streams.py) is one of each value: the start time is renewed when
    the generator is asked for the next, and the entry is free while the generator waits for its
    reader. Once the limit has cancelled it, neither happens: it has the grace period to end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from .._transport.link import RunningItems
from ..types import TaskTimeoutError


class TimeLimits:
    """The items with a time limit that are suspended, and those that were cancelled by it."""

    def __init__(self, memory: RunningItems) -> None:
        self._memory = memory
        self._entries: dict[asyncio.Task[Any], int] = {}
        self._free: list[int] = []  # entries that were used before
        self._unused = 1  # the first entry that was never used
        self._timed_out: dict[asyncio.Task[Any], Sequence[Any]] = {}  # arguments of their errors
        self._clocks: dict[asyncio.Task[Any], ValueClock] = {}  # of streams

    @property
    def full(self) -> bool:
        """Whether no further item can be suspended: the engine starts none with a limit."""
        return not self._free and self._unused >= self._memory.entries

    def clock(self) -> ValueClock:
        """In the first step of a stream: what keeps its start time."""
        return ValueClock(self._memory)

    def suspend(self, task: asyncio.Task[Any], clock: ValueClock | None = None) -> None:
        """Give the item that was suspended in its first step an entry of its own (LIMITS-1).

        A stream has a `clock`.
        """
        if self._free:
            at = self._free.pop()
        else:
            at = self._unused
            self._unused += 1
        self._entries[task] = at
        self._memory.keep_running(at)
        if clock is not None:
            clock.at = at
            self._clocks[task] = clock

    def end_first_step(self) -> None:
        """No item with a limit runs its first step any more."""
        self._memory.clear_running(0)

    def journaled(self, task: asyncio.Task[Any]) -> None:
        """The result of an item, which may have no limit, is in the journal."""
        at = self._entries.pop(task, None)
        if at is not None:
            self._memory.clear_running(at)
            self._free.append(at)
        self._timed_out.pop(task, None)
        if self._clocks:
            self._clocks.pop(task, None)

    def cancel(self, task: asyncio.Task[Any], what: Sequence[Any]) -> None:
        """Cancel an item that is over its limit; `what` are the arguments of its error."""
        self._timed_out[task] = what
        if task in self._clocks:
            self._clocks[task].stop()
        task.cancel()

    def error_of(self, task: asyncio.Task[Any], error: BaseException) -> TaskTimeoutError | None:
        """The error of an item that its limit has cancelled, and that ended so (LIMITS-2)."""
        what = self._timed_out.get(task)
        if what is None or not issubclass(type(error), asyncio.CancelledError):
            return None
        timeout = TaskTimeoutError(*what)
        timeout.__cause__ = error
        return timeout


class ValueClock:
    """Since when a stream produces its next value, in the table of running items (LIMITS-3)."""

    def __init__(self, memory: RunningItems) -> None:
        self.at = 0  # its entry
        self._memory = memory
        self._number = memory.started  # of the item, which is in its first step
        self._stopped = False

    def renew(self) -> None:
        """The generator is asked for a value now."""
        if not self._stopped:
            self._memory.set_running(self.at, self._number, time.monotonic_ns())

    def rest(self) -> None:
        """The generator waits, until `renew`."""
        if not self._stopped:
            self._memory.clear_running(self.at)

    def stop(self) -> None:
        """The stream was cancelled by its limit: it runs until it ends."""
        self.renew()
        self._stopped = True
