"""`return_exceptions=True`: errors stand where results would, as in `asyncio.gather`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from test_pool_scheduler import ByParity

import mishaps
import workload
from aiomultiprocess import Pool, PoolTerminatedError, ProxyException, WorkerLostError
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


async def test_errors_stand_in_the_places_of_results() -> None:
    async with Pool(1) as pool:
        items = [(3, i) for i in range(6)]
        results = pool.starmap(mishaps.fail_at, items, return_exceptions=True)
        found = await results
        assert [*found[:3], *found[4:]] == [0, 1, 2, 4, 5]
        assert isinstance(found[3], ProxyException)
        assert found[3].__traceback__ is None
        assert [value async for value in results] == found
        assert dict([pair async for pair in results.as_completed(with_index=True)]) == dict(
            enumerate(found)
        )


async def test_an_await_waits_for_all_in_spite_of_an_error() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        items = [(meeting.port, i) for i in range(2)]
        results = pool.starmap(mishaps.meet_or_raise, items, return_exceptions=True)
        waiting = asyncio.ensure_future(results)
        one, other = await meeting.first(2)
        one.release("raise")
        async for value in results.as_completed():
            assert isinstance(value, ProxyException)
            break
        assert not waiting.done()
        other.release()
        assert {type(value) is str for value in await waiting} == {True, False}


async def test_a_lost_worker_and_what_cannot_be_pickled_are_errors_of_their_items() -> None:
    async with Pool(1, childconcurrency=1) as pool:
        items = [(1, "SIGKILL", at) for at in range(3)]
        found = await pool.starmap(mishaps.die_at, items, return_exceptions=True)
        assert [type(value) for value in found] == [int, WorkerLostError, int]
        found = await pool.map(workload.identity, [1, lambda: None], return_exceptions=True)
        assert found[0] == 1
        assert isinstance(found[1], pickle.PicklingError)
        assert found[1].__traceback__ is None


async def test_the_cancellation_of_a_task_by_itself_is_an_error_of_its_item() -> None:
    async with Pool(1) as pool:
        (found,) = await pool.map(mishaps.cancel_oneself, [1], return_exceptions=True)
        assert isinstance(found, ProxyException)
        assert "CancelledError" in str(found)


async def test_the_end_of_the_pool_is_an_error_of_each_item_that_it_cut_off() -> None:
    async with Meeting() as meeting:
        async with Pool(1, childconcurrency=1) as pool:
            items = [(meeting.port, i) for i in range(4)]
            results = pool.starmap(workload.meet, items, return_exceptions=True)
            (await meeting.next()).release("first")
            assert await anext(aiter(results)) == "first"
            waiting = asyncio.ensure_future(results)
            await asyncio.sleep(0)
        for found in (await waiting, await results, [value async for value in results]):
            assert found[0] == "first"
            assert [type(value) for value in found[1:]] == [PoolTerminatedError] * 3


async def test_the_end_of_the_pool_is_raised_for_an_input_that_was_not_read_to_its_end() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, itertools.count(), return_exceptions=True)
        assert await anext(aiter(results)) == 0
    with pytest.raises(PoolTerminatedError):
        await results


async def test_the_error_of_an_input_is_raised_after_the_results() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no second")

    async with Pool(1) as pool:
        results = pool.map(workload.double, items(), return_exceptions=True)
        iterator = aiter(results)
        assert await anext(iterator) == 2
        with pytest.raises(LookupError, match="no second"):
            await anext(iterator)
        with pytest.raises(LookupError, match="no second"):
            await results


async def test_a_cancelled_map_raises() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port,)], return_exceptions=True)
        await meeting.next()
        results.cancel()
        with pytest.raises(asyncio.CancelledError, match="the map was cancelled"):
            await results


class Failing(ByParity):
    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if args[0] == 2:
            raise LookupError("no queue for 2")
        return super().schedule_task(task_id, func, args, kwargs)


async def test_an_error_of_the_scheduler_is_one_of_its_item() -> None:
    async with Pool(2, queuecount=2, scheduler=Failing()) as pool:
        found = await pool.map(workload.double, range(4), return_exceptions=True)
        assert [found[0], found[1], found[3]] == [0, 2, 6]
        assert isinstance(found[2], LookupError)


async def test_a_value_that_is_no_bool_is_refused() -> None:
    async with Pool(1) as pool:
        for call in (pool.map, pool.starmap):
            with pytest.raises(TypeError, match="return_exceptions must be True or False, got 0"):
                call(workload.double, [], return_exceptions=0)  # type: ignore[call-overload]


@pytest.mark.row("H178")
@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_large_errors_limit_how_far_an_endless_input_is_read_ahead(
    return_exceptions: bool,
) -> None:
    asked = itertools.count()
    items = (at for at in asked)
    async with Pool(1) as pool:
        iterator = aiter(pool.map(mishaps.raise_large, items, return_exceptions=return_exceptions))
        for _ in range(100):
            with contextlib.suppress(ValueError):
                await anext(iterator)
        await pool.map(workload.double, range(5000))  # time enough to run away
        assert next(asked) < 1000
        job = iterator._reader._job  # type: ignore[attr-defined]
        assert len(job._values) + len(job._errors) < 1000
