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

T1  Order. Frames arrive in the order of their `send`, whole, once; whatever their size.
T2  Nothing blocks. `send` and `flush` return at once, also when the channel is full, the peer is
    stopped or dead, or its wake-up descriptor is saturated.
T3  Nothing polls. There is no timer, no thread, and no callback while nothing arrives and nothing
    waits for room.
T4  Bounded turns. One callback of the loop hands over at most `BATCH_FRAMES` frames and moves
    about `BATCH_BYTES` bytes each way; what remains is continued in the next turn of the loop.
T5  Receiving never waits for sending: with both directions full, both sides still drain, so
    they cannot wait for each other in a circle.
T6  `on_room`, `on_drained`, `on_broken` and the handler are called from callbacks of the loop (the
    handler from `drain_dead` too), never from inside `send` or `flush`. All of them may call
    `send`, `flush` and `close`.
T7  A link breaks once: when the channel holds what no peer of ours can have written, or when a
    callback raises, since then a frame was lost and a task would hang. It hands over nothing more,
    drops what it is given, and tells `on_broken` why. Not so for KeyboardInterrupt and SystemExit:
    they pass through the loop, and the link goes on if the loop does. Nor for a payload that is too
    large for memory: where it arrives, its frame says so (frames.py, F5), and where it is sent,
    `send` raises MemoryError and has sent nothing of it.
T8  After `close`, which may be called at any moment and any number of times, no callback comes and
    all other calls do nothing.
T9  Death is told by the process's exit, not by the channel. A peer that has gone only means that
    nothing more arrives; what it had published is still there for `drain_dead`.
T10 A frame is what its segments were at the call of `send`. Segments of bytes are kept by reference
    until they are under way; of others, whatever was not written when `send` returns is copied.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import context, reduction
from typing import Any, Final, Protocol

from .frames import Handler, Segment

#: T4: the most frames handed over in one callback of the loop.
BATCH_FRAMES: Final = 64
#: T4: about the most bytes moved one way in one callback of the loop.
BATCH_BYTES: Final = 1 << 20

#: How a sandbox, or a kernel that is too old, refuses a system call. Where the call is a matter of
#: speed or of caution there is a way without; that it is refused says nothing of what it was for.
REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
)

Callback = Callable[[], None]


class Counter(Protocol):
    """Where a worker marks how many items it has started, as long as the link is open."""

    @property
    def started(self) -> int:
        """The total that was stored last."""

    def mark_started(self, n: int, /) -> None:
        """Store the total `n`, visible to the parent even if the next instruction is a SIGKILL."""


class Link(Protocol):
    """One end of a channel."""

    @property
    def congested(self) -> bool:
        """True from a `send` that did not fit until the outbox is empty again."""

    @property
    def started(self) -> int:
        """What the worker has marked as started; readable after its death, and after `close`."""

    @property
    def counter(self) -> Counter:
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
        ident: int = 0,
        offset: int = 0,
        function: int = 0,
        payload: Sequence[Segment] = (),
    ) -> None:
        """Accept a frame. ValueError if its payload is over `frames.MAX_PAYLOAD`, MemoryError if a
        copy that it needs is too much for memory (T10): then nothing was sent."""

    def flush(self) -> None:
        """Let the other side see what was sent, and wake it if it sleeps."""

    def mark_started(self, n: int) -> None:
        """For the worker: `counter.mark_started(n)`."""

    @property
    def journal(self) -> memoryview:
        """A new view of the worker's journal, to be released before `close`; see `journal`."""

    def drain_dead(self) -> None:
        """For the parent of a dead worker: hand over, now, all that it had published (T9).

        A frame that it had not published whole is dropped. `on_drained` is not called.
        """

    def close(self) -> None:
        """Give everything back (T8)."""

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


def watch(
    loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[..., object], *args: object
) -> None:
    """`loop.add_reader`, with an error that tells what to do where a loop has none."""
    try:
        loop.add_reader(fd, callback, *args)
    except NotImplementedError:
        raise RuntimeError(
            f"{type(loop).__name__} cannot watch descriptors: run aiomultiprocess on a selector "
            "event loop (on Windows: asyncio.SelectorEventLoop) or on uvloop"
        ) from None


class Endpoint:
    """What the links of both transports do alike: T4, T6, T7 and T8.

    A transport defines `_hush` (stop listening), `_dispose` (give everything back; called once,
    and not while a callback runs), and `_drain_all`, and lets the loop call `_turn`.
    """

    def __init__(self, links: Links | None = None) -> None:
        """The parent's are in `links` as long as they are open."""
        self._links = Links() if links is None else links
        self._links.add(self)
        self.congested = False
        self._closed = False
        self._disposed = False
        self._broken = False
        self._busy = False
        self._continued = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler = _unstarted
        self._on_room: Callback = _unstarted
        self._on_broken: Callable[[BaseException], None] = _unstarted
        self._on_drained: Callback | None = None

    def _bind(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        on_room: Callback,
        on_broken: Callable[[BaseException], None],
        on_drained: Callback | None,
    ) -> None:
        if self._loop is not None or self._closed:
            raise RuntimeError("a link is started once, before it is closed")
        self._loop = loop
        self._handler = handler
        self._on_room = on_room
        self._on_broken = on_broken
        self._on_drained = on_drained

    def _turn(self, work: Callable[[], bool]) -> None:
        """One callback of the loop: `work`, and again soon if it says that there is more (T4)."""
        if self._closed or self._broken or self._continued:
            return
        again = True  # also when KeyboardInterrupt cuts `work` short (T7)
        self._busy = True
        try:
            again = work()
        except Exception as error:  # noqa: BLE001 - whatever it is, a frame was lost: T7
            again = False
            self._break(error)
        finally:
            self._busy = False
            if self._closed:
                self._end()
            elif again and not self._broken:
                self._continue(work)

    def _continue(self, work: Callable[[], bool]) -> None:
        assert self._loop is not None
        if not self._continued:
            self._continued = True
            self._loop.call_soon(self._continuation, work)

    def _continuation(self, work: Callable[[], bool]) -> None:
        self._continued = False
        self._turn(work)

    def _break(self, error: BaseException) -> None:
        if not self._closed and not self._broken:
            self._broken = True
            self._hush()
            self._on_broken(error)

    def drain_dead(self) -> None:
        """Hand over all that the dead worker had published (T9)."""
        if self._closed or self._broken:
            return
        if self._busy:
            raise RuntimeError("drain_dead() was called from a callback of the same link")
        self._busy = True
        try:
            self._drain_all()
        except Exception as error:  # noqa: BLE001 - T7
            self._break(error)
        finally:
            self._busy = False
            if self._closed:
                self._end()

    def close(self) -> None:
        """Give everything back, at once or as soon as the running callback is over (T8)."""
        if self._closed:
            return
        self._closed = True
        self.congested = False
        self._hush()
        if not self._busy:
            self._end()

    def abandon(self) -> None:
        """Give everything back in a forked copy of this process, but leave its loop alone.

        A forked child shares the epoll instance: to remove a descriptor there would make the
        process that it was forked from deaf.
        """
        if not self._closed:
            self._closed = True
            self._loop = None
            self._end()

    def _end(self) -> None:
        if not self._disposed:  # in a copy that was forked by a callback of ours
            self._disposed = True
            self._links.discard(self)
            self._dispose()

    def _hush(self) -> None:
        raise NotImplementedError

    def _dispose(self) -> None:
        raise NotImplementedError

    def _drain_all(self) -> None:
        raise NotImplementedError


class Links(set["Endpoint"]):
    """The parent's links of one backend that are not closed; each adds and removes itself."""

    def close(self) -> None:
        """Close them all."""
        for link in list(self):
            link.close()

    def abandon(self) -> None:
        """Abandon them all, see `Endpoint.abandon`."""
        for link in list(self):
            link.abandon()


def _unstarted(*args: object) -> None:
    raise RuntimeError("a link must be started before it can hand over anything")


class Handover:
    """Descriptors on their way into a worker, under every start method.

    Pickled while a process is spawned, they are passed on by number (`DupFd`); a forked worker
    finds the object as it was, as does a test that opens the child end in its own process.
    """

    def __init__(self, fds: Sequence[int], forget: Callback) -> None:
        """Hand over `fds`; `forget` drops, in a forked worker, what belongs to the parent."""
        self._handles: Sequence[Any] = ()
        self._fds = tuple(fds)
        self._forget = forget
        self._pid = os.getpid()

    def __getstate__(self) -> tuple[Any, ...]:
        if sys.platform == "win32":
            raise NotImplementedError  # descriptors are numbers of one process there
        context.assert_spawning(self)
        return tuple(reduction.DupFd(fd) for fd in self._fds)

    def __setstate__(self, handles: tuple[Any, ...]) -> None:
        self._handles = handles

    def take(self) -> list[int]:
        """The descriptors, now the caller's own, and not inherited by its children."""
        if self._handles:
            fds = [handle.detach() for handle in self._handles]
            for fd in fds:
                os.set_inheritable(fd, False)
            return fds
        fds = [os.dup(fd) for fd in self._fds]
        if os.getpid() != self._pid:
            self._forget()
        return fds
