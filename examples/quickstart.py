"""Wait for many things at once, and compute on every core: the first program of the README."""

import asyncio

from aiomultiprocess import Pool


async def work(number: int) -> int:
    await asyncio.sleep(0.01)  # while this waits, its worker runs other items
    return sum(n * n for n in range(number))  # while this computes, other workers run theirs


async def main() -> None:
    async with Pool() as pool:
        total = 0
        async for result in pool.map(work, range(1000)):
            total += result
    print(f"the sum of it all is {total:,}")


if __name__ == "__main__":
    asyncio.run(main())
