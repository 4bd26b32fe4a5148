"""What both starters (`starter`, `amp_ext.starter`) and the worker engine do with `asyncio.Task`.

This module has the task of an item (`Item`), the functions that make its coroutine and a task that
waits at its gate (see starter.py), and the outcome of a task. Call them on the loop's thread, in a
callback of the running loop.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
import types
from asyncio.tasks import _enter_task as enter
from asyncio.tasks import _leave_task as leave
from asyncio.tasks import _register_task as register
from asyncio.tasks import _unregister_task as unregister
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol, TypeVar

from ..types import describe_error, shown

__all__ = [
    "DONE",
    "EAGER_FACTORY",
    "FULL",
    "RAISED",
    "SUSPENDED",
    "Item",
    "as_coroutine",
    "drive",
    "enter",
    "guarded",
    "is_made_of",
    "item_coroutine_of",
    "leave",
    "outcome",
    "register",
    "traceback_of",
    "unregister",
    "unsendable",
    "waiting_task",
]

#: How `Starter.run` ended.
DONE: Final = 0  # all items have run, or the time is over
RAISED: Final = 1  # an item raised
SUSPENDED: Final = 2  # an item suspended, and has a task
FULL: Final = 3  # the journal had no room for the last value, which must be sent first (WORKER-6)

#: Reads the attribute without code of the exception's class.
_TRACEBACK: Final = vars(BaseException)["__traceback__"]

#: asyncio's eager task factory, which starters replace; None where Python has none.
EAGER_FACTORY: Final[Any] = getattr(asyncio, "eager_task_factory", None)

#: The name that asyncio keeps for the task of an item, until the item sets one.
_UNNAMED: Final = "aiomultiprocess-item"

#: Modules whose frames are between a task and the item's code in a traceback.
_OURS: Final = frozenset(
    {
        __name__,
        "aiomultiprocess._pure.driver",
        "aiomultiprocess._worker.functions",
        "aiomultiprocess._worker.streams",
        "aiomultiprocess._worker.threads",
        "amp_ext.driver",
        "amp_ext.starter",
    }
)

_Item = TypeVar("_Item", bound="Item")


class _ItemCoroutine(Awaitable[Any], Protocol):
    """What a task reads of its ItemCoroutine (driver.py, amp_ext/driver.pyx)."""

    inner: Coroutine[Any, Any, Any] | None  # the item's coroutine; None: a plain function
    number: int  # of the item, counted over all that this worker started
    marked: bool  # anything was attached to the task (STARTER-1)


class Item(asyncio.Task[Any]):
    """The task of an item. It shows the item's own coroutine, and a name of the item's own.

    The task itself runs another coroutine, that of `drive`, because one task serves many items that
    finish at once. Coroutine and name of the item are looked up on demand. The task notes, in its
    ItemCoroutine, that an item has attached something to it; the starters count references.
    """

    __slots__ = ("_item_coro",)

    _item_coro: _ItemCoroutine

    def set_name(self, value: object) -> None:
        self._item_coro.marked = True  # first: a signal handler may raise in between
        super().set_name(value)

    def add_done_callback(self, fn: Callable[[Any], object], /, **context: Any) -> None:
        self._item_coro.marked = True
        super().add_done_callback(fn, **context)

    def get_coro(self) -> Any:
        """The coroutine of the item; that of the task, if the item is a plain function."""
        coro = self._item_coro.inner
        return asyncio.Task.get_coro(self) if coro is None else coro

    @property
    def _coro(self) -> Any:  # what asyncio's `repr`, `get_stack` and `print_stack` read
        return self.get_coro()

    @property
    def _fut_waiter(self) -> Any:
        """The future that the item waits for; None in its first step."""
        waiter = _WAITER.__get__(self)
        return None if waiter is self._item_coro else waiter

    def get_name(self) -> str:
        """The name that the item has set, or one with the item's number in this worker."""
        name = super().get_name()
        return f"{_UNNAMED}-{self._item_coro.number}" if name is _UNNAMED else name


_WAITER: Final[Any] = inspect.getattr_static(asyncio.Task, "_fut_waiter")


async def drive(item_coro: _ItemCoroutine) -> Any:
    """A real coroutine for a task to run: some task factories and debuggers need one."""
    return await item_coro


def guarded(item_coro: _ItemCoroutine) -> Coroutine[Any, Any, Any]:
    """A coroutine for a task factory: it runs the item, and has the names of its coroutine."""
    guard: Any = drive(item_coro)
    coro: Any = item_coro.inner
    guard.__name__, guard.__qualname__ = coro.__name__, coro.__qualname__
    return guard  # type: ignore[no-any-return]


def item_coroutine_of(task: object) -> Any:
    """The ItemCoroutine that a task runs; None if no starter made the task's coroutine."""
    coro: Any = asyncio.Task.get_coro(task) if isinstance(task, asyncio.Task) else None
    is_ours = getattr(coro, "cr_code", None) is drive.__code__
    return coro.cr_await if is_ours else None


def is_made_of(task: object, coro: Coroutine[Any, Any, Any]) -> bool:
    """Whether what a task factory returned is a task that is not done and runs `coro`.

    TypeError if it is no future. The coroutine of a task that is done is not read: CPython 3.12.0
    to 3.12.3 crash there if that task was started eagerly.
    """
    if not asyncio.isfuture(task):
        raise TypeError(
            f"the task factory of the worker's event loop returned {task!r}; it must return a task"
        )
    return isinstance(task, asyncio.Task) and not task.done() and task.get_coro() is coro


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def as_coroutine(called: Any) -> Any:
    """A coroutine that awaits `called`, or `called` itself if it is not awaitable.

    `called` is no coroutine. Other awaitables are futures, generators of `types.coroutine`, and
    objects with `__await__`.
    """
    return _await(called) if inspect.isawaitable(called) else called


def call_when_done(task: asyncio.Task[Any], callback: Callable[[Any], object]) -> None:
    """Add a callback to the task of a suspended item, without the mark, which says nothing then."""
    if isinstance(task, Item):
        asyncio.Task.add_done_callback(task, callback)
    else:  # by a task factory
        task.add_done_callback(callback)


def outcome(task: asyncio.Future[Any]) -> tuple[Any, BaseException | None]:
    """The outcome of a task that is done: `(value, None)` or `(None, exception)`.

    Raises nothing, also for CancelledError, KeyboardInterrupt and SystemExit. The traceback of the
    exception begins with the item's code, as that of a plain task does.
    """
    try:
        error = task.exception()
    except asyncio.CancelledError as cancelled:
        error = cancelled
    if error is None:
        return task.result(), None
    trace = traceback_of(error)
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OURS:
        trace = trace.tb_next
    BaseException.with_traceback(error, trace)  # its attribute may be read-only
    return None, error


class UnsendableError(pickle.PicklingError):
    """The value that an item returned cannot be pickled; `__cause__` says why."""

    value: object = None


class CarriedStopError(Exception):
    """A plain function raised the StopIteration that is the cause; no coroutine can raise one."""


class UnsentError(MemoryError):
    """There was no memory to pickle the value that an item returned; `__cause__` says so."""


def unsendable(value: object, error: BaseException) -> BaseException:
    """The error of an item whose value could not be pickled because of `error`."""
    if issubclass(type(error), MemoryError):  # the type of the value is not to blame
        lack = UnsentError("there is no memory to send the result")
        lack.__cause__ = error
        return lack
    refusal = UnsendableError(
        f"the result cannot be pickled and sent to the parent process ({describe_error(error)}); "
        f"return plain data, not {_shown(value)}"
    )
    refusal.__cause__ = error
    refusal.value = value
    return refusal


def _shown(value: object) -> str:
    made = issubclass(type(value), (types.GeneratorType, types.AsyncGeneratorType))
    way_out = ", or call `stream`, which gives the values of a generator" if made else ""
    return f"{shown(value)}{way_out}"


def traceback_of(error: BaseException) -> types.TracebackType | None:
    """The traceback of an exception, read without code of its class."""
    trace: types.TracebackType | None = _TRACEBACK.__get__(error)
    return trace


def waiting_task(
    kind: type[_Item],
    item_coro: _ItemCoroutine,
    coro: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> _Item:
    """Make a task that has run its first step: it waits at its gate, which is `item_coro`.

    `coro` is `drive(item_coro)`. asyncio logs an error if a task is dropped before its end: set
    `_log_destroy_pending` to False on a task that is kept for a later item.
    """
    if sys.version_info >= (3, 12):
        task = kind(coro, loop=loop, name=_UNNAMED, context=context, eager_start=True)
    else:
        task, step = _with_first_step(kind, coro, loop, context)
        context.run(step)
    task._item_coro = item_coro
    return task


def _with_first_step(
    kind: type[_Item],
    coro: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> tuple[_Item, Callable[[], object]]:
    """Make a task; returns it and its first step, which the loop does not get.

    Python 3.11 has no eager start: a new task passes its first step to `loop.call_soon`, for the
    next turn. While the task is made, an attribute of the loop shadows that method. Only other
    threads can run meanwhile, and those must not use `call_soon`.
    """
    steps: list[Callable[[], object]] = []
    changed: Any = loop
    before = changed.call_soon
    # not by vars(): after it, CPython 3.11 specializes no load of the loop's attributes any more,
    # which are 17 for each `apply`
    is_method = before == type(changed).call_soon.__get__(loop)
    changed.call_soon = lambda step, *, context: steps.append(step)
    try:
        task = kind(coro, loop=loop, name=_UNNAMED, context=context)
    finally:
        if is_method:
            del changed.call_soon
        else:
            changed.call_soon = before
    return task, steps[0]
