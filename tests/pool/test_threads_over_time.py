"""`task_timeout=` of plain functions in threads: rules LIMITS-4, THREAD-2 and DEADLINE-3."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from test_threads import touch, until_exists

import blocking
import overtime
import workload
from aiomultiprocess import Pool, TaskTimeoutError

SHORT = 0.05  # seconds: the limit of calls that shall be over it
AMPLE = 100.0


@pytest.mark.row("H129")
async def test_a_call_in_a_thread_ends_at_its_limit_and_its_later_value_is_dropped(
    backend: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, threads=2, grace=60, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(blocking.wait_for_file, (path,), task_timeout=SHORT)
        assert not caught.value.killed
        assert "in its thread" in str(caught.value.__cause__)
        await until_exists(f"{path}.begun")
        touch(path)  # and so it returns a value
        assert await pool.map(workload.double, range(50)) == [2 * n for n in range(50)]
        stats = pool.stats()
        assert (stats.timed_out, stats.done, stats.running, stats.restarts) == (1, 50, 0, {})


async def test_items_of_a_map_over_their_limits_fail_without_waiting_for_threads(
    backend: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, threads=4, grace=60, backend=backend) as pool:
        found = await pool.map(
            blocking.wait_for_file, [path] * 3, task_timeout=SHORT, return_exceptions=True
        )
        assert [type(each) for each in found] == [TaskTimeoutError] * 3
        assert (await pool.apply(blocking.thread_name)).startswith("aiomultiprocess-thread-")
        touch(path)


async def test_a_call_over_its_limit_keeps_its_thread_until_it_returns(
    backend: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, threads=1, grace=60, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError):
            await pool.apply(blocking.wait_for_file, (path,), task_timeout=SHORT)
        after = asyncio.ensure_future(pool.apply(blocking.thread_name))
        await asyncio.wait([after], timeout=0.1)
        assert not after.done()
        touch(path)
        await after


@pytest.mark.row("H129")
async def test_an_error_that_comes_after_the_limit_is_dropped_too(backend: str) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError):
            await pool.apply(blocking.fail_later, (5 * SHORT,), task_timeout=SHORT)
        assert await pool.apply(workload.double, (1,)) == 2


async def test_an_awaitable_that_a_call_has_returned_is_cancelled_as_on_the_loop(
    backend: str,
) -> None:
    async with Pool(1, threads=1, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(blocking.waits_for_ever, task_timeout=SHORT)
        assert "_for_ever" in str(caught.value.__cause__)


async def test_a_call_within_its_limit_gives_its_value(backend: str) -> None:
    async with Pool(1, threads=2, backend=backend) as pool:
        items = [0.01] * 6
        assert await pool.map(overtime.block, items, task_timeout=AMPLE) == items


@pytest.mark.row("H130")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="deaths of POSIX processes")
async def test_a_thread_that_never_returns_costs_its_worker_after_the_grace_period(
    backend: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "never")
    async with Pool(1, threads=1, grace=0.2, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(blocking.wait_for_file, (path,), task_timeout=SHORT)
        assert not caught.value.killed
        await pool.apply(blocking.thread_name)  # by the next worker: this one has no free thread
        assert pool.stats().restarts == {"died": 1}


async def test_a_pool_that_closes_does_not_wait_for_calls_over_their_limits(
    backend: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "never")
    async with Pool(1, threads=1, grace=0.2, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError):
            await pool.apply(blocking.wait_for_file, (path,), task_timeout=SHORT)
        pool.close()
        await pool.join()
