"""Maps in a pool with several queues: whatever the input, every queue has work (routing.py)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolTerminatedError
from aiomultiprocess._parent.routing import LEAST_AHEAD
from aiomultiprocess._parent.sources import AsyncSource
from aiomultiprocess.scheduler import RoundRobin, Scheduler
from support import Arrival, Meeting, outcomes

Kind = Callable[[Iterable[Any]], Any]


async def asynchronously(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


UNBOUNDED: list[Kind] = [iter, asynchronously]


class By(Scheduler):
    """Chooses queue `choose(first argument)`, and remembers each call."""

    def __init__(self, choose: Callable[[Any], int]) -> None:
        self.choose = choose
        self.queues = 0
        self.seen: list[Any] = []
        self.open: set[int] = set()
        self.all_ended = asyncio.Event()

    def register_queue(self, tx: Any) -> Any:
        self.queues += 1
        return self.queues - 1

    def register_process(self, qid: Any) -> None:
        pass

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        queue = self.choose(args[0])
        self.seen.append(args[0])
        self.open.add(task_id)
        return queue

    def complete_task(self, task_id: Any) -> None:
        self.open.remove(task_id)
        if not self.open:
            self.all_ended.set()


class Counted(Iterator[int]):
    """Numbers without end, and how many of them were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __next__(self) -> int:
        self.count += 1
        return self.count - 1


async def some_turns(count: int = 200) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def by_token(arrivals: Iterable[Arrival]) -> dict[int, Arrival]:
    return {int(arrival.token): arrival for arrival in arrivals}


def meet_numbered(number: int, port: int) -> str:
    return workload.meet_blocking(port, number) if port else ""


# -- how many are under way ------------------------------------------------------------------------


@pytest.mark.row("H180")
@pytest.mark.parametrize("kind", [list, *UNBOUNDED])
@pytest.mark.parametrize("awaited", [True, False])
async def test_every_queue_has_a_task_under_way(kind: Kind, awaited: bool) -> None:
    async with Meeting() as meeting, Pool(4, queuecount=4) as pool:
        items = [(meeting.port, number) for number in range(20)]
        results = pool.starmap(workload.meet_blocking, kind(items))
        waiting = asyncio.ensure_future(results) if awaited else None
        for _ in range(5):
            assert len({arrival.pid for arrival in await meeting.release_together(4)}) == 4
        assert await (waiting or results) == ["go"] * 20


@pytest.mark.parametrize("kind", UNBOUNDED)
async def test_every_worker_of_every_queue_has_a_task_under_way(kind: Kind) -> None:
    async with Meeting() as meeting, Pool(4, queuecount=2) as pool:
        items = [(meeting.port, number) for number in range(12)]
        results = asyncio.ensure_future(pool.starmap(workload.meet_blocking, kind(items)))
        for _ in range(3):
            assert len({arrival.pid for arrival in await meeting.release_together(4)}) == 4
        assert await results == ["go"] * 12


@pytest.mark.parametrize("kind", UNBOUNDED)
async def test_every_slot_has_a_task_under_way(kind: Kind) -> None:
    async with Meeting() as meeting, Pool(2, queuecount=2, childconcurrency=3) as pool:
        items = [(meeting.port, number) for number in range(18)]
        results = asyncio.ensure_future(pool.starmap(workload.meet, kind(items)))
        for _ in range(3):
            await meeting.release_together(6)
        assert await results == ["go"] * 18


@pytest.mark.parametrize("kind", UNBOUNDED)
@pytest.mark.parametrize("trivial", [0, 10_000])
async def test_a_queue_goes_on_while_another_has_a_long_task(kind: Kind, trivial: int) -> None:
    """Also if tasks were trivial before that, and many waited."""
    async with Meeting() as meeting, Pool(2, queuecount=2) as pool:
        quick = [(number, 0) for number in range(-trivial, 0)]
        items = quick + [(number, meeting.port) for number in range(80)]
        results = asyncio.ensure_future(pool.starmap(meet_numbered, kind(items)))
        first = by_token(await meeting.first(2))
        held = first.pop(1)
        first[0].release()
        for number in range(2, 32, 2):
            arrival = await meeting.next()
            assert int(arrival.token) == number
            arrival.release()
        held.release()
        await meeting.release_all(80 - 17)
        assert await results == [""] * trivial + ["go"] * 80


@pytest.mark.parametrize("kind", [list, *UNBOUNDED])
async def test_a_queue_that_is_chosen_late_has_its_task_at_once(kind: Kind) -> None:
    scheduler = By(lambda number: int(number >= 10))
    async with Meeting() as meeting, Pool(2, queuecount=2, scheduler=scheduler) as pool:
        items = [(number, meeting.port) for number in range(12)]
        results = asyncio.ensure_future(pool.starmap(meet_numbered, kind(items)))
        arrivals = by_token(await meeting.first(2))
        assert set(arrivals) == {0, 10}
        for arrival in arrivals.values():
            arrival.release()
        await meeting.release_all(10)
        assert await results == ["go"] * 12


async def test_items_that_come_later_reach_every_queue() -> None:
    come: asyncio.Queue[int] = asyncio.Queue()

    async def items() -> AsyncIterator[tuple[int, int]]:
        while (number := await come.get()) >= 0:
            yield meeting.port, number

    async with Meeting() as meeting, Pool(3, queuecount=3) as pool:
        results = asyncio.ensure_future(pool.starmap(workload.meet_blocking, items()))
        for start in (0, 3, 6):
            for number in range(start, start + 3):
                come.put_nowait(number)
            arrivals = await meeting.release_together(3)
            assert set(by_token(arrivals)) == set(range(start, start + 3))
        come.put_nowait(-1)
        assert await results == ["go"] * 9


# -- how far the input is read ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNBOUNDED)
@pytest.mark.parametrize("choose", [lambda _: 0, lambda number: number % 2])
async def test_an_endless_input_is_read_a_little_ahead_of_tasks_that_are_awaited(
    kind: Kind, choose: Callable[[Any], int]
) -> None:
    scheduler = By(choose)
    numbers = Counted()
    async with Meeting() as meeting:
        async with Pool(2, queuecount=2, scheduler=scheduler, grace=0.1) as pool:
            items = ((number, meeting.port) for number in numbers)
            results = asyncio.ensure_future(pool.starmap(meet_numbered, kind(items)))
            for _ in range(10):
                arrival = await meeting.next()
                if choose(int(arrival.token)) == 0:  # the other queue is held up
                    arrival.release()
            await meeting.next()
            await some_turns()
            scheduled, pulled = len(scheduler.seen), numbers.count
            assert 10 <= scheduled <= 20 + 2 * LEAST_AHEAD
            assert pulled <= scheduled + AsyncSource.AHEAD + 1
            await some_turns()
            assert (len(scheduler.seen), numbers.count) == (scheduled, pulled)
        with pytest.raises(PoolTerminatedError):
            await results
        assert not scheduler.open


@pytest.mark.parametrize("kind", UNBOUNDED)
async def test_an_endless_input_is_read_by_several_queues_as_a_reader_moves(kind: Kind) -> None:
    numbers = Counted()
    async with Pool(3, queuecount=3) as pool:
        results = pool.map(workload.double, kind(numbers))
        reader = aiter(results)
        for number in range(10_000):
            assert await anext(reader) == 2 * number
        assert numbers.count < 10_000 + 3 * 8192
        results.cancel()


@pytest.mark.parametrize("kind", [list, *UNBOUNDED])
@pytest.mark.parametrize(
    "choose", [lambda number: number % 3, lambda number: (number * number) % 3]
)
async def test_the_scheduler_sees_the_items_in_their_order(
    kind: Kind, choose: Callable[[Any], int]
) -> None:
    scheduler = By(choose)
    async with Pool(3, queuecount=3, scheduler=scheduler) as pool:
        for function in (workload.double, workload.double_sync):
            scheduler.seen.clear()
            assert await pool.map(function, kind(range(10_000))) == list(range(0, 20_000, 2))
            assert scheduler.seen == list(range(10_000))
            assert not scheduler.open


# -- code of the user's ----------------------------------------------------------------------------


class Failing(RoundRobin):
    """Fails for most items."""

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if args[0] % 1000:
            raise LookupError(str(args[0]))
        return super().schedule_task(task_id, func, args, kwargs)


class AlwaysFailing(RoundRobin):
    def schedule_task(self, *task: Any) -> Any:
        raise LookupError("no queue is good enough")


@pytest.mark.parametrize("kind", UNBOUNDED)
async def test_a_scheduler_that_fails_fails_those_items_alone(kind: Kind) -> None:
    async with Pool(2, queuecount=2, scheduler=Failing()) as pool:
        results = pool.map(workload.double, kind(range(5001)), return_exceptions=True)
        for number, found in enumerate(await results):
            assert found == 2 * number if number % 1000 == 0 else str(found) == str(number)


@pytest.mark.parametrize("kind", UNBOUNDED)
@pytest.mark.parametrize("read", [False, True])
async def test_a_scheduler_that_always_fails_does_not_block_the_loop(
    kind: Kind, read: bool
) -> None:
    async with Pool(2, queuecount=2, scheduler=AlwaysFailing()) as pool:
        results = pool.map(workload.double, kind(itertools.count()))
        with pytest.raises(LookupError, match="good enough"):
            await (anext(aiter(results)) if read else results)


@pytest.mark.parametrize("end", ["cancel", "terminate", "raise"])
@pytest.mark.parametrize("at", [0, 1, 5, 3000])
async def test_an_input_may_end_its_map(end: str, at: int) -> None:
    def items() -> Iterator[int]:
        yield from range(at)
        if end == "cancel":
            started[0].cancel()
        elif end == "terminate":
            pool.terminate()
        else:
            raise LookupError("of its own")
        yield from itertools.count(at)

    async def later() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        for item in items():
            yield item

    started: list[Any] = []
    scheduler = By(lambda number: number % 2)
    error = {"cancel": asyncio.CancelledError, "terminate": PoolTerminatedError}
    pool = Pool(2, queuecount=2, scheduler=scheduler)
    started.append(pool.map(workload.double, later()))
    with pytest.raises(error.get(end, LookupError)):
        await started[0]
    pool.close()
    await pool.join()
    assert not scheduler.open
    assert scheduler.seen == list(range(len(scheduler.seen)))


@pytest.mark.parametrize("kind", UNBOUNDED)
async def test_an_item_that_cannot_be_pickled_fails_alone(kind: Kind) -> None:
    async with Pool(2, queuecount=2) as pool:
        items = [(lambda: None) if number % 7 == 3 else number for number in range(200)]
        found = await outcomes(pool.map(workload.identity, kind(items)))
        for number, value in enumerate(found):
            assert isinstance(value, Exception) if number % 7 == 3 else value == number


async def test_items_that_a_frame_cannot_carry_are_sent_once() -> None:
    async with Pool(2, queuecount=2) as pool:
        items = (bytes([number % 256]) * 30_000 for number in range(300))
        found = await pool.map(workload.identity, items)
        assert found == [bytes([number % 256]) * 30_000 for number in range(300)]


# -- what is kept ----------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [list, *UNBOUNDED])
async def test_results_are_freed_without_a_collection(kind: Kind) -> None:
    async with Pool(2, queuecount=2) as pool:
        result = pool.map(workload.identity, kind([{1}, {2}, {3}]))
        values = await result
        kept = [weakref.ref(value) for value in values]
        job = weakref.ref(result._job)
        del result, values
        await some_turns(5)
        assert [ref() for ref in kept] == [None] * 3
        assert job() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [list, *UNBOUNDED])
async def test_a_map_that_was_cancelled_is_freed_without_a_collection(kind: Kind) -> None:
    scheduler = By(lambda _: 0)
    async with Meeting() as meeting, Pool(2, queuecount=2, scheduler=scheduler) as pool:
        items = [(number, meeting.port) for number in range(5)]
        result = pool.starmap(meet_numbered, kind(items))
        arrival = await meeting.next()
        job = weakref.ref(result._job)
        result.cancel()
        del result
        arrival.release()
        await scheduler.all_ended.wait()
        await some_turns(5)
        assert job() is None


@pytest.mark.usefixtures("no_collector")
async def test_an_empty_share_that_stands_in_line_keeps_no_result() -> None:
    scheduler = By(lambda item: 0 if isinstance(item, frozenset) else 1)
    go_on, come = asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[Any]:
        yield {1}
        await go_on.wait()
        yield frozenset({2})
        await come.wait()

    async with Meeting() as meeting, Pool(2, queuecount=2, scheduler=scheduler) as pool:
        result = pool.map(workload.identity, items())
        reader = aiter(result)
        first = await anext(reader)
        long = pool.starmap(meet_numbered, [(1, meeting.port)])
        arrival = await meeting.next()
        go_on.set()
        second = await anext(reader)
        [_, queue] = pool._engine.queues.values()  # type: ignore[union-attr]
        assert len(queue._sources) == 1
        come.set()
        assert [value async for value in reader] == []
        kept = [weakref.ref(value) for value in (first, second)]
        job = weakref.ref(result._job)
        del first, second, reader, result
        await some_turns(5)
        assert [ref() for ref in kept] == [None, None]
        assert job() is None
        assert len(queue._sources) == 1
        arrival.release()
        assert await long == ["go"]
        assert await pool.map(workload.identity, [1, frozenset()]) == [1, frozenset()]
        assert not queue._sources


@pytest.mark.parametrize("kept", [True, False])
async def test_an_input_may_terminate_the_pool_while_a_share_is_served(kept: bool) -> None:
    pool = Pool(2, queuecount=2)

    def items() -> Iterator[int]:
        yield from range(40)
        pool.terminate()
        yield from range(40, 100)

    async def first_of() -> None:
        async for _ in pool.map(workload.identity, items()):
            pass

    if kept:
        results = pool.map(workload.identity, items())
        with pytest.raises(PoolTerminatedError):
            await results
    else:
        with pytest.raises(PoolTerminatedError):
            await first_of()
    await pool.join()
