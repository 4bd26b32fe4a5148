"""Tasks that lost their worker and may run again: one at a time in a worker, with no neighbours.

    sent --its worker died--> in line --next_for()--> alone at a worker --> settled
                                ^------- died again ----------'

A worker that dies takes all the tasks with it that it had under way, and nobody can tell which of
them was the cause. Those that may run more than once (`retries=`) are *suspects*. Were they sent
together again, the one that kills workers would use up the attempts of the others; so each runs
alone. A task that loses its worker there was the cause, or at least its worker's only task. A queue
(queue.py) has one line of them. It tells of losses, and asks what a worker may have.

RETRY-1  A task that lost its worker runs again only if its caller allowed it and still waits for it, and
    `retries` times at most. Otherwise the error of that loss ends it.
RETRY-2  A worker that holds a suspect holds nothing else.
RETRY-3  Suspects go first. A worker without work gets the next in line before anything else; as long as
    no worker runs one, the worker with the least to do gets no more. So suspects wait for what that
    worker holds to end, and for nothing else, and the others go on with other work.
RETRY-4  A suspect is known from its first loss until it is settled. Nothing is kept for other tasks, and
    a queue without suspects asks no more than whether `unsettled` is empty.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._wire.frames import Mode
from .calls import CallQueue
from .feed import Handles, TaskOwner

if TYPE_CHECKING:
    from .chunk import Chunk
    from .worker import PoolWorker


class RetryTask:
    """One task that lost its worker. Its chunk reports to it as to a feed, and it to its feed."""

    __slots__ = ("_losses", "_owner", "_retry_queue", "function", "handle", "item", "mode")

    def __init__(self, retry_queue: RetryQueue, source: TaskOwner, handle: Any, item: Any) -> None:
        self.function = source.function
        self.mode = source.mode
        self.handle = handle
        self.item = item
        self._owner = source
        self._losses = 0
        self._retry_queue = retry_queue

    def retries_of(self, handle: Any) -> int:
        """How many more workers it may lose (RETRY-1)."""
        return self._owner.retries_of(handle) - self._losses

    def lose(self) -> None:
        """Its worker died after it was started: it goes to the end of the line."""
        self._losses += 1
        self._retry_queue.line[self] = None

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """It travels in that chunk: a call is cancelled there (feed.py, FEED-4)."""
        if isinstance(self._owner, CallQueue):
            self._owner.note_chunk(handles, chunk)

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        """Its worker died before it was started: that is no loss."""
        if self._owner.retries_of(self.handle) > 0:
            self._retry_queue.line[self] = None
            self._retry_queue.line.move_to_end(self, last=False)
        else:  # its caller gave up while it was on its way (RETRY-1)
            self.fail(self.handle, asyncio.CancelledError())

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        self._retry_queue.settle(self)
        self._owner.deliver(handles, values, size)

    def fail(self, handle: Any, error: BaseException) -> None:
        self._retry_queue.settle(self)
        self._owner.fail(handle, error)


class RetryQueue:
    """The suspects of one queue, and which worker is theirs."""

    def __init__(self) -> None:
        self.unsettled: set[RetryTask] = set()
        self.line: OrderedDict[RetryTask, None] = OrderedDict()  # those that wait for a worker
        self._calls: dict[Any, RetryTask] = {}  # those of `unsettled` that are calls, by slot

    def lose(self, origin: TaskOwner, handle: Any, item: Any, error: BaseException) -> None:
        """A task lost its worker: it waits for another, or `error` is its end (RETRY-1)."""
        if origin.retries_of(handle) <= 0:
            origin.fail(handle, error)
            return
        retry_task = (
            origin if isinstance(origin, RetryTask) else RetryTask(self, origin, handle, item)
        )
        self.unsettled.add(retry_task)
        if retry_task.mode is Mode.APPLY:
            self._calls[handle] = retry_task
        retry_task.lose()

    def next_for(self, worker: PoolWorker) -> RetryTask | None:
        """The suspect that a worker runs now, if it can run one alone (RETRY-2)."""
        if not self.line or worker.chunks or worker.leaving or worker.link.congested:
            return None
        return self.line.popitem(last=False)[0]

    def claim(self, worker: PoolWorker, workers: Sequence[PoolWorker]) -> bool:
        """RETRY-2, RETRY-3: whether `worker`, one of the queue's `workers`, may have no other work now."""
        if runs_retry(worker):
            return True
        if not self.line or worker.leaving or any(map(runs_retry, workers)):
            return False
        staying = [other for other in workers if not other.leaving]
        return worker is min(staying, key=lambda other: other.credit.in_flight)

    def drop(self, handle: Any) -> bool:
        """Whether the call of `handle` was in line; its caller has given up, so it is no longer."""
        retry_task = self._calls.get(handle)
        if retry_task is None or retry_task not in self.line:
            return False
        del self.line[retry_task]
        retry_task.fail(handle, asyncio.CancelledError())
        return True

    def settle(self, retry_task: RetryTask) -> None:
        """Nothing is known of a task any more once it is settled (RETRY-4)."""
        self.unsettled.discard(retry_task)
        self._calls.pop(retry_task.handle, None)

    def clear(self) -> None:
        """The pool gave up: their feeds settle them."""
        self.unsettled.clear()
        self._calls.clear()
        self.line.clear()


def runs_retry(worker: PoolWorker) -> bool:
    """Whether a worker holds a suspect, and so nothing else (RETRY-2)."""
    return any(isinstance(chunk.owner, RetryTask) for chunk in worker.chunks.values())
