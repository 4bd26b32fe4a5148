# cython: language_level=3
"""Large objects that are filled piece by piece, without a copy of the whole.

The transports fill the parts of a payload with it (_wire/assembly.py). buffer_builder.pyi is the
contract; aiomultiprocess._pure.buffer_builder is the twin in Python.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy

from amp_ext.capi cimport *

cdef extern from "block.h":
    int amp_bytes_resize(PyObject **, Py_ssize_t) except -1
    PyObject *amp_bytearray(Py_ssize_t) except NULL

cdef extern from "pages.h":
    void amp_prefer_huge_pages(const void *data, size_t size)

cdef enum:
    # Bytes allocated at once; pages take memory only when they are written. So many that malloc maps
    # them by themselves: out of its heap an object would be copied when it grows, page by new page
    FIRST = 64 << 20
    GROWTH = 4  # the factor of each step; large, as each step may have to move the content
    LARGE_COPY = 256 * 1024  # a smaller copy ends before another thread could use the GIL


@cython.final
cdef class BufferBuilder:
    """A bytes object, or a bytearray, of a known size that is filled piece by piece."""
    cdef:
        PyObject *data  # no other code refers to it; NULL after take()
        readonly Py_ssize_t missing
        Py_ssize_t size, capacity
        bint writable

    def __cinit__(self, Py_ssize_t size, bint writable):
        if size < 0:
            raise ValueError(f"size must be at least 0, not {size}")
        self.size = self.missing = size
        self.writable = writable
        self.capacity = min(size, FIRST)
        if writable:
            self.data = amp_bytearray(self.capacity)
        else:
            self.data = PyBytes_FromStringAndSize(NULL, self.capacity)
        amp_prefer_huge_pages(self.start(), self.capacity)

    def __dealloc__(self):
        Py_XDECREF(self.data)

    def add(self, piece):
        cdef Py_buffer view
        PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
        try:
            if self.data == NULL or view.len > self.missing:
                raise ValueError(f"a piece of {view.len} bytes where {self.missing} are missing")
            self.make_room(self.size - self.missing + view.len)
            copy(self.start() + self.size - self.missing, <const char *>view.buf, view.len)
            self.missing -= view.len
        finally:
            PyBuffer_Release(&view)

    def take(self):
        cdef PyObject *data = self.data
        if self.missing or data == NULL:
            raise ValueError(f"{self.missing} bytes are missing, or the object was taken before")
        self.data = NULL
        taken = <object>data
        Py_DECREF(data)
        return taken

    cdef char *start(self):
        return PyByteArray_AS_STRING(self.data) if self.writable else PyBytes_AS_STRING(self.data)

    cdef int make_room(self, Py_ssize_t size) except -1:
        if size <= self.capacity:
            return 0
        cdef Py_ssize_t capacity = min(self.size, max(size, self.capacity * GROWTH))
        if self.writable:
            PyByteArray_Resize(self.data, capacity)
        else:
            amp_bytes_resize(&self.data, capacity)
        self.capacity = capacity
        amp_prefer_huge_pages(self.start(), capacity)
        return 0


def reserve(Py_ssize_t size):
    return PyBytes_New(NULL, size)


def snapshot(source, Py_ssize_t start=0, bytes reserved=None):
    cdef Py_buffer view
    cdef char *data
    PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= view.len:
            raise ValueError(f"start must be from 0 to {view.len}, not {start}")
        taken = PyBytes_New(NULL, view.len) if reserved is None else reserved
        if PyBytes_GET_SIZE(<PyObject *>taken) != view.len:
            raise ValueError(f"reserved must have {view.len} bytes, not {len(taken)}")
        data = PyBytes_AS_STRING(<PyObject *>taken)
        amp_prefer_huge_pages(data, view.len)
        copy(data + start, <const char *>view.buf + start, view.len - start)
        return taken
    finally:
        PyBuffer_Release(&view)


cdef void copy(char *to, const char *data, Py_ssize_t size) noexcept:
    if size < LARGE_COPY:
        memcpy(to, data, size)
    else:
        with nogil:
            memcpy(to, data, size)
