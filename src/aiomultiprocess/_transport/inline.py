"""The inline transport: frames between a pool and its workers in the same process and loop.

A `flush` schedules the receiver, so nothing is ever handed over within the call that has sent it.
Payloads are copied (LINK-10), and there is no limit to what may be on the way: both ends take their
turns in one loop, so a sender cannot outrun its receiver. link.py is the contract.

LOCAL-1  The receiver's callbacks run in the context in which its `start` was called, as those of a
    descriptor do. Each turn has a copy of it, because an item may run the loop inside its call.
LOCAL-2  Both ends refer to one memory (counter, journal, running items). It needs no release: it is
    there as long as an end is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context, copy_context
from typing import Any, Final

from .._wire.frames import Segment, check_payload
from .endpoint import Endpoint, OpenLinks
from .link import (
    BATCH_BYTES,
    BATCH_FRAMES,
    DEFAULT_LIMITS,
    ChildEnd,
    Limits,
    entries_for,
)
from .shared_page import JOURNAL


class LocalMemory:
    """What would outlive a worker, a `WorkerMemory` (LOCAL-2)."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.started = 0
        self.turn = 0, 0  # as this worker has no loop of its own
        self._journal = bytearray(JOURNAL)
        self._table = [(0, 0)] * entries  # number (0: free) and start time, see shared_page.py

    def mark_started(self, n: int) -> None:
        self.started = n

    def mark_time(self, first: int, since: int) -> None:
        self._table[0] = first, since

    def begin_turn(self, origin: int) -> None:
        self.turn = origin, self.turn[1]

    def end_turn(self, busy: int) -> None:
        self.turn = self.turn[0], busy

    def set_running(self, at: int, number: int, since: int) -> None:
        self._table[at] = number, since

    def keep_running(self, at: int) -> None:
        first, since = self._table[0]
        self._table[at] = first and self.started, since
        self._table[0] = 0, 0

    def clear_running(self, at: int) -> None:
        self._table[at] = 0, 0

    def running(self) -> dict[int, int]:
        (first, since), *rest = self._table
        found = {number: since for number, since in rest if number}
        if 0 < first <= self.started:
            found[self.started] = since
        return found

    @property
    def journal(self) -> memoryview:
        return memoryview(self._journal)


class InlineLink(Endpoint):
    """One end of a channel within a loop, a `Link`."""

    def __init__(self, memory: LocalMemory, links: OpenLinks | None = None) -> None:
        super().__init__(memory, links)
        self.peer: InlineLink | None = None  # None: not opened yet, or this end is closed
        self._outbox: list[tuple[Any, ...]] = []  # frames that are not flushed
        self._arrived: deque[tuple[Any, ...]] = deque()
        self._in_batch = False  # frames were handed over since the last `on_drained`
        self._context: Context | None = None  # None: it does not listen
        self._scheduled: asyncio.Handle | None = None

    def share(self, number: int, fd: int) -> tuple[()]:
        """Nothing is passed: both ends are in the process that has the shared object."""
        return ()

    def pass_shared(self) -> None:
        """Nothing is passed."""

    # Sending

    def send(
        self,
        kind: int,
        *,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        payload: Sequence[Segment] = (),
    ) -> None:
        size = sum(map(len, payload))
        check_payload(size)
        if not self._closed and not self._broken:
            data = b"".join(payload)
            self._outbox.append((kind, flags, count, chunk_id, offset, function, data))

    def flush(self) -> None:
        if self._outbox and self.peer is not None and not self._closed:
            frames, self._outbox = self._outbox, []
            self.peer.arrive(frames)

    def arrive(self, frames: list[tuple[Any, ...]]) -> None:
        """Take what the other end has sent, to hand it over soon."""
        if not self._closed:
            self._arrived += frames
            self._schedule()

    # Receiving

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._context = copy_context()  # LOCAL-1
        self._schedule()

    def _schedule(self) -> None:
        loop, context = self._loop, self._context
        if loop is None or context is None or loop.is_closed():
            return
        if self._arrived and self._scheduled is None:
            self._scheduled = loop.call_soon(self._on_scheduled, context=context.copy())

    def _on_scheduled(self) -> None:
        self._scheduled = None
        self._turn(self._drain)

    def _drain(self) -> bool:
        """Hand over one batch; True if frames are left after it (LINK-4)."""
        room, frames = BATCH_BYTES, BATCH_FRAMES
        while self._arrived and room > 0 and frames > 0 and not self._closed:
            room -= self._hand_over_next()
            frames -= 1
        if self._in_batch and not self._closed:
            if self._on_drained is not None:
                self._on_drained()
            self._in_batch = False
        return bool(self._arrived)

    def _hand_over_next(self) -> int:
        """Hand over the first frame that has arrived; returns the size of its payload."""
        # first: a frame whose handler was interrupted is not handed over twice
        kind, flags, count, chunk_id, offset, function, data = self._arrived.popleft()
        self._in_batch = True
        with memoryview(data) as payload:
            self._handler(kind, flags, count, chunk_id, offset, function, payload)
        return len(data)

    def _drain_all(self) -> None:
        while self._arrived and not self._closed:
            self._hand_over_next()

    # Closing

    def _stop_listening(self) -> None:
        self._context = None
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None

    def _release(self) -> None:
        self.peer = None
        self._outbox.clear()
        self._arrived.clear()


class InlineChildEnd:
    """The worker's side of a channel within a loop, a `ChildEnd`."""

    def __init__(self, parent: InlineLink, memory: LocalMemory) -> None:
        self._parent = parent
        self._memory = memory

    def open(self) -> InlineLink:
        link = InlineLink(self._memory)
        link.peer, self._parent.peer = self._parent, link
        self._parent.flush()  # what was sent before
        return link

    def release(self) -> None:
        """Nothing of this end is the worker's alone."""


class InlineBackend:
    """Makes channels within a loop, a `Backend`."""

    name: Final = "inline"

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits  # without effect: all buffers are copied
        self._links = OpenLinks()

    def create(self, concurrency: int = 1) -> tuple[InlineLink, ChildEnd]:
        memory = LocalMemory(entries_for(concurrency))
        link = InlineLink(memory, self._links)
        return link, InlineChildEnd(link, memory)

    def close(self) -> None:
        self._links.close()
