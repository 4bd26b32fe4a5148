"""What travels between a client and a host: frames of many processes, in messages of a stream.

The frames are those of a link (_wire/frames.py), each with the number of the process that it is
about. What the two sides say to each other beside that are frames too, of kinds of their own. An
`Outbox` collects the frames of one turn of the loop, and makes one message of them; `read` takes a
message apart. The messages themselves are dask's business (distributed.comm).

MESSAGE-1  A message is a list: first the headers with all small payloads, as one bytes-like object,
    then the large segments of payloads, each as dask's serialization carries it without a copy. So
    dask pickles nothing, and its cost does not depend on the number of tasks.
MESSAGE-2  Each frame is what its segments were when it was added (LINK-10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct, unpack_from
from typing import Any, Final, NamedTuple, TypeAlias

from .._wire.frames import (
    WRITABLE,
    Payload,
    PayloadParts,
    Segment,
    is_constant,
    is_readonly,
    size_of,
)

#: The version of this format: a client and its hosts must have the same.
FORMAT: Final = 1

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

FIRST_CONTROL: Final = START

# What SIGNAL may send, as on every POSIX system: Windows does not name the second.
SIGTERM: Final = 15
SIGKILL: Final = 9

#: slot u32, then the header of a frame: kind u8, flags u8, parts u16, count u32, chunk_id u64,
#: offset u32, function u32, length u64
_HEAD: Final = Struct("<IBBHIQIIQ")
#: A segment of this size or more travels by itself.
LARGE: Final = 32 << 10
_APART: Final = 1 << 62  # in the size of a segment: it is in the message by itself
_MISSING: Final = 1 << 61  # there was no memory for it (FRAME-5)
_SIZE: Final = _MISSING - 1
_PAIR: Final = Struct("<QQ")
_EXIT: Final = Struct("<qq??")


class Frame(NamedTuple):
    """One frame, as `read` finds it. `segments` are views of the message, or sizes (FRAME-5)."""

    slot: int
    kind: int
    flags: int
    number: int  # the field `count`
    chunk_id: int
    offset: int
    function: int
    segments: list[memoryview | int]


class Outbox:
    """The frames that the next message carries."""

    def __init__(self) -> None:
        self._small = bytearray()
        self._large: list[Segment] = []

    def __bool__(self) -> bool:
        return bool(self._small)

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
        if not segments:
            self._small += _HEAD.pack(slot, kind, flags, 0, count, chunk_id, offset, function, 0)
            return
        length = sum(map(size_of, segments))
        if length < LARGE and int not in map(type, segments):
            self._small += _HEAD.pack(
                slot, kind, flags, 0, count, chunk_id, offset, function, length
            )
            for segment in segments:
                self._small += segment  # type: ignore[arg-type]
            return
        large: list[Any] = [segment for segment in segments if _travels_apart(segment)]
        if not owned:
            large = [segment if is_constant(segment) else bytes(segment) for segment in large]
        head = _HEAD.pack(
            slot, kind, flags, len(segments), count, chunk_id, offset, function, length
        )
        sizes = b"".join(_size_word(segment).to_bytes(8, "little") for segment in segments)
        near: list[Any] = [segment for segment in segments if _is_near(segment)]
        self._small += b"".join([head, sizes, *near])
        self._large += large

    def take(self) -> list[Segment]:
        """The message of all frames, in order; the outbox is empty then."""
        message = [self._small, *self._large]
        self._small, self._large = bytearray(), []
        return message


def _travels_apart(segment: Any) -> bool:
    return not isinstance(segment, int) and len(segment) >= LARGE


def _is_near(segment: Any) -> bool:
    return not isinstance(segment, int) and len(segment) < LARGE


def _size_word(segment: Any) -> int:
    if isinstance(segment, int):
        return segment | _MISSING
    word = len(segment) | (0 if is_readonly(segment) else WRITABLE)
    return word | _APART if _travels_apart(segment) else word


def wrapped(message: Sequence[Segment], wrap: Callable[[memoryview], Any]) -> list[Any]:
    """A message as dask writes it (MESSAGE-1); `wrap` is distributed's `to_serialize`."""
    return [message[0], *(wrap(memoryview(segment)) for segment in message[1:])]


Message: TypeAlias = Sequence[Any]


def read(message: Message) -> Iterator[Frame]:
    """The frames of a message. ValueError if it is none."""
    if not message or not isinstance(message[0], bytes | bytearray | memoryview):
        raise ValueError("a message of a host, or of a client, that holds no frames")
    small = memoryview(message[0])
    large = iter(message[1:])
    at = 0
    while at < len(small):
        slot, kind, flags, parts, count, chunk_id, offset, function, length = _HEAD.unpack_from(
            small, at
        )
        at += _HEAD.size
        segments: list[memoryview | int] = []
        if parts:
            sizes = unpack_from(f"<{parts}Q", small, at)
            at += 8 * parts
            for size in sizes:
                segment, at = _segment(size, small, at, large)
                segments.append(segment)
        elif length:
            segments.append(small[at : at + length].toreadonly())
            at += length
        yield Frame(slot, kind, flags, count, chunk_id, offset, function, segments)


def _segment(
    size: int, small: memoryview, at: int, large: Iterator[Any]
) -> tuple[memoryview | int, int]:
    length = size & _SIZE
    if size & _MISSING:
        return length, at
    if size & _APART:
        segment = memoryview(next(large)).cast("B")
    else:
        segment = small[at : at + length]
        at += length
    if len(segment) != length:
        raise ValueError(f"a segment of {len(segment)} bytes where {length} were announced")
    if not size & WRITABLE:
        return segment.toreadonly(), at
    return (memoryview(bytearray(segment)) if segment.readonly else segment), at


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
    return bytes(segment) if segment.readonly else bytearray(segment)


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
