"""amp_ext.ring: a Mapping of two rings for each worker, and Doorbells. How it works: ring.h.

The parent calls create(), down_producer() and up_consumer(); the worker attach(), down_consumer()
and up_producer(). Each end can be taken once.

Writing:  write() or write_some(), often, then publish(); if it returns True, ring the peer.
          When a write was refused: publish(), then want_room(); True means "wait for your bell".
Reading:  clear the bell, awake(), read() until None, release(); if it returns True, ring the peer;
          then sleep(); False means "read again".

A record carries at most `max_payload` bytes (capacity / 2 - 8). A frame is one record (WHOLE), or
several: the first has BEGIN, the last END, those between neither. A killed writer leaves only what
it had published; the reader must drop a frame whose END was not published.

RingCorruptError, from any call, means that the memory holds what no sound peer writes. The end that
raised it is poisoned: every later call raises it again. After Mapping.close() every call that needs
the memory raises ValueError.
"""

from collections.abc import Sequence
from typing import Final, final

from typing_extensions import Buffer

from amp_ext.doorbell import Doorbell as Doorbell

BEGIN: Final = 1
END: Final = 2
WHOLE: Final = 3
MIN_CAPACITY: Final[int]
MAX_CAPACITY: Final[int]
MAX_ENTRIES: Final[int]

class RingError(Exception): ...
class RingCorruptError(RingError): ...

@final
class Mapping:
    @staticmethod
    def create(capacity: int, generation: int = 0, entries: int = 1) -> Mapping:
        """Make memory for two rings and a journal: reserved, and sealed against a change of size.

        `capacity` of each ring: bytes, a power of two. `entries` of the table of running items: 1
        to MAX_ENTRIES. ValueError if one is not; OSError if there is no memory or no descriptor,
        with the system call that was refused as its `filename`.
        """

    @staticmethod
    def attach(fd: int) -> Mapping:
        """Map the memory behind `fd`, which is taken over and closed, whatever the outcome.

        OSError (EPERM if it is not sealed), RingCorruptError if it is not a mapping of ours.
        """

    @property
    def fd(self) -> int:
        """The memory's descriptor (close-on-exec); -1 after close_fd() and attach()."""

    @property
    def capacity(self) -> int: ...
    @property
    def max_payload(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def started(self) -> int:
        """How many items the worker has started."""

    def mark_started(self, n: int) -> None:
        """In the worker: store `n` as the number of started items, visible even after a SIGKILL."""

    def begin_turn(self, origin: int) -> None:
        """In the worker: store the first word of the turn (ring.h)."""

    def end_turn(self, busy: int) -> None:
        """In the worker: store the second word of the turn."""

    @property
    def turn(self) -> tuple[int, int] | None:
        """In the parent: both words; None if the worker has just changed them."""

    @property
    def entries(self) -> int:
        """How many entries the table of running items has."""

    def mark_time(self, first: int, since: int) -> None:
        """In the worker: items from number `first` on run since `since` (ns): entry 0."""

    def set_running(self, at: int, number: int, since: int) -> None:
        """In the worker: fill entry `at`: item `number` runs since `since` (ns)."""

    def keep_running(self, at: int) -> None:
        """In the worker: move entry 0 to entry `at`, as its item is suspended."""

    def clear_running(self, at: int) -> None:
        """In the worker: the item of this entry has ended, and its result is in the journal."""

    def running(self) -> dict[int, int]:
        """In the parent: the start times of the items in the table, by their numbers (RING-11)."""

    @property
    def journal(self) -> memoryview:
        """A sixteenth of `capacity`. The worker writes it; the parent reads it after its death."""

    def close_fd(self) -> None:
        """Close the descriptor; the memory stays. Idempotent."""

    def close(self) -> None:
        """Refuse all further use; unmap when no view of a record is left. Idempotent."""

    def down_producer(self) -> Producer: ...
    def down_consumer(self) -> Consumer: ...
    def up_producer(self) -> Producer: ...
    def up_consumer(self) -> Consumer: ...

@final
class Producer:
    @property
    def max_payload(self) -> int: ...
    @property
    def published(self) -> int:
        """How many records were published so far."""

    @property
    def bells(self) -> int:
        """How often publish() returned True."""

    def free(self) -> int:
        """How many bytes of payload one record can carry now; 0 if none."""

    def write(self, parts: Sequence[Buffer], flags: int = 3) -> bool:
        """Write the joined parts as one record; False and nothing written if there is no room now.

        ValueError if it is more than max_payload, or if the flags do not follow those before.
        The GIL is released while a large record is copied.
        """

    def write_some(self, parts: Sequence[Buffer], offset: int = 0) -> int:
        """Of the frame that the joined parts make, write what one record holds from `offset` on.

        Returns the number of bytes written, 0 if there is no room: less than an eighth of the
        capacity is not worth a fragment. BEGIN is set at offset 0, END where the frame ends.
        """

    def publish(self) -> bool:
        """Make all that was written visible; True if the consumer sleeps: ring it."""

    def want_room(self) -> bool:
        """After a refused write and publish(): True if it still does not fit; the bell will ring.

        RingError if a record is not published: the consumer would not read it and make room.
        """

@final
class Consumer:
    def read(self) -> tuple[int, memoryview] | None:
        """The next record: its flags and a read-only view of the ring, good until release().

        A view that is kept longer shows later records' bytes, but never faults.
        """

    def release(self) -> bool:
        """Release all that was read; True if the producer waits and has room now: ring it."""

    def sleep(self) -> bool:
        """Request a ring; False if there is data already (then there will be none).

        RingError if a record that was read is not released: the producer may wait for that room.
        """

    def awake(self) -> None:
        """Withdraw the request for a ring until the next sleep()."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
