"""Shared objects (`aiomultiprocess.share`) in the parent: who gets their memory, who holds it.

The queues, the function table and the start of workers call this module when something that they
have pickled contained a shared object, and the engine when it may hold one that its user released.
_transport/shared_objects.py has the memory.

HOLD-1  A chunk, a function and the options of a pool hold what was pickled with them, until the
    chunk is reported, the function is dropped, or the pool ends. A retry task holds what the chunk
    did in which it was lost.
HOLD-2  A task that was not sent has the `Shared` object itself. If that is released meanwhile, the
    memory is held for the tasks that may have it, until they are sent: for all calls and streams
    that wait, and of a map for all its items if it was submitted after the memory was made,
    otherwise only for the items already read from its iterator. A task that runs at the release
    keeps only the memory that was sent with it (HOLD-1), so one that runs for ever keeps no other.
HOLD-3  What goes back unsent to its source from a chunk is held as by HOLD-2.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from .._transport.link import Link
from .._wire import sharing

if TYPE_CHECKING:
    from .chunk import Chunk


def pass_collected(link: Link) -> tuple[Any, ...]:
    """Pass to a worker what was pickled just now; returns it, to be held (HOLD-1).

    OSError if the worker has not received so many descriptors that it can get no more.
    """
    memories = sharing.take()
    pass_to(link, memories)
    return memories


def pass_to(link: Link, memories: tuple[Any, ...]) -> None:
    """Pass memories to a worker, those that it does not have."""
    new = [memory for memory in memories if memory.number not in link.shared]
    try:
        for memory in new:
            memory.pass_to(link)
    finally:
        if new:
            link.pass_shared()


def pass_again(link: Link, number: int) -> None:
    """A worker had no room for a shared object that it was passed (endpoint.py, LARGE-3)."""
    if number in link.shared:  # else it was released meanwhile, or was never meant for this worker
        link.shared.discard(number)
        memory = sharing.live.get(number)
        if memory is not None:  # else it is of a parent of this worker: the next task passes it
            with contextlib.suppress(OSError, RuntimeError):  # the same
                pass_to(link, (memory,))


def pickle_for(link: Link, held: list[tuple[Any, ...]]) -> Callable[[Callable[[], bytes]], bytes]:
    """How the start arguments of a worker are pickled: what they share is passed, and held."""

    def pickled_by(dump: Callable[[], bytes]) -> bytes:
        try:
            with sharing.permitted():
                pickled = dump()
        except BaseException:
            sharing.take()
            raise
        if sharing.collected:
            held[:] = [pass_collected(link)]
        return pickled

    return pickled_by


def note_fork(link: Link, held: list[tuple[Any, ...]], *, holds: bool) -> None:
    """A worker was forked: it has all that this process shares (OBJECT-4).

    `holds`: its start arguments, which were not pickled, may hold any of it, and so does the pool.
    """
    memories = tuple(sharing.live.values())
    for memory in memories:
        memory.inherited_by(link)
    if holds and not held:
        held.append(memories)


class UnsentTasks(Protocol):
    """What a task source (feed.py) says of its tasks, as far as holding memory needs it."""

    def last_unsent(self, made: float) -> Any:
        """What stands for the last task that was not sent, of those that may have a memory.

        None if there is no such task. `made` is when the memory was made, by the monotonic clock.
        """

    def unsent_until(self, last: Any) -> Any:
        """`last`, or what replaces it, while tasks up to there were not sent; else None."""


class _Held:
    """What is held for one source of tasks."""

    __slots__ = ("to_its_end", "until")

    def __init__(self) -> None:
        #: Memories, each with the last task that it is held for: these never come before others.
        self.until: deque[tuple[Any, Any]] = deque()
        #: Those that any later item of an input may have.
        self.to_its_end: dict[Any, None] = {}

    def add(self, last: Any, memory: Any) -> None:
        if last == math.inf:
            self.to_its_end[memory] = None
        else:
            self.until.append((last, memory))


class Holding:
    """What the tasks of one engine hold of what its user has released (HOLD-2)."""

    def __init__(self) -> None:
        self.sources: dict[UnsentTasks, _Held] = {}

    def hold(self, memory: Any, sources: Iterable[UnsentTasks]) -> None:
        """Hold a memory for the tasks of these sources that were not sent."""
        for source in sources:
            last = source.last_unsent(memory.made)
            if last is not None:
                self.sources.setdefault(source, _Held()).add(last, memory)

    def hold_again(self, chunk: Chunk) -> None:
        """HOLD-3: tasks of a chunk went back to their source."""
        origin = chunk.owner.origin
        if origin is not None:
            for memory in chunk.shared:
                self.hold(memory, [cast("UnsentTasks", origin)])

    def drop_sent(self, source: Any) -> None:
        """Tasks of a source were sent, or given up: drop what is held for none that waits."""
        held = self.sources.get(source)
        if held is None:
            return
        while held.until:
            last, memory = held.until[0]
            last = source.unsent_until(last)
            if last is not None:
                held.until[0] = last, memory
                break
            del held.until[0]
        if held.to_its_end and source.unsent_until(math.inf) is None:
            held.to_its_end.clear()
        if not held.until and not held.to_its_end:
            self.sources.pop(source, None)

    def settled(self, source: Any) -> None:
        """All tasks of a source are settled."""
        self.sources.pop(source, None)
