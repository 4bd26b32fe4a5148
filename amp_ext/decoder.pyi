from collections.abc import Callable, Sequence
from typing import Any, Protocol

class PayloadParts(Protocol):
    """A payload in segments; a segment that is a large value becomes that value.

    An int is the size of a segment that did not arrive: the items in it are failures.
    """

    @property
    def segments(self) -> Sequence[bytes | bytearray | int]: ...
    def __len__(self) -> int: ...

class CorruptFrameError(ValueError): ...

def decode_items(
    payload: bytes | memoryview | PayloadParts, count: int, skip: int = 0
) -> tuple[list[Any], dict[int, BaseException] | None]: ...
def receive_references(receive: Callable[[int], Any]) -> None: ...
def loads(payload: bytes | memoryview) -> Any: ...
