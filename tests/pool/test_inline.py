"""`Pool(backend="inline")`: simulated workers in the loop of their pool."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import inline_targets as targets
import workload
from aiomultiprocess import (
    Pool,
    PoolExecutor,
    PoolTerminatedError,
    ProxyException,
    TaskTimeoutError,
    WorkerLostError,
    current_worker,
    set_start_method,
)
from aiomultiprocess._transport import select
from aiomultiprocess._worker import results
from aiomultiprocess._worker.results import ResultSender
from leaks import pending_futures
from support import pool_script, run_script

LIMIT = 0.01  # seconds


@pytest.fixture(autouse=True)
async def _own_events() -> None:
    targets.reset()


def inline(processes: int = 1, **arguments: Any) -> Pool:
    return Pool(processes, backend="inline", **arguments)


async def turns(count: int = 20) -> None:
    """Let callbacks run."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- this process and loop -------------------------------------------------------------------------


async def test_tasks_run_in_this_thread() -> None:
    async with inline(2) as pool:
        assert pool.backend == "inline"
        assert len(pool.processes) == 2
        here = threading.get_ident(), os.getpid()
        assert await pool.apply(targets.thread_and_process) == here
        assert [worker.pid for worker in pool.processes] == [os.getpid()] * 2
        assert all(worker.is_alive() and worker.exitcode is None for worker in pool.processes)


def test_the_inline_backend_is_used_only_where_it_is_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(select.VARIABLE, raising=False)
    assert select.select().name != "inline"
    monkeypatch.setenv(select.VARIABLE, "inline")
    assert select.select().name == "inline"


async def test_arguments_and_results_are_copies() -> None:
    thing = targets.Changeable()
    async with inline() as pool:
        changed = await pool.apply(targets.change, (thing, 5))
    assert thing.values == []
    assert changed.values == [5]
    assert changed is not thing


async def test_a_call_does_not_run_before_it_returns() -> None:
    async with inline() as pool:
        await pool.apply(workload.two)
        call = pool.apply(targets.wait_to_go_on)
        assert not targets.started.is_set()
        await targets.started.wait()
        targets.go_on.set()
        await call


async def test_a_plain_function_runs_under_the_trace_function_of_this_process() -> None:
    names: set[str] = set()

    def trace(frame: FrameType, event: str, argument: object) -> None:
        names.add(frame.f_code.co_name)

    async with inline() as pool:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            await pool.map(workload.double, range(3))
        finally:
            sys.settrace(before)
    assert "double" in names


@pytest.fixture(scope="module")
def uvloop() -> Any:
    """The module, warmed up: from its first loop on, libuv keeps a pipe for signals."""
    module = pytest.importorskip("uvloop", reason="uvloop is not for this platform")
    module.new_event_loop().close()
    return module


def test_an_inline_pool_runs_in_the_loop_of_its_program(uvloop: Any) -> None:
    async def main() -> None:
        async with inline(2) as pool:
            assert await pool.map(workload.double, range(50)) == [2 * n for n in range(50)]

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_an_executor_may_be_inline() -> None:
    with PoolExecutor(2, backend="inline") as executor:
        assert list(executor.map(workload.double, range(5))) == [0, 2, 4, 6, 8]


# -- tasks, contexts and the current worker: INLINE-1, INLINE-2 --------------------------------


async def test_tasks_do_not_see_or_change_the_context_of_their_caller() -> None:
    targets.VARIABLE.set("the caller's")
    async with inline() as pool:
        found = await pool.map(targets.set_variable, ["one", "two"])
        assert found == ["unset, then one", "unset, then two"]
        assert await pool.apply(targets.set_variable, ("three",)) == "unset, then three"
    assert targets.VARIABLE.get() == "the caller's"


async def test_tasks_see_what_the_initializer_of_their_worker_has_set() -> None:
    async with inline(initializer=targets.set_in_worker, initargs=("initial",)) as pool:
        assert await pool.apply(targets.set_variable, ("x",)) == "initial, then x"
        assert targets.VARIABLE.get() == "unset"


async def test_tasks_see_the_callers_values_of_named_context_variables() -> None:
    async with inline(contextvars=(targets.VARIABLE,)) as pool:
        targets.VARIABLE.set("sent")
        assert await pool.apply(targets.set_variable, ("x",)) == "sent, then x"
        targets.VARIABLE.set("again")
        assert await pool.map(targets.set_variable, ["y"]) == ["again, then y"]


async def test_each_item_is_a_task_of_its_own_and_the_callers_stays_current() -> None:
    this = asyncio.current_task()
    before = asyncio.all_tasks()
    async with inline() as pool:
        found = await pool.map(targets.task_and_callers, range(4))
        assert [(same, listed) for same, _, listed in found] == [(True, True)] * 4
        assert len({name for _, name, _ in found}) == 4
        assert asyncio.current_task() is this
        assert asyncio.all_tasks() == before
        call = pool.apply(targets.wait_to_go_on)
        await targets.started.wait()
        assert len(asyncio.all_tasks() - before) == 1  # a suspended item is a task of this loop
        targets.go_on.set()
        await call
    assert asyncio.all_tasks() == before


async def test_each_simulated_worker_has_an_index() -> None:
    async with inline(3, childconcurrency=2) as pool:
        assert set(await pool.map(targets.note_index, range(60))) == {0, 1, 2}
        assert [worker.index for worker in pool.stats().workers] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="outside of a worker"):
            current_worker()


async def test_functions_in_threads_know_their_worker_and_the_threads_end_with_it() -> None:
    async with inline(threads=2) as pool:
        assert await pool.map(targets.index_of_worker, range(4)) == [0] * 4
        thread, _ = await pool.apply(targets.thread_and_process)
        assert thread != threading.get_ident()
    for left in threading.enumerate():
        if left.name.startswith("aiomultiprocess-thread"):
            left.join()


async def test_two_pools_with_different_serializers_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cloudpickle")
    monkeypatch.delenv("AIOMULTIPROCESS_SERIALIZER", raising=False)
    async with inline(serializer="cloudpickle") as pool, inline(serializer="pickle") as plain:
        made = await pool.apply(lambda n: lambda: n, (5,))
        assert made() == 5
        with pytest.raises(Exception, match="cannot be sent to a worker"):
            await plain.apply(lambda: 5)
        with pytest.raises(ProxyException, match="cannot be pickled"):
            await plain.apply(targets.make_local)


# -- start ----------------------------------------------------------------------------------------


async def test_start_arguments_are_pickled_as_for_a_process_that_is_spawned() -> None:
    with pytest.raises(Exception, match="initializer cannot be sent to a worker"):
        inline(initializer=lambda: None)
    reader, writer = multiprocessing.Pipe()
    async with inline(initializer=targets.keep, initargs=(writer,)) as pool:
        assert await pool.apply(workload.two) == 2
    (received,) = targets.events
    writer.close()
    received.send("through another descriptor")
    assert reader.recv() == "through another descriptor"
    received.close()
    reader.close()


async def test_start_arguments_are_not_pickled_where_processes_would_be_forked() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    set_start_method("fork")
    try:
        async with inline(initializer=lambda: targets.events.append("here")) as pool:
            assert await pool.apply(workload.two) == 2
    finally:
        set_start_method()
    assert targets.events == ["here"]


async def test_an_initializer_that_fails_breaks_the_pool_with_its_error() -> None:
    async with inline(2, initializer=targets.refuse_to_start) as pool:
        with pytest.raises(LookupError, match="not today"):
            await pool.apply(workload.two)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loop_initializer", asyncio.new_event_loop), ("maxmemoryperchild", 1 << 30)],
)
@pytest.mark.parametrize("requested_by", ["argument", "variable"])
def test_what_cannot_be_inline_is_refused_by_name(
    name: str, value: object, requested_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument: dict[str, Any] = {name: value}
    if requested_by == "variable":
        monkeypatch.setenv(select.VARIABLE, "inline")
    else:
        argument["backend"] = "inline"
    with pytest.raises(ValueError, match=f'{name}=.* is not possible with the backend "inline": '):
        Pool(1, **argument)


async def test_log_records_go_to_the_loggers_of_this_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with inline(logs=True) as pool:
            await pool.apply(targets.log_warning, ("heard once",))
    assert [record.getMessage() for record in caplog.records] == ["heard once"]


# -- lifespan --------------------------------------------------------------------------------------


async def test_lifespans_are_entered_and_left_in_the_running_loop() -> None:
    pool = inline(2, lifespan=targets.noted)
    assert await pool.apply(targets.state_of_worker) == "state of 0"
    pool.close()
    await pool.join()
    assert sorted(targets.events) == ["entered 0", "entered 1", "left 0", "left 1"]


async def test_a_worker_whose_lifespan_ends_by_itself_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with inline(lifespan=targets.noted_group) as pool:
        await pool.apply(targets.fail_in_lifespan)
        async with asyncio.timeout(20):
            while len(targets.events) < 3:
                await pool.apply(workload.two)
        assert pool.stats().restarts == {"lifespan": 1}
    assert targets.events == ["entered", "left", "entered", "left"]
    assert "has ended by itself; the worker is replaced" in caplog.text
    assert "LookupError: not there" in caplog.text
    assert "did not end within" not in caplog.text


async def test_a_lifespan_that_cannot_be_entered_breaks_the_pool() -> None:
    async with inline(lifespan=targets.refuses) as pool:
        with pytest.raises(LookupError, match="no such resource"):
            await pool.apply(workload.two)


async def test_a_pool_ends_while_a_lifespan_is_entered() -> None:
    async with inline(lifespan=targets.never_entered):
        await targets.started.wait()


async def test_a_lifespan_that_does_not_end_is_cancelled_after_the_grace_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = inline(lifespan=targets.never_left, grace=LIMIT)
    assert await pool.apply(workload.two) == 2
    pool.close()
    await pool.join()
    await turns()
    assert "its lifespan did not end" in caplog.text


# -- limits ----------------------------------------------------------------------------------------


async def test_a_task_over_its_time_limit_is_cancelled() -> None:
    async with inline(grace=LIMIT) as pool:
        neighbour = pool.apply(targets.wait_to_go_on, (5,))
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(targets.clean_up, task_timeout=LIMIT)
        assert caught.value.killed is False
        assert targets.events == ["cleaned up"]
        targets.go_on.set()
        assert await neighbour == 5
        assert pool.stats().restarts == {}


async def test_a_task_that_ignores_its_time_limit_goes_on_and_its_value_stands() -> None:
    async with inline(grace=LIMIT) as pool:
        call = pool.apply(targets.ignore_cancellation, ("late",), task_timeout=LIMIT)
        other = pool.apply(targets.clean_up, task_timeout=20 * LIMIT)
        with pytest.raises(TaskTimeoutError):
            await other
        assert targets.events == ["cancelled", "cleaned up"]
        targets.go_on.set()
        assert await call == "late"
        assert pool.stats().restarts == {}


async def test_a_plain_function_that_took_longer_than_its_limit_has_a_result() -> None:
    async with inline() as pool:
        assert await pool.apply(targets.block, (5 * LIMIT,), task_timeout=LIMIT) == "blocked"


async def test_a_worker_is_replaced_after_its_number_of_tasks() -> None:
    async with inline(lifespan=targets.noted, maxtasksperchild=2) as pool:
        assert await pool.map(workload.double, range(5)) == [0, 2, 4, 6, 8]
        assert pool.stats().restarts["maxtasksperchild"] == 2
    assert targets.events == ["entered 0", "left 0"] * 3


# -- the end ---------------------------------------------------------------------------------------


async def test_a_worker_that_is_killed_is_lost_with_what_it_runs() -> None:
    async with inline() as pool:
        lost = pool.apply(targets.clean_up)
        again = pool.map(targets.wait_to_go_on, [7], retries=1)
        reading = asyncio.ensure_future(again.__aiter__().__anext__())
        await targets.started.wait()
        await turns()
        (worker,) = pool.processes
        worker.kill()
        with pytest.raises(WorkerLostError) as caught:
            await lost
        assert (caught.value.pid, caught.value.exitcode) == (os.getpid(), -signal.SIGKILL)
        assert targets.events == ["cleaned up"]
        targets.go_on.set()
        assert await reading == 7
        assert not worker.is_alive()
        assert pool.stats().restarts == {"died": 1}


@pytest.mark.parametrize("when", ["in its first step", "with others that wait"])
async def test_an_item_that_kills_its_own_worker_is_lost_and_goes_on(when: str) -> None:
    async with inline() as pool:
        await pool.apply(workload.two)
        (worker,) = pool.processes
        targets.events.append(worker.kill)
        func = targets.kill_own_worker
        calls = [pool.apply(func)] if when == "in its first step" else []
        if not calls:
            calls = [pool.apply(targets.clean_up), pool.apply(func)]
        for call in calls:
            with pytest.raises(WorkerLostError):
                await call
        assert "went on" in targets.events
        assert await pool.apply(workload.two) == 2


async def test_terminate_cancels_what_runs() -> None:
    async with inline(2) as pool:
        call = pool.apply(targets.clean_up)
        await targets.started.wait()
    assert targets.events == ["cleaned up"]
    with pytest.raises(PoolTerminatedError):
        await call


async def test_terminate_ends_without_a_task_that_ignores_its_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with inline(grace=LIMIT) as pool:
        call = pool.apply(targets.ignore_cancellation)
        await targets.started.wait()
        (worker,) = pool.processes
    assert worker.exitcode == -signal.SIGTERM
    assert "1 tasks of an inline pool did not end within" in caplog.text
    with pytest.raises(PoolTerminatedError):
        await call
    targets.go_on.set()
    await turns()
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("func", [targets.exit_program])
async def test_an_item_that_exits_fails_with_that_error(func: Callable[..., Any]) -> None:
    async with inline() as pool:
        with pytest.raises(ProxyException, match="SystemExit: enough"):
            await pool.apply(func)
        assert await pool.apply(workload.two) == 2


@pytest.mark.parametrize("func", [targets.interrupt, targets.interrupt_later])
def test_a_keyboard_interrupt_in_an_item_stops_the_loop_as_in_any_task(
    func: Callable[..., Any],
) -> None:
    async def main() -> None:
        targets.reset()
        async with inline() as pool:
            call = pool.apply(func)
            targets.events.append(call)
            await asyncio.wait([asyncio.ensure_future(call)])
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    with pytest.raises(ProxyException, match="KeyboardInterrupt"):
        targets.events[0].result()


@pytest.mark.row("H229")
@pytest.mark.parametrize("caller", ["_on_value", "_scheduled_turn", "_drain"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_programs_and_strikes_the_engine_passes_through_the_loop(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], caller: str
) -> None:
    """INLINE-5: a signal handler of the program has raised it."""
    publish = ResultSender.publish
    struck: list[object] = []

    def strike(sender: ResultSender) -> None:
        publish(sender)
        callers = {frame.name for frame in traceback.extract_stack()}
        if not struck and caller in callers and targets.events:
            struck.append(sender)
            raise kind("of the program")

    async def main() -> None:
        targets.reset()
        async with inline() as pool:
            await pool.apply(workload.two)
            targets.events.append("ready")
            with contextlib.suppress(WorkerLostError):
                await pool.map(asyncio.sleep, [0.001] * 100)
            await asyncio.Event().wait()

    monkeypatch.setattr(ResultSender, "publish", strike)
    monkeypatch.setattr(results, "MOMENT_NS", -1)  # so that the items' last steps publish, too
    with pytest.raises(kind, match="of the program"):
        asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.row("H229")
@pytest.mark.parametrize(
    "func",
    [targets.make_interrupted, targets.make_interrupted_later, targets.make_local_interrupted],
)
def test_an_interrupt_while_a_result_is_pickled_passes_and_the_item_is_answered(
    func: Callable[..., Any],
) -> None:
    """INLINE-4"""
    pytest.importorskip("cloudpickle")

    async def main() -> None:
        targets.reset()
        async with inline(serializer="cloudpickle") as pool:
            call = pool.apply(func)
            targets.events.append(call)
            await asyncio.wait([asyncio.ensure_future(call)])
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(asyncio.wait_for(main(), 20))
    (call,) = targets.events
    error = call.exception()
    assert call.result() == 0 if error is None else "pickled" in str(error)


async def _read_stream(pool: Pool) -> None:
    with contextlib.suppress(pickle.PicklingError):
        await anext(pool.stream(targets.yield_interrupted))


async def _fail(pool: Pool) -> None:
    with contextlib.suppress(ProxyException):
        await pool.apply(targets.exit_program)


async def _two(pool: Pool) -> None:
    with contextlib.suppress(ProxyException):
        await pool.apply(workload.two)
    pool.close()
    await pool.join()


@pytest.mark.row("H229")
@pytest.mark.parametrize(
    ("step", "options"),
    [
        (_read_stream, {}),
        (_fail, {"exception_handler": targets.interrupt}),
        (_two, {"initializer": targets.interrupt}),
        (_two, {"lifespan": targets.interrupted_at_start}),
        (_two, {"lifespan": targets.interrupted_at_end}),
    ],
)
def test_an_interrupt_in_other_code_of_the_users_passes_through_the_loop(
    step: Callable[[Pool], Any], options: dict[str, Any]
) -> None:
    """INLINE-4"""

    async def main() -> None:
        targets.reset()
        async with inline(**options) as pool:
            await step(pool)
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(asyncio.wait_for(main(), 20))


def test_a_program_that_forgets_its_pool_ends_quietly_but_for_the_warning(tmp_path: Path) -> None:
    body = """
    pool = Pool(2, backend="inline")
    call = pool.apply(inline_targets.wait_to_go_on, ("x",))
    call.add_done_callback(lambda call: call.exception())
    await inline_targets.started.wait()
    print("leaves")
    """
    script = run_script(tmp_path, pool_script(body, setup="import inline_targets"), "-Wdefault")
    assert script.out == "leaves\n"
    assert "ResourceWarning: a pool of 2 workers was never closed" in script.err
    assert "Traceback" not in script.err
    assert "destroyed" not in script.err


def test_a_loop_that_is_closed_under_a_running_item_leaves_no_complaint() -> None:
    loop = asyncio.new_event_loop()

    async def main() -> Pool:
        targets.reset()
        pool = inline()
        call = pool.apply(targets.wait_to_go_on)
        call.add_done_callback(lambda _: None)
        await targets.started.wait()
        return pool

    pool = loop.run_until_complete(main())
    loop.close()
    pool.terminate()
    del pool
    gc.collect()


async def test_a_user_can_wait_for_a_simulated_worker() -> None:
    async with inline(2) as pool:
        await pool.apply(workload.two)
        first, second = pool.processes
        with pytest.raises(TimeoutError):
            await first.join(LIMIT)
        joining = asyncio.ensure_future(first.join())
        await turns()
        first.terminate()
        await joining
        await first.join()
        assert first.exitcode == 0
        second.kill()
        await second.join()
        assert second.exitcode == -signal.SIGKILL
        assert await pool.map(workload.double, range(4)) == [0, 2, 4, 6]


async def test_a_worker_that_ends_before_it_began_runs_no_initializer() -> None:
    pool = inline(initializer=targets.keep, initargs=("began",))
    pool.terminate()
    await pool.join()
    assert targets.events == []


def test_the_inline_engine_is_imported_by_those_alone_who_use_it(tmp_path: Path) -> None:
    body = """
    async with Pool(1) as pool:
        await pool.apply(workload.two)
    print([name for name in sys.modules if name.endswith(".inline")])
    """
    assert run_script(tmp_path, pool_script(body)).out == "[]\n"
    assert importlib.util.find_spec("aiomultiprocess._worker.inline") is not None


async def test_a_pool_that_goes_without_a_thread_leaves_no_item_that_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        async with inline(threads=1, grace=0.1) as pool:
            call = pool.apply(targets.wait_in_a_thread)
            assert await asyncio.to_thread(targets.thread_started.wait, 10)
            call.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=10)
        assert all(task.done() for task in others)  # THREAD-2
        await asyncio.sleep(0)  # the task that waited until now calls back
        assert not pending_futures()  # though the thread has not returned
        assert "the pool ends without" in caplog.text
    finally:
        targets.thread_may_end.set()
