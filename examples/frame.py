"""The frame of the how-to pages: their functions are called where `section` is.

python examples/frame.py
"""

import asyncio

from aiomultiprocess import Pool


async def fetch(number: int, seconds: float = 0.01) -> str:
    """Stands for the work of your program: it waits, and there is no page below 0."""
    await asyncio.sleep(seconds)
    if number < 0:
        raise ValueError(f"no page {number}")
    return f"page {number}"


async def section(pool: Pool) -> None:  # put a function of a page here
    print(await pool.map(fetch, range(3)))


async def main() -> None:
    async with Pool(2) as pool:
        await section(pool)  # and its name here


if __name__ == "__main__":
    asyncio.run(main())
