"""What is tested in test_words.py: one function for the workers, and one that uses a pool."""

from collections.abc import Iterable

from aiomultiprocess import Pool


async def count(line: str) -> int:
    return len(line.split())


async def count_all(pool: Pool, lines: Iterable[str]) -> int:
    return sum(await pool.map(count, lines))
