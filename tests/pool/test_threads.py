"""`Pool(threads=...)`: plain functions run in threads of their worker."""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path
from typing import Any

import pytest

import blocking
import workload
from aiomultiprocess import Pool, ProxyException, TaskTimeoutError
from support import until_exists

THREAD = "aiomultiprocess-thread-"


def exists(path: str) -> bool:
    return Path(path).exists()


def touch(path: str | Path) -> None:
    Path(path).touch()


async def test_plain_functions_wait_side_by_side(backend: str) -> None:
    async with Pool(1, threads=4, backend=backend) as pool:
        names = await asyncio.gather(*[pool.apply(blocking.meet, (4,)) for _ in range(4)])
        assert sorted(names) == [f"{THREAD}{n}" for n in range(1, 5)]
        assert len(set(await pool.map(blocking.meet, [4] * 8))) == 4


async def test_threads_run_side_by_side_under_every_start_method(start_method: str) -> None:
    async with Pool(1, threads=4) as pool:
        assert len(set(await pool.map(blocking.meet, [4] * 8))) == 4


async def test_no_more_calls_run_than_there_are_threads(backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, threads=2, backend=backend) as pool:
        calls = [pool.apply(blocking.wait_for_file, (path + str(n),)) for n in range(3)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await until_exists(path + "1.begun")
        assert not exists(path + "2.begun")
        touch(path + "0")
        await tasks[0]
        touch(path + "1")
        touch(path + "2")
        assert len(set(await asyncio.gather(*tasks))) == 1


async def test_coroutine_functions_and_streams_stay_on_the_loop(backend: str) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        assert await pool.apply(blocking.loop_thread_name) == "MainThread"
        assert (await pool.apply(blocking.thread_name)).startswith(THREAD)
        partial = functools.partial(functools.partial(blocking.loop_thread_name))
        assert await pool.apply(partial) == "MainThread"
        assert (await pool.apply(functools.partial(blocking.thread_name))).startswith(THREAD)
        assert (await pool.map(blocking.Callable(), [1]))[0].startswith(THREAD)
        assert await pool.map(blocking.AsyncCallable(), [1]) == ["MainThread"]


async def test_an_awaitable_that_the_function_returns_is_awaited_on_the_loop(backend: str) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        made, awaited = await pool.apply(blocking.returns_coroutine)
        assert made.startswith(THREAD)
        assert awaited == "MainThread"
        waiting = asyncio.ensure_future(pool.apply(blocking.waits_for_ever))
        assert (await pool.apply(blocking.thread_name)).startswith(THREAD)  # the thread is free
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_thread_may_run_a_loop_of_its_own_and_the_loop_names_the_way_out(
    backend: str,
) -> None:
    async with Pool(1, threads=2, backend=backend) as pool:
        assert await pool.map(blocking.run_a_loop, range(10)) == list(range(10))
    async with Pool(1, backend=backend) as pool:
        with pytest.raises(RuntimeError) as caught:
            await pool.apply(blocking.run_a_loop, (1,))
        assert any("threads=" in note for note in caught.value.__notes__)


async def test_errors_are_those_of_the_function(backend: str) -> None:
    async with Pool(1, threads=2, backend=backend) as pool:
        with pytest.raises(LookupError, match="no 7") as caught:
            await pool.apply(blocking.fail, (7,))
        trace = str(caught.value)
        assert isinstance(caught.value, ProxyException)
        assert "in fail" in trace
        assert "_worker" not in trace
        assert "amp_ext" not in trace
        with pytest.raises(ProxyException, match="SystemExit"):
            await pool.apply(blocking.leave)
        assert await pool.map(workload.double, range(100)) == [2 * n for n in range(100)]


async def test_a_cancelled_call_keeps_its_thread_until_the_function_returns(
    backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    async with Pool(1, threads=1, backend=backend) as pool:
        call = asyncio.ensure_future(pool.apply(blocking.wait_for_file, (str(path),)))
        await until_exists(f"{path}.begun")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        after = asyncio.ensure_future(pool.apply(blocking.thread_name))
        await asyncio.wait([after], timeout=0.1)
        assert not after.done()
        touch(path)
        assert (await after).startswith(THREAD)


@pytest.mark.row("H129")
async def test_what_a_call_over_its_limit_returns_or_raises_in_the_grace_period_counts(
    backend: str,
) -> None:
    async with Pool(1, threads=3, backend=backend) as pool:
        calls = [
            pool.apply(blocking.late, (what,), task_timeout=0.1)
            for what in (7, ValueError("late"), "awaitable")
        ]
        value, error, timeout = await asyncio.gather(*calls, return_exceptions=True)
        assert value == 7
        assert isinstance(error, ValueError)
        assert isinstance(timeout, TaskTimeoutError)
        assert not timeout.killed
        assert await pool.apply(blocking.thread_name)
        stats = pool.stats()
        assert (stats.done, stats.failed, stats.timed_out, stats.restarts) == (2, 1, 1, {})


@pytest.mark.row("H130")
async def test_a_thread_that_never_returns_costs_its_worker_after_the_grace_period(
    backend: str,
) -> None:
    async with Pool(1, threads=2, grace=0.2, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(blocking.never, task_timeout=0.1)
        assert caught.value.killed
        assert await pool.apply(blocking.thread_name)
        assert pool.stats().restarts == {"died": 1}


async def test_context_variables_of_one_call_do_not_reach_the_next(backend: str) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        assert await pool.map(blocking.set_user, ["a", "b", "c"]) == ["nobody"] * 3


@pytest.mark.row("H95")
async def test_a_copy_of_the_worker_that_a_call_forks_does_no_harm(backend: str) -> None:
    async with Pool(1, threads=2, backend=backend) as pool:
        pid = await pool.apply(os.getpid)
        assert (
            await asyncio.gather(*[pool.apply(blocking.fork_and_return) for _ in range(4)])
            == [pid] * 4
        )


async def test_a_pool_that_ends_does_not_wait_for_a_blocked_thread(
    backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    async with Pool(1, threads=1, backend=backend) as pool:
        call = asyncio.ensure_future(pool.apply(blocking.wait_for_file, (str(path),)))
        await until_exists(f"{path}.begun")
    with pytest.raises(RuntimeError, match="terminated"):
        await call


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_threads_must_be_a_positive_whole_number(threads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="threads must be"):
        Pool(1, threads=threads)


async def test_a_task_factory_does_not_let_more_calls_run_than_there_are_threads(
    backend: str,
) -> None:
    initializer = blocking.plain_tasks
    async with Pool(1, threads=2, loop_initializer=initializer, backend=backend) as pool:
        before = await pool.apply(blocking.count_threads, (0,))
        assert max(await pool.map(blocking.count_threads, [0.05] * 8)) <= before + 1


@pytest.mark.row("H237")
@pytest.mark.parametrize("threads", [1, 3])
async def test_a_result_is_as_its_call_returned_it(backend: str, threads: int) -> None:
    """Also if the next call in its thread changes it, as with the buffer of a thread (THREAD-4)."""
    async with Pool(1, threads=threads, backend=backend) as pool:
        for size in (100, 300_000):
            numbers = list(range(60))
            got = await pool.map(blocking.rows_of_thread, [(size, n) for n in numbers])
            assert [set(rows) for rows in got] == [{n % 256} for n in numbers]


@pytest.mark.row("H239")
async def test_a_function_in_a_thread_may_raise_stop_iteration(backend: str) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        with pytest.raises(ProxyException) as caught:
            await pool.apply(blocking.next_of_nothing)
        assert type(caught.value.__cause__) is StopIteration
        assert await pool.apply(blocking.thread_name)
