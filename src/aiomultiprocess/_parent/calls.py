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
from .feed import Handles
from .functions import Function

if TYPE_CHECKING:
    from .chunk import Chunk


def call_key(function: Function, options: TaskOptions) -> Hashable:
    """What the calls of one `CallQueue` have in common: all but `retries`, which each call has."""
    if options is DEFAULT_OPTIONS:
        return function.id
    return function.id, options.timeout, options.priority, options.context


class CallQueue:
    """All waiting `apply` calls of one function and the same options; callers await the handles."""

    mode = Mode.APPLY

    def __init__(
        self,
        function: Function,
        on_done: Callable[[CallQueue], None],
        options: TaskOptions = DEFAULT_OPTIONS,
        *,
        persistent: bool = False,
    ) -> None:
        """`on_done` is called when all calls are settled; if `persistent`, once the pool closes."""
        self.function = function
        self.options = options
        self.key = call_key(function, options)
        self.queued = False
        self.in_call_backlog = False
        """Whether its calls may overtake; the queue sets it."""
        self.cancelled = 0  # calls that were cancelled before they were sent
        self._on_done = on_done
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
    def left(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many calls were not sent."""
        return len(self._waiting)

    def at_hand(self, n: int) -> int:
        return len(self._waiting)

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        futures: list[asyncio.Future[Any]] = []
        items: list[Any] = []
        waiting = self._waiting
        while waiting and len(futures) < n:
            future, item = waiting.popleft()
            if future.done():  # its caller gave up before it was sent
                self.cancelled += 1
                self._settle(future)
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

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        still_open = self._open
        # most results come alone, and then `zip` would take as long as all the rest
        alone = len(handles) == 1
        pairs = ((handles[0], values[0]),) if alone else zip(handles, values, strict=True)
        for future, value in pairs:
            if not future.done():
                future.set_result(value)
            still_open.pop(future, None)
            if self._retries:
                self._retries.pop(future, None)
        if not (still_open or self._persistent):
            self._on_done(self)

    def fail(self, handle: asyncio.Future[Any], error: BaseException) -> None:
        if not handle.done():
            handle.set_exception(error)
        self._settle(handle)

    def fail_all(self, error: BaseException) -> None:
        self._waiting.clear()
        for future in list(self._open):
            self.fail(future, error)

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
