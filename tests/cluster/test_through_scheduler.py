"""A client that reaches only the scheduler has a pool all the same (routes.py, relay.py).

The cluster `hidden` is in a network namespace, where its workers listen at an address of that
network alone, as behind a forwarded port or a tunnel. Others are not, and their clients ask for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster_tasks
import workload
from aiomultiprocess import Pool, WorkerLostError
from clusters import Dask
from networks import Network
from support import Script, pool_script, wait_for_exit

ITEMS = 2000


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A cluster of which only the scheduler is reached."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("hidden")
    with Network() as network, Dask(folder, behind=network) as running:
        yield running.add("left", "right")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the straight way up soon."""
    from aiomultiprocess._cluster import routes

    monkeypatch.setattr(routes, "STRAIGHT_TIMEOUT", 0.2)


@pytest.fixture
def no_straight_way() -> Iterator[None]:
    """Clients ask for the way through the scheduler."""
    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.client.direct-to-workers": False}):
        yield


def pool_over(dask: Dask, path: Path, **options: Any) -> Pool:
    """A pool whose tasks record that they run."""
    return Pool(
        backend="dask",
        address=dask.address,
        initializer=cluster_tasks.open_record,
        initargs=(str(path),),
        **options,
    )


async def until_hosts(pool: Pool, count: int) -> None:
    while len({worker.host for worker in pool.processes if worker.ready}) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def until_recorded(path: Path, count: int) -> None:
    while len(cluster_tasks.recorded(path)) < count:  # noqa: ASYNC110 - a file has no events
        await asyncio.sleep(0.005)


async def test_a_pool_works_where_only_the_scheduler_is_reached_and_says_so(
    hidden: Dask, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(backend="dask", address=hidden.address) as pool:
        await until_hosts(pool, 2)
        assert await pool.map(workload.double, range(ITEMS)) == [2 * at for at in range(ITEMS)]
        assert await pool.apply(workload.two) == 2
        with pytest.raises(TypeError, match="unsupported operand"):
            await pool.apply(workload.double, (None,))
        waiting = pool.apply(workload.wait_for_ever)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        big = bytes(range(256)) * (1 << 14)
        assert await pool.map(workload.identity, [big] * 4) == [big] * 4
    said = [text for text in caplog.messages if "through the scheduler" in text]
    assert len(said) == 1
    assert "cannot be reached straight" in said[0]


async def test_a_process_that_dies_costs_what_it_ran(hidden: Dask, tmp_path: Path) -> None:
    path = tmp_path / "record"
    async with pool_over(hidden, path) as pool:
        await until_hosts(pool, 2)
        result = pool.map(cluster_tasks.record_and_wait, range(400), return_exceptions=True)
        await until_recorded(path, 100)
        victim = next(iter(pool.processes))
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        lost = [at for at, found in enumerate(await result) if isinstance(found, Exception)]
        ran = Counter(cluster_tasks.recorded(path))
        assert set(ran.values()) == {1}
        assert set(lost) <= set(ran), "one that never ran was lost"
        assert set(ran) | set(lost) == set(range(400))
        assert pool.stats().restarts == {"died": 1}


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_host_that_joins_is_used_and_when_it_dies_its_tasks_are_settled_once(
    hidden: Dask, tmp_path: Path, retries: int
) -> None:
    path = tmp_path / "record"
    async with pool_over(hidden, path) as pool:
        await until_hosts(pool, 2)
        await asyncio.to_thread(hidden.add, f"victim {retries}")
        await until_hosts(pool, 3)
        result = pool.map(
            cluster_tasks.record, range(ITEMS), retries=retries, return_exceptions=True
        )
        await until_recorded(path, ITEMS // 3)
        hidden.stop(f"victim {retries}", signal.SIGKILL)
        outcomes = await result
        await until_hosts(pool, 2)
        lost = [at for at, found in enumerate(outcomes) if isinstance(found, WorkerLostError)]
        assert not (lost and retries)
        assert all(found == at for at, found in enumerate(outcomes) if at not in lost)
        ran = Counter(cluster_tasks.recorded(path))
        assert max(ran.values()) <= 1 + retries
        assert set(ran) | set(lost) == set(range(ITEMS))


async def test_a_host_that_is_silent_is_lost_and_comes_back(
    hidden: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiomultiprocess._cluster import connection

    monkeypatch.setattr(connection, "INTERVAL", 0.2)
    async with pool_over(hidden, tmp_path / "record") as pool:
        await until_hosts(pool, 2)
        result = pool.map(cluster_tasks.record_and_stay, range(50), return_exceptions=True)
        await until_recorded(tmp_path / "record", 2)
        hidden.signal("left", signal.SIGSTOP)
        try:
            await until_hosts(pool, 1)
            (tmp_path / "go").touch()
            lost = [found for found in await result if isinstance(found, WorkerLostError)]
            assert lost
            assert all("has not answered" in str(error) for error in lost)
        finally:
            hidden.signal("left", signal.SIGCONT)
        await until_hosts(pool, 2)


async def test_a_client_that_allows_the_straight_way_alone_has_no_hosts_there(
    hidden: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask import config

    from aiomultiprocess._cluster import routes

    monkeypatch.setattr(routes, "TIMEOUT", 0.2)
    with config.set({"distributed.client.direct-to-workers": True}):
        async with Pool(backend="dask", address=hidden.address) as pool:
            with pytest.raises(ConnectionError, match=r"the dask worker .* cannot be used"):
                await pool.apply(workload.two)


@pytest.mark.usefixtures("no_straight_way")
async def test_the_death_of_the_scheduler_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with Dask(tmp_path) as own:
        async with pool_over(own.add("left"), path) as pool:
            result = pool.map(cluster_tasks.record_or_stay, [*range(ITEMS), -1])
            await until_recorded(path, ITEMS // 3)
            own.scheduler.kill()
            with pytest.raises(ConnectionError, match=r"dask scheduler at .* was lost"):
                await result
            with pytest.raises(ConnectionError, match=r"dask scheduler at .* was lost"):
                await pool.apply(workload.two)
    assert set(Counter(cluster_tasks.recorded(path)).values()) == {1}


CLIENT = """
async with Pool(2, backend="dask", address=ADDRESS) as pool:
    while len([worker for worker in pool.processes if worker.ready]) < 4:
        await asyncio.sleep(0.01)
    print("pids", *(worker.pid for worker in pool.processes), flush=True)
    await pool.map(workload.wait_for_ever, range(100))
"""


async def test_the_processes_of_a_client_that_is_killed_end(dask: Dask, tmp_path: Path) -> None:
    """The scheduler ends the streams of the client to the hosts with those to itself."""
    setup = (
        "from dask import config\n"
        "config.set({'distributed.client.direct-to-workers': False})\n"
        f"ADDRESS = {dask.address!r}"
    )
    with Script(tmp_path, pool_script(CLIENT, setup=setup)) as script:
        pids = [int(pid) for pid in await script.line("pids")]
        assert len(pids) == 4
        script.process.kill()
        await wait_for_exit(pids, within=10.0)
