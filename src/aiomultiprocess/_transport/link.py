"""How frames get from one event loop to another: the contract, and what its two fulfilments share.

Theory of operation
-------------------
A *link* is one end of a channel between the parent and one worker. A *backend* makes channels: for
each, the parent's link and a *child end*, which travels to the worker with the process that starts
there and is opened into the worker's link. The engines know nothing but this page; `shm` and
`pipe` fulfil it (see `backend` for how one is chosen).

`send` puts a frame into the channel, `flush` makes the frames of a batch visible and wakes the
other side if it sleeps. When the channel is full, frames wait in the link's *outbox*, `congested`
becomes true, and `on_room` tells when all of them are under way: an engine stops producing in
between, and nothing is ever refused or blocks. On the other side the loop wakes, and each frame is
handed over as a call of the handler, a batch at a time, with `on_drained` at the end of the batch:
there an engine acts on all it has heard, and flushes once.

LINK-1  Order. Frames arrive in the order of their `send`, whole, once; whatever their size.
LINK-2  Nothing blocks. `send` and `flush` return at once, also when the channel is full, the peer
    is stopped or dead, or its wake-up descriptor is saturated.
LINK-3  Nothing polls. There is no timer, no thread, and no callback while nothing arrives and
    nothing waits for room.
LINK-4  Bounded turns. One callback of the loop hands over at most `BATCH_FRAMES` frames and moves
    about `BATCH_BYTES` bytes each way; what remains is continued in the next turn of the loop.
LINK-5  Receiving never waits for sending: with both directions full, both sides still drain, so
    they cannot wait for each other in a circle.
LINK-6  `on_room`, `on_drained`, `on_broken` and the handler are called from callbacks of the loop
    (the handler from `drain_dead` too), never from inside `send` or `flush`. All of them may call
    `send`, `flush` and `close`.
LINK-7  A link breaks once: when the channel holds what no peer of ours can have written, or when a
    callback raises, since then a frame was lost and a task would hang. It hands over nothing more,
    drops what it is given, and tells `on_broken` why. Not so for KeyboardInterrupt and SystemExit:
    they pass through the loop, and the link goes on if the loop does. Nor for a payload that is too
    large for memory: where it arrives, its frame says so (frames.py, FRAME-5), and where it is
    sent, `send` raises MemoryError and has sent nothing of it.
LINK-8  After `close`, which may be called at any moment and any number of times, no callback comes
    and all other calls do nothing.
LINK-9  Death is told by the process's exit, not by the channel. A peer that has gone only means
    that nothing more arrives; what it had published is still there for `drain_dead`.
LINK-10 A frame is what its segments were at the call of `send`. Segments of bytes are kept by
    reference until they are under way; of others, whatever was not written when `send` returns is
    copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from .._wire.frames import Handler, Segment

#: LINK-4: the most frames handed over in one callback of the loop.
BATCH_FRAMES: Final = 64
#: LINK-4: about the most bytes moved one way in one callback of the loop.
BATCH_BYTES: Final = 1 << 20

Callback = Callable[[], None]


class StartedCounter(Protocol):
    """Where a worker marks how many items it has started, as long as its link is open."""

    @property
    def started(self) -> int:
        """The total that was stored last."""

    def mark_started(self, n: int, /) -> None:
        """Store the total `n`, visible to the parent even if the next instruction is a SIGKILL."""


class WorkerMemory(StartedCounter, Protocol):
    """The memory of one worker that outlives it: the counter, and the journal."""

    @property
    def journal(self) -> memoryview:
        """A new view of the journal's bytes."""


class Link(Protocol):
    """One end of a channel."""

    @property
    def congested(self) -> bool:
        """True from a `send` that did not fit until the outbox is empty again."""

    @property
    def started(self) -> int:
        """What the worker has marked as started; readable after its death, and after `close`."""

    @property
    def counter(self) -> StartedCounter:
        """The object behind `started`, for whoever marks or looks at every item."""

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        on_room: Callback,
        on_broken: Callable[[BaseException], None],
        on_drained: Callback | None = None,
    ) -> None:
        """Begin to receive in `loop`; the worker need not exist yet."""

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
        """Accept a frame. ValueError if its payload is over `frames.MAX_PAYLOAD`, MemoryError if a
        copy that it needs is too much for memory (LINK-10): then nothing was sent."""

    def flush(self) -> None:
        """Let the other side see what was sent, and wake it if it sleeps."""

    @property
    def journal(self) -> memoryview:
        """A new view of the worker's journal, to be released before `close`; see `journal`."""

    def drain_dead(self) -> None:
        """For the parent of a dead worker: hand over, now, all that it had published (LINK-9).

        A frame that it had not published whole is dropped. `on_drained` is not called.
        """

    def close(self) -> None:
        """Give everything back (LINK-8)."""

    def abandon(self) -> None:
        """Give everything back in a forked copy of this process, and leave the loop alone."""


class ChildEnd(Protocol):
    """The worker's side of a channel before it is opened; a part of the process that is started.

    Can be pickled only while a process is being spawned.
    """

    def open(self) -> Link:
        """In the worker, once: its link."""

    def release(self) -> None:
        """In the parent, once the process has started: close what only the worker needs."""


class Backend(Protocol):
    """Makes the channels of one pool."""

    @property
    def name(self) -> str:
        """The name that `Pool(backend=…)` knows it by."""

    def create(self) -> tuple[Link, ChildEnd]:
        """A new channel. OSError if memory or descriptors are refused."""

    def close(self) -> None:
        """Close every link that is still open, and what they share. Idempotent."""
