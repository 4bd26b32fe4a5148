"""The shared-memory transport: frames over the two rings of `amp_ext.ring`, one mapping a worker.

The contract is `transport`'s, the ring's theory of operation is in `amp_ext/ring.h`; this module is
what stands between them: who writes and reads when, and who rings whom.

A small frame is one record (WHOLE) and is handed over in place, as a view of the ring. A large one
is a stream of records: header and first fragment (BEGIN), further fragments, the last (END). Each
is published at once, so that both sides copy at the same time; the receiver puts them together.

SHM-1  A frame of more than an eighth of the ring goes in fragments, of an eighth at least: the
    other side begins before all is written, and nothing waits for half the ring to be free.
SHM-2  A payload view of the ring is released before the head moves past it, and the head moves when
    a quarter of the ring has been read, or at the end of the batch.
SHM-3  A turn ends with `Consumer.sleep`, also a turn that found nothing: whoever rang has cleared
    `sleeping` by that, and without setting it again the next frame would ring nobody. A link that
    is still asleep was not meant by a bell, and has no turn.
SHM-4  The bell is cleared before the rings are read, and before a link is asked whether it is still
    asleep, else it could swallow a ring in between.
SHM-5  A link whose outbox is not empty has told the ring that it wants room, or has a continuation
    scheduled: somebody will come back for the rest.
SHM-6  Memory for what of a frame may have to wait is there before its first byte is written: the
    other side would wait for the rest of a frame that is begun. Without it, nothing of the frame is
    sent.

Bells: one of the pool, which all its workers ring and behind which all the parent's links listen;
and one of each worker. Both carry both messages, "there is data" and "there is room".
Descriptors: in the parent one for the pool and one for a worker (its bell), one more until
`ChildEnd.release` (the memory); in the worker two (both bells). A bell that is a pipe has two.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from typing import Final

from .._accel import buffer_builder, ring
from .._accel import link as framing
from .._processes.descriptors import Handover
from .._wire.assembly import Assembly
from .._wire.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_PARTS,
    MAX_PAYLOAD,
    PART_SIZE,
    CorruptHeaderError,
    Segment,
    check_header,
    is_constant,
    part_sizes,
    refuse_payload,
)
from .endpoint import Endpoint, Links, watch_fd
from .link import BATCH_BYTES, BATCH_FRAMES, Callback

#: Bytes of each of a worker's two rings. Large enough that a stream is not stopped by a wake-up of
#: the other side (some 50 us, in which 1 MiB can be copied), small enough to stay in a CPU's cache.
CAPACITY: Final = 1 << 20

_pack, _unpack = HEADER.pack, HEADER.unpack_from


class PendingFrame:
    """A frame in the outbox, and how much of it is written."""

    __slots__ = ("offset", "reserved", "segments", "size")

    def __init__(self, segments: Sequence[Segment], size: int) -> None:
        self.segments = segments
        self.size = size  # of all segments, the header's too
        self.offset = 0
        self.reserved: list[bytes] = []

    def reserve(self) -> None:
        """Get the memory that `settle` may need, now that nothing is written (SHM-6)."""
        for segment in self.segments:
            if not is_constant(segment):
                self.reserved.append(buffer_builder.reserve(len(segment)))

    def settle(self) -> None:
        """Copy what is not written yet and may change, and let go of what may (LINK-10)."""
        begin, segments = 0, list(self.segments)
        for at, segment in enumerate(segments):
            end = begin + len(segment)
            if not is_constant(segment):
                written = max(begin, min(end, self.offset))
                reserved = self.reserved.pop(0) if self.reserved else None
                segments[at] = buffer_builder.snapshot(segment, written - begin, reserved)
            begin = end
        self.segments = segments
        self.reserved = []


class DoorbellListener:
    """A doorbell, and the links that listen for it in one loop."""

    def __init__(self, bell: ring.Doorbell) -> None:
        self.bell = bell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inlets: list[framing.Inlet] = []
        # SHM-4. In C: for each link that a bell is not for, it would else cost a call
        self._rung = functools.partial(framing.answer, bell, self._inlets)

    def add(self, loop: asyncio.AbstractEventLoop, inlet: framing.Inlet) -> None:
        """Let `inlet` be called in `loop` when the bell is rung and it has something to do."""
        if self._loop is None:
            watch_fd(loop, self.bell.fileno(), self._rung)
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError("the links of one backend belong to one event loop")
        self._inlets.append(inlet)

    def remove(self, inlet: framing.Inlet) -> None:
        """Forget `inlet`, if it is here."""
        if inlet in self._inlets:
            self._inlets.remove(inlet)

    def close(self) -> None:
        """Stop listening and close the bell. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self.bell.fileno())
        self.bell.close()

    def abandon(self) -> None:
        """Close the bell in a forked copy, see `Endpoint.abandon`."""
        self._loop = None
        self.bell.close()


class ShmLink(Endpoint):
    """One end of a mapping's two rings, see `transport.Link`."""

    def __init__(
        self,
        mapping: ring.Mapping,
        producer: ring.Producer,
        consumer: ring.Consumer,
        bell: ring.Doorbell,
        listener: DoorbellListener,
        closers: Sequence[Callback],
        links: Links | None = None,
    ) -> None:
        """Ring the peer by `bell`, hear it at `listener`; call `closers` at the end."""
        super().__init__(mapping, links)
        self._mapping = mapping
        self._producer = producer
        self._consumer = consumer
        self._bell = bell
        self._listener = listener
        self._closers = closers
        self._most = mapping.capacity // 8  # SHM-1
        # their sizes are in the first fragment
        self._most_parts = min(MAX_PARTS, (self._most - HEADER_SIZE) // PART_SIZE)
        self._quarter = mapping.capacity // 4  # SHM-2
        self._outbox: deque[PendingFrame] = deque()
        self._assembly = Assembly(buffer_builder.BufferBuilder)
        self._outlet = framing.Outlet(
            producer, bell, self._outbox, self._send_other, self._break_soon, self._most
        )
        self.send = self._outlet.send  # no method of ours stands in between, at every frame
        self.flush = self._outlet.flush
        self._inlet: framing.Inlet | None = None  # from start() on

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._inlet = framing.Inlet(
            self._consumer,
            self._outlet,
            self._handler,
            self._take_record,
            self._on_drained,
            # `_service` and not `drain`, also when nothing waits for room yet: it may by the time
            # that the turn is continued, and a bell that comes in between is left to that (SHM-5)
            functools.partial(self._turn, self._service),
            BATCH_FRAMES,
            BATCH_BYTES,
            self._quarter,
        )
        self._listener.add(loop, self._inlet)
        self._continue(self._service)  # SHM-3: goes to sleep for the first time

    # Sending

    def _send_other(
        self,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: Sequence[Segment],
    ) -> None:
        """A frame that is not one record, or not now."""
        size = sum(map(len, payload))
        if size > MAX_PAYLOAD:
            refuse_payload(size)
        sizes = b""
        if size + HEADER_SIZE > self._most and 1 < len(payload) <= self._most_parts:  # FRAME-4
            payload = [segment for segment in payload if len(segment)]
            sizes = part_sizes(payload)
        parts = len(sizes) // PART_SIZE
        header = _pack(kind, flags, parts, count, chunk_id, offset, function, size)
        frame = (header + sizes, *payload)
        size += len(frame[0])
        try:
            if self._outbox or size > self._most or not self._producer.write(frame):
                self._defer(PendingFrame(frame, size))
        except ring.RingCorruptError as error:
            self._break_soon(error)

    def _defer(self, pending: PendingFrame) -> None:
        if self._outbox or pending.size > self._producer.free():
            pending.reserve()
        self._outbox.append(pending)
        try:
            if not self.congested:
                if self._write():
                    self._continue(self._service)
                self.congested = bool(self._outbox)
            if self._outbox:
                pending.settle()
        except MemoryError as error:  # a part of it may be under way
            self._break_soon(error)

    def _publish(self) -> None:
        if self._producer.publish():
            self._bell.ring()

    def _write(self) -> bool:
        """Write from the outbox what fits; True if there is more than a turn may do (LINK-4)."""
        outbox, producer = self._outbox, self._producer
        budget = BATCH_BYTES
        while outbox and budget > 0:
            pending = outbox[0]
            written = producer.write_some(pending.segments, pending.offset)
            if not written:
                self._publish()
                return (
                    not producer.want_room()
                )  # SHM-5: the consumer rings, or there is room by now
            pending.offset += written
            budget -= written
            if written < pending.size:  # a fragment: the other side copies while we write the next
                self._publish()
            if pending.offset == pending.size:
                outbox.popleft()
        return bool(outbox)

    def _pump(self) -> bool:
        again = self._write()
        self._publish()
        if self.congested and not self._outbox:
            self.congested = False
            self._on_room()
        return again

    def _break_soon(self, error: BaseException) -> None:
        """Break, but not from inside `send` or `flush` (LINK-6)."""
        assert self._loop is not None
        self._loop.call_soon(self._break, error)

    # Receiving

    def _service(self) -> bool:
        """One turn: what waits for room, then what has arrived."""
        again = self._pump() if self._outbox else False
        assert self._inlet is not None
        return not self._closed and (self._inlet.drain() or again)

    def _take_record(self, flags: int, record: memoryview) -> None:
        """What is not one record with a plain header."""
        if flags == ring.WHOLE:
            self._take(record, len(record))
        else:
            self._take_fragment(flags, record)

    def _take(self, record: memoryview, size: int) -> None:
        """One frame in one record."""
        if size < HEADER_SIZE:
            raise CorruptHeaderError(f"a frame of {size} bytes has no header")
        kind, flags, parts, count, chunk_id, offset, function, length = _unpack(record)
        if parts:
            self._begin(record)
            self._assembly.deliver(self._handler)
            return
        if length != size - HEADER_SIZE:
            raise CorruptHeaderError(f"a frame of {size} bytes, announced as {length} and a header")
        with record[HEADER_SIZE:] as payload:
            self._handler(kind, flags, count, chunk_id, offset, function, payload)

    def _take_fragment(self, record_flags: int, record: memoryview) -> None:
        """A part of a frame; the ring has checked that these come in order."""
        if record_flags & ring.BEGIN:
            self._begin(record)
            return
        self._assembly.add(record)
        if record_flags & ring.END:
            self._assembly.deliver(self._handler)

    def _begin(self, record: memoryview) -> None:
        """The first fragment of a frame, or all of one that has parts."""
        size = len(record)
        if size < HEADER_SIZE:
            raise CorruptHeaderError(f"a first fragment of {size} bytes has no header")
        kind, flags, parts, count, chunk_id, offset, function, length = _unpack(record)
        check_header(parts, length)
        begin = HEADER_SIZE + parts * PART_SIZE
        if size < begin:
            raise CorruptHeaderError(f"a first fragment of {size} bytes has not {parts} sizes")
        fields = (kind, flags, count, chunk_id, offset, function)
        with record[HEADER_SIZE:begin] as sizes, record[begin:] as payload:
            self._assembly.begin(fields, length, sizes)
            self._assembly.add(payload)

    def _drain_all(self) -> None:
        if self._inlet is None:
            return  # never started
        more = True
        while more and not self._closed:
            _, more = self._inlet.hand_over()

    # Closing

    def _stop_listening(self) -> None:
        self._outlet.stop()
        if self._inlet is not None:
            self._listener.remove(self._inlet)
            self._inlet.stop()

    def abandon(self) -> None:
        if self._inlet is not None:
            self._inlet.stop()
        self._listener.abandon()
        super().abandon()

    def _release(self) -> None:
        self._outlet.stop()
        self._outbox.clear()
        self._assembly = Assembly(buffer_builder.BufferBuilder)
        self._mapping.close()
        for close in self._closers:
            close()


class ShmChildEnd:
    """The worker's side of a mapping, see `transport.ChildEnd`."""

    def __init__(
        self,
        mapping: ring.Mapping,
        bell: ring.Doorbell,
        pool_bell: ring.Doorbell,
        forget: Callback,
    ) -> None:
        self._mapping = mapping
        self._per_bell = len(bell.fds)
        self._handover = Handover((mapping.fd, *bell.fds, *pool_bell.fds), forget)

    def __getstate__(self) -> dict[str, object]:
        return {"_handover": self._handover, "_per_bell": self._per_bell}

    def open(self) -> ShmLink:
        memory_fd, *bell_fds = self._handover.take()
        bell = ring.Doorbell.attach(bell_fds[: self._per_bell])
        pool_bell = ring.Doorbell.attach(bell_fds[self._per_bell :])
        mapping = ring.Mapping.attach(memory_fd)
        listener = DoorbellListener(bell)
        producer, consumer = mapping.up_producer(), mapping.down_consumer()
        closers = (pool_bell.close, listener.close)
        return ShmLink(mapping, producer, consumer, pool_bell, listener, closers)

    def release(self) -> None:
        self._mapping.close_fd()


class ShmBackend:
    """Makes mappings, see `transport.Backend`."""

    name: Final = "shm"

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Each direction of each link has `capacity` bytes, a power of two."""
        self._capacity = capacity
        self._listener = DoorbellListener(ring.Doorbell())
        self._links = Links()

    def create(self) -> tuple[ShmLink, ShmChildEnd]:
        mapping = ring.Mapping.create(self._capacity)
        try:
            bell = ring.Doorbell()
        except OSError:
            mapping.close()
            raise
        producer, consumer = mapping.down_producer(), mapping.up_consumer()
        link = ShmLink(
            mapping, producer, consumer, bell, self._listener, (bell.close,), self._links
        )
        return link, ShmChildEnd(mapping, bell, self._listener.bell, self._abandon)

    def close(self) -> None:
        self._links.close()
        self._listener.close()

    def _abandon(self) -> None:
        self._links.abandon()
        self._listener.abandon()
