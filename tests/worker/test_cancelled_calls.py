"""Cancelling n calls takes work in proportion to n, counted in lines that the library runs."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

import pytest
from test_worker_results import Worker

import workload
from aiomultiprocess import Pool, PoolResult
from aiomultiprocess._wire.frames import Kind
from support import Meeting

pytestmark = pytest.mark.row("G57")

FEW, MANY = 40, 240  # six times as many cost at most nine times as much


class Lines:
    """Counts the lines of the library that run within the block."""

    def __init__(self) -> None:
        self.total = 0

    def _trace(self, frame: FrameType, event: str, _arg: object) -> Any:
        if "aiomultiprocess" not in frame.f_code.co_filename:
            return None
        self.total += event == "line"
        return self._trace

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


async def lines_to_cancel(count: int) -> int:
    """The lines that the parent runs to cancel so many calls.

    What it runs to receive their ends depends on how many of them come in one frame.
    """
    async with Meeting() as meeting, Pool(2, childconcurrency=1000) as pool:
        calls = [
            asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, number)))
            for number in range(count)
        ]
        for _ in range(count):
            await meeting.arrivals.get()
        with Lines() as lines:
            for call in calls:
                call.cancel()
            await asyncio.sleep(0)  # then the calls are looked for, and CANCEL frames leave
        await asyncio.gather(*calls, return_exceptions=True)
        assert await pool.apply(workload.two) == 2
        return lines.total


async def test_the_parent_looks_for_each_call_once(backend: str) -> None:
    few, many = await lines_to_cancel(FEW), await lines_to_cancel(MANY)
    assert few > FEW
    assert many <= 9 * few


def lines_of_the_worker(count: int, *, started: bool) -> int:
    """What a worker runs for so many CANCEL frames, of items that run or wait."""
    worker = Worker()
    worker.engine._concurrency = 1000 if started else 1
    for number in range(count):
        worker.receive(["a"], number, 1)

    async def cancel() -> int:
        worker.engine._schedule_turn()
        await worker.turns(lambda: not worker.engine._turn_scheduled)
        with Lines() as lines:
            for number in reversed(range(count)):
                worker.engine._on_frame(Kind.CANCEL, 0, 0, number, 0, 0, memoryview(b""))
            await worker.turns(lambda: not (worker.engine._running or worker.engine._chunks))
        return lines.total

    try:
        return worker.loop.run_until_complete(cancel())
    finally:
        worker.close()


@pytest.mark.parametrize("started", [True, False])
def test_the_worker_looks_for_each_item_once(started: bool) -> None:
    few, many = (lines_of_the_worker(count, started=started) for count in (FEW, MANY))
    assert many <= 9 * few


async def test_many_awaits_of_one_result_are_cancelled_one_by_one(backend: str) -> None:
    async def lines(count: int) -> int:
        async with Meeting() as meeting, Pool(1) as pool:
            result = pool.map(workload.meet, [meeting.port])

            async def wait() -> None:
                await result

            waits = [asyncio.ensure_future(wait()) for _ in range(count)]
            arrival = await meeting.arrivals.get()
            with Lines() as lines:
                for one in waits:
                    one.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
            arrival.release()
            await result
            return lines.total

    assert await lines(MANY) <= 9 * await lines(FEW)


async def lines_to_cancel_maps(count: int) -> int:
    """The lines that the parent runs to cancel so many maps that wait in line."""
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        blocker = pool.apply(workload.meet, (meeting.port, "blocker"))
        arrival = await meeting.next()
        maps = [
            asyncio.ensure_future(whole(pool.map(workload.identity, [n]))) for n in range(count)
        ]
        await asyncio.sleep(0)
        with Lines() as lines:
            for task in maps:
                task.cancel()
            await asyncio.wait(maps)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert all(task.cancelled() for task in maps)
        arrival.release()
        assert await blocker == "go"
        assert await pool.map(workload.double, [1, 2]) == [2, 4]
        return lines.total


async def whole(results: PoolResult[Any]) -> list[Any]:
    return await results


@pytest.mark.row("H177")
async def test_the_cost_of_cancelling_maps_grows_with_their_number_and_not_its_square() -> None:
    few, many = await lines_to_cancel_maps(FEW), await lines_to_cancel_maps(MANY)
    assert many <= few * 9
