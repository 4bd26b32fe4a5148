"""`as_completed` gives results in the order in which they are ready, beside all other readers."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from test_pool_scheduler import ByParity

import mishaps
import workload
from aiomultiprocess import Pool, ProxyException, WorkerLostError
from aiomultiprocess._parent import job as jobs
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


async def everything(iterator: Any) -> list[tuple[int, Any]]:
    """Each index, with its result or the type of its error."""
    found: list[tuple[int, Any]] = []
    while True:
        try:
            value = await anext(iterator)
        except StopAsyncIteration:
            return found
        except Exception as error:  # noqa: BLE001 - the item's own
            value = type(error)
        found.append((iterator.index, value))


async def test_results_come_in_the_order_in_which_they_are_ready() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        iterator = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)]).as_completed()
        assert iterator.index is None
        held = {arrival.token: arrival for arrival in await meeting.first(3)}
        for token in ("2", "0", "1"):
            held[token].release(token)
            assert await anext(iterator) == token
            assert iterator.index == int(token)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


async def test_results_come_with_their_index_on_request() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(2)])
        held = {arrival.token: arrival for arrival in await meeting.first(2)}
        iterator = results.as_completed(with_index=True)
        held["1"].release("one")
        assert await anext(iterator) == (1, "one")
        held["0"].release("zero")
        assert await anext(iterator) == (0, "zero")
        assert [pair async for pair in results.as_completed(with_index=True)] == [
            (1, "one"),
            (0, "zero"),
        ]


async def test_what_was_ready_before_comes_in_index_order() -> None:
    async with Pool(2) as pool:
        results = pool.map(workload.double, range(1000))
        await results
        found = [pair async for pair in results.as_completed(with_index=True)]
        assert found == [(i, 2 * i) for i in range(1000)]


async def test_every_result_comes_once_to_each_of_many_readers() -> None:
    async with Pool(2) as pool:
        results = pool.map(workload.double_after_a_turn, range(3000))
        readers = [results.as_completed(with_index=True) for _ in range(3)]
        one, two, three = await asyncio.gather(*map(everything, readers))
        assert one == two == three
        assert sorted(value for _, value in one) == [(i, 2 * i) for i in range(3000)]
        assert [value async for value in results] == await results == list(range(0, 6000, 2))


async def test_an_error_comes_in_its_turn_and_the_iterator_goes_on() -> None:
    async with Pool(1) as pool:
        results = pool.starmap(mishaps.fail_at, [(3, i) for i in range(6)])
        found = await everything(results.as_completed())
        assert [value for index, value in sorted(found) if index != 3] == [0, 1, 2, 4, 5]
        (kind,) = [value for index, value in found if index == 3]
        assert issubclass(kind, ProxyException)
        assert await everything(results.as_completed()) == found


async def test_a_lost_item_comes_in_its_turn() -> None:
    async with Pool(1, childconcurrency=1) as pool:
        results = pool.starmap(mishaps.die_at, [(1, "SIGKILL", at) for at in range(3)])
        found = dict(await everything(results.as_completed()))
        assert found[1] is WorkerLostError
        assert set(found) == {0, 1, 2}


async def test_no_items_give_no_results() -> None:
    async with Pool(1) as pool:
        assert await everything(pool.map(workload.double, []).as_completed()) == []
        assert await everything(pool.map(workload.double, iter([])).as_completed()) == []


async def test_steps_of_several_tasks_share_an_iterator_though_some_are_cancelled() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(4)])
        held = await meeting.first(4)
        iterator = results.as_completed()
        steps = [asyncio.ensure_future(anext(iterator)) for _ in range(5)]
        await asyncio.sleep(0)
        assert iterator.ag_running
        steps[1].cancel()
        for arrival in held:
            arrival.release(arrival.token)
        ended = await asyncio.gather(*steps, return_exceptions=True)
        assert isinstance(ended.pop(1), asyncio.CancelledError)
        assert sorted(ended) == ["0", "1", "2", "3"]


@pytest.mark.row("H188")
async def test_a_map_is_cancelled_when_the_only_step_that_waits_for_it_is() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        results = pool.starmap(workload.meet, [(meeting.port, at) for at in range(3)])
        (await meeting.first(3))[0].release()
        first = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(read_on(results, first))
        del results
        assert await first == "go"
        task.cancel()
        await asyncio.wait([task])
        del task
        pool.close()
        await pool.join()  # for ever, if the map were not cancelled


async def read_on(results: Any, first: asyncio.Future[Any]) -> None:
    async for value in results.as_completed():
        first.set_result(value)


async def test_a_step_that_waits_when_its_iterator_is_closed_gets_result_and_index() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, at) for at in range(3)])
        held = {arrival.token: arrival for arrival in await meeting.first(3)}
        iterator = results.as_completed(with_index=True)
        step = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        await iterator.aclose()
        held["2"].release("two")
        assert await step == (2, "two")
        assert iterator.index == 2
        results.cancel()


async def test_aclose_ends_an_iterator() -> None:
    async with Pool(1) as pool:
        iterator = pool.map(workload.double, range(5)).as_completed()
        await anext(iterator)
        await iterator.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


@pytest.mark.row("H126")
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_the_error_of_an_input_comes_last_however_long_the_items_run(
    return_exceptions: bool, is_async: bool
) -> None:
    async with Meeting() as meeting, Pool(1) as pool:

        def items() -> Iterator[tuple[int, int]]:
            yield from ((meeting.port, i) for i in range(3))
            raise LookupError("no fourth")

        async def async_items() -> AsyncIterator[tuple[int, int]]:
            for item in items():
                yield item

        results = pool.starmap(
            workload.meet,
            async_items() if is_async else items(),
            return_exceptions=return_exceptions,
        )
        early = asyncio.create_task(everything(results.as_completed()))
        arrivals = await meeting.first(3)  # the input has raised
        late = asyncio.create_task(everything(results.as_completed()))
        for arrival in arrivals:
            arrival.release("done")
        for found in (await early, await late):
            assert sorted(found[:3]) == [(0, "done"), (1, "done"), (2, "done")]
            assert found[3:] == [(3, LookupError)]


async def test_the_error_of_an_input_comes_after_the_results_that_are_ready() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no fourth")

    async with Pool(1) as pool:
        found = await everything(pool.map(workload.double, items()).as_completed())
        assert sorted(found, key=lambda pair: pair[0]) == [(0, 0), (1, 2), (2, 4), (3, LookupError)]


async def test_results_of_an_async_iterable_come_while_it_goes_on() -> None:
    feed: asyncio.Queue[int] = asyncio.Queue()

    async def items() -> AsyncIterator[int]:
        while (item := await feed.get()) >= 0:
            yield item

    async with Pool(1) as pool:
        iterator = pool.map(workload.double, items()).as_completed()
        for i in range(3):
            feed.put_nowait(i)
            assert await anext(iterator) == 2 * i
        feed.put_nowait(-1)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


async def test_a_pool_that_ends_ends_the_iterator_by_errors() -> None:
    async with Meeting() as meeting:
        async with Pool(1) as pool:
            results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)])
            iterator = results.as_completed()
            for arrival in await meeting.first(3):
                if arrival.token == "1":
                    arrival.release("one")
            assert await anext(iterator) == "one"
        found = await everything(iterator)
        assert [(index, kind.__name__) for index, kind in found] == [
            (0, "PoolTerminatedError"),
            (2, "PoolTerminatedError"),
        ]


async def test_a_users_scheduler_changes_nothing() -> None:
    async with Pool(2, queuecount=2, scheduler=ByParity()) as pool:
        found = await everything(pool.map(workload.double, range(500)).as_completed())
        assert sorted(found) == [(i, 2 * i) for i in range(500)]


def test_arguments_are_refused_by_name() -> None:
    async def use() -> None:
        async with Pool(1) as pool:
            with pytest.raises(TypeError, match="with_index must be True or False, got 1"):
                pool.map(workload.double, []).as_completed(with_index=1)  # type: ignore[call-overload]

    asyncio.run(use())


# -- unbounded inputs ------------------------------------------------------------------------------


class Pulled(Iterator[int]):
    """Numbers without end, and how many of them were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __next__(self) -> int:
        self.count += 1
        return self.count - 1


async def test_an_endless_input_is_pulled_only_some_thousands_ahead() -> None:
    pulled = Pulled()
    async with Pool(1) as pool:
        iterator = pool.map(workload.double, pulled).as_completed()
        for _ in range(1000):
            await anext(iterator)
        await pool.map(workload.double, range(5000))  # time enough to run away
        assert 1000 <= pulled.count <= 1000 + 2 * jobs.LOOK_AHEAD_ITEMS


@pytest.mark.row("H81")
async def test_an_item_that_runs_long_does_not_hold_up_an_endless_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "HISTORY_ITEMS", 1000)
    async with Meeting() as meeting, Pool(2) as pool:
        items = ((meeting.port, at) for at in itertools.count())
        results = pool.starmap(workload.meet_if_first, items)
        iterator = results.as_completed()
        arrival = await meeting.next()
        beyond = jobs.LOOK_AHEAD_ITEMS + 5000
        found = {await anext(iterator) for _ in range(beyond)}
        assert len(found) == beyond
        assert 0 not in found
        job = results._job
        assert sum(value is jobs.DROPPED for value in job._values) >= beyond - 4000
        arrival.release()
        while await anext(iterator) != 0:
            pass
        assert iterator.index == 0
        most = jobs.LOOK_AHEAD_ITEMS + 4000
        for _ in range(100_000):  # the more came before the answer of item 0, the longer it takes
            if len(job._values) <= most:
                break
            await anext(iterator)
        assert len(job._values) <= most


async def test_a_result_of_an_iterator_goes_once_all_readers_had_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "HISTORY_ITEMS", 100)
    async with Pool(1) as pool:
        results = pool.map(workload.identity, ({at} for at in range(1000)))
        fast, slow, ordered = results.as_completed(), results.as_completed(), aiter(results)
        first = weakref.ref(await anext(fast))
        for _ in range(999):
            await anext(fast)
        assert first() is not None
        assert [await anext(slow) for _ in range(500)] == [{at} for at in range(500)]
        assert first() is not None
        for at in range(500):
            assert await anext(ordered) == {at}
        assert first() is None
        assert [await anext(slow) for _ in range(500)] == [{at} for at in range(500, 1000)]
        assert [value async for value in ordered] == [{at} for at in range(500, 1000)]
        for late in (results.as_completed, results.__aiter__):
            with pytest.raises(RuntimeError, match="was dropped after it had been read"):
                late()
        with pytest.raises(RuntimeError, match="was dropped after it had been read"):
            await results


async def test_a_break_out_of_an_endless_loop_lets_the_pool_close() -> None:
    pool = Pool(1)
    async for value in pool.map(workload.double, itertools.count()).as_completed():
        if value >= 1000:
            break
    pool.close()
    await pool.join()
