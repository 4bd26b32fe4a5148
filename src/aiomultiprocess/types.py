"""The exceptions of this package, and names for types.

Every worker imports this module at its start: it must import little.
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

# What the queues of 0.9.1 carried. Nothing here uses these types, but programs name them.
PoolTask: TypeAlias = tuple[TaskID, Callable[..., R], Sequence[T], dict[str, T]] | None
PoolResult: TypeAlias = tuple[TaskID, R | None, TracebackStr | None]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> type:
        """`Unit` of 0.9.1, made at its first use: every worker imports this module."""
        if name != "Unit":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

        class Unit(NamedTuple):
            """The start-up message of 0.9.1's processes; nothing uses it now."""

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
    """Type and text of an exception in one line, also if its `__str__` fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - the user's code fails while we report another error
        return f"{type_name(error)}, which cannot be printed"


def type_name(value: object) -> str:
    """The name of the type of `value`, with the classes that it is defined in.

    Read past its metaclass, which may define how attributes are looked up.
    """
    name: str = vars(type)["__qualname__"].__get__(type(value))
    return name


def shown(value: object) -> str:
    """Type and shortened `repr` of a value; the type alone if its `repr` fails."""
    from reprlib import Repr  # not above: only errors need it

    short = Repr()
    short.maxother = short.maxstring = 80
    name = type_name(value)
    try:
        return f"{name} ({short.repr(value)})"
    except BaseException:  # noqa: BLE001 - as in describe_error
        return name


#: Where a worker can find what is pickled by name; the same text for modules, classes, functions.
IMPORTABLE = (
    "It must be importable in a worker, which is a process of its own: define it at the top level "
    "of a module that workers can import, not in a session (a notebook, `python -c`, stdin), in "
    "the `__main__.py` of `python -m package`, or below `if __name__ == '__main__'`"
)


def import_hint(error: BaseException) -> str:
    """The end of a message about a failed unpickling: the way out, or nothing if it is unknown."""
    # not isinstance, which runs `__class__` of the error: the user's code
    missing = issubclass(type(error), (AttributeError, ImportError))
    return f". {IMPORTABLE}" if missing else ""


class ProxyException(Exception):  # noqa: N818 - the name is 0.9.1's
    """An exception that a task raised in a worker process; `str()` is its traceback there.

    The traceback has the frames of the user's code. A printed error shows the traceback once, and
    then its notes. The error is also an instance of the original exception's type, where the two
    can be combined, so that `except ValueError` works as if the task had run here. `__cause__` is
    the original exception, if it could be rebuilt in this process.
    """


class WorkerLostError(RuntimeError):
    """A worker process ended while it had work to finish, whose effects may have happened.

    Args:
        task: what the worker worked on, in words.
        pid: its process id.
        exitcode: its exit code, negative if a signal ended it, or None if that is not known.
        host: of a pool over a dask cluster, the address of the dask worker where it ran.
        reason: why that host was lost, if it was.

    Attributes:
        signal: the signal that ended it; None if no signal did, or if that is not known.
    """

    def __init__(
        self,
        task: str | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        host: str | None = None,
        reason: str | None = None,
    ) -> None:
        more = [] if host is None else [host] if reason is None else [host, reason]
        super().__init__(task, pid, exitcode, *more)  # so it pickles
        self.host = host
        self.reason = reason
        self.task = task
        self.pid = pid
        self.exitcode = exitcode
        self.signal = _signal_of(exitcode)

    def __str__(self) -> str:
        doing = "" if self.task is None else f" during {self.task}"
        where = "" if self.host is None else f" of host {self.host}"
        return f"worker process {self.pid}{where} {self._end()}{doing}"

    def _end(self) -> str:
        if self.reason is not None:
            return f"was lost with its host ({self.reason})"
        if self.pid is None and self.host is not None:
            return "could not be started"
        if self.exitcode is None:
            return "ended, and another part of the program took its exit code,"
        if self.signal is not None:
            return f"was killed by {getattr(self.signal, 'name', f'signal {self.signal}')}"
        return f"exited with code {self.exitcode}"


class Progress(NamedTuple):
    """How far a `map` or `starmap` is.

    Attributes:
        done: how many items have ended, with those that failed; not those that were cancelled.
        failed: how many of them failed.
        total: how many items there are; None while that is unknown, as for an iterator.
    """

    done: int
    failed: int
    total: int | None


class TaskTimeoutError(TimeoutError):
    """A task ran longer than its `task_timeout`; it is not retried.

    When its time is over, a task is cancelled as by `asyncio.timeout`: a value that it returns or
    an exception that it raises stands, and a CancelledError that comes out becomes this error. A
    task that still runs `Pool(grace=...)` seconds later, because it is a plain function, blocks its
    worker's loop or ignores its cancellation, is killed together with its worker. The other tasks
    of that worker then end by WorkerLostError, or run again by their `retries`.

    Its `__cause__` shows where in the worker the task was cancelled; None if its worker died before
    the task ended.

    Args:
        task: the task, in words.
        timeout: its time limit in seconds.
        killed: whether the pool killed the worker, because this task or another one of it had not
            ended within the grace period. False if the task ended by itself, or if its worker died
            of something else meanwhile.
    """

    def __init__(
        self, task: str | None = None, timeout: float | None = None, killed: bool = False
    ) -> None:
        super().__init__(task)  # alone: an OSError takes two arguments for an errno and its text
        self.task = task
        self.timeout = timeout
        self.killed = killed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task, self.timeout, self.killed)

    def __str__(self) -> str:
        limit = "" if self.timeout is None else f" of {self.timeout:g} s"
        ran = f"{self.task or 'a task'} ran longer than its time limit{limit}"
        return f"{ran}, and its worker was killed" if self.killed else ran


class PoolTerminatedError(RuntimeError):
    """The pool was terminated before this task could finish."""


def _signal_of(exitcode: int | None) -> signal.Signals | int | None:
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode)
    except ValueError:  # real-time signals have no names
        return -exitcode
