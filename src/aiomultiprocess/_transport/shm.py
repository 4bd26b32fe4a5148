"""The shared-memory transport: frames over the two rings of `amp_ext.ring`, one mapping a worker.

link.py is the contract, and amp_ext/ring.h has the ring's theory of operation. This module decides
when a link writes and reads, and which side rings the other's doorbell. `amp_ext.link` does the
common case, a small frame, in C: its `Outlet` writes and its `Inlet` reads; all other frames come
back to the `ShmLink` that owns the two.

A small frame is one record (WHOLE), and the handler gets a view of the ring. A large frame is a
stream of records: header and first fragment (BEGIN), further fragments, the last (END). The sender
publishes each fragment at once, so both sides copy at the same time; the receiver's `Assembly` puts
them together.

SHM-1  A frame of more than an eighth of the ring goes in fragments of at least an eighth: the other
    side begins before all is written, and no frame waits for half of the ring to be free.
SHM-2  A view of the ring is released before the head moves past it. The head moves when a quarter
    of the ring has been read, and at the end of the batch.
SHM-3  A turn ends with `Consumer.sleep`, also a turn that found nothing: the producer that
    signalled has cleared `sleeping`, and unless the consumer sets it again, the next frame signals
    nothing. A link whose `sleeping` is still set did not cause the signal, and gets no turn.
SHM-4  A bell is cleared before the rings are read, and before a link's `sleeping` is checked:
    cleared later, it could swallow a signal that came in between.
SHM-5  A link whose outbox is not empty has either set `waiting` in its ring or scheduled a
    continuation, so something brings it back to write the rest.
SHM-6  Memory for what may have to wait is reserved before the first byte of the frame is written,
    because the other side waits for the rest of a frame that has begun. Without that memory the
    link sends nothing of the frame.

Doorbells: the pool has one, which all its workers ring and all the parent's links listen to; each
worker has one. Both carry both messages, "there is data" and "there is room". Descriptors: the
parent has one for the pool and two for each worker (its bell, and the socket by which descriptors
of large buffers pass), and until `ChildEnd.release` two more (the memory, the worker's end of that
socket); a worker has three (both bells, the socket). A bell that is a pipe has two.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
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
    PART_SIZE,
    CorruptHeaderError,
    Segment,
    check_header,
    check_payload,
    is_constant,
)
from .endpoint import Endpoint, LargeBuffers, OpenLinks, open_this_end, watch_fd
from .link import (
    BATCH_BYTES,
    BATCH_FRAMES,
    DEFAULT_LIMITS,
    Callback,
    Limits,
    entries_for,
)

#: Bytes of each of a worker's two rings. Large enough that a stream does not stop while the other
#: side wakes (some 50 us, in which 1 MiB is copied), small enough to stay in a CPU's cache.
CAPACITY: Final = 1 << 20

_pack, _unpack = HEADER.pack, HEADER.unpack_from


class PendingFrame:
    """A frame in the outbox, and how many bytes of it are written."""

    __slots__ = ("offset", "reserved", "segments", "size")

    def __init__(self, segments: Sequence[Segment], size: int) -> None:
        self.segments = segments
        self.size = size  # of all segments, with the header
        self.offset = 0
        self.reserved: list[bytes] = []

    def reserve(self) -> None:
        """Take the memory that `settle` may need, before anything is written (SHM-6)."""
        for segment in self.segments:
            if not is_constant(segment):
                self.reserved.append(buffer_builder.reserve(len(segment)))

    def settle(self) -> None:
        """Replace each segment that may change by a copy of what is unwritten of it (LINK-10)."""
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
    """A doorbell, and the links that listen to it in one loop."""

    def __init__(self, bell: ring.Doorbell) -> None:
        self.bell = bell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inlets: list[framing.Inlet] = []
        # SHM-4. In C, as it looks at every link, and most have nothing to do
        self._rung = functools.partial(framing.answer, bell, self._inlets)

    def add(self, loop: asyncio.AbstractEventLoop, inlet: framing.Inlet) -> None:
        """Call `inlet` in `loop` when the bell rings and it has something to do."""
        if self._loop is None:
            watch_fd(loop, self.bell.fileno(), self._rung)
            self._loop = loop
        elif loop is not self._loop:
            raise RuntimeError("the links of one backend belong to one event loop")
        self._inlets.append(inlet)

    def remove(self, inlet: framing.Inlet) -> None:
        """Do not call `inlet` any more."""
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
    """One end of a mapping's two rings, a `Link`."""

    def __init__(
        self,
        mapping: ring.Mapping,
        producer: ring.Producer,
        consumer: ring.Consumer,
        bell: ring.Doorbell,
        listener: DoorbellListener,
        closers: Sequence[Callback],
        links: OpenLinks | None = None,
        large_buffers: LargeBuffers | None = None,
    ) -> None:
        """Ring the peer with `bell`, listen at `listener`; `_release` calls `closers`."""
        super().__init__(mapping, None, large_buffers)
        self._mapping = mapping
        self._producer = producer
        self._consumer = consumer
        self._bell = bell
        self._listener = listener
        self._closers = closers
        self._most = mapping.capacity // 8  # SHM-1
        # the first fragment has the sizes of all parts
        self._most_parts = min(MAX_PARTS, (self._most - HEADER_SIZE) // PART_SIZE)
        self._quarter = mapping.capacity // 4  # SHM-2
        self._outbox: deque[PendingFrame] = deque()
        self._assembly = Assembly(buffer_builder.BufferBuilder, self._large.borrow)
        self._outlet = framing.Outlet(
            producer, bell, self._outbox, self._send_other, self._break_soon, self._most
        )
        self.send = self._outlet.send  # bound directly, to save a call for each frame
        self.flush = self._outlet.flush
        self._inlet: framing.Inlet | None = None  # from start() on
        if links is not None:  # last: Ctrl-C may cut this short, and `close` needs all of a link
            self._links = links
            links.add(self)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        self._inlet = framing.Inlet(
            self._consumer,
            self._outlet,
            self._handler,
            self._take_record,
            self._on_drained,
            # `_service` reads and writes. It is used even if no frame waits for room: one may wait
            # by the time the turn is continued, and a signal that comes before then is not given a
            # turn of its own (SHM-5)
            functools.partial(self._turn, self._service),
            BATCH_FRAMES,
            BATCH_BYTES,
            self._quarter,
        )
        self._listener.add(loop, self._inlet)
        self._continue(self._service)  # SHM-3: the first turn sets `sleeping`

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
        """Send a frame that `Outlet` does not write: a large one, or one that finds no room now."""
        size = sum(map(len, payload))
        check_payload(size)
        sizes, lent = b"", False
        if size + HEADER_SIZE > self._most and 1 < len(payload) <= self._most_parts:  # FRAME-4
            payload, sizes = self._in_parts(payload)
            lent = sum(map(len, payload)) < size
            size = sum(map(len, payload))
        parts = len(sizes) // PART_SIZE
        header = _pack(kind, flags, parts, count, chunk_id, offset, function, size)
        frame = (header + sizes, *payload)
        size += len(frame[0])
        try:
            if self._outbox or size > self._most or not self._producer.write(frame):
                self._defer(PendingFrame(frame, size))
            elif lent:  # at once, as a fragment is: to copy the next one takes long
                self._publish()
        except ring.RingCorruptError as error:
            self._break_soon(error)
        except MemoryError:
            if sizes:
                self._large.undo()
            raise

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
        except MemoryError as error:  # a part of the frame may be published
            self._break_soon(error)

    def _publish(self) -> None:
        if self._producer.publish():
            self._bell.ring()

    def _write(self) -> bool:
        """Write from the outbox what fits; True if there is more to write now (LINK-4)."""
        outbox, producer = self._outbox, self._producer
        budget = BATCH_BYTES
        while outbox and budget > 0:
            pending = outbox[0]
            written = producer.write_some(pending.segments, pending.offset)
            if not written:
                self._publish()
                # SHM-5: the consumer will ring, or there is room by now
                return not producer.want_room()
            pending.offset += written
            budget -= written
            if written < pending.size:  # a fragment: the peer copies it while we write on
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
        """Break in a callback of the loop, and not inside `send` or `flush` (LINK-6)."""
        assert self._loop is not None
        self._loop.call_soon(self._break, error)

    # Receiving

    def _service(self) -> bool:
        """One turn: write what waits for room, then read what has arrived."""
        again = self._pump() if self._outbox else False
        assert self._inlet is not None
        return not self._closed and (self._inlet.drain() or again)

    def _take_record(self, flags: int, record: memoryview) -> None:
        """Take a record that `Inlet` does not: anything but one record with a plain header."""
        if flags == ring.WHOLE:
            self._take(record, len(record))
        else:
            self._take_fragment(flags, record)

    def _take(self, record: memoryview, size: int) -> None:
        """Take a frame that is one record."""
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
        """Take a fragment; the ring has checked that fragments come in order."""
        if record_flags & ring.BEGIN:
            self._begin(record)
            return
        self._assembly.add(record)
        if record_flags & ring.END:
            self._assembly.deliver(self._handler)

    def _begin(self, record: memoryview) -> None:
        """Take the first fragment of a frame, or all of a frame that has parts."""
        size = len(record)
        if size < HEADER_SIZE:
            raise CorruptHeaderError(f"a first fragment of {size} bytes has no header")
        kind, flags, parts, count, chunk_id, offset, function, length = _unpack(record)
        check_header(parts, length)
        begin = HEADER_SIZE + parts * PART_SIZE
        if size < begin:
            raise CorruptHeaderError(f"a fragment of {size} bytes has no room for {parts} sizes")
        fields = (kind, flags, count, chunk_id, offset, function)
        with record[HEADER_SIZE:begin] as sizes, record[begin:] as payload:
            self._assembly.begin(fields, length, sizes)
            self._assembly.add(payload)

    def _drain_all(self) -> None:
        if self._inlet is None:
            return  # it was never started
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
    """The worker's side of a mapping, a `ChildEnd`."""

    def __init__(
        self,
        mapping: ring.Mapping,
        bell: ring.Doorbell,
        pool_bell: ring.Doorbell,
        sock: socket.socket,
        limits: Limits,
        drop_parent: Callback,
    ) -> None:
        self._mapping = mapping
        self._socket = sock
        self._limits = limits
        self._per_bell = len(bell.fds)
        fds = (mapping.fd, sock.fileno(), *bell.fds, *pool_bell.fds)
        self._handover = Handover(fds, drop_parent)

    def __getstate__(self) -> dict[str, object]:
        return {
            "_handover": self._handover,
            "_per_bell": self._per_bell,
            "_limits": tuple(self._limits),
        }

    def open(self) -> ShmLink:
        memory_fd, socket_fd, *bell_fds = self._handover.take()
        bell = ring.Doorbell.attach(bell_fds[: self._per_bell])
        pool_bell = ring.Doorbell.attach(bell_fds[self._per_bell :])
        mapping = ring.Mapping.attach(memory_fd)
        listener = DoorbellListener(bell)
        producer, consumer = mapping.up_producer(), mapping.down_consumer()
        closers = (pool_bell.close, listener.close)
        large_buffers = open_this_end(socket_fd, Limits(*self._limits))
        return ShmLink(
            mapping, producer, consumer, pool_bell, listener, closers, large_buffers=large_buffers
        )

    def release(self) -> None:
        self._mapping.close_fd()
        self._socket.close()


class ShmBackend:
    """Makes mappings, a `Backend`."""

    name: Final = "shm"

    def __init__(self, capacity: int = CAPACITY, limits: Limits = DEFAULT_LIMITS) -> None:
        """Each direction of each link has `capacity` bytes, a power of two."""
        self._capacity = capacity
        self.limits = limits
        self._listener = DoorbellListener(ring.Doorbell())
        self._links = OpenLinks()

    def create(self, concurrency: int = 1) -> tuple[ShmLink, ShmChildEnd]:
        with contextlib.ExitStack() as undo:  # if the system refuses one, or Ctrl-C strikes
            mapping = ring.Mapping.create(self._capacity, entries=entries_for(concurrency))
            undo.callback(mapping.close)
            bell = ring.Doorbell()
            undo.callback(bell.close)
            ours, theirs = socket.socketpair()
            undo.callback(theirs.close)
            large_buffers = LargeBuffers(ours.detach(), self.limits)
            undo.callback(large_buffers.close)
            producer, consumer = mapping.down_producer(), mapping.up_consumer()
            closers = (bell.close,)
            link = ShmLink(
                mapping,
                producer,
                consumer,
                bell,
                self._listener,
                closers,
                self._links,
                large_buffers,
            )
            undo.callback(link.close)
            pool_bell = self._listener.bell
            end = ShmChildEnd(mapping, bell, pool_bell, theirs, self.limits, self._abandon)
            undo.pop_all()
        return link, end

    def close(self) -> None:
        self._links.close()
        self._listener.close()

    def _abandon(self) -> None:
        self._links.abandon()
        self._listener.abandon()
