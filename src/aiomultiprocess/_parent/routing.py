"""A user's scheduler at work: the tasks of one job, routed to the queues that it chooses.

With the default scheduler and one queue, that queue takes tasks from the job itself (job.py). Else
the engine makes a `Router` for the job, and each queue takes from a task source of its own, its
*share*, a `RoutedTasks`. The router takes tasks from the job, asks the scheduler for the queue of
each, and puts it into the share of that queue.

A sequence is routed at the call. An input of unknown length is routed as far as queues ask for
tasks: the tasks that come before the one for the queue that asks wait in the other shares.

ROUTING-1  The scheduler is asked for the queues of tasks in the order of the input: while tasks are
    read and routed, which runs code of the user's, no others are.
ROUTING-2  Few tasks wait in shares. A share that is asked for `n` tasks has more routed until it
    has `n`, but only as long as fewer than `2 * n`, and fewer than `LEAST_AHEAD` if that is more,
    wait in the others on average, for the largest `n` so far; of all, at most `LOOK_AHEAD_ITEMS`.
    So one queue may be slow, or be sent everything, and an endless input is not read to its end.
    One turn of the loop does not read for long: reading stops after `PULL_SECONDS`, and goes on in
    the next turn if the share has nothing by then.
ROUTING-3  A share that has no task when its queue asks for some leaves the line of that queue. It
    is offered again as soon as a task is routed to it, and else when more may be routed: when the
    job has more (`route`), and when another share has given tasks away (ROUTING-2), unless the job
    is known to have none (`_dry`). Nothing is offered while a share gives tasks: what that runs
    could raise, and the tasks would be lost. It is done in the next turn.
ROUTING-4  A job keeps its router, and that its shares; the references back are weak. So results are
    freed with the last reference to them, though an empty share may still stand in line. The engine
    keeps the job until its last task is settled, unless the pool is terminated: user code may do
    that while a share is served, and what the share holds then is given up.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from .._arguments import is_iterable, refuse_star
from .._wire.frames import Mode
from .chunk import Chunk
from .errors import INTERRUPTS, as_exception
from .feed import Handles
from .job import LOOK_AHEAD_ITEMS, Job
from .sources import PULL_SECONDS
from .step import Step

LEAST_AHEAD = 16  # so many tasks may wait in each share that has no room, on average (ROUTING-2)


class RoutedTasks:
    """The tasks of one job that a user's scheduler gave to one queue: a task source (feed.py)."""

    def __init__(self, job: Job, router: Router, offer: Callable[[RoutedTasks], None]) -> None:
        self.offer = offer
        self.function = job.function
        self.mode = job.mode
        self.options = job.options
        self.queued = False
        self.waiting: deque[tuple[int, Any]] = deque()
        self._job = weakref.ref(job)  # ROUTING-4
        self._router = weakref.ref(router)
        self._step = Step(bounded=job.left is not None)  # JOB-4

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """Learn from a chunk how large items are (JOB-4)."""
        self._step.note_chunk(len(handles), chunk.size)
        job = self._job()
        if job is not None:
            job.note_chunk(handles, chunk)

    @property
    def origin(self) -> Job | None:
        """The job; None if it is gone, and this still stands in line (ROUTING-4)."""
        return self._job()

    @property
    def left(self) -> int | None:
        job = self._job()
        return len(self.waiting) if job is None or job.source.exhausted else None

    def at_hand(self, n: int) -> int:
        self._fill(min(n, self._step.items), look=True)
        return len(self.waiting)

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        n = min(n, self._step.items)
        self._fill(n)
        if self._is_over():
            self.waiting.clear()
            return (), []
        pairs = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        if pairs:
            self._step.given = len(pairs)
            self._note_taken()
        return [index for index, _ in pairs], [item for _, item in pairs]

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        job, router = self._job(), self._router()
        if job is None or router is None:
            return
        if job.cancelled:
            router.drop(handles, items)
            return
        self._step.note_rest(len(handles))
        self.waiting.extendleft(reversed(list(zip(handles, items, strict=True))))

    def retries_of(self, handle: int) -> int:
        job = self._job()
        return 0 if job is None else job.retries_of(handle)

    def gave_up(self, handle: int) -> bool:
        job = self._job()
        return job is None or job.gave_up(handle)

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        job, router = self._job(), self._router()
        if job is None or router is None:
            return
        job.deliver(handles, values, size)
        for index in handles:
            router.complete(index)

    def fail(self, handle: int, error: BaseException, size: int = 0) -> None:
        job, router = self._job(), self._router()
        if job is None or router is None:
            return
        job.fail(handle, error, size)
        router.complete(handle)

    def fail_all(self, error: BaseException) -> None:
        self.waiting.clear()
        job = self._job()
        if job is not None:
            job.fail_all(error)

    def _fill(self, n: int, *, look: bool = False) -> None:
        router = self._router()
        if router is not None and len(self.waiting) < n:
            router.fill(self, n, look=look)

    def _is_over(self) -> bool:
        """Whether the job was given up: reading its input may have ended the pool (JOB-6)."""
        job = self._job()
        return job is None or job.is_given_up

    def _note_taken(self) -> None:
        router = self._router()
        if router is not None:
            router.note_taken()


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
        self.shares: dict[Any, RoutedTasks] = {}
        self._job = weakref.ref(job)  # ROUTING-4
        self._assign = assign
        self._completed = completed
        self._ids: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._opened = False  # by the first call of `route`
        self._busy = False  # tasks are being read and routed (ROUTING-1)
        self._dry = False  # the job had no task when it was asked last (ROUTING-3)
        self._most = 0  # tasks that may wait in shares (ROUTING-2)
        self._offers_scheduled = False

    @property
    def job(self) -> Job:
        """The job, which keeps this router."""
        job = self._job()
        assert job is not None
        return job

    def route(self, n: int) -> None:
        """Let queues have tasks, as the job may have more.

        The first call, of `map`, routes `n` at once. All else is done in the next turn of the loop:
        what calls later may be the input, or a reader that would run the input's code.
        """
        job = self._job()
        if job is None or job.is_given_up:
            return
        self._dry = False
        if job.source.exhausted:
            job.end_of_input()
            return
        self._offer_soon()
        if not self._opened:
            self._opened = True
            self._route(n)

    def route_all(self) -> None:
        """Route a whole sequence at the call, as schedulers that count tasks expect."""
        interrupt: BaseException | None = None
        while self.job.left:
            try:
                self._route(self.job.left)
            except INTERRUPTS as error:
                interrupt = error
        self._dry = True
        if interrupt is not None:
            raise interrupt

    def fill(self, share: RoutedTasks, n: int, *, look: bool) -> None:
        """Route tasks until `n` wait in a share, as far as ROUTING-2 allows.

        `look`: the share is only looked at (QUEUE-6), and none is read that takes long to come.
        """
        if self._busy:
            self._offer_soon()
            return
        job = self._job()
        if self._dry or job is None or job.is_given_up:
            return
        most = min(len(self.shares) * max(LEAST_AHEAD, 2 * n), LOOK_AHEAD_ITEMS)
        self._most = most = max(most, self._most)
        budget = most - self._waiting_beside(share)
        until = monotonic() + PULL_SECONDS
        while (lacking := min(n - len(share.waiting), budget)) > 0:
            if look:
                lacking = min(lacking, self._at_hand(lacking))
            routed = self._route(lacking, at_once=False) if lacking > 0 else 0
            if not routed:
                return
            budget -= routed
            if monotonic() >= until:
                break
        if not share.waiting and self._waiting_beside(share) < most:
            self._offer_soon()  # tasks have failed, or took long to come: first, other callbacks

    def _waiting_beside(self, share: RoutedTasks) -> int:
        waiting = sum(len(other.waiting) for other in self.shares.values())
        return waiting - len(share.waiting)

    def note_taken(self) -> None:
        """ROUTING-2: a share has given tasks to a worker, and others may go on."""
        if not self._dry and not all(share.queued for share in self.shares.values()):
            self._offer_soon()

    def _offer_soon(self) -> None:
        if not self._offers_scheduled:
            self._offers_scheduled = True
            self._loop.call_soon(self._offer_all)

    def _offer_all(self) -> None:
        """Put each share into its queue's line that has tasks, or may get some (ROUTING-3)."""
        self._offers_scheduled = False
        job = self._job()
        if job is None or job.is_given_up:
            return
        try:
            for share in list(self.shares.values()):
                if not share.queued and (share.waiting or not self._dry):
                    share.offer(share)
        except INTERRUPTS:
            self._offer_soon()
            raise

    def _at_hand(self, n: int) -> int:
        """How many of `n` tasks the job has at hand."""
        self._busy = True
        try:
            return self.job.at_hand(n)
        finally:
            self._busy = False

    def _route(self, n: int, *, at_once: bool = True) -> int:
        """Take up to `n` tasks from the job, and put each into its share; returns how many.

        Their shares are offered to their queues, `at_once` or soon. An interrupt is raised after
        all are routed: the job does not hand them out again.
        """
        interrupt: BaseException | None = None
        self._busy = True
        try:
            handles, items = self.job.take(n)
            self._dry = not handles
            for index, item in zip(handles, items, strict=True):
                try:
                    share = self._route_one(index, item)
                    if share is None or share.queued:
                        continue
                    if at_once:
                        share.offer(share)
                    else:
                        self._offer_soon()
                except INTERRUPTS as error:
                    interrupt = error
        finally:
            self._busy = False
        if interrupt is not None:
            raise interrupt
        return len(handles)

    def _route_one(self, index: int, item: Any) -> RoutedTasks | None:
        """Put a task into its share, which is returned; if the scheduler fails, fail the task.

        The input or the scheduler may cancel the job meanwhile (JOB-7), or end the pool (JOB-6).
        """
        job = self.job
        if job.is_given_up:
            self.drop([index], [item])
            return None
        try:
            if job.mode is Mode.STAR:  # an iterator can be read only once: send what was read
                if not is_iterable(item):
                    raise refuse_star(job.function.label, index, item)
                item = tuple(item)
            self._ids[index], share = self._assign(self, item)
        except BaseException as error:
            if job.is_given_up:
                self.drop([index], [item])
            else:
                job.refuse(index, as_exception(error, "the scheduler"))
            if isinstance(error, INTERRUPTS):
                raise
            return None
        if job.is_given_up:
            self.drop([index], [item])
            return None
        share.waiting.append((index, item))
        return share

    def waits_before(self, index: float) -> bool:
        """Whether a share has a task before this index that was not sent."""
        return any(share.waiting and share.waiting[0][0] < index for share in self.shares.values())

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
