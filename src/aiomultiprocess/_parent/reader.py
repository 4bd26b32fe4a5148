"""The position of one `async for` over a job, which gives results in the order of the input.

A job (job.py) makes a `Reader` for each iterator over its results (iterators.py), also for one that
several tasks share: each `anext` is a *step*, and several steps may wait at a time.

READER-1  A step takes the lowest index that no step has taken. If it is cancelled or interrupted it
    gives its index back, for the next step. So steps of several tasks, of which some are cancelled,
    lose nothing and give nothing twice.
READER-2  A result that a step waits for, or has given back, is *unread*: the job keeps it.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Any, Protocol

from .errors import INTERRUPTS
from .places import FAILED, PENDING


class OrderedResults(Protocol):
    """What a reader needs of its job."""

    def value_at(self, index: int) -> Any:
        """The result of one task, or PENDING or FAILED."""

    def is_ready(self, index: int) -> bool:
        """Whether the outcome of one task is there, or none will ever be."""

    async def wait_for(self, index: int) -> None:
        """Wait until the outcome of one task is there."""

    def outcome(self, index: int) -> Any:
        """The result of one task that is ready, or raise its error."""

    def has_moved(self, reader: Any) -> None:
        """A reader has moved: the input may be pulled further, and results dropped."""

    def drop_reader(self, reader: Any) -> None:
        """A reader has ended."""

    def mark(self) -> None:
        """A caller has given up: the job may be cancelled when nothing waits for it (JOB-9)."""


class Reader:
    """The position of one `async for` over a job; after an error, the next result follows."""

    __slots__ = ("__weakref__", "_given_back", "_job", "_steps", "index")

    def __init__(self, job: OrderedResults) -> None:
        self._job = job
        self._given_back: list[int] = []  # a heap of indices below `index` (READER-1)
        self._steps: set[int] = set()  # the indices that steps wait for
        self.index = 0  # the first that no step has taken, but for those that were given back

    @property
    def unread(self) -> list[int]:
        """The indices below `index` that must be kept (READER-2)."""
        return [*self._given_back, *self._steps]

    @property
    def is_waiting(self) -> bool:
        """Whether one of its steps waits for a result."""
        return not all(map(self._job.is_ready, self._steps))

    def close(self) -> None:
        """Stop limiting which results the job drops, and how far it looks ahead."""
        self._job.drop_reader(self)

    def give_up(self) -> None:
        """As `close`, by the user of the reader (JOB-9), unless a step still waits."""
        if not self.is_waiting:
            self._job.mark()
        self.close()

    def next_ready(self) -> Any:
        """The next result, or PENDING if `next` has to be awaited: for an error, say.

        Most results are ready when an `async for` comes to them, and a coroutine costs more than
        all else here.
        """
        if self._given_back:
            return PENDING
        index, job = self.index, self._job
        value = job.value_at(index)
        if value is PENDING or value is FAILED:
            return PENDING
        self.index = index + 1
        try:
            job.has_moved(self)
        except INTERRUPTS:  # raised by the input or a scheduler: the result is read again
            self._give_back(index)
            raise
        return value

    async def next(self) -> Any:
        """The next result as soon as it is there, or raise its error."""
        index = self._take()
        self._steps.add(index)
        try:
            await self._job.wait_for(index)
        except BaseException as error:
            self._give_back(index)
            if isinstance(error, asyncio.CancelledError):
                self._job.mark()
            raise
        finally:
            self._steps.discard(index)
        try:
            return self._job.outcome(index)
        except StopAsyncIteration:
            self._give_back(index)
            raise
        finally:
            try:
                self._job.has_moved(self)
            except INTERRUPTS:  # as in `next_ready`
                self._give_back(index)
                raise

    def _take(self) -> int:
        if self._given_back:
            return heappop(self._given_back)
        self.index += 1
        return self.index - 1

    def _give_back(self, index: int) -> None:
        if index == self.index - 1:
            self.index = index
        elif index < self.index and index not in self._given_back:
            heappush(self._given_back, index)
