"""Of the tasks that wait in one queue, those of a higher priority go first (QUEUE-7)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, QueueID, Scheduler, TaskID, WorkerLostError
from aiomultiprocess._parent.line import Line
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


class FirstQueue(Scheduler):
    """A user's scheduler: it routes every task, always to the first queue."""

    def __init__(self) -> None:
        self.queues: list[QueueID] = []

    def register_queue(self, tx: Any) -> QueueID:
        self.queues.append(QueueID(len(self.queues)))
        return self.queues[-1]

    def register_process(self, qid: QueueID) -> None:
        pass

    def schedule_task(
        self, task_id: TaskID, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> QueueID:
        return self.queues[0]

    def complete_task(self, task_id: TaskID) -> None:
        pass


@pytest.fixture(params=["the default scheduler", "a user's scheduler"])
def scheduler(request: pytest.FixtureRequest) -> Scheduler | None:
    return FirstQueue() if request.param == "a user's scheduler" else None


class Busy:
    """A pool of one slot, which an item has until `release`."""

    def __init__(self, meeting: Meeting, pool: Pool) -> None:
        self.port = meeting.port
        self._meeting = meeting
        self._pool = pool

    async def begin(self) -> None:
        self._first = self._pool.submit(workload.meet, self.port, "first")
        self._arrival = await self._meeting.arrivals.get()

    async def order(self) -> list[str]:
        """Release the item, then each that calls in, one after another: their tokens."""
        self._arrival.release()
        found = []
        while not all(call.done() for call in self._others):
            getter = asyncio.ensure_future(self._meeting.arrivals.get())
            await asyncio.wait([getter, self._all], return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                found.append(getter.result().token)
                getter.result().release()
            else:
                getter.cancel()
        await self._first
        return found

    def expect(self, *calls: asyncio.Future[Any]) -> None:
        self._others = calls
        self._all = asyncio.ensure_future(asyncio.gather(*calls))


async def tokens_in_order(
    scheduler: Scheduler | None, submit: Callable[[Pool, int], list[asyncio.Future[Any]]]
) -> list[str]:
    """The order in which a worker that was busy starts what `submit` submits."""
    async with Meeting() as meeting, Pool(1, childconcurrency=1, scheduler=scheduler) as pool:
        busy = Busy(meeting, pool)
        await busy.begin()
        busy.expect(*submit(pool, meeting.port))
        return await busy.order()


async def test_calls_of_a_higher_priority_go_first(scheduler: Scheduler | None) -> None:
    def submit(pool: Pool, port: int) -> list[asyncio.Future[Any]]:
        return [
            pool.apply(workload.meet, (port, priority), priority=priority)
            for priority in (0, -1, 5, 1, 10**30)
        ]

    order = await tokens_in_order(scheduler, submit)
    assert order == [str(10**30), "5", "1", "0", "-1"]


async def test_calls_of_one_priority_keep_their_order(scheduler: Scheduler | None) -> None:
    def submit(pool: Pool, port: int) -> list[asyncio.Future[Any]]:
        return [
            pool.apply(workload.meet, (port, number), priority=3 * (number % 2))
            for number in range(6)
        ]

    assert await tokens_in_order(scheduler, submit) == ["1", "3", "5", "0", "2", "4"]


async def test_maps_have_priorities(scheduler: Scheduler | None) -> None:
    def submit(pool: Pool, port: int) -> list[asyncio.Future[Any]]:
        low = pool.starmap(workload.meet, [(port, "low")] * 3, priority=-1)
        usual = pool.starmap(workload.meet, [(port, "usual")] * 3)
        high = pool.starmap(workload.meet, [(port, "high")] * 3, priority=1)
        return [asyncio.ensure_future(result) for result in (low, usual, high)]

    order = await tokens_in_order(scheduler, submit)
    assert order == ["high"] * 3 + ["usual"] * 3 + ["low"] * 3


async def test_an_iterator_has_a_priority(scheduler: Scheduler | None) -> None:
    def submit(pool: Pool, port: int) -> list[asyncio.Future[Any]]:
        usual = pool.starmap(workload.meet, [(port, "usual")] * 3)
        high = pool.starmap(workload.meet, iter([(port, "high")] * 3), priority=1)
        return [asyncio.ensure_future(result) for result in (usual, high)]

    order = await tokens_in_order(scheduler, submit)
    assert order == ["high"] * 3 + ["usual"] * 3


async def test_a_later_call_goes_before_what_is_left_of_a_map() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        result = pool.starmap(workload.meet, [(meeting.port, "map")] * 3)
        first = await meeting.arrivals.get()
        call = pool.apply(workload.meet, (meeting.port, "call"), priority=1)
        first.release()
        tokens = []
        for _ in range(3):
            arrival = await meeting.arrivals.get()
            tokens.append(arrival.token)
            arrival.release()
        assert tokens == ["call", "map", "map"]
        assert await call == "go"
        assert await result == ["go"] * 3


async def test_an_input_without_an_item_does_not_hold_up_lower_priorities() -> None:
    come = asyncio.Event()

    async def late() -> AsyncIterator[int]:
        await come.wait()
        yield 1

    async with Pool(1, childconcurrency=1) as pool:
        high = asyncio.ensure_future(pool.map(workload.double, late(), priority=9))
        await pool.apply(workload.two)
        low = await pool.map(workload.double, range(1000), priority=-9)
        assert low == [2 * number for number in range(1000)]
        come.set()
        assert await high == [2]


async def test_a_task_that_lost_its_worker_goes_before_higher_priorities() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        retried = pool.apply(workload.meet, (meeting.port, "retried"), retries=1, priority=-5)
        first = await meeting.arrivals.get()
        high = pool.apply(workload.meet, (meeting.port, "high"), priority=5)
        os.kill(first.pid, signal.SIGKILL)
        tokens = []
        for _ in range(2):
            arrival = await meeting.arrivals.get()
            tokens.append(arrival.token)
            arrival.release()
        assert tokens == ["retried", "high"]
        assert await retried == await high == "go"


async def test_tasks_that_were_not_started_return_to_their_priority() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=2) as pool:
        doomed = pool.apply(workload.meet, (meeting.port, "doomed"))
        first = await meeting.arrivals.get()
        results = [
            asyncio.ensure_future(pool.starmap(workload.meet, [(meeting.port, p)] * 4, priority=p))
            for p in (-1, 0, 1)
        ]
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await doomed
        tokens: list[int] = []
        while not all(result.done() for result in results):
            getter = asyncio.ensure_future(meeting.arrivals.get())
            everything = asyncio.gather(*results, return_exceptions=True)
            await asyncio.wait([getter, everything], return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                tokens.append(int(getter.result().token))
                getter.result().release()
            else:
                getter.cancel()
        assert all(max(tokens[at:]) <= tokens[at] + 1 for at in range(len(tokens)))


async def test_a_queue_without_priorities_keeps_a_plain_line() -> None:
    async with Pool(1) as pool:
        assert pool._engine is not None
        [queue] = pool._engine.queues.values()
        await pool.map(workload.double, range(100))
        await asyncio.gather(*[pool.apply(workload.two) for _ in range(100)])
        assert not isinstance(queue._sources, Line)
        await asyncio.gather(*[pool.apply(workload.two, priority=1) for _ in range(100)])
        assert isinstance(queue._sources, Line)


@pytest.mark.row("H87")
async def test_priorities_that_are_used_once_leave_nothing_behind() -> None:
    async with Pool(2) as pool:
        await asyncio.gather(*[pool.apply(workload.two, priority=p) for p in range(-200, 200)])
        assert pool._engine is not None
        [queue] = pool._engine.queues.values()
        assert len(queue.calls) <= 1  # of priority 0
        assert len(pool._engine._open) <= 1


@pytest.mark.parametrize("priority", [1.5, "1", None, 0.0])
async def test_a_priority_that_is_no_whole_number_is_refused(priority: Any) -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="priority must be a whole number, got"):
            await pool.apply(workload.two, priority=priority)
        for submit in (pool.map, pool.starmap):
            with pytest.raises(TypeError, match="priority must be a whole number, got"):
                submit(workload.double, [], priority=priority)
