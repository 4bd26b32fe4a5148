"""Tasks that need no thread run while all threads of their worker are busy (CREDIT-9, QUEUE-3)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import blocking
import streams
import workload
from aiomultiprocess import Pool
from aiomultiprocess._parent.credit import THREAD_WAIT
from support import until_exists

pytestmark = pytest.mark.row("H232")


@asynccontextmanager
async def all_threads_busy(pool: Pool, path: str, warm: bool) -> AsyncIterator[None]:
    """Within it, each thread of each worker runs a call that does not return by itself."""
    if warm:  # the workers get a backlog of plain calls
        await pool.map(blocking.touch_file, [path + ".warm"] * 200)
    count = pool.process_count * (pool.threads or 0)
    calls = [pool.submit(blocking.wait_for_file, f"{path}{n}") for n in range(count)]
    for n in range(count):
        await until_exists(f"{path}{n}.begun")
    yield
    assert not any(call.done() for call in calls)
    for n in range(count):
        Path(f"{path}{n}").touch()  # noqa: ASYNC240
    await asyncio.gather(*calls)


async def run_coroutines(pool: Pool) -> None:
    async with asyncio.timeout(20):
        assert await pool.apply(blocking.loop_thread_name) == "MainThread"
        names = [pool.submit(blocking.loop_thread_name) for _ in range(5)]
        assert await asyncio.gather(*names) == ["MainThread"] * 5
        assert await pool.map(workload.double, range(50)) == [2 * n for n in range(50)]
        assert [n async for n in pool.stream(streams.count_up, (3,))] == [0, 1, 2]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 2), (2, 1)])
async def test_coroutines_run_while_all_threads_are_busy(
    backend: str, tmp_path: Path, workers: int, threads: int, warm: bool
) -> None:
    path = str(tmp_path / "go")
    async with (
        Pool(workers, threads=threads, backend=backend) as pool,
        all_threads_busy(pool, path, warm),
    ):
        await run_coroutines(pool)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("what", ["map", "calls", "cancelled map", "other function"])
async def test_plain_functions_that_wait_for_a_thread_hold_up_no_coroutine(
    backend: str, tmp_path: Path, what: str, warm: bool
) -> None:
    path = str(tmp_path / "go")
    async with (
        Pool(1, threads=2, backend=backend) as pool,
        all_threads_busy(pool, path, warm),
    ):
        later: list[Any] = []
        if what == "calls":
            later = [pool.submit(blocking.touch_file, path + ".run") for _ in range(3)]
        else:
            later = [pool.map(blocking.touch_file, [path + ".run"] * 3)]
        if what == "other function":
            later.append(pool.map(blocking.count_threads, [0.0] * 3))
        await asyncio.sleep(0.1)
        if what == "cancelled map":
            later.pop().cancel()
        await run_coroutines(pool)
        assert not Path(path + ".run").exists()  # noqa: ASYNC240
    for result in later:
        assert result.done()


@pytest.mark.parametrize("how", ["calls", "map"])
async def test_a_quick_function_that_blocks_for_once_holds_up_nothing_that_comes_later(
    backend: str, tmp_path: Path, how: str
) -> None:
    """Nothing but time tells that it is not quick this time."""
    path = str(tmp_path / "go")
    Path(path + "quick").touch()  # noqa: ASYNC240
    async with Pool(1, threads=2, backend=backend) as pool:
        if how == "map":
            await pool.map(blocking.wait_for_file, [path + "quick"] * 200)
        else:
            for _ in range(50):
                await pool.apply(blocking.wait_for_file, (path + "quick",))
        async with all_threads_busy(pool, path, warm=False):
            await asyncio.sleep(4 * THREAD_WAIT)
            later = pool.submit(blocking.wait_for_file, path + "quick")
            await asyncio.sleep(0.1)
            await run_coroutines(pool)
            assert not later.done()
        await later


async def test_a_call_goes_to_the_worker_that_has_a_thread(backend: str, tmp_path: Path) -> None:
    """Though it holds more tasks, and the others have been quick until now."""
    path = str(tmp_path / "go")
    Path(path + "quick").touch()  # noqa: ASYNC240
    async with Pool(2, threads=1, backend=backend) as pool, asyncio.timeout(60):
        await pool.map(blocking.wait_for_file, [path + "quick"] * 400)
        blocked = pool.submit(blocking.wait_for_file, path)
        await until_exists(path + ".begun")
        await asyncio.sleep(4 * THREAD_WAIT)
        coroutines = [pool.submit(asyncio.sleep, 1000) for _ in range(3)]
        while sum(worker.running for worker in pool.stats().workers) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for _ in range(10):
            await pool.apply(blocking.wait_for_file, (path + "quick",))
        Path(path).touch()  # noqa: ASYNC240
        await blocked
        for coroutine in coroutines:
            coroutine.cancel()


@pytest.mark.parametrize("priority", [0, 1])
async def test_sources_that_were_passed_keep_their_order(
    backend: str, tmp_path: Path, priority: int
) -> None:
    path, note = str(tmp_path / "go"), str(tmp_path / "note")
    async with Pool(1, threads=1, backend=backend) as pool:
        async with all_threads_busy(pool, path, warm=False):
            calls = [
                asyncio.ensure_future(pool.apply(workload.note, (note, str(n)), priority=priority))
                for n in range(4)
            ]
            await asyncio.sleep(0)
            await run_coroutines(pool)
            assert not Path(note).exists()  # noqa: ASYNC240
        await asyncio.gather(*calls)
        assert Path(note).read_text().split() == ["0", "1", "2", "3"]  # noqa: ASYNC240


async def test_slow_plain_functions_do_not_look_as_quick_as_coroutines_beside_them(
    backend: str, tmp_path: Path
) -> None:
    """A call that waited for a thread would wait for ever: it is released after the calls."""
    paths = [str(tmp_path / f"{n}") for n in range(6)]
    async with Pool(1, threads=2, backend=backend) as pool, asyncio.timeout(60):
        await pool.map(workload.double, range(2000))
        slow = pool.map(blocking.wait_for_file, paths)
        for path in paths:
            await until_exists(path + ".begun")
            slow_enough = time.monotonic() + 0.2
            while time.monotonic() < slow_enough:
                assert await pool.apply(workload.double, (1,)) == 2
            Path(path).touch()  # noqa: ASYNC240
        await slow


async def test_plain_functions_have_their_turn_beside_coroutines_that_fill_the_slots(
    backend: str,
) -> None:
    """Their threads are free: what they wait for is a slot, and the coroutines never end."""
    ended = False

    def endless() -> Iterator[float]:
        while not ended:
            yield 0.002

    async with Pool(1, threads=2, backend=backend) as pool, asyncio.timeout(60):
        coroutines = pool.map(asyncio.sleep, endless())
        while pool.stats().workers[0].running < 16:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await pool.starmap(blocking.thread_name, [()] * 4)
        assert await pool.apply(blocking.thread_name)
        ended = True
        await coroutines


async def test_a_free_thread_is_used_though_its_worker_holds_more_than_the_others(
    backend: str, tmp_path: Path
) -> None:
    """QUEUE-6: those whose threads are busy cannot take the task."""
    path, suspended = str(tmp_path / "go"), str(tmp_path / "suspended")
    async with Pool(2, threads=1, backend=backend) as pool, asyncio.timeout(60):
        await pool.map(workload.double, range(10))
        block = pool.submit(blocking.wait_for_file, path)
        await until_exists(path + ".begun")
        (blocked,) = [worker for worker in pool.stats().workers if worker.running]
        coroutines = [pool.submit(blocking.suspend_until_file, suspended) for _ in range(8)]
        await until(lambda: all(worker.running > 1 for worker in pool.stats().workers))
        Path(f"{suspended}{blocked.pid}").touch()  # noqa: ASYNC240
        await until(lambda: sorted(worker.running for worker in pool.stats().workers)[0] == 1)
        assert await pool.apply(blocking.thread_name)
        assert await pool.starmap(blocking.thread_name, [()] * 2)
        for worker in pool.stats().workers:
            Path(f"{suspended}{worker.pid}").touch()  # noqa: ASYNC240
        Path(path).touch()  # noqa: ASYNC240
        await asyncio.gather(block, *coroutines)


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 - what other processes do
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("first", ["stream", "map"])
async def test_a_plain_function_may_serve_streams_and_maps_in_turn(
    backend: str, tmp_path: Path, first: str
) -> None:
    """In streams it runs on the loop, in maps it needs a thread."""
    func, path = blocking.iterator_or_count, str(tmp_path / "go")
    async with Pool(1, threads=1, backend=backend) as pool:
        if first == "stream":
            assert [n async for n in pool.stream(func)] == [1, 2]
        else:
            assert await pool.map(func, [7]) == [1]
        async with all_threads_busy(pool, path, warm=False):
            later = pool.map(func, [7, 8])
            async with asyncio.timeout(20):
                assert [n async for n in pool.stream(func)] == [1, 2]
            await run_coroutines(pool)
            assert not later.done()
        assert await later == [1, 1]


async def test_a_generator_by_value_needs_no_thread_the_second_time_either(
    backend: str, tmp_path: Path
) -> None:
    async def generate(stop: int) -> AsyncIterator[int]:
        for n in range(stop):
            yield n

    path = str(tmp_path / "go")
    async with Pool(1, threads=1, backend=backend, serializer="cloudpickle") as pool:
        assert [n async for n in pool.stream(generate, (2,))] == [0, 1]
        async with all_threads_busy(pool, path, warm=False):
            async with asyncio.timeout(20):
                assert [n async for n in pool.stream(generate, (3,))] == [0, 1, 2]
            await run_coroutines(pool)


async def test_a_thread_that_an_awaitable_has_left_is_used_beside_a_map_of_coroutines(
    backend: str,
) -> None:
    """Items of the map wait in the worker all the time, and it says that its thread is free."""
    async with Pool(1, threads=1, backend=backend) as pool, asyncio.timeout(60):
        left = pool.submit(blocking.waits_for_ever)
        coroutines = pool.map(asyncio.sleep, [0.02] * 100_000)
        await until(lambda: pool.stats().workers[0].running == 16)
        for _ in range(3):
            assert await pool.apply(blocking.thread_name)
        coroutines.cancel()
        left.cancel()


async def test_a_worker_may_have_any_number_of_threads(backend: str) -> None:
    async with Pool(1, threads=sys.maxsize, backend=backend) as pool, asyncio.timeout(60):
        assert await pool.map(workload.double_after_a_turn, range(50)) == [2 * n for n in range(50)]
        assert await pool.apply(blocking.thread_name)
