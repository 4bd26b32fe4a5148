"""What a host sends of a process that an item blocks counts once, whenever it is taken.

That results do not wait for an item that blocks is among the contract (test_contract.py).
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import blocked
import cluster_tasks
from aiomultiprocess._parent.blocked import PATIENCE
from clusters import Dask


@pytest.mark.parametrize("patience", [0.0, 0.002])
async def test_results_taken_of_hosts_at_any_moment_count_once(
    dask: Dask, dask_pool: Any, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    from aiomultiprocess._cluster.link import RemoteLink

    taken = []
    take_results = RemoteLink.take_results
    monkeypatch.setattr(
        RemoteLink,
        "take_results",
        lambda link, frame: (taken.append(frame.slot), take_results(link, frame)),
    )
    values = list(range(20_000))
    async with Client(dask.address, asynchronous=True) as client:  # type: ignore[no-untyped-call]
        await client.run(cluster_tasks.set_patience, patience)
        try:
            async with dask_pool(2) as pool:
                assert await pool.map(blocked.now_and_then, values) == values
                job = pool.map(blocked.block_or_raise, range(0, 20_000, 2))
                assert [value async for value in job] == list(range(0, 20_000, 2))
                calls = [pool.submit(blocked.now_and_then, value) for value in range(2_000)]
                assert await asyncio.gather(*calls) == list(range(2_000))
                assert pool.stats().done == 32_000
                assert not pool.stats().restarts
        finally:
            await client.run(cluster_tasks.set_patience, PATIENCE)
    assert taken
