"""One pool for all threads of a program: in a loop that runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiomultiprocess import Pool

R = TypeVar("R")

loop: asyncio.AbstractEventLoop
pool: Pool


async def square(number: int) -> int:
    return number * number


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Wait, in any other thread, for what the coroutine returns in the loop of the pool."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


async def make_pool() -> Pool:
    return Pool(2)  # it belongs to the loop that runs here


async def end_pool() -> None:
    pool.close()
    await pool.join()


async def square_all(numbers: Iterable[int]) -> list[int]:
    return await pool.map(square, numbers)  # what is no coroutine is called in one


def view(number: int) -> int:
    """What a web framework would call, in a thread of its choice."""
    return run(pool.apply(square, (number,)))


def main() -> None:
    global loop, pool
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        pool = run(make_pool())
        try:
            with ThreadPoolExecutor(8) as threads:  # those of a web server, say
                assert list(threads.map(view, range(100))) == [n * n for n in range(100)]
            assert run(square_all([1, 2, 3])) == [1, 4, 9]
        finally:
            run(end_pool())
    finally:  # or the thread would keep the program alive
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


if __name__ == "__main__":
    main()
