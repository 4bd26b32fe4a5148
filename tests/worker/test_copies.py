"""Copies that items fork end where they return to the engine, and with the parent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forking
import workload
from aiomultiprocess import Pool, Worker, set_start_method
from support import Meeting, Script, lines, outcomes, pool_script, wait_for_exit

pytestmark = [
    pytest.mark.row("G68"),
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

ENDED = 1  # the exit code of a copy that returned to the engine
WENT_ON = "a copy of a worker, forked by a task that went on in it"


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__


@pytest.mark.parametrize("fork", forking.COMES_BACK, ids=name_of)
async def test_a_copy_ends_where_it_returns_to_the_engine_and_its_worker_goes_on(
    fork: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(os.getpid)
        assert await pool.map(fork, range(3)) == [ENDED] * 3
        assert await pool.map(workload.double_after_a_turn, range(100)) == list(range(0, 200, 2))
        assert await pool.apply(os.getpid) == pid
    assert capfd.readouterr().err.count(WENT_ON) == 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_neighbours_of_an_item_that_forks_run_once(loop: str, tmp_path: Path) -> None:
    make = None if loop == "asyncio" else pytest.importorskip(loop).new_event_loop
    async with Meeting() as meeting, Pool(1, loop_initializer=make) as pool:
        items = [(meeting.port, i) for i in range(10)]
        neighbours = pool.starmap(forking.meet_and_add, items)
        waiting = await meeting.first(10)
        call = asyncio.ensure_future(pool.apply(forking.fork_beside, (meeting.port,)))
        for arrival in (await meeting.next(), *waiting):
            arrival.release()
        assert await call == ENDED
        assert await neighbours == list(range(1, 11))


async def test_a_copy_that_is_made_while_an_argument_is_unpickled_ends() -> None:
    async with Pool(1) as pool:
        items = [forking.ForksWhenUnpickled(), forking.ForksWhenUnpickled()]
        assert await pool.map(workload.double, items) == [2 * ENDED] * 2


async def test_a_copy_of_an_initializer_a_loop_initializer_or_a_handler_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ended"
    async with Pool(
        1,
        initializer=forking.fork_once,
        initargs=(str(path),),
        loop_initializer=forking.make_loop_and_fork,
        exception_handler=forking.fork_for_an_error,
    ) as pool:
        found = await outcomes(pool.map(workload.double, [1, None, 2]))
        assert (found[0], found[2]) == (2, 4)
        assert isinstance(found[1], TypeError)
    assert lines(path) == [str(ENDED)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
async def test_a_forked_worker_has_no_copies_either() -> None:
    set_start_method("fork")
    try:
        async with Pool(2) as pool:
            assert await pool.map(forking.fork_after_a_turn, range(4)) == [ENDED] * 4
    finally:
        set_start_method()


@pytest.mark.parametrize("fork", forking.STAYS_AWAY, ids=name_of)
async def test_a_forked_process_that_does_not_return_to_the_engine_is_left_alone(
    fork: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(os.getpid)
        expected = forking.STAYS_AWAY[fork]
        assert await pool.map(fork, range(2)) == [expected] * 2
        assert await pool.map(workload.double_after_a_turn, range(10)) == list(range(0, 20, 2))
        assert await pool.apply(os.getpid) == pid
    if fork is not forking.use_a_pool_in_a_process:
        assert WENT_ON not in capfd.readouterr().err


@pytest.mark.parametrize("fork", [forking.fork_and_meet, forking.fork_in_a_thread_and_meet])
@pytest.mark.skipif(sys.platform == "win32", reason="sessions of POSIX")
async def test_a_copy_that_stays_away_ends_with_the_parent(
    fork: Callable[..., Any], tmp_path: Path
) -> None:
    body = """
        async with Pool(1) as pool:
            await pool.apply(forking.{0}, ({1},))
            await asyncio.Event().wait()
    """
    body = "\n".join(line.removeprefix("        ") for line in body.splitlines())
    async with Meeting() as meeting:
        source = pool_script(body.format(fork.__name__, meeting.port), setup="import forking")
        with Script(tmp_path, source) as script:
            copy = await meeting.next()
            script.process.kill()
            await copy.gone
            await wait_for_exit([copy.pid])


async def test_the_result_of_a_worker_process_is_not_that_of_its_copy() -> None:
    assert await Worker(target=forking.answer_twice) == "original"
