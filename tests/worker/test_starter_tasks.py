"""The tasks of items: one for each, none left, and made by the loop's own factory (STARTER-1)."""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
import weakref
from typing import Any

import pytest

import starter_support
from aiomultiprocess._pure import tasks as _tasks
from starter_items import MINE, Pause, me
from starter_support import (
    DONE,
    EVER,
    PAUSES,
    Worker,
    comparable,
    no_pause,
    short_pause,
)

loop = starter_support.loop
kind = starter_support.kind
worker = starter_support.worker


# -- tasks of items --------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", PAUSES)
def test_a_task_that_was_kept_is_the_items_own_and_done(worker: Worker, pause: Pause) -> None:
    async def keep(n: int) -> int:
        kept.append(me())
        await pause()
        if n == 2:
            raise ValueError(n)
        return n

    kept: list[asyncio.Task[Any]] = []
    found = worker.outcomes(keep, [1, 2, 3])
    assert len(set(kept)) == 3
    assert [_tasks.outcome(task) for task in kept] == found
    assert [comparable(one) for one in found] == [1, (ValueError, ["2"], None, None), 3]


def test_a_task_known_weakly_ends_with_its_item(worker: Worker) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))

    known: list[weakref.ref[asyncio.Task[Any]]] = []
    worker.outcomes(know, [1, 2, 3])
    assert [one() for one in known] == [None] * 3


def test_a_task_in_a_cycle_is_collected(worker: Worker) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))
        cycle: list[Any] = [me()]
        cycle.append(cycle)

    known: list[weakref.ref[asyncio.Task[Any]]] = []
    worker.outcomes(know, [1, 2, 3])
    gc.collect()
    assert [one() for one in known] == [None] * 3


class MortalError(Exception):
    """One that can be referenced weakly."""


@pytest.mark.parametrize("pause", PAUSES)
def test_nothing_waits_for_the_garbage_collector(worker: Worker, pause: Pause) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))
        await pause()

    async def fail(n: int) -> None:
        await pause()
        raise MortalError(n)

    known: list[weakref.ref[Any]] = []
    gc.collect()
    gc.disable()
    try:
        worker.outcomes(know, [1, 2, 3])
        known += [weakref.ref(error) for _, error in worker.outcomes(fail, [1, 2, 3])]
        worker.loop.run_until_complete(asyncio.sleep(0))
        assert [one() for one in known] == [None] * 6
    finally:
        gc.enable()


def test_quick_items_share_one_task(worker: Worker) -> None:
    async def look(n: int) -> tuple[int, int]:
        async with asyncio.timeout(10):  # noqa: ASYNC100 - which looks at the task
            return id(me()), n

    found = worker.outcomes(look, list(range(100)))
    assert [value[1] for value, _ in found] == list(range(100))
    assert len({value[0] for value, _ in found}) == 1
    assert worker.statuses == [DONE]


def test_between_bursts_there_is_no_task(worker: Worker) -> None:
    def start() -> None:
        for _ in range(3):
            worker.starter.run(0, str, [1], 0, 1, [], EVER)
            seen.append((asyncio.all_tasks(), asyncio.current_task()))
        worker.loop.stop()

    seen: list[Any] = []
    worker.loop.call_soon(start)
    worker.loop.run_forever()
    assert seen == [(set(), None)] * 3


def test_a_suspended_item_is_among_all_tasks(worker: Worker) -> None:
    gate = asyncio.Event()

    async def others(n: int) -> int:
        if n == 3:
            gate.set()
            await short_pause()
        else:
            await gate.wait()
        return len(asyncio.all_tasks())

    assert [value for value, _ in worker.outcomes(others, [1, 2, 3])] == [3, 2, 1]


def test_all_tasks_can_be_gathered(worker: Worker) -> None:
    async def gather(n: int) -> Any:
        if n < 2:
            await gathering
            return n
        worker.loop.call_soon(gathering.set_result, None)
        return set(await asyncio.gather(*(asyncio.all_tasks() - {me()})))

    gathering = worker.loop.create_future()
    assert [value for value, _ in worker.outcomes(gather, [0, 1, 2])] == [0, 1, {0, 1}]


def test_a_suspended_item_can_be_cancelled(worker: Worker) -> None:
    async def wait(n: int) -> None:
        tasks.append(me())
        worker.loop.call_soon(cancel, n)
        await asyncio.sleep(10)

    def cancel(n: int) -> None:
        tasks[n].cancel(f"item {n}")

    tasks: list[asyncio.Task[Any]] = []
    found = [comparable(one) for one in worker.outcomes(wait, [0, 1])]
    assert [(one[0], one[1]) for one in found] == [
        (asyncio.CancelledError, [f"item {n}"]) for n in range(2)
    ]


def test_an_item_is_not_cancelled_by_the_cancellation_of_another(worker: Worker) -> None:
    async def cancel(n: int) -> int:
        if n % 2:
            me().cancel()
        return me().cancelling()

    found = [comparable(one) for one in worker.outcomes(cancel, list(range(6)))]
    assert found[::2] == [0, 0, 0]
    assert [one[0] for one in found[1::2]] == [asyncio.CancelledError] * 3


def test_a_traceback_shows_the_items_code_only(worker: Worker) -> None:
    async def fail(pause: Pause) -> None:
        await pause()
        raise ValueError

    def fail_at_once(pause: Pause) -> None:
        raise ValueError

    for func in (fail, fail_at_once):
        for _, error in worker.outcomes(func, PAUSES):
            assert error is not None
            frames = traceback.extract_tb(error.__traceback__)
            assert [frame.name for frame in frames] == [func.__name__]


# -- task factories --------------------------------------------------------------------------------


class Special(asyncio.Task[Any]):
    """A task that a factory of the user's makes."""


def _special(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return Special(coro, loop=loop, **kwargs)


FACTORIES: list[Any] = [_special]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("pause", PAUSES)
def test_the_loops_task_factory_makes_the_tasks(worker: Worker, factory: Any, pause: Pause) -> None:
    async def item(n: int) -> Any:
        kept.append(me())
        await pause()
        if n == 2:
            raise SystemExit(n)
        return n, isinstance(me(), Special), me() is kept[-1] or pause is not no_pause, MINE.get()

    kept: list[Any] = []
    worker.loop.set_task_factory(factory)
    special = factory is _special
    try:
        found = [comparable(one) for one in worker.outcomes(item, [1, 2, 3])]
        functions = worker.outcomes(str, [1, 2])
    finally:
        worker.loop.set_task_factory(None)
    end = special, True, "nothing"
    assert found == [(1, *end), (SystemExit, ["2"], None, None), (3, *end)]
    assert len(set(kept)) == 3
    assert functions == [("1", None), ("2", None)]


def test_a_factory_that_fails_fails_the_item(worker: Worker) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("factory")

    async def item(n: int) -> None: ...

    worker.loop.set_task_factory(fail)
    try:
        found = worker.outcomes(item, [1, 2])
    finally:
        worker.loop.set_task_factory(None)
    assert [repr(error) for _, error in found] == ["ValueError('factory')"] * 2
