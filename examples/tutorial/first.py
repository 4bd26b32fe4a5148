"""Tutorial, step 1: a pool, and one call for each number."""

import asyncio

from aiomultiprocess import Pool


async def steps(number: int) -> int:
    """How many steps the Collatz sequence of a number has."""
    count = 0
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        count += 1
    return count


async def main() -> None:
    async with Pool() as pool:
        counts = await pool.map(steps, range(1, 10_000))
    print("the longest sequence has", max(counts), "steps")


if __name__ == "__main__":
    asyncio.run(main())
