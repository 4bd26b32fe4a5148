"""`PoolExecutor`: a `concurrent.futures.Executor` over a pool, for programs without a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import aiomultiprocess
import executor_targets
import workload
from aiomultiprocess import PoolExecutor, ProxyException, RoundRobin, WorkerLostError
from aiomultiprocess import executor as executors
from aiomultiprocess._processes.cpus import usable_cpus
from aiomultiprocess.core import get_context
from conftest import FORK_WARNING
from context_variables import REQUEST
from executor_targets import Gate
from support import run_script

pytestmark = pytest.mark.usefixtures("backend")

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def one() -> Iterator[PoolExecutor]:
    """An executor with one worker."""
    with PoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


# -- submit and map --------------------------------------------------------------------------------


def test_functions_and_coroutine_functions_run_in_workers(one: PoolExecutor) -> None:
    assert one.submit(pow, 2, 8).result() == 256
    assert one.submit(workload.double, 4).result() == 8
    assert one.submit(workload.describe, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    assert one.submit(workload.where).result() not in (None, os.getpid())


def test_coroutines_run_side_by_side_in_one_worker(one: PoolExecutor) -> None:
    first = one.submit(executor_targets.both_meet, "a", "b")
    second = one.submit(executor_targets.both_meet, "b", "a")
    assert (first.result(), second.result()) == ("a", "b")


def test_map_yields_results_in_the_order_of_the_shortest_input(one: PoolExecutor) -> None:
    assert list(one.map(pow, range(2000), [2] * 1000)) == [n * n for n in range(1000)]
    assert list(one.map(workload.double, range(10), chunksize=3)) == list(range(0, 20, 2))
    assert list(one.map(abs, [])) == []


def test_map_raises_an_error_at_its_place(one: PoolExecutor) -> None:
    results = one.map(divmod, [1, 1, 1], [1, 0, 1])
    assert next(results) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_with_a_buffer_reads_its_input_as_its_results_are_read(one: PoolExecutor) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    results = one.map(abs, numbers(), buffersize=3)
    assert taken == [0, 1, 2]
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert list(results) == list(range(1, 20))


def test_map_runs_out_of_time_while_a_result_is_not_there(one: PoolExecutor, gate: Gate) -> None:
    results = one.map(gate.pass_through, [1, 2], timeout=0.01)
    gate.wait()
    with pytest.raises(TimeoutError):
        next(results)
    gate.release()


def test_closing_the_iterator_of_map_cancels_the_calls_that_wait(
    one: PoolExecutor, gate: Gate, tmp_path: Path
) -> None:
    results: Any = one.map(gate.pass_through, range(10))
    gate.wait()
    gate.release()
    assert next(results) == 0
    gate.wait()
    results.close()
    gate.release()
    assert one.submit(pow, 2, 3).result() == 8  # no other passes the gate before it


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_a_size_that_makes_no_sense_is_refused(one: PoolExecutor, name: str) -> None:
    arguments: Any = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be .* got 0"):
        one.map(abs, [1], **arguments)
    arguments = {name: "1"}
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got '1'"):
        one.map(abs, [1], **arguments)


def test_what_cannot_be_called_is_refused_at_the_call(one: PoolExecutor) -> None:
    nothing: Any = 5
    with pytest.raises(TypeError, match="fn must be callable, got int: 5"):
        one.submit(nothing)
    with pytest.raises(TypeError, match="fn must be callable, got int: 5"):
        one.map(nothing, [1])
    with pytest.raises(TypeError, match="iterables must be iterable, got 5: pass one for each arg"):
        one.map(abs, nothing)
    assert list(one.map(abs, [-1], timeout=float("inf"))) == [1]
    assert list(one.map(abs, [-1], timeout=1e30)) == [1]
    with pytest.raises(ValueError, match="timeout must be a number of seconds or None, got nan"):
        one.map(abs, [1], timeout=float("nan"))
    with pytest.raises(TypeError, match="async generator function"):
        one.map(workload.counting, [1])


def test_calls_of_many_threads_all_return(one: PoolExecutor) -> None:
    def many(start: int) -> list[int]:
        return [future.result() for future in [one.submit(abs, start + n) for n in range(500)]]

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(many, range(0, 4000, 1000)))
    assert found == [[start + n for n in range(500)] for start in range(0, 4000, 1000)]


def test_many_submissions_cost_one_wake_up(
    one: PoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXECUTOR-1"""
    one.submit(int).result()
    runner, held, free = one._runner, threading.Event(), threading.Event()
    loop = runner._loop
    assert loop is not None

    def hold() -> None:
        held.set()
        free.wait()

    loop.call_soon_threadsafe(hold)
    held.wait()
    wakes: list[None] = []
    wake = runner._wake
    monkeypatch.setattr(runner, "_wake", lambda: (wakes.append(None), wake()))
    futures = [one.submit(abs, n) for n in range(900)]
    assert len(wakes) == 1
    free.set()
    assert [future.result() for future in futures] == list(range(900))


# -- futures ---------------------------------------------------------------------------------------


def test_a_future_can_be_cancelled_until_a_worker_has_its_call(
    one: PoolExecutor, gate: Gate
) -> None:
    """OUTSIDE-1"""
    running = one.submit(gate.pass_through, 1)
    waiting = one.submit(gate.pass_through, 2)
    gate.wait()
    assert running.running()
    assert not running.cancel()
    assert not waiting.running()
    assert waiting.cancel()
    gate.release()
    assert running.result() == 1
    assert concurrent.futures.wait([waiting]).done == {waiting}  # it was notified
    assert one.submit(abs, -1).result() == 1


def test_an_error_is_what_the_function_raised_with_its_traceback(one: PoolExecutor) -> None:
    """OUTSIDE-3"""
    error = one.submit(int, "x").exception()
    assert type(error) is ValueError
    assert error.args == ("invalid literal for int() with base 10: 'x'",)
    assert "ValueError: invalid literal" in str(error.__cause__)


def test_a_cancelled_error_of_the_function_cancels_no_one_else(one: PoolExecutor) -> None:
    error = one.submit(executor_targets.cancel_itself).exception()
    assert type(error) is ProxyException
    assert type(error.__cause__) is asyncio.CancelledError


def test_what_cannot_be_pickled_fails_its_own_call(one: PoolExecutor) -> None:
    with pytest.raises(pickle.PicklingError, match="cannot be sent to a worker"):
        one.submit(lambda: 1).result()
    with pytest.raises(pickle.PicklingError, match="an argument of a call of"):
        one.submit(repr, threading.Lock()).result()
    assert one.submit(abs, -1).result() == 1


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_a_callback_that_fails_is_logged_and_the_executor_goes_on(
    one: PoolExecutor, gate: Gate, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """OUTSIDE-2"""
    done = threading.Event()

    def fail(future: Future[Any]) -> None:
        done.set()
        raise error("of the callback")

    future = one.submit(gate.pass_through)
    future.add_done_callback(fail)
    gate.wait()
    gate.release()
    assert done.wait(60)
    assert one.submit(abs, -1).result() == 1
    assert "of the callback" in caplog.text


def test_a_callback_may_submit_but_not_wait_for_the_end(one: PoolExecutor, gate: Gate) -> None:
    found: Future[Any] = Future()

    def go_on(future: Future[Any]) -> None:
        found.set_result(one.submit(abs, -2))
        try:
            one.shutdown(wait=True)
        except RuntimeError as error:
            refused.set_result(str(error))

    refused: Future[str] = Future()
    future = one.submit(gate.pass_through)
    future.add_done_callback(go_on)
    gate.wait()
    gate.release()
    assert found.result(60).result(60) == 2
    assert "cannot join current thread" in refused.result(60)


# -- deaths, and pools that break ------------------------------------------------------------------


def test_a_lost_worker_fails_its_own_calls_only(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with PoolExecutor(2) as executor:
        other = executor.submit(gate.pass_through, 7)
        gate.wait()
        error = executor.submit(os._exit, 3).exception()
        gate.release()
        assert other.result() == 7
        assert executor.submit(abs, -1).result() == 1
    assert isinstance(error, WorkerLostError)
    assert isinstance(error, BrokenProcessPool)
    assert error.exitcode == 3
    assert "exited with code 3 during posix._exit" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args) == (type(error), error.args)


def test_an_initializer_that_fails_breaks_the_executor() -> None:
    with PoolExecutor(1, initializer=executor_targets.fail_to_start) as executor:
        error = executor.submit(abs, 1).exception()
        assert isinstance(error, BrokenProcessPool)
        assert "no way to start" in str(error)
        with pytest.raises(BrokenProcessPool, match="no way to start") as info:
            executor.submit(abs, 1)
        assert isinstance(info.value.__cause__, LookupError)


def test_workers_that_cannot_be_started_break_the_executor() -> None:
    with PoolExecutor(1, initializer=print, initargs=[threading.Lock()]) as executor:
        for call in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
            with pytest.raises(BrokenProcessPool, match="initargs cannot be sent to a worker"):
                call()


def test_a_loop_that_is_ended_by_an_error_fails_all_calls(gate: Gate) -> None:
    def end() -> None:
        raise SystemExit("of the loop")

    executor = PoolExecutor(1)
    running, waiting = executor.submit(gate.pass_through), executor.submit(abs, 1)
    gate.wait()
    loop = executor._runner._loop
    assert loop is not None
    loop.call_soon_threadsafe(end)
    for future in (running, waiting):
        assert isinstance(future.exception(), BrokenProcessPool)
    executor.shutdown()
    with pytest.raises(BrokenProcessPool, match="of the loop"):
        executor.submit(abs, 1)


# -- the end ---------------------------------------------------------------------------------------


def test_shutdown_waits_for_all_calls_and_takes_no_more() -> None:
    executor = PoolExecutor(1)
    futures = [executor.submit(abs, n) for n in range(5000)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert futures[-1].result() == 4999
    for call in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()
    executor.shutdown(cancel_futures=True)


def test_shutdown_of_an_executor_without_calls_starts_nothing() -> None:
    executor = PoolExecutor(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


def test_shutdown_can_cancel_what_waits(gate: Gate) -> None:
    executor = PoolExecutor(1)
    running = executor.submit(gate.pass_through, 1)
    gate.wait()
    waiting = [executor.submit(abs, n) for n in range(3000)]
    executor.shutdown(wait=False, cancel_futures=True)
    done = concurrent.futures.wait(waiting).done
    assert done == set(waiting)
    assert all(future.cancelled() for future in waiting)
    gate.release()
    assert running.result() == 1
    executor.shutdown()


def test_an_executor_that_is_collected_ends_when_its_calls_have(gate: Gate) -> None:
    """EXECUTOR-2"""
    executor = PoolExecutor(1)
    future = executor.submit(gate.pass_through, 1)
    thread = executor._runner._thread
    assert thread is not None
    gate.wait()
    del executor
    gc.collect()
    gate.release()
    assert future.result() == 1
    thread.join()


EXIT = """
    import os, sys, time
    from aiomultiprocess import PoolExecutor
    import workload

    def late(value):
        time.sleep(0.3)
        print("ran", value, flush=True)

    if __name__ == "__main__":
        executor = PoolExecutor(1, max_tasks_per_child=1)
        futures = [executor.submit(late, n) for n in range(3)]
        {more}
"""


@pytest.mark.row("H93")
@pytest.mark.parametrize("more", ["", "del executor", "executor.shutdown(wait=False)"])
def test_the_exit_of_the_interpreter_waits_for_all_calls(tmp_path: Path, more: str) -> None:
    """EXECUTOR-3"""
    script = run_script(tmp_path, EXIT.format(more=more))
    assert (script.process.returncode, script.out) == (0, "ran 0\nran 1\nran 2\n")
    assert script.err == ""


def test_no_call_is_taken_after_the_interpreter_shut_down(tmp_path: Path) -> None:
    source = """
        import atexit
        from aiomultiprocess import PoolExecutor

        def last():
            for executor in (used, PoolExecutor(1)):
                try:
                    executor.submit(abs, 1)
                except RuntimeError as error:
                    print(error)

        if __name__ == "__main__":
            atexit.register(last)
            used = PoolExecutor(1)
            print(used.submit(abs, -1).result())
    """
    refused = "cannot schedule new futures after interpreter shutdown\n"
    assert run_script(tmp_path, source).out == f"1\n{refused}{refused}"


CHILD = """
    import multiprocessing, os
    from aiomultiprocess import PoolExecutor

    def child():
        executor = PoolExecutor(1)
        print("child", executor.submit(abs, -1).result(), flush=True)
        executor.submit(print, "last", flush=True)

    if __name__ == "__main__":
        process = multiprocessing.get_context({method!r}).Process(target=child)
        process.start()
        process.join()
        print(process.exitcode)
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_of_multiprocessing_waits_for_all_calls_too(tmp_path: Path, method: str) -> None:
    """EXECUTOR-3"""
    assert run_script(tmp_path, CHILD.format(method=method)).out == "child 1\nlast\n0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@FORK_WARNING
def test_a_forked_copy_refuses_calls_and_ends(tmp_path: Path) -> None:
    """EXECUTOR-4"""
    source = """
        import os
        from aiomultiprocess import PoolExecutor
        if __name__ == "__main__":
            executor = PoolExecutor(1)
            print(executor.submit(abs, -1).result(), flush=True)
            if not (pid := os.fork()):
                try:
                    executor.submit(abs, 1)
                except RuntimeError as error:
                    print("make an executor of its own" in str(error), flush=True)
                executor.shutdown()
                with PoolExecutor(1) as own:
                    print(own.submit(abs, -3).result(), flush=True)
                raise SystemExit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            print(executor.submit(abs, -2).result())
    """
    assert run_script(tmp_path, source, "-W", "ignore").out == "1\nTrue\n3\n7\n2\n"


def test_ctrl_c_during_the_exit_ends_the_workers(tmp_path: Path) -> None:
    source = """
        import os, threading, time
        import ctrl_c
        from aiomultiprocess import PoolExecutor

        def interrupt():
            for pause in ctrl_c.press(os.getppid(), 1):
                time.sleep(pause)
            time.sleep(3600)

        if __name__ == "__main__":
            ctrl_c.count_presses()
            executor = PoolExecutor(1)
            executor.submit(abs, 1).result()
            threading._register_atexit(lambda: executor.submit(interrupt))
    """
    # hooks run in reverse order: the call is submitted first, then the exit waits for it
    script = run_script(tmp_path, source)
    assert (tmp_path / "noticed").read_text()
    assert "KeyboardInterrupt" in script.err


@pytest.mark.row("H133")
@pytest.mark.parametrize("exit_by", ["the interpreter", "with"])
def test_a_second_ctrl_c_during_the_exit_kills_the_workers(tmp_path: Path, exit_by: str) -> None:
    """EXECUTOR-6"""
    source = f"""
        import asyncio, multiprocessing, os, signal, threading, time
        import ctrl_c
        from aiomultiprocess import PoolExecutor

        async def interrupt():
            parent = multiprocessing.parent_process().pid
            try:
                for total in {[1, 2] if exit_by == "with" else [1]}:
                    for pause in ctrl_c.press(parent, total):
                        await asyncio.sleep(pause)
                await asyncio.Event().wait()
            finally:
                open("cancelled", "w").close()
                for _ in range(3):
                    os.kill(parent, signal.SIGINT)
                    time.sleep(0.02)
                time.sleep(3600)

        if __name__ == "__main__":
            ctrl_c.count_presses()
            if {exit_by == "with"}:
                with PoolExecutor(2, grace=600) as executor:
                    executor.submit(interrupt)
            else:
                executor = PoolExecutor(2, grace=600)
                executor.submit(abs, 1).result()
                threading._register_atexit(lambda: executor.submit(interrupt))
    """
    script = run_script(tmp_path, source)
    assert (tmp_path / "cancelled").exists()
    assert "KeyboardInterrupt" in script.err
    assert "process object is closed" not in script.err
    assert "_exit_function" not in script.err


START = threading.Thread.start


class InterruptedStart:
    """Ctrl-C while the first call makes and starts the thread: at one place, and once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.late: list[threading.Thread] = []

    def in_the_thread_s_init(self) -> None:
        self._patch.setattr(threading.Thread, "__init__", self._interrupt)

    def before_the_system_starts_it(self) -> None:
        self._patch.setattr(threading.Thread, "start", self._interrupt)

    def after_it_runs(self) -> None:
        self._patch.setattr(threading.Thread, "start", self._start_and_interrupt())

    def before_it_runs(self) -> None:
        """The system has started it, and runs it later than the interrupt is handled."""
        self._patch.setattr(threading.Thread, "start", self._defer())

    def _interrupt(self, *args: Any, **kwargs: Any) -> None:
        self._patch.undo()
        raise KeyboardInterrupt

    def _start_and_interrupt(self) -> Any:
        return lambda thread: (START(thread), self._interrupt())

    def _defer(self) -> Any:
        return lambda thread: (self.late.append(thread), self._interrupt())


@pytest.mark.row("H226")
@pytest.mark.parametrize(
    "place",
    ["in_the_thread_s_init", "before_the_system_starts_it", "after_it_runs", "before_it_runs"],
)
def test_a_first_call_that_ctrl_c_ends_leaves_a_usable_executor(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """EXECUTOR-8"""
    with monkeypatch.context() as patch:
        start = InterruptedStart(patch)
        getattr(start, place)()
        executor = PoolExecutor(1)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(abs, -1)
    for thread in start.late:
        START(thread)
        thread.join()
    assert executor.submit(abs, -2).result(60) == 2
    executor.shutdown()
    assert executor._runner not in executors._runners


# -- surroundings ----------------------------------------------------------------------------------


async def test_a_running_loop_can_use_it() -> None:
    with PoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, abs, -n) for n in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))


#: What asyncio takes for a cancellation of the awaiter or for a result, or does not take.
MISTAKEN = [
    StopIteration,
    executor_targets.OwnStop,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
]


@pytest.mark.row("H227")
@pytest.mark.parametrize("kind", MISTAKEN)
async def test_a_running_loop_gets_an_error_that_asyncio_would_mistake(
    one: PoolExecutor, kind: type[BaseException]
) -> None:
    """OUTSIDE-4"""
    loop = asyncio.get_running_loop()
    with pytest.raises(ProxyException, match="of its own") as raised:
        async with asyncio.timeout(20):
            await loop.run_in_executor(one, executor_targets.raise_one, kind)
    assert type(raised.value.__cause__) is kind
    error = one.submit(executor_targets.raise_one, kind).exception()
    assert type(error) is type(raised.value)
    with pytest.raises(type(error)):
        next(one.map(executor_targets.raise_one, [kind]))


@pytest.mark.row("H227")
@pytest.mark.parametrize("kind", MISTAKEN)
async def test_a_running_loop_gets_such_an_error_of_a_scheduler(kind: type[BaseException]) -> None:
    """OUTSIDE-4"""
    loop = asyncio.get_running_loop()
    refused = pytest.raises(RuntimeError, match=f"was ended by {kind.__name__}$")
    with PoolExecutor(1, scheduler=Refusing(kind)) as executor, refused as raised:
        async with asyncio.timeout(20):
            await loop.run_in_executor(executor, abs, 1)
    assert type(raised.value.__cause__) is kind


@pytest.mark.row("H225")
@pytest.mark.parametrize("workers", [3, None])
def test_it_has_the_number_of_its_workers_where_those_of_cpython_have_it(
    workers: int | None,
) -> None:
    executor = PoolExecutor(workers)
    assert executor._max_workers == (workers or usable_cpus())


@pytest.mark.row("H225")
@pytest.mark.parametrize("argument", ["scheduler", "pool"])
def test_dask_takes_it(argument: str) -> None:
    dask = pytest.importorskip("dask")
    with PoolExecutor(2) as executor:
        scheduler = {"scheduler": "processes"} | {argument: executor}
        lengths = [dask.delayed(len)("x" * n) for n in range(10)]
        assert dask.compute(*lengths, **scheduler) == tuple(range(10))


def test_its_workers_are_spawned_whatever_the_program_has_set(start_method: str) -> None:
    before = get_context()
    with PoolExecutor(1) as executor:
        assert executor._runner._pool.context.get_start_method() == "spawn"
        assert executor.submit(abs, -1).result() == 1
    assert get_context() is before


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=FORK_WARNING if name == "fork" else ())
        for name in multiprocessing.get_all_start_methods()
    ],
)
def test_a_context_starts_its_workers(method: str) -> None:
    with PoolExecutor(1, multiprocessing.get_context(method)) as executor:
        assert executor._runner._pool.context.get_start_method() == method
        assert executor.submit(abs, -1).result() == 1


class Counting(RoundRobin):
    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Any] = []
        self.ended: list[Any] = []

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        self.begun.append(task_id)
        return super().schedule_task(task_id, func, args, kwargs)

    def complete_task(self, task_id: Any) -> None:
        self.ended.append(task_id)


def test_a_scheduler_sees_each_call_and_its_end(gate: Gate) -> None:
    scheduler = Counting()
    with PoolExecutor(2, scheduler=scheduler, queuecount=2) as executor:
        assert list(executor.map(abs, range(100))) == list(range(100))
        held = executor.submit(gate.pass_through)
        gate.wait()
        lost = executor.submit(os._exit, 1)
        assert isinstance(lost.exception(), WorkerLostError)
        gate.release()
        held.result()
    assert len(scheduler.begun) == 102
    assert sorted(scheduler.ended) == scheduler.begun


class Refusing(RoundRobin):
    def __init__(self, kind: type[BaseException] = LookupError) -> None:
        super().__init__()
        self.kind = kind

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        raise self.kind("no queue is good enough")


def test_the_error_of_a_scheduler_fails_the_call() -> None:
    with PoolExecutor(1, scheduler=Refusing()) as executor:
        error = executor.submit(abs, 1).exception()
    assert isinstance(error, LookupError)
    assert "good enough" in str(error)


def test_workers_are_replaced_after_a_number_of_calls() -> None:
    with PoolExecutor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, "max_workers must be a whole number, got '2'"),
        ({"mp_context": "spawn"}, TypeError, "mp_context must be a context .* got 'spawn'"),
        ({"processes": 2}, TypeError, "use max_workers"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1, got 0"),
        ({"max_tasks_per_child": 1, "maxtasksperchild": 1}, TypeError, "pass one of them"),
        ({"initializer": 5}, TypeError, "initializer must be a function or None"),
        ({"queuecount": 9, "max_workers": 1}, ValueError, "queuecount=9"),
        ({"no_such_argument": 1}, TypeError, "no_such_argument"),
    ],
)
def test_a_bad_argument_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PoolExecutor(**arguments)


def test_it_is_one_of_the_public_names() -> None:
    assert aiomultiprocess.PoolExecutor is PoolExecutor
    assert issubclass(PoolExecutor, concurrent.futures.Executor)


class UnderWay(RoundRobin):
    """A scheduler that counts the tasks under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = 0

    def schedule_task(self, task_id: Any, *rest: Any) -> Any:
        self.under_way += 1
        return super().schedule_task(task_id, *rest)

    def complete_task(self, task_id: Any) -> None:
        self.under_way -= 1
        super().complete_task(task_id)


def test_a_context_that_is_refused_is_no_task_for_the_scheduler() -> None:
    scheduler = UnderWay()

    def submit() -> Any:
        REQUEST.set(threading.Lock())
        return executor.submit(workload.two)

    with PoolExecutor(1, contextvars=(REQUEST,), scheduler=scheduler) as executor:
        assert executor.submit(workload.two).result() == 2
        with pytest.raises(pickle.PicklingError, match=REQUEST.name):
            contextvars.copy_context().run(submit).result()
    assert scheduler.under_way == 0
