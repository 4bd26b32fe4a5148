"""amp_ext.link: whole small frames in and out of a ring. Used by aiomultiprocess.shm alone."""

from collections.abc import Callable, Sequence
from typing import final

from typing_extensions import Buffer

from amp_ext.ring import Consumer, Producer

def write_frame(
    producer: Producer,
    most: int,
    kind: int,
    flags: int,
    count: int,
    ident: int,
    offset: int,
    function: int,
    payload: Sequence[Buffer],
    /,
) -> bool:
    """Write a header and the joined payload as one record.

    False, and nothing is written, if that is more than `most` bytes or there is no room now (or
    this machine is big endian, and the wire is not).
    """

@final
class Inlet:
    def __init__(
        self,
        consumer: Consumer,
        handler: Callable[[int, int, int, int, int, int, memoryview], None],
        on_record: Callable[[int, memoryview], None],
        on_quarter: Callable[[], None],
        most_frames: int,
        most_bytes: int,
        quarter: int,
    ) -> None:
        """Call `handler(kind, flags, count, ident, offset, function, payload)` for each frame that
        is one record with a plain header, `on_record(flags, record)` for every other record, and
        `on_quarter()` when `quarter` bytes were read. Views are released when the call returns.
        """

    def hand_over(self) -> tuple[int, bool]:
        """Hand over what there is; the consumer is awake as soon as there is anything.

        Returns how many records it was, and whether a limit, `most_frames` or about `most_bytes`,
        ended it, so that there may be more. What a handler raises ends it too.
        """

    def stop(self) -> None:
        """Hand over nothing more."""

    def asleep(self) -> bool:
        """Whether there is nothing to hand over: the consumer's last `sleep` holds, or stopped."""
