"""A chunk: tasks of one feed at one worker, from the frame that takes them there to their answers.

The queues (queues.py, Q1 to Q5) make them and hear what becomes of them; this is the account of
one, and how an error that is met on the way is told to the caller.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from .feeds import Feed, Slots
from .frames import CorruptHeaderError, Kind, Mode
from .functions import is_iterable, refuse_star
from .remote import Failure, Stage, original_of, without_our_frames
from .types import ProxyException, WorkerLostError, brief, import_hint, shown

if TYPE_CHECKING:
    from .suspects import Suspect
    from .workers import PoolWorker


class Chunk:
    """Tasks of one feed at one worker, or one suspect."""

    __slots__ = ("_offsets", "done", "feed", "first", "items", "left", "size", "slots")

    def __init__(
        self, feed: Feed | Suspect, slots: Slots, items: list[Any], first: int, size: int
    ) -> None:
        self.feed = feed
        self.slots = slots
        self.items = items  # kept until all are done: another worker may have to run them
        self.first = first  # number of the first one among all tasks the worker was sent
        self.size = size  # bytes that were sent
        self.left = len(slots)
        self.done: bytearray | None = None  # a byte for each, once a part of them was reported
        self._offsets: dict[Any, int] | None = None  # of the slots, once one is asked for

    def report(self, offset: int, count: int) -> None:
        """Mark tasks as reported; a worker that reports one twice is not to be trusted (Q1)."""
        end, size = offset + count, len(self.slots)
        if self.done is None:
            self.done = bytearray(size)
        done = self.done
        if end > size or done.find(1, offset, end) >= 0:
            raise CorruptHeaderError(f"tasks {offset} to {end} of {size} reported again")
        done[offset:end] = b"\1" * count
        self.left -= count

    def offset_of(self, slot: Any) -> int:
        """The offset of a task by its slot, at the cost of one look at a table (feeds.py, J4)."""
        if self._offsets is None:
            self._offsets = {slot: at for at, slot in enumerate(self.slots)}
        return self._offsets[slot]

    def unreported(self, start: int, stop: int) -> list[int]:
        """Offsets in that range whose tasks are not settled."""
        return [at for at in range(start, stop) if self.done is None or not self.done[at]]


def settle_each(
    feed: Feed | Suspect,
    slots: Slots,
    values: list[Any],
    errors: Mapping[int, BaseException],
    size: int,
) -> None:
    """Settle tasks of which some have failed, those at the offsets in `errors`."""
    for at, slot in enumerate(slots):
        if at in errors:
            feed.fail(slot, errors[at])
        else:
            feed.deliver([slot], [values[at]], size)


# -- errors that a function did not raise ----------------------------------------------------------


def explain_star(chunk: Chunk, offset: int, errors: dict[int, BaseException]) -> None:
    """Name the items of a starmap that failed because they are no sequences of arguments.

    Only those that failed are looked at, as a look at every item would take long.
    """
    if chunk.feed.mode is not Mode.STAR:
        return
    for at in errors:
        item = chunk.items[offset + at]
        if not is_iterable(item):
            slot = chunk.slots[offset + at]
            errors[at] = refuse_star(chunk.feed.function.label, slot, item)


def explain_item(error: BaseException, feed: Feed | Suspect, slot: Any, item: Any) -> Exception:
    """Say which item it was that could not be sent, and why."""
    which = _item(feed, slot)
    if issubclass(type(error), MemoryError):
        return out_of_memory(f"{which} cannot be sent to a worker", error)
    refusal = pickle.PicklingError(
        f"{which} cannot be sent to a worker ({brief(error)}); "
        f"pass plain data, not {_shown(feed, item)}"
    )
    without_our_frames(error)
    refusal.__cause__ = error
    return refusal


def explain_each(
    kind: int, errors: Mapping[int, BaseException | Failure], feed: Feed | Suspect, slots: Slots
) -> dict[int, BaseException]:
    """Errors as the callers of their tasks get them."""
    explain: Any = explain_refusal if kind == Kind.REFUSED else _explained
    return {at: explain(error, feed, slots[at]) for at, error in errors.items()}


def explain_refusal(error: BaseException, feed: Feed | Suspect, slot: Any) -> Exception:
    """The error of an item, or of its function, that its worker has no memory for."""
    return out_of_memory(f"{_item(feed, slot)} could not be received by its worker", error)


def out_of_memory(what: str, error: BaseException) -> MemoryError:
    """The error of an item that some process has no memory for."""
    why = brief(original_of(error)).removesuffix(": ")
    refusal = MemoryError(
        f"{what}: there is too little memory for it ({why}). Pass it in parts, or put it into a "
        "file and pass its name"
    )
    refusal.__cause__ = error
    return refusal


def _explained(error: BaseException | Failure, feed: Feed | Suspect, slot: Any) -> Exception:
    """The error of a task that an answer brought, or of an answer that could not be unpickled."""
    kind = type(error)  # isinstance would ask the error, which may do anything
    if kind is Failure:
        return _explain_failure(cast("Failure", error), feed, slot)
    if issubclass(kind, ProxyException):
        return cast("ProxyException", error)
    return _explain_result(cast("BaseException", error), feed, slot)


def _explain_result(error: BaseException, feed: Feed | Suspect, slot: Any) -> Exception:
    if issubclass(type(error), MemoryError):
        return out_of_memory(f"the result of {_task(feed, slot)} could not be received", error)
    proxy = ProxyException(
        f"the result of {_task(feed, slot)} could not be unpickled in the parent process "
        f"({brief(error)}){import_hint(error)}"
    )
    without_our_frames(error)
    proxy.__cause__ = error
    return proxy


def _explain_failure(failure: Failure, feed: Feed | Suspect, slot: Any) -> ProxyException:
    if failure.stage == Stage.FUNCTION:
        label = feed.function.label
        return failure.noted(f"{label} could not be unpickled in a worker {failure.detail}")
    if failure.stage == Stage.ARGUMENT:
        item = _item(feed, slot)
        return failure.noted(f"{item} could not be unpickled in a worker {failure.detail}")
    result = f"the result of {_task(feed, slot)}"
    if failure.stage == Stage.RESULT:
        message = failure.detail.replace("the result", result, 1)
        return failure.replaced(pickle.PicklingError(message))
    return failure.noted(f"{result} could not be sent to the parent process {failure.detail}")


def explain_loss(worker: PoolWorker, feed: Feed | Suspect, slot: Any) -> WorkerLostError:
    """The error of a task that was started in a worker which then died."""
    return WorkerLostError(_task(feed, slot), worker.pid, worker.exitcode)


def _shown(feed: Feed | Suspect, item: Any) -> str:
    if feed.mode is not Mode.APPLY:
        return shown(item)
    args, kwargs = item
    values = (*args, *kwargs.values())
    return shown(values[0] if len(values) == 1 else values)


def _item(feed: Feed | Suspect, slot: Any) -> str:
    """How messages name what a task is called with."""
    what = f"item {slot}" if isinstance(slot, int) else "an argument"
    return f"{what} of a call of {feed.function.label}"


def _task(feed: Feed | Suspect, slot: Any) -> str:
    """How messages name a task: one of a map by its item, an `apply` by its function."""
    return _item(feed, slot) if isinstance(slot, int) else feed.function.label
