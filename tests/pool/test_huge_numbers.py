"""Numbers that a user passes and that are too large for the field of a frame."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool

HUGE = pytest.mark.parametrize("number", [1 << 31, 1 << 32, (1 << 32) + 20, sys.maxsize, 10**30])


async def pauses(n: int) -> int:
    await asyncio.sleep(0)
    return n


@pytest.mark.row("G56")
@pytest.mark.parametrize("name", ["childconcurrency", "maxtasksperchild"])
@HUGE
async def test_a_pool_takes_a_huge_number(backend: str, name: str, number: int) -> None:
    arguments: dict[str, Any] = {name: number}
    async with Pool(1, **arguments) as pool:
        [worker] = pool.processes
        assert await pool.map(pauses, range(200)) == list(range(200))
        # an item that waits makes its worker say how many more could
        waiting = asyncio.gather(*(pool.apply(pauses, (n,)) for n in range(40)))
        assert await pool.map(workload.double, (n for n in range(40))) == [2 * n for n in range(40)]
        assert await waiting == list(range(40))
        assert list(pool.processes) == [worker]


@pytest.mark.row("G56")
@HUGE
async def test_a_call_may_be_retried_a_huge_number_of_times(backend: str, number: int) -> None:
    async with Pool(1) as pool:
        assert await pool.apply(pauses, (1,), retries=number) == 1
        assert await pool.map(pauses, [1, 2], retries=number) == [1, 2]


@pytest.mark.row("G56")
def test_a_huge_number_of_queues_is_refused_by_name(backend: str) -> None:
    with pytest.raises(ValueError, match=f"queuecount={sys.maxsize}"):
        Pool(1, queuecount=sys.maxsize)
