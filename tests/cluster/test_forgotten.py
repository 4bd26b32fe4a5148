"""Pools over a cluster that end otherwise than by `close` and `join` leave it all the same."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import workload
from aiomultiprocess._parent.engine import State


def forget(pools: list[Any]) -> None:
    pools.clear()
    gc.collect()


@pytest.mark.row("H119")
async def test_a_pool_that_is_forgotten_before_it_has_hosts_gets_none(dask_pool: Any) -> None:
    pools = [dask_pool(1)]
    engine = pools[0]._engine
    with pytest.warns(ResourceWarning, match="never closed"):
        forget(pools)
    assert engine.state is State.TERMINATED
    await asyncio.wait(engine._cluster._tasks)
    assert not engine.supervisor.workers
    assert engine._cluster._client.status == "closed"


@pytest.mark.row("H120")
@pytest.mark.parametrize("after", [0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03])
async def test_a_pool_that_ends_while_it_begins_leaves_no_connection(
    dask_pool: Any, after: float
) -> None:
    """What is left behind fails every test (conftest.py)."""
    pool = dask_pool(1)
    await asyncio.sleep(after)
    pool.terminate()
    await pool.join()


@pytest.mark.row("H121")
def test_a_loop_that_ends_before_its_pool_leaves_no_task(
    dask_pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Any:
        pool = dask_pool(2)
        assert await pool.apply(workload.two) == 2
        return pool

    pools = [asyncio.run(main())]
    with pytest.warns(ResourceWarning, match="never closed"):
        forget(pools)
    assert "destroyed" not in caplog.text
