"""The calls of a pool and what they raise, one function a subject; the README shows them."""

import asyncio
import itertools
import math
import os

from aiomultiprocess import Pool, ProxyException, Worker, WorkerLostError


async def add(a: int, b: int) -> int:
    return a + b


async def calls(pool: Pool) -> None:
    # All results, a list in the order of the input. A plain function will do as well.
    assert await pool.map(math.sqrt, [1.0, 4.0, 9.0]) == [1.0, 2.0, 3.0]

    # Several arguments for each call, and a single call.
    assert await pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert await pool.apply(add, (1,), {"b": 2}) == 3

    # One result after the other, each as soon as it and all before it are there. The input may be
    # endless: it is pulled as there is room.
    async for root in pool.map(math.sqrt, itertools.count()):
        if root > 10:
            break


async def number(text: str) -> int:
    return int(text)


async def errors(pool: Pool) -> None:
    try:
        await pool.apply(number, ("seven",))
    except ValueError as error:  # what the worker raised, with its traceback from there
        assert isinstance(error, ProxyException)
        assert "Traceback" in str(error)

    try:
        await pool.apply(os._exit, (7,))
    except WorkerLostError as error:  # the worker is gone; another has taken its place
        assert error.exitcode == 7


async def retries(pool: Pool) -> None:
    # `add` has no effects: let it run up to twice more, should its worker die.
    assert await pool.starmap(add, [(1, 2), (3, 4)], retries=2) == [3, 7]
    assert await pool.apply(add, (5, 6), retries=2) == 11


async def one_process() -> None:
    assert await Worker(target=add, args=(1, 2)) == 3


async def main() -> None:
    async with Pool(2) as pool:
        await calls(pool)
        await errors(pool)
        await retries(pool)
    await one_process()


if __name__ == "__main__":
    asyncio.run(main())
