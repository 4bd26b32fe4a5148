"""Process and Worker: 0.9.1's behaviour, results of any kind, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiomultiprocess as amp
import core_targets as targets
from aiomultiprocess import Process, Worker, WorkerLostError, _result, core
from support import Script, run_script, wait_for_exit

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")
forks = pytest.mark.filterwarnings("ignore:.*use of fork.*may lead to deadlocks:DeprecationWarning")


@pytest.fixture(autouse=True)
def _default_context() -> Iterator[None]:
    yield
    amp.set_start_method()


# -- 0.9.1 -----------------------------------------------------------------------------------------


async def test_process_runs_to_its_end(start_method: str) -> None:
    process = Process(target=targets.get_pid, name="test_process")
    assert process.pid is None
    assert not process.is_alive()
    process.start()
    assert process.name == "test_process"
    assert process.pid
    await process.join()
    assert not process.is_alive()
    assert process.exitcode == 0


async def test_a_process_that_runs_is_alive_and_a_worker_has_no_result_yet() -> None:
    worker = Worker(target=targets.wait_long)
    worker.start()
    assert worker.is_alive()
    assert worker.exitcode is None
    with pytest.raises(ValueError, match="coroutine not completed"):
        _ = worker.result
    worker.kill()
    with pytest.raises(WorkerLostError):
        await worker
    assert not worker.is_alive()


async def test_awaiting_a_process_starts_and_joins_it() -> None:
    process = Process(target=targets.get_pid)
    assert await process is None
    assert process.exitcode == 0


async def test_awaiting_a_started_process_joins_it() -> None:
    process = Process(target=targets.get_pid)
    process.start()
    await process
    assert process.exitcode == 0


async def test_a_process_is_joined_only_after_its_start() -> None:
    with pytest.raises(ValueError, match="must start process"):
        await Process(target=targets.get_pid).join()


async def test_daemon_can_be_changed_before_the_start() -> None:
    process = Process(daemon=False)
    assert process.daemon is False
    process.daemon = True
    assert process.daemon is True


async def test_worker_returns_the_result_and_keeps_it(start_method: str) -> None:
    worker = Worker(target=targets.get_pid)
    worker.start()
    assert await worker.join() == worker.pid
    assert worker.result == worker.pid
    assert await worker.join() == worker.pid
    assert await worker == worker.pid


async def test_result_of_an_unstarted_worker_is_not_completed() -> None:
    with pytest.raises(ValueError, match="coroutine not completed"):
        _ = Worker(target=targets.get_pid).result


async def test_arguments_reach_the_target() -> None:
    result = await Worker(target=targets.echo, args=[1, "two"], kwargs={"three": 3})
    assert result == ((1, "two"), {"three": 3})


@pytest.mark.parametrize(
    "target",
    [functools.partial(targets.Adder(2).add, 3), targets.Adder(5), targets.add_two],
    ids=["partial", "callable object", "partial of a method"],
)
async def test_anything_that_is_called_to_a_coroutine_is_a_target(target: Any) -> None:
    args = () if getattr(target, "args", ()) else (3,)
    assert await Worker(target=target, args=args) in (5, 8)


async def test_an_initializer_prepares_the_process() -> None:
    worker = Worker(target=targets.get_constant, initializer=targets.set_constant, initargs=(10,))
    assert await worker == 10


async def test_context_variables_of_the_initializer_are_seen_by_the_target() -> None:
    worker = Worker(target=targets.get_variable, initializer=targets.set_constant, initargs=(1,))
    assert await worker == "set"


async def test_worker_returns_what_its_target_raised(start_method: str) -> None:
    worker = Worker(target=targets.fail, args=(RuntimeError("raising"),))
    result = await worker
    assert type(result) is RuntimeError
    assert str(result) == "raising"
    assert "in fail\n    raise error\nRuntimeError: raising" in str(result.__cause__)
    assert worker.exitcode == 1


async def test_worker_returns_what_its_initializer_raised() -> None:
    worker = Worker(target=targets.get_pid, initializer=targets.raise_value_error, initargs=("no",))
    assert repr(await worker) == "ValueError('no')"


async def test_an_uncaught_error_is_logged_in_the_child(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process(target=targets.fail, args=(RuntimeError("raising"),))
    await process
    assert process.exitcode == 1
    errors = capfd.readouterr().err
    assert f"aio process {process.pid} failed" in errors
    assert errors.count("RuntimeError: raising") == 1


async def test_a_process_without_a_target_fails(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process()
    await process
    assert process.exitcode == 1
    assert "NotImplementedError" in capfd.readouterr().err
    with pytest.raises(NotImplementedError):
        await core.not_implemented()


# -- bad arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [targets.nothing, 5, "name", targets.Adder])
def test_a_target_that_is_no_coroutine_function_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"target must be coroutine function, not .*async def"):
        Process(target=target)


@pytest.mark.parametrize("name", ["initializer", "loop_initializer"])
def test_an_initializer_that_is_async_or_no_function_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be synchronous function, not .*get_pid"):
        Process(target=targets.get_pid, **{name: targets.get_pid})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"^{name} must be a function or None, not 'text'"):
        Process(target=targets.get_pid, **{name: "text"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"args": 5}, TypeError, "args must be a sequence of arguments, not 5"),
        ({"kwargs": [1]}, TypeError, r"kwargs must be a mapping of names to arguments, not \[1\]"),
        ({"initargs": 5}, TypeError, "initargs must be a sequence of arguments, not 5"),
        ({"name": 5}, TypeError, "name must be a string, not 5"),
        ({"group": 5}, ValueError, "group must be None, not 5"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Worker(target=targets.get_pid, **arguments)


@pytest.mark.parametrize("part", ["target", "args"])
async def test_what_cannot_be_pickled_is_named_at_the_start(part: str) -> None:
    async def local() -> None: ...

    arguments: dict[str, Any] = {"target": targets.echo, "args": ()}
    arguments[part] = local if part == "target" else [local]
    process = Worker(**arguments)
    with pytest.raises(
        (AttributeError, pickle.PicklingError), match=f"local object.*{part} cannot .*importable"
    ):
        process.start()
    assert process.pid is None


@posix
@forks
async def test_a_local_function_runs_under_fork() -> None:
    async def local(value: int) -> int:
        return value

    amp.set_start_method("fork")
    assert await Worker(target=local, args=(17,)) == 17


async def test_a_process_starts_once() -> None:
    process = Process(target=targets.get_pid)
    await process
    with pytest.raises(RuntimeError, match="only once"):
        process.start()


async def test_a_loop_initializer_that_returns_no_loop_is_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = await Worker(target=targets.get_pid, loop_initializer=targets.make_nothing)
    assert isinstance(result, TypeError)
    assert "loop_initializer must return an event loop, not None" in capfd.readouterr().err


# -- start methods ---------------------------------------------------------------------------------


def test_spawn_is_the_default_start_method() -> None:
    assert core.get_context().get_start_method() == "spawn"
    assert core.context is core.get_context()


def test_an_unknown_start_method_is_refused() -> None:
    with pytest.raises(ValueError, match="foo"):
        amp.set_start_method("foo")


def test_set_context_is_set_start_method_with_another_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str | None] = []
    monkeypatch.setattr(core, "set_start_method", calls.append)
    amp.set_context()
    amp.set_context("spawn")
    assert calls == [None, "spawn"]


def test_none_means_the_default_of_cpython() -> None:
    import multiprocessing

    amp.set_start_method(None)
    assert core.get_context() is multiprocessing.get_context()


# -- results ---------------------------------------------------------------------------------------


async def test_a_result_larger_than_any_pipe_arrives(start_method: str) -> None:
    assert len(await Worker(target=targets.zeros, args=(30_000_000,))) == 30_000_000


async def test_an_argument_larger_than_any_pipe_arrives(start_method: str) -> None:
    assert await Worker(target=targets.size_of, args=(bytes(10_000_000),)) == 10_000_000


def test_a_large_result_is_fetched_without_a_loop() -> None:
    worker = Worker(target=targets.zeros, args=(3_000_000,))
    worker.start()
    while worker.is_alive():  # the question is what lets the child write on
        worker._exit_of_process()
    assert len(worker.result) == 3_000_000


def test_a_worker_is_awaited_in_another_loop_than_it_was_started_in() -> None:
    async def start() -> Worker:
        worker = Worker(target=targets.zeros, args=(3_000_000,))
        worker.start()
        return worker

    async def join(worker: Worker) -> int:
        return len(await worker.join())

    assert asyncio.run(join(asyncio.run(start()))) == 3_000_000


async def test_a_result_that_cannot_be_pickled_is_an_error_that_says_so() -> None:
    worker = Worker(target=targets.return_unpicklable)
    result = await worker
    assert isinstance(result, pickle.PicklingError)
    assert "the result of core_targets.return_unpicklable cannot be pickled" in str(result)
    assert "this does not travel" in str(result)


async def test_a_result_that_cannot_be_unpickled_is_an_error_that_says_so() -> None:
    worker = Worker(target=targets.return_unloadable)
    with pytest.raises(pickle.UnpicklingError, match=r"return_unloadable arrived .*ValueError"):
        await worker
    with pytest.raises(pickle.UnpicklingError, match="arrived"):
        _ = worker.result


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
async def test_a_thread_receives_where_loops_do_not_wait_for_pipes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_result, "Receiver", _result.ThreadReceiver)
    assert len(await Worker(target=targets.zeros, args=(size,))) == size
    with pytest.raises(WorkerLostError, match="during core_targets"):
        await Worker(target=targets.leave_at_once, args=(7,))


@posix
async def test_a_result_does_not_wait_for_processes_that_the_child_forked() -> None:
    pid = await asyncio.wait_for(Worker(target=targets.fork_and_return, args=(60,)), 20)
    os.kill(pid, signal.SIGKILL)
    await wait_for_exit([pid])


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (3, 3), ("words", 1)])
async def test_sys_exit_in_the_target_gives_the_exit_code(code: object, expected: int) -> None:
    process = Process(target=targets.leave, args=(code,))
    await process
    assert process.exitcode == expected


async def test_worker_returns_the_system_exit_of_its_target() -> None:
    worker = Worker(target=targets.leave, args=(3,))
    result = await worker
    assert isinstance(result, SystemExit)
    assert result.code == 3
    assert worker.exitcode == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError("stop")])
async def test_worker_returns_even_base_exceptions(error: BaseException) -> None:
    worker = Worker(target=targets.fail, args=(error,))
    assert type(await worker) is type(error)
    assert worker.exitcode == 1


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
async def test_a_worker_killed_by_a_signal_is_lost(start_method: str, name: str) -> None:
    signum = signal.Signals[name]
    worker = Worker(target=targets.kill_self, args=(signum,))
    with pytest.raises(
        WorkerLostError, match=f"killed by {signum.name} during .*kill_self"
    ) as lost:
        await worker
    assert lost.value.pid == worker.pid
    assert lost.value.exitcode == worker.exitcode == -signum
    assert lost.value.signal is signum
    with pytest.raises(WorkerLostError):
        _ = worker.result


async def test_a_worker_that_exits_without_a_result_is_lost() -> None:
    with pytest.raises(WorkerLostError, match="exited with code 7") as lost:
        await Worker(target=targets.leave_at_once, args=(7,))
    assert (lost.value.exitcode, lost.value.signal) == (7, None)
    assert lost.value.task == "core_targets.leave_at_once"


async def test_terminate_and_kill_end_a_process(start_method: str) -> None:
    for end, signum in ((Process.terminate, signal.SIGTERM), (Process.kill, signal.SIGKILL)):
        process = Process(target=targets.wait_long)
        process.start()
        end(process)
        await process.join()
        assert process.exitcode == -signum
        end(process)  # which does nothing to one that has ended


@pytest.mark.parametrize("call", [Process.terminate, Process.kill])
def test_what_has_not_started_cannot_be_ended(call: Any) -> None:
    with pytest.raises(ValueError, match="must start process"):
        call(Process(target=targets.get_pid))


async def test_a_join_that_times_out_leaves_the_process_running() -> None:
    process = Process(target=targets.wait_long)
    process.start()
    for _ in range(2):
        with pytest.raises(asyncio.TimeoutError):
            await process.join(timeout=0.01)
        assert process.is_alive()
    process.kill()
    await process.join(timeout=20)


async def test_a_join_of_what_has_ended_does_not_time_out() -> None:
    process = Process(target=targets.get_pid)
    await process
    await process.join(timeout=0)


async def test_several_tasks_may_join_one_process() -> None:
    worker = Worker(target=targets.get_pid)
    worker.start()
    assert await asyncio.gather(worker.join(), worker.join(), worker) == [worker.pid] * 3


async def test_a_cancelled_join_can_be_repeated() -> None:
    worker = Worker(target=targets.get_pid)
    worker.start()
    join = asyncio.ensure_future(worker.join())
    await asyncio.sleep(0)
    join.cancel()
    with pytest.raises(asyncio.CancelledError):
        await join
    assert await worker.join() == worker.pid


async def test_only_what_has_ended_is_closed() -> None:
    process = Worker(target=targets.wait_long)
    process.start()
    with pytest.raises(ValueError, match="still running"):
        process.close()
    process.kill()
    with pytest.raises(WorkerLostError):
        await process.join()
    process.close()
    for use in (lambda: process.exitcode, process.is_alive, process.kill, lambda: process.result):
        with pytest.raises(ValueError, match="closed"):
            use()


async def test_what_is_left_in_the_loop_is_cancelled_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "told"
    await Process(target=targets.leave_a_task, args=(str(path),))
    assert path.read_text() == "cancelled"


@posix
async def test_an_exit_code_that_somebody_else_took_is_not_known(start_method: str) -> None:
    if start_method == "forkserver":
        pytest.skip("children of the fork server cannot be reaped by us")
    process = Worker(target=targets.wait_long)
    process.start()
    process.kill()
    assert process.pid is not None
    os.waitpid(process.pid, 0)  # noqa: ASYNC222 - it has been killed
    with pytest.raises(WorkerLostError, match="another part of the program") as lost:
        await process.join()
    assert lost.value.exitcode is lost.value.signal is process.exitcode is None
    assert not process.is_alive()
    process.close()


@posix
async def test_a_program_that_reaps_all_children_does_not_disturb_us() -> None:
    worker = Worker(target=targets.get_pid)
    worker.start()

    def steal() -> None:
        with contextlib.suppress(ChildProcessError):  # we were first, and there is no other child
            os.waitpid(-1, 0)

    thief = threading.Thread(target=steal)
    thief.start()
    assert await worker.join() == worker.pid
    assert worker.exitcode in (0, None)
    thief.join()
    subprocess = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(9)")
    assert await subprocess.wait() == 9


# -- loops -----------------------------------------------------------------------------------------


async def test_a_loop_initializer_makes_the_loop() -> None:
    worker = Worker(target=targets.loop_of, loop_initializer=targets.make_loop)
    assert await worker == ("asyncio", 12.5)


@posix
def test_children_run_the_loop_implementation_of_their_parent(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    program = """
        import asyncio, sys, uvloop
        import core_targets as targets
        from aiomultiprocess import Worker, set_start_method

        async def ask(**kwargs):
            print((await Worker(target=targets.loop_of, **kwargs))[0])

        if __name__ == "__main__":
            for method in "spawn", "fork", "forkserver":
                set_start_method(method)
                uvloop.run(ask())
            uvloop.run(ask(loop_initializer=targets.make_loop))
            asyncio.run(ask())
    """
    script = run_script(tmp_path, program)
    assert script.out.split() == ["uvloop"] * 3 + ["asyncio"] * 2, script.err


@posix
@forks
async def test_a_forked_child_does_not_inherit_the_signals_of_the_loop() -> None:
    amp.set_start_method("fork")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    try:
        assert await Worker(target=targets.sigterm_is_default)
        process = Process(target=targets.wait_long)
        process.start()
        process.terminate()
        await process.join(timeout=20)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    assert process.exitcode == -signal.SIGTERM


@posix
async def test_the_target_can_be_interrupted() -> None:
    assert await Worker(target=targets.sigint_is_blocked) is False


@posix
async def test_ctrl_c_prints_one_traceback_the_parents(start_method: str, tmp_path: Path) -> None:
    program = f"""
        import asyncio
        import core_targets as targets
        from aiomultiprocess import Process, Worker, set_start_method

        async def main():
            set_start_method({start_method!r})
            await asyncio.gather(
                Process(target=targets.say_and_wait, args=("one runs",)),
                Worker(target=targets.say_and_wait, args=("another runs",)),
            )

        if __name__ == "__main__":
            asyncio.run(main())
    """
    with Script(tmp_path, program) as script:
        await script.line("one runs")
        await script.line("another runs")
        script.kill_group(signal.SIGINT)
        script.finish()
    assert script.process.returncode == -signal.SIGINT
    assert script.err.count("KeyboardInterrupt\n") == 1, script.err
    assert "_run.py" not in script.err


@posix
async def test_ctrl_c_waits_while_a_child_starts(tmp_path: Path) -> None:
    program = """
        import asyncio, os, signal
        import core_targets as targets
        from aiomultiprocess import Process

        if __name__ == "__mp_main__":  # the child imports us: it is in the midst of its start
            os.kill(os.getpid(), signal.SIGINT)
            print("still here", flush=True)

        async def main():
            process = Process(target=targets.wait_long)
            await process
            print("exit code", process.exitcode)

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert script.out.splitlines() == ["still here", "exit code 1"]
    assert script.err == ""


# -- how programs are started ----------------------------------------------------------------------

PROGRAM = """
import asyncio
import sys

sys.path[:0] = {path!r}
from aiomultiprocess import Worker

async def greet():
    return "hello from", __name__

async def main():
    print(*await Worker(target=greet))

{guard}asyncio.run(main())
"""


def program(guard: str = 'if __name__ == "__main__": ') -> str:
    return PROGRAM.format(path=sys.path, guard=guard)


@pytest.mark.parametrize("options", [(), ("-I",), ("-m", "program")], ids=["script", "-I", "-m"])
def test_functions_of_the_main_module_run(options: tuple[str, ...], tmp_path: Path) -> None:
    script = run_script(tmp_path, program(), *options)
    assert (script.out, script.err) == ("hello from __mp_main__\n", "")


def test_a_missing_main_guard_is_named(tmp_path: Path) -> None:
    script = run_script(tmp_path, program(guard=""))
    assert script.process.returncode == 1
    assert script.out == ""
    assert "if __name__ == '__main__':" in script.err
    assert "WorkerLostError: worker process" in script.err


async def test_a_daemon_may_not_have_children(tmp_path: Path) -> None:
    worker = Worker(target=targets.start_another, daemon=True)
    assert "daemonic processes are not allowed to have children" in str(await worker)


async def test_a_process_that_is_no_daemon_may_have_children() -> None:
    assert await Worker(target=targets.start_another) == "done"


# -- resources -------------------------------------------------------------------------------------


@posix
def test_processes_give_back_their_descriptors(start_method: str) -> None:
    async def use() -> None:
        for _ in range(3):
            await Worker(target=targets.get_pid)
        killed = Worker(target=targets.wait_long)
        killed.start()
        with pytest.raises(TimeoutError):
            await killed.join(timeout=0.01)
        killed.kill()
        with pytest.raises(WorkerLostError):
            await killed

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/dev/fd"))

    asyncio.run(use())  # the fork server, for one, starts with the first
    before = descriptors()
    asyncio.run(use())
    assert descriptors() == before


def test_the_module_is_light() -> None:
    code = "import sys, aiomultiprocess.core, aiomultiprocess._run; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    import subprocess

    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    heavy = {"argparse", "multiprocessing.managers", "multiprocessing.shared_memory", "tempfile"}
    assert not heavy & set(out.stdout.split())
