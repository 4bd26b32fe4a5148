"""Tasks that may run again when their worker dies (`retries=`): how often, where, and how it ends.

The rules are those of retry.py (RETRY-1 to RETRY-7).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_pool_scheduler import ByParity

import attempts
import mishaps
import workload
from aiomultiprocess import Pool, PoolTerminatedError, ProxyException, WorkerLostError
from support import Arrival, Meeting, lines, outcomes

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="deaths of POSIX processes"),
]


def attempts_of(path: Path) -> Counter[int]:
    """How often each item was begun."""
    return Counter(int(line.split()[0]) for line in lines(path))


def pids_in(path: Path) -> list[int]:
    """Where attempts were made, in order."""
    return [int(line.split()[1]) for line in lines(path)]


async def lose_together(meeting: Meeting, count: int) -> list[Arrival]:
    """Wait until the first attempts of so many items run in one worker, and kill it."""
    arrivals = await meeting.first(count)
    assert len({arrival.pid for arrival in arrivals}) == 1
    os.kill(arrivals[0].pid, signal.SIGKILL)
    return arrivals


# -- RETRY-1: how often ----------------------------------------------------------------------------


async def test_a_task_succeeds_on_its_second_attempt(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(1) as pool:
        assert await pool.apply(attempts.survive, (5, str(path)), retries=1) == 5
        first, second = pids_in(path)
        assert first != second


async def test_a_task_that_used_up_its_attempts_ends_with_the_last_loss(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(2) as pool:
        with pytest.raises(WorkerLostError, match="survive") as caught:
            await pool.apply(attempts.survive, (5, str(path), 9), retries=2)
        pids = pids_in(path)
        assert len(set(pids)) == 3
        assert caught.value.pid == pids[2]
        assert caught.value.signal == signal.SIGKILL
        assert await pool.apply(workload.two) == 2


async def test_without_retries_nothing_runs_twice(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(2) as pool:
        items = [(i, str(path), 9) for i in range(4)]
        found = await outcomes(pool.starmap(attempts.survive, items))
        assert [type(error) for error in found] == [WorkerLostError] * 4
        with pytest.raises(WorkerLostError):
            await pool.apply(attempts.survive, (4, str(path), 9))
        assert attempts_of(path) == Counter(range(5))


async def test_calls_of_one_function_each_have_retries_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1) as pool:
        arguments = (str(path), meeting.port, (0, 1, 2))
        calls = [
            asyncio.ensure_future(pool.apply(attempts.meet_at_first, (n, *arguments), retries=n))
            for n in range(3)
        ]
        await lose_together(meeting, 3)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in found] == [WorkerLostError] * 3
        assert attempts_of(path) == {0: 1, 1: 2, 2: 3}


async def test_an_error_that_a_task_raises_is_its_result(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(1) as pool:
        with pytest.raises(LookupError, match="an error is a result"):
            await pool.apply(attempts.fail, (1, str(path)), retries=3)
        with pytest.raises(LookupError, match="an error is a result"):
            await pool.starmap(attempts.fail, [(2, str(path))], retries=3)
        assert attempts_of(path) == {1: 1, 2: 1}


async def test_tasks_that_were_not_started_are_moved_and_use_no_attempt(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        items = [(i, str(path), meeting.port) for i in range(10)]
        reading = asyncio.ensure_future(
            pool.starmap(attempts.meet_at_first, items, retries=1).results()
        )
        os.kill((await meeting.next()).pid, signal.SIGKILL)
        await meeting.release_all(9)
        assert await reading == list(range(10))
        assert attempts_of(path) == {0: 2, **dict.fromkeys(range(1, 10), 1)}


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)]
)
async def test_impossible_retries_are_refused_at_the_call(value: Any, error: Any) -> None:
    async with Pool(1) as pool:
        with pytest.raises(error, match=f"retries must .*{value}"):
            await pool.apply(workload.two, retries=value)
        with pytest.raises(error, match=f"retries must .*{value}"):
            pool.map(workload.double, [1], retries=value)
        with pytest.raises(error, match=f"retries must .*{value}"):
            pool.starmap(workload.double, [(1,)], retries=value)


# -- RETRY-2, RETRY-3: where -----------------------------------------------------------------------


async def test_fifteen_neighbours_of_a_poisonous_task_succeed_and_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=16) as pool:
        items = [(i, str(path), meeting.port, (3,)) for i in range(16)]
        reading = asyncio.ensure_future(
            outcomes(pool.starmap(attempts.meet_at_first, items, retries=1))
        )
        arrivals = await meeting.first(16)
        assert len({arrival.pid for arrival in arrivals}) == 1
        next(arrival for arrival in arrivals if arrival.token == "3").release("die")
        found = await reading
        assert isinstance(found[3], WorkerLostError)
        assert [*found[:3], *found[4:]] == [i for i in range(16) if i != 3]
        assert attempts_of(path) == dict.fromkeys(range(16), 2)


async def test_an_item_that_kills_its_worker_on_arrival_fails_and_its_neighbours_do_not() -> None:
    items = [*range(20), attempts.DeadlyToReceive(), *range(20)]
    async with Pool(1) as pool:
        found = await outcomes(pool.map(workload.identity, items, retries=1))
        assert isinstance(found[20], WorkerLostError)
        assert [*found[:20], *found[21:]] == [*range(20), *range(20)]


async def test_a_worker_that_runs_a_retry_task_runs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=8) as pool:
        items = [(i, str(path), meeting.port) for i in range(5)]
        retry_queue = pool.starmap(attempts.see_neighbours, items, retries=1)
        reading = asyncio.ensure_future(retry_queue)
        await lose_together(meeting, 5)
        others = pool.map(attempts.be_a_neighbour, range(100))
        assert await reading == [[1] * 21] * 5
        assert await others == [None] * 100
        assert [line.split()[0] for line in lines(path)[5:]] == ["0", "1", "2", "3", "4"]


async def test_other_work_goes_to_the_workers_that_run_no_retry_task(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(2) as pool:
        items = [(i, str(path), meeting.port) for i in range(2)]
        reading = asyncio.ensure_future(
            pool.starmap(attempts.meet_each_time, items, retries=1).results()
        )
        lost, staying = await meeting.first(2)
        assert lost.pid != staying.pid
        os.kill(lost.pid, signal.SIGKILL)
        retry_task = await meeting.next()
        assert retry_task.token == lost.token
        calls = [pool.apply(workload.where) for _ in range(20)]
        assert set(await asyncio.gather(*calls)) == {staying.pid}
        retry_task.release()
        staying.release()
        assert await reading == [0, 1]


@pytest.fixture
def _no_new_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to replace a worker."""

    def refuse(supervisor: Any, *index: Any) -> None:
        assert supervisor._queues[index[-1]].workers

    monkeypatch.setattr("aiomultiprocess._parent.supervisor.Supervisor._replace", refuse)


@pytest.mark.usefixtures("_no_new_workers")
async def test_a_retry_task_goes_to_an_idle_worker_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(2) as pool:
        assert await pool.apply(attempts.survive, (1, str(path)), retries=1) == 1
        assert len(pool.processes) == 1


@pytest.mark.usefixtures("_no_new_workers")
async def test_a_busy_worker_falls_idle_for_a_retry_task_that_has_no_other(tmp_path: Path) -> None:
    path, others = tmp_path / "ran", tmp_path / "others"
    async with Meeting() as meeting, Pool(2) as pool:
        items = [(i, str(path), meeting.port) for i in range(2)]
        reading = asyncio.ensure_future(
            pool.starmap(attempts.meet_each_time, items, retries=1).results()
        )
        lost, staying = await meeting.first(2)
        os.kill(lost.pid, signal.SIGKILL)
        await until_gone(pool, lost.pid)
        notes = pool.starmap(workload.note, [(str(others), i) for i in range(50)])
        staying.release()
        retry_task = await meeting.next()
        assert (retry_task.pid, retry_task.token) == (staying.pid, lost.token)
        assert lines(others) == []
        retry_task.release()
        assert await reading == [0, 1]
        assert len(await notes) == 50


@pytest.mark.usefixtures("_no_new_workers")
async def test_a_worker_that_was_kept_free_goes_on_once_another_runs_the_retry_task(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "ran")
    async with Meeting() as meeting, Pool(3) as pool:
        arguments = (1, path, meeting.port)
        calls = [asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))]
        kept = await meeting.next()
        calls += [asyncio.ensure_future(pool.apply(workload.meet_blocking, (meeting.port,)))]
        blocked = await meeting.next()
        calls += [asyncio.ensure_future(pool.apply(attempts.meet_each_time, arguments, retries=1))]
        lost = await meeting.next()
        os.kill(lost.pid, signal.SIGKILL)
        await until_gone(pool, lost.pid)
        other = asyncio.ensure_future(pool.apply(workload.where))
        await asyncio.sleep(0)  # it waits: one worker is kept free, the other has no room
        blocked.release()
        retry_task = await meeting.next()
        assert retry_task.pid == blocked.pid
        assert await other == kept.pid
        retry_task.release()
        kept.release()
        await asyncio.gather(*calls)


async def until_gone(pool: Pool, pid: int) -> None:
    """Until the pool itself knows that a worker is gone."""
    while pid in {process.pid for process in pool.processes}:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)


# -- inputs, queues, schedulers, limits ------------------------------------------------------------


async def test_iterators_and_async_iterables_have_retries_too(tmp_path: Path) -> None:
    path = tmp_path / "ran"

    async def later() -> AsyncIterator[tuple[int, str, int]]:
        for i in range(20, 40):
            yield i, str(path), int(i == 30)

    async with Pool(2) as pool:
        generator = ((i, str(path), int(i == 10)) for i in range(20))
        found = [i async for i in pool.starmap(attempts.survive, generator, retries=1)]
        assert found == list(range(20))
        assert await pool.starmap(attempts.survive, later(), retries=1) == list(range(20, 40))
        assert attempts_of(path)[10] == attempts_of(path)[30] == 2


async def test_a_scheduler_sees_a_retried_task_scheduled_and_completed_once(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    scheduler = ByParity()
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        items = [(i, str(path), 1 + (i == 3)) for i in range(6)]
        found = await outcomes(pool.starmap(attempts.survive, items, retries=1))
        assert isinstance(found[3], WorkerLostError)
        assert [*found[:3], *found[4:]] == [0, 1, 2, 4, 5]
        assert await pool.apply(attempts.survive, (6, str(path)), retries=1) == 6
        assert len(scheduler.scheduled) == 7
        assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
        assert attempts_of(path) == dict.fromkeys(range(7), 2)


async def test_with_several_queues_results_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(2, queuecount=2) as pool:
        items = [(i, str(path), int(i in (4, 9))) for i in range(20)]
        assert await pool.starmap(attempts.survive, items, retries=2) == list(range(20))


async def test_workers_of_one_task_each_run_one_attempt_each(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Pool(2, maxtasksperchild=1) as pool:
        items = [(i, str(path)) for i in range(4)]
        assert await pool.starmap(attempts.survive, items, retries=1) == list(range(4))
        assert attempts_of(path) == dict.fromkeys(range(4), 2)
        assert set(Counter(pids_in(path)).values()) == {1}


async def test_retry_tasks_count_among_the_tasks_that_a_worker_may_run(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(2, maxtasksperchild=2) as pool:
        items = [(i, str(path), meeting.port) for i in range(4)]
        reading = asyncio.ensure_future(
            pool.starmap(attempts.meet_each_time, items, retries=1).results()
        )
        for pid in {arrival.pid for arrival in await meeting.first(4)}:
            os.kill(pid, signal.SIGKILL)
        held = await meeting.next()
        await meeting.release_all(3)  # none of them in the worker of the first
        held.release()
        assert await reading == list(range(4))
        assert sorted(Counter(pids_in(path)).values()) == [1, 1, 2, 2, 2]


# -- the end: of the pool, of a call ---------------------------------------------------------------


async def test_terminate_fails_retry_tasks_that_run_and_those_that_wait(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1) as pool:
        items = [(i, str(path), meeting.port) for i in range(3)]
        reading = asyncio.ensure_future(
            outcomes(pool.starmap(attempts.meet_each_time, items, retries=5))
        )
        call = asyncio.ensure_future(
            pool.apply(attempts.meet_each_time, (3, str(path), meeting.port), retries=5)
        )
        await lose_together(meeting, 4)
        await meeting.next()
        pool.terminate()
        assert [type(error) for error in await reading] == [PoolTerminatedError] * 3
        with pytest.raises(PoolTerminatedError):
            await call
        await pool.join()
        assert sum(attempts_of(path).values()) == 5


async def test_close_and_join_finish_retry_tasks(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting:
        pool = Pool(1)
        items = [(i, str(path), meeting.port) for i in range(3)]
        results = pool.starmap(attempts.meet_each_time, items, retries=1)
        await lose_together(meeting, 3)
        retry_task = await meeting.next()
        pool.close()
        joining = asyncio.ensure_future(pool.join())
        retry_task.release()
        await meeting.release_all(2)
        await joining
        assert await results == [0, 1, 2]
        assert attempts_of(path) == dict.fromkeys(range(3), 2)


async def test_a_pool_that_cannot_replace_its_worker_fails_retry_tasks_with_the_cause(
    tmp_path: Path,
) -> None:
    path, started = tmp_path / "ran", tmp_path / "started"
    async with (
        Meeting() as meeting,
        Pool(
            1, initializer=mishaps.initialize_once, initargs=(str(started), "RuntimeError")
        ) as pool,
    ):
        items = [(i, str(path), meeting.port) for i in range(3)]
        results = pool.starmap(attempts.meet_each_time, items, retries=5)
        await lose_together(meeting, 3)
        for error in await outcomes(results):
            assert isinstance(error, ProxyException)
            assert "once only" in str(error)
        assert attempts_of(path) == dict.fromkeys(range(3), 1)


async def test_a_call_that_is_cancelled_during_its_retry_is_cancelled_in_the_worker(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        arguments = (1, str(path), meeting.port)
        call = asyncio.ensure_future(pool.apply(attempts.meet_each_time, arguments, retries=1))
        await lose_together(meeting, 1)
        retry_task = await meeting.next()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await retry_task.gone
        assert await pool.apply(workload.where) == retry_task.pid


async def test_a_call_whose_caller_gave_up_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1) as pool:
        arguments = (1, str(path), meeting.port)
        call = asyncio.ensure_future(
            pool.apply(attempts.meet_holding_the_loop, arguments, retries=3)
        )
        arrival = await meeting.next()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        os.kill(arrival.pid, signal.SIGKILL)
        assert await pool.apply(workload.where) != arrival.pid
        assert attempts_of(path) == {1: 1}


@pytest.mark.usefixtures("_no_new_workers")
async def test_a_call_that_is_cancelled_while_it_waits_for_a_retry_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with Meeting() as meeting, Pool(2) as pool:
        held = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, "held")))
        await meeting.next()
        argument = workload.Multiplier(2)
        watch = weakref.ref(argument)
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, argument), retries=9))
        del argument
        lost = await meeting.next()
        os.kill(lost.pid, signal.SIGKILL)
        await until_gone(pool, lost.pid)
        assert watch() is not None
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        del call
        assert await pool.apply(workload.two) == 2  # the worker that was kept for it has other work
        gc.collect()
        assert watch() is None
        pool.close()
        held.cancel()
        await asyncio.wait({held})
        await pool.join()
