"""What the task of an item shows of the item: its coroutine and its name (STARTER-8)."""

from __future__ import annotations

import asyncio
import inspect
import io
import types
from typing import Any

import pytest

import starter_support
from starter_items import Pause, me
from starter_support import DONE, PAUSES, Worker, no_pause, short_pause

loop = starter_support.loop
kind = starter_support.kind
worker = starter_support.worker


def shown() -> Any:
    """What the current task shows of its coroutine."""
    coro: Any = me().get_coro()
    stack = io.StringIO()
    me().print_stack(file=stack)
    return (
        inspect.iscoroutine(coro),
        type(coro) is types.CoroutineType,
        asyncio.iscoroutine(coro),
        inspect.getcoroutinestate(coro),
        coro.cr_code.co_filename == coro.cr_frame.f_code.co_filename == __file__,
        coro.__qualname__,
        "shows_itself" in stack.getvalue(),
        "wait_for" in repr(me()),
        me()._coro is coro,  # type: ignore[attr-defined]
    )


@pytest.mark.row("G73")
def test_the_coroutine_of_a_task_is_the_items_own(worker: Worker) -> None:
    async def shows_itself(pause: Pause) -> Any:
        before = shown()
        await pause()
        return before == shown(), before

    qualname = shows_itself.__qualname__
    seen = True, True, True, inspect.CORO_RUNNING, True, qualname, True, False, True
    assert worker.outcomes(shows_itself, PAUSES) == [((True, seen), None)] * 3


@pytest.mark.row("G73")
def test_other_tasks_see_the_items_coroutine_while_it_waits(worker: Worker) -> None:
    async def waits(n: int) -> Any:
        if n == 0:
            await gate.wait()
            return None
        [other] = asyncio.all_tasks() - {me()}
        coro: Any = other.get_coro()
        gate.set()
        [frame] = other.get_stack()
        return inspect.getcoroutinestate(coro), coro.cr_code is frame.f_code is waits.__code__

    gate = asyncio.Event()
    found = worker.outcomes(waits, [0, 1])
    assert found == [(None, None), ((inspect.CORO_SUSPENDED, True), None)]


@pytest.mark.row("G73")
def test_the_task_of_a_plain_function_has_a_coroutine_too(worker: Worker) -> None:
    def look(n: int) -> Any:
        coro: Any = me().get_coro()
        return type(coro) is types.CoroutineType, coro.cr_frame is not None, bool(repr(me()))

    assert worker.outcomes(look, [1, 2]) == [((True, True, True), None)] * 2
    assert worker.statuses == [DONE]


@pytest.mark.row("G73")
def test_a_coroutine_that_a_function_keeps_serves_no_other_item(worker: Worker) -> None:
    def keep(n: int) -> None:
        kept.append(me().get_coro())

    kept: list[Any] = []
    worker.outcomes(keep, [1, 2, 3])
    assert len({id(coro) for coro in kept}) == 3
    assert [coro.cr_frame for coro in kept] == [None] * 3  # it has ended with its item


@pytest.mark.row("G74")
def test_each_item_has_a_name_of_its_own(worker: Worker) -> None:
    def name_of_a_function(n: int) -> str:
        return me().get_name()

    async def name(n: int) -> str:
        before = me().get_name()
        await (no_pause if n % 3 else short_pause)()
        assert me().get_name() == before
        assert repr(before) in repr(me())
        return before

    found = worker.outcomes(name_of_a_function, list(range(100)))
    assert worker.statuses == [DONE]
    found += worker.outcomes(name, list(range(100)))
    assert len({value for value, _ in found}) == 200


@pytest.mark.row("G74")
def test_a_task_that_is_kept_keeps_its_name(worker: Worker) -> None:
    async def name(n: int) -> str:
        kept.append(me())
        if n == 2:
            me().set_name("two")
        return me().get_name()

    kept: list[asyncio.Task[Any]] = []
    found = worker.outcomes(name, [1, 2, 3])
    assert [value for value, _ in found] == [task.get_name() for task in kept]
    assert found[1][0] == "two"
    assert len({value for value, _ in found}) == 3


# -- task factories --------------------------------------------------------------------------------


class Special(asyncio.Task[Any]):
    """A task that a factory of the user's makes."""


def strict(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory that wants a real coroutine."""
    if type(coro) is not types.CoroutineType or not inspect.iscoroutine(coro):
        raise TypeError(f"not a coroutine: {coro!r}")
    if inspect.getcoroutinestate(coro) != inspect.CORO_CREATED:
        raise TypeError(f"not new: {coro!r}")
    names_given.append(coro.__qualname__)
    return Special(coro, loop=loop, **kwargs)


def wrapping(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory whose tasks run the coroutine within another, as tracers do."""

    async def wrapper() -> Any:
        return await coro

    return asyncio.Task(wrapper(), loop=loop, **kwargs)


class Future(asyncio.Future[Any]):
    """With what `create_task` calls on what a factory returns, on some Pythons."""

    def set_name(self, name: object) -> None: ...


def through_a_future(loop: Any, coro: Any, **kwargs: Any) -> Any:
    """A factory that returns a future, and no task."""

    def copy(task: asyncio.Task[Any]) -> None:
        error = task.exception()
        if error is None:
            future.set_result(task.result())
        else:
            future.set_exception(error)

    future = Future(loop=loop)
    running.append(asyncio.Task(coro, loop=loop, **kwargs))
    running[-1].add_done_callback(copy)
    return future


names_given: list[str] = []
running: list[asyncio.Task[Any]] = []
FACTORIES: list[Any] = [strict, wrapping, through_a_future]


@pytest.mark.row("G73")
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_task_factory_gets_a_real_coroutine(worker: Worker, factory: Any, pause: Pause) -> None:
    async def item(n: int) -> Any:
        await pause()
        if n == 2:
            raise ValueError(n)
        return n, inspect.iscoroutine(me().get_coro())

    names_given.clear()
    worker.loop.set_task_factory(factory)
    try:
        found = worker.outcomes(item, [1, 2, 3])
    finally:
        worker.loop.set_task_factory(None)
        running.clear()
    assert found[::2] == [((1, True), None), ((3, True), None)]
    assert repr(found[1][1]) == "ValueError(2)"
    if factory is strict:
        assert names_given == [item.__qualname__] * 3


@pytest.mark.row("G73")
def test_a_factory_that_returns_no_task_fails_the_item(worker: Worker) -> None:
    class NoTask:
        def set_name(self, name: object) -> None: ...

    def factory(*args: Any, **kwargs: Any) -> Any:
        return NoTask()

    async def item(n: int) -> None: ...

    worker.loop.set_task_factory(factory)
    try:
        [(_, error)] = worker.outcomes(item, [1])
    finally:
        worker.loop.set_task_factory(None)
    assert isinstance(error, TypeError)
    assert "task factory" in str(error)


def test_a_second_starter_of_a_worker_goes_on_counting_and_naming(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    async def name(pause: Pause) -> str:
        await pause()
        return str(me().get_name())

    worker = Worker(kind, loop)
    first = worker.outcomes(name, PAUSES)
    worker.starter.close()
    worker.starter = kind(loop, worker.counter, None, worker.counter.started)
    names = [value for value, _ in first + worker.outcomes(name, PAUSES)]
    assert names == [f"aiomultiprocess-item-{number}" for number in range(1, 7)]
    assert worker.counter.started == 6
    worker.starter.close()
