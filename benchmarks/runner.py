"""One side of compare.py: the same program against whichever aiomultiprocess is installed.

Started by compare.py with the interpreter of that side. Prints one line of JSON, then keeps its
pool open and idle until stdin is closed, so that compare.py can look at the idle processes from
outside.
"""

import asyncio
import json
import statistics
import sys
from time import perf_counter

from aiomultiprocess import Pool

PROCESSES = 2


async def trivial(number: int) -> int:
    return number


async def map_rate(pool: Pool, count: int) -> float:
    """Items a second through one map of `count` ints."""
    begin = perf_counter()
    results = await pool.map(trivial, range(count))
    seconds = perf_counter() - begin
    assert list(results) == list(range(count))
    return count / seconds


async def apply_seconds(pool: Pool, count: int) -> float:
    """The median time of `count` applies, one after the other."""
    times = []
    for number in range(count):
        begin = perf_counter()
        await pool.apply(trivial, (number,))
        times.append(perf_counter() - begin)
    return statistics.median(times)


async def main(map_items: int, applies: int) -> None:
    loop = asyncio.get_running_loop()
    begin = perf_counter()
    async with Pool(PROCESSES) as pool:
        await pool.apply(trivial, (0,))
        first = perf_counter() - begin
        await map_rate(pool, 1000)  # every worker has started, every code path has run once
        figures = {
            "first": first,
            "map": await map_rate(pool, map_items),
            "apply": await apply_seconds(pool, applies),
        }
        print(json.dumps(figures), flush=True)
        closed = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), closed.set)
        await closed.wait()
        loop.remove_reader(sys.stdin.fileno())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
