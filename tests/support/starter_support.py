"""What the tests of the starter share; modules take its fixtures by `worker = …worker`.

Both starters, on every loop there is here, also in debug mode.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import pytest

import starter_waits  # noqa: F401 (adds its items to those of starter_items)
from aiomultiprocess._pure import starter, tasks
from starter_items import INHERITED

EVER = 1 << 62
DONE, RAISED, SUSPENDED, FULL = starter.DONE, starter.RAISED, starter.SUSPENDED, starter.FULL
COMPILED = find_spec("amp_ext") is not None and find_spec("amp_ext.starter") is not None


async def no_pause() -> None:
    """No pause: the item can finish in its first step."""


async def short_pause() -> None:
    await asyncio.sleep(0)


async def long_pause() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_later(0.001, lambda: future.done() or future.set_result(None))
    await future


PAUSES = [no_pause, short_pause, long_pause]


class Counter:
    """What stands for the shared counter."""

    started = 0

    def mark_started(self, n: int) -> None:
        self.started = n


class Worker:
    """The least that can be a worker engine: starts items, one after another."""

    def __init__(self, kind: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.counter = Counter()
        self.starter = kind(loop, self.counter)
        self.statuses: list[int] = []

    def outcomes(self, func: Any, items: list[Any], mode: int = 0) -> list[Any]:
        """What the items ended with, in order."""
        found: dict[int, tuple[Any, BaseException | None]] = {}
        finished = self.loop.create_future()

        def keep(at: int, outcome: tuple[Any, BaseException | None]) -> None:
            found[at] = outcome
            if len(found) == len(items):
                finished.set_result(None)

        def start(at: int) -> None:
            values: list[Any] = []
            end, status, what = self.starter.run(mode, func, items, at, len(items), values, EVER)
            self.statuses.append(status)
            for offset, value in enumerate(values):
                keep(at + offset, (value, None))
            if status == RAISED:
                keep(end, (None, what))
            elif status == SUSPENDED:
                what.add_done_callback(lambda task: safely(keep_outcome, end, task))
            del what  # which may be an exception, in whose traceback this frame lives on
            if status != DONE:
                self.loop.call_soon(safely, start, end + 1)

        def keep_outcome(at: int, task: asyncio.Task[Any]) -> None:
            keep(at, tasks.outcome(task))

        def safely(call: Callable[..., None], *args: Any) -> None:
            _call_for(finished, call, *args)

        self.loop.call_soon(safely, start, 0)
        self.loop.run_until_complete(finished)
        return self.settled([found.pop(at) for at in range(len(items))])

    def settled(self, outcomes: list[Any]) -> list[Any]:
        """The same, with the result of an awaitable that a value brings in its place."""
        return [(self._settled(value), error) for value, error in outcomes]

    def _settled(self, value: Any) -> Any:
        if isinstance(value, tuple) and value and asyncio.isfuture(value[-1]):
            return *value[:-1], self.loop.run_until_complete(value[-1])
        return value

    def plainly(self, calls: list[tuple[Any, Any]]) -> list[Any]:
        """What calls of functions with items end with as plain tasks."""
        outcomes = []
        for func, item in calls:
            coro = func(item) if iscoroutinefunction(func) else _plain(func, item)
            task = self.loop.create_task(coro)
            self.loop.run_until_complete(asyncio.wait([task]))
            outcomes.append(tasks.outcome(task))
        return self.settled(outcomes)


def _call_for(future: asyncio.Future[None], call: Callable[..., None], *args: Any) -> None:
    """A call that raises is no item's failure, so it ends the wait of its test."""
    try:
        call(*args)
    except BaseException as error:  # noqa: BLE001 - also what stops a loop
        if future.done():
            return
        if isinstance(error, SystemExit | KeyboardInterrupt):  # which no loop would report
            future.set_exception(AssertionError(f"{type(error).__name__} left the starter"))
        else:
            future.set_exception(error)


async def _plain(func: Any, item: Any) -> Any:
    value = func(item)
    return (await value) if isawaitable(value) else value


def comparable(outcome: tuple[Any, BaseException | None]) -> Any:
    """An outcome as something that compares equal to another of its kind."""
    value, error = outcome
    return value if error is None else chain(error)


def chain(error: BaseException | None) -> Any:
    if error is None:
        return None
    args = [re.sub("[0-9a-f]{8,}|(<| by |; reason).*", "...", str(arg)) for arg in error.args]
    return type(error), args, chain(error.__cause__), chain(error.__context__)


def in_loop(worker: Worker, call: Callable[[], Any]) -> Any:
    """What `call` returns as a callback of the running loop."""

    future = worker.loop.create_future()
    worker.loop.call_soon(lambda: future.set_result(call()))
    return worker.loop.run_until_complete(future)


# -- fixtures --------------------------------------------------------------------------------------


LOOPS = ["asyncio", "debug"]
if find_spec("uvloop"):
    import uvloop

    uvloop.new_event_loop().close()  # opens the pipe for signals, which the process then keeps
    LOOPS.append("uvloop")


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop whose exception handler is never called."""
    complaints: list[dict[str, Any]] = []
    if request.param == "uvloop":
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.SelectorEventLoop()
        loop.set_debug(request.param == "debug")
        loop.slow_callback_duration = 10.0
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    asyncio.set_event_loop(loop)
    gc.freeze()  # what other tests have imported is no garbage, and takes long to go over
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert not asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()
    assert not complaints


@pytest.fixture(params=["python", *(["cython"] if COMPILED else [])])
def kind(request: pytest.FixtureRequest) -> Any:
    """The class of starters."""
    if request.param == "python":
        return starter.Starter
    import amp_ext.starter

    amp_ext.starter.share(tasks)  # as `backend` does
    return amp_ext.starter.Starter


@pytest.fixture
def worker(kind: Any, loop: asyncio.AbstractEventLoop) -> Iterator[Worker]:
    """A worker whose items inherit one context variable."""
    context = contextvars.copy_context()
    context.run(INHERITED.set, "inherited")
    worker = context.run(Worker, kind, loop)
    yield worker
    worker.starter.close()
