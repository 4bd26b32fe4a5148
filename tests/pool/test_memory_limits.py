"""`Pool(maxmemoryperchild=...)`: a worker that has grown is replaced, and no task is lost."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lifespans
import memory_hogs
import workload
from aiomultiprocess import Pool, RoundRobin, WorkerLostError
from support import Meeting, lines

pytestmark = pytest.mark.usefixtures("backend")

MB = 1 << 20


async def limit_above(extra: int) -> int:
    """What a fresh worker has, and `extra` bytes more.

    A forked worker has what this process has, which may not become less before the next fork.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    async with Pool(1) as pool:
        await pool.map(workload.double, range(100))
        return int(await pool.apply(memory_hogs.own_memory_of_worker)) + extra


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


@pytest.mark.row("H91")
async def test_a_worker_over_its_limit_is_replaced_and_no_task_is_lost(start_method: str) -> None:
    limit = await limit_above(40 * MB)
    pool = Pool(2, maxmemoryperchild=limit)
    # so much that it does not matter if this process, which is forked, has become smaller meanwhile
    items = [(80 * MB, i) for i in range(40)]
    found = await pool.starmap(memory_hogs.grow_and_tell, items)
    assert [value for value, _ in found] == list(range(40))
    runs = [pid for _, pid in found]
    assert len(set(runs)) > 5
    assert max(map(runs.count, runs)) <= 6
    await finish(pool)


@pytest.mark.row("H91")
async def test_tasks_that_a_grown_worker_has_not_started_run_elsewhere_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2, maxmemoryperchild=await limit_above(20 * MB))
        items = [(str(path), meeting.port, 50 * MB, i) for i in range(6)]
        reading = asyncio.ensure_future(
            pool.starmap(memory_hogs.note_grow_and_meet, items).results()
        )
        first, second = await meeting.first(2)
        first.release()  # this one grows; the other goes on in a worker that takes no more
        third = await meeting_in_another(meeting, first.pid, second)
        third.release()
        await meeting.release_all(3)
        assert await reading == list(range(6))
        await finish(pool)
    assert sorted(map(int, lines(path))) == list(range(6))


async def meeting_in_another(meeting: Meeting, pid: int, running: Any) -> Any:
    """The next arrival: not in the worker that has grown, which first ends what it runs."""
    running.release()
    arrival = await meeting.next()
    assert arrival.pid != pid
    return arrival


async def test_a_backlog_of_quick_tasks_goes_back_to_the_queue() -> None:
    pool = Pool(1, maxmemoryperchild=await limit_above(30 * MB))
    quick = pool.map(workload.double, range(50_000))
    grown = [await pool.apply(memory_hogs.grow_and_tell, (60 * MB, i)) for i in range(3)]
    assert await quick == [2 * i for i in range(50_000)]
    assert len({pid for _, pid in grown}) == 3
    await finish(pool)


async def test_a_worker_that_grows_by_every_task_makes_progress() -> None:
    pool = Pool(1, maxmemoryperchild=await limit_above(10 * MB))
    pids = await pool.map(memory_hogs.keep_received, [bytes(30 * MB)] * 4)
    assert len(set(pids)) == 4
    await finish(pool)


async def test_a_limit_holds_beside_a_scheduler_lifespan_and_context_variables(
    tmp_path: Path,
) -> None:
    path = tmp_path / "noted"
    pool = Pool(
        2,
        queuecount=2,
        scheduler=type("Own", (RoundRobin,), {})(),
        lifespan=partial(lifespans.noting, str(path)),
        contextvars=(workload.CONTEXT,),
        maxmemoryperchild=await limit_above(30 * MB),
    )
    workload.CONTEXT.set("submitted")
    found = await pool.starmap(memory_hogs.grow_and_tell, [(50 * MB, i) for i in range(8)])
    assert [value for value, _ in found] == list(range(8))
    assert (await pool.apply(lifespans.what_an_item_sees))[3] == "submitted"
    await finish(pool)
    what = [line.split()[0] for line in lines(path)]
    assert what.count("entered") == what.count("left") >= 8


async def test_a_limit_below_what_a_worker_needs_breaks_the_pool_and_says_both_numbers() -> None:
    async with Pool(1, maxmemoryperchild=100_000) as pool:
        with pytest.raises(
            ValueError, match=r"maxmemoryperchild=100_000 is less than .* first task, [\d_]+ bytes"
        ):
            await pool.apply(workload.two)


async def test_a_retiring_worker_that_dies_loses_only_what_it_had_started() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2, maxmemoryperchild=await limit_above(20 * MB))
        staying = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, "staying")))
        arrival = await meeting.next()
        value, pid = await pool.apply(memory_hogs.grow_and_tell, (50 * MB, 1))
        assert (value, pid) == (1, arrival.pid)
        waiting = asyncio.ensure_future(pool.map(workload.where, range(3)).results())
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await staying
        assert pid not in await waiting
        await finish(pool)


async def test_a_call_that_is_cancelled_while_it_is_returned_ends() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=1, maxmemoryperchild=await limit_above(20 * MB))
        args = ("/dev/null", meeting.port, 50 * MB, 0)
        running = asyncio.ensure_future(pool.apply(memory_hogs.note_grow_and_meet, args))
        arrival = await meeting.next()
        calls = [asyncio.ensure_future(pool.apply(workload.two)) for _ in range(5)]
        await asyncio.sleep(0)
        arrival.release()
        calls[0].cancel()
        assert await running == 0
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [2, 2, 2, 2]
        await finish(pool)


@pytest.mark.row("H92")
async def test_a_worker_whose_lifespan_ends_by_itself_is_replaced() -> None:
    pool = Pool(1, lifespan=lifespans.with_task_group)
    first = await pool.apply(lifespans.end_the_lifespan)
    pids = await pool.map(workload.where_after_a_turn, range(50))
    while set(pids) == {first}:
        pids = await pool.map(workload.where_after_a_turn, range(50))
    assert await pool.apply(workload.where) != first
    await finish(pool)


@pytest.mark.parametrize(
    ("limit", "kind", "message"),
    [
        (0, ValueError, "maxmemoryperchild must be a positive number of bytes or None, got 0"),
        (-1, ValueError, "maxmemoryperchild must be a positive number of bytes or None, got -1"),
        ("1G", TypeError, "maxmemoryperchild must be a whole number, got '1G'"),
    ],
)
async def test_what_is_no_limit_is_refused_by_name(
    limit: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Pool(1, maxmemoryperchild=limit)


def test_a_limit_is_refused_where_memory_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> Any:
        raise FileNotFoundError("no /proc")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(RuntimeError, match=r"maxmemoryperchild=5 is not possible here: .*statm"):
        Pool(1, maxmemoryperchild=5)
