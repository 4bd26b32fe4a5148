"""Schedulers choose the queue of each task, where a pool has several (`queuecount`).

A queue is a line of tasks in the parent process, served by a group of workers of its own.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from .types import Queue, QueueID, R, TaskID


class Scheduler(ABC):
    """Decides the queue of each task. All methods are called in the loop of the pool."""

    @abstractmethod
    def register_queue(self, tx: Queue) -> QueueID:
        """Return an id for a new queue; called once for each, before any task is scheduled.

        Args:
            tx: an opaque object that stands for the queue. (It was a `multiprocessing.Queue` up to
                0.9.1; now nothing can be put into it.)
        """

    @abstractmethod
    def register_process(self, qid: QueueID) -> None:
        """Record that one more worker serves the queue `qid`, to weight the queues.

        Called for the first workers of a pool and for those that `Pool.resize` adds, not for those
        that replace others.
        """

    def unregister_process(self, qid: QueueID) -> None:  # noqa: B027 - it may stay as it is
        """Record that one worker fewer serves the queue `qid`: the pool was made smaller.

        Optional: called by `Pool.resize` for each worker that leaves, as soon as it gets no more
        tasks; each queue keeps at least one.
        """

    @abstractmethod
    def schedule_task(
        self,
        task_id: TaskID,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> QueueID:
        """Choose the queue of `func(*args, **kwargs)`, an id that `register_queue` returned."""

    @abstractmethod
    def complete_task(self, task_id: TaskID) -> None:
        """Record that a task has ended: by its result, by an error, or cancelled."""


class RoundRobin(Scheduler):
    """Choose the queues in turn, each as often as it has workers.

    Twelve processes over eight queues give four queues twice as many tasks as the other four.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qids: list[QueueID] = []
        self.next_id = itertools.count()
        self.cycler: Iterator[QueueID] = itertools.cycle([])

    def register_queue(self, tx: Queue) -> QueueID:
        return QueueID(next(self.next_id))

    def register_process(self, qid: QueueID) -> None:
        self.qids.append(qid)
        self.cycler = itertools.cycle(self.qids)

    def unregister_process(self, qid: QueueID) -> None:
        if qid in self.qids:  # else a subclass has not registered it here
            self.qids.remove(qid)
            self.cycler = itertools.cycle(self.qids)

    def schedule_task(
        self,
        task_id: TaskID,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> QueueID:
        try:
            return next(self.cycler)
        except StopIteration:  # no coroutine may raise StopIteration
            raise RuntimeError(
                "RoundRobin knows no process: a subclass that overrides register_process "
                "must call super().register_process(qid)"
            ) from None

    def complete_task(self, task_id: TaskID) -> None:
        """Do nothing: round robin does not count tasks."""


def checked_scheduler(scheduler: Scheduler | None) -> Scheduler:
    """The scheduler of a new pool: any object that has the methods of a Scheduler."""
    if scheduler is None:
        return RoundRobin()
    methods = Scheduler.__abstractmethods__
    if isinstance(scheduler, type) or not all(
        callable(getattr(scheduler, name, None)) for name in methods
    ):
        raise TypeError(f"scheduler must be a Scheduler, such as RoundRobin(), not {scheduler!r}")
    return scheduler
