"""Items for test_starter*.py: what user code finds in its task, leaves on it, and returns.

Each is called with a `pause` and returns what it saw. A plain task must see the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import types
import weakref
from collections.abc import Awaitable, Callable, Generator
from typing import Any

Pause = Callable[[], Awaitable[None]]
Behaviour = Callable[[Pause], Any]

INHERITED: contextvars.ContextVar[str] = contextvars.ContextVar("inherited")
MINE: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nothing")

ALL: list[Behaviour] = []


def behaviour(function: Behaviour) -> Behaviour:
    ALL.append(function)
    return function


def me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


# -- what a task finds -----------------------------------------------------------------------------


@behaviour
async def finds_a_task_of_its_own(pause: Pause) -> Any:
    task = me()
    seen = (
        isinstance(task, asyncio.Task),
        task.done(),
        task.cancelling(),
        task in asyncio.all_tasks(),
    )
    await pause()
    return (
        *seen,
        me() is task,
        task.get_loop() is asyncio.get_running_loop(),
        repr(task.cancelled()),
    )


@behaviour
async def finds_itself_in_its_coroutine(pause: Pause) -> Any:
    task = me()
    seen = []
    for _ in range(2):
        coro: Any = task.get_coro()
        names = coro.__name__, coro.__qualname__, coro.cr_code.co_name
        seen.append((names, coro.cr_running, len(task.get_stack()) > 0, "itself_in" in repr(task)))
        await pause()
    return seen


@behaviour
async def finds_inherited_context(pause: Pause) -> Any:
    before = INHERITED.get(), MINE.get()
    MINE.set("set")
    await pause()
    return before, INHERITED.get(), MINE.get()


@behaviour
async def changes_inherited_context(pause: Pause) -> Any:
    before = INHERITED.get()
    INHERITED.set("changed")
    await pause()
    return before, INHERITED.get()


@behaviour
async def resets_its_context(pause: Pause) -> Any:
    token = MINE.set("set")
    await pause()
    MINE.reset(token)
    return MINE.get()


@behaviour
async def reads_the_context_of_its_task(pause: Pause) -> Any:
    MINE.set("set")
    if sys.version_info < (3, 12):
        return MINE.get()
    seen = me().get_context()[MINE]
    await pause()
    return seen, me().get_context()[MINE], MINE not in me().get_context().copy()


@behaviour
def sets_context_in_a_function(pause: Pause) -> Any:
    before = MINE.get()
    MINE.set("set")
    return before, asyncio.current_task() is not None


@behaviour
def sets_context_before_its_coroutine(pause: Pause) -> Any:
    before = MINE.get()
    MINE.set("set")

    async def rest() -> Any:
        await pause()
        return before, MINE.get()

    return rest()


@behaviour
async def is_seen_by_callbacks(pause: Pause) -> Any:
    MINE.set("set")
    seen: list[Any] = []
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: seen.append((MINE.get(), asyncio.current_task())))
    loop.call_soon(done.set_result, None)
    await pause()
    await done
    return seen


# -- what a task leaves behind ---------------------------------------------------------------------


@behaviour
async def names_its_task(pause: Pause) -> Any:
    before = me().get_name() == "mine"
    me().set_name("mine")
    await pause()
    return before, me().get_name()


@behaviour
async def puts_an_attribute_on_its_task(pause: Pause) -> Any:
    task: Any = me()
    before = hasattr(task, "mine")
    task.mine = 1
    await pause()
    return before, task.mine


@behaviour
async def adds_a_callback_to_its_task(pause: Pause) -> Any:
    loop = asyncio.get_running_loop()
    called = loop.create_future()

    def call(task: asyncio.Task[Any]) -> None:
        called.set_result((task.done(), task.exception(), task.result()[0]))

    me().add_done_callback(call)
    await pause()
    return "value", called


@behaviour
async def remembers_its_task_weakly(pause: Pause) -> Any:
    known: weakref.WeakKeyDictionary[Any, str] = KNOWN
    before = known.get(me())
    known[me()] = "known"
    await pause()
    return before, known[me()]


KNOWN: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


@behaviour
async def is_in_a_cycle_with_its_task(pause: Pause) -> Any:
    cycle: list[Any] = [me()]
    cycle.append(cycle)
    await pause()
    return len(cycle)


# -- errors ----------------------------------------------------------------------------------------


class Base(BaseException):
    """Neither an Exception nor one that stops the loop."""


@behaviour
async def raises(pause: Pause) -> Any:
    await pause()
    raise ValueError("raised") from KeyError("cause")


@behaviour
async def raises_a_base_exception(pause: Pause) -> Any:
    await pause()
    raise Base("raised")


@behaviour
async def raises_generator_exit(pause: Pause) -> Any:
    await pause()
    raise GeneratorExit


@behaviour
async def raises_stop_iteration(pause: Pause) -> Any:
    await pause()
    raise StopIteration("value")


@behaviour
async def raises_and_keeps_its_task(pause: Pause) -> Any:
    keep = me()
    await pause()
    raise ValueError(keep.cancelling())


@behaviour
def raises_in_a_function(pause: Pause) -> Any:
    raise ValueError("raised")


# -- what is no coroutine --------------------------------------------------------------------------


class Yields:
    """An awaitable that yields what no loop understands, or does."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __await__(self) -> Generator[Any, Any, Any]:
        sent = []
        for what in self.what:
            sent.append((yield what))  # noqa: PERF401 - no yield in a comprehension
        return sent


@behaviour
async def yields_nothing(pause: Pause) -> Any:
    await pause()
    return await Yields(None, None)


@behaviour
async def yields_nonsense(pause: Pause) -> Any:
    await pause()
    await Yields(42)


@behaviour
async def yields_a_future_by_hand(pause: Pause) -> Any:
    await pause()
    try:
        await Yields(FakeFuture())
    except RuntimeError as error:
        return "yield was used instead of yield from" in str(error)


class FakeFuture:
    _asyncio_future_blocking = False

    def get_loop(self) -> Any:
        return asyncio.get_running_loop()


@behaviour
async def awaits_a_future_of_another_loop(pause: Pause) -> Any:
    other = asyncio.SelectorEventLoop()
    await pause()
    try:
        await other.create_future()
    except RuntimeError as error:
        return "attached to a different loop" in str(error)
    finally:
        other.close()


@behaviour
def returns_a_value(pause: Pause) -> Any:
    return "value"


@behaviour
def returns_an_awaitable(pause: Pause) -> Any:
    return Yields(None)


@behaviour
def returns_a_future(pause: Pause) -> Any:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, "value")
    return future


@behaviour
def returns_a_future_that_is_done(pause: Pause) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result("value")
    return future


@behaviour
def returns_a_task(pause: Pause) -> Any:
    return asyncio.create_task(asyncio.sleep(0, "value"))


@behaviour
@types.coroutine
def is_a_generator_based_coroutine(pause: Pause) -> Generator[Any, Any, Any]:
    yield from pause().__await__()
    return "value", asyncio.current_task() is not None


@behaviour
def returns_a_generator(pause: Pause) -> Any:
    return isinstance((n for n in ""), types.GeneratorType)


class Callables:
    async def method(self, pause: Pause) -> str:
        await pause()
        return "method"

    async def __call__(self, pause: Pause) -> str:
        await pause()
        return "call"


async def _pair(word: str, pause: Pause) -> str:
    await pause()
    return word


ALL += [Callables().method, Callables(), functools.partial(_pair, "partial")]
