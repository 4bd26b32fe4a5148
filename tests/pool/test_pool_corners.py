"""Rare calls after which a pool must neither hang nor keep memory."""

import asyncio
import itertools
import operator
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, RoundRobin
from support import outcomes

pytestmark = pytest.mark.usefixtures("backend")


async def finish(pool: Pool) -> None:
    pool.close()
    async with asyncio.timeout(20):
        await pool.join()


@pytest.mark.row("A1")
async def test_items_that_cannot_be_sent_do_not_stop_those_behind_them() -> None:
    pool = Pool(1)
    await pool.apply(workload.two)
    found: list[Any] = []
    results = aiter(pool.map(workload.double, [lambda: 0] * 6 + [7]))
    async with asyncio.timeout(20):
        for _ in range(7):
            try:
                found.append(await anext(results))
            except Exception as error:  # noqa: BLE001 - its type depends on the Python
                found.append(type(error))
    assert found[-1] == 14
    assert len(found) == 7
    await finish(pool)


@pytest.mark.row("A10")
async def test_a_pool_closes_though_an_async_input_was_left_midway() -> None:
    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    pool = Pool(1)
    async for value in pool.map(workload.double, slow()):
        assert value == 2
        break
    await finish(pool)


class Stop(BaseException):
    """A kind of error that `except Exception` does not catch."""


@pytest.mark.row("A10")
@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, Stop])
@pytest.mark.parametrize("length", [3, 3000])  # in the first portion, and in a later one
@pytest.mark.parametrize("asynchronous", [False, True], ids=["generator", "async generator"])
async def test_an_input_that_ends_by_a_base_exception_is_an_error(
    kind: type[BaseException], length: int, asynchronous: bool
) -> None:
    def items() -> Iterator[int]:
        yield from range(length)
        raise kind

    async def async_items() -> AsyncIterator[int]:
        for item in range(length):
            yield item
        raise kind

    pool = Pool(1)
    found = await outcomes(pool.map(workload.double, async_items() if asynchronous else items()))
    assert found[:-1] == [2 * item for item in range(length)]
    with pytest.raises(RuntimeError, match=f"was ended by {kind.__name__}$") as caught:
        raise found[-1]
    assert type(caught.value.__cause__) is kind
    await finish(pool)


@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, Stop])
async def test_a_scheduler_that_fails_fails_its_task_whatever_it_raises(
    kind: type[BaseException],
) -> None:
    class Failing(RoundRobin):
        def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
            if args[0] == 5:
                raise kind
            return super().schedule_task(task_id, func, args, kwargs)

    pool = Pool(2, queuecount=2, scheduler=Failing())
    found = await outcomes(pool.map(workload.double, range(20)))
    expected = kind if kind is LookupError else RuntimeError
    assert type(found.pop(5)) is expected
    assert found == [2 * item for item in range(20) if item != 5]
    await finish(pool)


@pytest.mark.row("A10")
async def test_a_pool_closes_though_an_input_failed_by_an_error_that_refuses_attributes() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise mishaps.FrozenError(1)

    pool = Pool(1)
    jobs = [pool.map(func, items()) for func in (workload.double, workload.identity)]
    for results in jobs:
        assert len(await outcomes(results)) == 21
    endless = pool.map(workload.double, itertools.count())
    async for value in endless:
        assert value == 0
        break
    failing = pool.map(workload.double_sync, items())
    with pytest.raises(mishaps.FrozenError):
        await failing
    await finish(pool)


def names_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def test_an_error_that_is_raised_often_keeps_nothing_of_its_callers() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    async def error_of(call: Callable[[], Any]) -> BaseException:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - whichever
            return error
        raise AssertionError

    async with Pool(1) as pool:
        results = pool.map(workload.double, items())

        async def get() -> None:
            await results

        found = [names_of(await error_of(get)) for _ in range(3)]
        assert found[0] == found[1] == found[2]
        assert found[0][-1] == "items"  # its traceback shows each time where it comes from
    broken = Pool(1, initializer=mishaps.fail_now, initargs=("no database",))
    found = [names_of(await error_of(lambda: broken.apply(workload.two))) for _ in range(4)]
    assert found[1] == found[2] == found[3]
    broken.terminate()
    await broken.join()


async def test_a_caller_that_gives_up_on_a_result_is_forgotten() -> None:
    async with Pool(1) as pool:
        results = aiter(pool.map(workload.wait_for_ever, [0]))
        for _ in range(10):
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(results)
        assert results._result._job._waiters == {}  # type: ignore[attr-defined]


async def test_results_are_waited_for_in_the_loop_of_their_pool() -> None:
    async with Pool(1) as pool:
        results = aiter(pool.map(workload.wait_for_ever, [1]))

        async def read() -> Any:
            return await anext(results)

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(read()))


@pytest.mark.row("A10")
async def test_a_pool_closes_once_the_reader_of_an_endless_input_stops() -> None:
    pool = Pool(1)
    results = pool.map(workload.double, itertools.count())
    async for _ in results:
        pool.close()
        break
    await finish(pool)
    with pytest.raises(RuntimeError, match="no further"):
        await results


async def test_a_builtin_method_is_as_its_object_is_at_the_call() -> None:
    table = {1: "old"}
    look_up = table.get
    async with Pool(1) as pool:
        assert await pool.map(look_up, [1]) == ["old"]
        table[1] = "new"
        assert await pool.map(look_up, [1]) == ["new"]
        assert await pool.map(operator.neg, [1]) == [-1]


async def test_items_that_a_scheduler_refuses_do_not_stop_those_behind_them() -> None:
    class Picky(RoundRobin):
        def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
            if args[0] < 5:
                raise LookupError("not this one")
            return super().schedule_task(task_id, func, args, kwargs)

    pool = Pool(1, scheduler=Picky())
    with pytest.raises(LookupError):
        await pool.map(workload.double, iter(range(50)))
    await finish(pool)


async def test_an_apply_whose_arguments_cannot_be_read_leaves_nothing_open() -> None:
    def arguments() -> Iterator[int]:
        raise LookupError("no arguments")
        yield 1

    pool = Pool(1)
    with suppress(LookupError):
        await pool.apply(workload.double, arguments())
    await finish(pool)


def run_the_loop() -> None:
    asyncio.get_event_loop().run_until_complete(asyncio.sleep(0.05))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_an_initializer_may_run_the_loop() -> None:
    async with Pool(1, initializer=run_the_loop) as pool:
        assert await pool.map(workload.double, range(5)) == [0, 2, 4, 6, 8]
