"""What `PoolResult` gives, when, how often, and how far it runs ahead of its input."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest

import mishaps
import workload
from aiomultiprocess import Pool, ProxyException
from support import Meeting, outcomes

pytestmark = pytest.mark.usefixtures("backend")

SOME_THOUSANDS = 20_000  # how far an iterator may be pulled ahead of its reader


class Pulled(Iterator[int]):
    """Numbers without end, and how many of them were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __next__(self) -> int:
        self.count += 1
        return self.count - 1


# -- awaiting and iterating, any number of times ---------------------------------------------------


@pytest.mark.row("A11")
async def test_a_result_may_be_awaited_twice() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(10))
        assert await results == await results == [2 * i for i in range(10)]


async def test_each_await_gives_a_list_of_its_own() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(3))
        first = await results
        assert isinstance(first, list)
        first.append("mine")
        assert await results == [0, 2, 4]


async def test_every_item_arrives_once_where_a_frame_holds_few_of_them() -> None:
    sizes = [10, 100_000, 1, 5_000, 70_000, 0] * 300
    texts = [f"{at}" * size for at, size in enumerate(sizes)]
    async with Pool(2) as pool:
        assert await pool.map(workload.double, sizes * 20) == [2 * size for size in sizes * 20]
        for source in (texts, tuple(texts), iter(texts)):
            assert await pool.map(len, source) == [len(text) for text in texts]
            assert await pool.map(workload.identity, texts[:200]) == texts[:200]


async def test_an_await_does_not_keep_the_pool_result_alive() -> None:
    async with Pool(1) as pool:  # so that the list of results need not be copied (job.py, JOB-5)
        results = pool.map(workload.double, range(3))
        gone = weakref.ref(results)
        waiting = asyncio.ensure_future(waited_for(results.__await__()))
        del results
        assert gone() is None
        assert await waiting == [0, 2, 4]


async def waited_for(waiter: Generator[Any, None, list[Any]]) -> list[Any]:
    """What a generator that `__await__` gave comes to, its object being gone."""

    class Waiter:
        def __await__(self) -> Generator[Any, None, list[Any]]:
            return waiter

    return await Waiter()


async def test_results_are_freed_with_their_last_possible_reader_and_not_a_turn_later() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.identity, [{1}, {2}])
        values = [weakref.ref(value) for value in await results]
        assert [value() for value in values] == [{1}, {2}]
        del results
        assert [value() for value in values] == [None, None]


@pytest.mark.row("H176")
@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("kind", ["a list", "an iterator", "an async generator"])
@pytest.mark.parametrize("reads", ["await", "as_completed"])
async def test_no_cycle_keeps_results_of_any_input(queues: int, kind: str, reads: str) -> None:
    inputs: dict[str, Callable[[list[Any]], Any]] = {
        "a list": list,
        "an iterator": iter,
        "an async generator": each_of,
    }
    async with Pool(queues, queuecount=queues) as pool:
        gc.disable()  # which would find the cycle at some time
        try:
            results = pool.map(workload.identity, inputs[kind]([{1}, {2}]))
            iterator = results.as_completed() if reads == "as_completed" else None
            found = [value async for value in iterator] if iterator else await results
            assert sorted(map(min, found)) == [1, 2]
            values = [weakref.ref(value) for value in found]
            await asyncio.sleep(0)  # in which the task of an async input ends
            del results, found
            assert [value() for value in values] == [None, None]
        finally:
            gc.enable()


async def each_of(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


@pytest.mark.row("A11")
async def test_a_result_may_be_awaited_by_two_tasks() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)])
        tasks = [asyncio.ensure_future(results) for _ in range(2)]
        await meeting.release_all(3)
        assert await asyncio.gather(*tasks) == [["go"] * 3] * 2


@pytest.mark.row("A11")
async def test_a_result_may_be_iterated_and_awaited_in_any_order() -> None:
    expected = [2 * i for i in range(50)]
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(50))
        assert [value async for value in results] == expected
        assert await results == expected
        assert [value async for value in results] == expected


async def test_readers_do_not_disturb_each_other() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(20))
        one, two = aiter(results), aiter(results)
        assert [await anext(one) for _ in range(5)] == [0, 2, 4, 6, 8]
        assert [value async for value in two] == [2 * i for i in range(20)]
        assert [value async for value in one] == [2 * i for i in range(5, 20)]


@pytest.mark.row("A11")
async def test_an_error_is_raised_at_every_await() -> None:
    async with Pool(1) as pool:
        results = pool.map(mishaps.fail_at_once, ["first"])
        for _ in range(2):
            with pytest.raises(ProxyException, match="first"):
                await results
        with pytest.raises(ProxyException, match="first"):
            await anext(aiter(results))


async def test_a_cancelled_await_takes_nothing_from_the_others() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port,)])
        patient, hasty = asyncio.ensure_future(results), asyncio.ensure_future(results)
        arrival = await meeting.next()
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        arrival.release()
        assert await patient == await results == ["go"]


async def test_a_timed_out_step_of_a_loop_loses_no_result() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        iterator = aiter(pool.starmap(workload.meet, [(meeting.port, i) for i in range(2)]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(iterator)
        await meeting.release_all(2)
        assert await anext(iterator) == "go"
        assert await anext(iterator) == "go"
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


async def test_a_result_that_is_never_read_causes_no_warning() -> None:
    async with Pool(1) as pool:
        pool.map(mishaps.fail_at_once, ["unread"])
        assert await pool.apply(workload.two) == 2
        gc.collect()


# -- order -----------------------------------------------------------------------------------------


async def test_results_come_in_input_order_and_as_soon_as_they_can() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)])
        held = {arrival.token: arrival for arrival in await meeting.first(3)}
        iterator = aiter(results)
        first = asyncio.ensure_future(anext(iterator))
        held["1"].release("one")
        await held["1"].gone
        assert not first.done()
        held["0"].release("zero")
        assert await first == "zero"
        assert await anext(iterator) == "one"  # while the third still runs
        held["2"].release("two")
        assert await anext(iterator) == "two"


async def test_errors_come_at_their_place_and_the_loop_may_go_on() -> None:
    async with Pool(1) as pool:
        results = pool.starmap(mishaps.fail_at, [(3, i) for i in range(6)])
        found = await outcomes(results)
        assert [*found[:3], *found[4:]] == [0, 1, 2, 4, 5]
        assert isinstance(found[3], ProxyException)
        assert "3 is bad" in str(found[3])
        assert [repr(value) for value in await outcomes(results)] == [repr(v) for v in found]


async def test_await_raises_the_first_error() -> None:
    async with Pool(1) as pool:
        results = pool.map(mishaps.fail_after_a_turn, ["a", "b", "c"])
        found = await outcomes(results)
        with pytest.raises(ProxyException, match="RuntimeError: a") as caught:
            await results
        assert type(caught.value) is type(found[0])


async def test_await_raises_as_soon_as_an_error_is_known() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(mishaps.meet_or_raise, [(meeting.port, i) for i in range(2)])
        one, other = await meeting.first(2)
        one.release("raise")
        with pytest.raises(ProxyException, match="told to"):
            await results  # the other still runs
        other.release()
        assert {str(value).split()[-1] for value in await outcomes(results)} >= {"go"}


# -- input -----------------------------------------------------------------------------------------


async def test_a_sequence_is_snapshotted_at_the_call() -> None:
    items = list(range(5000))
    async with Pool(1) as pool:
        results = pool.map(workload.double, items)
        items[:] = [-1] * 5000
        assert await results == [2 * i for i in range(5000)]


INPUTS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "range": lambda items: range(7, 7 + len(items)),
    "set": set,
    "dict": lambda items: dict.fromkeys(items, "value"),
    "iterator": iter,
    "generator": lambda items: (item for item in items),
    "numpy array": np.array,
}


@pytest.mark.row("A10")
@pytest.mark.parametrize("kind", INPUTS)
async def test_no_items_give_no_results(kind: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, INPUTS[kind]([]))
        assert await results == []
        assert [value async for value in results] == []


@pytest.mark.row("A10")
@pytest.mark.parametrize("kind", INPUTS)
async def test_one_item_gives_one_result(kind: str) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, INPUTS[kind]([7]))
        assert await results == [14]
        assert [value async for value in results] == [14]


async def test_a_hundred_thousand_results_are_right() -> None:
    expected = [2 * i for i in range(100_000)]
    async with Pool(2) as pool:
        assert await pool.map(workload.double, range(100_000)) == expected
        found = [value async for value in pool.map(workload.double, iter(range(100_000)))]
        assert found == expected
        assert await pool.map(workload.double, iter(range(100_000))) == expected


@pytest.mark.row("D39")
async def test_a_generator_is_pulled_only_some_thousands_ahead() -> None:
    pulled = Pulled()
    async with Pool(1) as pool:
        iterator = aiter(pool.map(workload.double, pulled))
        for i in range(1000):
            assert await anext(iterator) == 2 * i
        await pool.map(workload.double, range(5000))  # time enough to run away
        assert 1000 <= pulled.count <= 1000 + SOME_THOUSANDS


@pytest.mark.row("D39")
async def test_a_generator_without_a_reader_is_pulled_only_some_thousands() -> None:
    pulled = Pulled()
    async with Pool(1) as pool:
        results = pool.map(workload.double, pulled)
        await pool.map(workload.double, range(50_000))
        assert 0 < pulled.count <= SOME_THOUSANDS
        assert await anext(aiter(results)) == 0


async def test_reading_pulls_a_generator_on() -> None:
    pulled = Pulled()
    async with Pool(1) as pool:
        async for value in pool.map(workload.double, pulled):
            if value >= 4 * SOME_THOUSANDS:
                break
        assert 2 * SOME_THOUSANDS < pulled.count <= 3 * SOME_THOUSANDS + 1


@pytest.mark.row("A10")
@pytest.mark.parametrize("kept", [True, False])
async def test_close_and_join_end_after_a_break_out_of_an_endless_loop(kept: bool) -> None:
    pool = Pool(2)
    results = pool.map(workload.double, itertools.count())
    async for value in results:
        if value >= 1000:
            break
    if not kept:
        del results
    pool.close()
    await pool.join()
    assert not any(process.is_alive() for process in pool.processes)


async def test_a_broken_off_generator_does_not_slow_the_rest() -> None:
    pulled = Pulled()
    async with Pool(1) as pool:
        async for _ in pool.map(workload.double, pulled):
            break
        await pool.map(workload.double, range(20_000))
        before = pulled.count
        await pool.map(workload.double, range(20_000))
        assert pulled.count == before


@pytest.mark.row("A10")
async def test_a_generator_that_raises_keeps_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no sixth item")

    async with Pool(1) as pool:
        results = pool.map(workload.double, items())
        found = await outcomes(results)
        assert found[:5] == [0, 2, 4, 6, 8]
        assert len(found) == 6
        assert isinstance(found[5], LookupError)
        with pytest.raises(LookupError, match="no sixth item"):
            await results
        assert await pool.apply(workload.two) == 2


@pytest.mark.row("A10")
async def test_a_generator_that_raises_at_once_is_an_error_of_the_awaiter() -> None:
    def items() -> Iterator[int]:
        raise LookupError("nothing at all")
        yield

    async with Pool(1) as pool:
        with pytest.raises(LookupError, match="nothing at all"):
            await pool.map(workload.double, items())


async def test_async_iterables_are_items_too() -> None:
    async with Pool(1) as pool:
        assert await pool.map(workload.double, workload.counting(300)) == list(range(0, 600, 2))
        found = [value async for value in pool.map(workload.double, workload.counting(300))]
        assert found == list(range(0, 600, 2))
        assert await pool.map(workload.double, workload.counting(0)) == []


async def test_results_of_an_async_iterable_come_while_it_goes_on() -> None:
    feed: asyncio.Queue[int] = asyncio.Queue()

    async def items() -> AsyncIterator[int]:
        while (item := await feed.get()) >= 0:
            yield item

    async with Pool(1) as pool:
        iterator = aiter(pool.map(workload.double, items()))
        for i in range(3):
            feed.put_nowait(i)
            assert await anext(iterator) == 2 * i
        feed.put_nowait(-1)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


@pytest.mark.row("A10")
async def test_an_async_iterable_that_raises_keeps_the_results_before_it() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no second item")

    async with Pool(1) as pool:
        found = await outcomes(pool.map(workload.double, items()))
        assert found[0] == 2
        assert isinstance(found[1], LookupError)
        assert len(found) == 2


@pytest.mark.row("A10")
async def test_an_endless_async_iterable_is_finalized_when_its_loop_is_left() -> None:
    finalized = asyncio.Event()
    pulled = 0

    async def items() -> AsyncIterator[int]:
        nonlocal pulled
        try:
            while True:
                pulled += 1
                yield pulled
                await asyncio.sleep(0)
        finally:
            finalized.set()

    pool = Pool(1)
    async for value in pool.map(workload.double, items()):
        if value > 100:
            break
    pool.close()
    await pool.join()
    await finalized.wait()
    assert pulled <= SOME_THOUSANDS


# -- what an item sees -----------------------------------------------------------------------------

CONTEXT_SETTERS = (
    workload.set_context_at_once,
    workload.set_context_over_a_turn,
    workload.set_context_sync,
)


@pytest.mark.parametrize("func", CONTEXT_SETTERS, ids=lambda f: f.__name__)
async def test_context_variables_of_one_item_are_not_seen_by_another(func: Any) -> None:
    async with Pool(1) as pool:
        assert await pool.map(func, range(100)) == [(None, i) for i in range(100)]
        assert await pool.apply(func, ("apply",)) == (None, "apply")


async def test_every_item_has_a_task_of_its_own() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=5) as pool:
        results = pool.starmap(workload.own_task, [(meeting.port, i) for i in range(5)])
        await meeting.release_together(5)
        found = await results
        assert all(is_task and is_same for is_task, is_same, _ in found)
        assert len({chunk_id for _, _, chunk_id in found}) == 5


async def test_an_item_that_ends_at_once_has_a_task_too() -> None:
    async with Pool(1) as pool:
        assert await pool.map(workload.own_task_at_once, range(10)) == [True] * 10


async def test_all_tasks_shows_nothing_but_the_items() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.tasks_alive) == 1
        assert await pool.apply(workload.tasks_alive) == 1


async def test_timeouts_task_groups_and_anyio_work_in_items() -> None:
    async with Pool(1) as pool:
        assert await pool.map(workload.use_timeout, range(3)) == ["timed out"] * 3
        assert await pool.map(workload.use_task_group, range(3)) == [0, 6, 12]
        assert await pool.map(workload.use_anyio, range(3)) == [(i, True) for i in range(3)]
