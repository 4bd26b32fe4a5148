"""The journal of a worker, for starter.pyx."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t


@cython.final
cdef class Journal:
    cdef Py_buffer view
    cdef bint mapped
    cdef uint8_t *data
    cdef Py_ssize_t size       # of the memory
    cdef Py_ssize_t end        # where the closed entries end
    # the open entry
    cdef object payload        # None: no entry is open
    cdef uint64_t chunk_id, offset
    cdef Py_ssize_t start, at  # where it begins, and where its next result goes
    cdef uint64_t items, count # results in all, and results in the memory
    cdef bint fits             # all results of it are in the memory

    cdef bint add(self, item) except -1
    cdef bint add_quickly(self, item) noexcept
    cdef void added(self, Py_ssize_t size) noexcept
    cdef int usable(self) except -1
    cdef void store(self, int word, uint64_t value) noexcept
    cdef void write_head(
        self, uint64_t length, uint64_t chunk_id, uint64_t offset, uint64_t count, uint64_t kind
    ) noexcept
