"""What stays in its process: a pool, and what it returns, is named where it is sent by mistake."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolExecutor

pytestmark = pytest.mark.row("H145")


class Service:
    """Has its pool, as classes of users have."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def double(self, value: int) -> int:
        return 2 * value


async def test_a_method_of_what_has_a_pool_is_refused_with_the_reason(backend: str) -> None:
    async with Pool(1) as pool:
        service = Service(pool)
        with pytest.raises(pickle.PicklingError, match="a Pool stays in its process"):
            await pool.map(service.double, [1, 2])
        with pytest.raises(pickle.PicklingError, match="a Pool stays in its process"):
            await pool.apply(workload.double, (service,))
        assert await pool.apply(workload.double, (4,)) == 8


async def test_what_a_pool_returns_is_refused_by_its_name(backend: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, [1])
        with pytest.raises(pickle.PicklingError, match="a PoolResult stays in its process"):
            await pool.apply(workload.double, (results,))
        assert await results == [2]
        stream = pool.stream(iter, (range(3),))
        with pytest.raises(pickle.PicklingError, match="a Stream stays in its process"):
            await pool.apply(workload.double, (stream,))
        assert [value async for value in stream] == [0, 1, 2]


def test_an_executor_is_refused_by_its_name(backend: str) -> None:
    with PoolExecutor(1) as executor:
        future = executor.submit(workload.double, executor)
        with pytest.raises(pickle.PicklingError, match="a PoolExecutor stays in its process"):
            future.result(30)
