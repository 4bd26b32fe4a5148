"""Launches: no process beside the children, no leak when one fails, nothing that waits."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

import core_targets as targets
from aiomultiprocess import Process, Worker
from aiomultiprocess._processes import spawn
from aiomultiprocess._processes.exit import Exit
from aiomultiprocess._processes.spawn import process_class
from conftest import FORK_WARNING
from support import run_script

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="multiprocessing's own serves"),
    pytest.mark.spawned,  # or by a fork server of their own
]

SPAWN = multiprocessing.get_context("spawn")


def launch(target: Any, *args: object) -> Any:
    process: Any = process_class(SPAWN)(target=target, args=args)
    process.start()
    return process


def finish(process: Any) -> int | None:
    exit_ = Exit(process)
    exit_.block()
    process.close()
    return exit_.exitcode


def test_a_spawned_process_brings_no_other_process(tmp_path: Path) -> None:
    program = """
        import asyncio, psutil
        import core_targets as targets
        from aiomultiprocess import Process, Worker

        async def main():
            process = Process(target=targets.wait_long)
            process.start()
            await Worker(target=targets.get_pid)
            children = psutil.Process().children(recursive=True)
            print([child.pid for child in children] == [process.pid])
            process.kill()
            await process.join()

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert (script.out, script.err) == ("True\n", "")


async def test_a_resource_tracker_that_runs_is_shared_with_the_child() -> None:
    lock = SPAWN.Lock()  # a named semaphore, which the tracker registers
    from multiprocessing import resource_tracker

    assert resource_tracker._resource_tracker._fd is not None
    assert await Worker(target=targets.use_lock, args=(lock,)) == (True, True)


def test_without_a_tracker_a_child_can_still_make_semaphores(tmp_path: Path) -> None:
    program = """
        import asyncio
        import core_targets as targets
        from aiomultiprocess import Worker

        async def main():
            print(await Worker(target=targets.make_lock))

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert (script.out, script.err) == ("made\n", "")


def test_a_pickling_error_leaks_nothing() -> None:
    before = set(os.listdir("/dev/fd"))
    process: Any = process_class(SPAWN)(target=lambda: None)
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"local object|lambda"):
        process.start()
    del process
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("step", ["_run", "_send"])
def test_a_launch_that_fails_midway_leaks_nothing(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(spawn, step, fail)
    with pytest.raises(KeyboardInterrupt):
        launch(targets.sleep_long)
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before
    assert multiprocessing.active_children() == []


def test_a_launch_whose_message_no_thread_can_write_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        launch(targets.check_size, bytes(2 * spawn.PIPE_CAPACITY))
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before
    assert multiprocessing.active_children() == []


def interrupt_this_thread() -> None:
    """Held back until the launch is over; another thread would take a signal of the process."""
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.mark.row("E40")
@pytest.mark.parametrize("cls", [Process, Worker])
def test_ctrl_c_while_a_process_is_spawned_leaves_no_process_and_no_descriptor(
    cls: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pids = spawn._run, []

    def run_and_interrupt(*args: Any) -> int:
        pids.append(run(*args))
        interrupt_this_thread()
        return pids[0]

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(spawn, "_run", run_and_interrupt)
    process = cls(target=targets.wait_long)
    with pytest.raises(KeyboardInterrupt):
        process.start()
    assert process.pid is None
    with pytest.raises(ChildProcessError):  # it is dead, and was reaped
        os.waitpid(pids[0], os.WNOHANG)
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.row("E40")
@FORK_WARNING
def test_ctrl_c_while_a_process_is_forked_leaves_no_process_and_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, pids = os.fork, []

    def fork_and_interrupt() -> int:
        pid = fork()
        if pid:
            pids.append(pid)
            interrupt_this_thread()
        return pid

    before = set(os.listdir("/dev/fd"))
    monkeypatch.setattr(os, "fork", fork_and_interrupt)
    process: Any = process_class(multiprocessing.get_context("fork"))(target=targets.sleep_long)
    with pytest.raises(KeyboardInterrupt):
        process.start()
    with pytest.raises(ChildProcessError):  # it is dead, and was reaped
        os.waitpid(pids[0], os.WNOHANG)
    gc.collect()
    assert set(os.listdir("/dev/fd")) == before


def test_a_launch_does_not_wait_for_the_child_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # the child stands still from its first instruction: a launch that waited would hang
    run = spawn._run

    def run_and_stop(*args: Any) -> int:
        pid = run(*args)
        os.kill(pid, signal.SIGSTOP)
        return pid

    monkeypatch.setattr(spawn, "_run", run_and_stop)
    process = launch(targets.check_size, bytes(5_000_000))
    os.kill(process.pid, signal.SIGCONT)
    assert finish(process) == 0


def test_a_child_that_dies_while_it_starts_is_reported_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = spawn._run

    def run_and_kill(*args: Any) -> int:
        pid = run(*args)
        os.kill(pid, signal.SIGKILL)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is None:
            time.sleep(0)
        return pid

    monkeypatch.setattr(spawn, "_run", run_and_kill)
    assert finish(launch(targets.check_size, bytes(100))) == -signal.SIGKILL
    assert finish(launch(targets.check_size, bytes(5_000_000))) == -signal.SIGKILL


def test_a_child_inherits_the_signal_mask_but_for_sigint() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        process = launch(targets.check_mask, {signal.SIGUSR1, signal.SIGINT})
        now = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert finish(process) == 0
    assert now == before | {signal.SIGUSR1}


def test_the_same_descriptor_may_be_handed_over_twice() -> None:
    read, write = os.pipe()
    try:
        process = launch(targets.check_descriptors, targets.Fd(read), targets.Fd(read))
        assert finish(process) == 0
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_the_class_of_processes_is_derived_from_that_of_the_context(method: str) -> None:
    ctx = multiprocessing.get_context(method)
    assert issubclass(process_class(ctx), ctx.Process)  # type: ignore[arg-type,attr-defined]


async def test_many_processes_are_launched_at_once() -> None:
    results = await asyncio.gather(*(Worker(target=targets.get_pid) for _ in range(8)))
    assert len(set(results)) == 8


@pytest.mark.row("H216")
def test_threads_that_launch_at_once_by_a_fork_server_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPAWN-9"""
    main = vars(sys.modules["__main__"])
    monkeypatch.setitem(main, "__file__", "<stdin>")  # which a launch hides, and puts back
    ensure_running = forkserver.ensure_running
    launcher = process_class(multiprocessing.get_context("forkserver"))

    def ensure_slowly() -> None:  # so that the threads meet
        ensure_running()
        time.sleep(0.02)

    def run() -> int | None:
        together.wait()
        process: Any = launcher(target=targets.check_size, args=(b"data",))
        process.start()
        return finish(process)

    together = threading.Barrier(4)
    monkeypatch.setattr(forkserver, "ensure_running", ensure_slowly)
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(run) for _ in range(4)]
    assert [each.result() for each in runs] == [0] * 4
    assert main["__file__"] == "<stdin>"
    assert spawn.SERVER_REPORTED not in os.environ


class LaunchesMeanwhile:
    """While it is pickled, another thread launches a process; in the child, the bytes of a 1."""

    def __init__(self, launch: Callable[[], object]) -> None:
        self.launch = launch
        self.launched = False
        self.path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        thread = threading.Thread(target=self.launch, daemon=True)
        thread.start()
        thread.join(20)
        self.launched = not thread.is_alive()
        self.path = vars(sys.modules["__main__"])["__file__"]
        return bytes, (1,)


@pytest.mark.row("H216")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("path", ["<stdin>", __file__])
def test_a_thread_can_launch_while_another_pickles_for_a_launch(
    method: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPAWN-9"""
    monkeypatch.setitem(vars(sys.modules["__main__"]), "__file__", path)
    launcher = process_class(multiprocessing.get_context(method))

    def run(argument: object = b"data") -> int | None:
        process: Any = launcher(target=targets.check_size, args=(argument,))
        process.start()
        return finish(process)

    argument = LaunchesMeanwhile(run)
    assert run(argument) == 0
    assert (argument.launched, argument.path) == (True, path)


@pytest.mark.row("H216")
def test_threads_whose_fork_server_ends_share_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPAWN-7, SPAWN-9"""
    launcher = process_class(multiprocessing.get_context("forkserver"))
    server: Any = forkserver._forkserver
    popen = spawn._server_popen()
    attempts = itertools.count()
    together = threading.Barrier(4)

    def kill_first(process: Any) -> Any:
        if next(attempts) < 4:
            if not together.wait():
                os.kill(server._forkserver_pid, signal.SIGKILL)
            raise EOFError
        return popen(process)

    def run() -> int | None:
        process: Any = launcher(target=targets.check_size, args=(b"data",))
        process.start()
        return finish(process)

    monkeypatch.setattr(spawn, "_server_imports_main", True)
    monkeypatch.setattr(spawn, "_server_popen", lambda: kill_first)
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(run) for _ in range(4)]
    assert [each.result() for each in runs] == [0] * 4
    assert not spawn._server_imports_main


@pytest.mark.row("H216")
@FORK_WARNING
def test_a_fork_during_the_launch_of_another_thread_can_launch_itself() -> None:
    """SPAWN-9"""
    held, done = threading.Event(), threading.Event()

    def launch_for_ever() -> None:
        with spawn._importable_main():
            held.set()
            done.wait()

    thread = threading.Thread(target=launch_for_ever)
    thread.start()
    held.wait()
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        with spawn._importable_main():
            os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0
