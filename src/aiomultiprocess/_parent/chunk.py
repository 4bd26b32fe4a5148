"""A chunk: tasks of one owner at one worker, from the frame that carries them to their results.

The queue (queue.py, QUEUE-1) makes a chunk for each frame of tasks that it sends, and marks in it
what the worker reports. When all are reported, or the worker has died, it drops the chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._wire.frames import CorruptHeaderError
from .feed import Handles, TaskOwner

CHUNK_BYTES = 64 << 10  # about what one CHUNK frame carries: one record of a ring (SHM-1)


class Chunk:
    """Tasks of one task source, or one retry task, at one worker."""

    __slots__ = ("_offsets", "done", "first", "handles", "items", "left", "owner", "shared", "size")

    def __init__(
        self,
        owner: TaskOwner,
        handles: Handles,
        items: list[Any],
        first: int,
        size: int,
        shared: tuple[Any, ...] = (),
    ) -> None:
        self.owner = owner
        self.handles = handles
        self.items = items  # kept until all are reported: another worker may have to run them
        self.first = first  # how many tasks the worker was sent before; the id of the chunk
        self.size = size  # bytes that were sent
        self.left = len(handles)  # tasks that are not reported
        self.done: bytearray | None = None  # a byte for each task, once a part was reported
        self.shared = shared  # memories of shared objects that travelled with it (sharing.py)
        self._offsets: dict[Any, int] | None = None  # by handle, once `offset_of` is called

    def report(self, offset: int, count: int) -> None:
        """Mark tasks as reported; CorruptHeaderError if one was before (QUEUE-1, FEED-1)."""
        end, size = offset + count, len(self.handles)
        if self.done is None:
            self.done = bytearray(size)
        done = self.done
        if end > size or done.find(1, offset, end) >= 0:
            raise CorruptHeaderError(f"tasks {offset} to {end} of {size} reported again")
        done[offset:end] = b"\1" * count
        self.left -= count

    def offset_of(self, handle: Any) -> int:
        """The offset of a task by its handle, in constant time after the first call (FEED-4)."""
        if self._offsets is None:
            self._offsets = {handle: at for at, handle in enumerate(self.handles)}
        return self._offsets[handle]

    def unreported(self, start: int, stop: int) -> list[int]:
        """The offsets from `start` to `stop` whose tasks are not reported."""
        return [at for at in range(start, stop) if self.done is None or not self.done[at]]


def settle_each(
    owner: TaskOwner,
    handles: Handles,
    values: list[Any],
    errors: Mapping[int, BaseException],
    size: int,
) -> None:
    """Settle tasks of which those at the offsets in `errors` have failed."""
    for at, handle in enumerate(handles):
        if at in errors:
            owner.fail(handle, errors[at], size)
        else:
            owner.deliver([handle], [values[at]], size)
