"""Every argument, attribute and kind of function of `Pool`."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mishaps
import workload
from aiomultiprocess import Pool, PoolResult, PoolTerminatedError, ProxyException, WorkerLostError
from support import Meeting, lines

pytestmark = pytest.mark.usefixtures("backend")


# -- attributes ------------------------------------------------------------------------------------


async def test_attributes_hold_what_the_pool_was_made_with() -> None:
    async with Pool(3, maxtasksperchild=7, childconcurrency=5, queuecount=2) as pool:
        assert (pool.process_count, pool.queue_count) == (3, 2)
        assert (pool.maxtasksperchild, pool.childconcurrency) == (7, 5)
        assert pool.running is True
        assert await pool.apply(workload.two) == 2
        assert len(pool.processes) == 3
        assert all(process.is_alive() and process.pid for process in pool.processes)
        assert Counter(Counter(pool.processes.values()).values()) == {2: 1, 1: 1}
    assert pool.running is False


@pytest.mark.parametrize("processes", [0, None])
def test_no_number_of_processes_means_one_for_each_usable_cpu(processes: int | None) -> None:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = Pool(processes)
    assert 1 <= pool.process_count <= (usable or 1)
    pool.terminate()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cpus_that_this_process_may_not_use_do_not_count() -> None:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        pool = Pool()
        assert pool.process_count == 1
        pool.terminate()
    finally:
        os.sched_setaffinity(0, usable)


def test_out_of_range_limits_are_clamped_as_in_0_9_1() -> None:
    pool = Pool(1, maxtasksperchild=-3, childconcurrency=0)
    assert (pool.maxtasksperchild, pool.childconcurrency) == (0, 1)
    pool.terminate()


async def test_numpy_integers_are_integers() -> None:
    async with Pool(np.int64(1), childconcurrency=np.int32(2)) as pool:
        assert await pool.map(workload.double, [1, 2]) == [2, 4]


# -- kinds of functions ----------------------------------------------------------------------------

KINDS = {
    "coroutine function": (workload.double, [2, 4]),
    "sync function": (workload.double_sync, [2, 4]),
    "function that returns an awaitable": (workload.awaitable_of, [2, 4]),
    "builtin": (math.sqrt, [1.0, math.sqrt(2)]),
    "class": (str, ["1", "2"]),
    "partial of a coroutine function": (functools.partial(mishaps.with_two, 9), [(9, 1), (9, 2)]),
    "partial of a sync function": (functools.partial(math.pow, 3), [3.0, 9.0]),
    "partial of a method": (workload.times_three, [3, 6]),
    "bound coroutine method": (workload.Multiplier(5).times, [5, 10]),
    "bound sync method": (workload.Multiplier(5).times_sync, [5, 10]),
    "class method": (workload.Multiplier.of_class, [("Multiplier", 1), ("Multiplier", 2)]),
    "object with async __call__": (workload.Multiplier(7), [7, 14]),
    "object with __call__": (workload.SyncCallable(), [-1, -2]),
}


@pytest.mark.row("A8")
async def test_any_callable_is_run() -> None:
    async with Pool(1) as pool:
        for kind, (func, expected) in KINDS.items():
            assert await pool.map(func, [1, 2]) == expected, kind
            assert await pool.starmap(func, [(1,), (2,)]) == expected, kind
            assert await pool.apply(func, (1,)) == expected[0], kind


async def test_a_callable_is_snapshotted_at_each_call() -> None:
    multiplier = workload.Multiplier(2)
    async with Pool(1) as pool:
        results = pool.map(multiplier.times, [1, 2])
        multiplier.factor = 3
        assert await results == [2, 4]
        assert await pool.map(multiplier.times, [1, 2]) == [3, 6]


# -- apply and starmap -----------------------------------------------------------------------------


async def test_apply_passes_positional_and_keyword_arguments() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.describe) == ((), {})
        assert await pool.apply(workload.describe, [1, 2]) == ((1, 2), {})
        assert await pool.apply(workload.describe, kwds={"a": 1}) == ((), {"a": 1})
        assert await pool.apply(workload.describe, (1,), {"b": 2}) == ((1,), {"b": 2})
        assert await pool.apply(workload.describe, args=None, kwds=None) == ((), {})


async def test_apply_refuses_arguments_that_are_not_a_sequence() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="args"):
            await pool.apply(workload.double, 5)
        with pytest.raises(TypeError, match="kwds"):
            await pool.apply(workload.double, (5,), [("value", 1)])
        assert await pool.apply(workload.double, (5,)) == 10


async def test_apply_copies_its_arguments_at_the_call() -> None:
    async with Pool(1) as pool:
        args, kwds = [1], {"a": 1}
        task = asyncio.ensure_future(pool.apply(workload.describe, args, kwds))
        await asyncio.sleep(0)
        args.append(2)
        kwds["b"] = 2
        assert await task == ((1,), {"a": 1})


async def test_starmap_unpacks_each_item() -> None:
    async with Pool(1) as pool:
        results = pool.starmap(workload.describe, [(1, 2), [], "ab"])
        assert isinstance(results, PoolResult)
        assert await results == [((1, 2), {}), ((), {}), (("a", "b"), {})]


async def test_an_item_of_starmap_that_is_no_sequence_fails_alone() -> None:
    async with Pool(1) as pool:
        results = pool.starmap(workload.describe, [(1,), 5, (2,)])
        iterator = aiter(results)
        assert await anext(iterator) == ((1,), {})
        with pytest.raises(TypeError):
            await anext(iterator)
        assert await anext(iterator) == ((2,), {})


async def test_many_applies_at_once_each_get_their_own_result() -> None:
    async with Pool(2) as pool:
        calls = [pool.apply(workload.double_after_a_turn, (i,)) for i in range(500)]
        assert await asyncio.gather(*calls) == [2 * i for i in range(500)]


async def test_an_apply_does_not_wait_for_a_large_map() -> None:
    async with Pool(1, childconcurrency=4) as pool:
        results = pool.map(workload.busy, [0.005] * 400)
        assert await pool.apply(workload.two) == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # two seconds of work were before it
                await results


# -- workers ---------------------------------------------------------------------------------------


async def test_the_initializer_runs_once_in_each_worker_before_any_task(tmp_path: Path) -> None:
    path = tmp_path / "initialized"
    async with (
        Meeting() as meeting,
        Pool(2, initializer=workload.note_greeting, initargs=(str(path), "hi")) as pool,
    ):
        found = await pool.map(workload.get_greeting, range(50))
        assert {greeting for _, greeting in found} == {"hi"}
        calls = [pool.apply(workload.meet_blocking, (meeting.port,)) for _ in range(2)]
        results = asyncio.gather(*calls)
        pids = {arrival.pid for arrival in await meeting.release_together(2)}
        await results
        assert pids == {process.pid for process in pool.processes}
        assert sorted(lines(path)) == sorted(map(str, pids))


@pytest.mark.parametrize("func", [workload.where, workload.where_after_a_turn])
@pytest.mark.parametrize("limit", [1, 3])
async def test_no_worker_runs_more_than_maxtasksperchild(func: Any, limit: int) -> None:
    async with Pool(2, maxtasksperchild=limit) as pool:
        ran = Counter(await pool.map(func, range(4 * limit)))
        assert max(ran.values()) <= limit
        assert sum(ran.values()) == 4 * limit
        assert len(ran) >= 4
        assert len(pool.processes) == 2


async def test_a_single_worker_is_replaced_after_exactly_maxtasksperchild() -> None:
    async with Pool(1, maxtasksperchild=3) as pool:
        ran = [await pool.apply(workload.where) for _ in range(7)]
        assert sorted(Counter(ran).values()) == [1, 3, 3]
        assert ran == sorted(ran, key=ran.index)


@pytest.mark.parametrize("limit", [1, 3, 16])
async def test_a_worker_fills_childconcurrency_and_never_exceeds_it(limit: int) -> None:
    total = 2 * limit + 1
    async with Meeting() as meeting, Pool(1, childconcurrency=limit) as pool:
        results = pool.starmap(workload.meet_and_count, [(meeting.port, i) for i in range(total)])
        held = await meeting.release_together(limit)  # all of these ran at once
        assert {int(arrival.token) for arrival in held} == set(range(limit))
        await meeting.release_all(total - limit)
        assert max(peak for _, peak in await results) == limit


async def test_applies_fill_childconcurrency_too() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=4) as pool:
        calls = [pool.apply(workload.meet_and_count, (meeting.port, i)) for i in range(8)]
        results = asyncio.gather(*calls)
        await meeting.release_together(4)
        await meeting.release_all(4)
        assert max(peak for _, peak in await results) == 4


async def test_slow_tasks_are_shared_evenly() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        results = pool.starmap(workload.meet_and_count, [(meeting.port, i) for i in range(2)])
        first, second = await meeting.release_together(2)  # neither waited behind the other
        assert first.pid != second.pid
        await results


async def test_the_exception_handler_runs_in_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "errors"
    handler = functools.partial(workload.note_error, str(path))
    async with Pool(1, exception_handler=handler) as pool:
        (process,) = pool.processes
        assert await pool.apply(workload.double, (1,)) == 2
        for func in (mishaps.fail_at_once, mishaps.fail_after_a_turn, mishaps.fail_now):
            with pytest.raises(ProxyException, match="no way"):
                await pool.apply(func, ("no way",))
        assert lines(path) == [f"{process.pid} RuntimeError no way"] * 3


# -- loops -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uvloop() -> Any:
    """The module, warmed up: from its first loop on, libuv keeps a pipe for signals."""
    module = pytest.importorskip("uvloop", reason="uvloop is not for this platform")
    module.new_event_loop().close()
    return module


def test_workers_run_uvloop_where_the_parent_does(uvloop: Any) -> None:
    async def program() -> None:
        async with Pool(1) as pool:
            assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
            assert (await pool.apply(workload.name_of_loop)).startswith("uvloop.")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program())


async def test_a_loop_initializer_gives_workers_uvloop(uvloop: Any) -> None:
    async with Pool(1, loop_initializer=uvloop.new_event_loop) as pool:
        assert (await pool.apply(workload.name_of_loop)).startswith("uvloop.")


def test_a_loop_initializer_wins_over_the_parents_loop(uvloop: Any) -> None:
    async def program() -> None:
        async with Pool(1, loop_initializer=workload.OwnLoop) as pool:
            assert await pool.apply(workload.name_of_loop) == "workload.OwnLoop"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_pool_lives_its_whole_life_under_uvloop(uvloop: Any) -> None:
    async def program() -> None:
        async with Meeting() as meeting:
            async with Pool(2) as pool:
                lost = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
                os.kill((await meeting.next()).pid, signal.SIGTERM)
                with pytest.raises(WorkerLostError):
                    await lost
                given_up = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
                arrival = await meeting.next()
                given_up.cancel()
                await arrival.gone
                large = [bytes(1 << 20)] * 20
                assert await pool.map(workload.identity, large) == large
                pending = pool.starmap(workload.meet, [(meeting.port,)])
                await meeting.next()
            with pytest.raises(PoolTerminatedError):
                await pending

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program())


async def test_workers_of_a_plain_asyncio_parent_run_plain_asyncio() -> None:
    async with Pool(1) as pool:
        assert (await pool.apply(workload.name_of_loop)).startswith("asyncio.")


async def test_every_start_method_gives_workers_of_their_own(start_method: str) -> None:
    async with Pool(2, initializer=workload.set_greeting, initargs=(start_method,)) as pool:
        assert await pool.map(workload.double, range(200)) == [2 * i for i in range(200)]
        pid, greeting = await pool.apply(workload.get_greeting)
        assert pid != os.getpid()
        assert greeting == start_method
        with pytest.raises(ProxyException, match="gone wrong"):
            await pool.apply(mishaps.fail_after_a_turn, ("gone wrong",))


def test_a_pool_may_be_made_before_the_loop() -> None:
    pool = Pool(2)

    async def program() -> None:
        async with pool:
            assert await pool.map(workload.double, [1, 2, 3]) == [2, 4, 6]

    asyncio.run(program())


async def test_two_pools_at_once_do_not_disturb_each_other() -> None:
    async with (
        Pool(1, initializer=workload.set_greeting, initargs=("one",)) as one,
        Pool(1, initializer=workload.set_greeting, initargs=("two",)) as two,
    ):
        found = await asyncio.gather(
            one.map(workload.get_greeting, range(20)), two.map(workload.get_greeting, range(20))
        )
        assert [{greeting for _, greeting in part} for part in found] == [{"one"}, {"two"}]


@pytest.mark.row("E43", "E44")
async def test_tasks_may_have_pools_and_subprocesses_of_their_own() -> None:
    async with Pool(2) as pool:
        assert await pool.map(workload.use_a_pool, [2, 3]) == [[0, 2], [0, 2, 4]]
        assert await pool.map(workload.use_a_subprocess, [5, 6]) == [(5, b"ready"), (6, b"ready")]


# -- values ----------------------------------------------------------------------------------------


async def test_numpy_arrays_come_back_equal_and_writable() -> None:
    record = np.array([(1, 2.5), (3, 4.5)], dtype=[("count", "i4"), ("weight", "f8")])
    arrays = [np.arange(10), np.ones((300, 400)), record, np.array("text"), np.array([])]
    async with Pool(1) as pool:
        for sent, got in zip(arrays, await pool.map(workload.identity, arrays), strict=True):
            assert got.dtype == sent.dtype
            np.testing.assert_array_equal(got, sent)
            assert got.flags.writeable
        (doubled,) = await pool.map(workload.double, [np.arange(3)])
        assert doubled.tolist() == [0, 2, 4]


async def test_pandas_frames_come_back_equal_and_writable() -> None:
    pd = pytest.importorskip("pandas", reason="of the extra `test`")
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None], "c": [0.5, 1.5, 2.5]})
    async with Pool(1) as pool:
        got = await pool.apply(workload.identity, (frame,))
        pd.testing.assert_frame_equal(got, frame)
        got.loc[0, "a"] = 10
        assert got["a"].tolist() == [10, 2, 3]


async def test_payloads_of_any_size_go_both_ways() -> None:
    pattern = os.urandom(1 << 16)
    async with Pool(1) as pool:
        for size in (0, 1, 1000, 1 << 16, (1 << 20) + 1, 9 << 20):
            payload = (pattern * (size // len(pattern) + 1))[:size]
            assert await pool.map(workload.identity, [payload, payload]) == [payload, payload]
