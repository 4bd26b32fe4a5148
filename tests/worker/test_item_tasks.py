"""Items in workers whose event loop has a task factory; what their tasks show of them."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import types
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import Any

import pytest

from aiomultiprocess import Pool, Worker, WorkerLostError

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


class Special(asyncio.Task[Any]):
    """A task that a factory of the user's makes."""


def strict(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory that wants a real coroutine."""
    if type(coro) is not types.CoroutineType:
        raise TypeError(f"not a coroutine: {coro!r}")
    return Special(coro, loop=loop, **kwargs)


def eager_special(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory that starts its own kind of tasks eagerly."""
    return Special(coro, loop=loop, **{**kwargs, "eager_start": True})


def of_another_kind(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory that returns what is no task of asyncio's, but has what a task has."""
    return TaskLike(asyncio.Task(coro, loop=loop, **kwargs))


class TaskLike(asyncio.Future[Any]):
    """Ends as a task does."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__(loop=task.get_loop())
        self._task = task
        task.add_done_callback(self._end)

    def set_name(self, name: object) -> None: ...

    def cancel(self, msg: object = None) -> bool:
        return self._task.cancel(msg)

    def _end(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            super().cancel()
        elif error := task.exception():
            self.set_exception(error)
        else:
            self.set_result(task.result())


FACTORIES: dict[str, Any] = {"none": None, "strict": strict, "of_another_kind": of_another_kind}
if sys.version_info >= (3, 12):  # by name: asyncio's own cannot be pickled
    FACTORIES |= {"eager": asyncio.eager_task_factory, "eager_special": eager_special}


class MakesLoop:
    """A `loop_initializer` that sets a task factory."""

    def __init__(self, package: str, factory: str) -> None:
        self.package = package
        self.factory = factory

    def __call__(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = importlib.import_module(self.package).new_event_loop()
        loop.set_task_factory(FACTORIES[self.factory])
        return loop


@pytest.fixture(params=LOOPS)
def package(request: pytest.FixtureRequest) -> str:
    """The module that makes the loop of a worker."""
    return str(request.param)


factories = pytest.mark.parametrize("factory", FACTORIES)


def has_coroutine() -> bool:
    task = asyncio.current_task()
    assert task is not None
    return inspect.iscoroutine(task.get_coro()) and bool(repr(task))


def plain(n: int) -> tuple[int, bool]:
    return n, has_coroutine()


async def quick(n: int) -> tuple[int, bool]:
    return n, has_coroutine()


async def suspended(n: int) -> tuple[int, bool]:
    before = has_coroutine()
    await asyncio.sleep(0)
    return n, before and has_coroutine()


async def fails(n: int) -> None:
    await asyncio.sleep(0)
    raise ValueError(n)


async def exits(n: int) -> None:
    sys.exit(n)


async def exits_later(n: int) -> None:
    await asyncio.sleep(0)
    sys.exit(n)


async def waits(n: int) -> None:
    await asyncio.Event().wait()


@pytest.mark.row("G52")
@pytest.mark.row("G73")
@factories
async def test_items_of_all_kinds_run_under_any_task_factory(
    backend: str, package: str, factory: str
) -> None:
    async with Pool(1, loop_initializer=MakesLoop(package, factory)) as pool:
        for func in (plain, quick, suspended):
            assert await pool.map(func, range(50)) == [(n, True) for n in range(50)]
            assert await pool.apply(func, (7,)) == (7, True)
        failed = await asyncio.gather(
            *(pool.apply(fails, (n,)) for n in range(20)), return_exceptions=True
        )
        assert [error.args for error in failed if isinstance(error, ValueError)] == [
            (n,) for n in range(20)
        ]


@pytest.mark.row("G52")
@factories
async def test_an_item_that_exits_fails_alone_under_any_task_factory(
    backend: str, package: str, factory: str
) -> None:
    async with Pool(1, loop_initializer=MakesLoop(package, factory)) as pool:
        [worker] = pool.processes
        for func in (exits, exits_later):
            with pytest.raises(Exception, match="SystemExit: 3"):
                await pool.apply(func, (3,))
        assert await pool.apply(quick, (1,)) == (1, True)
        assert list(pool.processes) == [worker]


@pytest.mark.row("G52")
@factories
async def test_an_item_is_cancelled_under_any_task_factory(
    backend: str, package: str, factory: str
) -> None:
    async with Pool(1, childconcurrency=1, loop_initializer=MakesLoop(package, factory)) as pool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.apply(waits, (1,)), 0.1)
        assert await pool.apply(quick, (1,)) == (1, True)  # the only slot is free again


async def returns_or_dies(n: int) -> int:
    if n == 1:
        os._exit(3)
    return n


@pytest.mark.row("G52")
@pytest.mark.parametrize("factory", sorted(FACTORIES.keys() - {"of_another_kind"}))
async def test_an_item_that_has_finished_outlives_its_worker_under_a_task_factory(
    backend: str, package: str, factory: str
) -> None:
    """As long as its task runs the item's coroutine: WORKER-6 of the worker engine."""
    async with Pool(1, loop_initializer=MakesLoop(package, factory)) as pool:
        result = pool.map(returns_or_dies, [0, 1])
        reader = aiter(result)
        assert await anext(reader) == 0
        with pytest.raises(WorkerLostError):
            await anext(reader)


async def name(n: int) -> str:
    task = asyncio.current_task()
    assert task is not None
    before = task.get_name()
    if n % 2:
        await asyncio.sleep(0)
    assert task.get_name() == before
    return before


def name_of_a_function(n: int) -> str:
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


@pytest.mark.row("G74")
@pytest.mark.parametrize("func", [name, name_of_a_function])
async def test_the_task_of_each_item_has_a_name_of_its_own(
    backend: str, package: str, func: Callable[[int], Any]
) -> None:
    async with Pool(1, loop_initializer=MakesLoop(package, "none")) as pool:
        names = await pool.map(func, range(100))
        names += [await pool.apply(func, (n,)) for n in range(4)]
    assert len(set(names)) == 104


if sys.version_info >= (3, 12):

    async def numbers() -> AsyncIterator[int]:
        for n in range(100):
            yield n

    @pytest.mark.row("G52")
    async def test_a_pool_and_workers_run_where_all_tasks_start_eagerly(backend: str) -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        make_loop = MakesLoop("asyncio", "eager")
        async with Pool(1, loop_initializer=make_loop) as pool:
            for func in (quick, suspended):
                results = [(n, True) for n in range(100)]
                assert await pool.map(func, numbers()) == results
                assert [one async for one in pool.map(func, iter(range(100)))] == results
                calls = [asyncio.create_task(pool.apply(func, (n,))) for n in range(100)]
                assert await asyncio.gather(*calls) == results
                assert await Worker(target=func, args=(7,), loop_initializer=make_loop) == (7, True)
