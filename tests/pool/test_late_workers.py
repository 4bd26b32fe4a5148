"""A worker that starts while others run tasks gets none before it has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import attempts
import workload
from aiomultiprocess import Pool
from support import Arrival, Meeting

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.row("H228"),
]


@contextlib.asynccontextmanager
async def pool_with_a_late_worker(
    meeting: Meeting, slots: int, deaths: int = 0
) -> AsyncIterator[tuple[Pool, Arrival]]:
    """A pool of which one worker is in its initializer, and has arrived there at the meeting.

    The late one comes by a resize, or replaces one that has died.
    """
    count = 1 + deaths
    start = workload.meet_blocking, (meeting.port,)
    async with Pool(count, *start, childconcurrency=slots) as pool:
        arrivals = await meeting.first(count)
        for arrival in arrivals:
            arrival.release()
        if deaths:
            while not all(worker.ready for worker in pool.processes):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            os.kill(arrivals[1].pid, signal.SIGKILL)
        else:
            assert await pool.apply(workload.two) == 2
            await pool.resize(2)
        late = await meeting.next()
        assert late.pid not in [arrival.pid for arrival in arrivals]
        yield pool, late
        late.release()


@pytest.mark.parametrize("deaths", [0, 1])
async def test_calls_and_maps_go_to_the_worker_that_has_started(deaths: int) -> None:
    async with Meeting() as meeting, pool_with_a_late_worker(meeting, 16, deaths) as (pool, _):
        held = pool.submit(workload.meet, meeting.port)  # one of 16 slots
        arrival = await meeting.next()
        assert await pool.apply(workload.double, (3,)) == 6
        assert await pool.map(workload.double, range(40)) == [*range(0, 80, 2)]
        assert await pool.map(workload.double, iter(range(40))) == [*range(0, 80, 2)]
        arrival.release()
        await held


@pytest.mark.parametrize("deaths", [0, 1])
async def test_it_gets_what_waits_as_soon_as_it_has_started(deaths: int) -> None:
    async with Meeting() as meeting, pool_with_a_late_worker(meeting, 1, deaths) as (pool, late):
        calls = [pool.submit(workload.meet, meeting.port) for _ in range(2)]
        first = await meeting.next()
        late.release()
        second = await meeting.next()
        assert (second.pid, first.pid == late.pid) == (late.pid, False)
        first.release()
        second.release()
        await asyncio.gather(*calls)


async def test_a_share_of_a_map_is_left_for_it() -> None:
    """Of six items that compute, the other does not take all."""
    async with Meeting() as meeting, pool_with_a_late_worker(meeting, 16) as (pool, late):
        result = pool.map(workload.meet_blocking, [meeting.port] * 6)
        first = await meeting.next()
        late.release()
        second = await meeting.next()
        assert second.pid == late.pid
        first.release()
        second.release()
        await meeting.release_all(4)
        await result


async def test_a_task_that_runs_again_does_not_wait_for_it(tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    async with Meeting() as meeting, Pool(2, workload.meet_blocking, (meeting.port,)) as pool:
        await meeting.release_all(2)
        while not all(worker.ready for worker in pool.processes):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        first = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.next()
        call = pool.apply(attempts.survive, (5, path), retries=1)
        late = await meeting.next()
        second = pool.submit(workload.meet, meeting.port)
        await asyncio.sleep(0)  # it waits: the worker that has started is kept free
        arrival.release()
        assert await call == 5
        late.release()
        (await meeting.next()).release()
        await asyncio.gather(first, second)


async def test_alone_it_gets_them_before_it_has_started() -> None:
    async with Meeting() as meeting, Pool(1, workload.meet_blocking, (meeting.port,)) as pool:
        await meeting.release_all(1)
        assert await pool.apply(workload.two) == 2
        (worker,) = pool.processes
        os.kill(worker.pid or 0, signal.SIGKILL)
        late = await meeting.next()
        call = pool.submit(workload.where)
        late.release()
        assert await call == late.pid
