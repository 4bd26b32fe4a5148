"""A user's scheduler at work: the tasks of one job, routed to the queues that it chooses.

With the default scheduler a queue takes tasks from the job itself (job.py). With a user's scheduler
the engine makes a `Router` for the job, and each queue takes from a task source of its own, a
`RoutedTasks`. When such a source runs out, its router takes more tasks from the job, and asks the
scheduler for the queue of each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .._arguments import is_iterable, refuse_star
from .._wire.frames import Mode
from .errors import INTERRUPTS, as_exception
from .feed import Handles
from .job import Job


class RoutedTasks:
    """The tasks of one job that a user's scheduler gave to one queue: a task source (feed.py)."""

    def __init__(self, job: Job, router: Router, offer: Callable[[RoutedTasks], None]) -> None:
        self.offer = offer
        self.function = job.function
        self.mode = job.mode
        self.options = job.options
        self.queued = False
        self.waiting: deque[tuple[int, Any]] = deque()
        self._job = job
        self._router = router

    def note_chunk(self, handles: Handles, chunk: object) -> None:
        """Nothing: tasks of a map are found by their offsets."""

    @property
    def origin(self) -> Job:
        """The job."""
        return self._job

    @property
    def left(self) -> int | None:
        return len(self.waiting) if self._job.source.exhausted else None

    def at_hand(self, n: int) -> int:
        if len(self.waiting) < n:
            self._router.route(n - len(self.waiting))
        return len(self.waiting)

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        if len(self.waiting) < n:
            self._router.route(n - len(self.waiting))
        pairs = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        return [index for index, _ in pairs], [item for _, item in pairs]

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        if self._job.cancelled:
            self._router.drop(handles, items)
            return
        self.waiting.extendleft(reversed(list(zip(handles, items, strict=True))))

    def retries_of(self, handle: int) -> int:
        return self._job.retries_of(handle)

    def gave_up(self, handle: int) -> bool:
        return self._job.gave_up(handle)

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        self._job.deliver(handles, values, size)
        for index in handles:
            self._router.complete(index)

    def fail(self, handle: int, error: BaseException) -> None:
        self._job.fail(handle, error)
        self._router.complete(handle)

    def fail_all(self, error: BaseException) -> None:
        self.waiting.clear()
        self._job.fail_all(error)


class Router:
    """Asks the scheduler for the queue of each task of one job.

    `assign(router, item)` returns the task's id and the share of its queue, a `RoutedTasks`;
    `completed(id)` reports to the scheduler that the task has ended.
    """

    def __init__(
        self,
        job: Job,
        assign: Callable[[Router, Any], tuple[Any, RoutedTasks]],
        completed: Callable[[Any], None],
    ) -> None:
        self.job = job
        self.shares: dict[Any, RoutedTasks] = {}
        self._assign = assign
        self._completed = completed
        self._ids: dict[int, Any] = {}

    def route(self, n: int) -> None:
        """Take `n` more tasks from the job, if it has them, and put each into its share.

        An interrupt is raised after all are routed: the job does not hand them out again.
        """
        interrupt: BaseException | None = None
        while n > 0:
            handles, items = self.job.take(n)
            if not handles:
                break
            for index, item in zip(handles, items, strict=True):
                try:
                    n -= self._route_one(index, item)
                except INTERRUPTS as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt

    def _route_one(self, index: int, item: Any) -> bool:
        """Put a task into its share; if the scheduler fails, fail the task and return False.

        The input or the scheduler may cancel the job meanwhile (JOB-7), or end the pool (JOB-6).
        """
        if self.job.is_given_up:
            self.drop([index], [item])
            return False
        try:
            if self.job.mode is Mode.STAR:  # an iterator can be read only once: send what was read
                if not is_iterable(item):
                    raise refuse_star(self.job.function.label, index, item)
                item = tuple(item)
            self._ids[index], share = self._assign(self, item)
        except BaseException as error:
            if self.job.is_given_up:
                self.drop([index], [item])
            else:
                self.job.refuse(index, as_exception(error, "the scheduler"))
            if isinstance(error, INTERRUPTS):
                raise
            return False
        if self.job.is_given_up:
            self.drop([index], [item])
            return False
        share.waiting.append((index, item))
        if not share.queued:
            share.offer(share)
        return True

    def route_all(self) -> None:
        """Route a whole sequence at the call, as schedulers that count tasks expect."""
        while self.job.left:
            self.route(self.job.left)

    def complete(self, index: int) -> None:
        """Report to the scheduler that a task has ended."""
        if index in self._ids:  # else the scheduler has ended the pool: see complete_all
            self._completed(self._ids.pop(index))

    def drop(self, handles: Handles, items: list[Any]) -> None:
        """Give up tasks of a job that ended, and report to the scheduler that they have, too."""
        for index in handles:
            self.complete(index)
        self.job.put_back(handles, items)

    def drop_waiting(self) -> None:
        """Drop what waits in the queues, as the job was cancelled."""
        for share in self.shares.values():
            pairs, share.waiting = list(share.waiting), deque()
            self.drop([index for index, _ in pairs], [item for _, item in pairs])

    def complete_all(self) -> None:
        """Report that all tasks have ended."""
        while self._ids:
            self._completed(self._ids.popitem()[1])
