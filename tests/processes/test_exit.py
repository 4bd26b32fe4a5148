"""The end of a process is noticed through a descriptor; its exit code is correct or None."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import core_targets as targets
from aiomultiprocess import Process, Worker
from aiomultiprocess._processes import exit as exits
from aiomultiprocess._processes.exit import Exit
from aiomultiprocess._processes.spawn import process_class
from aiomultiprocess.core import get_context
from support import block_until_dead, run_script, wait_for_exit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a thread waits there")

Launch = Callable[..., Any]
THREADS, ROUNDS = 6, 12  # that ask about one process at once


@pytest.fixture
def switches() -> Iterator[None]:
    """Switch threads as often as possible, so that they interleave anywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["pidfd", "sentinel"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The descriptor through which the end is noticed."""
    if request.param == "sentinel":
        monkeypatch.setattr(exits, "_pidfd_of", lambda pid: None)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    return str(request.param)


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts processes that are gone after the test."""
    processes: list[Any] = []

    def launch(target: Callable[..., object], *args: object) -> Any:
        process: Any = process_class(get_context())(target=target, args=args)
        process.start()
        processes.append(process)
        return process

    yield launch
    for process in processes:
        if process.is_alive():  # the test has failed
            process.kill()
            process.join()
        process.close()


async def end_of(process: Any) -> Exit:
    exit_ = Exit(process)
    assert not exit_.check()
    await asyncio.wait_for(exit_.wait(), 20)
    return exit_


async def test_an_exit_code_is_right(start_method: str, means: str, launch: Launch) -> None:
    assert (await end_of(launch(targets.exit_soon, 7))).exitcode == 7


async def test_a_signal_is_a_negative_exit_code(
    start_method: str, means: str, launch: Launch
) -> None:
    process = launch(targets.sleep_long)
    process.kill()
    exit_ = Exit(process)
    await exit_.wait()
    assert exit_.exitcode == process.exitcode == -signal.SIGKILL


async def test_the_end_is_reported_once_in_the_loop(means: str, launch: Launch) -> None:
    reported = asyncio.Event()
    calls = []
    watch_ = Exit(launch(targets.exit_soon, 3)).watch(
        asyncio.get_running_loop(),
        lambda: (calls.append(watch_.exitcode), reported.set()),
    )
    await reported.wait()
    await asyncio.sleep(0)
    assert calls == [3]
    watch_.close()


async def test_a_watch_of_a_process_that_has_ended_calls_back(means: str, launch: Launch) -> None:
    process = launch(targets.sleep_long)
    process.kill()
    block_until_dead(process.pid)
    reported = asyncio.Event()
    Exit(process).watch(asyncio.get_running_loop(), reported.set)
    assert not reported.is_set()  # never from inside the call
    await reported.wait()


async def test_a_closed_watch_is_silent(means: str, launch: Launch) -> None:
    process = launch(targets.sleep_long)
    exit_ = Exit(process)
    closed = exit_.watch(asyncio.get_running_loop(), lambda: pytest.fail("called back"))
    closed.close()
    closed.close()
    process.kill()
    await exit_.wait()


@pytest.mark.row("B18")
async def test_a_forked_grandchild_does_not_hide_the_end(tmp_path: Path, launch: Launch) -> None:
    pid_file = tmp_path / "pid"
    exit_ = await end_of(launch(targets.fork_and_exit, str(pid_file)))
    assert exit_.exitcode == 5
    grandchild = int(pid_file.read_text())
    os.kill(grandchild, signal.SIGKILL)
    await wait_for_exit([grandchild])


async def test_a_child_that_closes_its_sentinel_is_awaited_by_a_thread(
    means: str, launch: Launch
) -> None:
    process = launch(targets.close_everything_and_wait)
    if means == "sentinel":
        await asyncio.to_thread(exits._is_readable, process.sentinel, None)
    exit_ = Exit(process)
    waiting = asyncio.ensure_future(exit_.wait())
    await asyncio.sleep(0)
    process.kill()
    await waiting
    assert exit_.exitcode == -signal.SIGKILL


@pytest.mark.row("E43")
async def test_a_process_that_other_code_reaped_has_ended_with_an_unknown_code(
    means: str, launch: Launch
) -> None:
    process = launch(targets.sleep_long)
    exit_ = Exit(process)
    waiting = asyncio.ensure_future(exit_.wait())
    await asyncio.sleep(0)
    process.kill()
    os.waitpid(process.pid, 0)  # noqa: ASYNC222 - it has been killed
    await asyncio.wait_for(waiting, 20)
    assert exit_.ended
    assert exit_.exitcode is None
    assert process.exitcode == exits.UNKNOWN  # so that multiprocessing lets it be closed


async def test_a_code_that_multiprocessing_collected_first_is_right(
    means: str, launch: Launch
) -> None:
    process = launch(targets.exit_soon, 4)
    exit_ = Exit(process)
    process.join()
    assert exit_.check()
    assert exit_.exitcode == 4


def test_a_process_is_waited_for_without_a_loop(
    start_method: str, means: str, launch: Launch
) -> None:
    exit_ = Exit(launch(targets.exit_soon, 6))
    exit_.block()
    assert exit_.exitcode == 6


def test_two_loops_wait_for_one_process(means: str, launch: Launch) -> None:
    exit_ = Exit(launch(targets.exit_soon, 2))
    threads = [threading.Thread(target=asyncio.run, args=(exit_.wait(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exit_.exitcode == 2


def in_loops_of_threads(
    wait: Callable[[], Coroutine[Any, Any, Any]], end: Callable[[], object]
) -> list[Any]:
    """What `wait` returns in each of the threads, which all wait in loops of their own by `end`."""
    ready = threading.Barrier(THREADS + 1, timeout=20)

    async def main() -> Any:
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        ready.wait()
        return await waiting

    with ThreadPoolExecutor(THREADS) as threads:
        waiting = [threads.submit(lambda: asyncio.run(main())) for _ in range(THREADS)]
        ready.wait()
        end()
        return [thread.result() for thread in waiting]


def test_all_threads_that_join_a_process_learn_its_exit_code(
    start_method: str, tmp_path: Path, switches: None
) -> None:
    async def join() -> int | None:
        await process.join(timeout=20)
        return process.exitcode

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for _ in range(ROUNDS):
        process = Process(target=targets.exit_when_released, args=(str(fifo), 7))
        process.start()
        assert in_loops_of_threads(join, lambda: fifo.write_bytes(b"")) == [7] * THREADS
        process.close()


def test_all_threads_that_join_a_worker_get_its_result(
    start_method: str, tmp_path: Path, switches: None
) -> None:
    async def join() -> tuple[int, int | None]:
        return len(await worker.join(timeout=20)), worker.exitcode

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for _ in range(ROUNDS):
        worker = Worker(target=targets.zeros_when_released, args=(str(fifo), 1_000_000))
        worker.start()
        found = in_loops_of_threads(join, lambda: fifo.write_bytes(b""))
        assert found == [(1_000_000, 0)] * THREADS
        worker.close()


async def test_a_thread_waits_where_no_descriptor_is_left(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> int:
        raise OSError("too many open files")

    exit_ = Exit(launch(targets.exit_soon, 8))
    monkeypatch.setattr(os, "dup", refuse)
    await exit_.wait()
    assert exit_.exitcode == 8


@pytest.mark.row("E43")
async def test_asyncio_subprocesses_beside_ours_keep_their_codes(launch: Launch) -> None:
    ours = Exit(launch(targets.exit_soon, 8))
    theirs = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "raise SystemExit(9)", stdin=subprocess.DEVNULL
    )
    await asyncio.gather(ours.wait(), theirs.wait())
    assert (ours.exitcode, theirs.returncode) == (8, 9)


@pytest.mark.row("B25")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_copy_knows_nothing_and_closes_nothing(launch: Launch) -> None:
    process = launch(targets.sleep_long)
    exit_ = Exit(process)
    pid = os.fork()
    if pid == 0:  # the copy: it must not take the process for dead, or close what it shares
        os._exit(10 if not exit_.check() and exit_.close() is None else 11)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    process.kill()
    exit_.block()
    assert exit_.exitcode == -signal.SIGKILL


@pytest.mark.row("B25")
@pytest.mark.parametrize("kind", ["Process", "Worker"])
def test_a_join_in_a_forked_copy_says_whose_child_the_process_is(kind: str, tmp_path: Path) -> None:
    program = f"""
        import asyncio, os
        import core_targets as targets
        from aiomultiprocess import {kind}

        if __name__ == "__main__":
            process = {kind}(target=targets.wait_long)
            process.start()
            copy = os.fork()
            if copy == 0:
                try:
                    asyncio.run(process.join())
                except RuntimeError as error:
                    print(error, flush=True)
                os._exit(0)
            os.waitpid(copy, 0)
            print(process.pid, os.getpid(), copy)
            process.kill()
    """
    script = run_script(tmp_path, program)
    said, pids = script.out.splitlines()
    pid, parent, copy = pids.split()
    assert f"process {pid} is a child of process {parent}" in said
    assert f"copy in process {copy}: only the parent can wait for it" in said
    assert script.err == ""
