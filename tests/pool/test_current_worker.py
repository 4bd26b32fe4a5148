"""`current_worker()`: the index of a worker, and what else its tasks can learn of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import lifespans
import mishaps
import workload
from aiomultiprocess import Pool, WorkerLostError, current_worker
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


async def test_each_worker_has_an_index_of_its_own(start_method: str) -> None:
    async with Meeting() as meeting, Pool(3, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 3)
        reading = asyncio.ensure_future(results.results())
        await meeting.release_together(3)
        assert sorted(await reading) == [0, 1, 2]
        indices = {worker.pid: worker.index for worker in pool.processes}
        for index, pid, _ in await pool.map(lifespans.index_and_started, range(30)):
            assert indices[pid] == index


async def test_an_initializer_knows_the_index_of_its_worker(start_method: str) -> None:
    async with Pool(2, initializer=lifespans.note_index) as pool:
        for at_start, index in await pool.map(lifespans.indices_seen, range(10)):
            assert at_start == [index]


async def test_a_replacement_has_the_index_of_the_worker_that_it_replaces() -> None:
    async with Meeting() as meeting, Pool(3, childconcurrency=1) as pool:
        reading = asyncio.ensure_future(
            pool.map(lifespans.meet_with_index, [meeting.port] * 3, retries=1).results()
        )
        arrivals = {int(arrival.token): arrival for arrival in await meeting.first(3)}
        os.kill(arrivals[1].pid, signal.SIGKILL)
        again = await meeting.next()
        while int(again.token) != 1:  # it runs again wherever a worker is free
            again.release()
            os.kill(again.pid, signal.SIGKILL)
            again = await meeting.next()
        assert again.pid != arrivals[1].pid
        for arrival in (again, arrivals[0], arrivals[2]):
            arrival.release()
        assert sorted(await reading) == [0, 1, 2]


async def test_recycled_workers_keep_their_indices() -> None:
    pool = Pool(2, maxtasksperchild=1)
    found = await pool.map(lifespans.index_and_started, range(8))
    pool.close()
    await pool.join()
    assert {index for index, _, _ in found} <= {0, 1}
    assert len({pid for _, pid, _ in found}) == 8
    assert {started for _, _, started in found} == {1}


async def test_started_counts_the_tasks_of_a_worker() -> None:
    async with Pool(1) as pool:
        for number in range(1, 4):
            assert await pool.apply(lifespans.index_and_started) == (
                0,
                next(iter(pool.processes)).pid,
                number,
            )


async def test_there_is_no_current_worker_in_the_parent_nor_in_a_child_of_a_worker() -> None:
    with pytest.raises(RuntimeError, match="outside of a worker of a Pool"):
        current_worker()
    async with Pool(1) as pool:
        assert "outside of a worker" in await pool.apply(lifespans.current_worker_in_a_fork)


async def test_the_state_is_none_without_a_lifespan() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(lifespans.state_and_repr) == (None, True)


async def test_a_worker_of_a_pool_in_a_worker_has_its_own_index() -> None:
    async with Pool(2) as pool:
        assert await pool.apply(lifespans.index_in_a_nested_pool) == 0


async def test_a_worker_that_is_lost_gives_its_index_to_the_next() -> None:
    async with Pool(1) as pool:
        for _ in range(3):
            with pytest.raises(WorkerLostError):
                await pool.apply(mishaps.die, ("exit 7",))
            assert (await pool.apply(lifespans.index_and_started))[0] == 0
        assert await pool.apply(workload.two) == 2
