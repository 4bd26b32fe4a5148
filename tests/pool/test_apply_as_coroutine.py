"""What `apply` returns passes for a coroutine: programs of 0.9.1 give it to whatever takes one."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import gc
import inspect
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

import aiomultiprocess
import mishaps
import workload
from aiomultiprocess import Call, Pool, PoolTerminatedError, ProxyException
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


def assert_no_frame_of_ours(error: BaseException) -> None:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = os.path.dirname(aiomultiprocess.__file__)
    assert not any(file.startswith(ours) for file in files), files


async def in_a_task(call: Any) -> Any:
    return await asyncio.create_task(call)


async def in_a_task_group(call: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)
    return task.result()


async def in_an_eager_task(call: Any) -> Any:
    if sys.version_info < (3, 12):
        return await call
    loop = asyncio.get_running_loop()
    return await asyncio.Task(call, loop=loop, eager_start=True)


async def in_a_coroutine(call: Any) -> Any:
    return await call


async def in_a_coroutine_that_ignores(call: Any) -> None:
    with contextlib.suppress(ProxyException):
        await call


async def in_gather(call: Any) -> Any:
    [result] = await asyncio.gather(call)
    return result


async def with_a_limit(call: Any) -> Any:
    return await asyncio.wait_for(call, 60)


WAYS: list[Callable[[Any], Any]] = [
    in_a_task,
    in_a_task_group,
    in_an_eager_task,
    in_a_coroutine,
    in_gather,
    with_a_limit,
]
everywhere = pytest.mark.parametrize("run", WAYS)


# -- running it ----------------------------------------------------------------------------------


@everywhere
async def test_its_result_comes_through(run: Any) -> None:
    async with Pool(1) as pool:
        assert await run(pool.apply(workload.double, (3,))) == 6
        call = pool.apply(workload.double, (3,))
        await call
        assert await run(call) == 6  # which is done


@everywhere
async def test_its_error_comes_through_without_frames_of_ours(run: Any) -> None:
    async with Pool(1) as pool:
        for done in (False, True):
            call = pool.apply(mishaps.fail_at_once, ("so",))
            if done:
                await in_a_coroutine_that_ignores(call)
            with pytest.raises((ProxyException, ExceptionGroup)) as raised:
                await run(call)
            error: BaseException = raised.value
            if isinstance(error, ExceptionGroup):
                [error] = error.exceptions
            assert isinstance(error, ProxyException)
            assert_no_frame_of_ours(error)


@everywhere
async def test_cancelling_what_runs_it_cancels_it_in_the_worker(run: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        task = asyncio.create_task(run(call))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await arrival.gone
        assert call.cancelled()


async def test_a_task_that_is_cancelled_before_its_first_step_cancels_the_call() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        task = asyncio.create_task(call)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.cancelled()
        await arrival.gone


async def test_two_tasks_may_run_the_same_call() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        tasks = [asyncio.create_task(call) for _ in range(2)]
        await asyncio.sleep(0)
        future = asyncio.ensure_future(call)  # from now on it is no coroutine
        arrival.release()
        assert await asyncio.gather(*tasks, future) == ["go"] * 3


async def test_a_task_that_runs_what_was_taken_as_a_future_can_be_cancelled() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        assert asyncio.ensure_future(call) is call
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.cancelled()
        await arrival.gone


async def test_a_task_group_that_takes_no_more_cancels_the_call() -> None:
    group = asyncio.TaskGroup()
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        async with group:
            pass
        with pytest.raises(RuntimeError):
            group.create_task(call)
        if not call.done():  # before 3.13 a TaskGroup does not close what it refuses
            call.close()
        assert call.cancelled()
        await arrival.gone


async def test_a_failing_task_group_cancels_its_calls() -> None:
    async with Meeting() as meeting, Pool(2) as pool:

        async def fail_beside_a_call() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.apply(workload.meet, (meeting.port,)))
                arrivals.append(await meeting.arrivals.get())
                group.create_task(pool.apply(mishaps.fail_at_once, ("so",)))

        arrivals: list[Any] = []
        with pytest.raises(ExceptionGroup) as raised:
            await fail_beside_a_call()
        [error] = raised.value.exceptions
        assert isinstance(error, ProxyException)
        await arrivals[0].gone


async def test_anyio_s_task_groups_run_it() -> None:
    anyio = pytest.importorskip("anyio")
    async with Pool(1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(pool.apply, workload.two)
        async with Meeting() as meeting, anyio.create_task_group() as group:
            group.start_soon(pool.apply, workload.meet, (meeting.port,))
            arrival = await meeting.arrivals.get()
            group.cancel_scope.cancel()
        await arrival.gone


async def test_asyncio_wait_refuses_it_as_it_refuses_coroutines() -> None:
    async with Pool(1) as pool:
        call = pool.apply(workload.two)
        with pytest.raises(TypeError, match="coroutines is forbidden"):
            await asyncio.wait([call])
        done, _ = await asyncio.wait([asyncio.create_task(call)])
        assert [task.result() for task in done] == [2]


@pytest.mark.row("H85")
async def test_asyncio_wait_takes_what_ensure_future_and_gather_took() -> None:
    async with Pool(1) as pool:
        calls = [asyncio.ensure_future(pool.apply(workload.two)) for _ in range(3)]
        done, pending = await asyncio.wait(calls)
        assert done == set(calls)
        assert not pending
        calls = [pool.apply(workload.two) for _ in range(3)]
        together = asyncio.gather(*calls)
        await asyncio.wait([*calls, together])
        assert await together == [2, 2, 2]


async def test_ensure_future_makes_a_future_that_is_no_coroutine() -> None:
    async with Pool(1) as pool:
        call = pool.apply(workload.two)
        future = asyncio.ensure_future(call)
        assert future is call
        assert isinstance(future, Call)
        assert not asyncio.iscoroutine(future)
        with pytest.raises(TypeError, match="a coroutine was expected"):
            await asyncio.create_task(future)  # type: ignore[arg-type]
        assert await future == await call == 2


async def test_a_call_that_was_awaited_passes_for_a_coroutine_still() -> None:
    async with Pool(1) as pool:
        call = pool.apply(workload.two)
        assert await call == 2
        assert asyncio.iscoroutine(call)
        assert await asyncio.create_task(call) == 2


async def test_a_task_that_runs_it_can_be_shown() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.create_task(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.arrivals.get()
        assert "Pool.apply" in repr(task)
        assert task.get_stack() == []
        assert inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_SUSPENDED  # type: ignore[arg-type]
        arrival.release()
        await task
        assert "finished" in repr(task)


# -- its methods ---------------------------------------------------------------------------------


async def test_its_methods_are_those_of_a_coroutine_and_have_no_state() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        assert asyncio.iscoroutine(call)
        assert inspect.isawaitable(call)
        assert isinstance(call, collections.abc.Coroutine)
        assert isinstance(call, asyncio.Future)
        assert isinstance(call, Call)
        assert call.send(None) is call is call.send(None)
        call._asyncio_future_blocking = False
        (await meeting.arrivals.get()).release()
        await call
        for _ in range(2):
            with pytest.raises(StopIteration) as stop:
                call.send(None)
            assert stop.value.value == "go"
        with pytest.raises(LookupError, match="mine"):
            call.throw(LookupError("mine"))
        call.close()
        assert call.result() == "go"


@pytest.mark.parametrize(
    "arguments",
    [
        (LookupError("mine"),),
        (LookupError, "mine"),
        (LookupError, LookupError("mine")),
        (LookupError, "mine", None),
    ],
)
async def test_what_is_thrown_into_it_ends_it_in_the_worker(arguments: Any) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        with pytest.raises(LookupError, match="mine"):
            call.throw(*arguments)
        assert call.cancelled()
        await arrival.gone


async def test_closing_it_cancels_it_in_the_worker() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()
        call.close()
        assert call.cancelled()
        await arrival.gone


def test_apply_counts_as_a_coroutine_function() -> None:
    if sys.version_info < (3, 14):  # deprecated there
        assert asyncio.iscoroutinefunction(Pool.apply)
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(Pool.apply)
        assert inspect.iscoroutinefunction(Pool(1).apply)
    double = mock.create_autospec(Pool)
    assert isinstance(double.apply, mock.AsyncMock)


# -- refusals ------------------------------------------------------------------------------------


async def test_what_apply_refuses_is_the_error_of_the_call() -> None:
    async with Pool(1) as pool:
        refused = await asyncio.gather(
            pool.apply(3),  # type: ignore[call-overload]
            pool.apply(lambda: 1),
            pool.apply(workload.two, 3),  # type: ignore[arg-type]
            pool.apply(workload.two, kwds=3),  # type: ignore[call-overload]
            pool.apply(workload.two, retries=-1),
            pool.apply(workload.two, retries="1"),  # type: ignore[call-overload]
            pool.apply(workload.two, priority=0.5),  # type: ignore[call-overload]
            pool.apply(workload.two),
            return_exceptions=True,
        )
    kinds = [type(error) for error in refused[:-1]]
    assert kinds == [
        TypeError,
        pickle.PicklingError,
        TypeError,
        TypeError,
        ValueError,
        TypeError,
        TypeError,
    ]
    assert refused[-1] == 2
    for error in refused[:-1]:
        assert isinstance(error, Exception)
        assert_no_frame_of_ours(error)


async def test_a_closed_pool_refuses_in_the_call() -> None:
    async with Pool(1) as pool:
        pool.close()
        call = pool.apply(workload.two)
        with pytest.raises(RuntimeError, match="pool is closed"):
            await call
        with pytest.raises(RuntimeError, match="pool is closed"):
            await asyncio.create_task(call)


class Interrupt:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt])
async def test_an_interrupt_passes_through_apply(interrupt: type[BaseException]) -> None:
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        with pytest.raises(interrupt):
            pool.apply(workload.identity, (Interrupt(interrupt),))
        assert await pool.apply(workload.two) == 2


async def test_a_stop_iteration_of_a_scheduler_is_the_cause_of_a_runtime_error() -> None:
    from test_priority import FirstQueue

    class Broken(FirstQueue):
        def schedule_task(self, *args: Any) -> Any:
            raise StopIteration

    async with Pool(1, scheduler=Broken()) as pool:
        with pytest.raises(RuntimeError) as raised:
            await pool.apply(workload.two)
        assert isinstance(raised.value.__cause__, StopIteration)


# -- other loops and threads ---------------------------------------------------------------------


def test_asyncio_run_takes_the_first_call_of_a_pool() -> None:
    pool = Pool(1)
    assert asyncio.run(pool.apply(workload.double, (4,))) == 8
    pool.terminate()


def test_it_is_submitted_when_a_loop_runs_it() -> None:
    pool = Pool(1)
    call = pool.apply(workload.two)
    assert pool._engine is None
    call.close()
    assert not pool.processes


async def test_run_coroutine_threadsafe_takes_it_from_another_thread() -> None:
    loop = asyncio.get_running_loop()
    async with Pool(1) as pool:
        await pool.apply(workload.two)

        def elsewhere() -> Any:
            call = pool.apply(workload.double, (5,))
            return asyncio.run_coroutine_threadsafe(call, loop).result(60)

        assert await asyncio.to_thread(elsewhere) == 10

        async def in_another_loop() -> Any:
            call = pool.apply(workload.double, (6,))
            future = asyncio.run_coroutine_threadsafe(call, loop)
            return await asyncio.wrap_future(future)

        assert await asyncio.to_thread(lambda: asyncio.run(in_another_loop())) == 12
        here = asyncio.run_coroutine_threadsafe(pool.apply(workload.two), loop)
        assert await asyncio.wrap_future(here) == 2


async def test_run_coroutine_threadsafe_can_cancel_it() -> None:
    loop = asyncio.get_running_loop()
    async with Meeting() as meeting, Pool(1) as pool:
        await pool.apply(workload.two)

        def elsewhere() -> Any:
            call = pool.apply(workload.meet, (meeting.port,))
            return asyncio.run_coroutine_threadsafe(call, loop)

        future = await asyncio.to_thread(elsewhere)
        arrival = await meeting.arrivals.get()
        future.cancel()
        await arrival.gone


async def test_the_errors_of_a_call_from_another_thread_have_no_frames_of_ours() -> None:
    loop = asyncio.get_running_loop()
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        for call in ((mishaps.fail_at_once, ("so",)), (workload.two, 3)):
            future = await asyncio.to_thread(
                lambda call=call: asyncio.run_coroutine_threadsafe(pool.apply(*call), loop)
            )
            with pytest.raises((ProxyException, TypeError)) as raised:
                await asyncio.wrap_future(future)
            assert_no_frame_of_ours(raised.value)


def test_another_loop_is_refused_when_it_runs_the_call() -> None:
    pool = Pool(1)

    async def use() -> None:
        await pool.apply(workload.two)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(pool.apply(workload.two))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        await pool.shutdown()

    asyncio.run(use())
    with pytest.raises(RuntimeError):
        asyncio.run(pool.apply(workload.two))


async def test_another_loop_cannot_run_a_call_that_is_under_way() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.arrivals.get()

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop") as raised:
                await asyncio.create_task(call)
            assert_no_frame_of_ours(raised.value)
            task = asyncio.create_task(call)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert not call.done()
        arrival.release()
        assert await call == "go"


# -- tasks that are not awaited ------------------------------------------------------------------


@pytest.mark.parametrize("started", [True, False])
async def test_a_task_of_a_call_that_ends_with_the_pool_is_not_reported(
    started: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(1)
    await pool.apply(workload.two)
    task = asyncio.create_task(pool.apply(workload.wait_for_ever))
    if started:
        await asyncio.sleep(0)
    pool.terminate()
    await pool.join()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert caplog.text == ""


async def test_a_task_group_gets_the_end_of_its_pool() -> None:
    async with Pool(1) as pool:

        async def end() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.apply(workload.wait_for_ever))
                await pool.apply(workload.two)
                pool.terminate()

        with pytest.raises(ExceptionGroup) as raised:
            await end()
        [error] = raised.value.exceptions
        assert type(error) is PoolTerminatedError
