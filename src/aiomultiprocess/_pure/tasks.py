"""What both starters of items (`starter`, `amp_ext.starter`) know of `asyncio.Task`.

Called on the loop's thread, from a callback of the running loop.
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
    "leave",
    "outcome",
    "parked",
    "register",
    "traceback_of",
    "unregister",
    "unsendable",
]

#: How `Starter.run` ended: nothing is left, an item raised, an item has become a task, and: the
#: last value is where all are, but would not outlive the process.
DONE: Final = 0
RAISED: Final = 1
SUSPENDED: Final = 2
FULL: Final = 3

#: As the attribute is got, whatever the exception's own attribute methods do.
_TRACEBACK: Final = vars(BaseException)["__traceback__"]

#: A task factory that does what a starter does anyway: None where Python has none.
EAGER_FACTORY: Final[Any] = getattr(asyncio, "eager_task_factory", None)

#: The name that asyncio keeps for the task of an item, until the item sets one.
_UNNAMED: Final = "aiomultiprocess-item"

#: Modules whose frames stand between a task and the item's code.
_OURS: Final = frozenset(
    {__name__, "aiomultiprocess._pure.driver", "amp_ext.driver", "amp_ext.starter"}
)

_Item = TypeVar("_Item", bound="Item")


class _Driver(Awaitable[Any], Protocol):
    """What a task knows of its driver (driver.py)."""

    coro: Coroutine[Any, Any, Any] | None  # the item's, None: the item is a plain function
    number: int  # of the item among all that the worker has started


class Item(asyncio.Task[Any]):
    """The task of an item. It shows the item's own coroutine, and a name of the item's own.

    What it runs is another coroutine, that of `drive`: one task serves many items, as long as they
    finish at once. Both the coroutine and the name are looked up when somebody asks.
    """

    __slots__ = ("_driver",)

    _driver: _Driver

    def get_coro(self) -> Any:
        """The coroutine of the item; that which the task runs, if the item is a function."""
        coro = self._driver.coro
        return asyncio.Task.get_coro(self) if coro is None else coro

    @property
    def _coro(self) -> Any:  # asyncio's `repr`, `get_stack` and `print_stack` read this one
        return self.get_coro()

    @property
    def _fut_waiter(self) -> Any:
        """What the item waits for: while it is in its first step, nothing."""
        waiter = _WAITER.__get__(self)
        return None if waiter is self._driver else waiter

    def get_name(self) -> str:
        """The name that the item has set, or one with the item's number in this worker."""
        name = super().get_name()
        return f"{_UNNAMED}-{self._driver.number}" if name is _UNNAMED else name


_WAITER: Final[Any] = inspect.getattr_static(asyncio.Task, "_fut_waiter")


async def drive(driver: _Driver) -> Any:
    """A real coroutine for a task to run: some task factories and debuggers accept no other."""
    return await driver


def guarded(driver: _Driver) -> Coroutine[Any, Any, Any]:
    """A coroutine that runs the driver's item, and passes for the item's to a task factory."""
    guard: Any = drive(driver)
    coro: Any = driver.coro
    guard.__name__, guard.__qualname__ = coro.__name__, coro.__qualname__
    return guard  # type: ignore[no-any-return]


def driver_of(task: object) -> Any:
    """The driver that runs the item of a task; None if no starter made the task's coroutine."""
    coro: Any = asyncio.Task.get_coro(task) if isinstance(task, asyncio.Task) else None
    is_ours = getattr(coro, "cr_code", None) is drive.__code__
    return coro.cr_await if is_ours else None


def is_made_of(task: object, coro: Coroutine[Any, Any, Any]) -> bool:
    """Whether what a task factory returned is a task that will go on with `coro`.

    TypeError if it is not even a future. The coroutine of a task that is done is never asked for:
    CPython 3.12.0 to 3.12.3 crash if that task was started eagerly.
    """
    if not asyncio.isfuture(task):
        raise TypeError(f"the task factory of the worker's event loop returned {task!r}: no task")
    return isinstance(task, asyncio.Task) and not task.done() and task.get_coro() is coro


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def as_coroutine(called: Any) -> Any:
    """The coroutine of an awaitable that is none: a future, a `types.coroutine`, an `__await__`.

    What is not awaitable comes back as it is: it is a value.
    """
    return _await(called) if inspect.isawaitable(called) else called


def outcome(task: asyncio.Future[Any]) -> tuple[Any, BaseException | None]:
    """Return what a task that is done ended with: `(value, None)` or `(None, exception)`.

    The exception is returned and not raised, also CancelledError, KeyboardInterrupt and SystemExit.
    Its traceback shows the item's code, as that of a plain task would.
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
    BaseException.with_traceback(error, trace)  # an attribute may be frozen
    return None, error


class UnsendableError(pickle.PicklingError):
    """An item has returned what cannot be pickled; its cause says why."""


def unsendable(value: object, error: BaseException) -> BaseException:
    """The error of an item whose value could not be given away because of `error`."""
    if issubclass(type(error), MemoryError):  # which is not the fault of the value's type
        return error
    refusal = UnsendableError(
        f"the result cannot be pickled and sent to the parent process ({describe_error(error)}); "
        f"return plain data, not {shown(value)}"
    )
    refusal.__cause__ = error
    return refusal


def traceback_of(error: BaseException) -> types.TracebackType | None:
    """Its traceback, also of one whose attributes nobody may look at."""
    trace: types.TracebackType | None = _TRACEBACK.__get__(error)
    return trace


def parked(
    kind: type[_Item],
    driver: _Driver,
    coro: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> _Item:
    """Make a task whose first step is behind it: it waits for the gate that `driver` is.

    `coro` is `drive(driver)`. asyncio complains of a task that is dropped before its end: set
    `_log_destroy_pending` to False on one that is kept for a later item.
    """
    if sys.version_info >= (3, 12):
        task = kind(coro, loop=loop, name=_UNNAMED, context=context, eager_start=True)
    else:
        task, step = _captured(kind, coro, loop, context)
        context.run(step)
    task._driver = driver
    return task


def _captured(
    kind: type[_Item],
    coro: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    context: Context,
) -> tuple[_Item, Callable[[], object]]:
    """Make a task, and keep its first step from the loop.

    Python 3.11 has no eager start: a new task hands its step to `loop.call_soon`, for the next
    turn. For that moment an attribute of the loop shadows the method. Nothing else runs within it,
    save other threads, and those may not use `call_soon`.
    """
    steps: list[Callable[[], object]] = []
    own = vars(loop)
    before = own.get("call_soon")
    own["call_soon"] = lambda step, *, context: steps.append(step)
    try:
        task = kind(coro, loop=loop, name=_UNNAMED, context=context)
    finally:
        if before is None:
            del own["call_soon"]
        else:
            own["call_soon"] = before
    return task, steps[0]
