"""What both starters of items (`stepper`, `amp_ext.step`) know of `asyncio.Task`.

Called on the loop's thread, from a callback of the running loop.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
import types
from asyncio.tasks import _enter_task as enter
from asyncio.tasks import _leave_task as leave
from asyncio.tasks import _register_task as register
from asyncio.tasks import _unregister_task as unregister
from collections.abc import Awaitable, Callable
from contextvars import Context
from inspect import isawaitable
from typing import Any, Final, TypeVar

from .types import brief, shown

__all__ = [
    "DONE",
    "FULL",
    "RAISED",
    "SUSPENDED",
    "as_coroutine",
    "enter",
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

_numbers = itertools.count(1)

#: Modules whose frames stand between a task and the item's code.
_OURS: Final = frozenset({__name__, "aiomultiprocess.driver", "amp_ext.driver", "amp_ext.step"})

_Task = TypeVar("_Task", bound=asyncio.Task[Any])


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def as_coroutine(called: Any) -> Any:
    """The coroutine of an awaitable that is none: a future, a `types.coroutine`, an `__await__`.

    What is not awaitable comes back as it is: it is a value.
    """
    return _await(called) if isawaitable(called) else called


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
        f"the result cannot be pickled and sent to the parent process ({brief(error)}); "
        f"return plain data, not {shown(value)}"
    )
    refusal.__cause__ = error
    return refusal


def traceback_of(error: BaseException) -> types.TracebackType | None:
    """Its traceback, also of one whose attributes nobody may look at."""
    trace: types.TracebackType | None = _TRACEBACK.__get__(error)
    return trace


def parked(
    kind: type[_Task], driver: Any, loop: asyncio.AbstractEventLoop, context: Context
) -> _Task:
    """Make a task whose first step is behind it: it waits for the gate that `driver` is.

    It may be dropped without a complaint as long as it has not become the task of an item.
    """
    name = f"aiomultiprocess-item-{next(_numbers)}"
    if sys.version_info >= (3, 12):
        task = kind(driver, loop=loop, name=name, context=context, eager_start=True)
    else:
        task, step = _captured(kind, driver, loop, context, name)
        context.run(step)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def _captured(
    kind: type[_Task],
    driver: Any,
    loop: asyncio.AbstractEventLoop,
    context: Context,
    name: str,
) -> tuple[_Task, Callable[[], object]]:
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
        task = kind(driver, loop=loop, name=name, context=context)
    finally:
        if before is None:
            del own["call_soon"]
        else:
            own["call_soon"] = before
    return task, steps[0]
