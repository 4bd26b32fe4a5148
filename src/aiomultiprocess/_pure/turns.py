"""How long a worker's event loop is busy, and since when: for `Pool.stats()`.

    select(timeout) --> events --> callbacks: a turn --> select(timeout) --> ...
         idle                          busy                  idle

A loop of asyncio calls the `select` of its selector once a turn, and is idle while it waits there.
A `TurnClock` stands in for that method, and stores two words in the memory of the link, which the
parent reads (amp_ext/ring.h says what they mean). amp_ext/starter.pyx is the same in Cython.

TURN-1  A turn costs two stores, or one if the next follows without a wait. Nothing is stored for an
    item.
TURN-2  Once it is stopped, it stores nothing: the memory may be gone, or be that of a process of
    which this one is a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Protocol


class Turns(Protocol):
    """Memory that the parent reads."""

    def begin_turn(self, origin: int, /) -> object:
        """Store the first word: a turn begins."""

    def end_turn(self, busy: int, /) -> object:
        """Store the second word: a turn has ended."""


class TurnClock:
    """Stands in for the `select` of a loop's selector."""

    def __init__(self, memory: Turns, select: Callable[..., Any]) -> None:
        self._memory = memory
        self._select = select
        self._stopped = False
        self._phase = 0
        self._busy = 0
        self._begin()

    def wait(self, timeout: float | None = None) -> Any:
        """As `select`."""
        if self._stopped:
            return self._select(timeout)
        self._busy = monotonic_ns() - self._origin
        if timeout is not None and timeout <= 0:
            self._end(in_turn=1)  # the next turn begins at once
            return self._select(timeout)
        self._end(in_turn=0)
        try:
            return self._select(timeout)
        finally:
            if not self._stopped:
                self._begin()

    def stop(self, *, idle: bool) -> None:
        """Store nothing any more, after an `idle` that the parent is to see (TURN-2)."""
        if idle and not self._stopped:
            self._busy = monotonic_ns() - self._origin
            self._end(in_turn=0)
        self._stopped = True

    def _begin(self) -> None:
        self._origin = monotonic_ns() - self._busy
        self._phase ^= 1
        self._memory.begin_turn(self._origin & ~1 | self._phase)

    def _end(self, *, in_turn: int) -> None:
        self._memory.end_turn(self._busy & ~1 | self._phase ^ in_turn)
