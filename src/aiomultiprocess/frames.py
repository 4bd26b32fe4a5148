"""What travels between the parent and a worker: one header, two vocabularies.

Both transports carry the same frames: a header of `HEADER_SIZE` bytes, then `length` bytes of
payload. The header says what the frame is and which tasks it is about; the payload is the codec's
business and is never needed to tell whose task it belongs to, so a payload that cannot be decoded
fails its own tasks and no others.

F1  Every field is unsigned and little endian, `reserved` is zero, and `length` never exceeds
    `MAX_PAYLOAD`. A received header that says otherwise is corrupt.
F2  A frame is handed over whole, as a call of a `Handler`; its payload is valid during that call.
F3  A payload that comes in pieces takes as much memory as has arrived, whatever its header claims.

Used by both engines and by the transports. Imports nothing of ours: a fresh worker loads it first.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Final, TypeAlias

#: kind u8, flags u8, reserved u16, count u32, ident u64, offset u32, function u32, length u64
HEADER: Final = Struct("<BBHIQIIQ")
HEADER_SIZE: Final = HEADER.size

#: The largest payload of one frame, in bytes (64 GiB): beyond it, a length is taken for damage.
MAX_PAYLOAD: Final = 1 << 36

#: A buffer of up to so many bytes is kept for the next payload that arrives in pieces.
KEEP: Final = 1 << 21

#: One contiguous piece of a payload, in bytes. `len()` must count bytes: cast a memoryview to "B".
Segment: TypeAlias = bytes | bytearray | memoryview

#: Called as `handler(kind, flags, count, ident, offset, function, payload)`, see F2.
Handler: TypeAlias = Callable[[int, int, int, int, int, int, memoryview], None]


class Kind(IntEnum):
    """What a frame says; which header fields and which payload it has."""

    # parent -> worker
    FUNCTION = 1  # function: its id, flags: 1 if it has state; payload: the pickled callable
    FORGET = 2  # function: an id that no later chunk names
    CHUNK = 3  # ident: chunk, count: items, function, flags: Mode; payload: the items
    CANCEL = 4  # ident: chunk, offset: item
    CLOSE = 5  # finish what is here, then exit
    # worker -> parent
    READY = 16  # the initializer has run, chunks are welcome
    BROKEN = 17  # the initializer failed; payload: its exception
    RESULTS = 18  # ident: chunk, offset: first item, count: items; payload: the results
    ERROR = 19  # ident: chunk, offset: item; payload: the exception
    WANT = 20  # count: free slots; nothing waits here


class Mode(IntEnum):
    """How a chunk's function is called with an item."""

    MAP = 0  # func(item)
    STAR = 1  # func(*item)
    APPLY = 2  # item is (args, kwargs)


class CorruptHeaderError(ValueError):
    """A header that no peer of ours can have sent: its channel is not to be trusted any more."""


def check_header(reserved: int, length: int) -> None:
    """Raise `CorruptHeaderError` unless a received header keeps F1."""
    if reserved or length > MAX_PAYLOAD:
        raise CorruptHeaderError(
            f"a frame header with reserved={reserved:#x} and a payload of {length} bytes "
            f"(the limit is {MAX_PAYLOAD})"
        )


def refuse_payload(size: int) -> None:
    """Raise the error of a payload that is over the limit."""
    raise ValueError(
        f"a payload of {size} bytes is over the limit of {MAX_PAYLOAD} bytes for one frame: "
        "pass it in parts, or pass a file name"
    )


class Assembly:
    """A payload that arrives in pieces, one after another of them in the same buffer.

    To fill fresh memory costs a page fault for each 4 KiB, several times the copying itself: for
    payloads around a megabyte, keeping the buffer is what makes the transport fast.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._filled = 0
        self._length = 0
        self._fields = (0, 0, 0, 0, 0, 0)

    @property
    def missing(self) -> int:
        """How many bytes are still to come; 0 if nothing is being assembled."""
        return self._length - self._filled

    def begin(self, fields: tuple[int, int, int, int, int, int], length: int) -> None:
        """Expect a payload of `length` bytes, to be handed over behind `fields`."""
        self._fields = fields
        self._length = length
        self._filled = 0

    def add(self, piece: memoryview) -> None:
        """Append a piece. F3: the buffer grows with it."""
        end = self._filled + len(piece)
        if end > self._length:
            raise CorruptHeaderError(f"more than the {self._length} bytes that were announced")
        if end <= len(self._data):
            with memoryview(self._data) as data:
                data[self._filled : end] = piece
        else:
            del self._data[self._filled :]
            self._data += piece
        self._filled = end

    def deliver(self, handler: Handler) -> None:
        """Hand the frame over."""
        if self.missing:
            raise CorruptHeaderError(f"{self.missing} of {self._length} bytes never came")
        data, length = self._data, self._length
        if len(data) > KEEP:
            self._data = bytearray()
        self._length = self._filled = 0
        with memoryview(data) as whole, whole[:length] as payload:
            handler(*self._fields, payload)
