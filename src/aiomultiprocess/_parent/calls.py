"""The waiting `apply` calls of one function: a task source whose handles are futures.

The engine makes one for each function that is called; a queue (queue.py) sends the calls and
reports their results. The contract of a task source is in feed.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from .._arguments import DEFAULT_OPTIONS, TaskOptions
from .._wire.frames import Mode
from .call import fail
from .counts import EndCounts
from .feed import Handles
from .functions import Function

if TYPE_CHECKING:
    from .chunk import Chunk


MOST_KEPT = 64  # queues of calls in a queue; beyond it those with a time limit are not kept


def call_key(function: Function, options: TaskOptions) -> Hashable:
    """What the calls of one `CallQueue` have in common: all but `retries`, which each call has."""
    if options is DEFAULT_OPTIONS:
        return function.id
    return function.id, options[1:]


def is_persistent(function: Function, options: TaskOptions, kept: int) -> bool:
    """Whether a `CallQueue` is worth keeping for later calls, beside `kept` others.

    A program has few functions, but it may compute each time limit or priority anew.
    """
    shared = options.context is None and not options.priority
    return function.permanent and shared and (options.timeout is None or kept < MOST_KEPT)


class CallQueue:
    """All waiting `apply` calls of one function and the same options; callers await the handles."""

    def __init__(
        self,
        function: Function,
        on_done: Callable[[CallQueue], None],
        options: TaskOptions = DEFAULT_OPTIONS,
        *,
        persistent: bool = False,
        on_cancel: Callable[[CallQueue, asyncio.Future[Any]], None] | None = None,
        ends: EndCounts | None = None,
    ) -> None:
        """`on_done` is called when all calls are settled; if `persistent`, once the pool closes.

        `on_cancel` is called with a call that its caller gave up.
        """
        self.function = function
        self.mode = Mode.APPLY  # not of the class: each call loads it (engine.py)
        self.options = options
        self.key = call_key(function, options)
        self.queued = False
        self.in_call_backlog = False
        """Whether its calls may overtake; the queue sets it."""
        self._counts = EndCounts() if ends is None else ends
        self._on_done = on_done
        self._on_cancel = on_cancel
        self._cancelled = 0  # calls that were cancelled since `drop_cancelled` dropped any
        self._persistent = persistent
        self._waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        # calls that are not settled, with the chunk in which each was sent last (FEED-4)
        self._open: dict[asyncio.Future[Any], Chunk | None] = {}
        self.expect = self._open.setdefault
        """Count one more call; then either `wait` queues it, or a chunk carries it."""
        self.wait = self._waiting.append
        """Queue a call that is expected: its future, and its arguments and keyword arguments."""
        self._retries: dict[asyncio.Future[Any], int] = {}  # of calls that may run again

    def allow(self, future: asyncio.Future[Any], retries: int) -> None:
        """Let a call run again at most `retries` times."""
        self._retries[future] = retries

    @property
    def origin(self) -> CallQueue:
        """Itself: feed.py, `TaskOwner`."""
        return self

    @property
    def left(self) -> int:
        return len(self._waiting)

    @property
    def pending(self) -> int:
        """How many calls have not ended, or were given up and are not reported (COUNTS-2)."""
        return len(self._open)

    def gave_up(self, handle: asyncio.Future[Any]) -> bool:
        return handle.done()

    def at_hand(self, n: int) -> int:
        return len(self._waiting)

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        futures: list[asyncio.Future[Any]] = []
        items: list[Any] = []
        waiting = self._waiting
        while waiting and len(futures) < n:
            future, item = waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                self._drop(future)
            else:
                futures.append(future)
                items.append(item)
        return futures, items

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        self._waiting.extendleft(reversed(list(zip(handles, items, strict=True))))

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """Record the chunk in which these calls travel (FEED-4)."""
        if len(handles) == 1:  # as in `deliver`
            self._open[handles[0]] = chunk
        else:
            self._open.update(dict.fromkeys(handles, chunk))

    def chunk_of(self, future: asyncio.Future[Any]) -> Chunk | None:
        """The chunk in which a call was sent last, None if it was not sent or is settled."""
        return self._open.get(future)

    def retries_of(self, handle: asyncio.Future[Any]) -> int:
        return 0 if handle.done() else self._retries.get(handle, 0)

    def cancel(self, call: asyncio.Future[Any]) -> None:
        """Stop a call that its caller gave up, wherever it is."""
        if self._on_cancel is not None:
            self._on_cancel(self, call)

    def drop_cancelled(self) -> None:
        """Drop the waiting calls that were cancelled, if they may be half of all: one more was.

        So cancelling n calls takes time in proportion to n; `take` passes over those that are left.
        """
        self._cancelled += 1
        if 2 * self._cancelled < len(self._waiting):
            return
        self._cancelled = 0
        waiting = list(self._waiting)
        self._waiting.clear()
        self._waiting.extend(pair for pair in waiting if not pair[0].done())
        for call, _ in waiting:
            if call.done():
                self._drop(call)

    def last_unsent(self, made: float) -> asyncio.Future[Any] | None:
        """The last call that waits, as sharing.py asks for it: each may have any memory."""
        return self._waiting[-1][0] if self._waiting else None

    def unsent_until(self, last: asyncio.Future[Any]) -> asyncio.Future[Any] | None:
        """The calls before `last` are sent before it, unless it is cancelled."""
        if not self._waiting:
            return None
        if last.cancelled():
            return self._waiting[-1][0]
        return None if last.done() or self._open.get(last) is not None else last

    @property
    def unsettled(self) -> int:
        """How many calls have no result yet and were not given up."""
        return sum(not call.done() for call in self._open)

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        if len(handles) == 1:  # as most do: the loops below would take as long as all the rest
            future = handles[0]
            if not future.done():
                future.set_result(values[0])
            else:
                self._counts.late(1)
            self._open.pop(future, None)
            if self._retries:
                self._retries.pop(future, None)
            if not (self._persistent or self._open):
                self._on_done(self)
            future.pool = None  # last: without this reference the pool may end (CALL-3)
            return
        for future, value in zip(handles, values, strict=True):
            if not future.done():
                future.set_result(value)
            else:
                self._counts.late(1)
            self._open.pop(future, None)
            if self._retries:
                self._retries.pop(future, None)
        if not (self._open or self._persistent):
            self._on_done(self)
        for future in handles:
            future.pool = None

    def fail(self, handle: Any, error: BaseException, size: int = 0) -> None:
        if not handle.done():
            fail(handle, error)
        self._settle(handle)
        handle.pool = None  # as in `deliver`

    def fail_all(self, error: BaseException) -> None:
        self._waiting.clear()
        for future in list(self._open):
            self.fail(future, error)

    def _drop(self, future: asyncio.Future[Any]) -> None:
        """Settle a call that was cancelled before it was sent."""
        self._counts.cancelled += 1
        self._settle(future)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        self._open.pop(future, None)
        if self._retries:
            self._retries.pop(future, None)
        if not (self._open or self._persistent):
            self._on_done(self)

    def pool_closes(self) -> None:
        """Call `on_done` once all calls are settled: no more calls will come."""
        self._persistent = False
        if not self._open:
            self._on_done(self)
