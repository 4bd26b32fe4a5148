"""`Pool.resize`: more workers, or fewer, while the pool runs."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

import lifespans
import workload
from aiomultiprocess import Pool, RoundRobin, Scheduler, WorkerLostError
from aiomultiprocess.types import QueueID
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


async def gone(pool: Pool, left: int) -> None:
    """Until the pool has only so many workers."""
    while len(pool.processes) > left:  # noqa: ASYNC110 - a pool has no event for an exit
        await asyncio.sleep(0.01)


def indices(pool: Pool) -> list[int]:
    return sorted(worker.index for worker in pool.processes)


async def test_a_pool_grows_and_the_new_workers_get_tasks(start_method: str) -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 3)
        reading = asyncio.ensure_future(results.results())
        (first,) = await meeting.first(1)
        await pool.resize(3)
        assert pool.process_count == 3
        assert indices(pool) == [0, 1, 2]
        others = await meeting.first(2)
        assert len({first.pid, *(other.pid for other in others)}) == 3
        for arrival in (first, *others):
            arrival.release()
        assert sorted(await reading) == [0, 1, 2]


async def test_a_pool_shrinks_when_the_highest_workers_have_finished_what_they_hold() -> None:
    async with Meeting() as meeting, Pool(3, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 4)
        reading = asyncio.ensure_future(results.results())
        arrivals = {arrival.token: arrival for arrival in await meeting.first(3)}
        await pool.resize(1)
        assert pool.process_count == 1
        assert indices(pool) == [0, 1, 2]
        arrivals["1"].release()
        arrivals["2"].release()
        await gone(pool, 1)
        assert indices(pool) == [0]
        arrivals["0"].release()
        last = await meeting.next()
        assert last.token == "0"
        last.release()
        assert sorted(await reading) == [0, 0, 1, 2]
        assert [await pool.apply(workload.double, (i,)) for i in range(3)] == [0, 2, 4]


async def test_a_dismissed_worker_that_dies_is_not_replaced_and_its_tasks_end() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 2)
        reading = asyncio.ensure_future(results.results())
        arrivals = {arrival.token: arrival for arrival in await meeting.first(2)}
        await pool.resize(1)
        os.kill(arrivals["1"].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await reading
        await gone(pool, 1)
        arrivals["0"].release()
        assert await pool.apply(lifespans.index_and_started) == (0, arrivals["0"].pid, 2)


async def test_a_pool_that_grows_again_gives_an_index_anew_after_its_worker_has_left() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 2)
        reading = asyncio.ensure_future(results.results())
        arrivals = {arrival.token: arrival for arrival in await meeting.first(2)}
        await pool.resize(1)
        resizing = asyncio.ensure_future(pool.resize(2))
        await asyncio.sleep(0)
        assert pool.process_count == 2
        assert len(pool.processes) == 2
        assert not resizing.done()
        arrivals["1"].release()
        await resizing
        assert indices(pool) == [0, 1]
        assert arrivals["1"].pid not in {worker.pid for worker in pool.processes}
        arrivals["0"].release()
        assert sorted(await reading) == [0, 1]


async def test_of_several_calls_the_last_counts() -> None:
    async with Meeting() as meeting, Pool(4, childconcurrency=1) as pool:
        results = pool.map(lifespans.meet_with_index, [meeting.port] * 4)
        reading = asyncio.ensure_future(results.results())
        arrivals = await meeting.first(4)
        resizing = asyncio.gather(*(pool.resize(number) for number in (1, 4, 3, 2)))
        await asyncio.sleep(0)
        assert pool.process_count == 2
        for arrival in arrivals:
            arrival.release()
        await asyncio.gather(reading, resizing)
        await gone(pool, 2)
        assert indices(pool) == [0, 1]
        await asyncio.gather(pool.resize(6), pool.resize(3))
        await gone(pool, 3)
        assert indices(pool) == [0, 1, 2]
        assert await pool.map(workload.double, range(50)) == [2 * i for i in range(50)]


async def test_maps_lose_nothing_while_their_pool_changes_its_size() -> None:
    pool = Pool(2)
    results = pool.map(workload.double_after_a_turn, range(20_000))
    for number in (4, 1, 3, 2, 1, 4):
        await pool.resize(number)
        await pool.apply(workload.two)
    assert await results == [2 * i for i in range(20_000)]
    await finish(pool)


class Weighing(RoundRobin):
    """Notes how many workers serve each queue."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[QueueID, int] = {}

    def register_process(self, qid: QueueID) -> None:
        super().register_process(qid)
        self.weights[qid] = self.weights.get(qid, 0) + 1

    def unregister_process(self, qid: QueueID) -> None:
        super().unregister_process(qid)
        self.weights[qid] -= 1


async def test_a_scheduler_learns_of_new_workers_and_of_those_that_leave() -> None:
    scheduler = Weighing()
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        assert list(scheduler.weights.values()) == [1, 1]
        await pool.resize(5)
        assert list(scheduler.weights.values()) == [3, 2]
        assert sorted(scheduler.qids) == [0, 0, 0, 1, 1]
        await pool.resize(3)
        assert list(scheduler.weights.values()) == [2, 1]
        assert await pool.map(workload.double, range(30)) == [2 * i for i in range(30)]
        await gone(pool, 3)
        assert sorted(pool.processes.values()) == [0, 0, 1]


async def test_a_scheduler_need_not_know_of_workers_that_leave() -> None:
    class Old:
        """As one of 0.9.1 that is no Scheduler."""

        def __init__(self) -> None:
            inner = RoundRobin()
            for name in Scheduler.__abstractmethods__:
                setattr(self, name, getattr(inner, name))

    scheduler: Any = Old()
    async with Pool(2, scheduler=scheduler) as pool:
        await pool.resize(1)
        await gone(pool, 1)
        assert await pool.apply(workload.two) == 2


async def test_a_number_of_workers_that_cannot_be_is_refused() -> None:
    async with Pool(3, queuecount=2) as pool:
        with pytest.raises(ValueError, match="fewer workers than queues, got processes=1 with que"):
            await pool.resize(1)
        with pytest.raises(ValueError, match=r"at least 1, got 0; to end all .* use close\(\)"):
            await pool.resize(0)
        with pytest.raises(TypeError, match="processes must be a whole number, got 'two'"):
            await pool.resize("two")  # type: ignore[arg-type]
        assert pool.process_count == 3


async def test_a_closed_pool_is_not_resized() -> None:
    pool = Pool(1)
    await finish(pool)
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.resize(2)
    assert pool.process_count == 1


async def test_a_resize_that_waits_ends_when_the_pool_is_terminated() -> None:
    async with Meeting() as meeting:
        async with Pool(2, childconcurrency=1) as pool:
            results = pool.map(lifespans.meet_with_index, [meeting.port] * 2)
            await meeting.first(2)
            await pool.resize(1)
            resizing = asyncio.ensure_future(pool.resize(2))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="pool is closed"):
            await resizing
        del results


def test_a_pool_that_has_not_started_starts_with_the_new_number() -> None:
    pool = Pool(3)

    async def main() -> list[int]:
        await pool.resize(2)
        async with pool:
            return indices(pool)

    assert asyncio.run(main()) == [0, 1]


async def test_a_worker_that_the_system_refuses_leaves_the_number_that_was_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Pool(1) as pool:
        engine: Any = pool._engine
        start = engine.supervisor.start_worker

        def refuse(index: int, qid: Any) -> None:
            if index == 2:
                raise OSError("no more")
            start(index, qid)

        monkeypatch.setattr(engine.supervisor, "start_worker", refuse)
        with pytest.raises(OSError, match="no more"):
            await pool.resize(4)
        assert pool.process_count == 2
        assert indices(pool) == [0, 1]
