# cython: language_level=3
"""The doorbells of mapping.h for Python; doorbell.pyi is the contract."""

cimport cython
from cpython.exc cimport PyErr_SetFromErrno

cdef extern from "mapping.h" nogil:
    int amp_bell_create(amp_bell *bell)
    int amp_bell_ring(const amp_bell *bell)
    int amp_bell_clear(const amp_bell *bell)
    void amp_bell_close(amp_bell *bell)


@cython.final
cdef class Doorbell:
    """Wakes an event loop in another process; readable from ring() to clear()."""

    def __cinit__(self):
        self.bell.reader = self.bell.writer = -1

    def __init__(self):
        if self.bell.reader < 0 and amp_bell_create(&self.bell) < 0:
            self.bell.reader = self.bell.writer = -1
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        amp_bell_close(&self.bell)

    @staticmethod
    def attach(fds):
        cdef Doorbell self = Doorbell.__new__(Doorbell)
        reader, *writer = fds
        self.bell.reader = reader
        self.bell.writer = writer[0] if writer else reader
        return self

    @property
    def fds(self):
        self.usable()
        if self.bell.reader == self.bell.writer:
            return (self.bell.reader,)
        return (self.bell.reader, self.bell.writer)

    @property
    def closed(self):
        return self.bell.reader < 0

    cdef int usable(self) except -1:
        if self.bell.reader < 0:
            raise ValueError("the doorbell is closed")
        return 0

    def fileno(self):
        self.usable()
        return self.bell.reader

    cpdef int ring(self) except -1:
        self.usable()
        if amp_bell_ring(&self.bell) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    cpdef int clear(self) except -1:
        self.usable()
        if amp_bell_clear(&self.bell) < 0:
            PyErr_SetFromErrno(OSError)
        return 0

    def close(self):
        amp_bell_close(&self.bell)
