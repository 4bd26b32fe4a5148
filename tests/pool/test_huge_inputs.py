"""Maps over inputs that are far larger than memory, which their caller leaves early (JOB-10)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool
from aiomultiprocess.types import PoolTerminatedError

pytestmark = pytest.mark.row("H144")

ITEMS = range(10**12)


async def first_of(results: Any, count: int = 3) -> list[Any]:
    found = []
    async for value in results:
        found.append(value)
        if len(found) == count:
            break
    return found


async def read_on(results: Any) -> None:
    while True:
        await anext(results)


async def test_a_cancelled_map_of_a_huge_range_is_over_at_once(backend: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, ITEMS)
        assert await first_of(results) == [0, 2, 4]
        assert results.cancel()
        assert results.done()
        assert not results.cancel()
        with pytest.raises(asyncio.CancelledError):
            await results
        reader = aiter(results)
        assert await anext(reader) == 0  # what was there stays
        assert await pool.apply(workload.double, (4,)) == 8
        assert pool.stats().waiting == 0


async def test_completions_of_a_huge_range_end_with_it(backend: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, ITEMS)
        completions = results.as_completed()
        assert await anext(completions) in range(2**20)
        results.cancel()
        later = results.as_completed(with_index=True)
        for each in (completions, later):
            with pytest.raises(asyncio.CancelledError):
                await read_on(each)


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_the_end_of_a_pool_reaches_all_beside_a_huge_range(
    backend: str, return_exceptions: bool
) -> None:
    async with Pool(1, childconcurrency=1) as pool:
        results = pool.map(workload.double, ITEMS, return_exceptions=return_exceptions)
        assert await first_of(results) == [0, 2, 4]
        call = pool.submit(asyncio.sleep, 60)
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await call
        found = [value async for value in first_errors(results)]
        assert len(found) == 5
        assert all(type(error) is PoolTerminatedError for error in found)
        await pool.join(10)
    assert not pool.processes


async def first_errors(results: Any) -> Any:
    reader, errors = aiter(results), 0
    while errors < 5:
        try:
            value = await anext(reader)
        except PoolTerminatedError as error:
            value = error
        if isinstance(value, PoolTerminatedError):
            errors += 1
            yield value


async def test_a_pool_that_shuts_down_leaves_a_huge_range(backend: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, ITEMS)
        assert await first_of(results) == [0, 2, 4]
        await pool.shutdown(0.1)
    with pytest.raises(PoolTerminatedError):
        await results


async def test_a_small_map_with_exceptions_has_all_places_after_the_end(backend: str) -> None:
    async with Pool(1, childconcurrency=1) as pool:
        results = pool.map(workload.double, range(100_000), return_exceptions=True)
        assert await first_of(results) == [0, 2, 4]
        pool.terminate()
        found = await results
        assert len(found) == 100_000
        assert found[:3] == [0, 2, 4]
        assert type(found[-1]) is PoolTerminatedError
        assert await results == found
        await pool.join(10)
