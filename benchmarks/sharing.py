"""One array for all workers: what it costs to share and to read it first, and in each task."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import items
from adapters import Peer
from measures import Figures, check

ROUNDS, CALLS, ITEMS = 5, 60, 4_000  # of what a task costs; rounds are in turn


async def sharing(peer: Peer, size: int, chunk: int) -> Figures:
    """Share `size` bytes, and have each worker read all of them once."""
    import numpy

    table: Any = numpy.arange(size // 8)
    expected = int(table.sum())
    await peer.make_room(table.nbytes)
    gc.collect()
    before = memory_of_all()
    begin = perf_counter()
    shared = await peer.share(table)
    written = perf_counter() - begin
    if shared is None:  # a limit, which copied it
        return {"seconds": written, "written": written, "total": written}
    del table
    await _read(peer, shared, expected)
    seconds = perf_counter() - begin
    figures = {"seconds": seconds, "written": written, "total": seconds}
    after = memory_of_all()
    if before is not None and after is not None:
        # the caller's own array was there before, and is not any more
        figures |= {"memory": after, "beyond": after - (before - size)}
    figures |= await _for_each_task(peer, shared)
    await peer.unshare(shared)
    return figures


async def _read(peer: Peer, shared: Any, expected: int) -> None:
    """Until every worker has: whoever is idle is sent one more."""
    readers: set[int] = set()
    function = peer.function(items.TOTAL)
    while len(readers) < WORKERS:
        found = await peer.gather(function, [shared] * (WORKERS - len(readers)))
        check([total for _, total in found], [expected] * len(found))
        readers |= {pid for pid, _ in found}


WORKERS = 8


async def _for_each_task(peer: Peer, shared: Any) -> Figures:
    """What a task costs that has a shared object as an argument, to one that has an int."""
    function = peer.function(items.IGNORE)
    with_shared: list[float] = []
    with_int: list[float] = []
    for _ in range(ROUNDS):
        for times, argument in (with_int, 1), (with_shared, shared):
            for _ in range(CALLS):
                begin = perf_counter()
                await peer.apply(function, argument)
                times.append(perf_counter() - begin)
    figures = {"calls": median(with_shared) / median(with_int)}
    bound = [peer.with_shared(function, argument) for argument in (1, shared)]
    if None not in bound:
        figures["maps"] = await _maps(peer, bound)
    return figures


async def _maps(peer: Peer, functions: list[Any]) -> float:
    """The seconds of a map by the second function, to those by the first."""
    times: list[list[float]] = [[], []]
    values = list(range(ITEMS))
    for _ in range(ROUNDS):
        for took, function in zip(times, functions, strict=True):
            begin = perf_counter()
            check(await peer.map(function, values, ITEMS // 32), values)
            took.append(perf_counter() - begin)
    return median(times[1]) / median(times[0])


def memory_of_all() -> float | None:
    """Bytes that this process and its descendants have, shared ones once. None: no way to know."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    return float(sum(_proportional(pid) for pid in _family(os.getpid())))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _proportional(pid: int) -> int:
    """A page that is in several processes counts as a part in each."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
