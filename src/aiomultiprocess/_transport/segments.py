"""Segments: large buffers beside the channel of a link, and without a copy at their receiver.

What pickle gives out of band (a `PickleBuffer`: NumPy, Arrow, pandas over them) and has
`LENT_MIN` bytes or more does not go through the channel. The sender, here the *owner*, copies it
into a segment: memory without a name that the two processes of the link map. Its frame names the
segment (frames.py, FRAME-6), and the receiver, here the *borrower*, gets an object that lies in it.
Each end of a link is the owner of what it sends and the borrower of what it receives. endpoint.py
makes a `Lender` or a `Borrower` when the first such buffer comes; segment.h (amp_ext) has the word
through which a segment returns.

The owner of a segment sees it in one of four states, and only `Lender` changes them:

    (none) -- made and filled, its descriptor sent, named in a frame as loan 1 --> LENT
    LENT -- answer n: the object of loan n is gone --> IDLE
    LENT -- answer n, KEPT: a copy of the object may live on --> FORGOTTEN
    IDLE -- filled, named in a frame as loan n + 1 --> LENT
    IDLE -- in the way of another, or not used for long --> FORGOTTEN
    FORGOTTEN -- the next loan of any segment tells the borrower --> (none)

The borrower sees it in one of two, and only `Borrower` changes them. It is MAPPED when its
descriptor has come, HELD from the frame that names it until the last view of the object is gone
(the end of the `Loan`, in any thread, which stores the answer), and then MAPPED again until a loan
of another segment says that the owner has forgotten it.

SEGMENT-1  A segment has one owner and one borrower for ever: it is never lent to another process,
    also not to the worker that replaces a dead one. So a process that scribbles on it, or on its
    answer, reaches only what it was sent or sends itself.
SEGMENT-2  The descriptor is sent once, before the frame that names the segment first, over a socket
    that both ends have from the start of the worker. So the borrower finds it there: it never waits
    for a descriptor. Both close theirs once they have mapped the segment.
SEGMENT-3  No message returns a segment. The owner looks at the answers when it needs a segment.
SEGMENT-4  The borrower trusts nothing that a frame says: a segment that is unknown, too small, of
    no sealed size, still held, or named by an old loan is a CorruptHeaderError, which breaks the
    link.
    A segment that it cannot receive or map, for lack of memory or descriptors, fails its items
    alone (FRAME-5); its loan is never answered, so it is never named again.
SEGMENT-5  Segments have at most `limit_of` bytes for each end of a link, and there are at most
    `MOST_SEGMENTS`; when a buffer finds no room, idle ones of the wrong size are forgotten, then
    the buffer goes through the channel. Idle ones that `STALE` loans have passed over are
    forgotten.
SEGMENT-6  A process that forks answers the loans that it holds as KEPT (segment.h, SEGMENT-C2): its
    child may hold copies of their objects, so the owner never fills these segments again. The child
    has no mapping of segments that the process owns, and answers no loan.

Who frees a segment: it has no name, so its memory goes with the last mapping and descriptor.

| when a process dies: | the owner dies | the borrower dies |
|---|---|---|
| made, descriptor not sent | with the owner | with the link, which the owner closes |
| descriptor in the socket | with the link: the kernel closes what no one has received | the same |
| filled, frame not published | the same; the frame is lost, as any | with the link |
| frame published, not read | the borrower drains the channel, and takes the loan | with the link |
| HELD | with the last view of the object: it stays whole and writable | with the link |
| answered, answer not seen | with the link | with the link |
| IDLE, MAPPED | with the link | with the link |
| FORGOTTEN, borrower not told | with the link | is freed already |

"With the link": `close` of the end that is left drops its mappings, and each goes when no view of
it is left. The parent closes the link of a dead worker when it has drained it; a worker dies with
its parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from .. import _accel
from .._processes.descriptors import REFUSALS
from .._wire.frames import (
    LENT,
    LENT_MIN,
    MAX_PAYLOAD,
    WRITABLE,
    CorruptHeaderError,
    Segment,
    is_readonly,
)
from .link import Limits

if TYPE_CHECKING:
    from .._accel import segment
    from .descriptor_socket import DescriptorSocket
else:
    segment = _accel.segment_module()

#: SEGMENT-5: the most segments of one end of a link.
MOST_SEGMENTS: Final = 512
#: SEGMENT-5: an idle segment that was not used for so many loans is forgotten.
STALE: Final = 4096
#: Where a container's limit of memory is, "max" if there is none.
CGROUPS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: The smallest step between the sizes of segments; one of them takes the place of a similar one.
STEP: Final = 64 << 10

_LOAN: Final = Struct("<QQQ")  # the number of the segment, of the loan, and the size
_FORGOTTEN: Final = Struct("<Q")  # after it: the numbers of segments that the owner has forgotten
_MOST_FORGOTTEN: Final = 128  # of one loan


def capacity_for(size: int) -> int:
    """The capacity of a new segment: somewhat more, so that it serves similar sizes too."""
    step = max(STEP, 1 << (size.bit_length() - 4))
    return -(-size // step) * step


def is_lendable(buffer: Segment) -> bool:
    """Whether a segment of a payload is a buffer that goes beside the channel.

    A `bytes` or `bytearray` has memory of its own for its data, so it cannot lie in a segment.
    """
    return (
        type(buffer) is memoryview
        and len(buffer) >= LENT_MIN
        and type(buffer.obj) not in (bytes, bytearray)
    )


class OwnSegment:
    """A segment of this process."""

    __slots__ = ("capacity", "loan", "memory", "number", "used")

    def __init__(self, number: int, memory: segment.Segment) -> None:
        self.number = number
        self.memory = memory
        self.capacity = memory.capacity
        self.loan = 0  # the number of the last
        self.used = 0  # how many loans there were in all, at that one


class Lent(NamedTuple):
    """A payload of which some buffers are lent, as the channel takes it."""

    payload: list[Segment]
    sizes: list[int]  # of its parts, with their flags


class Lender:
    """The owner's side of the segments of one end of a link (SEGMENT-1)."""

    def __init__(self, descriptors: DescriptorSocket, limits: Limits) -> None:
        self._descriptors = descriptors
        self._limit = limit_of(limits)
        self._bytes = 0  # of all segments
        self._made = 0
        self._loans = 0
        self._idle: dict[int, list[OwnSegment]] = {}  # by capacity, those that are warm the last
        self._lent: list[OwnSegment] = []  # in the order of their loans
        self._forgotten: list[int] = []
        # Of the frame that is being sent: what is lent for it, and what it tells the borrower.
        self._last: list[OwnSegment] = []
        self._told: list[int] = []
        self._refused = self._limit < LENT_MIN

    def lend(self, payload: Sequence[Segment]) -> Lent | None:
        """Lend the buffers of a payload that can be lent; None if none is."""
        self._last = []
        self._told = []
        if self._refused:
            return None
        try:
            lent = self._lend_all(payload)
        except MemoryError:
            self.undo()
            raise
        return lent if self._last else None

    def _lend_all(self, payload: Sequence[Segment]) -> Lent:
        lent = Lent([], [])
        for buffer in payload:
            loan = self._lend(buffer) if is_lendable(buffer) else None
            kind = 0 if is_readonly(buffer) else WRITABLE
            if loan is not None:
                kind |= LENT
            lent.payload.append(buffer if loan is None else loan)
            lent.sizes.append(len(lent.payload[-1]) | kind)
        return lent

    def undo(self) -> None:
        """The frame of the last `lend` was not sent. For no other frame: that one may be held."""
        for own in self._last:
            own.loan -= 1  # so that the last answer is the answer again
        self._forgotten[:0] = self._told
        self._last = []
        self._told = []

    def _lend(self, buffer: Segment) -> bytes | None:
        own = self._find(len(buffer))
        if own is None and self._lent:
            self._collect()
            own = self._find(len(buffer))
        if own is not None:
            own.memory.fill(buffer)
        else:
            own = self._make(buffer)
        if own is None:
            return None
        self._loans += 1
        own.loan += 1
        own.used = self._loans
        self._lent.append(own)
        self._last.append(own)
        told = self._forgotten[:_MOST_FORGOTTEN]
        del self._forgotten[:_MOST_FORGOTTEN]
        self._told += told
        return _LOAN.pack(own.number, own.loan, len(buffer)) + b"".join(map(_FORGOTTEN.pack, told))

    def _collect(self) -> None:
        """LENT -> IDLE, or -> FORGOTTEN (SEGMENT-3, SEGMENT-6)."""
        lent = []
        for own in self._lent:
            answer = own.memory.answer
            if answer >> 1 != own.loan:
                lent.append(own)
            elif answer & segment.KEPT:
                self._forget(own)
            else:
                self._idle.setdefault(own.capacity, []).append(own)
        self._lent = lent
        while (oldest := self._oldest()) is not None and oldest.used < self._loans - STALE:
            self._forget_idle(oldest)

    def _find(self, size: int) -> OwnSegment | None:
        """Take the idle segment that fits best, of several the one that was used last."""
        capacity = capacity_for(size)
        if not self._idle.get(capacity):
            most = 2 * capacity
            fitting = [one for one, idle in self._idle.items() if idle and size <= one <= most]
            if not fitting:
                return None
            capacity = min(fitting)
        return self._idle[capacity].pop()

    def _oldest(self) -> OwnSegment | None:
        """The idle segment that was used before all others."""
        first = [idle[0] for idle in self._idle.values() if idle]
        return min(first, key=lambda own: own.used, default=None)

    def _make(self, buffer: Segment) -> OwnSegment | None:
        """Make a segment and send its descriptor; None if that is not possible now (SEGMENT-5)."""
        capacity = capacity_for(len(buffer))
        if capacity > self._limit:
            return None
        self._evict(capacity)
        if self._bytes + capacity > self._limit or self._count() >= MOST_SEGMENTS:
            return None
        try:
            memory = segment.Segment.create(capacity, buffer)
            self._made += 1
            self._descriptors.send((self._made, memory.fd))
        except MemoryError:
            return None
        except OSError as error:
            self._refused = error.errno in REFUSALS
            return None
        memory.close_fd()  # SEGMENT-2
        self._bytes += capacity
        return OwnSegment(self._made, memory)

    def _evict(self, capacity: int) -> None:
        """IDLE -> FORGOTTEN, as long as that makes the room that is needed."""
        idle = sum(one * len(segments) for one, segments in self._idle.items())
        if self._bytes - idle + capacity > self._limit:
            return
        while self._bytes + capacity > self._limit or self._count() >= MOST_SEGMENTS:
            own = self._oldest()
            if own is None:
                return
            self._forget_idle(own)

    def _count(self) -> int:
        return len(self._lent) + sum(map(len, self._idle.values()))

    def _forget_idle(self, own: OwnSegment) -> None:
        self._idle[own.capacity].remove(own)
        self._forget(own)

    def _forget(self, own: OwnSegment) -> None:
        self._bytes -= own.capacity
        self._forgotten.append(own.number)


class Borrower:
    """The borrower's side of the segments of one end of a link."""

    def __init__(self, receive: Callable[[], tuple[int, int] | None]) -> None:
        """`receive` returns the next number and descriptor that have come, or None."""
        self._receive = receive
        self._segments: dict[int, segment.Segment] = {}
        self._loans: dict[int, int] = {}  # the last of each

    def borrow(self, part: bytes | bytearray, *, writable: bool) -> memoryview | int:
        """The buffer that a part of a payload names; its size if it cannot be mapped (FRAME-5)."""
        if len(part) < _LOAN.size or (len(part) - _LOAN.size) % _FORGOTTEN.size:
            raise CorruptHeaderError(f"a loan in {len(part)} bytes")
        number, loan, size = _LOAN.unpack_from(part)
        if size > MAX_PAYLOAD:
            raise CorruptHeaderError(f"a loan of {size} bytes")
        for (forgotten,) in _FORGOTTEN.iter_unpack(part[_LOAN.size :]):
            self._segments.pop(forgotten, None)
            self._loans.pop(forgotten, None)
        if number not in self._segments and number not in self._loans:
            try:
                self._receive_all()
            except OSError:  # a sandbox that this process has entered refuses it
                return int(size)
        if self._loans.get(number, -1) >= loan:
            raise CorruptHeaderError(f"loan {loan} of segment {number} comes again")
        memory = self._segments.get(number)
        if memory is None:
            if number not in self._loans:
                raise CorruptHeaderError(f"segment {number}, whose descriptor never came")
            return int(size)
        self._loans[number] = loan
        try:
            return memoryview(memory.loan(loan, size, not writable))
        except (ValueError, OverflowError) as error:  # SEGMENT-4
            raise CorruptHeaderError(f"segment {number}: {error}") from None

    def _receive_all(self) -> None:
        """-> MAPPED, for each descriptor that has come."""
        while (received := self._receive()) is not None:
            number, fd = received
            if number in self._loans or len(self._loans) > 2 * MOST_SEGMENTS:
                if fd >= 0:
                    os.close(fd)
                raise CorruptHeaderError(f"segment {number} comes again, or is one too many")
            self._loans[number] = 0
            if fd < 0:
                continue
            try:
                self._segments[number] = segment.Segment.attach(fd)
            except (MemoryError, OSError) as error:
                if isinstance(error, OSError) and error.errno == errno.EPERM:
                    raise CorruptHeaderError(f"segment {number} is not sealed") from None
            except ValueError as error:
                raise CorruptHeaderError(f"segment {number}: {error}") from None


def limit_of(limits: Limits) -> int:
    """The most bytes of all segments of one end of a link: each direction gets a half."""
    total = memory_size() // 4 if limits.total is None else limits.total
    return total // (2 * limits.workers)


def memory_size() -> int:
    """The memory that this process may use, in bytes."""
    if sys.platform == "win32":
        raise NotImplementedError
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUPS:
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            sizes.append(int(file.read()))
    return min(sizes)


def works() -> bool:
    """Whether this system and this installation have segments."""
    built: object = segment
    return built is not None and hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
