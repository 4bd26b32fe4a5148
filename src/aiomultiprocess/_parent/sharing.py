"""Shared objects (`aiomultiprocess.share`) in the parent: who gets their memory, who holds it.

The queues, the function table and the start of workers call this module when something that they
have pickled contained a shared object, and the engine when it may hold one that its user released.
_transport/shared_objects.py has the memory.

HOLD-1  A chunk, a function and the options of a pool hold what was pickled with them, until the
    chunk is reported, the function is dropped, or the pool ends. A task that waits holds the
    `Shared` object itself; if that is released meanwhile, each task of an engine that is not
    settled by then holds the memory, as any of them may have it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .._transport.link import Link
from .._wire import sharing
from .calls import CallQueue


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


def pickle_for(link: Link, held: list[tuple[Any, ...]]) -> Callable[[Callable[[], bytes]], bytes]:
    """How the start arguments of a worker are pickled: what they share is passed, and held."""

    def pickled_by(dump: Callable[[], bytes]) -> bytes:
        with sharing.permitted():
            pickled = dump()
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


class Holding:
    """What the tasks of one engine hold of what its user has released (HOLD-1)."""

    def __init__(self) -> None:
        self._held: dict[Any, list[Any]] = {}  # by the source of the tasks

    def hold(self, memory: Any, sources: list[Any]) -> None:
        """Hold a memory for the tasks of these sources."""
        for source in sources:
            if not isinstance(source, CallQueue):
                self._held.setdefault(source, []).append(memory)
                continue
            for call in source.calls_unsettled():
                call.add_done_callback(partial(_drop, memory))  # which holds it

    def settled(self, source: Any) -> None:
        """All tasks of a source are settled."""
        self._held.pop(source, None)


def _drop(memory: object, call: object) -> None:
    """A call that held a memory is done."""
