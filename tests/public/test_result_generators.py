"""A reader of results has the methods of the async generator that 0.9.1 had in its place."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, PoolResult
from support import Meeting

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("G58")]


class Numbers(Iterator[int]):
    """Numbers without end, and how many of them were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __next__(self) -> int:
        self.count += 1
        return self.count - 1


def reader_of(results: PoolResult[int], way: str) -> Any:
    return aiter(results) if way == "aiter" else results.results_generator()


@pytest.mark.parametrize("way", ["aiter", "results_generator"])
async def test_aclosing_gives_results_and_ends_the_reader(way: str) -> None:
    async with Pool(1) as pool:
        async with aclosing(reader_of(pool.map(workload.double, range(9)), way)) as reader:
            assert isinstance(reader, AsyncGenerator)
            assert [await anext(reader), await anext(reader)] == [0, 2]
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        await reader.aclose()  # once more is no error


async def test_a_closed_reader_takes_nothing_from_another() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(5))
        first, second = aiter(results), aiter(results)
        assert [await anext(first), await anext(second)] == [0, 0]
        await first.aclose()
        assert [value async for value in second] == [2, 4, 6, 8]
        assert [value async for value in results] == await results == [0, 2, 4, 6, 8]


async def test_a_closed_reader_keeps_no_results_from_other_readers() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(5))
        gone = weakref.ref(results)
        reader = aiter(results)
        await anext(reader)
        del results
        gc.collect()
        assert gone() is not None  # the reader needs it
        await reader.aclose()
        gc.collect()
        assert gone() is None


async def test_a_closed_reader_pulls_its_input_no_further() -> None:
    numbers = Numbers()
    async with Pool(1) as pool:
        results = pool.map(workload.double, numbers)
        async with aclosing(aiter(results)) as reader:
            async for value in reader:
                if value >= 40_000:
                    break
        await pool.map(workload.double, range(20_000))
        before = numbers.count
        await pool.map(workload.double, range(20_000))
        assert numbers.count == before


async def test_a_slow_reader_that_is_closed_keeps_no_results_for_itself() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.identity, (bytes(100_000) for _ in itertools.count()))
        slow, fast = aiter(results), aiter(results)
        await anext(slow)
        kept = weakref.ref(results)
        for _ in range(2000):
            await anext(fast)
        await slow.aclose()
        for _ in range(500):
            await anext(fast)
        assert kept() is results
        with pytest.raises(RuntimeError, match="result 0 was dropped"):
            aiter(results)


async def test_a_pool_closes_once_the_readers_of_an_endless_input_are_closed() -> None:
    pool = Pool(1)
    results = pool.map(workload.double, itertools.count())
    reader = aiter(results)
    assert await anext(reader) == 0
    pool.close()
    await reader.aclose()
    async with asyncio.timeout(20):
        await pool.join()


async def test_a_step_under_way_ends_by_its_result_though_the_reader_is_closed() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        reader = aiter(pool.starmap(workload.meet, [(meeting.port, "a"), (meeting.port, "b")]))
        assert not reader.ag_running
        assert reader.ag_suspended
        step = asyncio.ensure_future(anext(reader))
        first, second = await meeting.first(2)
        assert reader.ag_running
        assert not reader.ag_suspended
        await reader.aclose()
        assert not reader.ag_running
        first.release("late")
        second.release()
        assert await step == "late"
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_a_reader_goes_on_after_the_error_of_an_item() -> None:
    async with Pool(1) as pool:
        results = pool.starmap(mishaps.fail_at, [(1, 0), (1, 1), (1, 2)])
        reader = aiter(results)
        assert await reader.asend(None) == 0
        with pytest.raises(ValueError, match="1 is bad"):
            await anext(reader)
        assert await anext(reader) == 2


async def test_asend_gives_the_next_result_once_the_reader_has_started() -> None:
    async with Pool(1) as pool:
        reader: Any = aiter(pool.map(workload.double, range(3)))
        with pytest.raises(TypeError, match="just-started"):
            await reader.asend("early")
        assert await reader.asend(None) == 0
        assert await reader.asend("ignored") == 2
        assert await reader.asend(None) == 4
        for value in (None, "late"):
            with pytest.raises(StopAsyncIteration):
                await reader.asend(value)


@pytest.mark.parametrize("thrown", [ValueError, ValueError("thrown"), GeneratorExit])
async def test_athrow_raises_and_ends_the_reader(thrown: Any) -> None:
    async with Pool(1) as pool:
        reader = aiter(pool.map(workload.double, range(3)))
        assert await anext(reader) == 0
        with pytest.raises(thrown if isinstance(thrown, type) else ValueError):
            await reader.athrow(thrown)
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        assert await reader.athrow(thrown) is None  # as a generator that has ended


async def test_a_reader_shows_its_state_as_a_generator_does() -> None:
    async with Pool(1) as pool:
        reader: Any = aiter(pool.map(workload.double, range(3)))
        assert await anext(reader) == 0
        assert (reader.ag_running, reader.ag_suspended) == (False, True)
        assert [value async for value in reader] == [2, 4]
        assert (reader.ag_running, reader.ag_suspended) == (False, False)
        assert reader.ag_frame is reader.ag_await is None
        assert reader.ag_code.co_name == "__anext__"
