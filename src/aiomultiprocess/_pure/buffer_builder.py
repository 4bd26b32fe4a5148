"""A bytes object of a known size that is filled piece by piece; `amp_ext.buffer_builder` in
Python."""

from __future__ import annotations

from io import BytesIO


class BufferBuilder:
    """A bytes object, or a bytearray, of a known size that is filled piece by piece (FRAME-3).

    `amp_ext.buffer_builder` does the same faster; `backend` has chosen.
    """

    def __init__(self, size: int, writable: bool) -> None:
        self.missing = size
        self._bytes = None if writable else BytesIO()
        self._bytearray = bytearray()

    def add(self, piece: memoryview) -> None:
        """Append a piece. ValueError if it is more than is missing."""
        if len(piece) > self.missing:
            raise ValueError(f"{len(piece)} bytes where {self.missing} are missing")
        if self._bytes is None:
            self._bytearray += piece
        else:
            self._bytes.write(piece)
        self.missing -= len(piece)

    def take(self) -> bytes | bytearray:
        """The object, if nothing is missing; a bytearray if it was to be `writable`."""
        if self.missing:
            raise ValueError(f"{self.missing} bytes are missing")
        return self._bytearray if self._bytes is None else self._bytes.getvalue()
