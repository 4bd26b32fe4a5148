"""What the exception_handler of a pool gets: failures of items, not those of their callers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, ProxyException
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
    async with Meeting() as meeting, Pool(1, exception_handler=handler) as pool:
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
        arguments = ((meeting.port,), (meeting.port,))
        calls = [asyncio.ensure_future(pool.apply(workload.meet_blocking, a)) for a in arguments]
        arrival = await meeting.next()  # the other waits in the same worker
        calls[1].cancel()
        await asyncio.wait(calls[1:])
        arrival.release()
        assert await calls[0] == "go"
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
        culprit = asyncio.ensure_future(pool.apply(mishaps.meet_and_stop_the_loop, (meeting.port,)))
        await meeting.release_all(1)
        await asyncio.wait([neighbour, culprit])
        assert isinstance(neighbour.exception(), ProxyException)
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
