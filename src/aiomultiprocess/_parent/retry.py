"""What the death of a worker costs: which tasks go back, which have failed, and which run again.

    sent to a worker that died
      |-- reported, or in its journal ---------------------------> settled
      |-- not started ------> back to its source
      `-- started ----------> failed, or a retry task:

    lost --> in line --next_for()--> alone at a worker --> settled
               ^------- lost again ----------'

When a worker dies, any of the tasks that it had started may be the cause. A task that its caller
allows to run again (`retries=`) becomes a *retry task*. If retry tasks shared a worker, the one
that kills workers would use up the attempts of the others; so each runs alone. If its worker dies
again, no other task can be the cause. Each queue (queue.py) has one `RetryQueue`: the queue reports
dead workers and lost tasks to it, and asks it what a worker may run.

RETRY-1  A task that lost its worker runs again only if its caller allowed it and still waits for
    it, and at most `retries` times. Otherwise the error of that loss ends it.
RETRY-2  A worker that holds a retry task holds nothing else.
RETRY-3  Retry tasks go first. A worker without work gets the next in line before anything else.
    While no worker runs one, the worker that holds the fewest tasks gets no others. So a retry task
    waits at most for what that worker holds, and the other workers go on with other work.
RETRY-4  A `RetryTask` exists from the first loss of its task until the task is settled. Nothing is
    kept for other tasks; a queue without retry tasks checks only whether `unsettled` is empty.
RETRY-5  A task goes back to its source only if its worker had not marked it as started
    (_worker/engine.py, WORKER-1); one that was started is lost. A worker can damage that mark,
    which is in shared memory: if it broke its link, all its tasks count as started.
RETRY-6  Tasks do not go back without end. If `DEATHS_BEFORE_START` workers in a row die before they
    start the first task of a chunk, receiving that chunk is what kills them: its tasks count as
    started.
RETRY-7  What a dead worker had finished is not lost: after draining its link, the queue reads its
    journal (recovery.py).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from .._wire.frames import Mode
from .calls import CallQueue
from .feed import Handles, TaskOwner

if TYPE_CHECKING:
    from .chunk import Chunk
    from .worker import PoolWorker

DEATHS_BEFORE_START = 3  # RETRY-6


class RetryTask:
    """One task that lost its worker, as the owner of the chunks in which it travels again.

    It passes its result or error on to the owner that it had first.
    """

    __slots__ = (
        "_losses",
        "_owner",
        "_retry_queue",
        "_shared",
        "function",
        "handle",
        "item",
        "mode",
        "options",
    )

    def __init__(
        self,
        retry_queue: RetryQueue,
        owner: TaskOwner,
        handle: Any,
        item: Any,
        shared: tuple[Any, ...] = (),
    ) -> None:
        self.function = owner.function
        self.mode = owner.mode
        self.options = owner.options
        self.handle = handle
        self.item = item
        self._owner = owner
        self._losses = 0
        self._retry_queue = retry_queue
        self._shared = shared  # memories of shared objects that its item may have (HOLD-1)

    def retries_of(self, handle: Any) -> int:
        """How many more times it may lose its worker and run again (RETRY-1)."""
        return self._owner.retries_of(handle) - self._losses

    def gave_up(self, handle: Any) -> bool:
        """Whether its caller does not wait any more."""
        return self._owner.gave_up(handle)

    @property
    def origin(self) -> object:
        """The task source that the caller made."""
        return self._owner.origin

    def lose(self) -> None:
        """Go to the end of the line: the worker died after it had started this task."""
        self._losses += 1
        self._retry_queue.line[self] = None

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """Record the chunk in which a call travels, so that it can be cancelled (FEED-4)."""
        if isinstance(self._owner, CallQueue):
            self._owner.note_chunk(handles, chunk)

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        """Go to the front of the line: a death before the start of the task is no loss."""
        if self._owner.retries_of(self.handle) > 0:
            self._retry_queue.line[self] = None
            self._retry_queue.line.move_to_end(self, last=False)
        else:  # its caller gave up while it travelled (RETRY-1)
            self._retry_queue.give_up(self)

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        self._retry_queue.settle(self)
        self._owner.deliver(handles, values, size)

    def fail(self, handle: Any, error: BaseException, size: int = 0) -> None:
        self._retry_queue.settle(self)
        self._owner.fail(handle, error, size)


class RetryQueue:
    """The retry tasks of one queue, and the rules for which worker runs them."""

    def __init__(self) -> None:
        self.unsettled: set[RetryTask] = set()
        self.line: OrderedDict[RetryTask, None] = OrderedDict()  # those that wait for a worker
        self._calls: dict[Any, RetryTask] = {}  # those of `unsettled` that are calls, by handle
        self._deaths_before_start = 0  # in a row (RETRY-6)
        # for statistics: how many tasks were lost for good, how often one runs again, and how many
        # were given up while they waited here, or before they were lost
        self.lost = self.retried = self.cancelled = 0

    # -- what a dead worker held ---------------------------------------------------------------

    def count_started(self, worker: PoolWorker, chunks: Sequence[Chunk]) -> list[int]:
        """How many tasks of each chunk of a dead worker count as started (RETRY-5, RETRY-6)."""
        sizes = [len(chunk.handles) for chunk in chunks]
        first_kills = self._first_chunk_kills(worker, chunks)
        if not worker.link_intact:
            return sizes
        started = worker.link.started
        counts = [
            min(max(started - chunk.first, 0), size)
            for chunk, size in zip(chunks, sizes, strict=True)
        ]
        if first_kills:
            counts[0] = sizes[0]
        return counts

    def _first_chunk_kills(self, worker: PoolWorker, chunks: Sequence[Chunk]) -> bool:
        """RETRY-6: whether receiving the first of these chunks must be what kills workers."""
        if not chunks or not worker.ready:  # a worker that was never ready has received nothing
            return False
        if worker.link.started > chunks[0].first:
            self._deaths_before_start = 0
            return False
        self._deaths_before_start += 1
        if self._deaths_before_start < DEATHS_BEFORE_START:
            return False
        self._deaths_before_start = 0
        return True

    def lose(
        self,
        owner: TaskOwner,
        handle: Any,
        item: Any,
        error: BaseException,
        shared: tuple[Any, ...] = (),
    ) -> None:
        """Let a lost task run again in another worker, or end it with `error` (RETRY-1).

        `shared` are the memories of shared objects that were sent with it.
        """
        if owner.retries_of(handle) <= 0:
            if owner.gave_up(handle):  # COUNTS-1
                self.cancelled += 1
            else:
                self.lost += 1
            owner.fail(handle, error)
            return
        retry_task = (
            owner if isinstance(owner, RetryTask) else RetryTask(self, owner, handle, item, shared)
        )
        self.retried += 1
        self.unsettled.add(retry_task)
        if retry_task.mode is Mode.APPLY:
            self._calls[handle] = retry_task
        retry_task.lose()

    # -- which worker runs a retry task --------------------------------------------------------

    def next_for(self, worker: PoolWorker) -> RetryTask | None:
        """The retry task that a worker runs now, if it can run one alone (RETRY-2)."""
        if not self.line or worker.chunks or worker.leaving or worker.link.congested:
            return None
        while self.line:
            retry_task, _ = self.line.popitem(last=False)
            if not retry_task.gave_up(retry_task.handle):
                return retry_task
            self.give_up(retry_task)  # it was cancelled in this turn (ENGINE-4)
        return None

    def claim(self, worker: PoolWorker, workers: Sequence[PoolWorker]) -> bool:
        """Whether `worker`, one of the queue's `workers`, is kept free of other work.

        It either runs a retry task (RETRY-2) or is the one that will run the next (RETRY-3).
        """
        if runs_retry(worker):
            return True
        if not self.line or worker.leaving or any(map(runs_retry, workers)):
            return False
        staying = [other for other in workers if not other.leaving]
        staying = [other for other in staying if other.takes_tasks] or staying  # QUEUE-10
        return worker is min(staying, key=lambda other: other.credit.in_flight)

    # -- the end of a retry task ---------------------------------------------------------------

    def drop(self, handle: Any) -> bool:
        """Remove a call from the line, as its caller gave up; False if it is not in line."""
        retry_task = self._calls.get(handle)
        if retry_task is None or retry_task not in self.line:
            return False
        del self.line[retry_task]
        self.give_up(retry_task)
        return True

    def drop_tasks_of(self, jobs: Collection[object]) -> bool:
        """Remove the tasks of cancelled jobs from the line; False if none was there."""
        waiting = [retry_task for retry_task in self.line if retry_task.origin in jobs]
        for retry_task in waiting:
            del self.line[retry_task]
            self.give_up(retry_task)
        return bool(waiting)

    def give_up(self, retry_task: RetryTask) -> None:
        """End a task that is in no line and no chunk: its caller does not wait any more."""
        self.cancelled += 1
        retry_task.fail(retry_task.handle, asyncio.CancelledError())

    def settle(self, retry_task: RetryTask) -> None:
        """Forget a task that has its result or error (RETRY-4)."""
        self.unsettled.discard(retry_task)
        self._calls.pop(retry_task.handle, None)

    def clear(self) -> None:
        """Forget all: the pool is over, and the task sources settle what they handed out."""
        self.unsettled.clear()
        self._calls.clear()
        self.line.clear()


def runs_retry(worker: PoolWorker) -> bool:
    """Whether a worker holds a retry task, and so nothing else (RETRY-2)."""
    return any(isinstance(chunk.owner, RetryTask) for chunk in worker.chunks.values())
