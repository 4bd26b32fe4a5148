# cython: language_level=3
"""Whole frames in and out of a ring: what aiomultiprocess.shm does for each small frame, in C.

A frame is a header of 32 bytes (aiomultiprocess/frames.py, F1) and its payload. What is not one
record with a plain header (fragments, parts, damage) is the caller's: `write_frame` says False, and
`Inlet` hands the record over as it is. link.pyi is the contract.
"""

import sys

cimport cython
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from amp_ext.gather cimport Gather, gather_copy, gather_drop, gather_take
from amp_ext.ring cimport (
    AMP_FLAGS, Consumer, Producer, amp_asleep, amp_awake, amp_commit, amp_read, amp_reserve,
)

cdef packed struct Header:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t count
    uint64_t ident
    uint32_t offset
    uint32_t function
    uint64_t length

assert sizeof(Header) == 32

# The header is little endian (F1): where a machine is not, every frame is left to the caller.
cdef bint NATIVE = sys.byteorder == "little"


def write_frame(
    Producer producer, Py_ssize_t most, uint8_t kind, uint8_t flags, uint32_t count, uint64_t ident,
    uint32_t offset, uint32_t function, payload,
):
    cdef Header header
    cdef Gather gather
    cdef uint8_t *to
    try:
        gather_take(&gather, payload)
        producer.usable()
        if not NATIVE or gather.total > most - <Py_ssize_t>sizeof(Header):
            return False
        if producer.ring.within:  # R8
            raise ValueError("a frame cannot begin before the one before it has ended")
        to = amp_reserve(&producer.ring, <uint32_t>(gather.total + sizeof(Header)))
        if to == NULL:
            producer.sound()
            return False
        header.kind = kind
        header.flags = flags
        header.reserved = 0
        header.count = count
        header.ident = ident
        header.offset = offset
        header.function = function
        header.length = gather.total
        memcpy(to, &header, sizeof(Header))
        gather_copy(&gather, to + sizeof(Header), 0, gather.total)
        amp_commit(&producer.ring, <uint32_t>(gather.total + sizeof(Header)), AMP_FLAGS)
        return True
    finally:
        gather_drop(&gather)


@cython.final
cdef class Inlet:
    """Hands over what a consumer reads, a batch at a time."""

    cdef Consumer consumer
    cdef object handler, on_record, on_quarter
    cdef Py_ssize_t most_frames, most_bytes, quarter
    cdef bint stopped

    def __init__(
        self, Consumer consumer not None, handler, on_record, on_quarter,
        Py_ssize_t most_frames, Py_ssize_t most_bytes, Py_ssize_t quarter,
    ):
        self.consumer = consumer
        self.handler = handler
        self.on_record = on_record
        self.on_quarter = on_quarter
        self.most_frames = most_frames
        self.most_bytes = most_bytes
        self.quarter = quarter

    def stop(self):
        self.stopped = True
        self.handler = self.on_record = self.on_quarter = None  # they lead back to who owns this

    def asleep(self):
        return self.stopped or amp_asleep(&self.consumer.ring)

    def hand_over(self):
        cdef Consumer consumer = self.consumer
        cdef Py_ssize_t frames = 0, size = 0, unreleased = 0, length
        consumer.usable()
        while not self.stopped:
            if frames >= self.most_frames or size >= self.most_bytes:
                return frames, True
            if unreleased >= self.quarter:
                unreleased = 0
                self.on_quarter()
            if not amp_read(&consumer.ring, &consumer.record):
                consumer.sound()
                return frames, False
            if frames == 0:
                amp_awake(&consumer.ring)
            length = consumer.record.length
            self.take(consumer)
            frames += 1
            size += length
            unreleased += length
        return frames, False

    cdef int take(self, Consumer consumer) except -1:
        """One record: a plain frame for the handler, anything else as it is."""
        cdef Header header
        cdef uint32_t flags = consumer.record.flags, length = consumer.record.length
        cdef bint plain = False
        if NATIVE and flags == AMP_FLAGS and length >= sizeof(Header):
            memcpy(&header, consumer.record.payload, sizeof(Header))  # once: the peer may change it
            plain = header.reserved == 0 and header.length == length - sizeof(Header)
        if plain:
            consumer.record.payload += sizeof(Header)
            consumer.record.length -= sizeof(Header)
        view = PyMemoryView_FromObject(consumer)
        try:
            if plain:
                self.handler(
                    header.kind, header.flags, header.count, header.ident, header.offset,
                    header.function, view,
                )
            else:
                self.on_record(flags, view)
        finally:
            view.release()
        return 0
