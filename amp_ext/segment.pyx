# cython: language_level=3
"""Segments for Python: memory that one process fills, and in which another keeps an object.

aiomultiprocess/_transport/segments.py has the life of a segment; segment.h, the words that the two
processes share; mapping.h makes the memory. segment.pyi is the contract.

SEGMENT-P1  A `Loan` is the buffer in which the borrower's objects lie. It keeps the mapping, and
    its end is the end of the last view of it, in whatever thread. It refers to its segment alone,
    and that to no object: neither is part of a cycle.
SEGMENT-P2  A child of the owner has no mapping of its segments, and never unmaps their addresses,
    where something else may be by then.
"""

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.buffer cimport PyBUF_SIMPLE
from cpython.exc cimport PyErr_SetFromErrno, PyErr_SetFromErrnoWithFilename
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport munmap
from posix.types cimport pid_t
from posix.unistd cimport close as close_descriptor, getpid

cdef extern from "mapping.h" nogil:
    void *amp_memory_map(int fd, uint64_t *size, const char **call)

cdef extern from "segment.h" nogil:
    const uint64_t AMP_SEGMENT_HEADER
    const uint64_t AMP_SEGMENT_KEPT
    const uint64_t AMP_MAX_LOAN
    int amp_watch_forks()
    uint64_t amp_forks()
    bint amp_forked_since(uint64_t count)
    void amp_segment_answer(void *base, uint64_t loan, bint kept)
    uint64_t amp_segment_answered(const void *base)
    void amp_segment_map_pages(const void *base, uint64_t begin, uint64_t end)
    int amp_segment_create(
        uint64_t capacity, const void *data, uint64_t size, const char **call
    )
    int amp_segment_keep_from_children(void *base, size_t size)

HEADER = AMP_SEGMENT_HEADER
KEPT = AMP_SEGMENT_KEPT

cdef char *BYTES = b"B"
cdef bint watching = False


cdef int watch_forks() except -1:
    global watching
    cdef int error
    if not watching:
        error = amp_watch_forks()
        if error:
            raise OSError(error, "pthread_atfork")
        watching = True
    return 0


@cython.final
@cython.no_gc
cdef class Segment:
    """The mapping of a segment in one process."""

    cdef void *base  # NULL once unmapped
    cdef uint64_t size
    cdef uint64_t filled  # the most bytes of it that were filled through the mapping
    cdef pid_t pid
    cdef uint64_t forks  # of this process, when it was mapped
    cdef bint private  # children have no mapping of it (SEGMENT-P2)
    cdef readonly int fd
    cdef readonly bint held

    def __cinit__(self):
        self.fd = -1

    def __init__(self):
        raise TypeError("use Segment.create() or Segment.attach()")

    def __dealloc__(self):
        if self.base != NULL and not (self.private and getpid() != self.pid):
            munmap(self.base, self.size)
        if self.fd >= 0:
            close_descriptor(self.fd)

    @staticmethod
    def create(uint64_t capacity, data):
        cdef Segment self = Segment.__new__(Segment)
        cdef const char *call = NULL
        cdef Py_buffer view
        watch_forks()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not 0 < <uint64_t>view.len <= capacity <= AMP_MAX_LOAN:
                raise ValueError(f"{view.len} bytes for a segment of {capacity}")
            with nogil:
                self.fd = amp_segment_create(capacity, view.buf, view.len, &call)
        finally:
            PyBuffer_Release(&view)
        if self.fd < 0:
            PyErr_SetFromErrnoWithFilename(OSError, call)
        map_segment(self)
        self.private = amp_segment_keep_from_children(self.base, self.size) == 0
        return self

    @staticmethod
    def attach(int fd):
        cdef Segment self = Segment.__new__(Segment)
        self.fd = fd
        watch_forks()
        map_segment(self)
        self.close_fd()
        return self

    @property
    def capacity(self):
        return self.size - AMP_SEGMENT_HEADER

    @property
    def answer(self):
        self.usable()
        return amp_segment_answered(self.base)

    cdef int usable(self) except -1:
        # without a fork this is the process; to ask for its id takes as long as all else
        if self.private and amp_forks() != self.forks and getpid() != self.pid:
            raise ValueError("this segment belongs to the process that this one was forked from")
        return 0

    def fill(self, data):
        cdef Py_buffer view
        cdef uint8_t *to = <uint8_t *>self.base + AMP_SEGMENT_HEADER
        cdef uint64_t end
        self.usable()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if <uint64_t>view.len > self.size - AMP_SEGMENT_HEADER:
                raise ValueError(f"{view.len} bytes for a segment of {self.capacity}")
            end = AMP_SEGMENT_HEADER + <uint64_t>view.len
            with nogil:
                if self.filled < end:  # SEGMENT-C5
                    amp_segment_map_pages(self.base, self.filled, end)
                    self.filled = end
                memcpy(to, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def loan(self, uint64_t number, uint64_t size, bint readonly):
        cdef Loan loan
        if self.held:
            raise ValueError("the segment is lent already")
        if size > self.size - AMP_SEGMENT_HEADER or not 0 < number <= AMP_MAX_LOAN:
            raise ValueError(f"loan {number} of {size} bytes in a segment of {self.capacity}")
        loan = Loan.__new__(Loan)
        loan.segment = self
        loan.number = number
        loan.length = <Py_ssize_t>size
        loan.readonly = readonly
        loan.pid = self.pid
        loan.forks = amp_forks()
        self.held = True
        return loan

    cpdef int close_fd(self) except -1:
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0 and close_descriptor(fd) < 0:
            PyErr_SetFromErrno(OSError)
        return 0


cdef int map_segment(Segment self) except -1:
    cdef const char *call = NULL
    cdef uint64_t size = 0
    cdef void *base = amp_memory_map(self.fd, &size, &call)
    if base == NULL:
        PyErr_SetFromErrnoWithFilename(OSError, call)
    if size <= AMP_SEGMENT_HEADER:
        munmap(base, size)
        raise ValueError(f"a segment of {size} bytes")
    self.base = base
    self.size = size
    self.pid = getpid()
    self.forks = amp_forks()
    return 0


@cython.final
@cython.no_gc
cdef class Loan:
    """The buffer in which an object of the borrower lies (SEGMENT-P1)."""

    cdef Segment segment
    cdef uint64_t number, forks
    cdef Py_ssize_t length, stride
    cdef pid_t pid
    cdef bint readonly

    def __init__(self):
        raise TypeError("use Segment.loan()")

    def __dealloc__(self):
        cdef bint forked
        if self.segment is None:
            return
        forked = amp_forked_since(self.forks)
        if not forked or getpid() == self.pid:  # SEGMENT-C3
            self.segment.held = False  # first: the answer may bring the next loan at once
            amp_segment_answer(self.segment.base, self.number, forked)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("the object was sent as one that cannot be written")
        self.stride = 1
        buffer.buf = <uint8_t *>self.segment.base + AMP_SEGMENT_HEADER
        buffer.obj = self
        buffer.len = self.length
        buffer.itemsize = 1
        buffer.readonly = self.readonly
        buffer.ndim = 1
        buffer.format = BYTES if flags & PyBUF_FORMAT else NULL
        buffer.shape = &self.length
        buffer.strides = &self.stride
        buffer.suboffsets = NULL
        buffer.internal = NULL
