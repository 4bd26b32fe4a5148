"""amp_ext.link: whole small frames in and out of a ring, for `_transport.shm` alone."""

from collections.abc import Callable, Sequence, Sized
from typing import Any, final

from typing_extensions import Buffer

from amp_ext.doorbell import Doorbell
from amp_ext.ring import Consumer, Producer, RingCorruptError

@final
class Outlet:
    def __init__(
        self,
        producer: Producer,
        bell: Doorbell,
        outbox: Sized,
        on_other: Callable[[int, int, int, int, int, int, Any], None],
        on_corrupt: Callable[[RingCorruptError], None],
        most: int,
    ) -> None:
        """Write to `producer`, and ring `bell` if its consumer sleeps.

        `send` calls `on_other(kind, flags, count, chunk_id, offset, function, payload)` for a frame
        that would take more than `most` bytes, for which there is no room now, or that must stay
        behind the frames in `outbox`; on a big-endian machine for every frame, since the wire is
        little endian. It calls `on_corrupt(error)` when the ring is corrupt.
        """

    def send(
        self,
        kind: int,
        *,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        payload: Sequence[Buffer] = (),
    ) -> None:
        """Write a header and the joined payload as one record, or call `on_other`."""

    def flush(self) -> None:
        """Publish what was written, and ring the bell if the consumer sleeps."""

    def stop(self) -> None:
        """Make every later call do nothing."""

@final
class Inlet:
    def __init__(
        self,
        consumer: Consumer,
        outlet: Outlet,
        handler: Callable[[int, int, int, int, int, int, memoryview], None],
        on_record: Callable[[int, memoryview], None],
        on_drained: Callable[[], None] | None,
        on_call: Callable[[], object],
        most_frames: int,
        most_bytes: int,
        quarter: int,
    ) -> None:
        """Hand over what `consumer` reads; `outlet` is the other direction, with the same peer.

        It calls `handler(kind, flags, count, chunk_id, offset, function, payload)` for each frame
        that is one record with a plain header, `on_record(flags, record)` for every other record,
        and `on_drained()` at the end of a batch. It releases each view when the call returns, and
        gives room back whenever `quarter` bytes were read. `answer` calls `on_call()`.
        """

    def hand_over(self) -> tuple[int, bool]:
        """Hand over what has arrived; the first record marks the consumer as awake.

        Returns the number of records, and whether a limit (`most_frames`, or about `most_bytes`)
        ended the batch, so that there may be more. An error of a handler passes through.
        """

    def drain(self) -> bool:
        """Hand over a batch, then let the consumer sleep; True if there is more to read."""

    def stop(self) -> None:
        """Hand over nothing any more."""

def answer(bell: Doorbell, inlets: list[Inlet], /) -> None:
    """Clear a bell that has rung, and call `on_call` of each inlet that has something to do.

    That is an inlet whose consumer is not asleep, or whose outlet has frames in its outbox.
    """
