"""The end of the parent: Ctrl-C, a kill, a forgotten pool, interpreter exit.

Most of these are scripts with a session of their own, run to their end under a time limit.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import mishaps
import workload
from aiomultiprocess import Pool
from conftest import BUILT
from support import Meeting, Script, pool_script, run_script, wait_for_exit

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="sessions and signals of POSIX"),
]

WITHIN = 5.0  # seconds from the death of a parent to that of its workers


@pytest.fixture
async def meeting() -> AsyncIterator[Meeting]:
    async with Meeting() as place:
        yield place


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


@pytest.mark.row("E40")
@pytest.mark.parametrize(
    ("body", "arrivals", "released"),
    [(BUSY, 4, 0), (IDLE, 2, 2), (ENDLESS, 1, 1)],
    ids=["busy", "idle", "endless"],
)
async def test_ctrl_c_is_one_keyboard_interrupt_of_the_parent(
    tmp_path: Path, meeting: Meeting, body: str, arrivals: int, released: int
) -> None:
    source = pool_script(body.format(port=meeting.port), call=INTERRUPTED)
    with Script(tmp_path, source) as script:
        for arrival in (await meeting.first(arrivals))[:released]:
            arrival.release()
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert (script.out, script.err) == ("interrupted\n", "")
        assert script.process.returncode == 0


@pytest.mark.row("E40")
async def test_ctrl_c_that_is_not_caught_is_one_traceback(
    tmp_path: Path, meeting: Meeting, start_method: str
) -> None:
    setup = f'set_start_method("{start_method}")'
    with Script(tmp_path, pool_script(BUSY.format(port=meeting.port), setup=setup)) as script:
        await meeting.first(4)
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert script.process.returncode == -signal.SIGINT
        assert script.err.splitlines()[-1] == "KeyboardInterrupt"
        assert script.err.count("\nKeyboardInterrupt") == 1
        assert "worker" not in script.err.lower().replace("workload", "")


@pytest.mark.row("E40")
async def test_ctrl_c_while_workers_start_is_one_keyboard_interrupt(tmp_path: Path) -> None:
    body = 'async with Pool(2) as pool:\n    print("made", flush=True)\n    '
    body += "await pool.map(workload.busy, [0.01] * 1000)"
    with Script(tmp_path, pool_script(body, call=INTERRUPTED)) as script:
        await script.line("made")
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        assert (script.out, script.err) == ("made\ninterrupted\n", "")


@pytest.mark.row("H217")
async def test_a_program_that_a_task_starts_ends_by_ctrl_c(start_method: str, backend: str) -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(os.getpid)
        assert await pool.apply(mishaps.interrupt_a_program) == -signal.SIGINT
        assert await pool.apply(mishaps.read_through_an_interrupt, (0.2,))
        os.kill(pid, signal.SIGINT)
        assert await pool.apply(os.getpid) == pid


@pytest.mark.row("H217")
async def test_ctrl_c_ends_a_pool_and_the_programs_of_its_tasks(tmp_path: Path) -> None:
    body = f"""
        async with Pool(1) as pool:
            await pool.apply(subprocess.run, (["{sys.executable}", "-c", CODE],))
    """
    setup = 'import subprocess\nCODE = \'import os,time;print("pid",os.getpid(),flush=True);'
    setup += "time.sleep(60)'"
    source = pool_script(textwrap.dedent(body), setup=setup, call=INTERRUPTED)
    with Script(tmp_path, source) as script:
        [pid] = await script.line("pid")
        script.kill_group(signal.SIGINT)
        await asyncio.to_thread(script.finish, 10)
        await wait_for_exit([int(pid)])
        assert script.out.splitlines()[1:] == ["interrupted"]
        assert script.process.returncode == 0


@pytest.mark.spawned
@pytest.mark.row("H217")
async def test_a_worker_of_a_program_that_ignores_ctrl_c_passes_that_on() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with Pool(1) as pool:
            assert await pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# -- a dead parent (B23) ---------------------------------------------------------------------------

SAY_PIDS = 'print("pids", *[process.pid for process in pool.processes], flush=True)\n'
DOING = {
    "idle": "await asyncio.Event().wait()",
    "busy": "await pool.map(workload.busy, [0.05] * 10000)",
    "waiting": "await pool.map(workload.wait_for_ever, range(100))",
    "starting": "",
}


@pytest.mark.row("B23")
@pytest.mark.parametrize("doing", DOING)
async def test_workers_end_soon_after_their_parent_was_killed(tmp_path: Path, doing: str) -> None:
    warm = "" if doing == "starting" else "await pool.map(workload.double, range(100))\n"
    body = f"pool = Pool(2)\n{warm}{SAY_PIDS}{DOING[doing]}"
    with Script(tmp_path, pool_script(body)) as script:
        pids = [int(word) for word in await script.line("pids")]
        assert len(pids) == 2
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)
        assert script.err == ""


@pytest.mark.row("B23")
@pytest.mark.skipif(not BUILT, reason="only a native thread can watch while C code holds the GIL")
async def test_workers_end_soon_though_c_code_holds_their_gil(
    tmp_path: Path, meeting: Meeting
) -> None:
    body = f"pool = Pool(2)\n{SAY_PIDS}await pool.map(mishaps.hold_the_gil, [{meeting.port}] * 2)"
    with Script(tmp_path, pool_script(body)) as script:
        pids = [int(word) for word in await script.line("pids")]
        await meeting.first(2)
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)


@pytest.mark.row("B23")
async def test_workers_end_soon_under_every_start_method(tmp_path: Path, start_method: str) -> None:
    body = f"pool = Pool(2)\nawait pool.map(workload.double, range(100))\n{SAY_PIDS}"
    body += DOING["waiting"]
    with Script(tmp_path, pool_script(body, setup=f'set_start_method("{start_method}")')) as script:
        pids = [int(word) for word in await script.line("pids")]
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids, WITHIN)


@pytest.mark.row("H207")
async def test_workers_end_soon_though_they_unpickle_for_ever(
    tmp_path: Path, meeting: Meeting
) -> None:
    given = f"initializer=print, initargs=(mishaps.MeetsWhenLoaded({meeting.port}),)"
    with Script(tmp_path, pool_script(f"pool = Pool(1, {given})\n{DOING['idle']}")) as script:
        arrival = await meeting.next()
        script.process.kill()
        script.process.wait()
        await wait_for_exit([arrival.pid], WITHIN)
        assert script.err == ""


@pytest.mark.row("B24")
async def test_a_killed_group_leaves_nothing(tmp_path: Path, start_method: str) -> None:
    setup = f'set_start_method("{start_method}")'
    body = f"pool = Pool(2)\nawait pool.map(workload.double, range(100))\n{SAY_PIDS}"
    with Script(tmp_path, pool_script(body + DOING["busy"], setup=setup)) as script:
        pids = [int(word) for word in await script.line("pids")]
        script.kill_group()
        script.process.wait()
        await wait_for_exit(pids)  # the fixture looks for mappings and entries of /dev/shm
    body = "async with Pool(2) as pool:\n    print(await pool.apply(workload.two))"
    script = await asyncio.to_thread(run_script, tmp_path, pool_script(body, setup=setup))
    assert (script.out, script.err) == ("2\n", "")


# -- forgotten pools, and interpreter exit (E42) ---------------------------------------------------


async def forget_a_pool() -> list[int]:
    """Use a pool and leave it, open, to the garbage collector."""
    pool = Pool(2)
    assert await pool.apply(workload.two) == 2
    return [process.pid or 0 for process in pool.processes]


@pytest.mark.row("E42")
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


@pytest.mark.row("E42")
def test_a_pool_whose_loop_was_closed_can_be_terminated() -> None:
    pool = Pool(2)
    assert asyncio.run(pool.apply(workload.two)) == 2
    pids = [process.pid or 0 for process in pool.processes]
    assert len(pids) == 2
    pool.terminate()
    asyncio.run(wait_for_exit(pids))
    assert not pool.processes


@pytest.mark.row("E42")
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


@pytest.mark.row("E42")
async def test_the_interpreter_exits_whatever_was_imported_before(tmp_path: Path) -> None:
    """A finalizer of another library's makes weakref's exit later than that of multiprocessing."""
    source = pool_script("global pool\npool = Pool(2)\nawait pool.apply(workload.two)\n" + SAY_PIDS)
    source = "import tempfile\nfolder = tempfile.TemporaryDirectory()\n" + source
    script = await asyncio.to_thread(run_script, tmp_path, source, "-Wdefault", within=10)
    assert script.process.returncode == 0
    assert "ResourceWarning: a pool" in script.err
    await wait_for_exit(int(word) for word in await script.line("pids"))


@pytest.mark.row("E42")
async def test_the_interpreter_exits_though_the_loop_of_a_pool_runs_in_another_thread(
    tmp_path: Path,
) -> None:
    """multiprocessing joins the workers only when that thread has ended them."""
    source = pool_script(
        "global pool\npool = Pool(2)\nawait pool.apply(workload.two)\n"
        + SAY_PIDS
        + "ready.set()\nawait asyncio.Event().wait()",
        setup=(
            "import threading\nfrom multiprocessing.util import Finalize\n"
            "ready = threading.Event()\n"
            "last = Finalize(None, print, ['all finalizers ran'], {'flush': True}, exitpriority=-1)"
        ),
        call=(
            "threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()\n"
            "ready.wait()"
        ),
    )
    script = await asyncio.to_thread(run_script, tmp_path, source, within=10)
    assert script.process.returncode == 0
    assert "all finalizers ran" in script.out
    assert "Traceback" not in script.err
    await wait_for_exit(int(word) for word in await script.line("pids"))


@pytest.mark.row("E42")
@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("work", ["", "work = pool.map(workload.wait_for_ever, range(100))\n"])
async def test_the_interpreter_exits_with_a_pool_open(tmp_path: Path, how: str, work: str) -> None:
    body = "global pool, work\npool = Pool(2)\nawait pool.apply(workload.two)\n"
    body += work + SAY_PIDS
    source = pool_script(body, call=EXITS[how])
    script = await asyncio.to_thread(run_script, tmp_path, source, "-Wdefault", within=10)
    assert script.process.returncode == 0
    assert "Traceback" not in script.err
    assert "ResourceWarning" in script.err
    await wait_for_exit(int(word) for word in await script.line("pids"))


@pytest.mark.row("E46")
async def test_an_error_in_the_program_ends_it_with_its_pool(tmp_path: Path) -> None:
    body = f"async with Pool(2) as pool:\n    {SAY_PIDS}    raise LookupError('mine')"
    script = await asyncio.to_thread(run_script, tmp_path, pool_script(body), within=10)
    assert script.process.returncode == 1
    assert script.err.count("Traceback") == 1
    assert script.err.endswith("LookupError: mine\n")


@pytest.mark.row("E42")
async def test_os_exit_of_the_parent_ends_its_workers(tmp_path: Path) -> None:
    body = f"pool = Pool(2)\nawait pool.apply(workload.two)\n{SAY_PIDS}os._exit(3)"
    script = await asyncio.to_thread(run_script, tmp_path, pool_script(body), within=10)
    assert script.process.returncode == 3
    await wait_for_exit((int(word) for word in script.out.split()[1:]), WITHIN)


# -- the end of a terminated worker (B13) ----------------------------------------------------------

UNREADABLE = """
    read, write = os.pipe()
    os.close(read)
    sys.{0} = os.fdopen(write, "w")
    print("it stays in the buffer", file=sys.{0})
"""
STREAMS = {
    "nobody reads stdout": UNREADABLE.format("stdout"),
    "nobody reads stderr": UNREADABLE.format("stderr"),
    "there is no stdout": "    sys.stdout = None",
    "there are none": "    sys.stdout = sys.stderr = None",
    "stdout is closed": "    sys.stdout.close()",
}


@pytest.mark.row("B13")
@pytest.mark.parametrize("streams", STREAMS)
def test_a_process_ends_by_its_signal_though_its_streams_fail(tmp_path: Path, streams: str) -> None:
    source = f"""
import os, signal, sys
from aiomultiprocess._worker.leaving import exit_by_signal

if __name__ == "__main__":
{STREAMS[streams]}
    exit_by_signal(signal.SIGTERM)
"""
    assert run_script(tmp_path, source).process.returncode == -signal.SIGTERM


AFTER_MAIN = """
import asyncio, os, threading
from aiomultiprocess import Pool, set_start_method

async def double(value):
    return 2 * value, os.getpid()

async def work(pools):
    threading.main_thread().join()
    for _ in range(pools):
        async with Pool(1, maxtasksperchild=1) as pool:
            found = [await pool.apply(double, (value,)) for value in range(3)]
            print([value for value, _ in found], len({pid for _, pid in found}), flush=True)

if __name__ == "__main__":
    set_start_method(METHOD)
    threading.Thread(target=lambda: asyncio.run(work(2))).start()
"""


@pytest.mark.row("H103")
def test_a_pool_in_a_thread_replaces_workers_after_the_code_of_the_main_module(
    backend: str, start_method: str, tmp_path: Path
) -> None:
    """SPAWN-8"""
    source = AFTER_MAIN.replace("METHOD", repr(start_method))
    script = run_script(tmp_path, source)
    if start_method == "fork" and "can't fork at interpreter shutdown" in script.err:
        assert sys.version_info[:2] == (3, 12)  # which refuses os.fork() itself
        return
    assert script.out.splitlines() == ["[0, 2, 4] 3"] * 2, script.err
    assert script.process.returncode == 0
