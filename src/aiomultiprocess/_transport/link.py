"""The contract of a transport: how frames get from one event loop to another.

Theory of operation
-------------------
A *link* is one end of a channel between the parent and one worker. A *backend* makes channels. For
each channel it makes the parent's link and a *child end*, which travels to the worker with the
process that starts there and is opened into the worker's link. The two engines use only what this
module declares. `shm`, `pipe` and `inline` implement it, and `_cluster/link.py` for processes of a
host; `select` chooses between the first two, and makes `inline` on request.

`send` puts a frame into the channel. `flush` makes the frames of a batch visible and wakes the
other side if it sleeps. When the channel is full, frames wait in the link's *outbox*: `congested`
becomes true, and `on_room` is called when the outbox is empty again. An engine produces nothing in
between, so `send` neither refuses a frame nor blocks. On the other side the loop wakes and the link
calls its handler once for each frame of a batch, then `on_drained` once: there an engine acts on
the whole batch, and flushes once.

LINK-1  Order. Frames arrive in the order of their `send`, whole and once, whatever their size.
LINK-2  Nothing blocks. `send` and `flush` return at once, also when the channel is full, the peer
    is stopped or dead, or its doorbell is saturated.
LINK-3  Nothing polls. There is no timer, no thread, and no callback while nothing arrives and
    nothing waits for room.
LINK-4  Bounded turns. One callback of the loop hands over at most `BATCH_FRAMES` frames and moves
    about `BATCH_BYTES` bytes each way. The next turn of the loop continues with the rest.
LINK-5  Receiving never waits for sending. With both directions full both sides still drain, so they
    cannot wait for each other in a circle.
LINK-6  The loop's callbacks call `on_room`, `on_drained`, `on_broken` and the handler (`drain_dead`
    calls the handler too); `send` and `flush` never do. Each of the four may call `send`, `flush`
    and `close`.
LINK-7  A link breaks once: when the channel holds what no sound peer writes, or when a callback
    raises, because then a frame was lost and its tasks would hang. A broken link hands over
    nothing, drops what it is given to send, and passes the reason to `on_broken`. Two errors do not
    break it. KeyboardInterrupt and SystemExit pass through the loop, and the link goes on if the
    loop does. A payload that is too large for memory fails alone: the receiver gets a frame that
    says so (frames.py, FRAME-5); at the sender, `send` raises MemoryError and sends nothing of it.
LINK-8  `close` may be called at any moment and any number of times. After it no callback comes, and
    all other calls do nothing.
LINK-9  A worker's death is detected by its process exiting, never by its channel closing. A channel
    whose peer is gone only brings nothing more; `drain_dead` still finds what the peer published.
LINK-10  A frame is what its segments were at the call of `send`. The link keeps segments of bytes
    by reference until they are written. Of other segments it copies what is unwritten when `send`
    returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from .._wire.frames import Handler, Segment

#: LINK-4: how many frames one callback of the loop hands over at most.
BATCH_FRAMES: Final = 64
#: LINK-4: about how many bytes one callback of the loop moves each way at most.
BATCH_BYTES: Final = 1 << 20

#: The most items of one worker whose start times are kept: no others with a limit are started.
MOST_ENTRIES: Final = 1 << 16

Callback = Callable[[], None]


class Limits(NamedTuple):
    """How much memory the segments of a pool may have (segments.py, SEGMENT-5)."""

    total: int | None = None  # bytes; None: a quarter of the memory there is
    workers: int = 1  # among whom it is divided


DEFAULT_LIMITS: Final = Limits()


def entries_for(concurrency: int) -> int:
    """How many entries the table of running items has: one for each suspended item, and the first.

    The table is in the memory of a link (amp_ext/ring.h, shared_page.py).
    """
    return min(concurrency + 1, MOST_ENTRIES)


class StartedCounter(Protocol):
    """Memory of a worker, while its link is open: the started count, and the turn of the loop."""

    @property
    def started(self) -> int:
        """The total that `mark_started` stored last."""

    def mark_started(self, n: int, /) -> None:
        """Store the total `n`, visible to the parent even if the next instruction is a SIGKILL."""

    def mark_time(self, first: int, since: int, /) -> object:
        """Set entry 0: each item from number `first` on began no earlier than `since`.

        The number of the one that runs is `started`.
        """

    def begin_turn(self, origin: int, /) -> object:
        """In the worker: store the first word of the turn of the loop (amp_ext/ring.h)."""

    def end_turn(self, busy: int, /) -> object:
        """In the worker: store the second word of the turn of the loop."""

    @property
    def turn(self) -> tuple[int, int] | None:
        """In the parent: both words; None if the worker has just changed them."""


class RunningItems(StartedCounter, Protocol):
    """The table of running items: which items with a time limit run, and since when.

    A number counts all items of a worker from 1; a time is in nanoseconds of the monotonic clock.
    """

    @property
    def entries(self) -> int:
        """How many entries there are. Entry 0 is of items that run their first steps."""

    def set_running(self, at: int, number: int, since: int, /) -> None:
        """In the worker: fill entry `at`: item `number` runs since `since`."""

    def keep_running(self, at: int, /) -> None:
        """In the worker: move entry 0 to entry `at`, as its item is suspended."""

    def clear_running(self, at: int, /) -> None:
        """In the worker: free an entry, as its item has ended and its result is in the journal."""

    def running(self) -> dict[int, int]:
        """In the parent: the start times of the items in the table, by their numbers.

        An item is never shown as older than it is. The worker may write anything there.
        """


class WorkerMemory(RunningItems, Protocol):
    """The memory of one worker that outlives it: counter, running items, and the journal."""

    @property
    def journal(self) -> memoryview:
        """A new view of the journal's bytes."""


class Link(Protocol):
    """One end of a channel."""

    #: In the parent: the numbers of the shared objects that the worker has.
    shared: set[int]

    @property
    def congested(self) -> bool:
        """True from a `send` that did not fit until the outbox is empty again."""

    @property
    def started(self) -> int:
        """How many items the worker has started; readable after its death, and after `close`."""

    @property
    def counter(self) -> RunningItems:
        """The worker's shared memory: started count, turn of the loop, table of running items."""

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
        """Accept a frame, or raise and send nothing of it.

        ValueError if its payload is over `frames.MAX_PAYLOAD`, MemoryError if there is no memory
        for a copy of it (LINK-10).
        """

    def lend_nothing(self) -> None:
        """From now on send the bytes of views, and lend none (FRAME-6).

        For a process that passes on what it received as views of segments, whatever they had been:
        what is lent arrives as a view, which the codec refuses where its encoder had bytes.
        """

    def share(self, number: int, fd: int, /) -> tuple[Any, ...]:
        """Pass a shared object to the worker, unless it has it.

        Returns what has got it by that, whose `unshare_soon` is to be called when it is released:
        this link, and its host. OSError if that is not possible now (shared_objects.py).
        """

    def pass_shared(self) -> None:
        """Pass to the worker what was shared since the last call, before the frame that needs it.

        OSError if that is not possible now.
        """

    def flush(self) -> None:
        """Make what was sent visible to the other side, and wake it if it sleeps."""

    @property
    def journal(self) -> memoryview:
        """A new view of the worker's journal (_wire/journal.py); release it before `close`."""

    def drain_dead(self) -> None:
        """For the parent of a dead worker: hand over at once all that it published (LINK-9).

        Drops a frame that was not published whole, and does not call `on_drained`.
        """

    def close(self) -> None:
        """Release memory and descriptors, and stop listening (LINK-8)."""

    def abandon(self) -> None:
        """In a forked copy of this process: as `close`, but leave the loop alone."""


class ChildEnd(Protocol):
    """The worker's side of a channel before it is opened; it travels with the process that starts.

    It can be pickled only while a process is being spawned.
    """

    def open(self) -> Link:
        """In the worker, once: make its link."""

    def release(self) -> None:
        """In the parent, after the process has started: close what only the worker needs."""


class Backend(Protocol):
    """Makes the channels of one pool."""

    #: Of the channels that it makes from now on.
    limits: Limits

    @property
    def name(self) -> str:
        """Its name in `Pool(backend=…)`."""

    def create(self, concurrency: int = 1) -> tuple[Link, ChildEnd]:
        """Make a channel for a worker that runs so many items at once.

        OSError if the system refuses memory or descriptors.
        """

    def close(self) -> None:
        """Close every link that is open, and what the links share. Idempotent."""
