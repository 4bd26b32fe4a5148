"""The exception_handler of a pool gets failures of items, not those of their callers."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mishaps
import stoppers
import workload
from aiomultiprocess import Pool, ProxyException, WorkerLostError
from support import Meeting, lines

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("G65")]


@pytest.fixture
def handler(tmp_path: Path) -> Callable[[BaseException], None]:
    return functools.partial(workload.note_error, str(tmp_path / "handled"))


@pytest.fixture
def handled(tmp_path: Path) -> Callable[[], list[str]]:
    """Type and text of the errors that the handler got in workers, so far."""
    return lambda: [line.partition(" ")[2].strip() for line in lines(tmp_path / "handled")]


async def test_a_caller_that_times_out_is_no_failure_of_its_item(
    handler: Any, handled: Any
) -> None:
    async with Meeting() as meeting, Pool(1, exception_handler=handler) as pool:
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
        await arrival.gone  # it was cancelled
        assert await pool.apply(workload.two) == 2
        assert handled() == []


async def test_an_item_that_was_given_up_before_it_started_is_no_failure(
    handler: Any, handled: Any
) -> None:
    async with (
        Meeting() as meeting,
        Pool(1, exception_handler=handler, childconcurrency=1) as pool,
    ):

        def call(value: int) -> asyncio.Future[int]:  # which waits if that is 0
            return asyncio.ensure_future(pool.apply(workload.meet_if_first, (meeting.port, value)))

        await asyncio.gather(*map(call, range(1, 500)))  # they are quick: more are sent ahead
        first, *others = map(call, [0] * 20)
        arrival = await meeting.next()  # others wait behind it in the same worker
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        arrival.release()
        assert await first == 0
        assert await pool.apply(workload.two) == 2
        assert handled() == []


async def test_terminate_is_no_failure_of_items(handler: Any, handled: Any, tmp_path: Path) -> None:
    async with Meeting() as meeting:
        async with Pool(1, exception_handler=handler) as pool:
            arguments = (str(tmp_path / "cleaned"), meeting.port)
            calls = [asyncio.ensure_future(pool.apply(workload.clean_up, arguments)) for _ in "ab"]
            await meeting.release_all(2)
        await asyncio.wait(calls)
        assert len(lines(tmp_path / "cleaned")) == 2
        assert handled() == []


async def test_items_that_end_with_their_loop_are_no_failures(handler: Any, handled: Any) -> None:
    async with Meeting() as meeting, Pool(1, exception_handler=handler) as pool:
        neighbour = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        await meeting.next()
        culprit = asyncio.ensure_future(pool.apply(stoppers.break_the_loop, (meeting.port,)))
        await meeting.release_all(1)
        await asyncio.wait([neighbour, culprit])
        for call in (neighbour, culprit):
            assert isinstance(call.exception(), WorkerLostError)
        assert handled() == []


async def test_what_an_item_raises_when_it_is_cancelled_is_its_own(
    handler: Any, handled: Any
) -> None:
    async with Meeting() as meeting, Pool(1, exception_handler=handler) as pool:
        func = mishaps.meet_and_fail_when_cancelled
        call = asyncio.ensure_future(pool.apply(func, (meeting.port,)))
        arrival = await meeting.next()
        call.cancel()
        await arrival.gone
        assert await pool.apply(workload.two) == 2
        assert handled() == ["LookupError while cleaning up"]


@pytest.mark.parametrize("func", [mishaps.cancel_oneself, mishaps.cancel_at_once])
async def test_a_cancellation_by_the_item_itself_is_a_failure_of_it(
    handler: Any, handled: Any, func: Any
) -> None:
    async with Pool(1, exception_handler=handler) as pool:
        with pytest.raises(ProxyException, match="CancelledError"):
            await pool.apply(func)
        assert handled() == ["CancelledError"]


@pytest.mark.parametrize("kind", ["without a class", "without attributes"])
async def test_terminate_survives_an_error_that_cannot_be_inspected(kind: str) -> None:
    async with Meeting() as meeting:
        async with Pool(1) as pool:
            call = asyncio.ensure_future(
                pool.apply(mishaps.meet_and_fail_oddly, (meeting.port, kind))
            )
            await meeting.next()
            (worker,) = pool.processes
        await asyncio.wait([call])
        assert worker.exitcode == -signal.SIGTERM  # it was not the engine that gave up
