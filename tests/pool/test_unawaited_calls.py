"""Calls that are not awaited when their pool is left end, and nothing is logged about it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, PoolTerminatedError, ProxyException, Worker

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("G64", "H241")]


async def through_own_code(pool: Pool) -> Any:
    return await pool.apply(workload.wait_for_ever)


async def through_a_loop(pool: Pool) -> list[Any]:
    return [value async for value in pool.map(workload.wait_for_ever, range(2))]


async def through_wait_for(pool: Pool) -> Any:
    return await asyncio.wait_for(pool.apply(workload.wait_for_ever), 600)


async def through_wait_for_of_a_map(pool: Pool) -> Any:
    return await asyncio.wait_for(pool.map(workload.wait_for_ever, [1]), 600)


async def through_gather_of_maps(pool: Pool) -> Any:
    return await asyncio.gather(*[pool.map(workload.wait_for_ever, [1]) for _ in range(2)])


CALLS: dict[str, Callable[[Pool], Awaitable[Any]]] = {
    "apply": lambda pool: pool.apply(workload.wait_for_ever),
    "map": lambda pool: pool.map(workload.wait_for_ever, range(2)),
    "starmap": lambda pool: pool.starmap(workload.wait_for_ever, [(1,), (2,)]),
    "own code": through_own_code,
    "async for": through_a_loop,
    "wait_for": through_wait_for,  # these three: H241
    "wait_for of a map": through_wait_for_of_a_map,
    "gather of maps": through_gather_of_maps,
}


async def started(pool: Pool, call: str) -> list[asyncio.Future[Any]]:
    """Some of these calls, each in a task that is never awaited."""
    tasks = [asyncio.ensure_future(CALLS[call](pool)) for _ in range(3)]
    await pool.apply(workload.two)
    return tasks


async def ended(tasks: list[asyncio.Future[Any]]) -> None:
    """Wait until the tasks have ended and are freed."""
    await asyncio.wait(tasks)
    tasks.clear()
    await asyncio.sleep(0)  # their callbacks hold them for a turn
    gc.collect()


@pytest.mark.parametrize("call", CALLS)
async def test_a_pool_that_is_left_logs_nothing_of_its_calls(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pool(2) as pool:
        tasks = await started(pool, call)
    await ended(tasks)
    assert caplog.text == ""


@pytest.mark.parametrize("call", ["apply", "map"])
async def test_a_pool_that_is_left_by_an_error_logs_nothing_of_its_calls(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Future[Any]] = []

    async def leave() -> None:
        async with Pool(2) as pool:
            tasks.extend(await started(pool, call))
            raise LookupError

    with pytest.raises(LookupError):
        await leave()
    await ended(tasks)
    assert caplog.text == ""


@pytest.mark.parametrize("call", ["apply", "map"])
async def test_terminate_logs_nothing_of_the_calls_of_its_pool(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(2)
    tasks = await started(pool, call)
    pool.terminate()
    await pool.join()
    await ended(tasks)
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:a pool of 1 workers was never closed:ResourceWarning")
async def test_a_pool_that_is_forgotten_logs_nothing_of_its_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(1)
    results = [pool.map(workload.wait_for_ever, range(2)) for _ in range(3)]
    await pool.apply(workload.two)
    del pool, results
    gc.collect()
    await asyncio.sleep(0)
    assert caplog.text == ""


async def test_a_worker_that_is_never_awaited_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(target=mishaps.fail_at_once, args=("unheard",))
    worker.start()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(worker.join())]
    await ended(tasks)
    assert "never retrieved" not in caplog.text
    worker.close()


async def test_a_caller_that_awaits_later_gets_the_error() -> None:
    async with Pool(1) as pool:
        tasks = await started(pool, "apply")
    for task in tasks:
        with pytest.raises(PoolTerminatedError):
            await task


async def raise_from(pool: Pool, error: type[Exception]) -> None:
    try:
        await pool.apply(workload.wait_for_ever)
    except PoolTerminatedError as end:
        raise error("of my own") from end


@pytest.mark.parametrize("how", ["of the program", "of a task"])
async def test_other_errors_that_are_never_awaited_are_reported(how: str) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report))
    async with Pool(1) as pool:
        if how == "of the program":
            task = asyncio.ensure_future(raise_from(pool, LookupError))
            await pool.apply(workload.two)
        else:
            task = asyncio.ensure_future(pool.apply(mishaps.fail_at_once, ("aloud",)))
            await asyncio.wait([task])
    tasks: list[asyncio.Future[Any]] = [task]
    del task
    await ended(tasks)
    (report,) = reports
    assert isinstance(
        report["exception"], LookupError if how == "of the program" else ProxyException
    )
