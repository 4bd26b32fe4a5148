"""Values that a library shares by a descriptor, as torch does, arrive by value (CODEC-9)."""

from __future__ import annotations

import asyncio
import os
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from aiomultiprocess import Pool, Worker
from codec_support import CODECS
from tensors import Event, Tensor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")


@pytest.fixture(params=CODECS, ids=lambda codec: codec.__name__.partition(".")[0])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


async def make(number: int) -> Tensor:
    return Tensor(number)


async def make_nested(number: int) -> dict[str, list[Tensor]]:
    return {"tensors": [Tensor(number), Tensor(number, number)]}


async def add(first: Tensor, second: Tensor) -> Tensor:
    return Tensor(*first.numbers, *second.numbers)


async def make_event() -> Event:
    return Event()


async def fail_with(number: int) -> None:
    raise ValueError(Tensor(number))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd"))


@pytest.mark.row("G78")
@pytest.mark.usefixtures("backend")
async def test_results_that_would_be_shared_outlive_the_worker_that_made_them() -> None:
    async with Pool(1, maxtasksperchild=1) as pool:
        results = pool.map(make, range(4))
        nested = pool.map(make_nested, range(2))
        await asyncio.gather(*[pool.apply(os.getpid) for _ in range(2)])  # all their workers ended
        assert await results == [Tensor(i) for i in range(4)]
        assert [value["tensors"][1] for value in await nested] == [Tensor(i, i) for i in range(2)]


@pytest.mark.row("G78")
@pytest.mark.usefixtures("backend")
async def test_a_result_that_would_be_shared_costs_no_descriptor() -> None:
    async with Pool(1) as pool:
        await pool.map(make, range(2))
        before = descriptors()
        held = await pool.map(make, range(50))
        assert descriptors() == before
        assert held[49] == Tensor(49)


@pytest.mark.row("G78")
@pytest.mark.usefixtures("backend")
async def test_arguments_and_errors_that_would_be_shared_travel_by_value() -> None:
    async with Pool(1) as pool:
        pairs = [(Tensor(i), Tensor(i + 1)) for i in range(3)]
        assert await pool.starmap(add, pairs) == [Tensor(i, i + 1) for i in range(3)]
        with pytest.raises(ValueError, match="Tensor") as caught:
            await pool.apply(fail_with, (7,))
        assert caught.value.__cause__ is not None
        assert caught.value.__cause__.args == (Tensor(7),)


@pytest.mark.row("G78")
async def test_the_result_of_a_worker_process_outlives_it() -> None:
    assert await Worker(target=make, args=(5,)) == Tensor(5)


@pytest.mark.row("G78")
def test_what_cannot_be_pickled_otherwise_uses_the_reducer_that_is_registered(codec: Any) -> None:
    assert type(codec.loads(codec.dumps(Event()))) is Event
    assert b"reductions" not in codec.dumps([Tensor(1), Event()])


@pytest.mark.row("G78")
def test_reducers_of_other_modules_are_used_as_multiprocessing_uses_them(codec: Any) -> None:
    def reduce_other(_: Tensor) -> Any:
        return str, ("registered",)

    registered = ForkingPickler._extra_reducers[Tensor]  # type: ignore[attr-defined]
    assert codec.loads(codec.dumps(Tensor(1))) == Tensor(1)
    ForkingPickler.register(Tensor, reduce_other)
    try:
        assert codec.loads(codec.dumps(Tensor(1))) == "registered"
    finally:
        ForkingPickler.register(Tensor, registered)
    assert codec.loads(codec.dumps(Tensor(1))) == Tensor(1)


async def send_through(connection: Connection) -> None:
    connection.send("through a connection")
    connection.close()


@pytest.mark.row("G78")
@pytest.mark.usefixtures("backend")
async def test_a_connection_still_travels_by_its_descriptor() -> None:
    async with Pool(1) as pool:
        ours, theirs = Pipe()
        await pool.apply(send_through, (theirs,))
        assert ours.recv() == "through a connection"
        ours.close()
        theirs.close()
    from multiprocessing import resource_sharer

    await asyncio.to_thread(resource_sharer.stop, 5)  # the thread that handed it over
