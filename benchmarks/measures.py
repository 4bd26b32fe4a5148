"""The measures: each does one thing with an open pool, and returns figures.

It gets a size and a chunk size; "seconds" is always one of the figures: the time that was measured,
of which the input's making and the results' checking are no part. Inputs are distinct objects, so
that no pickle can send one of them for all.
"""

import asyncio
import gc
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import items
from adapters import Items, Peer
from items import Task

Figures = dict[str, float]
Measure = Callable[[Peer, int, int], Awaitable[Figures]]

WORKERS = 2
CONCURRENCY = 16  # what 0.9.1 and this library have by default


# Measures


def mapping(
    task: Task,
    make: Callable[[int], list[Any]],
    figure: Callable[[list[Any], float], Figures],
    *,
    star: bool = False,
    expected: Callable[[list[Any]], list[Any]] = list,
    rehearsed: bool = False,
) -> Measure:
    """One map (or starmap) over what `make` makes; `figure` turns its seconds into a figure.

    `rehearsed` does the same once before, not measured. A virtual machine may give memory that is
    free for some seconds back to its host (free page reporting). The same page faults then take up
    to 18 times as long, and a peer's large values would measure what others had freed before.
    """

    async def measure(peer: Peer, size: int, chunk: int) -> Figures:
        if rehearsed:
            await peer.map(peer.function(task), make(size), chunk)
        values = make(size)
        call = peer.starmap if star else peer.map
        function = peer.function(task)
        gc.collect()
        begin = perf_counter()
        results = await call(function, values, chunk)
        seconds = perf_counter() - begin
        check(results, expected(values))
        return {"seconds": seconds} | figure(values, seconds)

    return measure


def check(results: Items, expected: Items) -> None:
    """A wrong answer has no time."""
    if isinstance(expected[0], (int, float, str, bytes, dict)):
        same = list(results) == list(expected)
    else:  # arrays
        pairs = zip(results, expected, strict=True)
        same = all(memoryview(one) == memoryview(other) for one, other in pairs)
    if not same:
        raise ValueError("the peer returned something else than was sent")


def rate(values: list[Any], seconds: float) -> Figures:
    return {"rate": len(values) / seconds}


def throughput(values: list[Any], seconds: float) -> Figures:
    return {"throughput": sum(memoryview(value).nbytes for value in values) / seconds}


def efficiency(at_once: int) -> Callable[[list[Any], float], Figures]:
    """The part of the ideal: all of the items' seconds, spread over what may run at once."""
    return lambda values, seconds: {"efficiency": sum(values) / at_once / seconds}


def together(values: list[tuple[int, int]]) -> list[int]:
    return [a + b for a, b in values]


async def one_by_one(peer: Peer, size: int, chunk: int) -> Figures:
    gc.collect()
    times = await peer.round_trips(peer.function(items.ECHO), size)
    return latencies(times) | {"seconds": sum(times)}


def latencies(times: list[float]) -> Figures:
    p99 = quantiles(times, n=100, method="inclusive")[98] if len(times) > 1 else times[0]
    return {"p50": median(times), "p99": p99}


async def gather(peer: Peer, size: int, chunk: int) -> Figures:
    arguments = list(range(size))
    gc.collect()
    begin = perf_counter()
    results = await peer.gather(peer.function(items.ECHO), arguments)
    seconds = perf_counter() - begin
    check(results, arguments)
    return {"seconds": seconds, "rate": size / seconds}


async def beside(peer: Peer, size: int, chunk: int) -> Figures:
    """Applies, one after the other, while maps run that leave no worker idle.

    A peer that is not through with one apply after a while is given that while as its time.
    """
    function, values = peer.function(items.ECHO), list(range(size))
    times: list[float] = []
    done: Callable[[], bool] = lambda: True  # noqa: E731 - the first map is not begun
    end = perf_counter() + BESIDE_SECONDS
    while perf_counter() < end:
        if done():
            done = await peer.begin_map(function, values, max(1, size // (4 * WORKERS)))
        begin = perf_counter()
        try:
            await asyncio.wait_for(peer.apply(function, 0), 2 * BESIDE_SECONDS)
        except TimeoutError:
            end = 0
        times.append(perf_counter() - begin)
    return latencies(times) | {"seconds": sum(times)}


BESIDE_SECONDS = 0.6


async def first_result(peer: Peer, size: int, chunk: int) -> Figures:
    """From nothing to the first result, and the descriptors that the pool costs its parent."""
    descriptors = open_descriptors()
    begin = perf_counter()
    await peer.open(WORKERS, CONCURRENCY)
    await peer.apply(peer.function(items.ECHO), 0)
    seconds = perf_counter() - begin
    return {
        "seconds": seconds,
        "first": seconds,
        "descriptors": float(open_descriptors() - descriptors),
    }


def open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder if folder.exists() else "/dev/fd"))


def stream(make: Callable[[int], Iterable[Any]]) -> Measure:
    """`async for` over the results of a map over an iterator, each dropped as it comes."""

    async def measure(peer: Peer, size: int, chunk: int) -> Figures:
        begin = perf_counter()
        seen = await peer.stream(peer.function(items.ECHO), make(size))
        seconds = perf_counter() - begin
        check([seen], [size])
        return {"seconds": seconds, "rate": size / seconds}

    return measure


async def doorbells(peer: Peer, size: int, chunk: int) -> Figures:
    """Of all frames of a map, both ways, the part for which a bell was rung."""
    before = await peer.bells()
    begin = perf_counter()
    await peer.map(peer.function(items.ECHO), list(range(size)), chunk)
    seconds = perf_counter() - begin
    after = await peer.bells()
    frames = after["frames"] - before["frames"]
    rung = after["bells"] - before["bells"]
    return {"seconds": seconds, "bells": rung / frames, "frames": frames}


async def frames(peer: Peer, size: int, chunk: int) -> Figures:
    """Small frames, one published after the other, over one link."""
    found = await peer.frames(size)
    figures = {"seconds": found["seconds"], "rate": size / found["seconds"]}
    return figures | ({"bells": found["bells"] / found["frames"]} if "bells" in found else {})


# Inputs


def ints(count: int) -> list[int]:
    return list(range(count))


def dicts(count: int) -> list[dict[str, object]]:
    """Each is 72 bytes as a pickle of its own."""
    return [
        {"id": 10_000 + n % 50_000, "name": f"user{n % 100_000:05}", "score": n / 2, "active": True}
        for n in range(count)
    ]


def strings(count: int) -> list[str]:
    return [f"{n:08}".ljust(1024, "x") for n in range(count)]


def pairs(count: int) -> list[tuple[int, int]]:
    return [(n, 2 * n) for n in range(count)]


def blocks(size: int) -> Callable[[int], list[bytes]]:
    return lambda count: [bytes([n % 251]) * size for n in range(count)]


def arrays(size: int) -> Callable[[int], list[Any]]:
    def make(count: int) -> list[Any]:
        import numpy

        return [numpy.full(size // 8, n, dtype=numpy.int64) for n in range(count)]

    return make


def fresh_arrays(size: int) -> Callable[[int], Iterator[Any]]:
    """Each is made when it is asked for."""
    make = arrays(size)
    return lambda count: (make(1)[0] for _ in range(count))


def same(seconds: float) -> Callable[[int], list[float]]:
    return lambda count: [seconds] * count


def skewed(count: int) -> list[float]:
    """Each hundredth takes a hundred times as long; their places are drawn once."""
    values = [0.01] * (count // 100) + [0.0001] * (count - count // 100)
    random.Random(1).shuffle(values)
    return values
