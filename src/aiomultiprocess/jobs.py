"""The life of a task, from the call to its result.

    waiting --take()--> sent --deliver()--> done
       ^                 |  \\---fail()----> failed
       |                 |
       +---put_back()----+     (its worker died before it started the task)

J1  Every task is settled exactly once: `deliver` or `fail` is called for its slot, never both, never
    twice. (engine.py keeps the other half of this: a chunk marks each offset that it has reported.)
J2  A feed hands out tasks in the order of the input; those put back come first.
J3  Nothing is kept per task but its result: slots are numbers of a range, not objects.

A *feed* is what the engine takes tasks from and reports them to. `Job` is the feed of one `map` or
`starmap`, `Calls` that of all waiting `apply` of one function, `Share` the part of a job that a
user's scheduler gave to one queue.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .frames import Mode
from .functions import Function
from .sources import SequenceSource, Source

LOOK_AHEAD_ITEMS = 8192  # unread results that an iterator may run ahead of its reader
LOOK_AHEAD_BYTES = 64 << 20  # ... and how many bytes of them
HISTORY_ITEMS = 65536  # read results that stay readable a second time, if the input was an iterator

PENDING: Any = type("Pending", (), {"__repr__": lambda self: "<pending>"})()
FAILED: Any = type("Failed", (), {"__repr__": lambda self: "<failed>"})()

Slots = Sequence[Any]


class Feed(Protocol):
    """Tasks of one function, for the workers of one queue."""

    function: Function
    mode: Mode
    queued: bool
    """Whether the feed stands in its queue's line; owned by the engine."""

    @property
    def left(self) -> int | None:
        """How many tasks wait, None when nobody can know."""

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        """Up to `n` tasks: their slots and what their function is called with."""

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        """These were taken and never started."""

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        """Results, `size` bytes of them as they travelled."""

    def fail(self, slot: Any, error: BaseException) -> None:
        """The error that ends one task."""

    def fail_all(self, error: BaseException) -> None:
        """The pool gave up: settle all that are not settled."""


class Job:
    """One `map` or `starmap`: a cursor into the input and the results so far.

    The engine feeds from it; any number of readers wait on it (`all_results`, `result_at`).
    `on_more` is called when tasks may be had again, `on_done` once when the last is settled.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        function: Function,
        mode: Mode,
        on_more: Callable[[Job], None],
        on_done: Callable[[Job], None],
    ) -> None:
        self.func = func
        self.function = function
        self.mode = mode
        self.router: Router | None = None  # asks a user's scheduler; None: any worker will do
        self.queued = False
        self.done = False
        self.source: Source = SequenceSource(())
        self._on_more = on_more
        self._on_done = on_done
        self._returned: deque[tuple[int, Any]] = deque()
        self._taken = 0  # tasks taken from the source: the index of the next
        self._settled = 0
        self._bytes = 0  # size of all results so far
        self._values: list[Any] = []  # results from index _base on
        self._base = 0
        self._errors: dict[int, BaseException] = {}
        self._wanted_all = False
        self._waiters: list[tuple[int | None, asyncio.Future[None]]] = []
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()

    # -- the engine's side ---------------------------------------------------------------------

    def open(self, source: Source) -> None:
        """Begin with `source`; a job whose input is empty is done at once."""
        self.source = source
        if source.exhausted:
            self._end_of_input()

    @property
    def left(self) -> int | None:
        left = self.source.left
        return None if left is None else left + len(self._returned)

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        if self._returned:
            pairs = [self._returned.popleft() for _ in range(min(n, len(self._returned)))]
            return [index for index, _ in pairs], [item for _, item in pairs]
        if self.source.exhausted:
            return (), []
        items = self.source.take(min(n, self._look_ahead()))
        first = self._taken
        self._taken += len(items)
        self._values += [PENDING] * len(items)
        if self.source.exhausted:
            self._end_of_input()
        return range(first, self._taken), items

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        self._returned.extendleft(reversed(list(zip(slots, items, strict=True))))

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        base = self._base
        if type(slots) is range:
            self._values[slots.start - base : slots.stop - base] = values
        else:
            for index, value in zip(slots, values, strict=True):
                self._values[index - base] = value
        self._settled += len(values)
        self._bytes += size
        self._after_change()

    def fail(self, slot: int, error: BaseException) -> None:
        self._values[slot - self._base] = FAILED
        self._errors[slot] = error
        self._settled += 1
        self._after_change()

    def fail_all(self, error: BaseException) -> None:
        self._returned.clear()
        self.source.stop()
        for at, value in enumerate(self._values):
            if value is PENDING:
                self._values[at] = FAILED
                self._errors[self._base + at] = error
        # whatever was never pulled from the input fails as the item after the last one
        self._errors.setdefault(self._taken, error)
        self._settled = self._taken
        self._finish()

    def let_go(self) -> None:
        """Nobody will read on. What was never read is run to its end, as `map` promises; an input
        that was read in part is pulled no further, or an endless one would never let a pool close.
        """
        if self.done:
            return
        if not self._was_read:
            self._want_all()
        elif not self._is_bounded and not self._wanted_all:
            self.source.stop()
            self._after_change()

    def pool_closes(self) -> None:
        """Closing waits for this job: it must not wait in turn for somebody to read."""
        if not self._readers:
            self.let_go()

    # -- the reader's side ---------------------------------------------------------------------

    async def all_results(self) -> list[Any]:
        """The results in input order; raises the first error as soon as one is known."""
        self._want_all()
        while not self.done and not self._errors:
            await self._wait(None)
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._values.copy()

    async def result_at(self, index: int) -> Any:
        """The result of one task when it is ready; StopAsyncIteration past the last one."""
        while not self._is_ready(index):
            await self._wait(index)
        if index in self._errors:
            raise self._errors[index]
        if index >= self._taken:
            raise StopAsyncIteration
        self._require_kept(index)
        return self._values[index - self._base]

    def add_reader(self) -> Reader:
        """A new position for an `async for`, at the first task."""
        self._require_kept(0)
        reader = Reader(self)
        self._readers.add(reader)
        self._was_read = True
        return reader

    def has_moved(self, reader: Reader) -> None:
        """A reader went on: look-ahead opens, and old results of an iterator may go."""
        if self._is_bounded or self._wanted_all:
            return
        if not self.queued and not self.source.exhausted and self._look_ahead() > 0:
            self._on_more(self)
        kept = reader.index - self._base
        if kept > 2 * HISTORY_ITEMS or kept > 64 and self._bytes_of(kept) > LOOK_AHEAD_BYTES:
            self._drop_read(max(64, kept // 2))

    # -- inside --------------------------------------------------------------------------------

    _was_read = False

    @property
    def _is_bounded(self) -> bool:
        return isinstance(self.source, SequenceSource)

    def _want_all(self) -> None:
        self._require_kept(0)
        if not self._wanted_all:
            self._wanted_all = True
            if not self.queued and not self.source.exhausted:
                self._on_more(self)

    def _look_ahead(self) -> int:
        """How many more items may be pulled before somebody reads."""
        if self._is_bounded or self._wanted_all:
            return LOOK_AHEAD_ITEMS
        read = max((reader.index for reader in self._readers), default=0)
        unread = self._taken - read
        room = LOOK_AHEAD_ITEMS - unread
        if self._settled and self._bytes_of(unread) > LOOK_AHEAD_BYTES:
            room = 64 - unread  # large results: a few for each worker
        return max(0, room)

    def _bytes_of(self, results: int) -> float:
        return self._bytes / max(1, self._settled) * results

    def _drop_read(self, count: int) -> None:
        slowest = min(reader.index for reader in self._readers)
        count = min(count, slowest - self._base)
        if count > 0:
            del self._values[:count]
            self._base += count

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

    def _wait(self, index: int | None) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((index, future))
        return future

    def _end_of_input(self) -> None:
        if self.source.error is not None:
            self._errors[self._taken] = self.source.error
        self._after_change()

    def _after_change(self) -> None:
        if self.source.exhausted and self._settled == self._taken and not self.done:
            self._finish()
        elif self._waiters:
            self._wake()

    def _finish(self) -> None:
        if not self.done:
            self.done = True
            self._wake()
            self._on_done(self)

    def _wake(self) -> None:
        still = []
        for index, future in self._waiters:
            if index is None:
                ready = self.done or bool(self._errors)
            else:
                ready = self._is_ready(index)
            if not ready:
                if not future.done():
                    still.append((index, future))
            elif not future.done():
                future.set_result(None)
        self._waiters = still


class Reader:
    """One `async for` over a job: a position of its own, which goes on after an error."""

    __slots__ = ("__weakref__", "_job", "index")

    def __init__(self, job: Job) -> None:
        self._job = job
        self.index = 0

    async def next(self) -> Any:
        index = self.index
        self.index = index + 1
        try:
            return await self._job.result_at(index)
        except (StopAsyncIteration, asyncio.CancelledError):
            self.index = index
            raise
        finally:
            self._job.has_moved(self)


class Calls:
    """All waiting `apply` of one function: their slots are the futures that the callers await."""

    mode = Mode.APPLY

    def __init__(self, function: Function, on_done: Callable[[Calls], None]) -> None:
        self.function = function
        self.queued = False
        self._on_done = on_done
        self._waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._open: set[asyncio.Future[Any]] = set()

    def add(self, future: asyncio.Future[Any], args: Sequence[Any], kwds: dict[str, Any]) -> None:
        self._waiting.append((future, (tuple(args), kwds)))
        self._open.add(future)

    @property
    def left(self) -> int:
        return len(self._waiting)

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        futures: list[asyncio.Future[Any]] = []
        items: list[Any] = []
        while self._waiting and len(futures) < n:
            future, item = self._waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                self._settle(future)
            else:
                futures.append(future)
                items.append(item)
        return futures, items

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        self._waiting.extendleft(reversed(list(zip(slots, items, strict=True))))

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        for future, value in zip(slots, values, strict=True):
            if not future.done():
                future.set_result(value)
            self._settle(future)

    def fail(self, slot: asyncio.Future[Any], error: BaseException) -> None:
        if not slot.done():
            slot.set_exception(error)
        self._settle(slot)

    def fail_all(self, error: BaseException) -> None:
        self._waiting.clear()
        for future in list(self._open):
            self.fail(future, error)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        self._open.discard(future)
        if not self._open:
            self._on_done(self)


class Share:
    """What a user's scheduler gave of one job to one queue."""

    def __init__(self, job: Job, router: Router, offer: Callable[[Share], None]) -> None:
        self.offer = offer
        self.function = job.function
        self.mode = job.mode
        self.queued = False
        self.waiting: deque[tuple[int, Any]] = deque()
        self._job = job
        self._router = router

    @property
    def left(self) -> int:
        return len(self.waiting)

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        if len(self.waiting) < n:
            self._router.route(n - len(self.waiting))
        pairs = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        return [index for index, _ in pairs], [item for _, item in pairs]

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        self.waiting.extendleft(reversed(list(zip(slots, items, strict=True))))

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        self._job.deliver(slots, values, size)
        for index in slots:
            self._router.complete(index)

    def fail(self, slot: int, error: BaseException) -> None:
        self._job.fail(slot, error)
        self._router.complete(slot)

    def fail_all(self, error: BaseException) -> None:
        self.waiting.clear()
        self._job.fail_all(error)


class Router:
    """Asks the scheduler for the queue of each task of one job.

    `assign(item)` returns the task's id and its queue's share; `completed(id)` tells the scheduler.
    """

    def __init__(
        self,
        job: Job,
        assign: Callable[[Router, Any], tuple[Any, Share]],
        completed: Callable[[Any], None],
    ) -> None:
        self.job = job
        self.shares: dict[Any, Share] = {}
        self._assign = assign
        self._completed = completed
        self._ids: dict[int, Any] = {}

    def route(self, n: int) -> None:
        """Take up to `n` more tasks from the job and put each into its share."""
        slots, items = self.job.take(n)
        for index, item in zip(slots, items, strict=True):
            self._ids[index], share = self._assign(self, item)
            share.waiting.append((index, item))
            if not share.queued:
                share.offer(share)

    def route_all(self) -> None:
        """Route a whole sequence at the call, as a scheduler that counts would expect."""
        while self.job.left:
            self.route(self.job.left)

    def complete(self, index: int) -> None:
        self._completed(self._ids.pop(index))
