"""Tests that hang, for test_catalogue.py: not collected by themselves."""

from __future__ import annotations

import asyncio

import mishaps
import workload
from aiomultiprocess import Pool
from support import Meeting


async def test_that_hangs_in_the_parent_and_in_two_workers() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        await asyncio.gather(
            pool.apply(mishaps.hold_the_gil, (meeting.port,)),
            pool.apply(workload.meet_blocking, (meeting.port,)),
        )


async def test_that_hangs_in_c_in_the_parent() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.two) == 2
        sum(range(10**11))
