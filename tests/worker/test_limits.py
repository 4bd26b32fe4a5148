"""What a worker keeps of items with a time limit (LIMITS-1, LIMITS-2)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from aiomultiprocess._transport.shared_page import SharedPage
from aiomultiprocess._worker.limits import TimeLimits
from aiomultiprocess.types import TaskTimeoutError


@pytest.fixture
def page() -> Iterator[SharedPage]:
    page = SharedPage.create(3)
    yield page
    page.close()


async def suspended() -> asyncio.Task[None]:
    task = asyncio.ensure_future(asyncio.sleep(1000))
    await asyncio.sleep(0)
    return task


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_suspended_item_has_an_entry_until_its_result_is_journaled(
    page: SharedPage,
) -> None:
    limits = TimeLimits(page)
    first, second = await suspended(), await suspended()
    for number, task in enumerate((first, second), 1):
        assert not limits.full
        page.mark_time(number, 10 * number)
        page.mark_started(number)
        limits.suspend(task)
    assert page.running() == {1: 10, 2: 20}
    assert limits.full
    limits.journaled(first)
    limits.journaled(first)  # by `on_value`, and when the task is done
    assert page.running() == {2: 20}
    assert not limits.full
    page.mark_time(3, 30)
    page.mark_started(3)
    limits.suspend(first)
    assert limits.full
    assert page.running() == {2: 20, 3: 30}
    await end(first, second)


async def test_only_a_cancellation_that_comes_out_of_a_cancelled_item_is_a_timeout(
    page: SharedPage,
) -> None:
    limits = TimeLimits(page)
    late, other = await suspended(), await suspended()
    page.mark_time(1, 10)
    page.mark_started(1)
    limits.suspend(late)
    limits.cancel(late, ("an item", 1.5))
    cancelled = asyncio.CancelledError()
    error = limits.error_of(late, cancelled)
    assert isinstance(error, TaskTimeoutError)
    assert (error.task, error.timeout, error.killed) == ("an item", 1.5, False)
    assert error.__cause__ is cancelled
    assert limits.error_of(late, ValueError()) is None
    assert limits.error_of(other, cancelled) is None
    limits.journaled(late)
    assert limits.error_of(late, cancelled) is None
    await end(late, other)


async def test_the_end_of_a_first_step_leaves_suspended_items_in_the_table(
    page: SharedPage,
) -> None:
    limits = TimeLimits(page)
    task = await suspended()
    page.mark_time(1, 10)
    page.mark_started(1)
    limits.suspend(task)
    page.mark_time(2, 20)
    page.mark_started(2)
    limits.end_first_step()
    assert page.running() == {1: 10}
    await end(task)
