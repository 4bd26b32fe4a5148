"""A CANCEL frame for a range: what runs of it is cancelled, what waits is answered in one frame.

Without a process, over the link of test_worker_results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from test_worker_results import HOUR, Worker

from aiomultiprocess._wire.frames import Kind

NOTHING = memoryview(b"")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def cancel(worker: Worker, chunk_id: int, offset: int, count: int) -> None:
    worker.engine._on_frame(Kind.CANCEL, 0, count, chunk_id, offset, 0, NOTHING)


def test_items_that_wait_are_answered_together_and_not_run(worker: Worker) -> None:
    called: list[int] = []
    worker.engine._functions[1] = called.append
    worker.loop.call_soon(cancel, worker, 7, 2, 1000)  # after the chunk, before the first turn
    sent = worker.run_at_once(called.append, list(range(1002)), HOUR // 1000)
    assert sent == [(Kind.RESULTS, 0, 2), (Kind.RESULTS, 2, 1000)]
    assert called == [0, 1]


def test_items_on_both_sides_of_a_range_run(worker: Worker) -> None:
    called: list[int] = []
    worker.engine._functions[1] = called.append
    worker.loop.call_soon(cancel, worker, 7, 1, 2)
    sent = worker.run_at_once(called.append, [0, 1, 2, 3], HOUR // 1000)
    assert sent == [(Kind.RESULTS, 0, 1), (Kind.RESULTS, 1, 2), (Kind.RESULTS, 3, 1)]
    assert called == [0, 3]


@pytest.mark.parametrize("count", [3, 1000])
def test_what_runs_of_a_range_is_cancelled_and_each_item_is_answered_once(
    worker: Worker, count: int
) -> None:
    async def wait(_: object) -> None:
        await asyncio.Event().wait()

    engine = worker.engine
    engine._functions[1] = wait
    engine._concurrency = 2

    async def run() -> None:
        worker.receive([None] * 3, 7, 1)
        worker.receive([None], 8, 1)
        engine._schedule_turn()
        await worker.turns(lambda: len(engine._running) == 2)
        cancel(worker, 7, 0, count)
        await worker.turns(lambda: len(worker.link.sent) == 3)
        await worker.turns(lambda: bool(engine._running))
        assert list(engine._running.values()) == [(8, 0)]
        cancel(worker, 8, 0, 1)
        cancel(worker, 9, 0, 1)  # all of it was answered before
        await worker.turns(lambda: not engine._running)

    worker.loop.run_until_complete(run())
    answers: list[Any] = sorted(worker.link.sent)
    assert answers == [
        (Kind.RESULTS, 2, 1),
        (Kind.ERROR, 0, 0),
        (Kind.ERROR, 0, 0),
        (Kind.ERROR, 1, 0),
    ]
