"""A chunk: tasks of one feed at one worker, from the frame that takes them there to their answers.

The queues (queue.py, QUEUE-1) make them and hear what becomes of them; this is the account of
one, and how an error that is met on the way is told to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._wire.frames import CorruptHeaderError
from .feed import Handles, TaskOwner


class Chunk:
    """Tasks of one feed at one worker, or one suspect."""

    __slots__ = ("_offsets", "done", "first", "handles", "items", "left", "owner", "size")

    def __init__(
        self,
        source: TaskOwner,
        handles: Handles,
        items: list[Any],
        first: int,
        size: int,
    ) -> None:
        self.owner = source
        self.handles = handles
        self.items = items  # kept until all are done: another worker may have to run them
        self.first = first  # number of the first one among all tasks the worker was sent
        self.size = size  # bytes that were sent
        self.left = len(handles)
        self.done: bytearray | None = None  # a byte for each, once a part of them was reported
        self._offsets: dict[Any, int] | None = None  # of the slots, once one is asked for

    def report(self, offset: int, count: int) -> None:
        """Mark tasks as reported; a worker that reports one twice is not to be trusted
        (QUEUE-1)."""
        end, size = offset + count, len(self.handles)
        if self.done is None:
            self.done = bytearray(size)
        done = self.done
        if end > size or done.find(1, offset, end) >= 0:
            raise CorruptHeaderError(f"tasks {offset} to {end} of {size} reported again")
        done[offset:end] = b"\1" * count
        self.left -= count

    def offset_of(self, handle: Any) -> int:
        """The offset of a task by its slot, at the cost of one look at a table (feed.py,
        FEED-4)."""
        if self._offsets is None:
            self._offsets = {handle: at for at, handle in enumerate(self.handles)}
        return self._offsets[handle]

    def unreported(self, start: int, stop: int) -> list[int]:
        """Offsets in that range whose tasks are not settled."""
        return [at for at in range(start, stop) if self.done is None or not self.done[at]]


def settle_each(
    source: TaskOwner,
    handles: Handles,
    values: list[Any],
    errors: Mapping[int, BaseException],
    size: int,
) -> None:
    """Settle tasks of which some have failed, those at the offsets in `errors`."""
    for at, handle in enumerate(handles):
        if at in errors:
            source.fail(handle, errors[at])
        else:
            source.deliver([handle], [values[at]], size)
