"""An impossible argument is refused by its name and its value, with the way out."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import workload
from aiomultiprocess import (
    Pool,
    PoolResult,
    Process,
    ProxyException,
    RoundRobin,
    Worker,
    set_start_method,
)
from aiomultiprocess.core import get_context
from aiomultiprocess.types import QueueID
from support import outcomes

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("G66")]


# -- None, where 0.9.1 took it ---------------------------------------------------------------------


async def test_a_pool_takes_none_for_every_argument_that_0_9_1_gave_a_default() -> None:
    names = ("processes", "initializer", "initargs", "queuecount", "scheduler")
    names += ("loop_initializer", "exception_handler")
    async with Pool(**dict.fromkeys(names)) as pool:  # type: ignore[arg-type]
        assert pool.initargs == ()
        assert await pool.apply(workload.describe, None, None) == ((), {})


async def test_an_initializer_is_called_with_nothing_where_initargs_are_none() -> None:
    async with Pool(1, initializer=workload.initialize_nothing, initargs=None) as pool:
        assert await pool.apply(workload.two) == 2


@pytest.mark.parametrize("kind", [Process, Worker])
async def test_a_process_takes_none_for_every_argument_but_its_target(kind: type[Process]) -> None:
    names = ("group", "name", "args", "kwargs", "daemon")
    names += ("initializer", "initargs", "loop_initializer")
    process = kind(target=workload.two, **dict.fromkeys(names))  # type: ignore[arg-type]
    assert await process == (2 if kind is Worker else None)
    process.close()


# -- values that cannot be -------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "initargs of a pool": (
        lambda: Pool(1, initargs=5),  # type: ignore[arg-type]
        TypeError,
        r"initargs must be a sequence of arguments, not 5: pass \(5,\)",
    ),
    "args of a process": (
        lambda: Process(target=workload.two, args=5),  # type: ignore[arg-type]
        TypeError,
        r"args must be a sequence of arguments, not 5: pass \(5,\)",
    ),
    "kwargs of a process": (
        lambda: Process(target=workload.two, kwargs=5),  # type: ignore[arg-type]
        TypeError,
        "kwargs must be a mapping of names to arguments, not 5",
    ),
    "name of a process": (
        lambda: Process(target=workload.two, name=5),  # type: ignore[arg-type]
        TypeError,
        "name must be a string, not 5",
    ),
    "start method": (
        lambda: set_start_method("foo"),
        ValueError,
        "method must be one of .*spawn.* or None, not 'foo'",
    ),
    "start method of a wrong type": (
        lambda: set_start_method(5),  # type: ignore[arg-type]
        TypeError,
        "method must be the name of a start method or None, not 5",
    ),
    "round robin without processes": (
        lambda: RoundRobin().schedule_task(0, object, (), {}),  # type: ignore[arg-type]
        RuntimeError,
        r"knows no process.*super\(\)\.register_process",
    ),
}


@pytest.mark.spawned
@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_value_is_refused_where_it_is_passed(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()
    assert get_context().get_start_method() == "spawn"


async def test_apply_refuses_what_is_no_sequence_of_arguments_with_the_way_out() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match=r"args must be .* not 5: pass \(5,\) for one argument"):
            await pool.apply(workload.double, 5)  # type: ignore[arg-type]


class Several:
    """As an array of two numbers: it has `__float__`, which refuses."""

    def __float__(self) -> float:
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    def __repr__(self) -> str:
        return "Several()"


async def test_seconds_that_are_several_numbers_are_refused_by_name_and_value() -> None:
    several: Any = Several()
    said = r"must be a number of seconds or None, got Several\(\)"
    with pytest.raises(TypeError, match=r"grace must be .* seconds.*, got Several\(\)"):
        Pool(1, grace=several)
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match=f"task_timeout {said}"):
            await pool.map(workload.double, [1], task_timeout=several)
        pool.close()
        with pytest.raises(TypeError, match=f"timeout {said}"):
            await pool.join(several)


class Generates:
    async def __call__(self, count: int = 3) -> AsyncIterator[int]:
        for number in range(count):
            yield number


async def test_an_object_that_makes_an_async_generator_is_for_streams() -> None:
    async with Pool(1) as pool:
        for func in (Generates(), functools.partial(Generates(), 2)):
            with pytest.raises(TypeError, match=r"async generator function .* `stream`"):
                await pool.apply(func)
        assert [value async for value in pool.stream(Generates())] == [0, 1, 2]
        with pytest.raises(ProxyException, match=r"not generator .* call `stream`"):
            await pool.apply(workload.counted, (3,))


async def test_a_range_that_cannot_be_counted_is_refused_with_the_way_out() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ValueError, match=r"range\(0, 1\d+\) has more items than .* iter\(\)"):
            pool.map(workload.double, range(10**19))
        results = pool.map(workload.double, iter(range(10**19)))
        async for value in results:
            if value == 10:
                break
        results.cancel()


async def test_join_refuses_a_timeout_that_is_no_number() -> None:
    process = Process(target=workload.two)
    process.start()
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None, got '5'"):
        await process.join("5")  # type: ignore[arg-type]
    await process.join(timeout=10)
    process.close()


class Lost(RoundRobin):
    """A scheduler that does not call its base class."""

    def register_process(self, qid: QueueID) -> None:
        pass


async def test_a_scheduler_that_knows_no_process_gets_an_error_with_the_way_out() -> None:
    async with Pool(1, scheduler=Lost()) as pool:
        with pytest.raises(RuntimeError, match=r"super\(\)\.register_process"):
            await pool.apply(workload.two)
        with pytest.raises(RuntimeError, match=r"super\(\)\.register_process"):
            await pool.map(workload.double, [1])


async def test_a_scheduler_of_two_pools_is_named_as_the_mistake() -> None:
    scheduler = RoundRobin()
    async with Pool(2, queuecount=2, scheduler=scheduler) as first:
        async with Pool(2, queuecount=2, scheduler=scheduler) as second:
            with pytest.raises(ValueError, match=r"chose queue 0; .* one pool only"):
                await second.map(workload.double, range(4))
        assert await first.apply(workload.two) == 2


# -- items of starmap ------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("kind", [list, iter])
async def test_an_item_of_starmap_that_is_no_sequence_is_named(kind: Any, queues: int) -> None:
    async with Pool(2, queuecount=queues) as pool:
        found = await outcomes(pool.starmap(workload.describe, kind([(1,), 7, None, (2,)])))
        assert found[::3] == [((1,), {}), ((2,), {})]
        for at, item in ((1, 7), (2, None)):
            text = (
                f"item {at} of the starmap of workload.describe is {item}, not a sequence of "
                f"arguments: pass ({item},) for one argument, or use map"
            )
            assert (type(found[at]), str(found[at])) == (TypeError, text)


async def test_a_type_error_of_the_function_itself_stays_what_it_is() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="takes 1 positional argument"):
            await pool.starmap(workload.double, [(1, 2)])


# -- another thread, another loop ------------------------------------------------------------------


def in_a_thread(call: Callable[[], object]) -> BaseException | None:
    """What the call raises in a thread of its own."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - the test inspects it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


async def wait_for(awaitable: Any) -> Any:
    return await awaitable


async def first_of(results: PoolResult[Any]) -> Any:
    return await anext(aiter(results))


COROUTINES: dict[str, Callable[[Pool, PoolResult[Any]], Coroutine[Any, Any, Any]]] = {
    "apply": lambda pool, results: pool.apply(workload.two),
    "await": lambda pool, results: wait_for(results),
    "results": lambda pool, results: results.results(),
    "async for": lambda pool, results: first_of(results),
    "async with": lambda pool, results: pool.__aenter__(),
}
PLAIN: dict[str, Callable[[Pool], object]] = {
    "map": lambda pool: pool.map(workload.double, [1]),
    "starmap": lambda pool: pool.starmap(workload.double, [(1,)]),
    "close": lambda pool: pool.close(),
    "terminate": lambda pool: pool.terminate(),
}
WAY_OUT = re.compile(r"asyncio\.run_coroutine_threadsafe\(coroutine, loop\)")


@pytest.mark.parametrize("call", PLAIN)
async def test_a_plain_call_from_another_thread_is_refused_with_the_way_out(call: str) -> None:
    async with Pool(1) as pool:
        error = in_a_thread(lambda: PLAIN[call](pool))
        assert isinstance(error, RuntimeError)
        assert WAY_OUT.search(str(error)), error
        assert await pool.apply(workload.two) == 2  # nothing has happened to it


@pytest.mark.row("G79")
@pytest.mark.parametrize("call", COROUTINES)
async def test_a_coroutine_in_the_loop_of_another_thread_is_refused_with_the_ways_out(
    call: str,
) -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, [1, 2])
        error = in_a_thread(lambda: asyncio.run(COROUTINES[call](pool, results)))
        assert isinstance(error, RuntimeError)
        assert WAY_OUT.search(str(error)), error
        assert re.search(r"make one here.*Flask.*one loop that runs in a thread", str(error))
        assert await results == [2, 4]


@pytest.mark.row("G79")
async def test_join_in_the_loop_of_another_thread_is_refused_with_the_ways_out() -> None:
    pool = Pool(1)
    assert await pool.apply(workload.two) == 2
    pool.close()
    error = in_a_thread(lambda: asyncio.run(pool.join()))
    assert isinstance(error, RuntimeError)
    assert WAY_OUT.search(str(error)), error
    await pool.join()


@pytest.mark.parametrize("call", ["map", "starmap"])
def test_a_pool_without_a_loop_names_what_runs_one(call: str) -> None:
    pool = Pool(1)
    with pytest.raises(RuntimeError, match=r"no event loop runs in this thread.*asyncio\.run\(\)"):
        PLAIN[call](pool)
    pool.terminate()


async def test_the_ways_out_for_other_threads_work() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool(1)

    async def doubled(values: list[int]) -> list[int]:
        return await pool.map(workload.double, values)

    def use() -> tuple[int, list[int]]:
        two = asyncio.run_coroutine_threadsafe(pool.apply(workload.two), loop).result(20)
        values = asyncio.run_coroutine_threadsafe(doubled([1, 2]), loop).result(20)
        loop.call_soon_threadsafe(pool.close)
        asyncio.run_coroutine_threadsafe(pool.join(), loop).result(20)
        return two, values

    assert await asyncio.to_thread(use) == (2, [2, 4])
    assert not pool.running


def test_a_pool_may_be_ended_while_its_loop_is_not_running() -> None:
    with asyncio.Runner() as runner:

        async def make() -> Pool:
            pool = Pool(1)
            assert await pool.apply(workload.two) == 2
            return pool

        pool = runner.run(make())
        pool.terminate()
        runner.run(pool.join())
