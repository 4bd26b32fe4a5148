"""Schedulers that users wrote against the signatures of 0.9.1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from aiomultiprocess import QueueID, RoundRobin, Scheduler, TaskID
from aiomultiprocess.types import Queue, R


async def nothing() -> None:
    """What is scheduled; it never runs here."""


def registered(workers: Sequence[int]) -> tuple[RoundRobin, list[QueueID]]:
    """A round robin over queues, each with so many workers, registered as a pool does it."""
    scheduler = RoundRobin()
    qids = [scheduler.register_queue(object()) for _ in workers]
    for turn in range(max(workers)):
        for qid, count in zip(qids, workers, strict=True):
            if turn < count:
                scheduler.register_process(qid)
    return scheduler, qids


def schedule(scheduler: Scheduler, count: int) -> list[QueueID]:
    return [scheduler.schedule_task(TaskID(i), nothing, (), {}) for i in range(count)]


def test_queues_are_named_one_by_one() -> None:
    assert registered([1, 1, 1])[1] == [0, 1, 2]


def test_queues_take_turns() -> None:
    scheduler, qids = registered([1, 1, 1])
    assert schedule(scheduler, 7) == [*qids, *qids, qids[0]]


def test_a_queue_with_more_workers_gets_more_tasks() -> None:
    scheduler, qids = registered([2, 1])
    tasks = schedule(scheduler, 30)
    assert (tasks.count(qids[0]), tasks.count(qids[1])) == (20, 10)


def test_twelve_workers_over_eight_queues_weigh_four_of_them_double() -> None:
    scheduler, qids = registered([2] * 4 + [1] * 4)
    tasks = schedule(scheduler, 120)
    assert [tasks.count(qid) for qid in qids] == [20] * 4 + [10] * 4


def test_a_finished_task_changes_nothing() -> None:
    scheduler, qids = registered([1, 1])
    [first] = schedule(scheduler, 1)
    scheduler.complete_task(TaskID(0))
    assert [first, *schedule(scheduler, 1)] == qids


def test_a_scheduler_must_answer_all_four_questions() -> None:
    class Half(Scheduler):
        def register_queue(self, tx: Queue) -> QueueID:
            return QueueID(1)

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_a_scheduler_written_for_0_9_1_still_fits() -> None:
    class Last(RoundRobin):
        def schedule_task(
            self,
            task_id: TaskID,
            func: Callable[..., Awaitable[R]],
            args: Sequence[Any],
            kwargs: dict[str, Any],
        ) -> QueueID:
            return self.qids[-1]

    scheduler = Last()
    for _ in range(2):
        scheduler.register_process(scheduler.register_queue(object()))
    assert schedule(scheduler, 3) == [1, 1, 1]
