"""An iterator is read after the call of `map`, and an error that results from that says so."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool
from support import outcomes

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("G67")]

LONG = 50_000  # more than is read ahead of a reader


async def late(pool: Pool, items: Iterable[Any]) -> Any:
    """A map over an iterator, of which all that it reads ahead has been read."""
    results = pool.map(workload.double, items)
    await pool.map(workload.double, range(1000))
    return results


def hint_of(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    path.write_text("".join(f"{number}\n" for number in range(LONG)))
    return path


@pytest.mark.parametrize("way", ["file", "generator"])
async def test_a_file_that_was_closed_meanwhile_is_an_error_at_its_item(
    text: Path, way: str
) -> None:
    async with Pool(1) as pool:
        with text.open() as lines:
            results = await late(pool, lines if way == "file" else (line for line in lines))
        *found, error = await outcomes(results)
        assert found == [f"{number}\n" * 2 for number in range(len(found))]
        assert 0 < len(found) < LONG
        assert isinstance(error, ValueError)
        assert "later than the call" in hint_of(error)
        assert "list(...)" in hint_of(error)
        with pytest.raises(ValueError, match="closed file") as info:
            await results
        assert info.value is error


async def test_a_dict_that_changed_meanwhile_is_an_error_with_a_hint() -> None:
    numbers = dict.fromkeys(range(LONG))
    async with Pool(1) as pool:
        results = await late(pool, iter(numbers))
        numbers[LONG] = None
        with pytest.raises(RuntimeError, match="changed size during iteration") as info:
            await results
        assert "later than the call" in hint_of(info.value)


async def test_a_cursor_that_was_closed_meanwhile_is_an_error_with_a_hint() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table numbers (number integer)")
    connection.executemany("insert into numbers values (?)", ((i,) for i in range(LONG)))
    async with Pool(1) as pool:
        results = await late(pool, connection.execute("select number from numbers"))
        connection.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed database") as info:
            await results
        assert "later than the call" in hint_of(info.value)


async def test_an_async_iterable_whose_resource_is_closed_is_an_error_with_a_hint(
    text: Path,
) -> None:
    opened = asyncio.Event()

    async def lines() -> AsyncIterator[str]:
        with text.open() as file:
            for line in file:
                yield line
                file.close()
                await opened.wait()

    async with Pool(1) as pool:
        results = pool.map(workload.double, lines())
        opened.set()
        with pytest.raises(ValueError, match="closed file") as info:
            await results
        assert "later than the call" in hint_of(info.value)


@pytest.mark.parametrize("way", ["dict", "keys", "list", "list of a file"])
async def test_an_input_that_is_no_iterator_is_read_at_the_call(text: Path, way: str) -> None:
    numbers: Any = dict.fromkeys(range(100))
    async with Pool(1) as pool:
        if way == "list of a file":
            with text.open() as lines:
                results = await late(pool, list(lines))
            assert len(await results) == LONG
            return
        items = {"dict": numbers, "keys": numbers.keys(), "list": list(numbers)}[way]
        results = await late(pool, items)
        numbers[100] = None
        assert await results == [2 * number for number in range(100)]


async def test_two_maps_over_one_iterator_share_its_items() -> None:
    async with Pool(2) as pool:
        numbers = iter(range(LONG))
        both = [pool.map(workload.identity, numbers), pool.map(workload.identity, numbers)]
        first, second = await asyncio.gather(*both)
        assert sorted(first + second) == list(range(LONG))


def failing() -> Iterator[int]:
    yield 1
    raise LookupError("of its own")


async def test_an_error_of_the_input_itself_has_no_hint() -> None:
    async with Pool(1) as pool:
        with pytest.raises(LookupError, match="of its own") as info:
            await pool.map(workload.double, failing())
        assert hint_of(info.value) == ""


class Sealed(Exception):  # noqa: N818 - as its text says
    """An exception that takes no notes."""

    def add_note(self, note: str) -> None:
        raise RuntimeError(note)


async def test_an_error_that_takes_no_hint_arrives_all_the_same() -> None:
    def closed() -> Iterator[int]:
        yield from itertools.islice(itertools.count(), 3)
        raise Sealed("closed for ever")

    async with Pool(1) as pool:
        with pytest.raises(Sealed, match="closed for ever"):
            await pool.map(workload.double, closed())
