"""Large arrays in pools: they lie in shared memory, each has one owner, and none is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import array_targets as targets
import conftest
import segment_support
import workload
from aiomultiprocess import Pool, PoolExecutor, RoundRobin, WorkerLostError
from aiomultiprocess._transport import segments
from support import Meeting, lines

pytestmark = [
    pytest.mark.usefixtures("backend", "no_segment_is_left"),
    pytest.mark.skipif(not segments.works(), reason="segments need memfd and amp_ext"),
]


@pytest.fixture
def no_segment_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert segment_support.mapped() == 0


# -- what arrives ----------------------------------------------------------------------------------


@pytest.mark.row("H200")
@pytest.mark.parametrize(
    "options", [{}, {"sharedmemory": 0}, {"backend": "inline"}], ids=["shared", "copied", "inline"]
)
async def test_a_buffer_arrives_as_a_memoryview_whatever_its_size(options: dict[str, Any]) -> None:
    sizes = (0, 10, 100_000, 300_000)
    async with Pool(1, **options) as pool:
        for readonly in (False, True):
            made: Any = [bytes(size) if readonly else np.zeros(size, "u1") for size in sizes]
            buffers: Any = [pickle.PickleBuffer(memory) for memory in made]
            found = await pool.map(targets.describe_buffer, buffers)
            assert found == [("memoryview", readonly, size) for size in sizes]


async def test_arguments_and_results_lie_in_shared_memory(start_method: str) -> None:
    async with Pool(2) as pool:
        arrays = [targets.make(fill) for fill in range(10)]
        assert await pool.map(targets.describe, arrays) == [(True, f, f) for f in range(10)]
        results = await pool.map(workload.identity, arrays)
        assert all(map(targets.is_lent, results))
        assert [int(result.sum()) for result in results] == [f << 20 for f in range(10)]
        del results


@pytest.mark.row("H110")
async def test_what_a_worker_changes_changes_nothing_of_the_caller() -> None:
    array = targets.make(1)
    async with Pool(2) as pool:
        results = await pool.starmap(targets.add, [(array, number) for number in range(8)])
        assert (array == 1).all()
        assert [int(np.unique(result)[0]) for result in results] == [1 + n for n in range(8)]
        results[0] += 50
        assert [int(result[0]) for result in results[1:]] == [1 + n for n in range(1, 8)]
        assert await pool.map(targets.describe, results[:1]) == [(True, 51, 51)]
        del results


@pytest.mark.row("H110")
async def test_arrays_that_are_kept_in_either_process_never_change() -> None:
    async with Pool(1) as pool:
        results = []
        for fill in range(20):
            await pool.apply(targets.keep, (targets.make(fill),))
            results.append(await pool.apply(targets.make, (100 + fill,)))
        assert await pool.apply(targets.check_kept) == [*range(20)]
        assert [int(v) for one in results for v in np.unique(one)] == [*range(100, 120)]
        del results[::2]
        await pool.map(workload.identity, [targets.make(7)] * 20)
        assert [int(v) for one in results for v in np.unique(one)] == [*range(101, 120, 2)]
        assert await pool.apply(targets.check_kept) == [*range(20)]
        results.clear()


async def test_streams_executors_and_own_schedulers_have_them_too() -> None:
    async with Pool(1) as pool:
        values = [v async for v in pool.stream(targets.produce, (5,), ahead=2)]
        assert [targets.describe(value) for value in values] == [(True, f, f) for f in range(5)]
        values.clear()
    async with Pool(2, queuecount=2, scheduler=RoundRobin()) as pool:
        found = await pool.map(targets.describe, [targets.make(f) for f in range(6)])
        assert found == [(True, f, f) for f in range(6)]


def test_an_executor_has_them_too() -> None:
    with PoolExecutor(1) as executor:
        result = executor.submit(workload.double_sync, targets.make(3)).result()
        assert targets.describe(result) == (True, 6, 6)
        del result


async def test_fields_of_one_item_and_small_arrays_go_their_own_ways() -> None:
    item = {"large": [targets.make(1), targets.make(2)], "small": targets.make(3, 1000)}
    async with Pool(1) as pool:
        back = await pool.apply(workload.identity, (item,))
        lent = [targets.is_lent(array) for array in (*back["large"], back["small"])]
        assert lent == [True, True, False]
        assert [int(array[0]) for array in (*back["large"], back["small"])] == [1, 2, 3]
        del back


# -- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "lent"), [(0, 0), (4 << 20, 1), (16 << 20, 4), (None, 10), (1 << 40, 10)]
)
async def test_a_budget_bounds_them_and_what_is_over_it_is_copied(
    budget: int | None, lent: int
) -> None:
    async with Pool(1, sharedmemory=budget) as pool:
        results = [await pool.apply(targets.make, (fill, 2 << 20)) for fill in range(10)]
        assert [int(v) for one in results for v in np.unique(one)] == [*range(10)]
        assert sum(map(targets.is_lent, results)) == lent
        results.clear()
        del results


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (-1, ValueError, "sharedmemory must be a number of bytes, 0 for no shared memory, or None"),
        ("1G", TypeError, "sharedmemory must be a whole number, got '1G'"),
        (1.5, TypeError, "sharedmemory must be a whole number, got 1.5"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_by_name(
    value: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Pool(1, sharedmemory=value)


async def test_a_thousand_arrays_take_a_constant_number_of_segments_and_descriptors() -> None:
    async with Pool(1, childconcurrency=2) as pool:
        before = 0
        seen = 0
        async for result in pool.map(
            workload.identity, (targets.make(i % 200) for i in range(1000))
        ):
            assert int(result[5]) == seen % 200
            seen += 1
            if seen == 200:
                del result
                before, _ = targets.held()
        del result
        after, mapped = targets.held()
        assert after == before
        assert mapped < 200  # some are ahead of the loop, in each direction
        assert (await pool.apply(targets.held))[1] == mapped


async def test_of_large_results_of_a_generator_few_are_kept_after_they_were_read() -> None:
    """What is kept for a second reader is limited in bytes, however large each result is."""
    size, most = 4 << 20, 16 << 20
    async with Pool(1) as pool:
        alive: list[weakref.ref[Any]] = []
        results = pool.map(np.ones, (size // 8 for _ in range(40)))
        async for array in results:
            alive = [ref for ref in alive if ref() is not None]
            assert len(alive) * size <= most + size
            alive.append(weakref.ref(array))
        with pytest.raises(RuntimeError, match="kept for about 65536 items or 16 MiB"):
            await results


# -- deaths, forks and ends ------------------------------------------------------------------------


async def test_an_array_reaches_the_next_worker_if_the_first_dies(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        args = (str(tmp_path / "died"), targets.make(9))
        result = await pool.apply(targets.die_once, args, retries=1)
        assert targets.describe(result) == (True, 9, 9)
        del result


async def test_a_result_stays_when_its_worker_is_killed_and_the_others_go_on() -> None:
    async with Meeting() as meeting, Pool(2) as pool:
        result = await pool.apply(targets.make, (5,))
        calls = [pool.apply(targets.meet, (meeting.port, targets.make(n))) for n in range(2)]
        for arrival in await meeting.first(2):
            os.kill(arrival.pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(WorkerLostError):
                await call
        assert (result == 5).all()
        result += 1
        again = await pool.map(targets.describe, [targets.make(n) for n in range(10)])
        assert again == [(True, n, n) for n in range(10)]
        assert (result == 6).all()
        del result, calls, call


async def test_a_result_outlives_its_pool() -> None:
    async with Pool(1) as pool:
        result = await pool.apply(targets.make, (5,))
    assert segment_support.mapped() == 1
    result += 1
    assert (result == 6).all()
    del result


async def test_a_cancelled_call_gives_its_segment_back() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        for _ in range(20):
            call = pool.apply(targets.meet, (meeting.port, targets.make(1)))
            await meeting.next()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        del call
        assert await pool.apply(workload.two) == 2
        _, mapped = await pool.apply(targets.held)
        assert mapped < 10


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@conftest.FORK_WARNING
@pytest.mark.row("H107")
async def test_a_copy_that_a_task_has_forked_keeps_what_it_had(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    async with Pool(1) as pool:
        copy = await pool.apply(targets.fork_and_compare, (targets.make(7), gate))
        for fill in range(20, 40):
            assert await pool.apply(targets.describe, (targets.make(fill),)) == (True, fill, fill)
        with open(gate, "w"):  # noqa: ASYNC230 - it opens at once
            pass
    await asyncio.to_thread(os.waitpid, copy, 0)  # a child of this process, as the worker is gone
    assert lines(tmp_path / "gate.answer") == ["True 1048576"]


@conftest.FORK_WARNING
async def test_workers_that_are_forked_later_do_not_disturb_what_the_parent_holds() -> None:
    from aiomultiprocess import set_start_method

    set_start_method("fork")
    try:
        async with Pool(1, maxtasksperchild=2) as pool:
            results = [await pool.apply(targets.make, (fill,)) for fill in range(12)]
            assert [int(v) for one in results for v in np.unique(one)] == [*range(12)]
            _, mapped = await pool.apply(targets.held)
            assert mapped <= len(results)  # what the parent held when it was forked
            results.clear()
    finally:
        set_start_method()
