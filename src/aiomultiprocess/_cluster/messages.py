"""What travels between a client and a host: frames of many processes, in messages of a stream.

The frames are those of a link (_wire/frames.py), each with the number of the process that it is
about. What the two sides say to each other beside that are frames too, of kinds of their own.
`OutgoingFrames` collects the frames of one turn of the loop, and makes messages of them;
`IncomingFrames` takes these apart. The messages themselves are dask's business (distributed.comm).

MESSAGE-1  A message is a list: first the headers with all small payloads, as one bytes-like object,
    then the large segments of payloads, each as dask's serialization carries it without a copy. So
    dask pickles nothing, and its cost does not depend on the number of tasks.
MESSAGE-2  Each frame is what its segments were when it was added (LINK-10). Of one for which there
    is no memory nothing is added: a part of it would shift all that follows.
MESSAGE-3  A message has little more than `PIECE` bytes, so that a slow link brings one every few
    seconds, and the reader sees that the stream makes progress. A larger segment travels in pieces:
    a BEGIN says its size, with the first piece. A frame's segments are in the message with its
    header, and in messages before that, in order: a header comes when its frame is complete. Frames
    without such segments may come between pieces.
MESSAGE-4  The reader copies each piece to its place in an object of the announced size. More than
    the largest payload is refused, and so is another size than what is announced. A segment for
    which there is no memory arrives without its bytes (FRAME-5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from struct import Struct, unpack_from
from typing import Any, Final, NamedTuple, TypeAlias

from .._wire.frames import (
    MAX_PAYLOAD,
    WRITABLE,
    Payload,
    PayloadParts,
    Segment,
    is_constant,
    is_readonly,
    size_of,
)

#: The version of this format: a client and its hosts must have the same.
FORMAT: Final = 2

# What a client says of a process. All these kinds are above those of frames.py.
# payload: numbers of `count` shared objects that a new process gets, and its start-up message
START: Final = 64
SIGNAL: Final = 65  # count: the number of a signal for the process
LOOK: Final = 66  # send its table of running items
PASS: Final = 71  # give it a shared object; chunk_id: its number
# ... and of the stream
PING: Final = 67  # send a PONG
LEAVE: Final = 68  # the pool is over: end all processes
SHARE: Final = 69  # keep the memory of a shared object; chunk_id: its number
FORGET: Final = 70  # it is not needed any more; chunk_id: its number

# What a host says of a process
STARTED: Final = 80  # count: its pid
# chunk_id: how many items it has started; count: microseconds that it took for what it has answered
# since the last MARK
MARK: Final = 81
TABLE: Final = 82  # payload: its running items, as `packed_table` makes it
EXITED: Final = 83  # payload: as `packed_exit` makes it
FAILED: Final = 86  # it could not be started; payload: why
BLOCKED: Final = 87  # an item blocks it; payload: the results that it has finished, as journaled
# ... and of the stream
PONG: Final = 84
DRAIN: Final = 85  # this dask worker is about to close: let its processes finish and go

# What both say; chunk_id: so many more bytes of messages were read
READ: Final = 88
BEGIN: Final = 89  # the next pieces are one segment; chunk_id: its size

FIRST_CONTROL: Final = START

# What SIGNAL may send, as on every POSIX system: Windows does not name the second.
SIGTERM: Final = 15
SIGKILL: Final = 9

#: slot u32, then the header of a frame: kind u8, flags u8, parts u16, count u32, chunk_id u64,
#: offset u32, function u32, length u64
_HEAD: Final = Struct("<IBBHIQIIQ")
#: A segment of this size or more travels by itself.
LARGE: Final = 32 << 10
#: MESSAGE-3: how much of large segments a message has at most, and a piece.
PIECE: Final = 1 << 20
#: From this size on, the part of a message with the headers gets no more frames; a frame whose
#: small segments are more than this together sends those of `SPLIT` bytes or more by themselves.
SMALL_MOST: Final = 256 << 10
SPLIT: Final = 1 << 10
#: So much memory is taken for an announced segment at once, more when its bytes arrive (FRAME-3).
TRUSTED: Final = 64 << 20
_APART: Final = 1 << 62  # in the size of a segment: it is in the message by itself
_MISSING: Final = 1 << 61  # there was no memory for it (FRAME-5)
_SIZE: Final = _MISSING - 1
_PAIR: Final = Struct("<QQ")
_EXIT: Final = Struct("<qq??")


_WRONG_SIZE: Final = "a segment of {} bytes where {} were announced"

Message: TypeAlias = Sequence[Any]


class Frame(NamedTuple):
    """One frame, as `IncomingFrames` finds it. `segments` are views, or sizes (FRAME-5)."""

    slot: int
    kind: int
    flags: int
    number: int  # the field `count`
    chunk_id: int
    offset: int
    function: int
    segments: list[memoryview | int]


class _Mark(NamedTuple):
    """The lists of `OutgoingFrames`, and how long they are."""

    full: int
    small: bytearray
    small_size: int
    large: list[Segment]
    large_count: int
    large_size: int


class OutgoingFrames:
    """The frames that the next messages carry."""

    def __init__(self) -> None:
        self._full: deque[list[Segment]] = deque()  # messages
        self._small = bytearray()
        self._large: list[Segment] = []
        self._large_size = 0

    def __bool__(self) -> bool:
        return bool(self._small or self._large or self._full)

    def add(
        self,
        slot: int,
        kind: int,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        segments: Sequence[Segment | int] = (),
        owned: bool = False,
    ) -> None:
        """Append a frame. MemoryError if there is none for a copy (MESSAGE-2).

        `owned`: the segments are the caller's alone, who never changes them.
        """
        length = sum(map(size_of, segments)) if segments else 0
        parts = len(segments) if length >= LARGE or int in map(type, segments) else 0
        head = _HEAD.pack(slot, kind, flags, parts, count, chunk_id, offset, function, length)
        if parts:
            self._add_large(head, segments, owned)
            return
        small = self._small
        size = len(small)
        try:
            small += head
            for segment in segments:
                small += segment  # type: ignore[arg-type]
            if len(small) >= SMALL_MOST:
                self._seal()
        except MemoryError:  # MESSAGE-2
            del small[size:]
            raise

    def _add_large(self, head: bytes, segments: Sequence[Any], owned: bool) -> None:
        """Append a frame that has parts, behind its pieces (MESSAGE-3)."""
        least = _least_apart(segments)
        large = [segment for segment in segments if _size_here(segment) >= least]
        if not owned:
            large = [segment if is_constant(segment) else bytes(segment) for segment in large]
        sizes = b"".join(_size_word(segment, least).to_bytes(8, "little") for segment in segments)
        near = [segment for segment in segments if 0 <= _size_here(segment) < least]
        tail = b"".join([head, sizes, *near])
        mark = self._mark()
        try:
            for segment in large:
                self._add_segment(segment)
            self._small += tail
            if len(self._small) + self._large_size >= PIECE or len(self._small) >= SMALL_MOST:
                self._seal()
        except MemoryError:
            self._take_back(mark)
            raise

    def _mark(self) -> _Mark:
        large = self._large
        return _Mark(
            len(self._full), self._small, len(self._small), large, len(large), self._large_size
        )

    def _take_back(self, mark: _Mark) -> None:
        """Drop what was added since a mark (MESSAGE-2): nothing of it was taken."""
        while len(self._full) > mark.full:
            self._full.pop()
        self._small, self._large, self._large_size = mark.small, mark.large, mark.large_size
        del self._small[mark.small_size :]
        del self._large[mark.large_count :]

    def _add_segment(self, segment: Any) -> None:
        size = len(segment)
        if self._large_size + size > PIECE and (self._small or self._large):
            self._seal()
        if size > PIECE:
            self._small += _HEAD.pack(0, BEGIN, 0, 0, 0, size, 0, 0, 0)
            segment = memoryview(segment)
        while len(segment) > PIECE:
            self._large.append(segment[:PIECE])
            self._seal()
            segment = segment[PIECE:]
        self._large.append(segment)
        self._large_size += len(segment)

    def _seal(self) -> None:
        """The next frames and pieces go into another message."""
        small, large = bytearray(), list[Segment]()  # first, as there may be no memory for them
        self._full.append([self._small, *self._large])
        self._small, self._large, self._large_size = small, large, 0

    def take(self) -> list[Segment]:
        """The next message of what was added."""
        if not self._full:
            self._seal()
        return self._full.popleft()


def _size_here(segment: Any) -> int:
    """How many bytes a segment has here; -1 if there was no memory for it (FRAME-5)."""
    return -1 if isinstance(segment, int) else len(segment)


def _least_apart(segments: Sequence[Any]) -> int:
    """From which size on the segments of a frame travel by themselves."""
    sizes = map(_size_here, segments)
    small = sum(size for size in sizes if 0 < size < LARGE)
    return LARGE if small < SMALL_MOST else SPLIT


def _size_word(segment: Any, least: int) -> int:
    if isinstance(segment, int):
        return segment | _MISSING
    word = len(segment) | (0 if is_readonly(segment) else WRITABLE)
    return word | _APART if len(segment) >= least else word


def size_of_message(message: Message) -> int:
    """How many bytes a message has, as both sides count them."""
    return sum(memoryview(part).nbytes for part in message)


def read_notice(size: int) -> list[Segment]:
    """A message that says how many more bytes were read."""
    return [_HEAD.pack(0, READ, 0, 0, 0, size, 0, 0, 0)]


def wrapped(message: Sequence[Segment], wrap: Callable[[memoryview], Any]) -> list[Any]:
    """A message as dask writes it (MESSAGE-1); `wrap` is distributed's `to_serialize`."""
    return [message[0], *(wrap(memoryview(segment)) for segment in message[1:])]


class IncomingFrames:
    """Takes the messages of a stream apart."""

    def __init__(self) -> None:
        self._segments: deque[memoryview | int] = deque()  # of frames that are not complete
        self._held = 0  # bytes of these
        self._whole: bytearray | None = None  # what the pieces are copied into
        self._size = self._left = 0  # bytes of that segment, and what has not arrived of it

    def take(self, message: Message) -> list[Frame]:
        """The frames that a message completes. ValueError if it is none."""
        if not message or not isinstance(message[0], bytes | bytearray | memoryview):
            raise ValueError("a message of a host, or of a client, that holds no frames")
        small = memoryview(message[0])
        if _begins(small):
            self._begin(_HEAD.unpack_from(small)[5])
            small = small[_HEAD.size :]
        for part in message[1:]:
            self._add(memoryview(part).cast("B"))
        return list(self._frames(small))

    def _begin(self, size: int) -> None:
        """The next pieces are a segment of so many bytes (MESSAGE-4)."""
        if self._left:
            raise ValueError(_WRONG_SIZE.format(self._size - self._left, self._size))
        self._size = self._left = size
        self._hold(size)
        try:
            self._whole = bytearray(min(size, TRUSTED))
        except MemoryError:
            self._whole = None

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > MAX_PAYLOAD:
            raise ValueError(f"segments of {self._held} bytes that belong to no frame yet")

    def _add(self, piece: memoryview) -> None:
        if not self._left:
            self._hold(len(piece))
            self._segments.append(piece)
            return
        at = self._size - self._left
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(_WRONG_SIZE.format(at + len(piece), self._size))
        self._fill(at, piece)
        if not self._left:
            whole, self._whole = self._whole, None
            self._segments.append(self._size if whole is None else memoryview(whole))

    def _fill(self, at: int, piece: memoryview) -> None:
        whole, end = self._whole, at + len(piece)
        if whole is None:
            return
        if end <= len(whole):
            with memoryview(whole) as view:  # a slice of a bytearray takes a copy of the piece
                view[at:end] = piece
            return
        try:
            del whole[at:]
            whole += piece
        except MemoryError:
            self._whole = None

    def _frames(self, small: memoryview) -> Iterator[Frame]:
        at = 0
        while at < len(small):
            head = _HEAD.unpack_from(small, at)
            slot, kind, flags, parts, count, chunk_id, offset, function, length = head
            at += _HEAD.size
            segments: list[memoryview | int] = []
            if parts:
                sizes = unpack_from(f"<{parts}Q", small, at)
                at += 8 * parts
                for size in sizes:
                    segment, at = self._segment(size, small, at)
                    segments.append(segment)
            elif length:
                segments.append(small[at : at + length].toreadonly())
                at += length
            yield Frame(slot, kind, flags, count, chunk_id, offset, function, segments)

    def _segment(self, size: int, small: memoryview, at: int) -> tuple[memoryview | int, int]:
        length = size & _SIZE
        if size & _MISSING:
            return length, at
        segment: memoryview | int
        if size & _APART:
            segment = self._segments.popleft() if self._segments else memoryview(b"")
            self._held -= size_of(segment)
        else:
            segment = small[at : at + length]
            at += length
        if size_of(segment) != length:
            raise ValueError(_WRONG_SIZE.format(size_of(segment), length))
        return _as_sent(segment, bool(size & WRITABLE)), at


def _begins(small: memoryview) -> bool:
    return len(small) >= _HEAD.size and _HEAD.unpack_from(small)[1] == BEGIN


def _as_sent(segment: memoryview | int, writable: bool) -> memoryview | int:
    if isinstance(segment, int):
        return segment
    if not writable:
        return segment.toreadonly()
    return memoryview(bytearray(segment)) if segment.readonly else segment


def as_payload(segments: list[memoryview | int]) -> Payload:
    """The payload of a frame, as a handler takes it (FRAME-2, FRAME-4)."""
    if not segments:
        return memoryview(b"")
    if len(segments) == 1 and isinstance(segments[0], memoryview):
        return segments[0]
    length = sum(len(part) if isinstance(part, memoryview) else part for part in segments)
    return PayloadParts([_owned(segment) for segment in segments], length)


def _owned(segment: memoryview | int) -> bytes | bytearray | int:
    if isinstance(segment, int):
        return segment
    make = bytes if segment.readonly else bytearray
    whole = segment.obj
    # one of pieces is not copied again
    return whole if type(whole) is make and len(whole) == len(segment) else make(segment)


def segments_of(payload: Payload) -> Sequence[Segment | int]:
    """The segments of a payload that a handler was given."""
    if isinstance(payload, PayloadParts):
        return payload.segments
    return [payload] if payload else ()


def packed_table(running: dict[int, int], now: int) -> bytes:
    """The running items with their ages at `now`, both in nanoseconds of this machine's clock."""
    return b"".join(_PAIR.pack(number, max(now - since, 0)) for number, since in running.items())


def read_table(payload: Payload, now: int) -> dict[int, int]:
    """The start times of running items, in the clock of this machine.

    The way of the table makes an item younger than it is, and never older.
    """
    return {number: now - age for number, age in _PAIR.iter_unpack(bytes(payload))}


class ExitReport(NamedTuple):
    """How a process has ended, and what outlives it."""

    exitcode: int | None  # None: it is not known
    started: int  # items
    intact: bool  # whether its link was
    journal: bytes


def packed_exit(report: ExitReport) -> list[bytes]:
    """A report as a payload."""
    is_known = report.exitcode is not None
    head = _EXIT.pack(report.exitcode or 0, report.started, is_known, report.intact)
    return [head, report.journal]


def read_exit(payload: Payload) -> ExitReport:
    """The report in a payload."""
    data = bytes(payload)
    exitcode, started, is_known, intact = _EXIT.unpack_from(data)
    return ExitReport(exitcode if is_known else None, started, intact, data[_EXIT.size :])
