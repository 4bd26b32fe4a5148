# cython: language_level=3, boundscheck=False, wraparound=False
"""The worker's side of a journal, in Cython: the twin of aiomultiprocess/_pure/journal.py.

aiomultiprocess/_wire/journal.py has the format, and the rules JOURNAL-1 to JOURNAL-5.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from amp_ext.encoder cimport new_payload, put_item, put_quickly, take_payload
from amp_ext.iovec cimport IoVec, iovec_copy, iovec_release, iovec_take

cdef extern from *:
    """
    #include <stdatomic.h>
    #include <stdint.h>

    /* One store, after all stores before it, whenever the process is killed (JOURNAL-1). */
    static inline void amp_store(uint8_t *to, uint64_t value)
    {
        atomic_store_explicit((_Atomic uint64_t *)to, value, memory_order_release);
    }
    """
    void amp_store(uint8_t *to, uint64_t value) noexcept

cdef enum:
    # words of an entry
    LENGTH = 0
    CHUNK_ID = 1
    OFFSET = 2
    COUNT = 3
    KIND = 4
    HEAD = 40  # bytes that they take
    FIRST = 8  # where the first entry begins
    COUNT_SHIFT = 32
    RESULTS = 18  # frames.Kind


@cython.no_gc  # a collector that saw `view` would drop its object, and never release the buffer
@cython.final
cdef class Journal:
    """The worker's side of a journal."""

    def __cinit__(self, memory):
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.mapped = True
        self.data = <uint8_t *>self.view.buf
        self.size = self.view.len
        self.end = FIRST
        if <size_t>self.data % 8 or self.size < FIRST:
            raise ValueError("the memory of a journal must begin with an aligned word of 8 bytes")

    def __dealloc__(self):
        self.close()

    def begin(self, uint64_t chunk_id, uint64_t offset):
        if self.payload is not None:
            raise RuntimeError("an entry is open")
        self.usable()
        self.payload = new_payload()
        self.chunk_id = chunk_id
        self.offset = offset
        self.count = self.items = 0
        self.start = aligned(self.end)
        self.at = self.start + HEAD
        self.fits = self.at < self.size
        if self.fits:
            self.write_head(0, chunk_id, offset, 0, RESULTS)

    def append(self, item):
        return self.add(item)

    cdef bint add(self, item) except -1:
        cdef const char *data = NULL
        cdef Py_ssize_t size
        if self.add_quickly(item):
            return True
        if self.payload is None:
            raise RuntimeError("no entry is open")
        size = put_item(self.payload, item, &data)
        self.items += 1
        self.fits = self.fits and 0 <= size <= self.size - self.at
        if self.fits:
            memcpy(self.data + self.at, data, size)
            self.added(size)
        return self.fits

    cdef bint add_quickly(self, item) noexcept:
        """Add an int; False, and nothing added, if it is no int of 64 bits or may not fit."""
        cdef Py_ssize_t size
        if self.payload is None or not self.fits or self.size - self.at < 9:
            return False
        size = put_quickly(self.payload, item, self.data + self.at)
        if size == 0:
            return False
        self.items += 1
        self.added(size)
        return True

    cdef inline void added(self, Py_ssize_t size) noexcept:
        self.at += size
        self.count += 1
        amp_store(self.data, <uint64_t>self.at | self.count << COUNT_SHIFT)  # JOURNAL-1

    def take(self):
        payload, self.payload = self.payload, None
        if payload is None:
            raise RuntimeError("no entry is open")
        if self.count:
            self.store(COUNT, self.count)  # JOURNAL-2
            self.store(LENGTH, self.at - self.start - HEAD)
            self.end = self.at
        return self.chunk_id, self.offset, self.items, take_payload(payload)

    def place(self):
        return self.chunk_id, self.offset, self.items

    def put(self, uint64_t kind, uint64_t chunk_id, uint64_t offset, uint64_t count, payload):
        cdef IoVec iovec
        self.usable()
        if self.payload is not None:
            return False
        try:
            iovec_take(&iovec, payload)
            self.start = aligned(self.end)
            self.at = self.start + HEAD
            if not 0 < iovec.total <= self.size - self.at:
                return False
            self.write_head(iovec.total, chunk_id, offset, count, kind)
            iovec_copy(&iovec, self.data + self.at, 0, iovec.total)
            self.end = self.at + iovec.total
            amp_store(self.data, self.end)  # JOURNAL-1
            return True
        finally:
            iovec_release(&iovec)

    def reset(self):
        if self.payload is None and self.end > FIRST:
            self.usable()
            amp_store(self.data, 0)
            self.end = FIRST

    def close(self):
        if self.mapped:
            self.mapped = self.fits = False  # append() may be running: pickling may fork
            self.payload = None
            PyBuffer_Release(&self.view)

    cdef int usable(self) except -1:
        if not self.mapped:
            raise ValueError("the journal is closed")
        return 0

    cdef void store(self, int word, uint64_t value) noexcept:
        amp_store(self.data + self.start + 8 * word, value)

    cdef void write_head(
        self, uint64_t length, uint64_t chunk_id, uint64_t offset, uint64_t count, uint64_t kind
    ) noexcept:
        self.store(LENGTH, length)
        self.store(CHUNK_ID, chunk_id)
        self.store(OFFSET, offset)
        self.store(COUNT, count)
        self.store(KIND, kind)


cdef inline Py_ssize_t aligned(Py_ssize_t at) noexcept:
    return (at + 7) & ~<Py_ssize_t>7
