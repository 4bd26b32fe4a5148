"""amp_ext.buffer_builder: large objects are filled from pieces without a detour."""

class BufferBuilder:
    """A bytes object, or a bytearray, of a known size that is filled piece by piece.

    What is large is in large pages where the system has them. For one thread at a time: the GIL is
    given up while a large piece is copied.
    """

    #: How many bytes are still to come.
    missing: int

    def __init__(self, size: int, writable: bool) -> None:
        """Expect `size` bytes; memory for them is taken as they come."""

    def add(self, piece: memoryview) -> None:
        """Append a piece. ValueError if it is more than is missing."""

    def take(self) -> bytes | bytearray:
        """The object, if nothing is missing; a bytearray if it was to be `writable`."""

def reserve(size: int) -> bytes:
    """Memory for a snapshot of so many bytes; what is in there may be anything until it is taken.

    MemoryError if it cannot be had.
    """

def snapshot(
    source: bytes | bytearray | memoryview, start: int = 0, reserved: bytes | None = None
) -> bytes:
    """A copy of as many bytes, of which those before `start` are not copied and may be anything.

    It is made in `reserved`, which nobody else may have seen, and then takes no memory.
    """
