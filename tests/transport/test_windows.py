"""The fallbacks for Windows, on a system that simulates it (as_on_windows.py).

test_transport.py runs the transport contract over them; here they carry whole pools. Nothing of
this ran on Windows when it was written: there, the suite itself does.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("no need to play it", allow_module_level=True)

import as_on_windows
import core_targets as targets
import workload
from aiomultiprocess import Pool, PoolTerminatedError, WorkerLostError
from aiomultiprocess._processes import exit as exits
from aiomultiprocess._processes import loops
from aiomultiprocess._transport import pipe, select, windows
from aiomultiprocess._wire import frames
from aiomultiprocess._wire.frames import Kind
from aiomultiprocess.core import get_context
from support import Meeting, Script, outcomes, pool_script, wait_for_exit


@pytest.fixture(autouse=True)
def _windows_is_played(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv(select.VARIABLE, "pipe")
    replace = functools.partial(monkeypatch.setattr, raising=False)
    as_on_windows.pretend(tmp_path_factory.mktemp("pages"), replace)


# -- pools -----------------------------------------------------------------------------------------


def platform_of_the_worker() -> tuple[str, str]:
    """As its watchdog and its loop see it."""
    return str(loops.sys.platform), type(asyncio.get_running_loop()).__name__


async def test_a_pool_carries_results_errors_and_large_values() -> None:
    async with Pool(2) as pool:
        assert type(pool._selection.make()) is windows.WindowsPipeBackend
        assert await pool.map(workload.double, range(3000)) == [2 * n for n in range(3000)]
        assert await pool.apply(len, (bytes(5_000_000),)) == 5_000_000
        assert await pool.apply(bytes, (5_000_000,)) == bytes(5_000_000)
        with pytest.raises(ValueError, match="seven"):
            await pool.apply(int, ("seven",))
        platform, loop = await pool.apply(platform_of_the_worker)
        assert platform == "win32"
        assert loop == asyncio.SelectorEventLoop.__name__


async def test_workers_that_leave_lose_no_result() -> None:
    """Their last bytes are received, although their exit may be noticed first (WINDOWS-3)."""
    pool = Pool(2, maxtasksperchild=1)
    results = pool.starmap(bytes.ljust, [(b"x" * n, 300_000) for n in range(8)])
    pool.close()
    assert await results == [(b"x" * n).ljust(300_000) for n in range(8)]
    await pool.join()


async def test_a_dead_worker_fails_what_it_had_started_and_another_runs_the_rest() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        items = [(meeting.port, n) for n in range(5)]
        reading = asyncio.ensure_future(outcomes(pool.starmap(workload.meet, items)))
        first = await meeting.next()
        os.kill(first.pid, signal.SIGKILL)
        await meeting.release_all(4)
        lost, *found = await reading
        assert isinstance(lost, WorkerLostError)
        assert (lost.pid, lost.exitcode) == (first.pid, -signal.SIGKILL)
        assert found == ["go"] * 4


async def test_terminate_ends_workers_at_once() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        task = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        [worker] = pool.processes
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await task
        await pool.join()
        await arrival.gone  # with its process, which had no grace
        assert worker.exitcode == -signal.SIGTERM


async def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    body = """
        as_on_windows.pretend(pathlib.Path(os.getcwd()))
        async with Pool(2) as pool:
            await pool.apply(workload.two)
            print("workers", *(worker.pid for worker in pool.processes), flush=True)
            await asyncio.Event().wait()
    """
    body = "\n".join(line.removeprefix("        ") for line in body.splitlines())
    with Script(tmp_path, pool_script(body, setup="import as_on_windows, pathlib")) as script:
        pids = [int(pid) for pid in await script.line("workers ")]
        script.process.kill()
        await wait_for_exit(pids)


def test_workers_run_a_loop_that_watches_sockets_unless_another_was_chosen() -> None:
    assert loops.for_worker(None) is asyncio.SelectorEventLoop
    assert loops.for_worker("winloop") == "winloop"


# -- the pipe --------------------------------------------------------------------------------------


class Recorder:
    """A socket that takes what it is given."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(bytes(data))
        return len(data)


@pytest.mark.parametrize(
    "segments",
    [
        [b"head", bytearray(b"er"), memoryview(b"payload")],
        [b"header", bytes(pipe.JOINED - 6)],
        [b"header", b"x" * (pipe.JOINED + 5), b"never looked at"],
        [b"x" * (3 * pipe.JOINED)],
    ],
)
def test_segments_are_sent_as_one_copy_of_bounded_size(segments: list[frames.Segment]) -> None:
    recorder: Any = Recorder()
    joined = b"".join(segments)[: pipe.JOINED]
    assert pipe._send_joined(recorder, segments) == len(joined)
    assert recorder.sent == [joined]


@pytest.fixture
def link() -> Iterator[tuple[Any, Any]]:
    """The parent's link, and the bare socket at its other end."""
    made = windows.WindowsPipeBackend()
    link, end = made.create()
    yield link, end._sock
    end.release()
    made.close()


def listen(link: Any, loop: asyncio.AbstractEventLoop, on_chunk: Callable[[int], None]) -> None:
    link.start(loop, lambda *frame: on_chunk(frame[3]), on_room=lambda: None, on_broken=pytest.fail)


def test_the_last_bytes_of_a_dead_peer_are_waited_for(link: tuple[Any, Any]) -> None:
    ours, theirs = link
    first, second = (frames.HEADER.pack(Kind.RESULTS, 0, 0, 0, at, 0, 0, 0) for at in (1, 2))
    first_has_arrived, chunk_ids = threading.Event(), []

    def under_way() -> None:
        first_has_arrived.wait(20)
        theirs.sendall(second)
        theirs.close()

    def on_chunk(chunk_id: int) -> None:
        chunk_ids.append(chunk_id)
        first_has_arrived.set()

    loop = asyncio.new_event_loop()
    listen(ours, loop, on_chunk)
    theirs.setblocking(True)
    theirs.sendall(first)
    late = threading.Thread(target=under_way)
    late.start()
    ours.drain_dead()
    late.join()
    assert chunk_ids == [1, 2]
    assert ours._sock.gettimeout() == 0  # as before
    ours.close()
    loop.close()


def test_the_wait_for_a_silent_peer_is_bounded(
    link: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LAST_BYTES", 0.01)
    ours, _ = link
    loop = asyncio.new_event_loop()
    listen(ours, loop, pytest.fail)
    ours.drain_dead()
    assert not ours._gone
    ours.close()
    loop.close()


async def test_an_aborted_connection_means_that_the_peer_has_gone(
    link: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def abort(*_args: object) -> int:
        raise ConnectionAbortedError

    ours, _ = link
    listen(ours, asyncio.get_running_loop(), pytest.fail)
    monkeypatch.setattr(pipe, "_send", abort)
    ours.send(Kind.CLOSE)
    ours.flush()
    assert ours._gone
    assert not ours.congested
    monkeypatch.setattr(ours._inbox, "receive", abort)
    ours.drain_dead()


def test_small_frames_do_not_wait_for_acknowledgements(link: tuple[Any, Any]) -> None:
    ours, _ = link
    assert ours._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_pair_that_is_refused_leaves_no_shared_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("no more sockets")

    monkeypatch.setattr(socket, "socketpair", refuse)
    with pytest.raises(OSError, match="no more sockets"):
        windows.WindowsPipeBackend().create()


# -- the shared page -------------------------------------------------------------------------------


def test_a_shared_page_is_found_by_its_name() -> None:
    ours = windows.NamedSharedPage.create()
    theirs = windows.NamedSharedPage(ours.name)
    other = windows.NamedSharedPage.create()
    assert ours.started == other.started == 0
    theirs.mark_started(7)
    theirs.close()
    assert (ours.started, other.started) == (7, 0)
    for page in (ours, ours, other):
        page.close()
    assert ours.started == 7


def test_memory_that_is_refused_is_the_reason_for_no_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        @staticmethod
        def mmap(*_args: object, **_kwds: object) -> None:
            raise OSError("the paging file is too small")

    monkeypatch.setattr(windows, "_mmap", Refusing)
    with pytest.raises(RuntimeError, match=r"pipe: .*refused .the paging file is too small"):
        select.select("pipe")


# -- exits -----------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Any:
    process: Any = get_context().Process(target=targets.exit_soon, args=(7,))  # type: ignore[attr-defined]
    process.start()
    return process


async def test_the_end_of_a_process_is_reported_once_by_a_thread(process: Any) -> None:
    ended = asyncio.Event()
    calls = []
    watch = exits.Exit(process).watch(
        asyncio.get_running_loop(), lambda: (calls.append(watch.exitcode), ended.set())
    )
    await ended.wait()
    await asyncio.sleep(0)
    assert calls == [7]
    watch.close()
    process.close()


def test_the_end_of_a_process_is_awaited_without_a_loop(process: Any) -> None:
    exit_ = exits.Exit(process)
    exit_.block()
    assert exit_.exitcode == 7
    process.close()


def test_a_thread_that_comes_late_finds_the_process_closed(process: Any) -> None:
    exit_ = exits.Exit(process)
    exit_.block()
    process.close()
    exit_.sleep()  # returns: there is nothing to wait for
    assert exit_.check()
