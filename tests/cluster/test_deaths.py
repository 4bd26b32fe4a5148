"""Deaths in a cluster: every task ends once, and what is left says what was lost.

AIOMULTIPROCESS_CLUSTER_ITEMS is the number of items for each host; the suite runs fewer than the
100,000 that a release is tried with.
"""

from __future__ import annotations

import asyncio
import os
import signal
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
from support import Meeting, Script, pool_script, wait_for_exit

ITEMS = 2 * int(os.environ.get("AIOMULTIPROCESS_CLUSTER_ITEMS", "3000"))


@pytest.fixture(params=["no nanny", "nanny"])
def own_dask(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dask]:
    """A cluster of two workers that a test may harm."""
    with Dask(tmp_path, nanny=getattr(request, "param", "") == "nanny") as running:
        yield running.add("left", "right")


only_plain = pytest.mark.parametrize("own_dask", ["no nanny"], indirect=True)
only_nanny = pytest.mark.parametrize("own_dask", ["nanny"], indirect=True)


def pool_over(dask: Dask, path: Path, **options: Any) -> Pool:
    """A pool whose tasks record that they run."""
    return Pool(
        backend="dask",
        address=dask.address,
        initializer=cluster_tasks.open_record,
        initargs=(str(path),),
        **options,
    )


def pool_of_single_tasks(dask: Dask, folder: Path) -> Pool:
    """A pool of which each process runs one task at a time."""
    return pool_over(dask, folder / "record", childconcurrency=1)


def dask_workers(dask: Dask) -> list[int]:
    """The processes that are hosts: the workers, or the children of their nannies."""
    if not dask.nanny:
        return [worker.pid for worker in dask.workers.values()]
    found = [psutil.Process(worker.pid).children() for worker in dask.workers.values()]
    children = [child for some in found for child in some]
    return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]


async def until_recorded(path: Path, count: int) -> None:
    while len(cluster_tasks.recorded(path)) < count:  # noqa: ASYNC110 - a file has no events
        await asyncio.sleep(0.005)


async def until_hosts(pool: Pool, count: int) -> None:
    while len({worker.host for worker in pool.processes if worker.ready}) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def check_accounts(path: Path, outcomes: list[Any], hosts: set[str | None]) -> list[int]:
    """Every task has ended once; those that were lost, on these hosts. Returns the lost ones."""
    ran = Counter(cluster_tasks.recorded(path))
    assert set(ran.values()) <= {1}, "a task has run twice"
    lost = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    for at in lost:
        assert isinstance(outcomes[at], WorkerLostError)
        assert outcomes[at].host in hosts
        assert str(outcomes[at].host) in str(outcomes[at])
    for at in set(range(len(outcomes))) - set(lost):
        assert outcomes[at] == at
        assert ran[at] == 1
    return lost


@only_plain
async def test_the_death_of_a_process_costs_what_it_ran(own_dask: Dask, tmp_path: Path) -> None:
    path = tmp_path / "record"
    async with pool_over(own_dask, path) as pool:
        result = pool.map(cluster_tasks.record_and_wait, range(1000), return_exceptions=True)
        await until_recorded(path, 500)
        victim = next(iter(pool.processes))
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        lost = check_accounts(path, await result, {victim.host})
        assert len(lost) <= pool.childconcurrency
        assert set(lost) <= set(cluster_tasks.recorded(path)), "one that never ran was lost"
        assert pool.stats().restarts == {"died": 1}


@only_plain
async def test_the_death_of_a_process_amid_quick_tasks_costs_what_it_had_started(
    own_dask: Dask, tmp_path: Path
) -> None:
    path = tmp_path / "record"
    async with pool_over(own_dask, path) as pool:
        await until_hosts(pool, 2)
        result = pool.map(cluster_tasks.record, range(ITEMS), return_exceptions=True)
        await until_recorded(path, ITEMS // 3)
        victim = next(iter(pool.processes))
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        lost = check_accounts(path, await result, {victim.host})
        # it may have died between the mark of a task and its record
        assert len(set(lost) - set(cluster_tasks.recorded(path))) <= 1


async def test_the_death_of_a_host_costs_at_most_what_it_was_sent(
    own_dask: Dask, tmp_path: Path
) -> None:
    path = tmp_path / "record"
    async with pool_over(own_dask, path) as pool:
        await until_hosts(pool, 2)
        by_pid = {worker.pid: worker.host for worker in pool.processes}
        victim = dask_workers(own_dask)[0]
        children = {child.pid for child in psutil.Process(victim).children()}
        dead = {by_pid[pid] for pid in children & set(by_pid)}
        result = pool.map(cluster_tasks.record, range(ITEMS), return_exceptions=True)
        await until_recorded(path, ITEMS // 3)
        os.kill(victim, signal.SIGKILL)
        check_accounts(path, await result, dead)
        # the map may have ended before the death is noticed: a call may be sent there still
        assert await pool.apply(workload.two, retries=1) == 2


@only_plain
async def test_slow_tasks_that_a_dead_host_had_not_started_run_elsewhere(
    own_dask: Dask, tmp_path: Path
) -> None:
    """So only those fail that had run: none waits at a host behind tasks that take long."""
    path = tmp_path / "record"
    async with Meeting() as meeting, pool_over(own_dask, path, childconcurrency=4) as pool:
        await until_hosts(pool, 2)
        items = [(meeting.port, at) for at in range(40)]
        result = pool.starmap(workload.meet, items, return_exceptions=True)
        held = await meeting.first(8)
        own_dask.signal("left", signal.SIGKILL)
        gone = [arrival for arrival in held if psutil.Process(arrival.pid).ppid() != 1]
        await asyncio.wait([arrival.gone for arrival in gone], return_when="FIRST_COMPLETED")
        for arrival in held:
            if not arrival.gone.done():
                arrival.release()
        release = asyncio.ensure_future(meeting.release_all(32))
        outcomes = await result
        lost = [outcome for outcome in outcomes if isinstance(outcome, WorkerLostError)]
        assert len(lost) == 4
        assert all(outcome == "go" for outcome in outcomes if outcome not in lost)
        await release


async def test_with_retries_nothing_is_lost_with_a_host(own_dask: Dask, tmp_path: Path) -> None:
    path = tmp_path / "record"
    async with pool_over(own_dask, path) as pool:
        await until_hosts(pool, 2)
        result = pool.map(cluster_tasks.record, range(ITEMS), retries=1)
        await until_recorded(path, ITEMS // 3)
        os.kill(dask_workers(own_dask)[0], signal.SIGKILL)
        assert await result == list(range(ITEMS))
        assert set(Counter(cluster_tasks.recorded(path)).values()) <= {1, 2}


@pytest.mark.row("H112")
async def test_no_process_of_a_lost_host_gets_the_tasks_of_another(tmp_path: Path) -> None:
    """Else a task that may run once more would count as started there, and fail."""
    path = tmp_path / "record"
    with Dask(tmp_path) as dask:
        async with pool_over(dask.add("left", threads=4), path) as pool:
            result = pool.map(cluster_tasks.record_and_stay, [7] * 3, retries=1)
            await until_recorded(path, 3)
            os.kill(dask_workers(dask)[0], signal.SIGKILL)
            await until_hosts(pool, 0)
            await asyncio.to_thread(dask.add, "right")
            await until_recorded(path, 4)
            (tmp_path / "go").touch()
            assert await result == [7] * 3


@only_nanny
async def test_a_host_that_its_nanny_restarts_is_used_again(own_dask: Dask, tmp_path: Path) -> None:
    async with pool_over(own_dask, tmp_path / "record") as pool:
        await until_hosts(pool, 2)
        before = {worker.host for worker in pool.processes}
        os.kill(dask_workers(own_dask)[0], signal.SIGKILL)
        await until_hosts(pool, 1)
        await until_hosts(pool, 2)
        assert {worker.host for worker in pool.processes} != before
        assert {worker.index for worker in pool.processes} == {0, 1}
        assert await pool.map(workload.double, range(100)) == [2 * at for at in range(100)]


@only_plain
async def test_a_host_that_joins_while_a_map_runs_gets_its_share(
    own_dask: Dask, tmp_path: Path
) -> None:
    async with (
        Meeting() as meeting,
        pool_over(own_dask, tmp_path / "r", childconcurrency=1) as pool,
    ):
        await until_hosts(pool, 2)
        result = pool.starmap(workload.meet, [(meeting.port, at) for at in range(6)])
        held = await meeting.first(2)
        await asyncio.to_thread(own_dask.add, "late")
        held.append(await meeting.next())
        assert len({arrival.pid for arrival in held}) == 3
        for arrival in held:
            arrival.release()
        await meeting.release_all(3)
        assert await result == ["go"] * 6


@only_plain
async def test_a_host_that_is_retired_finishes_what_it_holds(
    own_dask: Dask, tmp_path: Path
) -> None:
    from distributed import Client

    path = tmp_path / "record"
    async with (
        Client(own_dask.address, asynchronous=True) as client,  # type: ignore[no-untyped-call]
        Pool(
            backend="dask",
            client=client,
            initializer=cluster_tasks.open_record,
            initargs=(str(path),),
        ) as pool,
    ):
        await until_hosts(pool, 2)
        leaving = next(iter(pool.processes)).host
        result = pool.map(cluster_tasks.record_and_wait, range(400))
        await until_recorded(path, 100)
        await client.retire_workers([leaving])
        assert await result == list(range(400))
        assert sorted(cluster_tasks.recorded(path)) == list(range(400))
        assert leaving not in {worker.host for worker in pool.processes}


@only_plain
async def test_a_host_that_is_silent_is_lost_and_comes_back(
    own_dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiomultiprocess._cluster import connection

    monkeypatch.setattr(connection, "INTERVAL", 0.2)
    async with (
        Meeting() as meeting,
        pool_over(own_dask, tmp_path / "r", childconcurrency=1) as pool,
    ):
        await until_hosts(pool, 2)
        calls = [pool.apply(workload.meet, (meeting.port, at)) for at in range(2)]
        await meeting.first(2)
        own_dask.signal("left", signal.SIGSTOP)
        try:
            await until_hosts(pool, 1)
            done, _ = await asyncio.wait(
                [asyncio.ensure_future(call) for call in calls], return_when="FIRST_COMPLETED"
            )
            with pytest.raises(WorkerLostError, match=r"lost with its host \(it has not answered"):
                await done.pop()
        finally:
            own_dask.signal("left", signal.SIGCONT)
        await until_hosts(pool, 2)


@only_plain
async def test_the_death_of_the_scheduler_is_a_clear_error(own_dask: Dask, tmp_path: Path) -> None:
    path = tmp_path / "record"
    async with Meeting() as meeting, pool_over(own_dask, path) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        await meeting.next()
        result = pool.map(cluster_tasks.record_or_stay, [*range(ITEMS), -1])
        await until_recorded(path, ITEMS // 3)
        own_dask.scheduler.kill()
        for each in (call, result):
            with pytest.raises(ConnectionError, match=r"dask scheduler at .* was lost"):
                await each
        with pytest.raises(ConnectionError, match=r"dask scheduler at .* was lost"):
            await pool.apply(workload.two)
    assert set(Counter(cluster_tasks.recorded(path)).values()) == {1}


CLIENT = """
async with Pool(
    2, backend="dask", address=ADDRESS, initializer=cluster_tasks.open_record, initargs=[RECORD]
) as pool:
    while len([worker for worker in pool.processes if worker.ready]) < 4:
        await asyncio.sleep(0.01)
    print("pids", *(worker.pid for worker in pool.processes), flush=True)
    pool.map(workload.wait_for_ever, range(100))
    await pool.map(cluster_tasks.record, range(ITEMS), priority=1)
"""


async def test_the_processes_of_a_client_that_is_killed_end(own_dask: Dask, tmp_path: Path) -> None:
    path = tmp_path / "record"
    setup = (
        f"import cluster_tasks\nADDRESS, RECORD, ITEMS = {(own_dask.address, str(path), ITEMS)!r}"
    )
    with Script(tmp_path, pool_script(CLIENT, setup=setup)) as script:
        pids = [int(pid) for pid in await script.line("pids")]
        assert len(pids) == 4
        await until_recorded(path, ITEMS // 3)
        script.process.kill()
        await wait_for_exit(pids, within=10.0)
    assert set(Counter(cluster_tasks.recorded(path)).values()) == {1}
