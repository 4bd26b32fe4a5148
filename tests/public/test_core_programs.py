"""Process and Worker in programs: their loops, signals, ways to be started, and descriptors."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiomultiprocess as amp
import core_targets as targets
from aiomultiprocess import Process, Worker, WorkerLostError
from support import Script, run_script

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")
forks = pytest.mark.filterwarnings("ignore:.*use of fork.*may lead to deadlocks:DeprecationWarning")


@pytest.fixture(autouse=True)
def _default_context() -> Iterator[None]:
    yield
    amp.set_start_method()


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


@pytest.mark.row("E40")
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
    assert "_processes/child.py" not in script.err


@pytest.mark.row("E40")
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


# -- the end of the program ------------------------------------------------------------------------


@pytest.mark.row("E42")
@posix
def test_a_program_that_gave_up_a_worker_with_a_large_result_ends(
    start_method: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = f"""
        import asyncio
        import core_targets as targets
        from aiomultiprocess import Worker, set_start_method

        async def main():
            join = asyncio.ensure_future(worker)
            end = await asyncio.to_thread(open, "fifo", "wb")  # the worker has opened it too
            join.cancel()
            await asyncio.wait([join])
            return end

        if __name__ == "__main__":
            set_start_method({start_method!r})
            worker = Worker(target=targets.zeros_when_released, args=("fifo", 1_000_000))
            asyncio.run(main()).close()  # only now it returns, to a parent that has no loop
            print("over")
    """
    script = run_script(tmp_path, program)
    assert (script.process.returncode, script.out, script.err) == (0, "over\n", "")


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


@pytest.mark.row("E45")
@pytest.mark.parametrize("options", [(), ("-I",), ("-m", "program")], ids=["script", "-I", "-m"])
def test_functions_of_the_main_module_run(options: tuple[str, ...], tmp_path: Path) -> None:
    script = run_script(tmp_path, program(), *options)
    assert (script.out, script.err) == ("hello from __mp_main__\n", "")


@pytest.mark.row("E41")
def test_a_missing_main_guard_is_named(tmp_path: Path) -> None:
    script = run_script(tmp_path, program(guard=""))
    assert script.process.returncode == 1
    assert script.out == ""
    assert 'if __name__ == "__main__":' in script.err
    assert "WorkerLostError: worker process" in script.err
    assert "its code that starts a process must be below" in script.err


@pytest.mark.row("E44")
async def test_a_daemon_may_not_have_children(tmp_path: Path) -> None:
    worker = Worker(target=targets.start_another, daemon=True)
    assert "daemonic processes are not allowed to have children" in str(await worker)


@pytest.mark.row("E44")
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


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = "import sys, aiomultiprocess.core, aiomultiprocess._processes.child; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    import subprocess

    command = [sys.executable, "-P", "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    heavy = {"argparse", "multiprocessing.managers", "multiprocessing.shared_memory", "tempfile"}
    assert not heavy & set(out.stdout.split())


# -- objects of the program ------------------------------------------------------------------------


@posix
@forks
@pytest.mark.row("H163")
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("kind", [targets.Own, targets.OwnWithState, targets.OwnWithSlots])
async def test_the_target_may_be_a_method_of_the_object(
    kind: type[targets.Own], method: str
) -> None:
    amp.set_start_method(method)
    worker = kind(5)
    ours = worker.number
    number, *about_itself, refusals = await worker
    assert number == 10
    assert about_itself == [True, "own", True]
    assert refusals[:2] == [
        "a process cannot wait for its own end",
        "a process can be started only once",
    ]
    assert f"a {kind.__name__} stays in its process" in refusals[2]
    assert worker.number == ours
    with pytest.raises(RuntimeError, match="started only once"):
        worker.start()


@pytest.mark.row("H163")
async def test_a_process_is_not_sent_to_another() -> None:
    other = Worker(target=targets.process_name)
    with pytest.raises(TypeError, match="a Worker stays in its process"):
        Worker(target=targets.echo, args=(other,)).start()
    with pytest.raises(TypeError, match="a Worker stays in its process"):
        pickle.dumps(other)
    assert await other
