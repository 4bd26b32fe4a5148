"""`python -m aiomultiprocess bench`: a short comparison with the standard library's pools.

The sides take turns, round after round, until the time is used up; the table shows medians. The
standard library's pools cannot run coroutines, so they run a synchronous twin of each, in chunks of
an eighth of the input. benchmarks/ in the repository compares more peers and measures more.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from ..pool import Pool
from . import bars, terminal
from .bars import Group

WORKERS = 2


async def echo(value: object) -> object:
    return value


def echo_sync(value: object) -> object:
    return value


async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


def wait_sync(seconds: float) -> None:
    time.sleep(seconds)


class Side(Protocol):
    """One side of the comparison, with its pool open."""

    title: str
    coroutines: bool

    async def map(self, function: Callable[..., Any], items: Sequence[Any]) -> object: ...
    async def apply(self, function: Callable[..., Any], item: object) -> object: ...
    async def close(self) -> None: ...


class Ours:
    coroutines = True

    def __init__(self) -> None:
        self._pool = Pool(WORKERS)
        self.title = f"aiomultiprocess, {self._pool.backend}"

    async def map(self, function: Callable[..., Any], items: Sequence[Any]) -> object:
        return await self._pool.map(function, items)

    async def apply(self, function: Callable[..., Any], item: object) -> object:
        return await self._pool.apply(function, (item,))

    async def close(self) -> None:
        self._pool.terminate()
        await self._pool.join()


class Multiprocessing:
    coroutines = False
    title = "multiprocessing.Pool"

    def __init__(self) -> None:
        self._pool = multiprocessing.Pool(WORKERS)

    async def map(self, function: Callable[..., Any], items: Sequence[Any]) -> object:
        return self._pool.map(function, items)

    async def apply(self, function: Callable[..., Any], item: object) -> object:
        return self._pool.apply(function, (item,))

    async def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


class Executor:
    coroutines = False
    title = "run_in_executor"

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(WORKERS)

    async def map(self, function: Callable[..., Any], items: Sequence[Any]) -> object:
        chunk = max(1, len(items) // (4 * WORKERS))
        return list(self._executor.map(function, items, chunksize=chunk))

    async def apply(self, function: Callable[..., Any], item: object) -> object:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, item)

    async def close(self) -> None:
        self._executor.shutdown()


class Row(NamedTuple):
    """One line of the table: `measure` gives the figure of one side."""

    title: str
    unit: str
    measure: Callable[[Side], Awaitable[float]]


def mapping(
    coroutine: Callable[..., Any], twin: Callable[..., Any], items: Sequence[Any], amount: float
) -> Callable[[Side], Awaitable[float]]:
    """A measure of one map: `amount`, divided by the seconds that the map took."""

    async def measure(side: Side) -> float:
        begin = perf_counter()
        await side.map(coroutine if side.coroutines else twin, items)
        return amount / (perf_counter() - begin)

    return measure


async def one_by_one(side: Side) -> float:
    function: Callable[..., object] = echo if side.coroutines else echo_sync
    times = []
    for number in range(300):
        begin = perf_counter()
        await side.apply(function, number)
        times.append(perf_counter() - begin)
    return median(times) * 1e6


def rows() -> list[Row]:
    dicts = [{"id": n, "name": f"user{n:05}", "score": n / 2} for n in range(50_000)]
    megabytes = [bytes([n]) * 10**6 for n in range(50)]
    naps = [0.01] * 64
    return [
        Row("map, ints", "items/s", mapping(echo, echo_sync, range(200_000), 200_000)),
        Row("map, small dicts", "items/s", mapping(echo, echo_sync, dicts, len(dicts))),
        Row("map, 1 MB of bytes", "MB/s", mapping(echo, echo_sync, megabytes, 50)),
        Row("map, awaiting 10 ms", "items/s", mapping(wait, wait_sync, naps, len(naps))),
        Row("apply, one at a time, median", "us", one_by_one),
    ]


async def compare(seconds: float) -> tuple[list[Side], list[Row], list[list[list[float]]]]:
    """The sides, the rows, and the figures by row and side."""
    end = perf_counter() + seconds
    # the pools that fork come first: they are made to fork a process without threads
    sides: list[Side] = [Multiprocessing(), Executor()]
    table = rows()
    found: list[list[list[float]]] = [[[], [], []] for _ in table]
    try:
        sides.insert(0, Ours())
        for side in sides:
            await table[0].measure(side)  # so that every worker has started
        while True:
            for row, figures in zip(table, found, strict=True):
                for side, values in zip(sides, figures, strict=True):
                    values.append(await row.measure(side))
            left = end - perf_counter()
            print(f"\r{max(0, left):3.0f} s left ", end="", file=sys.stderr, flush=True)
            if left <= 0:
                print("\r", end="", file=sys.stderr)
                return sides, table, found
    finally:
        for side in sides:
            await side.close()


def show(seconds: float, svg: str | None = None) -> int:
    """Print the figures, as bars in a terminal; returns the exit status."""
    if svg is not None and (reason := _why_unwritable(svg)):
        print(f"{svg} cannot be written: {reason}", file=sys.stderr)
        return 2
    sides, table, found = asyncio.run(compare(seconds))
    groups = [
        Group(row.title, row.unit, [median(values) for values in figures])
        for row, figures in zip(table, found, strict=True)
    ]
    titles = [side.title for side in sides]
    note = (
        f"medians of {len(found[0][0])} rounds, {WORKERS} workers each; the standard library runs "
        "the synchronous twins"
    )
    console = terminal.console()
    if console is None:
        print(bars.as_table(titles, groups), note, sep="\n")
    else:
        console.print(bars.as_bars(titles, groups, console.width), note, sep="\n")
    if svg is not None:
        Path(svg).write_text(bars.as_svg(titles, groups, note), encoding="utf-8")
    return 0


def _why_unwritable(path: str) -> str:
    """The reason, found before the minute of measuring."""
    try:
        with open(path, "a", encoding="utf-8"):
            return ""
    except OSError as error:
        return error.strerror or str(error)
