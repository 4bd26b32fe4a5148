"""A job: one `map` or `starmap`, from its input to its results.

It is a *feed* (feed.py): the queues take tasks from it and report to it. On its other side any
number of readers wait for results, all of them or one after the other.

JOB-1  A list of results is complete: the values of a sequence are never dropped.
JOB-2  An iterator is pulled only as far ahead of its fastest reader as LOOK_AHEAD says, unless
    somebody awaits all results; what its slowest reader has passed by far is dropped.
JOB-3  Nothing is kept per task but its result.
JOB-4  Nobody knows how large the next items are: if a frame had no room for all that were taken, no
    more than twice as many as it had are taken next; of an iterator, which cannot take them back,
    a few at first.
JOB-5  Each await gives a list of its own. A copy of a million results makes the loop stand still:
    who is the last that can ask gets the list itself.
JOB-6  A job may be given up while code of the user's runs: an input is asked for items, an item is
    pickled. What was under way then has failed with all the rest, and is not taken up again.
"""

from __future__ import annotations

import asyncio
import types
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from .._wire.frames import Mode
from .errors import INTERRUPTS
from .feed import Handles
from .functions import Function
from .sources import SequenceSource, Source

LOOK_AHEAD_ITEMS = 8192  # unread results that an iterator may run ahead of its reader
LOOK_AHEAD_BYTES = 64 << 20  # ... and how many bytes of them
FIRST_STEP = 8  # items of an iterator that are pulled before the size of any is known
STEP_GROWTH = 8  # until they are seen to be large
HISTORY_ITEMS = 65536  # read results that stay readable a second time, if the input was an iterator

ANOTHER_LOOP = (
    "this pool belongs to another event loop: make one here, or call it in its own loop by "
    "asyncio.run_coroutine_threadsafe(coroutine, loop). A program that makes a loop for each call "
    "(Flask, asgiref) does best with one pool in one loop that runs in a thread"
)

PENDING: Any = type("Pending", (), {"__repr__": lambda self: "<pending>"})()
FAILED: Any = type("Failed", (), {"__repr__": lambda self: "<failed>"})()


class Routing(Protocol):
    """How the tasks of a job reach the queues that a user's scheduler chooses (routing.py)."""

    def route(self, n: int) -> None:
        """Take up to `n` more tasks from the job, and give each to its queue."""

    def complete_all(self) -> None:
        """Report to the scheduler that all tasks have ended."""


class Job:
    """One `map` or `starmap`: a cursor into the input and the results so far.

    The engine feeds from it; any number of readers wait on it (`await_all`, `result_at`).
    `on_more` is called when tasks may be had again, `on_done` once when the last is settled.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        function: Function,
        mode: Mode,
        on_more: Callable[[Job], None],
        on_done: Callable[[Job], None],
        retries: int = 0,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.func = func
        self.function = function
        self.mode = mode
        self.router: Routing | None = None  # None: every task goes to the pool's only queue
        self.queued = False
        self.done = False
        self.wanted_all = False
        self.source: Source = SequenceSource(())
        self._on_more = on_more
        self._on_done = on_done
        self._retries = retries
        self._returned: deque[tuple[int, Any]] = deque()
        self._step = LOOK_AHEAD_ITEMS  # how many items may be taken at once (JOB-4)
        self._last = 0  # how many were taken, anew or again, the last time
        self._taken = 0  # tasks taken from the source: the index of the next
        self._settled = 0
        self._bytes = 0  # size of all results so far
        self._values: list[Any] = []  # results from index _base on
        self._base = 0
        self._errors: dict[int, BaseException] = {}
        self._error_of_the_rest: BaseException | None = None  # once all was given up
        self._origin: types.TracebackType | None = None  # where the input failed
        self._was_read = False
        self._awaiting = 0  # how many have asked for all results and not got them
        self._unreferenced = False  # nobody else can begin to read
        self._pool_closes = False
        self._loop = loop
        # who waits for one result, and for which; and who waits for all of them
        self._waiters: dict[asyncio.Future[None], int] = {}
        self._waiters_for_all: dict[asyncio.Future[None], None] = {}
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()

    # -- the engine's side ---------------------------------------------------------------------

    def open(self, source: Source) -> None:
        """Begin with `source`; a job whose input is empty is done at once."""
        self.source = source
        if not self._is_bounded:
            self._step = FIRST_STEP
        if source.exhausted:
            self._end_of_input()

    @property
    def left(self) -> int | None:
        left = self.source.left
        return None if left is None else left + len(self._returned)

    def at_hand(self, n: int) -> int:
        returned = len(self._returned)
        if n <= returned:
            return returned
        return returned + self.source.at_hand(min(n - returned, self._step, self._look_ahead()))

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        if self._returned:
            pairs = [self._returned.popleft() for _ in range(min(n, len(self._returned)))]
            self._last = len(pairs)
            return [index for index, _ in pairs], [item for _, item in pairs]
        try:
            items = self.source.take(min(n, self._step, self._look_ahead()))
        except INTERRUPTS:
            if self.source.exhausted:  # it was the input's end: nobody may ask it again
                self._end_of_input()
            raise
        self._step = min(self._step * STEP_GROWTH, LOOK_AHEAD_ITEMS)
        self._last = len(items)
        if self._error_of_the_rest is not None:  # JOB-6
            return (), []
        first = self._taken
        self._taken += len(items)
        self._values += [PENDING] * len(items)
        if self.source.exhausted:
            self._end_of_input()
        return range(first, self._taken), items

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        if self._error_of_the_rest is not None:  # JOB-6
            return
        self._step = max(FIRST_STEP, 2 * (self._last - len(handles)))
        if type(handles) is range and handles.stop == self._taken and self.source.unread(items):
            self._taken = handles.start
            del self._values[handles.start - self._base :]
            return
        self._returned.extendleft(reversed(list(zip(handles, items, strict=True))))

    def retries_of(self, handle: int) -> int:
        return self._retries

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        base = self._base
        if type(handles) is range:
            self._values[handles.start - base : handles.stop - base] = values
        else:
            for index, value in zip(handles, values, strict=True):
                self._values[index - base] = value
        self._settled += len(values)
        self._bytes += size
        self._after_change()

    def fail(self, handle: int, error: BaseException) -> None:
        self._values[handle - self._base] = FAILED
        self._errors[handle] = error
        self._settled += 1
        self._after_change()

    def fail_all(self, error: BaseException) -> None:
        self._returned.clear()
        left = self.source.left or 0
        self.source.stop()
        self._values = [FAILED if value is PENDING else value for value in self._values]
        self._values += [FAILED] * left
        self._taken += left
        if not self._is_bounded:  # what was never pulled fails as the item after the last one
            self._errors.setdefault(self._taken, error)
        self._error_of_the_rest = error
        self._settled = self._taken
        if self.router is not None:
            self.router.complete_all()
        self._finish()

    def mark_unreferenced(self) -> bool:
        """Nobody else can begin to read, see `drop_unread`; True if that is to be called in the
        loop."""
        self._unreferenced = True
        return not self.done and not self.wanted_all

    def drop_unread(self) -> None:
        """Nobody will read on. What was never read is run to its end, as `map` promises; an input
        that was read in part is pulled no further, or an endless one would never let a pool close.
        """
        if self.done:
            return
        if not self._was_read:
            self.want_all()
        elif not self._is_bounded and not self.wanted_all and not self.source.exhausted:
            self.source.stop()
            self._errors[self._taken] = RuntimeError(
                "the input was pulled no further: the pool was closed when nobody read on"
            )
            self._after_change()

    def pool_closes(self) -> None:
        """Closing waits for this job: it must not wait in turn for somebody to read."""
        self._pool_closes = True
        for error in self._errors.values():  # one that was raised holds the frames it came through,
            self._fresh(error)  # and so the `async for`, which would never seem to be gone
        self.reader_gone()

    def reader_gone(self) -> None:
        """An `async for` may have ended before the last result."""
        if self._pool_closes and not self._readers:
            self.drop_unread()

    # -- the reader's side ---------------------------------------------------------------------

    def want_all(self) -> None:
        """All results will be waited for: an iterator is pulled to its end."""
        self._require_kept(0)
        if not self.wanted_all:
            self.wanted_all = True
            if not self.queued and not self.source.exhausted:
                self._on_more(self)

    def await_all(self) -> Coroutine[Any, Any, list[Any]]:
        """The results in input order; raises the first error as soon as one is known."""
        self.want_all()
        self._awaiting += (
            1  # here, and not when the coroutine begins: another may end before (JOB-5)
        )
        return self._all_results()

    async def _all_results(self) -> list[Any]:
        try:
            while not self.done and not self._errors:
                await self._wait(None)
        finally:
            self._awaiting -= 1
        if self._errors:
            raise self._fresh(self._errors[min(self._errors)])
        if self._error_of_the_rest is not None:
            raise self._fresh(self._error_of_the_rest)
        last = self._unreferenced and not self._awaiting  # JOB-5
        return self._values if last else self._values.copy()

    async def result_at(self, index: int) -> Any:
        """The result of one task when it is ready; StopAsyncIteration past the last one."""
        while not self._is_ready(index):
            await self._wait(index)
        if index in self._errors:
            raise self._fresh(self._errors[index])
        if index >= self._taken:
            raise StopAsyncIteration
        self._require_kept(index)
        value = self._values[index - self._base]
        if value is FAILED:
            assert self._error_of_the_rest is not None
            raise self._fresh(self._error_of_the_rest)
        return value

    def add_reader(self) -> Reader:
        """A new position for an `async for`, at the first task."""
        self._require_kept(0)
        reader = Reader(self)
        self._readers.add(reader)
        self._was_read = True
        return reader

    def drop_reader(self, reader: Reader) -> None:
        """A reader was closed: neither look-ahead nor what is kept depends on it any more."""
        self._readers.discard(reader)

    def is_waiting(self, reader: Reader) -> bool:
        """Whether a step of the reader waits for its result."""
        return reader.index > 0 and not self._is_ready(reader.index - 1)

    def has_moved(self, reader: Reader) -> None:
        """A reader went on: look-ahead opens, and old results of an iterator may go."""
        if self._is_bounded or self.wanted_all:
            return
        if not self.queued and not self.source.exhausted and self._look_ahead() > 0:
            self._on_more(self)
        kept = reader.index - self._base
        if kept > 2 * HISTORY_ITEMS or (kept > 64 and self._bytes_of(kept) > LOOK_AHEAD_BYTES):
            self._drop_read(max(64, kept // 2))

    # -- inside --------------------------------------------------------------------------------

    @property
    def _is_bounded(self) -> bool:
        return self.source.left is not None

    def _look_ahead(self) -> int:
        """How many more items may be pulled before somebody reads."""
        if self._is_bounded or self.wanted_all:
            return LOOK_AHEAD_ITEMS
        read = max((reader.index for reader in self._readers), default=0)
        unread = self._taken - read
        limit = LOOK_AHEAD_ITEMS
        if self._bytes:  # of large results, a few for each worker
            limit = min(limit, max(64, LOOK_AHEAD_BYTES * self._settled // self._bytes))
        return max(0, limit - unread)

    def _bytes_of(self, results: int) -> float:
        return self._bytes / max(1, self._settled) * results

    def _drop_read(self, count: int) -> None:
        # a reader that was closed may end its last step when no other is left
        slowest = min((reader.index for reader in self._readers), default=self._base)
        count = min(count, slowest - self._base)
        if count > 0:
            del self._values[:count]
            self._base += count
            for index in [index for index in self._errors if index < self._base]:
                del self._errors[index]

    def _require_kept(self, index: int) -> None:
        if index < self._base:
            raise RuntimeError(
                f"result {index} was dropped after it had been read: results of an iterator are "
                f"kept for about {HISTORY_ITEMS} items; pass a list to read them again"
            )

    def _is_ready(self, index: int) -> bool:
        if index < self._taken:
            return index < self._base or self._values[index - self._base] is not PENDING
        return self.done or index in self._errors

    async def _wait(self, index: int | None) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # which nobody would wake
            raise RuntimeError(ANOTHER_LOOP)
        future: asyncio.Future[None] = loop.create_future()
        if index is None:
            self._waiters_for_all[future] = None
        else:
            self._waiters[future] = index
        try:
            await future
        finally:  # also if it was cancelled: nobody may wake it for long
            self._waiters_for_all.pop(future, None)
            self._waiters.pop(future, None)

    def _fresh(self, error: BaseException) -> BaseException:
        """An error to be raised, as often as somebody asks: each `raise` adds to its traceback."""
        origin = self._origin if error is self.source.error else None
        return BaseException.with_traceback(error, origin)

    def _end_of_input(self) -> None:
        error = self.source.error
        if error is not None:
            self._errors[self._taken] = error
            self._origin = error.__traceback__
        self._after_change()

    def _after_change(self) -> None:
        if self.source.exhausted and self._settled == self._taken and not self.done:
            error = self.source.error
            if error is not None and self._taken not in self._errors:
                self._errors[self._taken] = error  # an async iterable fails when it likes
                self._origin = error.__traceback__
            self._finish()
        elif self._waiters or self._waiters_for_all:
            self._wake()

    def _finish(self) -> None:
        if not self.done:
            self.done = True
            self._wake()
            self._on_done(self)

    def _wake(self) -> None:
        if self.done or self._errors:
            ready, self._waiters_for_all = list(self._waiters_for_all), {}
        else:
            ready = []
        ready += [future for future, index in self._waiters.items() if self._is_ready(index)]
        for future in ready:
            self._waiters.pop(future, None)
            if not future.done():
                future.set_result(None)


class Reader:
    """One `async for` over a job: a position of its own, which goes on after an error."""

    __slots__ = ("__weakref__", "_job", "index")

    def __init__(self, job: Job) -> None:
        self._job = job
        self.index = 0

    @property
    def is_waiting(self) -> bool:
        """Whether one of its steps waits for a result."""
        return self._job.is_waiting(self)

    def close(self) -> None:
        """Take no part in what the job keeps and how far it looks ahead."""
        self._job.drop_reader(self)

    async def next(self) -> Any:
        index = self.index
        self.index = index + 1
        try:
            return await self._job.result_at(index)
        except (StopAsyncIteration, asyncio.CancelledError):
            self.index = index
            raise
        finally:
            try:
                self._job.has_moved(self)
            except INTERRUPTS:  # of the input, or a scheduler: the result is not lost with it
                self.index = index
                raise
