"""The frames that travel between the parent and a worker: their header and what they say.

Both engines use this module to speak, and both transports to carry frames. A frame is a header of
`HEADER_SIZE` bytes and `length` bytes of payload. The header says what the frame is and which tasks
it is about. The payload is the codec's business, and never needed to find out whose task it belongs
to, so a payload that cannot be decoded fails its own tasks and no others.

FRAME-1  Every field is unsigned and little endian. `parts` is at most `MAX_PARTS` and `length` at
    most `MAX_PAYLOAD`; a received header that says otherwise is corrupt.
FRAME-2  A frame is handed over whole, as a call of a `Handler`. Its payload is valid during that
    call.
FRAME-3  A payload that comes in pieces takes as much memory as has arrived, whatever its header
    says.
FRAME-4  A payload that has several segments, and is too large to be handed over from where it
    arrives, arrives as `PayloadParts`: the same segments, as bytes or bytearrays that the handler
    may keep. So a large value is filled from the channel, and not copied out of a payload. The
    field `parts` says how many segments there are. Their sizes are between header and payload:
    eight bytes each, none of them zero, with the bit `WRITABLE` for a segment that becomes a
    bytearray.
FRAME-5  A payload for which there is no memory arrives without its bytes, and its channel goes on.
    It is `PayloadParts` in which a size replaces the segment that is missing; the receiver drops
    the rest of that segment. So what does not fit into memory fails its own tasks and no others.
FRAME-6  A part whose size has the bit `LENT` is not the segment but names the shared memory in
    which it lies (_transport/segments.py). It arrives as a view of that memory, as long as the
    segment, and readonly unless the bit `WRITABLE` is set.

This module imports nothing of the package, because a new worker loads it first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct, pack
from typing import Any, Final, Protocol, TypeAlias

#: kind u8, flags u8, parts u16, count u32, chunk_id u64, offset u32, function u32, length u64
HEADER: Final = Struct("<BBHIQIIQ")
HEADER_SIZE: Final = HEADER.size

#: The largest value of a field of 32 bits, as `count` is.
MAX_COUNT: Final = (1 << 32) - 1

#: The largest payload of one frame, in bytes (64 GiB, on 32 bits 2 GiB, as much as an object can
#: have there); a header with a larger one is corrupt.
MAX_PAYLOAD: Final = min(1 << 36, sys.maxsize)

#: FRAME-4: the most segments of a payload that has parts; one with more arrives as a single view.
MAX_PARTS: Final = 1024
PART_SIZE: Final = 8
WRITABLE: Final = 1 << 63
#: FRAME-6: the flag of a part that lies elsewhere, and the fewest bytes that this is worth.
LENT: Final = 1 << 62
LENT_MIN: Final = 256 << 10

#: One contiguous piece of a payload, in bytes. `len()` must count bytes: cast a memoryview to "B".
Segment: TypeAlias = bytes | bytearray | memoryview
#: A segment as `PayloadParts` has it.
Part: TypeAlias = bytes | bytearray | memoryview | int


class PayloadParts:
    """A payload in segments (FRAME-4). Like a view of the whole, it has a length and makes bytes.

    An int in `segments` is the size of a segment for which there was no memory (FRAME-5); `bytes`
    of such a payload raises MemoryError. A memoryview is a segment that was lent (FRAME-6).
    """

    __slots__ = ("_length", "segments")

    def __init__(self, segments: list[Part], length: int) -> None:
        self.segments = segments
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(map(_present, self.segments))


def _present(segment: Part) -> Segment:
    if isinstance(segment, int):
        raise MemoryError(f"there is no memory, or no descriptor, for {segment} bytes")
    return segment


def size_of(segment: Part) -> int:
    """How many bytes a segment has, or had at the sender (FRAME-5)."""
    return segment if isinstance(segment, int) else len(segment)


def as_bytes(payload: Payload) -> bytes | memoryview:
    """The payload as one object. MemoryError if there was no memory for it (FRAME-5)."""
    return payload if isinstance(payload, memoryview) else bytes(payload)


#: What a handler takes.
Payload: TypeAlias = memoryview | PayloadParts


class Handler(Protocol):
    """A callable that takes the frames of a link, one in each call (FRAME-2)."""

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
        """Take a frame. `payload` is a `Payload`: a view, if it was sent as one segment."""


class Kind:
    """What a frame says. The comments name the header fields that it uses, and its payload.

    Plain numbers: every process imports this module at its start, and an enum takes long to make.
    """

    # parent -> worker
    FUNCTION = 1  # function: its number, flags: STATEFUL, BLOCKING; payload: the pickled callable
    FORGET = 2  # function: a number that no later chunk names
    # chunk_id, count: items, function, flags: Mode, and TIMED if the items have a time limit,
    # offset: microseconds that the worker may run before it sends results; payload: the items
    CHUNK = 3
    # chunk_id, offset: item, count: 0, flags: TIMED if it is over its time limit, and then payload:
    # the item in words, and the limit; or count: this many items from `offset` on, whose results
    # will not be read: those that are not started may be answered with any
    CANCEL = 4
    CLOSE = 5  # finish the items that the worker has, then exit
    PULL = 6  # chunk_id: of a stream, count: so many more values may come
    CONTEXT = 7  # values of context variables for the chunks that follow; payload: these
    UNSHARE = 8  # chunk_id: the number of a shared object that was released
    # worker -> parent
    READY = 16  # the initializer has run; the worker takes chunks
    BROKEN = 17  # the initializer failed; payload: its exception
    RESULTS = 18  # chunk_id, offset: first item, count: items; payload: the results
    ERROR = 19  # chunk_id, offset: item; payload: the exception
    # count: free slots, 0 if items wait in the worker; offset: free threads beyond those that the
    # waiting items will take; chunk_id: how many items the worker has received in all
    NEED_WORK = 20
    # no item runs, the process is about to exit; payload: what may delay it. count is 1 while the
    # lifespan is left, which comes before
    LEAVING = 21
    REFUSED = 22  # as ERROR, for an item or function for which the worker has no memory
    TIMED_OUT = 23  # as ERROR, for an item that its time limit has cancelled
    VALUES = 24  # chunk_id: of a stream, count: values; payload: the next values
    LOG = 25  # count: log records that were dropped before; payload: a pickled list of records
    RETIRING = 26  # the worker starts nothing more, and waits for CLOSE; payload: why
    RETURNED = 27  # chunk_id, offset: first item, count: items that were not started
    # CLOSE has arrived, and only what may take any time keeps the worker. count: open streams; or
    # 0, if it has only calls that were given up; payload: their threads and tasks
    HELD = 28
    NEED_SHARED = 29  # payload: the number of a shared object for which no descriptor was left


#: Flags of a FUNCTION.
STATEFUL: Final = 1  # each item gets a copy of its own
BLOCKING: Final = 2  # a plain function: it runs in a thread, if the worker has threads


class Mode(IntEnum):
    """How a chunk's function is called with an item."""

    MAP = 0  # func(item)
    STAR = 1  # func(*item)
    APPLY = 2  # item is (args, kwargs)
    STREAM = 3  # item is (args, kwargs, ahead): the values of a generator, at most `ahead` unread


#: A flag of CHUNK and CANCEL, beside the Mode.
TIMED: Final = 0x10


class CorruptHeaderError(ValueError):
    """A header that no sound peer sends. The link must read no more from its channel."""


def check_header(parts: int, length: int) -> None:
    """Raise CorruptHeaderError unless a received header obeys FRAME-1."""
    if parts > MAX_PARTS or length > MAX_PAYLOAD:
        raise CorruptHeaderError(
            f"a frame header with {parts} parts (the limit is {MAX_PARTS}) and a payload of "
            f"{length} bytes (the limit is {MAX_PAYLOAD})"
        )


class PayloadTooLargeError(ValueError):
    """A payload is over the limit of one frame: nothing of it was sent."""


def check_payload(size: int) -> None:
    """Raise PayloadTooLargeError for a payload that is over the limit."""
    if size <= MAX_PAYLOAD:
        return
    raise PayloadTooLargeError(
        f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD} bytes for one frame: "
        "pass it in parts, or pass a file name"
    )


def part_sizes(segments: Sequence[Segment]) -> bytes:
    """The sizes of segments, as a payload that has parts needs them before it (FRAME-4)."""
    return pack_sizes(
        [len(segment) | (0 if is_readonly(segment) else WRITABLE) for segment in segments]
    )


def pack_sizes(sizes: Sequence[int]) -> bytes:
    """Sizes of parts, with their flags, as they are before a payload."""
    return pack(f"<{len(sizes)}Q", *sizes)


def is_readonly(segment: Segment) -> bool:
    """Whether the receiver makes bytes of a segment, and not a bytearray (FRAME-4)."""
    return type(segment) is bytes or (type(segment) is memoryview and segment.readonly)


def is_constant(segment: Segment) -> bool:
    """Whether no code can change a segment, so that it may be kept without a copy."""
    return type(segment) is bytes or (type(segment) is memoryview and type(segment.obj) is bytes)
