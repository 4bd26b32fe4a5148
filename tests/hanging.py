"""A test that hangs, for test_catalogue.py: not collected by itself."""

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
