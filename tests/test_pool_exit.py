"""The end of the parent: Ctrl-C, a kill, a forgotten pool, interpreter exit, a forked copy.

Most of these are scripts with a session of their own, run to their end under a time limit.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import workload
from aiomultiprocess import Pool
from conftest import BUILT, FORK_WARNING
from support import Meeting, Script, run_script, wait_for_exit

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="sessions and signals of POSIX"),
]

WITHIN = 5.0  # seconds from the death of a parent to that of its workers


@pytest.fixture
async def meeting() -> AsyncIterator[Meeting]:
    async with Meeting() as place:
        yield place


def program(body: str, *, setup: str = "", call: str = "asyncio.run(main())") -> str:
    """A script whose coroutine `main` has this body."""
    lines = ["import asyncio, os, signal, sys, time, gc", "import workload"]
    lines += ["from aiomultiprocess import Pool, set_start_method", setup]
    lines += ["async def main():", *("    " + line for line in body.strip("\n").splitlines())]
    lines += ['if __name__ == "__main__":', *("    " + line for line in call.splitlines())]
    return "\n".join(lines) + "\n"


# -- Ctrl-C (E40) ----------------------------------------------------------------------------------

INTERRUPTED = """
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
BUSY = """
async with Pool(2, childconcurrency=2) as pool:
    work = pool.starmap(workload.meet, [({port}, i) for i in range(1000)])
    await asyncio.sleep(0)
    await work
"""
IDLE = """
async with Pool(2) as pool:
    await pool.starmap(workload.meet, [({port}, i) for i in range(2)])
    await asyncio.Event().wait()
"""
ENDLESS = """
async with Pool(2) as pool:
    await pool.apply(workload.meet, ({port},))
    async for value in pool.map(workload.double, iter(int, 1)):
        pass
"""


@pytest.mark.parametrize(
    ("body", "arrivals", "released"),
    [(BUSY, 4, 0), (IDLE, 2, 2), (ENDLESS, 1, 1)],
    ids=["busy", "idle", "endless"],
)
async def test_ctrl_c_is_one_keyboard_interrupt_of_the_parent(
    tmp_path: Path, meeting: Meeting, body: str, arrivals: int, released: int
) -> None:
    source = program(body.format(port=meeting.port), call=INTERRUPTED)
    with Script(tmp_path, source) as script:
        for arrival in (await meeting.first(arrivals))[:released]:
            arrival.release()
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert (script.out, script.err) == ("interrupted\n", "")
        assert script.process.returncode == 0


async def test_ctrl_c_that_nobody_catches_is_one_traceback(
    tmp_path: Path, meeting: Meeting
) -> None:
    with Script(tmp_path, program(BUSY.format(port=meeting.port))) as script:
        await meeting.first(4)
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert script.process.returncode == -signal.SIGINT
        assert script.err.splitlines()[-1] == "KeyboardInterrupt"
        assert script.err.count("\nKeyboardInterrupt") == 1
        assert "worker" not in script.err.lower().replace("workload", "")


async def test_ctrl_c_while_workers_start_is_one_keyboard_interrupt(tmp_path: Path) -> None:
    body = 'async with Pool(2) as pool:\n    print("made", flush=True)\n    '
    body += "await pool.map(workload.busy, [0.01] * 1000)"
    with Script(tmp_path, program(body, call=INTERRUPTED)) as script:
        await script.line("made")
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert (script.out, script.err) == ("made\ninterrupted\n", "")


# -- a dead parent (B23) ---------------------------------------------------------------------------

SAY_PIDS = 'print("pids", *[process.pid for process in pool.processes], flush=True)\n'
DOING = {
    "idle": "await asyncio.Event().wait()",
    "busy": "await pool.map(workload.busy, [0.05] * 10000)",
    "waiting": "await pool.map(workload.wait_for_ever, range(100))",
    "starting": "",
}


@pytest.mark.parametrize("doing", DOING)
async def test_workers_end_soon_after_their_parent_was_killed(tmp_path: Path, doing: str) -> None:
    warm = "" if doing == "starting" else "await pool.map(workload.double, range(100))\n"
    body = f"pool = Pool(2)\n{warm}{SAY_PIDS}{DOING[doing]}"
    with Script(tmp_path, program(body)) as script:
        pids = [int(word) for word in await script.line("pids")]
        assert len(pids) == 2
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)
        assert script.err == ""


@pytest.mark.skipif(not BUILT, reason="only a native thread can watch while C code holds the GIL")
async def test_workers_end_soon_though_c_code_holds_their_gil(
    tmp_path: Path, meeting: Meeting
) -> None:
    body = f"pool = Pool(2)\n{SAY_PIDS}await pool.map(workload.hold_the_gil, [{meeting.port}] * 2)"
    with Script(tmp_path, program(body)) as script:
        pids = [int(word) for word in await script.line("pids")]
        await meeting.first(2)
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)


async def test_workers_end_soon_under_every_start_method(tmp_path: Path, start_method: str) -> None:
    body = f"pool = Pool(2)\nawait pool.map(workload.double, range(100))\n{SAY_PIDS}"
    body += DOING["waiting"]
    with Script(tmp_path, program(body, setup=f'set_start_method("{start_method}")')) as script:
        pids = [int(word) for word in await script.line("pids")]
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)


async def test_a_killed_group_leaves_nothing(tmp_path: Path) -> None:
    body = f"pool = Pool(2)\nawait pool.map(workload.double, range(100))\n{SAY_PIDS}"
    with Script(tmp_path, program(body + DOING["busy"])) as script:
        pids = [int(word) for word in await script.line("pids")]
        script.kill_group()
        script.process.wait()
        await wait_for_exit(pids)  # the fixture looks for mappings and entries of /dev/shm


# -- forgotten pools, and interpreter exit (E42) ---------------------------------------------------


async def forget_a_pool() -> list[int]:
    """Use a pool and leave it, open, to the garbage collector."""
    pool = Pool(2)
    assert await pool.apply(workload.two) == 2
    return [process.pid or 0 for process in pool.processes]


async def test_a_forgotten_pool_warns_and_its_workers_go() -> None:
    with pytest.warns(ResourceWarning, match="never closed"):
        pids = await forget_a_pool()
    await wait_for_exit(pids)


async def test_the_workers_of_a_forgotten_pool_go_though_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: unraisable.append(event.exc_type))
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: unraisable.append(kind))
    pids = await forget_a_pool()
    await wait_for_exit(pids)
    assert unraisable == [ResourceWarning]


async def test_a_pool_is_not_forgotten_while_a_call_of_it_is_awaited(meeting: Meeting) -> None:
    task = asyncio.ensure_future(Pool(1).apply(workload.meet, (meeting.port,)))
    arrival = await meeting.next()
    gc.collect()
    arrival.release("still there")
    with pytest.warns(ResourceWarning, match="never closed"):
        assert await task == "still there"
    await wait_for_exit([arrival.pid])


async def test_a_pool_is_not_forgotten_while_its_results_are_kept() -> None:
    results = Pool(1).map(workload.double, range(10))
    gc.collect()
    assert await results == [2 * i for i in range(10)]
    results.pool.terminate()
    await results.pool.join()


def test_a_closed_pool_may_be_forgotten() -> None:
    async def main() -> list[int]:
        pool = Pool(1)
        results = pool.map(workload.double, range(3))
        pool.close()
        joining = asyncio.ensure_future(pool.join())
        del pool
        gc.collect()
        await joining
        return await results

    assert asyncio.run(main()) == [0, 2, 4]


def test_a_pool_whose_loop_was_closed_can_be_terminated() -> None:
    pool = Pool(2)
    assert asyncio.run(pool.apply(workload.two)) == 2
    pids = [process.pid or 0 for process in pool.processes]
    assert len(pids) == 2
    pool.terminate()
    asyncio.run(wait_for_exit(pids))
    assert not pool.processes


def test_a_pool_whose_loop_was_closed_may_be_forgotten() -> None:
    def program() -> list[int]:
        pool = Pool(2)
        assert asyncio.run(pool.apply(workload.two)) == 2
        return [process.pid or 0 for process in pool.processes]

    with pytest.warns(ResourceWarning, match="never closed"):
        pids = program()
    asyncio.run(wait_for_exit(pids))


EXITS = {
    "after the loop": "asyncio.run(main())",
    "by sys.exit": "asyncio.run(main())\nsys.exit(0)",
    "from a thread": (
        "import threading\n"
        "thread = threading.Thread(target=lambda: asyncio.run(main()))\n"
        "thread.start()\nthread.join()"
    ),
}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("work", ["", "work = pool.map(workload.wait_for_ever, range(100))\n"])
async def test_the_interpreter_exits_with_a_pool_open(tmp_path: Path, how: str, work: str) -> None:
    body = "global pool, work\npool = Pool(2)\nawait pool.apply(workload.two)\n"
    body += work + SAY_PIDS
    source = program(body, call=EXITS[how])
    script = await asyncio.to_thread(run_script, tmp_path, source, "-Wdefault", within=10)
    assert script.process.returncode == 0
    assert "Traceback" not in script.err
    assert "ResourceWarning" in script.err
    await wait_for_exit(int(word) for word in await script.line("pids"))


async def test_an_error_in_the_program_ends_it_with_its_pool(tmp_path: Path) -> None:
    body = f"async with Pool(2) as pool:\n    {SAY_PIDS}    raise LookupError('mine')"
    script = await asyncio.to_thread(run_script, tmp_path, program(body), within=10)
    assert script.process.returncode == 1
    assert script.err.count("Traceback") == 1
    assert script.err.endswith("LookupError: mine\n")


async def test_os_exit_of_the_parent_ends_its_workers(tmp_path: Path) -> None:
    body = f"pool = Pool(2)\nawait pool.apply(workload.two)\n{SAY_PIDS}os._exit(3)"
    script = await asyncio.to_thread(run_script, tmp_path, program(body), within=10)
    assert script.process.returncode == 3
    await wait_for_exit((int(word) for word in script.out.split()[1:]), WITHIN)


# -- forked copies of the parent (B25) -------------------------------------------------------------


async def in_a_forked_copy(pool: Pool) -> str:
    """What a copy of this process says when it uses the pool, forgets it, and exits."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            pool.map(workload.double, [1])
        except RuntimeError as error:
            said = str(error)
        finally:
            os.write(writing, said.encode())
            del pool
            gc.collect()
            os._exit(0)
    os.close(writing)
    await asyncio.to_thread(os.waitpid, pid, 0)
    with os.fdopen(reading) as said_there:
        return said_there.read()


@FORK_WARNING
async def test_a_forked_copy_refuses_the_pool_and_leaves_it_alone() -> None:
    async with Pool(2) as pool:
        pids = {process.pid for process in pool.processes}
        assert "forked copy" in await in_a_forked_copy(pool)
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


def test_a_forked_copy_that_exits_normally_does_not_touch_our_workers(tmp_path: Path) -> None:
    source = program("pass", setup=FORKING, call=FORKED_EXIT)
    script = run_script(tmp_path, source, "-Wignore", within=20)
    # multiprocessing says itself that a copy cannot join the processes of its original
    assert "aiomultiprocess" not in script.err
    assert script.process.returncode == 0
    refused, alive = script.out.splitlines()
    assert refused.startswith("refused:")
    assert alive == "alive"


# -- a system that refuses (B20) -------------------------------------------------------------------

FEW_DESCRIPTORS = """
import resource
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {more}, used + {more}))
"""


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
    source = program(body, setup="import multiprocessing")
    script = await asyncio.to_thread(run_script, tmp_path, source, within=15)
    assert (script.out, script.err) == ("refused 24\n", "")


async def test_work_that_waits_for_a_worker_that_cannot_be_replaced_fails(tmp_path: Path) -> None:
    body = "async with Pool(1) as pool:\n    pid = await pool.apply(workload.where)\n"
    body += FEW_DESCRIPTORS.format(more=1).replace("\n", "\n    ")
    body += """spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(1)]
    calls = [pool.apply(workload.wait_for_ever), pool.map(workload.double, range(100))]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    print(*[isinstance(value, (OSError, RuntimeError, list)) for value in found])
    try:
        await pool.apply(workload.two)
    except (OSError, RuntimeError) as error:
        print("refused")
"""
    script = await asyncio.to_thread(run_script, tmp_path, program(body), within=15)
    assert "refused" in script.out, script.err
