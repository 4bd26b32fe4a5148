"""No worker gets the tasks of a map while others have nothing to do (queue.py, QUEUE-6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workload
from aiomultiprocess import Pool, QueueID, RoundRobin
from aiomultiprocess._parent import queue
from aiomultiprocess._parent.sources import IteratorSource
from support import Meeting

pytestmark = pytest.mark.row("G48")


async def asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


#: How a user may pass the same items to `starmap`.
KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda items: (item for item in items),
    "zip": lambda items: zip(*zip(*items, strict=True), strict=True),
    "async generator": asynchronous,
}


class OneQueue(RoundRobin):
    """A scheduler of the user's: the pool asks it for the queue of each task."""

    def schedule_task(self, *args: Any, **kwds: Any) -> QueueID:
        return super().schedule_task(*args, **kwds)


async def tasks_of_workers(pool: Pool, items: Any, count: int, meeting: Meeting) -> list[int]:
    """How many of `count` items that wait, all at once, each worker runs."""
    result = pool.starmap(workload.meet, items)
    arrivals = [await meeting.arrivals.get() for _ in range(count)]
    for arrival in arrivals:
        arrival.release()
    await result
    return sorted(Counter(arrival.pid for arrival in arrivals).values())


async def warm(pool: Pool, meeting: Meeting) -> None:
    """Every worker has seen 16 items run side by side, so that it seems to have 16 free places."""
    count = 16 * pool.process_count
    await tasks_of_workers(
        pool, [(meeting.port, number) for number in range(count)], count, meeting
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "count"), [(2, 3), (3, 12), (4, 8), (4, 17)])
async def test_items_spread_evenly_over_warm_workers(
    backend: str, kind: str, workers: int, count: int
) -> None:
    async with Meeting() as meeting, Pool(workers) as pool:
        await warm(pool, meeting)
        items = [(meeting.port, number) for number in range(count)]
        shares = await tasks_of_workers(pool, KINDS[kind](items), count, meeting)
        assert max(shares) <= math.ceil(count / workers) + 1
        assert len(shares) == min(workers, count)


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_a_scheduler_of_the_users_gives_an_even_spread_too(backend: str, kind: str) -> None:
    async with Meeting() as meeting, Pool(3, scheduler=OneQueue()) as pool:
        await warm(pool, meeting)
        items = [(meeting.port, number) for number in range(12)]
        shares = await tasks_of_workers(pool, KINDS[kind](items), 12, meeting)
        assert max(shares) <= 5


async def test_sixteen_workers_share_an_input_of_unknown_length(backend: str) -> None:
    async with Meeting() as meeting, Pool(16) as pool:
        await warm(pool, meeting)
        items = ((meeting.port, number) for number in range(40))
        shares = await tasks_of_workers(pool, items, 40, meeting)
        assert max(shares) <= 4
        assert len(shares) == 16


@given(st.lists(st.integers(0, 50), min_size=1, max_size=16), st.integers(0, 500))
def test_workers_are_filled_to_the_lowest_level_that_has_room_for_all(
    held: list[int], tasks: int
) -> None:
    level = queue.level_of(list(held), tasks)

    def room(height: int) -> int:
        return sum(max(0, height - own) for own in held)

    assert room(level) >= tasks
    assert tasks == 0 or room(level - 1) < tasks


def test_a_slow_iterator_is_not_looked_ahead_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))  # a second passes at each look at it
    monkeypatch.setattr("aiomultiprocess._parent.sources.monotonic", lambda: next(clock))
    source = IteratorSource(iter(range(100)))
    assert source.at_hand(50) == 1
    assert source.take(3) == [0, 1, 2]


def test_items_that_were_looked_ahead_for_come_in_order_and_once() -> None:
    source = IteratorSource(iter(range(10)))
    assert source.at_hand(4) == 4
    assert source.take(2) == [0, 1]
    assert source.at_hand(100) == 8
    assert not source.exhausted
    assert source.take(100) == list(range(2, 10))
    assert source.exhausted
