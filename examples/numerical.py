"""Numerical work with NumPy: rows of a matrix, and random numbers that can be repeated.

python examples/numerical.py
"""

import asyncio
import os

import numpy as np
import numpy.typing as npt

from aiomultiprocess import Pool

Array = npt.NDArray[np.float64]


def smooth(block: Array) -> Array:
    """Runs in a worker: the mean of each value and its neighbours in the row."""
    return (np.roll(block, -1, axis=1) + block + np.roll(block, 1, axis=1)) / 3


def throw(seed: np.random.SeedSequence, darts: int) -> int:
    """How many darts hit the quarter of a circle."""
    x, y = np.random.default_rng(seed).random((2, darts))
    return int(np.count_nonzero(x * x + y * y < 1))


async def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # in the workers: one thread of BLAS in each
    async with Pool(2, childconcurrency=1) as pool:
        matrix = np.arange(1_000_000, dtype=float).reshape(1000, 1000)
        blocks = await pool.map(smooth, np.array_split(matrix, 8))
        assert np.array_equal(np.concatenate(blocks), smooth(matrix))

        seeds = np.random.SeedSequence(2026).spawn(20)  # a stream of its own for each item
        hits = await pool.starmap(throw, [(seed, 100_000) for seed in seeds])
        print(f"pi is about {4 * sum(hits) / (20 * 100_000):.4f}")


if __name__ == "__main__":
    asyncio.run(main())
