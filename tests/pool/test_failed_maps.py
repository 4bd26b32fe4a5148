"""What failed is freed with the error that it raised: a map (JOB-11), a pool (ENGINE-2)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import blocked
import workload
from aiomultiprocess import Pool, PoolResult, PoolTerminatedError, Stream

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("H231")]

Results = PoolResult[Any]
REFUSED = "math domain error|expected a nonnegative input"  # by sqrt, before 3.14 and since


async def by_await(result: Results) -> None:
    await result


async def by_results(result: Results) -> None:
    await asyncio.wait_for(result.results(), 60)


async def by_a_loop(result: Results) -> None:
    async for _ in result:
        pass


async def by_as_completed(result: Results) -> None:
    async for _ in result.as_completed():
        pass


async def by_all(result: Results) -> None:
    for read in (by_as_completed, by_a_loop, by_await, by_results):
        with suppress(ValueError):
            await read(result)
    await result


READERS = [by_await, by_results, by_a_loop, by_as_completed, by_all]


@pytest.mark.parametrize("read", READERS)
async def test_a_variable_in_a_frame_of_the_traceback_does_not_keep_it(
    read: Callable[[Results], Awaitable[None]],
) -> None:
    async def fail() -> weakref.ref[Results]:
        result = pool.map(math.sqrt, [4.0, 1.0, -1.0])
        with suppress(ValueError):
            await read(result)
        assert result.done()
        return weakref.ref(result)

    async with Pool(1) as pool:
        failed = await fail()
        gc.collect()
        assert failed() is None
        assert await pool.map(math.sqrt, [4.0]) == [2.0]


async def test_neither_does_an_error_that_was_returned_and_raised() -> None:
    async def fail() -> weakref.ref[Results]:
        result = pool.map(math.sqrt, [-1.0], return_exceptions=True)
        (error,) = await result
        with pytest.raises(ValueError, match=REFUSED):
            raise error
        return weakref.ref(result)

    async with Pool(1) as pool:
        failed = await fail()
        gc.collect()
        assert failed() is None


@pytest.mark.parametrize("read", [by_a_loop, by_as_completed])
async def test_the_input_of_an_endless_one_ends_when_its_reader_failed(
    read: Callable[[Results], Awaitable[None]],
) -> None:
    closed = asyncio.Event()

    def endless() -> Iterator[float]:
        try:
            yield -1.0
            while True:
                yield 4.0
        finally:
            closed.set()

    async with Pool(1) as pool:
        with suppress(ValueError):
            await read(pool.map(math.sqrt, endless()))
        gc.collect()
        await closed.wait()


async def test_an_error_is_raised_again_while_the_map_runs() -> None:
    async def error_of(steps: AsyncIterator[float]) -> ValueError:
        with pytest.raises(ValueError, match=REFUSED) as raised:
            await anext(steps)
        return raised.value

    async with Pool(1) as pool:
        result = pool.map(math.sqrt, itertools.chain([-1.0], itertools.repeat(4.0)))
        iterators = [aiter(result), aiter(result), result.as_completed(), result.as_completed()]
        errors = [await error_of(steps) for steps in iterators]
        assert [await anext(steps) for steps in iterators] == [2.0] * 4
        assert len({(type(error), str(error)) for error in errors}) == 1
        assert {type(error.__cause__) for error in errors} == {ValueError}
        result.cancel()


@pytest.mark.parametrize("monitor", [False, True])
async def test_so_is_a_pool_that_could_not_start(*, monitor: bool) -> None:
    async def fail() -> weakref.ref[Pool]:
        pool = Pool(1, initializer=math.sqrt, initargs=(-1.0,), monitor=monitor)
        for _ in range(2):
            with suppress(ValueError):
                await pool.map(math.sqrt, [4.0])
        pool.terminate()
        await pool.join()
        return weakref.ref(pool)

    failed = await fail()
    gc.collect()
    assert failed() is None


async def test_a_map_that_failed_is_freed_though_some_of_its_items_still_run(
    tmp_path: Path,
) -> None:
    async def fail() -> weakref.ref[Results]:
        result = pool.map(blocked.block_or_raise, [1, tmp_path / "go"])
        with suppress(ValueError):
            await result
        return weakref.ref(result)

    async with Pool(1) as pool:
        failed = await fail()
        gc.collect()
        assert failed() is None
        stats = pool.stats()
        assert stats.waiting + stats.running == 1
        (tmp_path / "go").touch()


async def test_a_stream_is_freed_with_the_error_that_ended_its_pool() -> None:
    async def fail() -> weakref.ref[Stream[int]]:
        stream = pool.stream(workload.counting, (1_000_000,))
        assert await anext(stream) == 0
        call = pool.apply(workload.wait_for_ever)
        asyncio.get_running_loop().call_soon(pool.terminate)
        with suppress(PoolTerminatedError):
            await call
        return weakref.ref(stream)

    pool = Pool(1)
    failed = await fail()
    await pool.join()
    gc.collect()
    assert failed() is None


@pytest.mark.parametrize("raised_by", ["loop", "as_completed", "user"])
async def test_a_pool_closes_though_the_error_of_an_endless_map_is_kept(raised_by: str) -> None:
    """Its traceback refers to the iterator, which could still be read."""
    pool = Pool(1)
    inputs = itertools.chain([-1.0], itertools.repeat(4.0))
    result = pool.map(math.sqrt, inputs, return_exceptions=raised_by == "user")
    kept = []

    async def read(steps: AsyncIterator[Any]) -> None:
        async for value in steps:
            if isinstance(value, ValueError):
                raise value

    try:
        await read(result.as_completed() if raised_by == "as_completed" else aiter(result))
    except ValueError as error:
        kept.append(error)
    del result
    pool.close()
    await pool.join()
    assert kept


async def test_the_error_of_an_input_keeps_its_traceback() -> None:
    async def inputs() -> AsyncIterator[float]:
        yield 4.0
        await pool.apply(math.sqrt, (-1.0,))

    async with Pool(1) as pool:
        result = pool.map(math.sqrt, inputs())
        for _ in range(2):
            with pytest.raises(ValueError, match=REFUSED) as raised:
                await result
            assert "inputs" in [entry.name for entry in raised.traceback]
