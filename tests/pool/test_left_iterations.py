"""What becomes of a map whose iteration is left early: rule JOB-9."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolResult

pytestmark = pytest.mark.usefixtures("backend")

ORDERS = ["in order", "as completed"]


def iterator_over(result: PoolResult[Any], order: str) -> Any:
    return aiter(result) if order == "in order" else result.as_completed()


async def until_cancelled(pool: Pool, items: int) -> None:
    # at least: if the worker has not started yet, also those that were to end by themselves
    while pool.stats().cancelled < items:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.005)
    assert await pool.apply(workload.double, (1,)) == 2


@pytest.mark.row("H131")
@pytest.mark.parametrize("order", ORDERS)
async def test_a_time_out_around_an_iteration_cancels_the_map(order: str) -> None:
    async with Pool(1, childconcurrency=2) as pool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                async for _ in iterator_over(pool.map(asyncio.sleep, [0.0, *[3600] * 5]), order):
                    pass
        await until_cancelled(pool, 5)


@pytest.mark.parametrize("order", ORDERS)
async def test_a_time_out_of_one_reader_leaves_the_map_to_another(order: str) -> None:
    async with Pool(1) as pool:
        result = pool.map(asyncio.sleep, [0.2] * 3, return_exceptions=True)
        other = asyncio.ensure_future(result.results())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                async for _ in iterator_over(result, order):
                    pass
        del result
        assert await other == [None] * 3


@pytest.mark.row("H132")
@pytest.mark.parametrize("order", ORDERS)
async def test_a_step_that_was_cancelled_loses_nothing(order: str) -> None:
    async with Pool(1) as pool:
        steps = iterator_over(pool.map(asyncio.sleep, [0.1] * 3), order)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(steps), 0.01)
        assert [each async for each in steps] == [None] * 3


@pytest.mark.parametrize("order", ORDERS)
async def test_a_closed_iterator_ends_a_map_that_nothing_else_can_read(order: str) -> None:
    async with Pool(1) as pool:
        items = [0.0, *[3600] * 5]
        async with contextlib.aclosing(
            iterator_over(pool.map(asyncio.sleep, items), order)
        ) as all_:
            async for _ in all_:
                break
        await until_cancelled(pool, 5)


async def test_a_closed_iterator_leaves_the_map_to_its_variable() -> None:
    async with Pool(1) as pool:
        result = pool.map(asyncio.sleep, [0.0, 0.1, 0.1])
        first = aiter(result)
        await anext(first)
        await first.aclose()
        assert await result == [None] * 3


async def leave_by(way: str, results: PoolResult[Any]) -> None:
    async for _ in results:
        if way == "break":
            break
        raise LookupError(way)


@pytest.mark.parametrize("way", ["break", "an error"])
async def test_aclosing_ends_the_map_however_the_block_is_left(way: str) -> None:
    async with Pool(1) as pool:
        with contextlib.suppress(LookupError):
            async with contextlib.aclosing(pool.map(asyncio.sleep, [0.0, *[3600] * 5])) as results:
                await leave_by(way, results)
        assert results.done()
        await until_cancelled(pool, 5)
        await results.aclose()


async def test_aclosing_ends_an_endless_map() -> None:
    async with Pool(1) as pool:
        numbers = itertools.count()
        async with contextlib.aclosing(pool.map(workload.double, numbers)) as results:
            async for value in results:
                if value > 100:
                    break
        pool.close()
        await pool.join()


async def test_aclosing_of_a_map_that_is_done_changes_nothing() -> None:
    async with Pool(1) as pool:
        async with contextlib.aclosing(pool.map(workload.double, [1, 2])) as results:
            assert await results == [2, 4]
        assert await results == [2, 4]


async def test_the_slowest_of_two_readers_gets_all_of_an_endless_input() -> None:
    """JOB-2: it would wait for itself if it held up the other."""
    async with Pool(1) as pool:
        result = pool.map(workload.double, iter(range(30_000)))
        slow = aiter(result)
        assert await anext(slow) == 0
        assert [value async for value in result] == list(range(0, 60_000, 2))
        assert [value async for value in slow] == list(range(2, 60_000, 2))
