"""Programs that fork, wait for any child, or run out of descriptors."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

import pytest

import workload
from aiomultiprocess import Pool, WorkerLostError, core
from aiomultiprocess._parent import supervisor
from aiomultiprocess._processes import spawn
from conftest import FORK_WARNING
from support import Meeting, pool_script, run_script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.spawned,
    pytest.mark.skipif(sys.platform == "win32", reason="forks, waits and limits of POSIX"),
]


# -- forked copies of the parent (B25) -------------------------------------------------------------


async def in_a_forked_copy(pool: Pool) -> str:
    """What a copy of this process prints when it uses the pool, drops it, and exits."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, "\n".join(map(refusal, uses_of(pool))).encode())
            del pool
            gc.collect()
        finally:
            os._exit(0)
    os.close(writing)
    await asyncio.to_thread(os.waitpid, pid, 0)
    with os.fdopen(reading) as said_there:
        return said_there.read()


def uses_of(pool: Pool) -> list[Callable[[], object]]:
    """All that a pool can be used for, up to where it would wait."""
    return [
        lambda: pool.map(workload.double, [1]),
        lambda: pool.starmap(workload.double, [(1,)]),
        lambda: pool.apply(workload.two).send(None),
        pool.close,
        pool.terminate,
        lambda: pool.join().send(None),
        lambda: pool.__aenter__().send(None),
        lambda: pool.__aexit__(None, None, None).send(None),
    ]


def refusal(use: Callable[[], object]) -> str:
    try:
        use()
    except RuntimeError as error:
        return str(error)
    return "nothing"


@pytest.mark.row("B25")
@FORK_WARNING
async def test_a_forked_copy_refuses_the_pool_and_leaves_it_alone() -> None:
    async with Pool(2) as pool:
        pids = {process.pid for process in pool.processes}
        said = (await in_a_forked_copy(pool)).splitlines()
        assert len(said) == len(uses_of(pool))
        assert [line for line in said if "forked copy" not in line] == []
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
        assert {process.pid for process in pool.processes} == pids


FORKING = """
async def first():
    global pool
    pool = Pool(2)
    return await pool.map(workload.where, range(100))

async def second():
    pids = {process.pid for process in pool.processes}
    assert set(await pool.map(workload.where, range(100))) <= pids
    pool.close()
    await pool.join()
    return pids
"""
FORKED_EXIT = """
runner = asyncio.Runner()
pids = set(runner.run(first()))
child = os.fork()
if child == 0:
    try:
        asyncio.run(second())
    except RuntimeError as error:
        print("refused:", error, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert pids <= runner.run(second())
runner.close()
print("alive")
"""


@pytest.mark.row("B25")
def test_a_forked_copy_that_exits_normally_does_not_touch_the_workers(tmp_path: Path) -> None:
    source = pool_script("pass", setup=FORKING, call=FORKED_EXIT)
    script = run_script(tmp_path, source, "-Wignore", within=20)
    # multiprocessing says itself that a copy cannot join the processes of its original
    assert "aiomultiprocess" not in script.err
    assert script.process.returncode == 0
    refused, alive = script.out.splitlines()
    assert refused.startswith("refused:")
    assert alive == "alive"


# -- other code reaps children (E43) ---------------------------------------------------------------


@pytest.mark.row("E43")
async def test_a_program_that_waits_for_any_child_takes_only_the_exit_code() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        os.kill(arrival.pid, signal.SIGKILL)
        assert os.waitpid(-1, 0) == (arrival.pid, signal.SIGKILL)  # noqa: ASYNC222 - the point
        with pytest.raises(WorkerLostError) as caught:
            await task
        assert caught.value.pid == arrival.pid
        assert caught.value.exitcode is None
        assert await pool.apply(workload.two) == 2


@pytest.mark.row("E43")
async def test_subprocesses_of_the_program_keep_their_exit_codes() -> None:
    async with Pool(1, maxtasksperchild=1) as pool:
        results = pool.map(workload.double, range(5))
        codes = await asyncio.gather(*(workload.use_a_subprocess(code) for code in range(3)))
        assert codes == [(code, b"ready") for code in range(3)]
        assert await results == [0, 2, 4, 6, 8]


# -- a system that refuses (B20) -------------------------------------------------------------------


def no_more_processes(*args: object) -> NoReturn:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.row("B20")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
async def test_work_that_waits_fails_where_the_system_starts_no_process(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by fork: multiprocessing leaves the ends of two pipes open when that fails."""
    monkeypatch.setattr(core, "context", multiprocessing.get_context(method))
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        running = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        waiting = [
            asyncio.ensure_future(pool.apply(workload.two)),
            asyncio.ensure_future(pool.map(workload.double, range(100))),
        ]
        await asyncio.sleep(0)
        monkeypatch.setattr(*START_OF[method], no_more_processes)
        os.kill(arrival.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await running
        for call in (*waiting, pool.apply(workload.two)):
            with pytest.raises(BlockingIOError):
                await call
        monkeypatch.undo()


@pytest.mark.row("B20")
async def test_a_worker_that_the_system_refuses_is_tried_again_while_others_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    start = spawn._run
    refusals = iter(range(2))
    started = asyncio.Event()

    def refuse_twice(*args: Any) -> Any:
        if next(refusals, None) is not None:
            no_more_processes()
        started.set()
        return start(*args)

    async with Pool(2) as pool:
        victim = await pool.apply(workload.where)
        monkeypatch.setattr(spawn, "_run", refuse_twice)
        os.kill(victim, signal.SIGKILL)
        while not started.is_set():
            assert await pool.apply(workload.two) == 2
        assert len(pool.processes) == 2
        assert await pool.map(workload.double, range(1000)) == [2 * n for n in range(1000)]
    assert [record.message for record in caplog.records] == [
        "a worker could not be started, its work is left to others"
    ] * 2


@pytest.mark.row("B20")
@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_that_ends_does_not_ask_for_workers_any_more(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    refused = asyncio.Event()

    def refuse(*args: object) -> None:
        asked.append(args)
        refused.set()
        no_more_processes()

    async with Pool(2) as pool:
        victim = await pool.apply(workload.where)
        monkeypatch.setattr(spawn, "_run", refuse)
        os.kill(victim, signal.SIGKILL)
        await refused.wait()
        getattr(pool, end)()
        await pool.join()
        assert pool._engine is not None
        assert pool._engine.supervisor._next_try is None
        assert not pool._engine.supervisor._pending
        assert len(asked) == 1


#: The functions that start a process.
START_OF = {
    "spawn": (spawn, "_run"),
    "forkserver": (forkserver, "connect_to_new_process"),
}

FEW_DESCRIPTORS = """
import resource
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {more}, used + {more}))
"""


@pytest.mark.row("B20")
async def test_workers_that_cannot_be_started_are_an_error_of_the_caller(tmp_path: Path) -> None:
    body = (
        FEW_DESCRIPTORS.format(more=12)
        + """
try:
    async with Pool(8) as pool:
        await pool.apply(workload.two)
except OSError as error:
    print("refused", error.errno, flush=True)
while multiprocessing.active_children():
    await asyncio.sleep(0.01)
"""
    )
    source = pool_script(body, setup="import multiprocessing")
    script = await asyncio.to_thread(run_script, tmp_path, source, within=15)
    assert (script.out, script.err) == ("refused 24\n", "")


@pytest.mark.row("B20")
async def test_work_that_waits_for_a_worker_that_cannot_be_replaced_fails(tmp_path: Path) -> None:
    body = "async with Pool(1) as pool:\n    pid = await pool.apply(workload.where)\n"
    body += FEW_DESCRIPTORS.format(more=1).replace("\n", "\n    ")
    body += """spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(1)]
    calls = [pool.apply(workload.wait_for_ever), pool.map(workload.double, range(100))]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    print(isinstance(found[0], (OSError, WorkerLostError)), isinstance(found[1], OSError))
    try:
        await pool.apply(workload.two)
    except OSError as error:
        print("refused")
"""
    source = pool_script(body, setup="from aiomultiprocess import WorkerLostError")
    script = await asyncio.to_thread(run_script, tmp_path, source, within=15)
    assert (script.out, script.err) == ("True True\nrefused\n", "")
