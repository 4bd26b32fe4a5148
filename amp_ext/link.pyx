# cython: language_level=3
"""Whole small frames in and out of a ring: the common case of aiomultiprocess._transport.shm, in C.

A frame is a header of 32 bytes (_wire/frames.py, FRAME-1) and its payload. This module writes and
reads a frame that is one record with a plain header. The owner, a `ShmLink`, does the rest:
`Outlet` calls `on_other` for a frame that is larger or has to wait, and `Inlet` passes every other
record (fragments, parts, damage) to `on_record`. link.pyi is the contract; the SHM rules are those
of _transport/shm.py, the LINK rules those of _transport/link.py.
"""

import sys

cimport cython
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from amp_ext.doorbell cimport Doorbell
from amp_ext.iovec cimport IoVec, iovec_copy, iovec_release, iovec_take
from amp_ext.ring cimport (
    AMP_FLAGS, Consumer, Producer, amp_asleep, amp_awake, amp_commit, amp_read, amp_reserve,
)

from amp_ext.ring import RingCorruptError

cdef packed struct Header:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t count
    uint64_t chunk_id
    uint32_t offset
    uint32_t function
    uint64_t length

assert sizeof(Header) == 32

# The header is little endian (FRAME-1). On a big-endian machine the owner handles every frame.
cdef bint NATIVE = sys.byteorder == "little"


@cython.final
cdef class Outlet:
    """Writes each frame that fits now as one record, and passes all others to its owner."""

    cdef Producer producer
    cdef Doorbell bell
    cdef object outbox, on_other, on_corrupt
    cdef Py_ssize_t most
    cdef bint stopped

    def __init__(
        self, Producer producer not None, Doorbell bell not None, outbox, on_other, on_corrupt,
        Py_ssize_t most,
    ):
        self.producer = producer
        self.bell = bell
        self.outbox = outbox
        self.on_other = on_other
        self.on_corrupt = on_corrupt
        self.most = most

    def stop(self):
        self.stopped = True
        self.on_other = self.on_corrupt = None  # they refer to the owner: a cycle

    def send(
        self, uint8_t kind, *, uint8_t flags=0, uint32_t count=0, uint64_t chunk_id=0,
        uint32_t offset=0, uint32_t function=0, payload=(),
    ):
        cdef Header header
        if self.stopped:
            return
        if not self.outbox:
            header.kind = kind
            header.flags = flags
            header.reserved = 0
            header.count = count
            header.chunk_id = chunk_id
            header.offset = offset
            header.function = function
            try:
                if self.write(&header, payload):
                    return
            except RingCorruptError as error:
                self.on_corrupt(error)
                return
        self.on_other(kind, flags, count, chunk_id, offset, function, payload)

    def flush(self):
        if self.stopped:
            return
        try:
            if self.producer.publish():
                self.bell.ring()
        except RingCorruptError as error:
            self.on_corrupt(error)

    cdef bint write(self, Header *header, payload) except -1:
        """Write a frame as one record. False, and nothing is written, if that is not possible."""
        cdef Producer producer = self.producer
        cdef IoVec iovec
        cdef uint8_t *to
        try:
            iovec_take(&iovec, payload)
            producer.usable()
            if not NATIVE or iovec.total > self.most - <Py_ssize_t>sizeof(Header):
                return False
            if producer.ring.within:  # RING-8
                raise ValueError("a frame cannot begin before the one before it has ended")
            to = amp_reserve(&producer.ring, <uint32_t>(iovec.total + sizeof(Header)))
            if to == NULL:
                producer.sound()
                return False
            header.length = iovec.total
            memcpy(to, header, sizeof(Header))
            iovec_copy(&iovec, to + sizeof(Header), 0, iovec.total)
            amp_commit(&producer.ring, <uint32_t>(iovec.total + sizeof(Header)), AMP_FLAGS)
            return True
        finally:
            iovec_release(&iovec)


@cython.final
cdef class Inlet:
    """Hands over what a consumer reads, one batch in each call."""

    cdef Consumer consumer
    cdef Doorbell bell
    cdef object outbox, handler, on_record, on_drained, on_call
    cdef Py_ssize_t most_frames, most_bytes, quarter
    cdef bint in_batch  # records were handed over since the last on_drained
    cdef bint stopped

    def __init__(
        self, Consumer consumer not None, Outlet outlet not None, handler, on_record, on_drained,
        on_call, Py_ssize_t most_frames, Py_ssize_t most_bytes, Py_ssize_t quarter,
    ):
        self.consumer = consumer
        self.bell = outlet.bell
        self.outbox = outlet.outbox
        self.handler = handler
        self.on_record = on_record
        self.on_drained = on_drained
        self.on_call = on_call
        self.most_frames = most_frames
        self.most_bytes = most_bytes
        self.quarter = quarter

    def stop(self):
        self.stopped = True
        # they refer to the owner: a cycle
        self.handler = self.on_record = self.on_drained = self.on_call = None

    def drain(self):
        cdef bint more = self.hand_over()[1]
        if self.in_batch and not self.stopped:
            self.release()
            if self.on_drained is not None:
                self.on_drained()
            self.in_batch = False  # last, so that the next turn repeats what KeyboardInterrupt ends
        return not self.stopped and (more or not self.consumer.sleep())  # SHM-3

    cpdef tuple hand_over(self):
        cdef Consumer consumer = self.consumer
        cdef Py_ssize_t frames = 0, size = 0, unreleased = 0, length
        consumer.usable()
        while not self.stopped:
            if frames >= self.most_frames or size >= self.most_bytes:
                return frames, True
            if unreleased >= self.quarter:  # SHM-2
                unreleased = 0
                self.release()
            if not amp_read(&consumer.ring, &consumer.record):
                consumer.sound()
                return frames, False
            if frames == 0:
                amp_awake(&consumer.ring)
                self.in_batch = True
            length = consumer.record.length
            self.take(consumer)
            frames += 1
            size += length
            unreleased += length
        return frames, False

    cdef int release(self) except -1:
        if self.consumer.release():
            self.bell.ring()
        return 0

    cdef int take(self, Consumer consumer) except -1:
        """Hand over one record: a plain frame to the handler, anything else to on_record."""
        cdef Header header
        cdef uint32_t flags = consumer.record.flags, length = consumer.record.length
        cdef bint plain = False
        if NATIVE and flags == AMP_FLAGS and length >= sizeof(Header):
            # one copy, which is checked and used: the peer may change the original
            memcpy(&header, consumer.record.payload, sizeof(Header))
            plain = header.reserved == 0 and header.length == length - sizeof(Header)
        if plain:
            consumer.record.payload += sizeof(Header)
            consumer.record.length -= sizeof(Header)
        view = PyMemoryView_FromObject(consumer)
        try:
            if plain:
                self.handler(
                    header.kind, header.flags, header.count, header.chunk_id, header.offset,
                    header.function, view,
                )
            else:
                self.on_record(flags, view)
        finally:
            view.release()
        return 0


def answer(Doorbell bell not None, list inlets):
    """A bell has rung: call on_call of each inlet that has something to do."""
    cdef Inlet inlet
    bell.clear()  # SHM-4
    try:
        for inlet in tuple(inlets):  # a call may remove inlets
            if not inlet.stopped and (inlet.outbox or not amp_asleep(&inlet.consumer.ring)):
                inlet.on_call()
    except BaseException:
        if not bell.closed:
            bell.ring()  # for the inlets that were not looked at
        raise
