"""amp_ext.link: whole small frames in and out of a ring. Used by aiomultiprocess._transport.shm
alone."""

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

        `on_other(kind, flags, count, chunk_id, offset, function, payload)` is called for each frame
        that would take more than `most` bytes, for which there is no room now, or that must not
        overtake what is in `outbox` (and for all on a big-endian machine, as the wire is not).
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
        """Publish what was written, and ring the bell if that is asked for."""

    def stop(self) -> None:
        """Do nothing more."""

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

        `handler(kind, flags, count, chunk_id, offset, function, payload)` is called for each frame
        that is one record with a plain header, `on_record(flags, record)` for every other record,
        and `on_drained()` at the end of a batch. Views are released when the call returns. Room is
        given back whenever `quarter` bytes were read. `on_call()` is for `answer`.
        """

    def hand_over(self) -> tuple[int, bool]:
        """Hand over what there is; the consumer is awake as soon as there is anything.

        Returns how many records it was, and whether a limit, `most_frames` or about `most_bytes`,
        ended it, so that there may be more. What a handler raises ends it too.
        """

    def drain(self) -> bool:
        """Hand over a batch and let the consumer sleep; whether there is more."""

    def stop(self) -> None:
        """Hand over nothing more."""

def answer(bell: Doorbell, inlets: list[Inlet], /) -> None:
    """Clear a bell that was rung, and call `on_call` of each inlet that has something to do.

    That is one that is not asleep, or whose outlet has something in its outbox.
    """
