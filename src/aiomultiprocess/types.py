"""The exceptions of this package, and names for types.

Everything imports this module, fresh workers included: it must stay light.
"""

from __future__ import annotations

import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, NamedTuple, NewType, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Context = BaseContext

# What a scheduler gets for a queue: an object that identifies it, and that takes no items.
Queue: TypeAlias = Any

TaskID = NewType("TaskID", int)
QueueID = NewType("QueueID", int)

TracebackStr = str

LoopInitializer = Callable[..., AbstractEventLoop]

# What 0.9.1's queues carried: no more, but programs name the types.
PoolTask: TypeAlias = tuple[TaskID, Callable[..., R], Sequence[T], dict[str, T]] | None
PoolResult: TypeAlias = tuple[TaskID, R | None, TracebackStr | None]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> type:
        """`Unit` of 0.9.1, made when asked for: every worker imports this module."""
        if name != "Unit":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

        class Unit(NamedTuple):
            """The start-up message of 0.9.1's processes; nothing takes it any more."""

            target: Callable[..., Any]
            args: Any
            kwargs: dict[str, Any]
            namespace: Any
            initializer: Callable[..., Any] | None = None
            initargs: Any = ()
            loop_initializer: LoopInitializer | None = None
            runner: Callable[..., Any] | None = None

        Unit.__qualname__ = "Unit"  # so that it pickles
        globals()["Unit"] = Unit
        return Unit


def describe_error(error: BaseException) -> str:
    """Type and text of an exception in one line, whatever it does when it is printed."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:  # noqa: BLE001 - code of the user's, and we are telling of an error already
        return f"{name}, which cannot be printed"


def shown(value: object) -> str:
    """Type and shortened `repr` of a value, whatever it does when it is printed."""
    from reprlib import Repr  # not above: only errors need it

    short = Repr()
    short.maxother = short.maxstring = 80
    name = type(value).__qualname__
    try:
        return f"{name} ({short.repr(value)})"
    except BaseException:  # noqa: BLE001 - as in describe_error
        return name


#: Where a worker finds what is pickled by name. One text, whatever it is that was not found.
IMPORTABLE = (
    "It must be importable in a worker, which is a process of its own: define it at the top level "
    "of a module that workers can import, not in a session (a notebook, `python -c`, stdin), in "
    "the `__main__.py` of `python -m package`, or below `if __name__ == '__main__'`"
)


def import_hint(error: BaseException) -> str:
    """What follows the reason why something could not be unpickled: the way out, if it is known."""
    missing = issubclass(type(error), (AttributeError, ImportError))  # isinstance asks the error
    return f". {IMPORTABLE}" if missing else ""


class ProxyException(Exception):  # noqa: N818 - the name is 0.9.1's
    """What a task raised in a worker process; `str()` is the traceback from there.

    It holds the frames of the user's code. Printed, the error shows it once, and then its notes.
    The error that is raised is an instance of the original's type too, wherever the two can be
    combined, so that `except ValueError` works as if the task had run here. `__cause__` is the
    original exception, where it could be rebuilt in this process.
    """


class WorkerLostError(RuntimeError):
    """A worker process ended while it had work to finish, whose effects may have happened.

    Args:
        task: what it worked on, in words.
        pid: its process id.
        exitcode: its exit code, negative if a signal ended it, or None if that is not known.

    Attributes:
        signal: the signal that ended it, None if it ended by itself or that is not known.
    """

    def __init__(
        self, task: str | None = None, pid: int | None = None, exitcode: int | None = None
    ) -> None:
        super().__init__(task, pid, exitcode)  # so that it pickles
        self.task = task
        self.pid = pid
        self.exitcode = exitcode
        self.signal = _signal_of(exitcode)

    def __str__(self) -> str:
        doing = "" if self.task is None else f" during {self.task}"
        return f"worker process {self.pid} {self._end()}{doing}"

    def _end(self) -> str:
        if self.exitcode is None:
            return "ended, and another part of the program took its exit code,"
        if self.signal is not None:
            return f"was killed by {getattr(self.signal, 'name', f'signal {self.signal}')}"
        return f"exited with code {self.exitcode}"


class PoolTerminatedError(RuntimeError):
    """The pool was terminated before this task could finish."""


def _signal_of(exitcode: int | None) -> signal.Signals | int | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode)
    except ValueError:  # real-time signals have no names
        return -exitcode
