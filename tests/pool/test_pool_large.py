"""Values larger than a frame arrive as they were sent, not mixed with those of others."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import mishaps
import workload
from aiomultiprocess import Pool, WorkerLostError

pytestmark = pytest.mark.usefixtures("backend")

MB = 1 << 20


async def test_large_results_are_exactly_the_bytes_that_were_sent() -> None:
    sizes = [65_535, 65_536, 65_537, 130_000, MB - 1, MB, 5 * MB + 3, 40 * MB]
    sent = [bytes([size % 251]) * size for size in sizes]
    async with Pool(2) as pool:
        results = await pool.map(workload.identity, sent)
        assert results == sent
        assert {type(result) for result in results} == {bytes}
        assert await pool.starmap(workload.describe, [(one, 1) for one in sent]) == [
            ((one, 1), {}) for one in sent
        ]


async def test_several_large_values_in_one_item_keep_their_places() -> None:
    item = {
        "a": bytes(MB),
        "b": [b"x" * 70_000, b"y" * (2 * MB), "z" * MB],
        "c": (1, b"w" * 65_536),
    }
    async with Pool(1) as pool:
        assert await pool.map(workload.identity, [item, 5, item]) == [item, 5, item]


async def test_large_results_of_one_object_are_not_aliased() -> None:
    array = np.zeros(300_000)
    async with Pool(2) as pool:
        results = await pool.map(workload.identity, [array] * 4)
        for at, result in enumerate(results):
            result += at  # read-only, an array would refuse this
        assert [result.sum() for result in results] == [300_000 * at for at in range(4)]
        assert not array.any()
        both: Any = await pool.apply(workload.identity, ([array, array],))
        assert both[0] is both[1]  # CODEC-3: one object stays one


@pytest.mark.parametrize("size", [10, 9_000, 70_000, 3_000_000])
async def test_arrays_arrive_writable_if_they_were(size: int) -> None:
    array = np.arange(size)
    frozen = array.copy()
    frozen.flags.writeable = False
    async with Pool(1) as pool:
        back, cold, turned = await pool.map(workload.identity, [array, frozen, array[::-1]])
    assert (back == array).all()
    assert (cold == array).all()
    assert (turned == array[::-1]).all()
    assert (back.flags.writeable, cold.flags.writeable) == (True, False)


async def test_an_array_may_be_changed_as_soon_as_apply_was_given_to_an_idle_worker() -> None:
    array = np.zeros(1_000_000)
    async with Pool(1) as pool:
        assert await pool.apply(workload.identity, (1,)) == 1
        task = asyncio.ensure_future(pool.apply(workload.identity, (array,)))
        await asyncio.sleep(0)
        array += 1
        assert not (await task).any()


async def test_a_bytearray_is_not_locked_while_it_is_on_its_way() -> None:
    data = bytearray(8 * MB)
    async with Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(workload.identity, (np.frombuffer(data, "u1"),)))
        await asyncio.sleep(0)
        result = await task
        del task
    assert result.nbytes == 8 * MB


async def test_a_worker_that_dies_with_a_large_item_fails_no_other() -> None:
    # one at a time: a large result that is on its way may go with its neighbour (_worker/engine.py,
    # WORKER-6)
    async with Pool(2, childconcurrency=1) as pool:
        large = bytes(20 * MB)
        doomed = asyncio.gather(
            *(pool.apply(mishaps.die_at, (large, "exit 7", large)) for _ in range(2)),
            return_exceptions=True,
        )
        others = await pool.map(workload.identity, [large] * 4)
        assert others == [large] * 4
        assert [type(error) for error in await doomed] == [WorkerLostError] * 2
