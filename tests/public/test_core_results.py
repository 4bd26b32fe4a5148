"""Process and Worker: results of any kind, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiomultiprocess as amp
import core_targets as targets
import scarcity
from aiomultiprocess import Process, Worker, WorkerLostError
from aiomultiprocess._processes import child
from aiomultiprocess._processes import result as _result
from support import run_script, wait_for_exit

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")


@pytest.fixture(autouse=True)
def _default_context() -> Iterator[None]:
    yield
    amp.set_start_method()


# -- results ---------------------------------------------------------------------------------------


async def test_a_result_larger_than_any_pipe_arrives(start_method: str) -> None:
    assert len(await Worker(target=targets.zeros, args=(30_000_000,))) == 30_000_000


@posix
@pytest.mark.row("H157")
async def test_a_result_too_large_for_this_process_is_a_memory_error(start_method: str) -> None:
    worker = Worker(target=targets.zeros, args=(200_000_000,))
    worker.start()
    with (
        scarcity.limited(100 * scarcity.MIB),
        pytest.raises(MemoryError, match=r"the result of .*zeros has 200"),
    ):
        await worker.join(timeout=30)
    assert worker.exitcode == 0


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


@posix
async def test_a_large_result_arrives_in_a_loop_that_outlives_the_one_that_started_it(
    tmp_path: Path,
) -> None:
    async def start() -> None:
        worker.start()
        started.set()
        await asyncio.to_thread(joined.wait)

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = Worker(target=targets.zeros_when_released, args=(str(fifo), 3_000_000))
    started, joined = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(start(),))
    thread.start()
    await asyncio.to_thread(started.wait)
    join = asyncio.ensure_future(worker.join(timeout=20))
    await asyncio.sleep(0)  # both loops read by now
    joined.set()
    await asyncio.to_thread(thread.join)
    await asyncio.to_thread(fifo.write_bytes, b"")
    assert len(await join) == 3_000_000


@posix
async def test_a_signal_handler_may_query_a_worker_while_its_result_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, asked = os.readv, []

    def read_and_be_asked(fd: int, buffers: Any) -> int:
        count = read(fd, buffers)
        if count > 1000:
            asked.append(worker.is_alive())  # where a handler would run
        return count

    monkeypatch.setattr(os, "readv", read_and_be_asked)
    worker = Worker(target=targets.count_to, args=(300_000,))
    assert await worker == list(range(300_000))
    assert asked


@posix
@pytest.mark.row("H221")
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_within_a_read_loses_the_result_and_falsifies_none(
    start_method: str, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """PROCRESULT-1"""
    worker = Worker(target=targets.zeros, args=(500_000,))
    worker.start()
    receiver: Any = worker._receiver
    read, counts = receiver._read, []

    def struck(view: memoryview) -> int:
        counts.append(read(view))
        if len(counts) == nth:
            raise KeyboardInterrupt
        return int(counts[-1])

    monkeypatch.setattr(receiver, "_read", struck)
    with pytest.raises(KeyboardInterrupt):
        deque(iter(worker.is_alive, False), maxlen=0)
    with pytest.raises(WorkerLostError):
        asyncio.run(worker.join(timeout=20))
    assert len(counts) == nth
    worker.close()


@posix
@pytest.mark.row("B25")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_copy_leaves_the_result_to_its_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = Worker(target=targets.zeros_when_released, args=(str(fifo), 1_000_000))
    worker.start()
    assert worker._receiver is not None
    copy = os.fork()
    if copy == 0:
        fifo.write_bytes(b"")  # only now the result is written
        for _ in range(1000):
            worker.is_alive()
            select.select([worker._receiver._ours.fileno()], [], [], 20)  # type: ignore[union-attr]
        os._exit(0)
    assert os.waitpid(copy, 0)[1] == 0
    assert len(asyncio.run(worker.join(timeout=20))) == 1_000_000


@posix
def test_nothing_is_kept_of_loops_that_have_joined_and_ended() -> None:
    async def give_up() -> None:
        with contextlib.suppress(TimeoutError):
            await worker.join(timeout=0)

    worker = Worker(target=targets.wait_long)
    worker.start()
    asyncio.run(give_up())
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        asyncio.run(give_up())
    assert len(os.listdir("/dev/fd")) == before
    worker.kill()
    with pytest.raises(WorkerLostError):
        asyncio.run(worker.join())


@pytest.mark.row("A4")
async def test_a_result_that_cannot_be_pickled_is_an_error_that_says_so() -> None:
    worker = Worker(target=targets.return_unpicklable)
    result = await worker
    assert isinstance(result, pickle.PicklingError)
    assert "the result of core_targets.return_unpicklable cannot be pickled" in str(result)
    assert "this does not travel" in str(result)


@pytest.mark.row("A5")
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


@pytest.mark.row("B18")
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


@pytest.mark.row("A7")
async def test_worker_returns_the_system_exit_of_its_target() -> None:
    worker = Worker(target=targets.leave, args=(3,))
    result = await worker
    assert isinstance(result, SystemExit)
    assert result.code == 3
    assert worker.exitcode == 3


@pytest.mark.row("A7")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError("stop")])
async def test_worker_returns_even_base_exceptions(error: BaseException) -> None:
    worker = Worker(target=targets.fail, args=(error,))
    assert type(await worker) is type(error)
    assert worker.exitcode == 1


@pytest.mark.row("A6")
@pytest.mark.parametrize("cls", [targets.EmptyError, targets.NoCauseError])
async def test_worker_returns_an_exception_that_misbehaves_when_it_is_inspected(cls: Any) -> None:
    result = await Worker(target=targets.fail_as, args=(cls, "odd"))
    assert type(result) is cls
    assert result.args == ("odd",)


class Interrupted:
    """A sender that Ctrl-C interrupts when a part of the result is written."""

    def __init__(self) -> None:
        self.kinds: list[int] = []

    def send(self, kind: int, payload: Any) -> None:
        self.kinds.append(kind)
        raise KeyboardInterrupt


def test_no_error_is_written_after_a_part_of_the_result() -> None:
    """The parent would take it for the rest."""
    sender: Any = Interrupted()
    unit = child.ChildMain(
        label="get_pid",
        target=targets.get_pid,
        args=(),
        kwargs={},
        initializer=None,
        initargs=(),
        loop=None,
    )
    unit.sender = sender
    with pytest.raises(KeyboardInterrupt):
        child._run_in_loop(unit)
    assert sender.kinds == [_result.RESULT]


@pytest.mark.row("B13")
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


@pytest.mark.row("B13")
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
def test_a_process_that_has_not_started_cannot_be_ended(call: Any) -> None:
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


async def test_a_join_of_a_process_that_has_ended_does_not_time_out() -> None:
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


@pytest.mark.row("H222")
@pytest.mark.parametrize("cls", [Process, Worker])
async def test_a_process_may_be_closed_twice_as_those_of_multiprocessing(
    cls: type[Process],
) -> None:
    process = cls(target=targets.get_pid)
    process.start()
    await process.join()
    for _ in range(2):
        process.close()


@pytest.mark.row("H222")
@pytest.mark.parametrize("cls", [Process, Worker])
async def test_a_join_refuses_a_timeout_that_is_no_number(cls: type[Process]) -> None:
    process = cls(target=targets.get_pid)
    process.start()
    with pytest.raises(ValueError, match="timeout must be a number of seconds or None, got nan"):
        await process.join(timeout=float("nan"))
    await process.join(timeout=20)


async def test_only_a_process_that_has_ended_is_closed() -> None:
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


async def test_a_task_that_is_left_in_the_loop_is_cancelled_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "note"
    await Process(target=targets.leave_a_task, args=(str(path),))
    assert path.read_text() == "cancelled"


@pytest.mark.row("E43")
@posix
async def test_an_exit_code_that_other_code_collected_is_unknown(start_method: str) -> None:
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


REAPS_ALL_CHILDREN = """
import asyncio, contextlib, os, sys, threading
import core_targets as targets
from aiomultiprocess import Worker

def steal():
    with contextlib.suppress(ChildProcessError):  # we were first, and there is no other child
        os.waitpid(-1, 0)

async def main():
    worker = Worker(target=targets.get_pid)
    worker.start()
    thief = threading.Thread(target=steal)
    thief.start()
    assert await worker.join() == worker.pid
    assert worker.exitcode in (0, None)
    thief.join()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(9)")
    assert await process.wait() == 9
    print("undisturbed")

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.row("E43")
@posix
def test_a_program_that_reaps_all_children_does_not_disturb_a_worker(tmp_path: Path) -> None:
    script = run_script(tmp_path, REAPS_ALL_CHILDREN)
    assert (script.process.returncode, script.out.strip()) == (0, "undisturbed"), script.err
