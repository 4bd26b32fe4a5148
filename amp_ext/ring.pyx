# cython: language_level=3, nonecheck=True
"""The ring of ring.h for Python: a Mapping, its Producers and its Consumers.

The shm transport gets these classes from aiomultiprocess._accel; ring.pyi is the contract. This
module adds buffers, errors and lifetimes; ring.h says what a ring does, and why that is correct.

MAPPING-1  The memory stays mapped while a view or a copy needs it. close() refuses every further
    use at once, and the release of the last view unmaps the memory.
MAPPING-2  The GIL is held, so one thread at a time uses an object, except while a large payload is
    copied: meanwhile `busy` makes every other call raise.
MAPPING-3  A C function that can find a fault returns "nothing"; sound() checks for the fault and
    raises.
MAPPING-4  The garbage collector does not clear an end. A view of the end that is released later, in
    the same cycle (of a traceback, say), needs the mapping, whose exports it decrements. An end
    refers to its mapping only, and that to no object, so neither is part of a cycle.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE
from cpython.exc cimport PyErr_SetFromErrno, PyErr_SetFromErrnoWithFilename
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t
from posix.mman cimport munmap
from posix.unistd cimport close as close_descriptor

from amp_ext.iovec cimport IoVec, iovec_copy, iovec_release, iovec_take

from amp_ext.doorbell import Doorbell  # re-exported: each user of a ring needs one

BEGIN = AMP_BEGIN
END = AMP_END
WHOLE = AMP_FLAGS
MIN_CAPACITY = AMP_MIN_CAPACITY
MAX_CAPACITY = AMP_MAX_CAPACITY
MAX_ENTRIES = AMP_MAX_ENTRIES

cdef char *BYTES = b"B"

# A smaller copy ends before another thread could use the GIL.
cdef enum:
    LARGE_COPY = 256 * 1024


class RingError(Exception):
    """A call that the state of the ring does not allow."""


class RingCorruptError(RingError):
    """The memory holds what no sound peer writes. The ring is poisoned and refuses all use."""


cdef int corrupt(amp_fault fault) except -1:
    raise RingCorruptError(f"ring: {amp_fault_text(fault).decode()}")


# ---- the mapping --------------------------------------------------------------------------------

cdef enum:
    DOWN_PRODUCER = 1
    DOWN_CONSUMER = 2
    UP_PRODUCER = 4
    UP_CONSUMER = 8


@cython.final
cdef class Mapping:
    """The memory between the parent and one worker: control page, rings, journal, running items."""

    def __cinit__(self):
        self.fd = -1
        self.closed = True

    def __init__(self):
        raise TypeError("use Mapping.create() or Mapping.attach()")

    def __dealloc__(self):
        # No view is left, since a view keeps a consumer alive, and that keeps this mapping.
        if self.base != NULL:
            munmap(self.base, self.size)
        if self.fd >= 0:
            close_descriptor(self.fd)

    @staticmethod
    def create(uint64_t capacity, uint64_t generation=0, uint64_t entries=1):
        cdef Mapping self = Mapping.__new__(Mapping)
        cdef const char *call = NULL
        if not amp_capacity_ok(capacity):
            raise ValueError(
                f"capacity must be a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}, "
                f"not {capacity}"
            )
        if not 0 < entries <= AMP_MAX_ENTRIES:
            raise ValueError(f"entries must be from 1 to {MAX_ENTRIES}, not {entries}")
        self.fd = amp_memory_create(amp_map_size(capacity, entries), &call)
        if self.fd < 0:
            PyErr_SetFromErrnoWithFilename(OSError, call)
        map_descriptor(self)
        amp_map_format(self.base, capacity, entries, generation)
        open_map(self)
        return self

    @staticmethod
    def attach(int fd):
        cdef Mapping self = Mapping.__new__(Mapping)
        self.fd = fd
        map_descriptor(self)
        open_map(self)
        self.close_fd()
        return self

    cdef int usable(self) except -1:
        if self.closed:
            raise ValueError("the mapping is closed")
        return 0

    cdef int drop_export(self) except -1:
        self.exports -= 1
        return self.unmap() if self.closed else 0

    cdef int unmap(self) except -1:  # MAPPING-1
        cdef void *base = self.base
        if self.exports == 0 and base != NULL:
            self.base = NULL
            if munmap(base, self.size) < 0:
                PyErr_SetFromErrno(OSError)
        return 0

    @property
    def capacity(self):
        return self.map.capacity

    @property
    def max_payload(self):
        return amp_max_payload(self.map.capacity)

    @property
    def generation(self):
        self.usable()
        return self.map.control.generation

    @property
    def started(self):
        self.usable()
        return amp_started(&self.map)

    cpdef int mark_started(self, uint64_t n) except -1:
        self.usable()
        amp_mark_started(&self.map, n)
        return 0

    cpdef int begin_turn(self, uint64_t origin) except -1:
        self.usable()
        amp_turn_begin(&self.map, origin)
        return 0

    cpdef int end_turn(self, uint64_t busy) except -1:
        self.usable()
        amp_turn_end(&self.map, busy)
        return 0

    @property
    def turn(self):
        cdef uint64_t origin, busy
        self.usable()
        return (origin, busy) if amp_turn_load(&self.map, &origin, &busy) else None

    @property
    def entries(self):
        return self.map.entries

    cpdef int mark_time(self, uint64_t first, uint64_t since) except -1:
        self.check_entry(0)
        amp_running_store(&self.map, 0, first, since)
        return 0

    def set_running(self, uint64_t at, uint64_t number, uint64_t since):
        self.check_entry(at)
        amp_running_store(&self.map, at, number, since)

    def keep_running(self, uint64_t at):
        self.check_entry(at)
        amp_running_keep(&self.map, at)

    def clear_running(self, uint64_t at):
        self.check_entry(at)
        amp_running_clear(&self.map, at)

    def running(self):
        cdef uint64_t at, number, since
        cdef dict found = {}
        self.check_entry(0)
        number = amp_first_running(&self.map, &since)
        if number != 0:
            found[number] = since
        for at in range(1, self.map.entries):
            number = amp_running_load(&self.map, at, &since)
            if number != 0:
                found[number] = since
        return found

    cdef int check_entry(self, uint64_t at) except -1:
        self.usable()
        if at >= self.map.entries:
            raise IndexError(f"entry {at} of a table of {self.map.entries}")
        return 0

    @property
    def journal(self):
        return PyMemoryView_FromObject(self)

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.usable()
        # By hand: PyBuffer_FillInfo would leak the None that Cython put in view.obj.
        view.obj = self
        view.buf = amp_journal(&self.map)
        view.len = <Py_ssize_t>amp_journal_size(self.map.capacity)
        view.readonly = False
        view.itemsize = view.ndim = 1
        view.format = BYTES if flags & PyBUF_FORMAT else NULL
        view.shape = &view.len
        view.strides = &view.itemsize
        view.suboffsets = NULL
        view.internal = NULL
        self.exports += 1  # MAPPING-1

    def __releasebuffer__(self, Py_buffer *view):
        self.drop_export()

    def close_fd(self):
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            close_descriptor(fd)

    def close(self):
        self.close_fd()
        self.closed = True
        self.unmap()

    def down_producer(self):
        take(self, DOWN_PRODUCER)
        return new_producer(self, &self.map.control.down, amp_down_data(&self.map))

    def down_consumer(self):
        take(self, DOWN_CONSUMER)
        return new_consumer(self, &self.map.control.down, amp_down_data(&self.map))

    def up_producer(self):
        take(self, UP_PRODUCER)
        return new_producer(self, &self.map.control.up, amp_up_data(&self.map))

    def up_consumer(self):
        take(self, UP_CONSUMER)
        return new_consumer(self, &self.map.control.up, amp_up_data(&self.map))


cdef int map_descriptor(Mapping mapping) except -1:
    cdef const char *call = NULL
    mapping.base = amp_memory_map(mapping.fd, &mapping.size, &call)
    if mapping.base == NULL:
        PyErr_SetFromErrnoWithFilename(OSError, call)
    return 0


cdef int open_map(Mapping mapping) except -1:
    cdef amp_fault fault = amp_map_open(&mapping.map, mapping.base, mapping.size)
    if fault != AMP_SOUND:
        return corrupt(fault)
    mapping.closed = False
    return 0


cdef int take(Mapping mapping, unsigned int end) except -1:
    """Marks an end as taken; a second one would have cursors of its own, and break the ring."""
    mapping.usable()
    if mapping.taken & end:
        raise RingError("this end of the ring is in use")
    mapping.taken |= end
    return 0


cdef Producer new_producer(Mapping mapping, amp_cursors *shared, uint8_t *data):
    cdef Producer producer = Producer.__new__(Producer)
    producer.mapping = mapping
    amp_producer_open(&producer.ring, shared, data, mapping.map.capacity)
    producer.sound()
    return producer


cdef Consumer new_consumer(Mapping mapping, amp_cursors *shared, const uint8_t *data):
    cdef Consumer consumer = Consumer.__new__(Consumer)
    consumer.mapping = mapping
    amp_consumer_open(&consumer.ring, shared, data, mapping.map.capacity)
    consumer.sound()
    return consumer


# ---- the two ends -------------------------------------------------------------------------------

@cython.final
@cython.no_gc  # MAPPING-4
cdef class Producer:
    """The writing end of one ring."""

    def __init__(self):
        raise TypeError("a Producer comes from a Mapping")

    cdef int usable(self) except -1:
        self.mapping.usable()
        if self.busy:
            raise RingError("another thread is writing to this ring")  # MAPPING-2
        return self.sound()

    cdef int sound(self) except -1:  # MAPPING-3
        return corrupt(self.ring.fault) if self.ring.fault != AMP_SOUND else 0

    @property
    def max_payload(self):
        return amp_max_payload(self.ring.capacity)

    cpdef Py_ssize_t free(self) except -1:
        cdef uint64_t room
        self.usable()
        room = amp_free(&self.ring)
        self.sound()
        return <Py_ssize_t>room

    def write(self, parts, uint32_t flags=AMP_FLAGS):
        cdef IoVec iovec
        try:
            iovec_take(&iovec, parts)
            self.usable()
            if iovec.total > <Py_ssize_t>amp_max_payload(self.ring.capacity):
                raise ValueError(
                    f"a record carries at most {self.max_payload} bytes, not {iovec.total}: "
                    "use write_some()"
                )
            return put(self, &iovec, 0, <uint32_t>iovec.total, flags)
        finally:
            iovec_release(&iovec)

    def write_some(self, parts, Py_ssize_t offset=0):
        cdef IoVec iovec
        try:
            iovec_take(&iovec, parts)
            self.usable()
            if not 0 <= offset < iovec.total:
                raise ValueError(f"offset {offset} is outside a frame of {iovec.total} bytes")
            return put_some(self, &iovec, offset)
        finally:
            iovec_release(&iovec)

    cpdef bint publish(self) except -1:
        cdef bint asleep
        self.usable()
        asleep = amp_publish(&self.ring)
        self.published = self.ring.records
        self.bells += asleep
        return asleep

    cpdef bint want_room(self) except -1:
        cdef bint full
        self.usable()
        if self.ring.tail != self.ring.published:
            # RING-10
            raise RingError("publish() before want_room(): else the consumer frees no room")
        full = amp_want_room(&self.ring, self.wanted)
        self.sound()
        return full


cdef bint put(
    Producer producer, IoVec *iovec, Py_ssize_t offset, uint32_t length, uint32_t flags
) except -1:
    """Writes `length` bytes from `offset` on as one record; without room, sets `wanted`."""
    cdef uint8_t *to
    if flags & ~AMP_FLAGS or not amp_follows(producer.ring.within, flags):
        raise ValueError(f"flags {flags} do not follow the record written before")  # RING-8
    to = amp_reserve(&producer.ring, length)
    if to == NULL:
        producer.sound()
        producer.wanted = length
        return False
    producer.mapping.exports += 1  # MAPPING-1: until the header is written too
    if length < LARGE_COPY:
        iovec_copy(iovec, to, offset, length)
    else:
        copy_large(producer, iovec, to, offset, length)
    amp_commit(&producer.ring, length, flags)
    producer.mapping.drop_export()
    return True


cdef void copy_large(
    Producer producer, IoVec *iovec, uint8_t *to, Py_ssize_t offset, Py_ssize_t length
) noexcept:
    producer.busy = True
    with nogil:
        iovec_copy(iovec, to, offset, length)
    producer.busy = False


cdef Py_ssize_t put_some(Producer producer, IoVec *iovec, Py_ssize_t offset) except -1:
    """Writes the rest of a frame if it fits, else a fragment of enough bytes, else nothing."""
    cdef int64_t rest = iovec.total - offset
    cdef Py_ssize_t least = producer.ring.capacity // 8
    cdef Py_ssize_t room = <Py_ssize_t>amp_free(&producer.ring)
    cdef Py_ssize_t length = min(rest, room)
    cdef uint32_t flags = (AMP_BEGIN if offset == 0 else 0) | (AMP_END if length == rest else 0)
    producer.sound()
    if length < min(rest, least):
        producer.wanted = <uint32_t>min(rest, least)
        return 0
    put(producer, iovec, offset, <uint32_t>length, flags)
    return length


@cython.final
@cython.no_gc  # MAPPING-4
cdef class Consumer:
    """The reading end of one ring; as a buffer, the record that was read last."""

    def __init__(self):
        raise TypeError("a Consumer comes from a Mapping")

    cdef int usable(self) except -1:
        self.mapping.usable()
        return self.sound()

    cdef int sound(self) except -1:  # MAPPING-3
        return corrupt(self.ring.fault) if self.ring.fault != AMP_SOUND else 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.mapping.usable()
        if self.record.payload == NULL:
            raise BufferError("nothing was read yet")
        if flags & PyBUF_WRITABLE:
            raise BufferError("a record is read-only")
        # By hand: PyBuffer_FillInfo would leak the None that Cython put in view.obj.
        view.obj = self
        view.buf = <void *>self.record.payload
        view.len = self.record.length
        view.readonly = True
        view.itemsize = view.ndim = 1
        view.format = BYTES if flags & PyBUF_FORMAT else NULL
        view.shape = &view.len
        view.strides = &view.itemsize
        view.suboffsets = NULL
        view.internal = NULL
        self.mapping.exports += 1  # MAPPING-1

    def __releasebuffer__(self, Py_buffer *view):
        self.mapping.drop_export()

    def read(self):
        self.usable()
        if amp_read(&self.ring, &self.record):
            return self.record.flags, PyMemoryView_FromObject(self)
        self.sound()
        return None

    cpdef bint release(self) except -1:
        self.usable()
        return amp_release(&self.ring)

    cpdef bint sleep(self) except -1:
        cdef bint may
        self.usable()
        if self.ring.head != self.ring.released:
            # RING-10
            raise RingError("release() before sleep(): the producer may wait for that room")
        may = amp_sleep(&self.ring)
        self.sound()
        return may

    cpdef int awake(self) except -1:
        self.usable()
        amp_awake(&self.ring)
        return 0
