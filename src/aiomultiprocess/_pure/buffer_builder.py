"""Large objects that are filled piece by piece: the twin of `amp_ext.buffer_builder` in Python."""

from __future__ import annotations

from io import BytesIO


class BufferBuilder:
    """A bytes object, or a bytearray, of a known size that is filled piece by piece (FRAME-3).

    `amp_ext.buffer_builder` does the same faster; `_accel` chooses one of the two.
    """

    def __init__(self, size: int, writable: bool) -> None:
        self.missing = size
        self._bytes = None if writable else BytesIO()
        self._bytearray = bytearray()

    def add(self, piece: memoryview) -> None:
        """Append a piece. ValueError if it is larger than what is missing."""
        if len(piece) > self.missing:
            raise ValueError(f"a piece of {len(piece)} bytes where {self.missing} are missing")
        if self._bytes is None:
            self._bytearray += piece
        else:
            self._bytes.write(piece)
        self.missing -= len(piece)

    def take(self) -> bytes | bytearray:
        """The object, a bytearray if it is `writable`. ValueError if bytes are missing."""
        if self.missing:
            raise ValueError(f"{self.missing} bytes are missing")
        return self._bytearray if self._bytes is None else self._bytes.getvalue()
