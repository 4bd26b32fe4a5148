"""Tests of code that uses a pool, with pytest and pytest-asyncio."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import words

from aiomultiprocess import Pool


@pytest.mark.asyncio
async def test_a_line_is_counted() -> None:
    assert await words.count("to be or not to be") == 6  # no pool: it is a coroutine function


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(2)
    yield pool
    assert await pool.shutdown(timeout=10) == 0  # workers exit by themselves: coverage is saved


@pytest.mark.asyncio
async def test_lines_are_counted_in_workers(pool: Pool) -> None:
    assert await words.count_all(pool, ["one two", "", "three"]) == 3
