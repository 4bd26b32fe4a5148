"""`submit`, and what it has in common with `apply`: a call is a future that is under way."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_priority import FirstQueue

import aiomultiprocess
import mishaps
import workload
from aiomultiprocess import Call, Pool, PoolTerminatedError, ProxyException, WorkerLostError
from support import Meeting, lines

pytestmark = pytest.mark.usefixtures("backend")


def submit(pool: Pool, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    return pool.submit(func, *args)


def apply(pool: Pool, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    return pool.apply(func, args)


both = pytest.mark.parametrize("submit", [submit, apply])


def without_package(error: BaseException) -> list[str]:
    """The files of the traceback; the package's own are a failure."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = os.path.dirname(aiomultiprocess.__file__)
    assert not any(file.startswith(ours) for file in files), files
    return files


# -- a call --------------------------------------------------------------------------------------


async def test_submit_passes_arguments_as_they_are() -> None:
    async with Pool(1) as pool:
        call = pool.submit(workload.describe, 1, "two", func=3, args=4, priority=5)
        assert isinstance(call, Call)
        assert isinstance(call, asyncio.Future)
        assert await call == ((1, "two"), {"func": 3, "args": 4, "priority": 5})


@both
async def test_a_call_is_under_way_before_it_is_awaited(submit: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.meet, meeting.port)
        (await meeting.arrivals.get()).release()
        assert await call == "go"


@both
async def test_a_call_gives_its_result_to_all_who_await_it(submit: Any) -> None:
    async def wait(call: asyncio.Future[Any]) -> Any:
        return await call

    async with Pool(1) as pool:
        call = submit(pool, workload.double, 2)
        waiting = [asyncio.create_task(wait(call)) for _ in range(3)]
        assert await asyncio.gather(*waiting) == [4, 4, 4]
        assert await call == call.result() == 4


@both
async def test_a_call_raises_the_same_error_each_time(submit: Any) -> None:
    async with Pool(1) as pool:
        call = submit(pool, mishaps.fail_at_once, "again")
        errors = []
        for _ in range(3):
            with pytest.raises(ProxyException) as raised:
                await call
            errors.append(raised.value)
            assert without_package(raised.value) == [__file__]
        assert errors[0] is errors[1] is errors[2] is call.exception()


@both
async def test_asyncio_s_functions_take_a_call(submit: Any) -> None:
    async with Pool(2) as pool:
        calls = [submit(pool, workload.double, number) for number in range(4)]
        assert await asyncio.wait_for(calls[0], 60) == 0
        assert await asyncio.shield(calls[1]) == 2
        done = [await first for first in asyncio.as_completed(calls[2:])]
        assert sorted(done) == [4, 6]
        assert await asyncio.gather(*calls) == [0, 2, 4, 6]


async def test_asyncio_wait_takes_what_submit_returns() -> None:
    async with Pool(2) as pool:
        calls = [pool.submit(workload.double, number) for number in range(4)]
        done, pending = await asyncio.wait(calls)
        assert done == set(calls)
        assert not pending


@both
async def test_gather_needs_no_task_for_a_call(submit: Any) -> None:
    async with Pool(1) as pool:
        before = asyncio.all_tasks()
        gathered = asyncio.gather(*[submit(pool, workload.double, n) for n in range(100)])
        assert asyncio.all_tasks() == before
        assert await gathered == [2 * number for number in range(100)]


@both
async def test_a_call_calls_its_callbacks(submit: Any) -> None:
    async with Pool(1) as pool:
        called: asyncio.Queue[Any] = asyncio.Queue()
        call = submit(pool, workload.two)
        call.add_done_callback(called.put_nowait)
        assert await called.get() is call


async def test_a_call_keeps_its_pool() -> None:
    async with Meeting() as meeting:
        call = Pool(1).submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        gc.collect()
        pool: Any = call.pool
        arrival.release()
        assert await call == "go"
        assert call.pool is None  # one that is done does not
        pool.terminate()
        await pool.join()


async def test_a_call_works_under_every_start_method(start_method: str) -> None:
    async with Pool(2) as pool:
        calls = [pool.submit(workload.double, 1), pool.apply(workload.double, (2,), priority=1)]
        assert await asyncio.gather(*calls) == [2, 4]
        calls[0] = pool.submit(workload.wait_for_ever)
        assert await pool.shutdown(0.05) == 1


# -- refusals ------------------------------------------------------------------------------------


async def test_submit_refuses_at_once() -> None:
    pool = Pool(1)
    with pytest.raises(TypeError, match="func must be callable, got int: 3"):
        pool.submit(3)  # type: ignore[call-overload]
    with pytest.raises(pickle.PicklingError, match="define it at the top level") as raised:
        pool.submit(lambda: 1)
    without_package(raised.value.__cause__ or raised.value)
    pool.terminate()
    with pytest.raises(RuntimeError, match="pool is closed"):
        pool.submit(workload.two)
    await pool.join()


def test_submit_needs_the_loop_of_its_pool() -> None:
    pool = Pool(1)
    with pytest.raises(RuntimeError, match="no event loop runs"):
        pool.submit(workload.two)

    async def use() -> int:
        result = await pool.submit(workload.two)
        await pool.shutdown()
        return result

    assert asyncio.run(use()) == 2
    pool = Pool(1)

    async def elsewhere() -> None:
        pool.submit(workload.two)

    async def main() -> None:
        await pool.submit(workload.two)
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
        await pool.shutdown()

    asyncio.run(main())


@both
async def test_an_argument_that_cannot_be_sent_is_the_error_of_the_call(submit: Any) -> None:
    async with Pool(1) as pool:
        call = submit(pool, workload.identity, lambda: 1)
        with pytest.raises(pickle.PicklingError, match="an argument of a call of") as raised:
            await call
        assert without_package(raised.value) == [__file__]


# -- cancelling ----------------------------------------------------------------------------------


@both
async def test_cancelling_a_call_cancels_it_in_the_worker(submit: Any, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.clean_up, str(notes), meeting.port, "up")
        arrival = await meeting.arrivals.get()
        assert call.cancel()
        assert call.cancelled()  # at once
        assert not call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await arrival.gone
        pool.close()
        await pool.join()
    assert lines(notes) == ["cleaned up"]


@both
async def test_cancelling_one_awaiter_cancels_the_call_for_all(submit: Any) -> None:
    async def wait(call: asyncio.Future[Any]) -> Any:
        return await call

    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        first, second = (asyncio.create_task(wait(call)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.cancelled()
        await arrival.gone


@pytest.mark.row("H86")
@both
async def test_another_thread_may_not_cancel_a_call(submit: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        with pytest.raises(RuntimeError, match=r"use loop.call_soon_threadsafe\(call.cancel\)"):
            await asyncio.to_thread(call.cancel)
        await asyncio.to_thread(asyncio.get_running_loop().call_soon_threadsafe, call.cancel)
        await arrival.gone
        assert call.cancelled()


@both
async def test_shield_protects_a_call(submit: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(call), 0.01)
        assert not call.done()
        arrival.release()
        assert await call == "go"


@both
@pytest.mark.parametrize("scheduled", [False, True])
async def test_a_cancelled_call_that_waits_never_starts(
    submit: Any, scheduled: bool, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    scheduler = FirstQueue() if scheduled else None
    async with Meeting() as meeting, Pool(1, childconcurrency=1, scheduler=scheduler) as pool:
        first = submit(pool, workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        waiting = [submit(pool, workload.note, str(notes), number) for number in range(9)]
        for call in waiting[::2]:
            call.cancel()
        arrival.release()
        await first
        await asyncio.gather(*waiting, return_exceptions=True)
    assert lines(notes) == ["1", "3", "5", "7"]


@pytest.mark.row("H88")
async def test_cancelled_calls_that_wait_are_dropped_from_their_queue() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        calls = [pool.submit(workload.identity, bytes(1000)) for _ in range(1000)]
        assert pool._engine is not None
        [queue] = pool._engine.queues.values()
        [source] = [source for source in queue.calls.values() if source.left]
        for call in calls:
            call.cancel()
        await asyncio.sleep(0)  # what is cancelled is stopped at the end of the turn (ENGINE-4)
        assert source.left == 0
        assert not source._open
        arrival.release()
        assert await first == "go"
        assert await pool.apply(workload.double, (1,)) == 2


async def test_a_call_of_a_function_with_state_leaves_nothing_when_it_is_cancelled() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        pool.submit(functools.partial(workload.double, 3)).cancel()
        await asyncio.sleep(0)
        assert pool._engine is not None
        [queue] = pool._engine.queues.values()
        assert len(queue.calls) == len(pool._engine._open) == 1
        arrival.release()
        await first


async def test_a_call_whose_worker_dies_after_it_was_cancelled_stays_cancelled() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        call.cancel()
        os.kill(arrival.pid, signal.SIGKILL)
        assert await pool.apply(workload.two) == 2
        assert call.cancelled()


async def test_a_call_that_its_arguments_cancel_while_they_are_pickled_is_cancelled() -> None:
    calls: list[asyncio.Future[Any]] = []

    class Canceller:
        def __reduce__(self) -> Any:
            for call in calls:
                call.cancel()
            return int, ()

    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        calls += [pool.submit(workload.identity, Canceller()) for _ in range(3)]
        arrival.release()
        await first
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        assert await pool.apply(workload.two) == 2
        await pool.shutdown()


# -- the end of the pool -------------------------------------------------------------------------


@both
async def test_a_lost_worker_fails_its_calls(submit: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = submit(pool, workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        os.kill(arrival.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await call


async def gathered(calls: list[asyncio.Future[Any]]) -> Any:
    return await asyncio.gather(*calls)


KEPT: dict[str, Callable[[list[asyncio.Future[Any]]], Any]] = {
    "the calls": lambda calls: calls,
    "a gather of them": lambda calls: asyncio.gather(*calls),
    "a gather in a gather": lambda calls: asyncio.gather(asyncio.gather(*calls), calls[0]),
    "shields": lambda calls: [asyncio.shield(call) for call in calls],
    "a task that awaits a gather": lambda calls: asyncio.create_task(gathered(calls)),
    "tasks that are awaited": lambda calls: asyncio.gather(
        *[asyncio.create_task(gathered([call])) for call in calls]
    ),
}


@both
@pytest.mark.parametrize("kept", KEPT)
async def test_calls_that_end_with_their_pool_are_not_reported(
    submit: Any, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        waiting = KEPT[kept]([submit(pool, workload.wait_for_ever) for _ in range(3)])
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    del waiting
    gc.collect()
    assert caplog.text == ""


@both
@pytest.mark.parametrize("through", ["the call", "a gather"])
async def test_other_errors_of_calls_that_are_never_awaited_are_reported(
    submit: Any, through: str
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report))
    async with Pool(1) as pool:
        ended = asyncio.Event()
        call = submit(pool, mishaps.fail_at_once, "aloud")
        waiting = call if through == "the call" else asyncio.gather(call)
        waiting.add_done_callback(lambda _: ended.set())
        await ended.wait()
    await asyncio.sleep(0)
    del call, waiting
    gc.collect()
    [report] = reports
    assert isinstance(report["exception"], ProxyException)


@both
async def test_a_caller_that_awaits_after_the_end_gets_the_error(submit: Any) -> None:
    async with Pool(1) as pool:
        calls = [submit(pool, workload.wait_for_ever) for _ in range(2)]
        together = asyncio.gather(*calls)
        await pool.apply(workload.two)
    for pending in (*calls, together):
        with pytest.raises(PoolTerminatedError):
            await pending


@both
def test_a_call_can_be_cancelled_after_its_loop_was_closed(submit: Any) -> None:
    pool = Pool(1)

    async def start() -> asyncio.Future[Any]:
        await pool.apply(workload.two)
        call: asyncio.Future[Any] = submit(pool, workload.wait_for_ever)
        return call

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(start())
    loop.close()
    assert call.cancel()
    pool.terminate()


async def test_call_is_a_public_name() -> None:
    assert aiomultiprocess.Call is Call is aiomultiprocess.pool.Call
    assert Call[int] is not None
