"""A worker whose items stop its event loop goes on; one whose loop fails takes its items along."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import stoppers
import workload
from aiomultiprocess import Pool, PoolTerminatedError, ProxyException, WorkerLostError
from aiomultiprocess._processes import loops
from aiomultiprocess._transport import endpoint
from support import Meeting

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("H202")]


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = [None, *([new_uvloop] if find_spec("uvloop") else [])]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", stoppers.WAYS)
async def test_what_stops_the_loop_of_a_worker_ends_neither_it_nor_its_other_items(
    way: Callable[[], Any], loop: Any
) -> None:
    options = {"lifespan": stoppers.group_around, "loop_initializer": loop}
    async with Meeting() as meeting, Pool(1, **options) as pool:
        neighbour = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.next()
        words = stoppers.WAYS[way]
        if words is None:
            assert await pool.apply(way) == "went on"
        else:
            with pytest.raises(ProxyException, match=words):
                await pool.apply(way)
        arrival.release("here")
        assert await neighbour == "here"
        assert await pool.apply(workload.two) == 2
        assert "died" not in pool.stats().restarts


async def test_an_item_whose_task_left_shows_no_frames_of_the_loop() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ProxyException) as caught:
            await pool.apply(stoppers.in_a_gather)
    text = str(caught.value)
    assert "in in_a_gather" in text
    assert "in leave" in text
    assert "run_forever" not in text


async def test_the_items_of_a_worker_whose_loop_fails_are_lost_or_run_again() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        again = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,), retries=1))
        lost = pool.submit(workload.meet, meeting.port)
        ended = pool.submit(stoppers.return_when_cancelled, meeting.port)
        await meeting.first(3)
        culprit = pool.submit(stoppers.break_the_loop, meeting.port)
        (await meeting.next()).release()
        for call in (lost, culprit):
            with pytest.raises(WorkerLostError):
                await call
        assert await ended == "went on"
        (await meeting.next()).release("again")
        assert await again == "again"
        stats = pool.stats()
        assert (stats.lost, stats.retried, stats.cancelled) == (2, 1, 0)


async def test_an_interrupt_that_strikes_the_link_of_a_worker_ends_it() -> None:
    """It may have lost a frame. SIGINT is ignored in workers until an item changes that."""
    async with Pool(1) as pool:
        await pool.apply(stoppers.be_interrupted_in, ("_turn", endpoint.__name__))
        assert await pool.apply(workload.two) == 2  # by the next worker
        assert pool.stats().restarts == {"died": 1}


async def test_an_interrupt_of_a_worker_that_waits_harms_nothing() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.next()
        await pool.apply(stoppers.be_interrupted_in, ("select", loops.__name__))
        await pool.apply(stoppers.in_the_background)
        arrival.release("here")
        assert await call == "here"
        assert "died" not in pool.stats().restarts


@pytest.mark.spawned
@pytest.mark.parametrize("turns", [0, 1])
async def test_a_busy_worker_whose_item_leaves_on_sigterm_ends_by_its_exit_hooks(
    tmp_path: Path, turns: int
) -> None:
    path = tmp_path / "exited"
    async with Pool(1, initializer=stoppers.note_exit, initargs=(str(path),), grace=20.0) as pool:
        await pool.apply(workload.two)
        begun = time.monotonic()
        call = pool.submit(stoppers.leave_while_results_are_sent, turns)
        with contextlib.suppress(WorkerLostError):
            await call
        assert await pool.apply(workload.two) == 2  # by the next worker
    assert path.exists()
    assert time.monotonic() - begun < 10


@pytest.mark.spawned
async def test_a_worker_that_leaves_on_sigterm_within_a_burst_ends_by_its_exit_hooks(
    tmp_path: Path,
) -> None:
    path = tmp_path / "exited"
    async with Pool(1, initializer=stoppers.note_exit, initargs=(str(path),), grace=20.0) as pool:
        await pool.apply(workload.two)
        begun = time.monotonic()
        await pool.apply(stoppers.leave_within_a_burst)  # its value was journaled
        assert await pool.apply(workload.two) == 2
    assert path.exists()
    assert time.monotonic() - begun < 10


async def test_a_worker_whose_item_leaves_on_sigterm_ends_at_once() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, grace=20.0)
        await pool.apply(stoppers.leave_on_sigterm)
        call = pool.submit(workload.meet, meeting.port)
        await meeting.next()
        begun = time.monotonic()
        pool.terminate()
        await pool.join()
        assert time.monotonic() - begun < 10
        with pytest.raises(PoolTerminatedError):
            await call
