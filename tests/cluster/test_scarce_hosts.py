"""Hosts without memory for a frame: its items fail, others do not, and the numbers stay right.

`lack_memory` lets a host behave as one that has no memory for frames over `MOST` bytes (HOST-2).
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cluster_tasks
import context_variables
import workload
from aiomultiprocess import Pool, WorkerLostError
from aiomultiprocess._wire.frames import size_of
from clusters import Dask
from support import Meeting

MOST = 50_000
LARGE = bytes(2 * MOST)
NO_MEMORY = "there is no memory, or no descriptor, for"
REFUSED = rf"could not be received by its worker.*{NO_MEMORY} \d+ bytes"


def lack_memory(small_ones: int = 0) -> None:
    """In a dask worker: there is no memory for large frames, nor for the first small ones."""
    from aiomultiprocess._cluster import host
    from aiomultiprocess._cluster.processes import segments_to_send

    failures = iter(range(small_ones))
    whole_frame = host.stand_in

    def scarce(segments: Any) -> Any:
        size = sum(map(size_of, segments))
        if size > MOST:
            raise MemoryError(f"there is no memory for {size} bytes")
        return segments_to_send(segments)

    def scarce_stand_in(frame: Any) -> Any:
        if next(failures, None) is not None:
            raise MemoryError
        return whole_frame(frame)

    host.segments_to_send = scarce
    host.stand_in = scarce_stand_in


@pytest.fixture
def scarce_dask(tmp_path: Path) -> Iterator[Dask]:
    """A cluster of one host, which each test makes short of memory."""
    pytest.importorskip("distributed")
    with Dask(tmp_path) as running:
        yield running.add("scarce")


@asynccontextmanager
async def pool_over(dask: Dask, small_ones: int = 0, **options: Any) -> AsyncIterator[Pool]:
    from distributed import Client

    async with Client(dask.address, asynchronous=True) as client:  # type: ignore[no-untyped-call]
        await client.run(lack_memory, small_ones)
        async with asyncio.timeout(60), Pool(1, backend="dask", client=client, **options) as pool:
            assert await pool.apply(workload.two) == 2
            yield pool


def check_refused(outcomes: list[Any], count: int) -> None:
    assert len(outcomes) == count
    for outcome in outcomes:
        assert isinstance(outcome, MemoryError)
        with pytest.raises(MemoryError, match=REFUSED):
            raise outcome


@pytest.mark.row("H181")
async def test_what_a_host_could_not_pass_on_counts_so_that_a_death_costs_what_had_started(
    scarce_dask: Dask, tmp_path: Path
) -> None:
    path = tmp_path / "record"
    start = {"initializer": cluster_tasks.open_record, "initargs": (str(path),)}
    async with pool_over(scarce_dask, **start) as pool:
        refused = await pool.map(workload.identity, [LARGE] * 5, return_exceptions=True)
        check_refused(refused, 5)
        with pytest.raises(MemoryError, match=REFUSED):
            await pool.apply(workload.identity, (LARGE,))
        refused = await pool.starmap(workload.identity, [(LARGE,)] * 3, return_exceptions=True)
        check_refused(refused, 3)
        assert not pool.stats().restarts
        result = pool.map(cluster_tasks.record_and_stay, range(3), return_exceptions=True)
        while len(cluster_tasks.recorded(path)) < 3:  # noqa: ASYNC110 - a file has no events
            await asyncio.sleep(0.005)
        (victim,) = pool.processes
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        assert [type(outcome) for outcome in await result] == [WorkerLostError] * 3
        assert cluster_tasks.recorded(path) == [0, 1, 2]
        assert await pool.map(cluster_tasks.record, range(100)) == list(range(100))


async def test_small_items_in_the_same_frame_fail_too_and_each_is_answered(
    scarce_dask: Dask,
) -> None:
    async with pool_over(scarce_dask) as pool:
        items = [1, 2, bytes(MOST), 4, *range(1000)]
        outcomes = await pool.map(workload.identity, items, return_exceptions=True)
        assert len(outcomes) == len(items)
        refused = [outcome for outcome in outcomes if isinstance(outcome, MemoryError)]
        check_refused(refused, len(refused))
        assert isinstance(outcomes[2], MemoryError)
        for item, outcome in zip(items, outcomes, strict=True):
            assert outcome == item or outcome in refused
        assert await pool.map(workload.double, range(1000)) == [2 * n for n in range(1000)]
        assert not pool.stats().restarts


@pytest.mark.row("H181")
async def test_a_function_that_a_host_could_not_pass_on_fails_its_items_and_no_others(
    scarce_dask: Dask,
) -> None:
    async with Meeting() as meeting, pool_over(scarce_dask) as pool:
        running = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        for func in (partial(workload.describe, LARGE), partial(workload.double_all, LARGE)):
            refused = await pool.map(func, range(3), return_exceptions=True)
            check_refused(refused, 3)
        with pytest.raises(MemoryError, match=REFUSED):
            await pool.apply(partial(workload.identity, LARGE))
        assert await pool.apply(workload.identity, (7,)) == 7
        arrival.release()
        assert await running == "go"
        assert not pool.stats().restarts


@pytest.mark.row("H181")
async def test_a_context_that_a_host_could_not_pass_on_fails_its_items_and_no_others(
    scarce_dask: Dask,
) -> None:
    async with pool_over(scarce_dask, contextvars=(context_variables.REQUEST,)) as pool:
        context_variables.REQUEST.set("first")
        assert (await pool.apply(context_variables.read))[0] == "first"
        context_variables.REQUEST.set(LARGE)
        with pytest.raises(pickle.UnpicklingError, match=NO_MEMORY):
            await pool.apply(context_variables.read)
        context_variables.REQUEST.set("third")
        assert (await pool.apply(context_variables.read))[0] == "third"
        assert not pool.stats().restarts


@pytest.mark.row("H181")
async def test_a_process_for_which_there_is_no_memory_at_all_is_replaced(
    scarce_dask: Dask,
) -> None:
    async with pool_over(scarce_dask, small_ones=1) as pool:
        sent = asyncio.ensure_future(pool.apply(workload.identity, (LARGE,)))
        others = pool.map(workload.double, range(100))
        with pytest.raises(MemoryError, match=REFUSED):
            await sent
        assert await others == [2 * n for n in range(100)]
        assert pool.stats().restarts == {"died": 1}
        assert "is killed: there is no memory for what it was sent" in scarce_dask.said("scarce")
