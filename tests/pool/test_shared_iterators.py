"""Iterators over the results of a map that several tasks share, step by step."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool
from aiomultiprocess._parent import job as jobs
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


async def meet_first_of(port: int, value: Any) -> Any:
    """Item 0, or (0, payload), waits for the test."""
    first = value[0] if isinstance(value, tuple) else value
    if first == 0:
        await workload.meet(port)
    return value


@pytest.mark.row("H170")
async def test_a_step_that_is_cancelled_gives_back_its_own_result_and_no_other() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        iterator = aiter(pool.starmap(meet_first_of, [(meeting.port, at) for at in range(200)]))
        first = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        arrival = await meeting.next()
        got = [await anext(iterator) for _ in range(100)]
        first.cancel()
        await asyncio.wait([first])
        arrival.release()
        got += [value async for value in iterator]
        assert got == [*range(1, 101), 0, *range(101, 200)]


@pytest.mark.row("H170")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_steps_that_are_cancelled_in_any_order_lose_nothing(order: tuple[int, ...]) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        iterator = aiter(pool.starmap(workload.meet, [(meeting.port, at) for at in range(5)]))
        held = {int(arrival.token): arrival for arrival in await meeting.first(5)}
        steps = [asyncio.ensure_future(anext(iterator)) for _ in range(3)]
        await asyncio.sleep(0)
        for at in order:
            steps[at].cancel()
            await asyncio.wait([steps[at]])
        for at, arrival in held.items():
            arrival.release(str(at))
        assert [value async for value in iterator] == ["0", "1", "2", "3", "4"]


@pytest.mark.row("H170")
async def test_a_step_in_the_wrong_loop_takes_no_result() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        iterator = aiter(pool.starmap(workload.meet, [(meeting.port, at) for at in range(2)]))
        held = await meeting.first(2)
        with pytest.raises(RuntimeError, match="another"):
            await asyncio.to_thread(lambda: asyncio.run(step(iterator)))
        for arrival in held:
            arrival.release(arrival.token)
        assert [value async for value in iterator] == ["0", "1"]


async def step(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


def blocks(port: int) -> Iterator[tuple[int, tuple[int, bytes]]]:
    for at in range(60):
        yield port, (at, bytes(1 << 20))


@pytest.mark.row("H171")
@pytest.mark.parametrize("ends", ["by its result", "by a cancellation"])
async def test_a_result_that_a_step_waits_for_is_not_dropped_though_others_read_on(
    ends: str,
) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(meet_first_of, blocks(meeting.port))
        iterator = aiter(results)
        first = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        arrival = await meeting.next()
        got = [(await anext(iterator))[0] for _ in range(50)]
        if ends == "by a cancellation":
            first.cancel()
            await asyncio.wait([first])
            arrival.release()
        else:
            arrival.release()
            got.append((await first)[0])
        got += [value[0] async for value in iterator]
        assert sorted(got) == list(range(60))
        assert got[:50] == list(range(1, 51))
        assert len(results._job._values) <= 60


@pytest.mark.row("H171")
async def test_what_was_read_is_dropped_though_an_older_result_is_waited_for() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(meet_first_of, blocks(meeting.port))
        iterator = aiter(results)
        first = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        arrival = await meeting.next()
        for _ in range(50):
            await anext(iterator)
        dropped = sum(value is jobs.DROPPED for value in results._job._values)
        assert dropped >= 50 - 1 - (jobs.HISTORY_BYTES >> 20)
        with pytest.raises(RuntimeError, match="was dropped after it had been read"):
            aiter(results)
        arrival.release()
        assert (await first)[0] == 0
