"""Several buffers that a producer writes as one record, without joining them first."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    object PySequence_Fast(object sequence, const char *message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)
    PyObject *PySequence_Fast_GET_ITEM(object sequence, Py_ssize_t i)

cdef enum:
    FEW = 8

cdef struct IoVec:
    Py_buffer few[FEW]
    Py_buffer *views
    Py_ssize_t count
    int64_t total  # one buffer may be there many times: more than a size_t of 32 bits has


cdef inline int iovec_take(IoVec *iovec, object parts) except -1:
    """Acquires the buffer of each part. The caller must call iovec_release, also if this raises."""
    cdef Py_ssize_t i, count
    iovec.views = iovec.few
    iovec.count = iovec.total = 0
    parts = PySequence_Fast(parts, b"parts must be a sequence of bytes-like objects")
    count = PySequence_Fast_GET_SIZE(parts)
    if count > FEW:
        iovec.views = <Py_buffer *>PyMem_Malloc(count * sizeof(Py_buffer))
        if iovec.views == NULL:
            raise MemoryError
    for i in range(count):
        # Acquiring a buffer may run Python code, which may shorten a list.
        if i >= PySequence_Fast_GET_SIZE(parts):
            break
        part = <object>PySequence_Fast_GET_ITEM(parts, i)
        PyObject_GetBuffer(part, &iovec.views[i], PyBUF_SIMPLE)
        iovec.count += 1
        if iovec.views[i].len > INT64_MAX - iovec.total:
            raise MemoryError
        iovec.total += iovec.views[i].len
    return 0


cdef inline void iovec_release(IoVec *iovec) noexcept:
    cdef Py_ssize_t i
    for i in range(iovec.count):
        PyBuffer_Release(&iovec.views[i])
    if iovec.views != iovec.few:
        PyMem_Free(iovec.views)


cdef inline void iovec_copy(
    const IoVec *iovec, uint8_t *to, Py_ssize_t offset, Py_ssize_t length
) noexcept nogil:
    """Copies the bytes [offset, offset + length) of the joined parts."""
    cdef Py_ssize_t i, size
    for i in range(iovec.count):
        size = iovec.views[i].len - offset
        if size <= 0:
            offset -= iovec.views[i].len
            continue
        if size > length:
            size = length
        memcpy(to, <const uint8_t *>iovec.views[i].buf + offset, size)
        to += size
        length -= size
        offset = 0
        if length == 0:
            return
