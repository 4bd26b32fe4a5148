"""An item that blocks its worker does not hold up the results of those before it (QUEUE-9)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocked
import workload
from aiomultiprocess import Pool, PoolExecutor, WorkerLostError
from aiomultiprocess._parent import blocked as watching
from aiomultiprocess._parent.queue import Queue
from aiomultiprocess._parent.worker import PoolWorker

pytestmark = pytest.mark.row("H127")


async def measured(pool: Pool, func: Callable[..., Any]) -> None:
    """Let a pool learn that a function is quick, so that its items travel together."""
    await pool.map(func, [0] * 200)


@pytest.mark.parametrize("func", [blocked.block, blocked.block_in_a_coroutine])
async def test_results_of_a_map_do_not_wait_for_a_slow_item_after_them(
    backend: str, func: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, func)
        found = []
        async for value in pool.map(func, [0, 2, 4, file, 6]).as_completed():
            found.append(value)
            if found == [0, 2, 4]:
                file.touch()
        assert found == [0, 2, 4, file, 6]
        assert pool.stats().done == 205


async def test_calls_do_not_wait_for_a_slow_call_after_them(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block)
        calls = [pool.submit(blocked.block, value) for value in (1, 2, file, 3)]
        assert await asyncio.gather(*calls[:2]) == [1, 2]
        assert not calls[2].done()
        file.touch()
        assert await asyncio.gather(*calls) == [1, 2, file, 3]


def test_an_executor_yields_what_is_there_before_a_slow_call(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "go"
    with PoolExecutor(1, backend=backend) as executor:
        list(executor.map(blocked.block, [0] * 200))
        results = executor.map(blocked.block, [0, 1, file])
        assert [next(results), next(results)] == [0, 1]
        file.touch()
        assert list(results) == [file]


async def test_errors_do_not_wait_either(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_or_raise)
        job = pool.map(blocked.block_or_raise, [0, 1, 2, 3, file, 5], return_exceptions=True)
        found = []
        async for value in job.as_completed():
            found.append(value)
            if len(found) == 4:
                file.touch()
        assert [found[0], found[2], found[4]] == [0, 2, file]
        assert [error.args for error in (found[1], found[3], found[5])] == [(1,), (3,), (5,)]


async def test_a_value_that_pickle_refuses_before_a_slow_item_fails_alone(
    backend: str, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_or_refuse)
        job = pool.map(blocked.block_or_refuse, [0, 1, 2, file], return_exceptions=True)
        found = []
        async for value in job.as_completed():
            found.append(value)
            if len(found) == 3:
                file.touch()
        assert [found[0], found[2], found[3]] == [0, 2, file]
        assert "not to be sent" in str(found[1])


@pytest.mark.parametrize("size", [1_000, 50_000, 200_000])
async def test_large_results_do_not_wait_either(backend: str, size: int, tmp_path: Path) -> None:
    file = tmp_path / "go"
    values = [bytes([at]) * size for at in range(6)]
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block)
        found = []
        async for value in pool.map(blocked.block, [*values[:4], file, *values[4:]]).as_completed():
            found.append(value)
            if len(found) == 4:
                file.touch()
        assert found == [*values[:4], file, *values[4:]]


@pytest.mark.parametrize("size", [1_000, 30_000, 300_000, 3_000_000])
async def test_the_slow_item_itself_may_return_something_large(
    backend: str, size: int, tmp_path: Path
) -> None:
    """Its frame may come in segments, and have the results in front that were taken."""
    file = tmp_path / f"go.{size}"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_and_enlarge)
        found = []
        async for value in pool.map(blocked.block_and_enlarge, [0, 2, file, 6]).as_completed():
            found.append(value)
            if len(found) == 2:
                file.touch()
        assert found == [0, 2, (file, bytes(size)), 6]
        assert not pool.stats().restarts


@pytest.mark.row("H134")
async def test_dicts_whose_keys_were_taken_stay_right(backend: str, tmp_path: Path) -> None:
    """A key is spelled out once in a payload, and later ones name it by its number (CODEC-6)."""
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_in_a_dict)
        found = []
        items = [0, 1, file, 2, 3, 4]
        async for value in pool.map(blocked.block_in_a_dict, items).as_completed():
            found.append(value)
            if len(found) == 2:
                file.touch()
        assert found == [blocked.block_in_a_dict(value) for value in items]
        assert pool.stats().restarts == {}


@pytest.mark.row("H134")
async def test_what_was_taken_is_unpickled_once(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_and_count)
        before, found = blocked.Counted.unpickled, []
        async for value in pool.map(blocked.block_and_count, [0, 1, file, 2]).as_completed():
            found.append(value)
            if len(found) == 2:
                file.touch()
        assert [getattr(each, "value", each) for each in found] == [0, 1, file, 2]
        assert blocked.Counted.unpickled - before == 3


@pytest.mark.row("H135")
async def test_a_suspended_item_does_not_wait_for_one_that_then_blocks(
    backend: str, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        for _ in range(3):
            calls = [pool.apply(blocked.wait_and_block, (value,)) for value in (1, file)]
            assert await calls[0] == 1
            assert not calls[1].done()
            file.touch()
            assert await calls[1] == file
            file.unlink()


@pytest.mark.parametrize("signum", [None, signal.SIGKILL])
@pytest.mark.parametrize("retries", [0, 1])
async def test_what_was_taken_of_a_worker_that_dies_then_counts_once(
    backend: str, signum: int | None, retries: int, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block_or_die)
        (pid,) = [worker.pid for worker in pool.stats().workers]
        calls = [
            pool.apply(blocked.block_or_die, (value,), retries=retries if value != file else 0)
            for value in (0, 1, 2, file, 3, 4)
        ]
        assert await asyncio.gather(*calls[:3]) == [0, 1, 2]
        if signum is None:
            file.touch()
        else:
            os.kill(pid, signum)
        with pytest.raises(WorkerLostError):
            await calls[3]
        assert await asyncio.gather(*calls[4:]) == [3, 4]
        stats = pool.stats()
        assert (stats.done, stats.lost, stats.restarts) == (205, 1, {"died": 1})


async def test_a_call_with_a_limit_that_blocks_leaves_the_results_before_it(
    backend: str, tmp_path: Path
) -> None:
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block)
        values = [1, 2, tmp_path / "never"]
        job = pool.map(blocked.block, values, task_timeout=0.3, return_exceptions=True)
        found = [value async for value in job.as_completed()]
        assert found[:2] == [1, 2]
        assert isinstance(found[2], TimeoutError)


@pytest.mark.parametrize("patience", [0.0, 0.0002, 0.002])
async def test_results_taken_at_any_moment_count_once(
    backend: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", patience)
    values = list(range(20_000))
    async with Pool(2, backend=backend) as pool:
        assert await pool.map(blocked.now_and_then, values) == values
        doubled = [value async for value in pool.map(blocked.block_or_raise, range(0, 20_000, 2))]
        assert doubled == list(range(0, 20_000, 2))
        calls = [pool.submit(blocked.now_and_then, value) for value in range(5_000)]
        assert await asyncio.gather(*calls) == list(range(5_000))
        dicts = await pool.map(blocked.now_and_then_a_dict, values)
        assert dicts == [{f"key {value % 300}": value} for value in values]
        assert pool.stats().done == 55_000


@pytest.mark.row("H230")
async def test_results_of_a_worker_that_began_late_do_not_wait_either(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy system, here a stop, keeps it from its first item until it was taken for blocked."""
    looked, take = asyncio.Event(), Queue.on_blocked

    def on_blocked(queue: Queue, worker: PoolWorker) -> None:
        take(queue, worker)
        looked.set()

    monkeypatch.setattr(Queue, "on_blocked", on_blocked)
    file = tmp_path / "go"
    async with Pool(1, backend=backend) as pool:
        await measured(pool, blocked.block)
        (pid,) = [worker.pid for worker in pool.stats().workers]
        os.kill(pid, signal.SIGSTOP)
        looked.clear()
        results = pool.map(blocked.block, [0, 2, 4, file, 6]).as_completed()
        await looked.wait()
        os.kill(pid, signal.SIGCONT)
        assert [await anext(results) for _ in range(3)] == [0, 2, 4]
        file.touch()
        assert [value async for value in results] == [file, 6]


@pytest.mark.row("H128")
async def test_nothing_waits_behind_a_slow_plain_item_in_front(
    backend: str, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(2, backend=backend) as pool:
        await pool.map(asyncio.sleep, [0.01] * 64)  # workers have run many side by side
        found = []
        async for value in pool.map(blocked.block, [file, *range(200)]).as_completed():
            found.append(value)
            if len(found) == 200:
                file.touch()
        assert found[-1] == file
        assert sorted(found[:-1]) == list(range(200))


@pytest.mark.row("H128")
async def test_nothing_of_other_functions_waits_behind_a_slow_plain_call(
    backend: str, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    async with Pool(2, backend=backend) as pool:
        await pool.map(workload.double, range(10_000))
        call = pool.submit(blocked.block, file)
        assert await pool.map(workload.double, range(10_000)) == list(range(0, 20_000, 2))
        calls = [pool.submit(workload.double, n) for n in range(1000)]
        assert await asyncio.gather(*calls) == list(range(0, 2000, 2))
        assert not call.done()
        file.touch()
        assert await call == file
