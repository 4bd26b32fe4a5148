"""What the links of both transports have in common; the contract is in link.py.

`ShmLink` and `PipeLink` derive from `Endpoint`, which runs their callbacks: it bounds a turn,
breaks a link once, and delays the release of memory until no callback uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence
from struct import unpack_from
from typing import TYPE_CHECKING, Any, Final

from .._wire.frames import (
    LENT_MIN,
    CorruptHeaderError,
    Handler,
    Kind,
    Segment,
    pack_sizes,
    part_sizes,
)
from .link import DEFAULT_LIMITS, Callback, Limits, RunningItems, WorkerMemory

if TYPE_CHECKING:
    from .descriptor_socket import DescriptorSocket
    from .segments import Borrower, Lender, Lent


def watch_fd(
    loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[..., object], *args: object
) -> None:
    """Call `loop.add_reader`; RuntimeError with the way out if the loop does not have it."""
    try:
        loop.add_reader(fd, callback, *args)
    except NotImplementedError:
        raise RuntimeError(
            f"{type(loop).__name__} cannot watch descriptors: run aiomultiprocess on a selector "
            "event loop (on Windows: asyncio.SelectorEventLoop) or on uvloop"
        ) from None


#: What comes over the socket of descriptors: a segment, or from this number on a shared object.
FIRST_SHARED: Final = 1 << 62

NO_DESCRIPTOR: Final = (
    "no descriptor was left here for a shared object: close files, or raise the limit (ulimit -n)"
)

#: LARGE-1. One for all links, as what it guards takes microseconds. Reentrant, as the garbage
#: collector may close a link while this thread holds it.
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked child: another thread of its parent may have held it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class LargeBuffers:
    """What travels beside the channel of a link: segments and shared objects, once there are any.

    segments.py and shared_objects.py have both; here is what a link has before it needs them.

    LARGE-1  Any thread of a worker may take a shared object, while the loop borrows, lends, drops
        or closes. So the socket and what has come over it are used under a lock alone, and what a
        thread receives for another is where that finds it before the lock is released.
    LARGE-2  What is imported here late needs a descriptor itself. If none is left, no buffer is
        lent (SEGMENT-5), one that came is as one that cannot be mapped (FRAME-5), and a shared
        object is not passed or taken, which is possible later.
    LARGE-3  A worker that had no room for the descriptor of a shared object asks its parent to pass
        it again, once for each that was lost (NEED_SHARED). What is passed again is received when a
        shared object or a segment is needed next, so this goes on no longer than tasks come. A
        short lack costs what needs the object meanwhile, and no more.
    """

    def __init__(self, fd: int, limits: Limits) -> None:
        """Take over `fd`, an end of a pair of Unix sockets; -1 if there is none."""
        self.limits = limits
        self.lends = True  # False: `Endpoint.lend_nothing` was called
        self.abandoned = False  # by a copy of a worker, which keeps its shared objects
        self._fd = fd
        self._socket: DescriptorSocket | None = None
        self._lender: Lender | None = None
        self._borrower: Borrower | None = None
        self._shared: dict[int, int] = {}  # descriptors of shared objects that have come
        self.lacking: dict[int, bool] = {}  # which found no room; whether one was asked for again
        self.ask_for: Callable[[int], object] | None = None  # as long as that is possible (LARGE-3)
        self._pending: list[tuple[int, int]] = []  # segments that came before one of these

    def lend(self, payload: Sequence[Segment]) -> Lent | None:
        """The payload with large buffers replaced by what names them; None if there is none."""
        if self._fd < 0 or not self.lends:
            return None
        if self._lender is None:
            if not any(type(one) is memoryview and len(one) >= LENT_MIN for one in payload):
                return None
            self._lender = self._make_lender()
            if self._lender is None:
                return None
        return self._lender.lend(payload)

    def _make_lender(self) -> Lender | None:
        try:
            from .descriptor_socket import refusal
            from .segments import Lender, works  # here: few pools need it

            if not works() or refusal() is not None:
                return None
            return Lender(self._descriptors(), self.limits)
        except (ImportError, OSError):  # LARGE-2
            return None

    def undo(self) -> None:
        """What was lent last was not sent."""
        if self._lender is not None:
            self._lender.undo()

    def borrow(self, part: bytes | bytearray, *, writable: bool) -> memoryview | int:
        """The buffer that a part of a payload names (frames.py, FRAME-6)."""
        if self._borrower is None:
            try:
                from .segments import Borrower, works

                if self._fd >= 0:
                    self._descriptors()
            except (ImportError, OSError):  # LARGE-2
                return _size_of_loan(part)
            if self._fd < 0 or not works():
                raise CorruptHeaderError("a lent part, on a link that has none")
            self._borrower = Borrower(self._receive)
        return self._borrower.borrow(part, writable=writable)

    def share(self, numbered: Sequence[tuple[int, int]]) -> int:
        """Pass the first of these shared objects to the other end; returns how many.

        OSError if that is not possible now, RuntimeError if it never is. An end that is gone gets
        them as it gets frames.
        """
        descriptors = self._descriptors()
        _require_passing()
        try:
            return descriptors.send(*numbered)
        except ConnectionError:  # its exit follows, and what needs them goes back unstarted
            return len(numbered)

    def take_shared(self, number: int) -> int:
        """In any thread: the descriptor of a shared object that was passed, or -1.

        OSError if this process had no room for the descriptor; it is passed again (LARGE-3).
        """
        with _lock:
            fd = self._find_shared(number)
            if number in self.lacking:
                self._ask_again(number)
                raise OSError(errno.EMFILE, NO_DESCRIPTOR)
        return fd

    def drop_shared(self, number: int) -> None:
        """Close the descriptor of a shared object."""
        with _lock:
            with contextlib.suppress(OSError):
                self._find_shared(number)
            self.lacking.pop(number, None)
            fd = self._shared.pop(number, -1)
        if fd >= 0:
            os.close(fd)

    def _find_shared(self, number: int) -> int:
        if number not in self._shared and self._fd >= 0:
            while (received := self._receive_next()) is not None:
                self._pending.append(received)
        return self._shared.get(number, -1)

    def _receive(self) -> tuple[int, int] | None:
        """The next segment that has come."""
        with _lock:
            return self._pending.pop(0) if self._pending else self._receive_next()

    def _receive_next(self) -> tuple[int, int] | None:
        """The next segment of the socket; shared objects that come before it are kept here."""
        while (received := self._descriptors().receive()) is not None:
            number, fd = received
            if number < FIRST_SHARED:
                return received
            if self is not this_end or number in self._shared:  # only a parent shares
                if fd >= 0:
                    os.close(fd)
                raise CorruptHeaderError(f"the descriptor of shared object {number:x}")
            if fd < 0:
                self.lacking[number] = False
                self._ask_again(number)
            else:
                self.lacking.pop(number, None)
                self._shared[number] = fd
        return None

    def _ask_again(self, number: int) -> None:
        if self.ask_for is not None and not self.lacking[number]:
            self.lacking[number] = True
            self.ask_for(number)

    def _descriptors(self) -> DescriptorSocket:
        with _lock:  # a second one would close the descriptor of the first
            if self._socket is None:
                try:
                    from .descriptor_socket import DescriptorSocket
                except ImportError as error:  # LARGE-2
                    raise OSError(errno.EMFILE, str(error)) from error
                self._socket = DescriptorSocket(self._fd)
            return self._socket

    def close(self) -> None:
        """Drop everything, and close the socket. Idempotent."""
        global this_end
        if self.abandoned:
            return
        if this_end is self:
            this_end = None
        self._close_socket()
        self.drop_all_shared()

    def abandon(self) -> None:
        """In a forked copy of this process: close, but keep the shared objects (OBJECT-6)."""
        self._close_socket()
        self.abandoned = self is this_end

    def drop_all_shared(self) -> None:
        """Close the descriptors of all shared objects."""
        with _lock:
            fds = list(self._shared.values())
            self._shared.clear()
            self.lacking.clear()
        for fd in fds:
            os.close(fd)

    def _close_socket(self) -> None:
        self._lender = self._borrower = self.ask_for = None
        with _lock:
            fd, self._fd = self._fd, -1
            pending, self._pending = self._pending, []
            if self._socket is not None:
                self._socket.close()
            elif fd >= 0:
                os.close(fd)
        for _, of_segment in pending:
            if of_segment >= 0:
                os.close(of_segment)


def _require_passing() -> None:
    from .descriptor_socket import refusal  # which `_descriptors` has imported

    refused = refusal()
    if refused is not None:
        raise RuntimeError(
            f"this system refuses to pass the memory of a shared object ({refused}): pass the "
            "object itself, without share()"
        )


#: In a worker: what travels beside its link to the parent.
this_end: LargeBuffers | None = None


def open_this_end(fd: int, limits: Limits) -> LargeBuffers:
    """Make it, when the worker opens its end of the channel."""
    global this_end
    if this_end is not None and this_end.abandoned:  # by the worker that was forked to be this one
        this_end.drop_all_shared()
    this_end = LargeBuffers(fd, limits)
    return this_end


class Endpoint:
    """The part of a link that is the same in both transports: LINK-4, LINK-6, LINK-7 and LINK-8.

    A transport defines four methods, and has the loop call `_turn`:

    - `_listen(loop)`: start to receive.
    - `_stop_listening()`: stop to receive.
    - `_drain_all()`: hand over all that has arrived.
    - `_release()`: release memory and descriptors. It runs once, outside of all callbacks.

    What begins with a class's value here changes once in a life, if at all. With more than 30
    attributes of its own, CPython gives an object a dict, and finds its methods by a search.
    """

    _final_started: int | None = None  # from the release of the memory on
    _released = False
    _broken = False

    def __init__(
        self,
        memory: WorkerMemory,
        links: OpenLinks | None = None,
        large_buffers: LargeBuffers | None = None,
    ) -> None:
        """`links` holds the parent's endpoints while they are open."""
        self._large = LargeBuffers(-1, DEFAULT_LIMITS) if large_buffers is None else large_buffers
        self.shared: set[int] = set()  # numbers of the shared objects that the worker has
        self._sharing: list[tuple[int, int]] = []  # of which these are still to be passed
        self.counter: RunningItems = memory
        self._memory = memory
        self._links = OpenLinks() if links is None else links
        self._links.add(self)
        self.congested = False
        self._closed = False
        self._busy = False
        self._continued = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler = _unstarted
        self._on_room: Callback = _unstarted
        self._on_broken: Callable[[BaseException], None] = _unstarted
        self._on_drained: Callback | None = None

    @property
    def started(self) -> int:
        """How many items the worker has started; readable after `close` too."""
        final = self._final_started
        return self._memory.started if final is None else final

    @property
    def journal(self) -> memoryview:
        """A new view of the worker's journal."""
        return self._memory.journal

    def lend_nothing(self) -> None:
        """From now on send the bytes of views, and lend none (link.py)."""
        self._large.lends = False

    def share(self, number: int, fd: int) -> tuple[Endpoint, ...]:
        """Pass a shared object to the worker, unless it has it; itself if so."""
        if number in self.shared or self._closed:
            return ()
        self._sharing.append((number, fd))
        self.shared.add(number)
        return (self,)

    def pass_shared(self) -> None:
        """Pass what was shared since the last call. OSError if that is not possible now."""
        try:
            while self._sharing:
                del self._sharing[: self._large.share(self._sharing)]
        finally:  # also if what `share` imports cannot be imported (LARGE-2)
            self.shared.difference_update(number for number, _ in self._sharing)
            self._sharing = []

    def unshare_soon(self, number: int) -> None:
        """In any thread: let the worker drop a shared object."""
        self._call_soon(self._unshare, number)

    def _unshare(self, number: int) -> None:
        self.shared.discard(number)
        self.send(Kind.UNSHARE, chunk_id=number)
        self.flush()

    def _ask_for_soon(self, number: int) -> None:
        """In any thread of a worker: ask the parent for a shared object again (LARGE-3)."""
        self._call_soon(self._ask_for, number)

    def _ask_for(self, number: int) -> None:
        self.send(Kind.NEED_SHARED, payload=[number.to_bytes(8, "little")])
        self.flush()

    def _call_soon(self, func: Callable[[int], object], number: int) -> None:
        loop = self._loop
        if loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(func, number)

    def _in_parts(self, payload: Sequence[Segment]) -> tuple[Sequence[Segment], bytes]:
        """A payload as its parts, large buffers lent, and their sizes (FRAME-4, FRAME-6)."""
        payload = [segment for segment in payload if len(segment)]
        lent = self._large.lend(payload)
        if lent is None:
            return payload, part_sizes(payload)
        return lent.payload, pack_sizes(lent.sizes)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        on_room: Callback,
        on_broken: Callable[[BaseException], None],
        on_drained: Callback | None = None,
    ) -> None:
        """Begin to receive in `loop`."""
        if self._loop is not None or self._closed:
            raise RuntimeError("a link is started once, before it is closed")
        self._loop = loop
        self._handler = handler
        self._on_room = on_room
        self._on_broken = on_broken
        self._on_drained = on_drained
        if self._large is this_end:
            self._large.ask_for = self._ask_for_soon
        self._listen(loop)

    def _turn(self, work: Callable[[], bool]) -> None:
        """Run `work` in a callback of the loop; if it returns True, run it again soon (LINK-4)."""
        if self._closed or self._broken or self._continued:
            return
        again = True  # stays so if KeyboardInterrupt cuts `work` short (LINK-7)
        self._busy = True
        try:
            again = work()
        except Exception as error:  # noqa: BLE001 - any error has lost a frame: LINK-7
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
            self._stop_listening()
            self._on_broken(error)

    def drain_dead(self) -> None:
        """Hand over all that the dead worker published (LINK-9)."""
        if self._closed or self._broken:
            return
        if self._busy:
            raise RuntimeError("drain_dead() was called from a callback of the same link")
        self._busy = True
        try:
            self._drain_all()
        except Exception as error:  # noqa: BLE001 - LINK-7
            self._break(error)
        finally:
            self._busy = False
            if self._closed:
                self._end()

    def close(self) -> None:
        """Release everything, at once or when the running callback has returned (LINK-8)."""
        if self._closed:
            return
        self._closed = True
        self.congested = False
        self._stop_listening()
        if not self._busy:
            self._end()

    def abandon(self) -> None:
        """In a forked copy of this process: release everything, but leave the loop alone.

        The copy shares the epoll instance with the process that it was forked from, which would
        not be woken any more if the copy removed a descriptor.
        """
        if not self._closed:
            self._closed = True
            self._loop = None
            self._large.abandon()
            self._end()

    def _end(self) -> None:
        if not self._released:  # a copy that a callback has forked released it in `abandon`
            self._released = True
            self._links.discard(self)
            self._final_started = self._memory.started
            self._release()
            self._large.close()  # nothing, if it was abandoned

    send: Any  # as Link has them; a transport defines both
    flush: Any

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        raise NotImplementedError

    def _stop_listening(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _drain_all(self) -> None:
        raise NotImplementedError


class OpenLinks(set["Endpoint"]):
    """The open links of one backend in the parent; each link adds and removes itself."""

    def close(self) -> None:
        """Close each link."""
        for link in list(self):
            link.close()

    def abandon(self) -> None:
        """Abandon each link, see `Endpoint.abandon`."""
        for link in list(self):
            link.abandon()


def _size_of_loan(part: bytes | bytearray) -> int:
    """How large the buffer is that a part names (segments.py)."""
    if len(part) < 24:
        raise CorruptHeaderError(f"a loan in {len(part)} bytes")
    size: int = unpack_from("<QQQ", part)[2]
    return size


def _unstarted(*args: object) -> None:
    raise RuntimeError("a link must be started before it can hand over anything")
