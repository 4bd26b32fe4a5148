"""What travels between the parent and a worker: one header, two vocabularies.

Both transports carry the same frames: a header of `HEADER_SIZE` bytes, then `length` bytes of
payload. The header says what the frame is and which tasks it is about; the payload is the codec's
business and is never needed to tell whose task it belongs to, so a payload that cannot be decoded
fails its own tasks and no others.

FRAME-1  Every field is unsigned and little endian, `parts` never exceeds `MAX_PARTS`, nor `length`
    `MAX_PAYLOAD`. A received header that says otherwise is corrupt.
FRAME-2  A frame is handed over whole, as a call of a `Handler`; its payload is valid during that
    call.
FRAME-3  A payload that comes in pieces takes as much memory as has arrived, whatever its header
    claims.
FRAME-4  A payload that is too large to be handed over from where it arrives, and has several
    segments, arrives as `PayloadParts`: as the same segments, bytes or bytearrays, which are the
    handler's to
    keep. Then `parts` says how many, and between header and payload stand their sizes, eight bytes
    each
    and none of them zero, with the bit `WRITABLE` for what is to be a bytearray. So large values
    are filled from the channel, and not from a copy of the payload.
FRAME-5  A payload for which there is no memory arrives without it, and its channel goes on: it is
    `PayloadParts` in which the size of what is missing stands for a segment, and the rest of that
    segment is received and dropped. So what cannot be held fails its own tasks and no others.

Used by both engines and by the transports. Imports nothing of ours: a fresh worker loads it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct, pack
from typing import Any, Final, Protocol, TypeAlias

#: kind u8, flags u8, parts u16, count u32, ident u64, offset u32, function u32, length u64
HEADER: Final = Struct("<BBHIQIIQ")
HEADER_SIZE: Final = HEADER.size

#: The largest value of a field of 32 bits, as `count` is.
MAX_COUNT: Final = (1 << 32) - 1

#: The largest payload of one frame, in bytes (64 GiB): beyond it, a length is taken for damage.
MAX_PAYLOAD: Final = 1 << 36

#: FRAME-4: the most segments that a payload keeps; one of more arrives as a single view.
MAX_PARTS: Final = 1024
PART_SIZE: Final = 8
WRITABLE: Final = 1 << 63

#: One contiguous piece of a payload, in bytes. `len()` must count bytes: cast a memoryview to "B".
Segment: TypeAlias = bytes | bytearray | memoryview


class PayloadParts:
    """A payload in segments (FRAME-4). Like a view of the whole it has a length, and makes bytes.

    An int is the size of a segment for which there was no memory (FRAME-5): then MemoryError is
    raised for the bytes of the whole.
    """

    __slots__ = ("_length", "segments")

    def __init__(self, segments: list[bytes | bytearray | int], length: int) -> None:
        self.segments = segments
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(map(_present, self.segments))


def _present(segment: bytes | bytearray | int) -> bytes | bytearray:
    if isinstance(segment, int):
        raise MemoryError(f"there is no memory for {segment} bytes")
    return segment


def size_of(segment: bytes | bytearray | int) -> int:
    """How many bytes a segment has, or would have (FRAME-5)."""
    return segment if isinstance(segment, int) else len(segment)


def as_bytes(payload: Payload) -> bytes | memoryview:
    """A payload to be read as a whole. MemoryError if there was no memory for it (FRAME-5)."""
    return payload if isinstance(payload, memoryview) else bytes(payload)


#: What a handler is given.
Payload: TypeAlias = memoryview | PayloadParts


class Handler(Protocol):
    """What takes the frames that a link receives, one a call (FRAME-2)."""

    def __call__(
        self,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: Any,
        /,
    ) -> None:
        """Take one frame. `payload` is a `Payload`: a view, if it was sent as one segment."""


class Kind(IntEnum):
    """What a frame says; which header fields and which payload it has."""

    # parent -> worker
    FUNCTION = 1  # function: its id, flags: 1 if it has state; payload: the pickled callable
    FORGET = 2  # function: an id that no later chunk names
    # ident: chunk, count: items, function, flags: Mode, offset: microseconds that the worker may
    # run before it answers; payload: the items
    CHUNK = 3
    CANCEL = 4  # ident: chunk, offset: item
    CLOSE = 5  # finish what is here, then exit
    # worker -> parent
    READY = 16  # the initializer has run, chunks are welcome
    BROKEN = 17  # the initializer failed; payload: its exception
    RESULTS = 18  # ident: chunk, offset: first item, count: items; payload: the results
    ERROR = 19  # ident: chunk, offset: item; payload: the exception
    NEED_WORK = 20  # count: free slots; nothing waits here
    LEAVING = 21  # no more items run, the process is about to exit; payload: what may hold it
    REFUSED = 22  # as ERROR, of an item or function for which the worker has no memory


class Mode(IntEnum):
    """How a chunk's function is called with an item."""

    MAP = 0  # func(item)
    STAR = 1  # func(*item)
    APPLY = 2  # item is (args, kwargs)


class CorruptHeaderError(ValueError):
    """A header that no peer of ours can have sent: its channel is not to be trusted any more."""


def check_header(parts: int, length: int) -> None:
    """Raise `CorruptHeaderError` unless a received header keeps FRAME-1."""
    if parts > MAX_PARTS or length > MAX_PAYLOAD:
        raise CorruptHeaderError(
            f"a frame header with {parts} parts (the limit is {MAX_PARTS}) and a payload of "
            f"{length} bytes (the limit is {MAX_PAYLOAD})"
        )


def refuse_payload(size: int) -> None:
    """Raise the error of a payload that is over the limit."""
    raise ValueError(
        f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD} bytes for one frame: "
        "pass it in parts, or pass a file name"
    )


def part_sizes(segments: Sequence[Segment]) -> bytes:
    """The sizes of segments, as they stand before a payload that has parts (FRAME-4)."""
    sizes = [len(segment) | (0 if is_readonly(segment) else WRITABLE) for segment in segments]
    return pack(f"<{len(sizes)}Q", *sizes)


def is_readonly(segment: Segment) -> bool:
    """Whether whoever receives a segment wants it as bytes."""
    return type(segment) is bytes or (type(segment) is memoryview and segment.readonly)


def is_constant(segment: Segment) -> bool:
    """Whether nobody can change a segment, so that it may be kept without a copy."""
    return type(segment) is bytes or (type(segment) is memoryview and type(segment.obj) is bytes)


class Dropped:
    """What a `BufferBuilder` would be if there were memory for it: its pieces are dropped
    (FRAME-5)."""

    def __init__(self, size: int, missing: int) -> None:
        self.missing = missing
        self._size = size

    def add(self, piece: memoryview) -> None:
        """Drop a piece."""
        self.missing -= len(piece)

    def take(self) -> int:
        """The size, in place of the object."""
        return self._size
