from collections.abc import Sequence
from typing import Any, Protocol

class Parts(Protocol):
    """A payload in segments, of which those that are large values become them.

    An int is the size of a segment that did not arrive: items that were in it are failures.
    """

    @property
    def segments(self) -> Sequence[bytes | bytearray | int]: ...
    def __len__(self) -> int: ...

class CorruptFrameError(ValueError): ...

def decode_items(
    payload: bytes | memoryview | Parts, count: int
) -> tuple[list[Any], dict[int, BaseException] | None]: ...
def loads(payload: bytes | memoryview) -> Any: ...
