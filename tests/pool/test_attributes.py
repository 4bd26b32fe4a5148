"""Objects that each call uses have their attributes where CPython finds them fast."""

from __future__ import annotations

import asyncio
import gc

import pytest

from aiomultiprocess import Pool

pytestmark = pytest.mark.usefixtures("backend")

#: Beyond it, CPython gives an object a dict, and specializes no call of its methods.
MOST = 30


def attributes(*objects: object) -> dict[str, int]:
    """How many attributes these have of their own."""
    return {type(one).__name__: len(vars(one)) for one in objects}


async def attributes_in_worker() -> dict[str, int]:
    names = "WorkerEngine", "ResultSender", "ShmLink", "PipeLink"
    return attributes(*(one for one in gc.get_objects() if type(one).__name__ in names))


async def loop_has_dict() -> bool:
    return any(type(one) is dict and "_ready" in one for one in gc.get_referents(loop()))


def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_objects_of_a_call_have_few_attributes() -> None:
    async with Pool(1) as pool:
        there = await pool.apply(attributes_in_worker)
        (worker,) = pool.processes
        here = attributes(pool, pool._engine, worker, worker.link)
    assert {"WorkerEngine", "ResultSender"} < there.keys()
    assert max(there.values()) <= MOST, there
    assert max(here.values()) <= MOST, here


async def test_the_loop_of_a_worker_gets_no_dict() -> None:
    async with Pool(1) as pool:
        assert not await pool.apply(loop_has_dict)
