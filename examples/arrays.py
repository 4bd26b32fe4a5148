"""Large arrays: each is copied once on its way, and one that all tasks read is there once.

python examples/arrays.py
"""

import asyncio
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from aiomultiprocess import Pool, Shared, share

Array = npt.NDArray[np.float64]


def blocks() -> Iterator[Array]:
    for number in range(16):
        yield np.full(1 << 20, float(number))  # 8 MiB


def squared(block: Array) -> Array:
    """Runs in a worker, which may write into the array: it is the task's own."""
    block *= block
    return block


async def arrays_as_items() -> None:
    async with Pool(2) as pool:
        total = 0.0
        async for block in pool.map(squared, blocks()):
            total += block[0]  # the memory of earlier blocks is reused
        print(f"the sum of 16 squares is {total:,.0f}")


def nearest(points: Shared[Array], place: Array) -> int:
    """Runs in a worker: which of the points is nearest to a place."""
    return int(np.argmin(((points.value - place) ** 2).sum(axis=1)))


async def one_array_for_all_tasks() -> None:
    points = np.random.default_rng(2026).random((100_000, 2))
    with share(points) as shared:
        async with Pool(2) as pool:
            found = await pool.map(partial(nearest, shared), points[:50])
    assert found == list(range(50))
    print("each point is nearest to itself")


async def main() -> None:
    await arrays_as_items()
    await one_array_for_all_tasks()


if __name__ == "__main__":
    asyncio.run(main())
