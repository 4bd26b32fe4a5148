"""A pool ends, or a caller gives up: all calls are settled, nothing is left.

A number such as D38 is that of the row in the catalogue of failures.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, PoolTerminatedError, RoundRobin
from support import Meeting, lines, outcomes, wait_for_exit

pytestmark = pytest.mark.usefixtures("backend")


# -- the end of a pool -----------------------------------------------------------------------------


class Ending(RoundRobin):
    """Ends its pool when it is asked for the queue of a task, or notified of the end of one."""

    def __init__(self, *, asked: bool = False, notified: bool = False) -> None:
        super().__init__()
        self.asked, self.notified = asked, notified
        self.end: Callable[[], None] = lambda: None

    def schedule_task(self, *args: Any) -> Any:
        if self.asked:
            self.end()
        return super().schedule_task(*args)

    def complete_task(self, task_id: Any) -> None:
        super().complete_task(task_id)
        if self.notified:
            self.end()


@pytest.mark.parametrize("end", ["close", "terminate"])
@pytest.mark.parametrize("what", ["arguments", "scheduler", "input"])
async def test_a_call_that_ends_its_pool_while_it_is_made_is_refused(what: str, end: str) -> None:
    scheduler = Ending(asked=what == "scheduler")
    pool = Pool(1, scheduler=scheduler)
    scheduler.end = getattr(pool, end)

    def ending() -> Iterator[int]:
        scheduler.end()
        yield 4

    class Input:
        def __iter__(self) -> Iterator[int]:
            return ending()

    async def call() -> Any:
        if what == "input":
            return await pool.map(workload.double, Input())
        args: Any = ending() if what == "arguments" else (4,)
        return await pool.apply(workload.double, args)

    with pytest.raises(RuntimeError, match="pool is closed"):
        await call()
    await pool.join()


async def test_a_pool_may_be_terminated_by_its_scheduler() -> None:
    scheduler = Ending(notified=True)
    pool = Pool(1, scheduler=scheduler)
    scheduler.end = pool.terminate
    with pytest.raises(PoolTerminatedError):
        await pool.map(workload.double, range(2000))
    await pool.join()


async def test_a_pool_may_be_terminated_by_a_result(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting:
        pool = Pool(1)
        waiting = asyncio.ensure_future(pool.apply(workload.clean_up, (str(path), meeting.port)))
        await meeting.next()
        mishaps.Revived.act = pool.terminate
        with pytest.raises(PoolTerminatedError):
            await pool.apply(mishaps.make_revived)
        await pool.join()
        with pytest.raises(PoolTerminatedError):
            await waiting
    assert len(lines(path)) == 1  # its worker was asked to end, and not killed


async def test_close_lets_all_tasks_finish(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting:
        pool = Pool(2, childconcurrency=2)
        items = [(str(path), meeting.port, i) for i in range(10)]
        pool.starmap(workload.note_and_meet, items)  # never read
        call = asyncio.ensure_future(pool.apply(workload.note_and_meet, items[0]))
        await asyncio.sleep(0)
        pool.close()
        joining = asyncio.ensure_future(pool.join())
        await meeting.release_all(11)
        await joining
        assert await call == 0
        assert sorted(map(int, lines(path))) == [0, *range(10)]
        assert pool.processes == {}


async def test_close_does_not_wait_for_a_reader_that_left_after_an_error() -> None:
    async def read_some(pool: Pool) -> None:
        iterator = aiter(pool.starmap(mishaps.fail_at, zip(itertools.repeat(1), itertools.count())))
        assert await anext(iterator) == 0
        with pytest.raises(ValueError, match="1 is bad"):
            await anext(iterator)

    pool = Pool(1)
    await read_some(pool)
    pool.close()
    async with asyncio.timeout(20):
        await pool.join()


async def test_results_may_be_read_after_the_pool_has_gone() -> None:
    pool = Pool(1)
    results = pool.map(workload.double, range(10))
    pool.close()
    await pool.join()
    assert await results == [2 * i for i in range(10)]
    assert [value async for value in results] == [2 * i for i in range(10)]


@pytest.mark.row("B22")
async def test_terminate_fails_pending_calls_and_runs_finally_blocks(tmp_path: Path) -> None:
    path = tmp_path / "cleaned"
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2)
        results = pool.starmap(workload.clean_up, [(str(path), meeting.port, i) for i in range(5)])
        tasks = [
            asyncio.ensure_future(results),
            asyncio.ensure_future(outcomes(results)),
            asyncio.ensure_future(pool.apply(workload.two)),
        ]
        await meeting.first(2)
        pool.terminate()
        whole, each, call = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(whole, PoolTerminatedError)
        assert isinstance(call, PoolTerminatedError)
        assert [type(error) for error in each] == [PoolTerminatedError] * 5
        await pool.join()
        assert sorted(lines(path)) == ["cleaned 0", "cleaned 1"]


async def test_terminate_keeps_the_results_that_are_there() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=1)
        results = pool.starmap(workload.meet_if_first, [(meeting.port, i) for i in (1, 2, 0, 3)])
        iterator = aiter(results)
        assert [await anext(iterator), await anext(iterator)] == [1, 2]
        await meeting.next()
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await anext(iterator)
        assert (await outcomes(results))[:2] == [1, 2]
        await pool.join()


@pytest.mark.row("B22")
async def test_terminate_ends_a_worker_that_holds_the_gil() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        task = asyncio.ensure_future(pool.apply(mishaps.hold_the_gil, (meeting.port,)))
        await meeting.next()
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await task
        async with asyncio.timeout(8):
            await pool.join()


@pytest.mark.parametrize("ends", ["close close", "terminate terminate", "close terminate"])
async def test_ending_twice_is_no_error(ends: str) -> None:
    pool = Pool(1)
    for end in ends.split():
        getattr(pool, end)()
    await pool.join()
    await pool.join()
    assert not pool.running


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_may_be_ended_before_its_workers_have_started(end: str) -> None:
    pool = Pool(3)
    getattr(pool, end)()
    await pool.join()


def test_a_pool_that_never_had_a_loop_may_be_ended() -> None:
    for end in ("close", "terminate"):
        pool = Pool(1)
        getattr(pool, end)()
        asyncio.run(pool.join())


@pytest.mark.row("E46")
async def test_an_exception_in_the_with_block_ends_the_pool_and_passes() -> None:
    async with Meeting() as meeting:
        results: Any = None

        async def program() -> None:
            nonlocal results
            async with Pool(1) as pool:
                results = pool.starmap(workload.meet, [(meeting.port,)])
                await meeting.next()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await program()
        with pytest.raises(PoolTerminatedError):
            await results


@pytest.mark.row("E46")
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_with_block_that_is_cut_off_ends_the_pool(how: str) -> None:
    async with Meeting() as meeting:
        pids: list[int] = []
        limit = asyncio.timeout(None)

        async def program() -> None:
            async with limit, Pool(2) as pool:
                pids.extend(process.pid or 0 for process in pool.processes)
                await pool.starmap(workload.meet, [(meeting.port, i) for i in range(50)])

        task = asyncio.ensure_future(program())
        await meeting.next()
        if how == "cancel":
            task.cancel()
        else:
            limit.reschedule(asyncio.get_running_loop().time())
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await task
        await wait_for_exit(pids, within=0)


# -- D38: calls that are given up ------------------------------------------------------------------


@pytest.mark.row("D38")
async def test_a_cancelled_apply_cancels_the_call_and_frees_its_slot() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        task = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await arrival.gone  # the worker cancelled it
        assert await pool.apply(workload.two) == 2
        assert await pool.apply(workload.tasks_alive) == 1


@pytest.mark.row("D38")
async def test_an_apply_that_is_cancelled_before_it_is_sent_never_runs(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        blocking = asyncio.ensure_future(pool.apply(workload.meet_blocking, (meeting.port,)))
        arrival = await meeting.next()
        note = functools.partial(workload.note, str(path))
        calls = [asyncio.ensure_future(pool.apply(note, (i,))) for i in range(50)]
        await asyncio.sleep(0)
        for call in calls[1::2]:
            call.cancel()
        arrival.release()
        found = await asyncio.gather(blocking, *calls, return_exceptions=True)
        assert sum(isinstance(value, asyncio.CancelledError) for value in found) == 25
        assert lines(path) == [str(i) for i in range(0, 50, 2)]


@pytest.mark.row("D38")
async def test_the_late_result_of_a_timed_out_apply_is_dropped() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = asyncio.ensure_future(pool.apply(workload.meet_blocking, (meeting.port,)))
        arrival = await meeting.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.05)  # the worker cannot be interrupted
        arrival.release("late")
        assert await pool.apply(workload.double, ("in time ",)) == "in time in time "
        pool.close()
        await pool.join()


@pytest.mark.row("D38")
async def test_calls_that_are_given_up_leave_nothing_behind() -> None:
    async with Pool(2) as pool:
        await give_up_calls(pool)  # what is made once was made
        before = futures_alive()
        arguments = await give_up_calls(pool)
        assert await pool.map(workload.double, range(10)) == [2 * i for i in range(10)]
        assert await pool.map(workload.tasks_alive, range(4)) == [1] * 4
        assert futures_alive() == before
        assert len(arguments) == 0


async def give_up_calls(pool: Pool) -> weakref.WeakSet[frozenset[int]]:
    """Begin and cancel 200 calls; once workers know, their arguments, if something keeps them."""
    arguments: weakref.WeakSet[frozenset[int]] = weakref.WeakSet()
    for at in range(20):
        calls = []
        for i in range(10):
            argument = frozenset({at, 20 + i})
            arguments.add(argument)
            calls.append(asyncio.ensure_future(pool.apply(workload.use_timeout, (argument,))))
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    while any(worker.chunks for worker in pool.processes):  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)
    return arguments


def futures_alive() -> int:
    gc.collect()
    return sum(issubclass(type(found), asyncio.Future) for found in gc.get_objects())
