"""The end of an input of unknown length, which a map learns only by asking."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolTerminatedError
from support import Meeting, outcomes

pytestmark = pytest.mark.usefixtures("backend")


async def items(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value
        await asyncio.sleep(0)


INPUTS: dict[str, Callable[..., Any]] = {
    "an iterator": lambda *values: iter(values),
    "a generator": lambda *values: (value for value in values),
    "an async generator": items,
}


@pytest.fixture(params=INPUTS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return INPUTS[request.param]


@pytest.mark.row("H175")
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("reads", ["await", "async for", "as_completed"])
async def test_a_map_ends_with_its_last_item_though_no_worker_has_room(
    make: Callable[..., Any], count: int, reads: str
) -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = pool.apply(workload.meet, (meeting.port,))
        (await meeting.next()).release()
        await first
        results = pool.map(workload.double, make(*range(count)))
        if count:
            assert await anext(aiter(results)) == 0
        blocker = pool.apply(workload.meet, (meeting.port,))
        others = [pool.apply(workload.meet, (meeting.port,)) for _ in range(3)]
        found: list[Any]
        if reads == "await":
            found = await results
        elif reads == "async for":
            found = [value async for value in results]
        else:
            found = sorted([value async for value in results.as_completed()])
        assert found == [2 * at for at in range(count)]
        assert not blocker.done()
        await meeting.release_all(4)
        await asyncio.gather(blocker, *others)


@pytest.mark.row("H175")
async def test_a_map_of_low_priority_ends_though_the_line_is_never_empty() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        low = pool.starmap(workload.meet, iter([(meeting.port, "low")]))
        arrival = await meeting.next()
        high = pool.starmap(workload.meet, [(meeting.port, "high")] * 3, priority=1)
        arrival.release()
        assert await low == ["go"]
        assert not high.done()
        await meeting.release_all(3)
        assert await high == ["go"] * 3


@pytest.mark.row("H175")
async def test_a_map_over_two_queues_ends_though_neither_has_room(make: Callable[..., Any]) -> None:
    async with Meeting() as meeting, Pool(2, queuecount=2, childconcurrency=1) as pool:
        results = pool.starmap(workload.meet, make((meeting.port, "first")))
        arrival = await meeting.next()
        blockers = [pool.apply(workload.meet, (meeting.port, at)) for at in range(4)]
        await meeting.next()
        arrival.release()
        assert await results == ["go"]
        assert not any(call.done() for call in blockers)
        pool.terminate()
        await asyncio.gather(*blockers, return_exceptions=True)


@pytest.mark.row("H187")
@pytest.mark.parametrize("queues", [1, 2])
async def test_an_endless_input_of_what_cannot_be_sent_leaves_the_loop_alive(queues: int) -> None:
    async with Pool(queues, queuecount=queues) as pool:
        endless = (threading.Lock() for _ in itertools.count())
        results = pool.map(workload.identity, endless)
        with pytest.raises(pickle.PicklingError, match="item 0"):
            await results
        assert await pool.apply(workload.two) == 2
        results.cancel()
        assert await pool.map(workload.double, iter([1, 2])) == [2, 4]


@pytest.mark.row("H175")
async def test_an_input_that_fails_instead_of_its_end_says_so_though_no_worker_has_room() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        results = pool.map(workload.double, failing())
        assert await anext(aiter(results)) == 2
        blocker = pool.apply(workload.meet, (meeting.port,))
        with pytest.raises(LookupError, match="no more"):
            await results
        await meeting.release_all(1)
        await blocker


@pytest.mark.row("H179")
@pytest.mark.parametrize("kind", ["a list", *INPUTS])
async def test_a_pool_that_ends_adds_no_error_to_an_input_that_was_read_to_its_end(
    kind: str,
) -> None:
    make = INPUTS.get(kind, lambda *values: list(values))
    async with Meeting() as meeting, Pool(1) as pool:
        held = [(meeting.port, at) for at in range(2)]
        results = pool.starmap(workload.meet, make(*held), return_exceptions=True)
        waiting = asyncio.ensure_future(results)
        arrivals = await meeting.first(2)
        next(each for each in arrivals if each.token == "0").release()
        assert await anext(aiter(results)) == "go"
        for _ in range(5):  # the end of an async input comes a turn later
            await asyncio.sleep(0)
        assert results.progress.total == 2
        pool.terminate()
        done, lost = await waiting
        assert done == "go"
        assert isinstance(lost, PoolTerminatedError)
        assert len(await outcomes(results)) == 2
        assert results.progress.total == 2
