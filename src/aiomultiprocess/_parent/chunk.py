"""A chunk: tasks of one feed at one worker, from the frame that takes them there to their answers.

The queues (queues.py, Q1 to Q5) make them and hear what becomes of them; this is the account of
one, and how an error that is met on the way is told to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._wire.frames import CorruptHeaderError
from .feed import Feed, Slots

if TYPE_CHECKING:
    from .retry import Suspect


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
