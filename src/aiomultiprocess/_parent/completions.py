"""The results of a job in the order in which they were ready: what `as_completed` reads.

A job (job.py) makes a `CompletionLog` at its first `as_completed`, and adds the indices of all that
is settled from then on. A `CompletionReader` is the position of one `as_completed` in the log.

COMPLETION-1  An index is in the log once, and only if its outcome is there. The index after the
    last result stands for the error of the input, and is added when all results are there.
COMPLETION-2  A reader takes its next index when that is in the log, and not when a step begins to
    wait. So steps of several tasks, of which some are cancelled, lose nothing and give nothing
    twice.
    What is added wakes as many steps of each reader, those that wait longest: to wake all each time
    would take time in proportion to the square of their number. A step that is cancelled when it
    was woken wakes the next.
COMPLETION-3  For an unbounded input the job drops the first indices of the log with their results
    (JOB-2), after each reader has read them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

from .callers import ANOTHER_LOOP
from .errors import INTERRUPTS
from .places import FAILED, PENDING

FEWEST = 64  # indices that are dropped together, at least


class LoggedResults(Protocol):
    """What a reader needs of its job."""

    done: bool

    def value_at(self, index: int) -> Any:
        """The result of one task, or PENDING or FAILED."""

    def outcome(self, index: int) -> Any:
        """The result of one task that is ready, or raise its error."""

    def has_moved(self, reader: Any) -> None:
        """A reader has moved: the input may be pulled further, and results dropped."""

    def drop_reader(self, reader: Any) -> None:
        """A reader has ended."""

    def mark(self) -> None:
        """A caller has given up: the job may be cancelled when nothing waits for it (JOB-9)."""


class CompletionLog:
    """The indices of what is settled, in order, from number `base` on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.base = 0
        self._order: list[int] = []
        self._rest = range(0)
        self._loop = loop
        # the steps that wait, of each reader; a dict, as one that is cancelled leaves at once
        self._waiters: dict[CompletionReader, OrderedDict[asyncio.Future[None], None]] = {}

    def __len__(self) -> int:
        """How many were added, with those that were dropped."""
        return self.base + len(self._order) + len(self._rest)

    def __getitem__(self, at: int) -> int:
        at -= self.base
        return self._order[at] if at < len(self._order) else self._rest[at - len(self._order)]

    def add(self, indices: Sequence[int]) -> None:
        """Add what is settled now."""
        self._order += indices
        if self._waiters:
            self._wake(len(indices))

    def add_rest(self, indices: range) -> None:
        """Add what was given up before it was taken (JOB-10); nothing is added after it."""
        self._rest = indices
        if self._waiters:
            self.wake()

    def wake(self) -> None:
        """Let each waiting step look again: there is more, or the job is done."""
        for reader, steps in list(self._waiters.items()):
            self._wake_steps(reader, len(steps))

    def _wake(self, count: int) -> None:
        for reader in list(self._waiters):
            self._wake_steps(reader, count)

    def _wake_steps(self, reader: CompletionReader, count: int) -> None:
        steps = self._waiters.get(reader)
        while steps and count:
            future, _ = steps.popitem(last=False)
            if not future.done():  # else it was cancelled, and has not left yet
                future.set_result(None)
                count -= 1
        if not steps:
            self._waiters.pop(reader, None)

    @property
    def is_awaited(self) -> bool:
        """Whether a step waits, also one of a reader that was closed."""
        return bool(self._waiters)

    async def wait(self, reader: CompletionReader) -> None:
        """Wait until more is added, or the job is done."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(ANOTHER_LOOP)
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.setdefault(reader, OrderedDict())[future] = None
        try:
            await future
        except BaseException:
            woken = future.done() and not future.cancelled()  # and does not look
            if reader in self._waiters:
                self._waiters[reader].pop(future, None)
            self._wake_steps(reader, int(woken))
            raise

    def drop(self, count: int, below: int | None) -> list[int]:
        """Drop up to `count` of the first indices, before the first that is not below `below`.

        None if these are fewer than `FEWEST`, and few of all: each time costs a move of those that
        stay.
        """
        if below is not None:
            first = enumerate(islice(self._order, max(count, 0)))
            count = next((at for at, index in first if index >= below), count)
        if count <= 0 or (count < FEWEST and FEWEST * count < len(self._order)):
            return []
        read = self._order[:count]
        del self._order[:count]
        self.base += count
        return read


class CompletionReader:
    """The position of one `as_completed`; after an error, the next result follows."""

    __slots__ = ("__weakref__", "_job", "_log", "_waiting", "index", "last")

    def __init__(self, job: LoggedResults, log: CompletionLog) -> None:
        self._job = job
        self._log = log
        self._waiting = 0
        self.index = 0  # how many results it has read
        self.last: int | None = None  # the index of the last of them

    @property
    def is_waiting(self) -> bool:
        """Whether one of its steps waits for a result."""
        return self._waiting > 0

    def close(self) -> None:
        """Stop limiting which results the job drops, and how far it looks ahead."""
        self._job.drop_reader(self)

    def give_up(self) -> None:
        """As `Reader.give_up`."""
        if not self.is_waiting:
            self._job.mark()
        self.close()

    def next_ready(self) -> Any:
        """The next result, or PENDING if `next` has to be awaited: as `Reader.next_ready`."""
        at, log, job = self.index, self._log, self._job
        if at >= len(log):
            return PENDING
        index = log[at]
        value = job.value_at(index)
        if value is PENDING or value is FAILED:
            return PENDING
        before, self.last = self.last, index
        self.index = at + 1
        try:
            job.has_moved(self)
        except INTERRUPTS:  # raised by the input or a scheduler: the result is read again
            self.index, self.last = at, before
            raise
        return value

    async def next(self) -> Any:
        """The next result as soon as there is one, or raise its error."""
        while self.index >= len(self._log):  # COMPLETION-2
            if self._job.done:
                raise StopAsyncIteration
            self._waiting += 1
            try:
                await self._log.wait(self)
            except asyncio.CancelledError:
                self._job.mark()
                raise
            finally:
                self._waiting -= 1
        at, before = self.index, self.last
        self.index, self.last = at + 1, self._log[at]
        try:
            return self._job.outcome(self.last)
        finally:
            try:
                self._job.has_moved(self)
            except INTERRUPTS:  # as in `next_ready`
                self.index, self.last = at, before
                raise
