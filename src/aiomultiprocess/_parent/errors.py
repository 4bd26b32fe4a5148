"""The errors that a caller meets: each names the task, the value and the way out."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, cast

from .. import _accel
from .._arguments import is_iterable, refuse_star
from .._wire import exceptions
from .._wire.exceptions import Failure, Stage, original_of
from .._wire.frames import Kind, Mode, as_bytes
from .._wire.tracebacks import without_our_frames
from ..types import ProxyException, WorkerLostError, describe_error, import_hint, shown
from .chunk import Chunk
from .feed import Handles, TaskOwner

# -- errors that a function did not raise ----------------------------------------------------------


def explain_star(chunk: Chunk, offset: int, errors: dict[int, BaseException]) -> None:
    """Name the items of a starmap that failed because they are no sequences of arguments.

    Only those that failed are looked at, as a look at every item would take long.
    """
    if chunk.owner.mode is not Mode.STAR:
        return
    for at in errors:
        item = chunk.items[offset + at]
        if not is_iterable(item):
            handle = chunk.handles[offset + at]
            errors[at] = refuse_star(chunk.owner.function.label, handle, item)


def explain_item(error: BaseException, source: TaskOwner, handle: Any, item: Any) -> Exception:
    """Say which item it was that could not be sent, and why."""
    which = _item(source, handle)
    if issubclass(type(error), MemoryError):
        return out_of_memory(f"{which} cannot be sent to a worker", error)
    refusal = pickle.PicklingError(
        f"{which} cannot be sent to a worker ({describe_error(error)}); "
        f"pass plain data, not {_shown(source, item)}"
    )
    without_our_frames(error)
    refusal.__cause__ = error
    return refusal


def explain_each(
    kind: int,
    errors: Mapping[int, BaseException | Failure],
    source: TaskOwner,
    handles: Handles,
) -> dict[int, BaseException]:
    """Errors as the callers of their tasks get them."""
    explain: Any = explain_refusal if kind == Kind.REFUSED else _explained
    return {at: explain(error, source, handles[at]) for at, error in errors.items()}


def explain_refusal(error: BaseException, source: TaskOwner, handle: Any) -> Exception:
    """The error of an item, or of its function, that its worker has no memory for."""
    return out_of_memory(f"{_item(source, handle)} could not be received by its worker", error)


def out_of_memory(what: str, error: BaseException) -> MemoryError:
    """The error of an item that some process has no memory for."""
    why = describe_error(original_of(error)).removesuffix(": ")
    refusal = MemoryError(
        f"{what}: there is too little memory for it ({why}). Pass it in parts, or put it into a "
        "file and pass its name"
    )
    refusal.__cause__ = error
    return refusal


def _explained(error: BaseException | Failure, source: TaskOwner, handle: Any) -> Exception:
    """The error of a task that an answer brought, or of an answer that could not be unpickled."""
    kind = type(error)  # isinstance would ask the error, which may do anything
    if kind is Failure:
        return _explain_failure(cast("Failure", error), source, handle)
    if issubclass(kind, ProxyException):
        return cast("ProxyException", error)
    return _explain_result(cast("BaseException", error), source, handle)


def _explain_result(error: BaseException, source: TaskOwner, handle: Any) -> Exception:
    if issubclass(type(error), MemoryError):
        return out_of_memory(f"the result of {_task(source, handle)} could not be received", error)
    proxy = ProxyException(
        f"the result of {_task(source, handle)} could not be unpickled in the parent process "
        f"({describe_error(error)}){import_hint(error)}"
    )
    without_our_frames(error)
    proxy.__cause__ = error
    return proxy


def _explain_failure(failure: Failure, source: TaskOwner, handle: Any) -> ProxyException:
    if failure.stage == Stage.FUNCTION:
        label = source.function.label
        return failure.noted(f"{label} could not be unpickled in a worker {failure.detail}")
    if failure.stage == Stage.ARGUMENT:
        item = _item(source, handle)
        return failure.noted(f"{item} could not be unpickled in a worker {failure.detail}")
    result = f"the result of {_task(source, handle)}"
    if failure.stage == Stage.RESULT:
        message = failure.detail.replace("the result", result, 1)
        return failure.replaced(pickle.PicklingError(message))
    return failure.noted(f"{result} could not be sent to the parent process {failure.detail}")


def explain_loss(
    source: TaskOwner, handle: Any, pid: int | None, exitcode: int | None
) -> WorkerLostError:
    """The error of a task that was started in a worker which then died."""
    return WorkerLostError(_task(source, handle), pid, exitcode)


def _shown(source: TaskOwner, item: Any) -> str:
    if source.mode is not Mode.APPLY:
        return shown(item)
    args, kwargs = item
    values = (*args, *kwargs.values())
    return shown(values[0] if len(values) == 1 else values)


def _item(source: TaskOwner, handle: Any) -> str:
    """How messages name what a task is called with."""
    what = f"item {handle}" if isinstance(handle, int) else "an argument"
    return f"{what} of a call of {source.function.label}"


def _task(source: TaskOwner, handle: Any) -> str:
    """How messages name a task: one of a map by its item, an `apply` by its function."""
    return _item(source, handle) if isinstance(handle, int) else source.function.label


def explain_start(pid: int | None, exitcode: int | None) -> WorkerLostError:
    """The error of a worker that died before it was ready."""
    what = (
        "its start: importing the main module (its code that makes a pool must be below "
        '`if __name__ == "__main__":`), making its loop, then the initializer'
    )
    return WorkerLostError(what, pid, exitcode)


def load_error(payload: Any) -> BaseException | exceptions.Failure:
    """What an item has raised, or MemoryError if that is too large to be had here."""
    try:
        return exceptions.load_answer(as_bytes(payload), _accel.loads)
    except MemoryError as error:
        return MemoryError(
            f"an exception from a worker does not fit into memory ({describe_error(error)})"
        )


#: What ends programs: it passes through callbacks, and the loop with all that is in it may go on.
INTERRUPTS = (KeyboardInterrupt, SystemExit)


def as_exception(error: BaseException, of: str) -> Exception:
    """What is raised where results are awaited, for what code of the user's raised elsewhere.

    What is no Exception would end the loop there, or look like the cancellation of who awaits.
    """
    if isinstance(error, Exception):
        return error
    told = RuntimeError(f"{of} was ended by {type(error).__name__}")
    told.__cause__ = error
    return told
