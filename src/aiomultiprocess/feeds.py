"""The life of a task, as the feeds see it: what the queues take tasks from, and report them to.

    waiting --take()--> sent --deliver()--> done
       ^                 |  \\---fail()----> failed
       |                 |
       +---put_back()----+     (its worker died before it started the task)

A task whose worker died after that has failed, or is sent again as a suspect (suspects.py) until it
is done or has failed.

`Job` (jobs.py) is the feed of one `map` or `starmap`. Here are the contract and the others:
`Calls`, all waiting `apply` of one function, and `Share`, what a user's scheduler gave of a job to
one queue.

J1  Every task is settled exactly once: `deliver` or `fail` is called for its slot, never both,
    never twice. (chunks.py keeps the other half of this: a chunk marks what was reported.)
J2  A feed hands out tasks in the order of the input; those put back come first.
J3  Nothing is kept per task of a map but its result: slots are numbers of a range, not objects.
J4  A call knows its chunk, so that cancelling n calls takes time in proportion to n, and not to n
    times the number of calls under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .frames import Mode
from .functions import Function, is_iterable, refuse_star
from .sources import INTERRUPTS, as_exception

if TYPE_CHECKING:
    from .chunks import Chunk
    from .jobs import Job

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

    def at_hand(self, n: int) -> int:
        """How many tasks wait, or are there to be taken; looks for no more than `n` (Q6)."""

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        """Up to `n` tasks: their slots and what their function is called with."""

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        """These were taken and never started."""

    def retries_of(self, slot: Any) -> int:
        """How often a task may run again after its worker died; 0 if nobody waits for it."""

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        """Results, `size` bytes of them as they travelled."""

    def fail(self, slot: Any, error: BaseException) -> None:
        """The error that ends one task."""

    def fail_all(self, error: BaseException) -> None:
        """The pool gave up: settle all that are not settled."""


class Calls:
    """All waiting `apply` of one function: their slots are the futures that the callers await."""

    mode = Mode.APPLY

    def __init__(
        self, function: Function, on_done: Callable[[Calls], None], *, lasting: bool = False
    ) -> None:
        """If `lasting`, there may be more when all are settled: it is done once the pool closes."""
        self.function = function
        self.queued = False
        self.hurried = False
        """Whether it stands among those that may pass; owned by the queue."""
        self._on_done = on_done
        self._lasting = lasting
        self._waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        # those that are not settled, with the chunk that took each to a worker last (J4)
        self._open: dict[asyncio.Future[Any], Chunk | None] = {}
        self.expect = self._open.setdefault
        """One more will be settled: it waits here, or is being sent."""
        self.wait = self._waiting.append
        """One that is expected waits here: its future, and its arguments and keyword arguments."""
        self._retries: dict[asyncio.Future[Any], int] = {}  # of those that may run again

    def allow(self, future: asyncio.Future[Any], retries: int) -> None:
        """One that may run again, so many times at most."""
        self._retries[future] = retries

    @property
    def left(self) -> int:
        return len(self._waiting)

    def at_hand(self, n: int) -> int:
        return len(self._waiting)

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        futures: list[asyncio.Future[Any]] = []
        items: list[Any] = []
        waiting = self._waiting
        while waiting and len(futures) < n:
            future, item = waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                self._settle(future)
            else:
                futures.append(future)
                items.append(item)
        return futures, items

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        self._waiting.extendleft(reversed(list(zip(slots, items, strict=True))))

    def note_chunk(self, slots: Slots, chunk: Chunk) -> None:
        """These calls travel in that chunk (J4)."""
        self._open.update(dict.fromkeys(slots, chunk))

    def chunk_of(self, future: asyncio.Future[Any]) -> Chunk | None:
        """The chunk in which a call was sent last, None if it was not sent or is settled."""
        return self._open.get(future)

    def retries_of(self, slot: asyncio.Future[Any]) -> int:
        return 0 if slot.done() else self._retries.get(slot, 0)

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        still_open = self._open
        # most come alone, and then `zip` would take as long as all the rest
        alone = len(slots) == 1
        pairs = ((slots[0], values[0]),) if alone else zip(slots, values, strict=True)
        for future, value in pairs:
            if not future.done():
                future.set_result(value)
            still_open.pop(future, None)
            if self._retries:
                self._retries.pop(future, None)
        if not (still_open or self._lasting):
            self._on_done(self)

    def fail(self, slot: asyncio.Future[Any], error: BaseException) -> None:
        if not slot.done():
            slot.set_exception(error)
        self._settle(slot)

    def fail_all(self, error: BaseException) -> None:
        self._waiting.clear()
        for future in list(self._open):
            self.fail(future, error)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        self._open.pop(future, None)
        if self._retries:
            self._retries.pop(future, None)
        if not (self._open or self._lasting):
            self._on_done(self)

    def pool_closes(self) -> None:
        """There will be no more."""
        self._lasting = False
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
    def left(self) -> int | None:
        return len(self.waiting) if self._job.source.exhausted else None

    def at_hand(self, n: int) -> int:
        if len(self.waiting) < n:
            self._router.route(n - len(self.waiting))
        return len(self.waiting)

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        if len(self.waiting) < n:
            self._router.route(n - len(self.waiting))
        pairs = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        return [index for index, _ in pairs], [item for _, item in pairs]

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        self.waiting.extendleft(reversed(list(zip(slots, items, strict=True))))

    def retries_of(self, slot: int) -> int:
        return self._job.retries_of(slot)

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
        """Take `n` more tasks from the job, if it has them, and put each into its share.

        An interrupt is raised when all have theirs, for nobody would come back for the others.
        """
        interrupt: BaseException | None = None
        while n > 0:
            slots, items = self.job.take(n)
            if not slots:
                break
            for index, item in zip(slots, items, strict=True):
                try:
                    n -= self._route_one(index, item)
                except INTERRUPTS as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def _route_one(self, index: int, item: Any) -> bool:
        """False if the scheduler failed: the task ends, and nothing of it will come back."""
        try:
            if self.job.mode is Mode.STAR:  # an iterator can be seen only once: what was is sent
                if not is_iterable(item):
                    raise refuse_star(self.job.function.label, index, item)
                item = tuple(item)
            self._ids[index], share = self._assign(self, item)
        except BaseException as error:
            self.job.fail(index, as_exception(error, "the scheduler"))
            if isinstance(error, INTERRUPTS):
                raise
            return False
        share.waiting.append((index, item))
        if not share.queued:
            share.offer(share)
        return True

    def route_all(self) -> None:
        """Route a whole sequence at the call, as a scheduler that counts would expect."""
        while self.job.left:
            self.route(self.job.left)

    def complete(self, index: int) -> None:
        """Tell the scheduler that a task has ended."""
        if index in self._ids:  # else what it was told before has ended the pool, and all with it
            self._completed(self._ids.pop(index))

    def complete_all(self) -> None:
        """Tell it of all that have not."""
        while self._ids:
            self._completed(self._ids.popitem()[1])
