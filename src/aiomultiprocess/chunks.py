"""A chunk: tasks of one feed at one worker, from the frame that takes them there to their answers.

The queues (queues.py, Q1 to Q5) make them and hear what becomes of them; this is the account of
one, and how an error that is met on the way is told to the caller.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from .feeds import Feed, Slots
from .frames import CorruptHeaderError, Kind, Mode
from .functions import is_iterable, refuse_star
from .remote import original_of
from .types import ProxyException, WorkerLostError, brief

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
    errors: dict[int, BaseException],
    size: int,
) -> None:
    """Settle tasks of which some have failed, those at the offsets in `errors`."""
    for at, slot in enumerate(slots):
        if at in errors:
            feed.fail(slot, errors[at])
        else:
            feed.deliver([slot], [values[at]], size)


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


def explain_item(error: BaseException, feed: Feed | Suspect, slot: Any) -> Exception:
    """Say which item it was that could not be sent, and why."""
    which = f"{name_of(slot)} of a call of {feed.function.label}"
    if isinstance(error, MemoryError):
        return out_of_memory(f"{which} cannot be sent to a worker", error)
    refusal = pickle.PicklingError(f"{which} cannot be sent to a worker ({brief(error)})")
    refusal.__cause__ = error
    return refusal


def name_of(slot: Any) -> str:
    """What messages call an item: by its number in a map; an `apply` has but one."""
    return f"item {slot}" if isinstance(slot, int) else "an argument"


def out_of_memory(what: str, error: BaseException) -> MemoryError:
    """The error of an item that some process has no memory for."""
    why = brief(original_of(error)).removesuffix(": ")
    refusal = MemoryError(
        f"{what}: there is too little memory for it ({why}). Pass it in parts, or put it into a "
        "file and pass its name"
    )
    refusal.__cause__ = error
    return refusal


def explain_each(
    kind: int, errors: dict[int, BaseException], feed: Feed | Suspect, slots: Slots
) -> dict[int, BaseException]:
    """Errors as their tasks have them; those that are a task's own remain as they are."""
    if kind == Kind.ERROR:
        return errors
    explain = explain_refusal if kind == Kind.REFUSED else explain_result
    return {at: explain(error, feed, slots[at]) for at, error in errors.items()}


def explain_refusal(error: BaseException, feed: Feed | Suspect, slot: Any) -> Exception:
    """The error of an item, or of its function, that its worker has no memory for."""
    which = f"{name_of(slot)} of a call of {feed.function.label}"
    return out_of_memory(f"{which} could not be received by its worker", error)


def explain_result(error: BaseException, feed: Feed | Suspect, slot: Any) -> Exception:
    """The error of a result that arrived and could not be unpickled."""
    if isinstance(error, MemoryError):
        which = f"the result of {name_of(slot)} of a call of {feed.function.label}"
        return out_of_memory(f"{which} could not be received", error)
    proxy = ProxyException(f"the result could not be unpickled ({brief(error)})")
    proxy.__cause__ = error
    return proxy


def explain_loss(worker: PoolWorker, feed: Feed | Suspect) -> WorkerLostError:
    """The error of a task that was started in a worker which then died."""
    return WorkerLostError(feed.function.label, worker.pid, worker.exitcode)
