"""Tutorial, step 2: tasks that wait. Each worker has many under way at once."""

import asyncio
import time

import aiohttp

from aiomultiprocess import Pool

SITE = "http://127.0.0.1:8099"


async def fetch(number: int) -> int:
    """Fetch one page; how many words it has."""
    async with aiohttp.ClientSession() as session, session.get(f"{SITE}/{number}") as response:
        response.raise_for_status()
        text = await response.text()
    return len(text.split())


async def main() -> None:
    begin = time.perf_counter()
    async with Pool(2) as pool:
        words = await pool.map(fetch, range(100), return_exceptions=True)
    failed = [number for number, count in enumerate(words) if isinstance(count, BaseException)]
    print(f"{len(words)} pages of 50 ms in {time.perf_counter() - begin:.1f} s, failed: {failed}")


if __name__ == "__main__":
    asyncio.run(main())
