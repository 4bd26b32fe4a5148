"""amp_ext.buffer_builder: large objects that are filled piece by piece."""

class BufferBuilder:
    """A bytes object, or a bytearray, of a known size that is filled piece by piece.

    A large object is in huge pages where the system has them. Use it in one thread at a time: `add`
    releases the GIL while it copies a large piece.
    """

    #: How many bytes are still missing.
    missing: int

    def __init__(self, size: int, writable: bool) -> None:
        """Expect `size` bytes; memory grows as they come, in steps of address space."""

    def add(self, piece: memoryview) -> None:
        """Append a piece. ValueError if it is larger than what is missing."""

    def take(self) -> bytes | bytearray:
        """The object, a bytearray if it is `writable`. ValueError if bytes are missing."""

def reserve(size: int) -> bytes:
    """Memory for a snapshot of `size` bytes, with arbitrary content; or MemoryError."""

def snapshot(
    source: bytes | bytearray | memoryview, start: int = 0, reserved: bytes | None = None
) -> bytes:
    """A copy of `source`, in which the bytes before `start` are not copied and are arbitrary.

    `reserved` is an object of `reserve` that no other code refers to; with it, this function
    allocates no memory.
    """
