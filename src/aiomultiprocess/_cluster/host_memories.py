"""Shared objects (`aiomultiprocess.share`) of a pool over hosts: sent to each host once.

    client: HostMemories --SHARE, once--> host: KeptMemories --descriptor, once--> each process

On one machine the parent passes the descriptor of a memory to its workers
(_transport/shared_objects.py). A host gets the content instead, keeps it in a memory of its own,
and passes the descriptor of that to its processes, which do the same as on one machine.

HOSTMEMORIES-1  The content travels in front of the first frame that needs it, on the same stream.
HOSTMEMORIES-2  A host keeps a memory until its client has released it, or is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .messages import FORGET, SHARE

if TYPE_CHECKING:
    from .._transport.link import Link
    from .stream import FrameStream


class HostMemories:
    """At the client: which shared objects a host has."""

    def __init__(self, stream: FrameStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._numbers: set[int] = set()

    def share(self, number: int, fd: int) -> tuple[HostMemories, ...]:
        """Send a shared object to the host, unless that has it; itself if so. OSError.

        HOSTMEMORIES-1.
        """
        if number in self._numbers:
            return ()
        from .._transport.shared_objects import mapped  # here: few pools need it

        self._stream.send(0, SHARE, chunk_id=number, segments=[mapped(fd)], owned=True)
        self._numbers.add(number)
        return (self,)

    def unshare_soon(self, number: int) -> None:
        """In any thread: let the host drop it."""
        self.call_soon(self._unshare, number)

    def call_soon(self, func: Callable[[int], object], number: int) -> None:
        """Have the loop of the client call a function."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(func, number)

    def _unshare(self, number: int) -> None:
        self._numbers.discard(number)
        self._stream.send(0, FORGET, chunk_id=number)
        self._stream.flush()


class KeptMemories:
    """At a host: the shared objects of its client."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}  # by the numbers of the memories

    def keep(self, number: int, segments: Sequence[Any]) -> None:
        """Put the content of a shared object into a memory. OSError if there is none."""
        from .._transport.shared_objects import store  # here: few pools need it

        (content,) = segments
        self._descriptors[number] = store(memoryview(content))

    def pass_to(self, link: Link, number: int) -> None:
        """Give a shared object to a process. OSError or MemoryError if that cannot be."""
        fd = self._descriptors.get(number, -1)
        if fd < 0:
            raise MemoryError("this host had no room for a shared object")
        link.share(number, fd)
        link.pass_shared()

    def drop(self, number: int) -> None:
        """The client has released it."""
        fd = self._descriptors.pop(number, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """The client is gone (HOSTMEMORIES-2)."""
        for number in list(self._descriptors):
            self.drop(number)
