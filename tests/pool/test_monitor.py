"""`Pool(monitor=True)`: a socket that gives the pool's owner its statistics, and no one else."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import json
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import monitored
import workload
from aiomultiprocess import Pool, PoolExecutor, RoundRobin
from aiomultiprocess._parent import monitor, monitor_folder
from support import Meeting, Script, pool_script, run_script, wait_for_exit

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such sockets"),
]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets of this test lie; a path that is short enough for one."""
    runtime = Path(tempfile.mkdtemp(prefix="amp-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield runtime / "aiomultiprocess"
    shutil.rmtree(runtime)


def sockets(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def ask(path: Path) -> dict[str, Any]:
    """What a monitor answers."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    found: dict[str, Any] = json.loads(answer)
    return found


def as_json(stats: object) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(stats)))  # type: ignore[call-overload]


def without_times(stats: Any) -> Any:
    """Statistics without what changes by itself."""
    for worker in stats["workers"]:
        for name in ("uptime", "busy", "lag", "rss", "state"):
            worker.pop(name, None)
    return stats


# -- what it answers -------------------------------------------------------------------------------


async def test_a_monitor_answers_with_the_statistics_of_the_moment(
    folder: Path, backend: str
) -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1, monitor=True) as pool:
        results = pool.map(workload.meet, [meeting.port] * 5)
        arrivals = await meeting.first(2)
        (path,) = sockets(folder)
        answer = await ask(path)
        assert (answer["pid"], answer["backend"], answer["state"]) == (os.getpid(), backend, "open")
        assert [worker["state"] for worker in answer["stats"]["workers"]] == ["running"] * 2
        assert without_times(answer["stats"]) == without_times(as_json(pool.stats()))
        for arrival in arrivals:
            arrival.release()
        await meeting.release_all(3)
        await results
        answer = await ask(path)
        assert (answer["stats"]["done"], answer["stats"]["running"]) == (5, 0)
        assert [worker["state"] for worker in answer["stats"]["workers"]] == ["idle"] * 2


async def test_an_inline_pool_and_one_of_a_users_scheduler_answer(folder: Path) -> None:
    class Named(RoundRobin):
        """Its queues have names that are no numbers."""

        def register_queue(self, tqueue: Any) -> Any:
            return ("queue", super().register_queue(tqueue))

        def schedule_task(self, *args: Any) -> Any:
            return ("queue", super().schedule_task(*args))

        def register_process(self, qid: Any) -> None:
            super().register_process(qid[1])

    async with Pool(1, backend="inline", monitor=True) as pool:
        assert await pool.apply(workload.two) == 2
        (path,) = sockets(folder)
        answer = await ask(path)
        assert (answer["backend"], answer["stats"]["done"]) == ("inline", 1)
    own = Pool(1, scheduler=Named(), monitor=True)
    assert await own.apply(workload.two) == 2
    (path,) = sockets(folder)
    assert (await ask(path))["stats"]["workers"][0]["queue"] == ["queue", 0]
    own.terminate()
    await own.join()


class Unwilling:
    """Can be neither copied nor shown."""

    def __deepcopy__(self, memo: object) -> Any:
        raise TypeError("not to be copied")

    def __repr__(self) -> str:
        raise ValueError("not to be shown")


@pytest.mark.row("H213")
async def test_a_pool_whose_queues_cannot_be_copied_answers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Named(RoundRobin):
        """Its queues have names that refuse to be copied, and to be shown."""

        def __init__(self) -> None:
            super().__init__()
            self.names: list[Any] = []

        def register_queue(self, tqueue: Any) -> Any:
            super().register_queue(tqueue)
            name = Unwilling() if self.names else threading.Lock()
            self.names.append(name)
            return name

        def schedule_task(self, *args: Any) -> Any:
            return self.names[super().schedule_task(*args)]

        def register_process(self, qid: Any) -> None:
            super().register_process(self.names.index(qid))

    async with Pool(2, scheduler=Named(), queuecount=2, monitor=True) as pool:
        assert await pool.map(workload.double, range(4)) == [0, 2, 4, 6]
        (path,) = sockets(folder)
        first, second = (await ask(path))["stats"]["workers"]
        assert "lock object" in first["queue"]
        assert second["queue"].startswith("Unwilling")
    assert caplog.text == ""


async def test_a_pool_over_a_dask_cluster_answers_with_its_hosts(
    folder: Path, dask_pool: Any, dask: Any
) -> None:
    async with dask_pool(2, monitor=True) as pool:
        assert await pool.map(workload.double, range(10)) == list(range(0, 20, 2))
        (path,) = sockets(folder)
        answer = await ask(path)
        assert (answer["backend"], answer["stats"]["done"]) == ("dask", 10)
        assert all(worker["host"].startswith("tcp://") for worker in answer["stats"]["workers"])
    assert sockets(folder) == []


async def test_each_pool_of_a_process_has_a_socket_of_its_own(folder: Path) -> None:
    async with Pool(1, monitor=True), Pool(2, monitor=True):
        numbers = set()
        for path in sockets(folder):
            answer = await ask(path)
            numbers.add(answer["pool"])
            assert path.name == f"{os.getpid()}-{answer['pool']}.sock"
        assert len(numbers) == 2


def test_a_pool_of_an_executor_answers(folder: Path) -> None:
    with PoolExecutor(1, monitor=True) as executor:
        assert executor.submit(workload.two).result() == 2
        (path,) = sockets(folder)
        assert asyncio.run(ask(path))["stats"]["done"] == 1
    assert sockets(folder) == []


ON_UVLOOP = pool_script(
    """
    async with Pool(1, monitor=True) as pool:
        await pool.apply(workload.two)
        (path,) = glob.glob(os.environ["XDG_RUNTIME_DIR"] + "/aiomultiprocess/*.sock")
        reader, writer = await asyncio.open_unix_connection(path)
        print(json.loads(await reader.read())["stats"]["done"])
        writer.close()
    print(os.path.exists(path))
    """,
    setup="import glob, json, uvloop",
    call="asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())",
)


def test_a_pool_on_uvloop_answers(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not for this platform")
    script = run_script(tmp_path, ON_UVLOOP)
    assert (script.out, script.process.returncode) == ("1\nFalse\n", 0), script.err


def test_who_asks_for_no_monitor_imports_nothing_of_it(tmp_path: Path, folder: Path) -> None:
    body = """
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        print(*[name for name in sys.modules if "monitor" in name and "aiomulti" in name])
    """
    assert run_script(tmp_path, pool_script(body)).out == "\n"
    assert not folder.exists()


# -- who may ask -----------------------------------------------------------------------------------


async def test_the_socket_and_its_folder_are_open_to_their_owner_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        async with Pool(1, monitor=True):
            (path,) = sockets(folder)
            assert mode_of(path) == 0o600
            assert mode_of(folder) == 0o700
    finally:
        os.umask(before)


async def test_a_process_of_another_user_gets_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pool(1, monitor=True):
        (path,) = sockets(folder)
        monkeypatch.setattr(monitor_folder, "_own_uid", lambda: os.geteuid() + 1)
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def make_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def make_link(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (make_open, "is open to other users"),
        (make_link, "is no folder"),
        (Path.touch, "is no folder"),
    ],
)
async def test_a_folder_that_others_could_open_or_exchange_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, reason: str
) -> None:
    prepare(folder)
    second = folder.parent / "second"
    second.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(second))
    async with Pool(1, monitor=True):  # in the other folder
        assert len(sockets(second / f"aiomultiprocess-{os.geteuid()}")) == 1
        assert sockets(folder) == []
    shutil.rmtree(second / f"aiomultiprocess-{os.geteuid()}")
    prepare_second = second / f"aiomultiprocess-{os.geteuid()}"
    make_link(prepare_second)
    with pytest.raises(RuntimeError, match=rf"monitor=True needs a folder .*{reason}.*XDG_RUNTIME"):
        Pool(1, monitor=True)


async def test_a_folder_of_another_user_and_a_long_path_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(monitor_folder, "_own_uid", lambda: os.geteuid() + 1)
    with pytest.raises(RuntimeError, match=r"belongs to another user; the path .* is too long"):
        Pool(1, monitor=True)


def test_a_pool_whose_first_use_finds_no_folder_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = Pool(1, monitor=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    shutil.rmtree(folder.parent)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="monitor=True needs a folder"):
            pool.map(workload.double, [1])
        with pytest.raises(RuntimeError, match=r"could not be started .* make another"):
            pool.map(workload.double, [1])
        pool.close()
        await pool.join()

    asyncio.run(main())
    folder.parent.mkdir()


def test_other_values_and_windows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiomultiprocess import _arguments
    from as_on_windows import WindowsSys

    with pytest.raises(TypeError, match="monitor must be True or False, got 1"):
        Pool(1, monitor=1)  # type: ignore[arg-type]
    monkeypatch.setattr(_arguments, "sys", WindowsSys())
    with pytest.raises(RuntimeError, match="monitor=True is not possible on Windows"):
        Pool(1, monitor=True)
    assert Pool(1).backend


# -- clients that misbehave ------------------------------------------------------------------------


async def test_clients_that_send_garbage_or_vanish_do_no_harm(folder: Path) -> None:
    async with Pool(1, monitor=True) as pool:
        (path,) = sockets(folder)
        for _ in range(3):
            gone = socket.socket(socket.AF_UNIX)
            gone.connect(str(path))
            gone.send(b"\0garbage" * 1000)
            gone.close()
        talker = socket.socket(socket.AF_UNIX)
        talker.connect(str(path))
        talker.send(b"\xff" * 1000)
        assert (await ask(path))["pid"] == os.getpid()
        assert json.loads(talker.recv(1 << 16))["pid"] == os.getpid()
        talker.close()
        assert await pool.apply(workload.two) == 2


async def test_of_many_clients_that_hang_the_oldest_give_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b'{"filling": "' + b"x" * (8 << 20) + b'"}'
    monkeypatch.setattr(monitor.Monitor, "_answer", lambda self: large)
    async with Pool(1, monitor=True) as pool:
        (path,) = sockets(folder)
        (serving,) = [each for each in monitor._monitors if each.path == str(path)]
        hanging = []
        for _ in range(monitor.CLIENTS + 5):
            peer = socket.socket(socket.AF_UNIX)
            peer.setblocking(False)
            peer.connect(str(path))
            hanging.append(peer)
            assert await pool.apply(workload.two) == 2  # the loop goes on, and accepts
        assert len(serving._clients) <= monitor.CLIENTS
        assert len((await ask(path))["filling"]) == 8 << 20  # though it fits into no buffer
        assert len(serving._clients) < monitor.CLIENTS
        for peer in hanging:
            peer.close()


@pytest.mark.row("H125")
async def test_where_no_descriptor_is_left_the_monitor_pauses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        """A listener whose process may open nothing more."""

        def __init__(self, listener: socket.socket) -> None:
            self.asked = 0
            self.fileno, self.close, self._accept = (
                listener.fileno,
                listener.close,
                listener.accept,
            )

        def accept(self) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._accept()

    monkeypatch.setattr(monitor, "PAUSE", 0.1)
    async with Pool(1, monitor=True):
        (path,) = sockets(folder)
        (serving,) = [each for each in monitor._monitors if each.path == str(path)]
        listener: Any = Exhausted(serving._listener)
        serving._listener = listener
        assert (await ask(path))["pid"] == os.getpid()
        assert listener.asked == 2


# -- its end ---------------------------------------------------------------------------------------


async def test_the_socket_goes_when_the_workers_have_gone(folder: Path) -> None:
    pool = Pool(1, monitor=True)
    async with Meeting() as meeting:
        call = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.next()
        pool.close()
        (path,) = sockets(folder)
        assert (await ask(path))["state"] == "closing"
        arrival.release()
        await call
        await pool.join()
    assert sockets(folder) == []


async def test_a_client_that_waits_when_the_pool_ends_is_dismissed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor.Monitor, "_answer", lambda self: b"x" * (8 << 20))
    async with Pool(1, monitor=True) as pool:
        (path,) = sockets(folder)
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1)
        await reader.readexactly(1)
        await pool.apply(workload.two)
    assert len(await reader.read()) < 8 << 20
    writer.close()
    await writer.wait_closed()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_socket_of_a_forgotten_pool_goes_with_it(folder: Path) -> None:
    async def main() -> None:
        pool: Any = Pool(1, monitor=True)
        await pool.apply(workload.two)
        assert len(sockets(folder)) == 1
        del pool
        gc.collect()
        assert sockets(folder) == []

    asyncio.run(main())
    kept = []

    async def leave() -> None:
        kept.append(Pool(1, monitor=True))
        await kept[0].apply(workload.two)

    asyncio.run(leave())  # its loop ends first
    assert len(sockets(folder)) == 1
    kept.clear()
    gc.collect()
    assert sockets(folder) == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_pool_that_another_thread_collects_closes_its_socket(folder: Path) -> None:
    pools: list[Any] = [Pool(1, monitor=True)]
    await pools[0].apply(workload.two)
    pids = [worker.pid for worker in pools[0].processes]
    await asyncio.to_thread(pools.clear)
    gc.collect()
    assert sockets(folder) == []
    await wait_for_exit(pids)


# -- other processes -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
async def test_a_forked_copy_neither_answers_nor_removes_the_socket(folder: Path) -> None:
    async with Pool(1, monitor=True) as pool:
        await pool.apply(workload.two)
        (path,) = sockets(folder)
        (serving,) = [each for each in monitor._monitors if each.path == str(path)]
        copy = os.fork()
        if not copy:
            serving.close()
            if serving._listener.fileno() == -1:
                (folder.parent / "sound").touch()
            os._exit(0)
        await wait_for_exit([copy])
        assert (folder.parent / "sound").exists()
        assert path.exists()
        assert (await ask(path))["pid"] == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
@pytest.mark.usefixtures("start_method")
async def test_no_worker_has_the_socket_open(folder: Path) -> None:
    async with Pool(1, monitor=True) as pool:
        (path,) = sockets(folder)
        (serving,) = [each for each in monitor._monitors if each.path == str(path)]
        ours = os.fstat(serving._listener.fileno()).st_ino
        assert ours in monitored.open_sockets()
        assert ours not in await pool.apply(monitored.open_sockets)


FORKING = pool_script("""
import threading
async with Pool(1, monitor=True) as pool:
    await pool.apply(workload.two)
    ours, theirs = os.pipe()
    copy = os.fork()
    if not copy:
        os.read(ours, 1)  # until it is killed
        os._exit(0)
    print("pids", os.getpid(), copy, *[worker.pid for worker in pool.processes], flush=True)
    await asyncio.sleep(1000)
""")


@pytest.mark.row("H124")
async def test_a_killed_process_leaves_a_dead_socket_and_the_next_pool_removes_it(
    folder: Path, tmp_path: Path
) -> None:
    with Script(tmp_path, FORKING, "-W", "ignore::DeprecationWarning") as program:
        pid, copy, worker = map(int, await program.line("pids"))
        (path,) = sockets(folder)
        assert (await ask(path))["pid"] == pid
        async with Pool(1, monitor=True):
            assert path in sockets(folder)  # it is no dead one
        os.kill(pid, signal.SIGKILL)
        program.process.wait()
        await wait_for_exit([worker])
        assert monitor_folder.is_dead(str(path))  # though a copy of its process lives
        async with Pool(1, monitor=True):
            (left,) = sockets(folder)
            assert left.name.startswith(f"{os.getpid()}-")
        os.kill(copy, signal.SIGKILL)
        await wait_for_exit([copy])


async def test_the_name_of_a_live_socket_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process with the same number, in another container with the same folder."""
    os.mkdir(folder, mode=0o700)
    monkeypatch.setattr(monitor, "_numbers", iter([1, 2]))
    with socket.socket(socket.AF_UNIX) as other:
        taken = folder / f"{os.getpid()}-1.sock"
        other.bind(str(taken))
        other.listen()
        async with Pool(1, monitor=True):
            assert (await ask(folder / f"{os.getpid()}-2.sock"))["pool"] == 2
        assert sockets(folder) == [taken]


async def test_a_socket_that_took_the_place_of_ours_is_left(folder: Path) -> None:
    async with Pool(1, monitor=True):
        (path,) = sockets(folder)
        path.unlink()
        path.touch()
    assert sockets(folder) == [path]


def test_the_monitor_serves_while_other_threads_have_loops(folder: Path) -> None:
    """The pool's loop serves, whichever thread asks."""

    async def main() -> None:
        async with Pool(1, monitor=True) as pool:
            await pool.apply(workload.two)
            (path,) = sockets(folder)
            answers: list[Any] = []
            thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask(path))))
            thread.start()
            while thread.is_alive():
                await pool.apply(workload.two)
            assert answers[0]["pid"] == os.getpid()

    asyncio.run(main())
