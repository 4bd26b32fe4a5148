"""Put a payload together that arrives in pieces.

A link of either transport has one `Assembly`, and fills it with the fragments of a large frame.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack
from typing import Final, Protocol

from .frames import (
    LENT,
    MAX_PAYLOAD,
    PART_SIZE,
    WRITABLE,
    CorruptHeaderError,
    Handler,
    Part,
    PayloadParts,
    Segment,
    size_of,
)

#: Bytes of the largest buffer that is kept for the next payload that arrives in pieces.
KEEP: Final = 1 << 21


class Builder(Protocol):
    """What fills an object piece by piece: a `BufferBuilder`, or `Dropped`."""

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""

    def add(self, piece: memoryview, /) -> None:
        """Append a piece."""

    def take(self) -> bytes | bytearray | int:
        """The object, if nothing is missing."""


class Borrow(Protocol):
    """Takes what a lent part names (FRAME-6)."""

    def __call__(self, part: bytes | bytearray, *, writable: bool) -> memoryview | int:
        """The segment; its size if there is no memory for it. CorruptHeaderError if it is none."""


def borrow_nothing(part: bytes | bytearray, *, writable: bool) -> memoryview | int:
    """For a link that has no segments."""
    raise CorruptHeaderError("a lent part, on a link that has none")


class Dropped:
    """A builder for an object for which there is no memory: it drops its pieces (FRAME-5)."""

    def __init__(self, size: int, missing: int) -> None:
        self.missing = missing
        self._size = size

    def add(self, piece: memoryview) -> None:
        """Drop a piece."""
        self.missing -= len(piece)

    def take(self) -> int:
        """The size of the object, in its place."""
        return self._size


class Assembly:
    """Collects one payload at a time, and hands it over as one view, or in parts (FRAME-4).

    Payloads that are handed over as views share one buffer, one after another: filling new memory
    costs a page fault for each 4 KiB, which is twenty times the cost of the copy itself.
    """

    def __init__(
        self, builder: Callable[[int, bool], Builder], borrow: Borrow = borrow_nothing
    ) -> None:
        """`builder(size, writable)` makes the `BufferBuilder` for one part."""
        self._builder = builder
        self._borrow = borrow
        self._data = bytearray()
        self._sizes: list[int] = []  # of the parts to come, the last first
        self._parts: list[Part] = []
        self._part: Builder | None = None
        self._part_size = 0
        self._part_flags = 0
        self._dropped = False  # FRAME-5, for a payload that is one view
        self._in_parts = False
        self._filled = 0
        self._length = 0
        self._fields = (0, 0, 0, 0, 0, 0)

    @property
    def missing(self) -> int:
        """How many bytes are still to come; 0 if nothing is being assembled."""
        return self._length - self._filled

    def begin(
        self, fields: tuple[int, int, int, int, int, int], length: int, sizes: Segment = b""
    ) -> None:
        """Expect a payload of `length` bytes, for a call of the handler with `fields`.

        `sizes`, as the frame has them before its payload, are those of its parts, if it has parts.
        """
        self._fields = fields
        self._length = length
        self._filled = 0
        self._parts, self._part = [], None
        self._dropped = False
        self._in_parts = len(sizes) > 0
        self._sizes = list(unpack(f"<{len(sizes) // PART_SIZE}Q", sizes))[::-1]
        if self._in_parts:
            self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = [size & ~(WRITABLE | LENT) for size in self._sizes]
        if not all(sizes) or sum(sizes) != self._length:
            raise CorruptHeaderError(f"parts of {sizes[::-1]} bytes in a payload of {self._length}")

    def add(self, piece: memoryview) -> None:
        """Append a piece; memory grows by its size (FRAME-3)."""
        end = self._filled + len(piece)
        if end > self._length:
            raise CorruptHeaderError(f"more than the {self._length} bytes that were announced")
        if self._in_parts:
            self._add_to_parts(piece)
        elif not self._dropped:
            self._add_to_data(piece, end)
        self._filled = end

    def _add_to_data(self, piece: memoryview, end: int) -> None:
        if end <= len(self._data):
            with memoryview(self._data) as data:
                data[self._filled : end] = piece
            return
        try:
            del self._data[self._filled :]
            self._data += piece
        except MemoryError:  # FRAME-5
            self._dropped, self._data = True, bytearray()

    def _add_to_parts(self, piece: memoryview) -> None:
        at = 0
        while at < len(piece):
            part = self._part or self._next_part()
            end = min(len(piece), at + part.missing)
            with piece[at:end] as section:
                part = self._add_to_part(part, section)
            at = end
            if not part.missing:
                self._end_part(part)

    def _add_to_part(self, part: Builder, piece: memoryview) -> Builder:
        missing = part.missing
        try:
            part.add(piece)
        except MemoryError:  # FRAME-5
            part = Dropped(self._part_size, missing - len(piece))
        self._part = part
        return part

    def _end_part(self, part: Builder) -> None:
        taken: Part
        try:
            taken = part.take()
            if self._part_flags & LENT and not isinstance(taken, int):
                taken = self._borrow(taken, writable=self._part_flags >= WRITABLE)
        except MemoryError:  # FRAME-5
            taken = self._part_size
        self._parts.append(taken)
        self._part = None

    def _next_part(self) -> Builder:
        self._part_flags = size = self._sizes.pop()
        self._part_size = size & ~(WRITABLE | LENT)
        try:
            return self._builder(self._part_size, size >= WRITABLE)
        except MemoryError:  # FRAME-5
            return Dropped(self._part_size, self._part_size)

    def deliver(self, handler: Handler) -> None:
        """Hand the frame over. CorruptHeaderError if bytes of it are missing."""
        if self.missing:
            raise CorruptHeaderError(f"{self.missing} of {self._length} bytes never came")
        length = self._length
        self._length = self._filled = 0
        if self._in_parts:
            self._deliver_parts(handler, length)
            return
        if self._dropped:
            handler(*self._fields, PayloadParts([length], length))
            return
        data = self._data
        if len(data) > KEEP:
            self._data = bytearray()
        with memoryview(data) as whole, whole[:length] as payload:
            handler(*self._fields, payload)

    def _deliver_parts(self, handler: Handler, length: int) -> None:
        if any(type(part) in (memoryview, int) for part in self._parts):  # what was lent has a size
            length = sum(map(size_of, self._parts))
            if length > MAX_PAYLOAD:
                raise CorruptHeaderError(f"lent parts make a payload of {length} bytes")
        payload = PayloadParts(self._parts, length)
        self._parts = []
        try:
            handler(*self._fields, payload)
        finally:
            payload.segments.clear()  # FRAME-2
