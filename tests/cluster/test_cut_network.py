"""A cable that is cut: neither end is told, and both do what is stated.

The host `far` runs in a network namespace (tests/support/networks.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import cluster_tasks
import workload
from aiomultiprocess import Pool, WorkerLostError
from clusters import Dask
from networks import Network
from support import wait_for_exit

ITEMS = 2000


@pytest.fixture
def network() -> Iterator[Network]:
    """A network that a test may cut."""
    with Network() as network:
        yield network


@pytest.fixture
def split_dask(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Dask]:
    """A cluster of a host here and one there."""
    if patience := getattr(request, "param", ""):  # of TCP, at the host
        monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", patience)
    with Dask(tmp_path) as running:
        yield running.add("near").add("far", network=network)


def pool_over(dask: Dask, path: Path) -> Pool:
    """A pool whose tasks record that they run."""
    return Pool(
        backend="dask",
        address=dask.address,
        initializer=cluster_tasks.open_record,
        initargs=(str(path),),
    )


async def until_hosts(pool: Pool, count: int) -> None:
    while len({worker.host for worker in pool.processes if worker.ready}) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def until_recorded(path: Path, count: int) -> None:
    while len(cluster_tasks.recorded(path)) < count:  # noqa: ASYNC110 - a file has no events
        await asyncio.sleep(0.005)


def far_host(pool: Pool, network: Network) -> str:
    return next(str(w.host) for w in pool.processes if network.address in str(w.host))


@pytest.mark.row("H122")
@pytest.mark.parametrize("retries", [0, 1])
async def test_a_cut_host_is_noticed_its_tasks_are_settled_once_and_it_returns(
    split_dask: Dask, network: Network, tmp_path: Path, retries: int
) -> None:
    """And what the host still runs, on the other side, runs nowhere else unless it may."""
    path = tmp_path / "record"
    async with pool_over(split_dask, path) as pool:
        await until_hosts(pool, 2)
        far = far_host(pool, network)
        result = pool.map(
            cluster_tasks.record_and_wait, range(ITEMS), retries=retries, return_exceptions=True
        )
        await until_recorded(path, ITEMS // 3)
        network.cut()
        outcomes = await result
        assert {worker.host for worker in pool.processes} == {near_hosts(pool, far)}
        network.mend()
        lost = [outcome for outcome in outcomes if isinstance(outcome, WorkerLostError)]
        assert bool(lost) is not bool(retries)
        for error in lost:
            assert error.host == far
            assert "was lost with its host (it has not answered for 3 s) during" in str(error)
        assert [at for at in outcomes if not isinstance(at, Exception)] == sorted(
            set(range(ITEMS)) - {at for at, found in enumerate(outcomes) if found in lost}
        )
        await until_hosts(pool, 2)
        assert await pool.map(workload.double, range(100)) == [2 * at for at in range(100)]
        ran = Counter(cluster_tasks.recorded(path))
        assert max(ran.values()) <= 1 + retries
        assert all(ran[at] for at, found in enumerate(outcomes) if found not in lost)


def near_hosts(pool: Pool, far: str) -> str:
    return next(str(worker.host) for worker in pool.processes if worker.host != far)


@pytest.mark.parametrize("split_dask", ["12s"], indirect=True)
async def test_a_host_that_is_cut_from_its_client_ends_the_processes(
    split_dask: Dask, network: Network, tmp_path: Path
) -> None:
    async with pool_over(split_dask, tmp_path / "record") as pool:
        await until_hosts(pool, 2)
        far = far_host(pool, network)
        pids = [worker.pid for worker in pool.processes if worker.host == far]
        network.cut()
        await wait_for_exit([pid for pid in pids if pid], within=60)
        assert psutil.Process(split_dask.workers["near"].pid).children()
        assert await pool.apply(workload.two) == 2
