"""`shutdown` ends a pool and counts what it cut off; `join` may have a limit."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolTerminatedError
from support import Meeting, lines

pytestmark = pytest.mark.usefixtures("backend")

SOON = 0.05  # seconds; what waits for this may also wait longer


async def test_shutdown_lets_everything_finish() -> None:
    pool = Pool(2)
    call = pool.submit(workload.double, 4)
    result = pool.map(workload.double_after_a_turn, range(1000))
    assert await pool.shutdown() == 0
    assert await call == 8
    assert await result == [2 * number for number in range(1000)]
    assert not pool.processes
    assert not pool.running


async def test_shutdown_in_time_cuts_off_nothing() -> None:
    pool = Pool(1)
    result = pool.map(workload.double, range(100))
    assert await pool.shutdown(60) == 0
    assert len(await result) == 100


async def test_shutdown_counts_the_tasks_that_it_cuts_off() -> None:
    pool = Pool(2, childconcurrency=2)
    await pool.apply(workload.two)
    calls = [pool.submit(workload.wait_for_ever) for _ in range(7)]
    results = [pool.map(workload.wait_for_ever, range(50)), pool.map(workload.double, [])]
    given_up = pool.submit(workload.wait_for_ever)
    given_up.cancel()
    assert await pool.shutdown(SOON) == 57
    for pending in (*calls, results[0]):
        with pytest.raises(PoolTerminatedError):
            await pending
    assert await results[1] == []
    assert not pool.processes


async def test_a_user_s_scheduler_changes_nothing_in_the_count() -> None:
    from test_priority import FirstQueue

    pool = Pool(2, childconcurrency=2, scheduler=FirstQueue())
    pending = [pool.map(workload.wait_for_ever, range(50)), pool.submit(workload.wait_for_ever)]
    assert await pool.shutdown(SOON) == 51
    for one in pending:
        with pytest.raises(PoolTerminatedError):
            await one


async def test_of_an_input_of_unknown_length_what_was_read_counts() -> None:
    async def three() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await asyncio.Event().wait()

    async with Meeting() as meeting:
        pool = Pool(1)
        meet = functools.partial(workload.meet, meeting.port)
        result = asyncio.ensure_future(pool.map(meet, three()))
        for _ in range(3):
            await meeting.arrivals.get()
        assert await pool.shutdown(SOON) == 3
        with pytest.raises(PoolTerminatedError):
            await result


async def test_without_time_shutdown_is_terminate() -> None:
    pool = Pool(1)
    call = pool.submit(workload.wait_for_ever)
    assert await pool.shutdown(0) == 1
    with pytest.raises(PoolTerminatedError):
        await call


async def test_a_task_that_is_cut_off_may_clean_up(tmp_path: Path) -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        call = pool.submit(workload.clean_up, str(tmp_path / "notes"), meeting.port, "it")
        await meeting.arrivals.get()
        assert await pool.shutdown(SOON) == 1
        assert lines(tmp_path / "notes") == ["cleaned it"]
        with pytest.raises(PoolTerminatedError):
            await call


async def test_a_pool_takes_no_calls_while_it_shuts_down() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        call = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        shutdown = asyncio.create_task(pool.shutdown())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="pool is closed"):
            pool.submit(workload.two)
        arrival.release()
        assert await shutdown == 0
        assert await call == "go"


async def test_a_cancelled_shutdown_terminates_the_pool() -> None:
    pool = Pool(1)
    call = pool.submit(workload.wait_for_ever)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON):
            await pool.shutdown()
    with pytest.raises(PoolTerminatedError):
        await call
    await pool.join()


async def test_a_shutdown_that_terminate_ends_cuts_off_nothing_itself() -> None:
    pool = Pool(1)
    call = pool.submit(workload.wait_for_ever)
    shutdown = asyncio.create_task(pool.shutdown())
    await asyncio.sleep(0)
    assert await pool.shutdown(SOON) == 1
    assert await shutdown == 0
    with pytest.raises(PoolTerminatedError):
        await call


@pytest.mark.parametrize("end", [Pool.close, Pool.terminate])
async def test_a_pool_that_has_ended_can_be_shut_down(end: Callable[[Pool], None]) -> None:
    pool = Pool(1)
    await pool.apply(workload.two)
    end(pool)
    assert await pool.shutdown(60) == 0
    assert await pool.shutdown() == 0


def test_a_pool_that_was_never_used_can_be_shut_down() -> None:
    pool = Pool(1)
    assert asyncio.run(pool.shutdown()) == 0
    assert not pool.running


async def test_async_with_may_shut_down_inside() -> None:
    async with Pool(1) as pool:
        result = pool.map(workload.double, range(10))
        assert await pool.shutdown() == 0
    assert len(await result) == 10


def test_shutdown_in_another_loop_is_refused() -> None:
    async def main() -> None:
        pool = Pool(1)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(pool.shutdown())

        await asyncio.to_thread(elsewhere)
        assert pool.running
        await pool.shutdown()

    asyncio.run(main())


# -- join ----------------------------------------------------------------------------------------


async def test_join_gives_up_and_leaves_the_pool_as_it_is() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        call = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.arrivals.get()
        pool.close()
        for limit in (0, SOON):
            with pytest.raises(TimeoutError, match=r"\(workers: 1, tasks: 1\)"):
                await pool.join(limit)
        arrival.release()
        await pool.join(60)
        assert await call == "go"


async def test_join_without_time_succeeds_where_nothing_is_left() -> None:
    pool = Pool(1)
    pool.terminate()
    await pool.join()
    await pool.join(timeout=0)


@pytest.mark.parametrize(
    ("limit", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), ([], TypeError)],
)
@pytest.mark.parametrize("method", ["join", "shutdown"])
async def test_a_bad_timeout_is_refused_and_changes_nothing(
    method: str, limit: Any, error: type[Exception]
) -> None:
    async with Pool(1) as pool:
        with pytest.raises(error, match="timeout must be a number of seconds"):
            await getattr(pool, method)(limit)
        assert pool.running
        assert await pool.apply(workload.two) == 2


async def test_what_was_cancelled_before_is_not_cut_off() -> None:
    async with Meeting() as meeting:
        pool = Pool(2, childconcurrency=1)
        result = pool.map(workload.meet, [meeting.port] * 100)
        await meeting.first(2)
        assert result.cancel()
        assert await pool.shutdown(0) == 0
