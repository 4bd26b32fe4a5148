"""The errors that callers get: each names the task, what was wrong and the way out.

The queue (queue.py) calls this module for errors that a task's own code did not raise, the
supervisor (supervisor.py) for a worker that did not start, and sources and routers (sources.py,
routing.py) for what the user's code raised in the parent.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, Protocol, cast

from .. import _accel
from .._arguments import is_iterable, refuse_star
from .._wire import exceptions
from .._wire.exceptions import Failure, Stage, original_of
from .._wire.frames import Kind, Mode, PayloadTooLargeError, as_bytes
from .._wire.serializing import INSTALL, is_installed, opened
from .._wire.tracebacks import without_our_frames
from ..types import (
    IMPORTABLE,
    ProxyException,
    TaskTimeoutError,
    WorkerLostError,
    describe_error,
    import_hint,
    shown,
)
from .chunk import Chunk
from .feed import Handles, TaskOwner

# -- errors that a function did not raise ----------------------------------------------------------


def explain_star(chunk: Chunk, offset: int, errors: dict[int, BaseException]) -> None:
    """Name the items of a starmap that failed because they are no sequences of arguments.

    Only items that failed are checked: checking all of them would be slow.
    """
    if chunk.owner.mode is not Mode.STAR:
        return
    for at in errors:
        item = opened(chunk.items[offset + at])
        if not is_iterable(item):
            handle = chunk.handles[offset + at]
            errors[at] = refuse_star(chunk.owner.function.label, handle, item)


def explain_item(
    error: BaseException, owner: TaskOwner, handle: Any, item: Any, hint: str = ""
) -> Exception:
    """The error of an item that could not be sent: which one it is, and why."""
    which = _item(owner, handle)
    if issubclass(type(error), MemoryError):
        return out_of_memory(f"{which} cannot be sent to a worker", error)
    if type(error) is PayloadTooLargeError:
        return PayloadTooLargeError(f"{which} cannot be sent to a worker: {error}")
    refusal = pickle.PicklingError(
        f"{which} cannot be sent to a worker ({describe_error(error)}); "
        f"pass plain data, not {_shown(owner, opened(item))}{hint}"
    )
    without_our_frames(error)
    refusal.__cause__ = error
    return refusal


def explain_each(
    kind: int,
    errors: Mapping[int, BaseException | Failure],
    owner: TaskOwner,
    handles: Handles,
) -> dict[int, BaseException]:
    """The errors at these offsets, as the callers of their tasks get them."""
    explain: Any = _EXPLAIN.get(kind, _explained)
    return {at: explain(error, owner, handles[at]) for at, error in errors.items()}


def explain_refusal(error: BaseException, owner: TaskOwner, handle: Any) -> Exception:
    """The error of an item for which, or for whose function, its worker has no memory."""
    return out_of_memory(f"{_item(owner, handle)} could not be received by its worker", error)


def _explain_cancelled(
    error: BaseException | Failure, owner: TaskOwner, handle: Any
) -> TaskTimeoutError:
    """The error of a task that its time limit has cancelled, and that ended so."""
    # a cancellation has no stage, whatever a worker writes
    cause = None if type(error) is Failure else cast("BaseException", error)
    return explain_timeout(owner, handle, cause)


_EXPLAIN: dict[int, Any] = {Kind.REFUSED: explain_refusal, Kind.TIMED_OUT: _explain_cancelled}


def out_of_memory(what: str, error: BaseException) -> MemoryError:
    """The error of a step for which a process lacks memory; `what` describes the failed step."""
    why = describe_error(original_of(error)).removesuffix(": ")
    refusal = MemoryError(
        f"{what}: there is too little memory for it ({why}). Pass it in parts, or put it into a "
        "file and pass its name"
    )
    refusal.__cause__ = error
    return refusal


def _explained(error: BaseException | Failure, owner: TaskOwner, handle: Any) -> Exception:
    """The error of a task that a frame brought, or of a result that could not be unpickled."""
    kind = type(error)  # isinstance would run `__class__` of the error, which is the user's code
    if kind is Failure:
        return _explain_failure(cast("Failure", error), owner, handle)
    if issubclass(kind, ProxyException):
        return cast("ProxyException", error)
    return _explain_result(cast("BaseException", error), owner, handle)


def _explain_result(error: BaseException, owner: TaskOwner, handle: Any) -> Exception:
    if issubclass(type(error), MemoryError):
        return out_of_memory(
            f"the result of {task_label(owner, handle)} could not be received", error
        )
    proxy = ProxyException(
        f"the result of {task_label(owner, handle)} could not be unpickled in the parent process "
        f"({describe_error(error)}){import_hint(error)}"
    )
    without_our_frames(error)
    proxy.__cause__ = error
    return proxy


def _explain_failure(failure: Failure, owner: TaskOwner, handle: Any) -> ProxyException:
    if failure.stage in (Stage.FUNCTION, Stage.ARGUMENT):
        of_function = failure.stage == Stage.FUNCTION
        what = owner.function.label if of_function else _item(owner, handle)
        by_value = INSTALL if IMPORTABLE in failure.detail and not is_installed() else ""
        return failure.noted(
            f"{what} could not be unpickled in a worker {failure.detail}{by_value}"
        )
    result = f"the result of {task_label(owner, handle)}"
    if failure.stage == Stage.RESULT:
        message = failure.detail.replace("the result", result, 1)
        return failure.replaced(pickle.PicklingError(message))
    return _explain_unsent(failure, result)


def _explain_unsent(failure: Failure, result: str) -> ProxyException:
    original = failure.original
    if original is not None and issubclass(type(original), MemoryError):
        lack = out_of_memory(f"{result} could not be sent to the parent process", original)
        return failure.replaced(lack)
    return failure.noted(f"{result} could not be sent to the parent process {failure.detail}")


def explain_loss(
    owner: TaskOwner, handle: Any, worker: EndedWorker, why: str = ""
) -> WorkerLostError:
    """The error of a task that was started in a worker which then died; `why`, if that is known."""
    return _lost(task_label(owner, handle), worker, why)


def explain_timeout(
    owner: TaskOwner, handle: Any, cause: BaseException | None = None, *, killed: bool = False
) -> TaskTimeoutError:
    """The error of a task that was over its time limit; `cause` has its traceback in the worker."""
    error = TaskTimeoutError(task_label(owner, handle), owner.options.timeout, killed)
    error.__cause__ = cause
    return error


def _shown(owner: TaskOwner, item: Any) -> str:
    if owner.mode not in (Mode.APPLY, Mode.STREAM):
        return shown(item)
    args, kwargs = item[:2]
    values = (*args, *kwargs.values())
    return shown(values[0] if len(values) == 1 else values)


def _item(owner: TaskOwner, handle: Any) -> str:
    """The name, in messages, of what a task is called with."""
    what = f"item {handle}" if isinstance(handle, int) else "an argument"
    return f"{what} of a call of {owner.function.label}"


def task_label(owner: TaskOwner, handle: Any) -> str:
    """The name of a task in messages: of a map, its item; of an `apply`, its function."""
    return _item(owner, handle) if isinstance(handle, int) else owner.function.label


class EndedWorker(Protocol):
    """What an error says of a worker that has ended."""

    host: str | None

    @property
    def pid(self) -> int | None:
        """Its process id."""

    @property
    def exitcode(self) -> int | None:
        """Its exit code; None: unknown."""

    @property
    def why_ended(self) -> str:
        """A sentence, if more is known than the exit code."""

    @property
    def why_lost(self) -> str:
        """Why its host was lost, if it was."""


def explain_start(worker: EndedWorker) -> WorkerLostError:
    """The error of a worker that died before it was ready."""
    what = (
        "its start: importing the main module (its code that makes a pool must be below "
        '`if __name__ == "__main__":`), making its loop, then the initializer'
    )
    return _lost(what, worker)


def _lost(what: str, worker: EndedWorker, why: str = "") -> WorkerLostError:
    reason = worker.why_lost or None
    error = WorkerLostError(what, worker.pid, worker.exitcode, worker.host, reason)
    why = why or ("" if reason else worker.why_ended)
    if why:
        error.add_note(why)
    return error


def load_error(payload: Any) -> BaseException | exceptions.Failure:
    """The exception in a payload, or MemoryError if it does not fit into memory here."""
    try:
        return exceptions.load_answer(as_bytes(payload), _accel.loads)
    except MemoryError as error:
        return MemoryError(
            f"an exception from a worker does not fit into memory ({describe_error(error)})"
        )


#: Exceptions that end programs. Callbacks let them pass; the loop may run on afterwards.
INTERRUPTS = exceptions.INTERRUPTS


def as_exception(error: BaseException, of: str) -> Exception:
    """The error to raise where results are awaited, for `error` of the user's code elsewhere.

    Any other BaseException would end the loop there, or look like a cancellation of the awaiter.
    """
    if issubclass(type(error), Exception):
        return cast("Exception", error)
    raised = RuntimeError(f"{of} was ended by {type(error).__name__}")
    raised.__cause__ = error
    return raised
