"""A worker that runs nothing exits as a process of multiprocessing does, in a limited time."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

import endings
import workload
from aiomultiprocess import Pool, WorkerLostError
from support import Meeting, lines, pool_script, run_script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.spawned,  # one of a fork server runs no hooks of atexit
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]


def hooks_of(start_method: str) -> list[str]:
    """What a process that multiprocessing has started runs when it ends (`endings.hook`)."""
    runs_atexit = start_method == "spawn" or sys.version_info >= (3, 13)
    return ["atexit", "finalizer"] if runs_atexit else ["finalizer"]


@pytest.mark.row("H174")
async def test_a_frame_that_arrives_while_a_worker_closes_its_loop_cuts_nothing_short() -> None:
    """The parent sends FORGET to a worker that is to exit, for a function that has state."""
    async with Pool(1, maxtasksperchild=1) as pool:
        for value in range(20):
            call = pool.apply(functools.partial(endings.use_the_executor, value))
            assert await call == value
        assert "died" not in pool.stats().restarts


# -- a clean end (G59) -----------------------------------------------------------------------------


@pytest.mark.row("G59")
async def test_a_worker_that_runs_nothing_runs_its_hooks_at_the_end_of_async_with(
    tmp_path: Path, start_method: str
) -> None:
    path = tmp_path / "said"
    async with Pool(1) as pool:
        await pool.apply(endings.hook, (str(path),))
        [worker] = pool.processes
    assert sorted(lines(path)) == hooks_of(start_method)
    assert worker.exitcode == 0


@pytest.mark.row("G59")
@pytest.mark.parametrize("ends", ["close terminate", "terminate terminate", "terminate SIGTERM"])
async def test_no_second_request_to_end_cuts_the_hooks_short(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "said"
    for _ in range(5):
        pool = Pool(1)
        [worker] = pool.processes
        await pool.apply(endings.hook, (str(path),))
        for end in ends.split():
            if end == "SIGTERM":
                worker.terminate()
            else:
                getattr(pool, end)()
        await pool.join()
        assert worker.exitcode in (0, -signal.SIGTERM)  # it may come after the last hook
    assert sorted(lines(path)) == ["atexit"] * 5 + ["finalizer"] * 5


@pytest.mark.row("G59")
async def test_a_worker_that_gets_sigterm_runs_its_hooks(tmp_path: Path) -> None:
    path = tmp_path / "said"
    async with Pool(1) as pool:
        pid = await pool.apply(endings.hook, (str(path),))
        [worker] = pool.processes
        os.kill(pid, signal.SIGTERM)
        await worker.join()
        assert worker.exitcode == 0
        assert await pool.apply(workload.two) == 2  # of the next worker
    assert sorted(lines(path)) == ["atexit", "finalizer"]


@pytest.mark.row("B22", "G59")
async def test_a_worker_that_is_cut_off_runs_finally_blocks_and_ends_by_the_signal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "said"
    async with Meeting() as meeting, Pool(1) as pool:
        call = asyncio.ensure_future(pool.apply(endings.hook_and_meet, (str(path), meeting.port)))
        arrival = await meeting.next()
        [worker] = pool.processes
        os.kill(arrival.pid, signal.SIGTERM)
        with pytest.raises(WorkerLostError, match="SIGTERM"):
            await call
        assert worker.exitcode == -signal.SIGTERM
    assert lines(path) == ["finally"]


INHERITED = """
import atexit
from multiprocessing import util
atexit.register(workload.note, "said", "inherited")
util.Finalize(None, workload.note, args=("said", "inherited"), exitpriority=1)
async with Pool(2) as pool:
    await pool.map(workload.double, range(10))
workload.note("said", "ended")
"""


@pytest.mark.row("G59")
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_workers_run_no_hook_of_the_parent(tmp_path: Path, method: str) -> None:
    script = run_script(tmp_path, pool_script(INHERITED, setup=f'set_start_method("{method}")'))
    assert script.process.returncode == 0, script.err
    assert lines(tmp_path / "said") == ["ended", "inherited", "inherited"]


COVERED = """
async with Pool(1) as pool:
    assert await pool.apply(covered.branches, (True,)) == "taken"
"""
COVERED_MODULE = """
def branches(which):
    if which:
        return "taken"
    return "missed"
"""
SETTINGS = """
[run]
concurrency = multiprocessing
parallel = true
include = covered.py
data_file = data
"""


@pytest.mark.row("G59")
def test_coverage_of_workers_is_saved_at_the_end_of_async_with(tmp_path: Path) -> None:
    (tmp_path / "covered.py").write_text(COVERED_MODULE)
    (tmp_path / "settings").write_text(SETTINGS)
    (tmp_path / "covered_program.py").write_text(pool_script(COVERED, setup="import covered"))
    main = """
        import coverage, json, sys
        from coverage.cmdline import main
        sys.path.insert(0, "")
        assert main(["run", "--rcfile=settings", "covered_program.py"]) == 0
        assert main(["combine", "-q", "--rcfile=settings"]) == 0
        assert main(["json", "-q", "--rcfile=settings", "-o", "report.json"]) == 0
        print(json.load(open("report.json"))["files"]["covered.py"]["missing_lines"])
    """
    script = run_script(tmp_path, main, within=60)
    assert script.out == "[5]\n", script.err


# -- what holds an exit (G76) ----------------------------------------------------------------------


def killed_for(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith("aiomultiprocess")
    ]


@pytest.mark.row("G76")
@pytest.mark.parametrize("what", endings.HOLDERS)
async def test_a_retired_worker_that_does_not_exit_is_replaced_and_killed_with_a_warning(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    leave, named = endings.HOLDERS[what]
    pool = Pool(1, maxtasksperchild=1)
    [first] = pool.processes
    assert await pool.map(leave, range(2)) == [0, 1]  # the second one in another worker
    assert first.exitcode in (None, -signal.SIGKILL)
    pool.close()
    await pool.join()
    assert first.exitcode == -signal.SIGKILL
    warnings = killed_for(caplog)
    assert len(warnings) == 2
    assert str(first.pid) in warnings[0]
    assert all(named in warning for warning in warnings)


@pytest.mark.row("G76")
@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_ends_though_a_thread_was_left_in_its_worker(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(1)
    assert await pool.apply(endings.leave_a_thread, (3,)) == 3
    getattr(pool, end)()
    await pool.join()
    [warning] = killed_for(caplog)
    assert "'connection' (in endings.Connection.run)" in warning


@pytest.mark.row("G76")
async def test_a_pool_is_terminated_in_time_though_its_retired_worker_lingers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(1, maxtasksperchild=1)
    await pool.apply(endings.leave_a_thread)
    await pool.apply(workload.two)
    pool.terminate()
    await pool.join()
    assert len(killed_for(caplog)) == 1


@pytest.mark.row("G59", "G76")
async def test_hooks_that_do_not_return_are_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async with Pool(2) as pool:
        await pool.apply(endings.wait_in_a_hook, (1000,))
    [warning] = killed_for(caplog)
    assert "exit hook" in warning


@pytest.mark.row("G76")
async def test_idle_threads_of_an_executor_delay_no_exit(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(1, maxtasksperchild=2)
    assert await pool.map(endings.use_the_executor, range(4)) == list(range(4))
    workers = list(pool.processes)
    pool.close()
    await pool.join()
    assert {worker.exitcode for worker in workers} == {0}
    assert killed_for(caplog) == []
