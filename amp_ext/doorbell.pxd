"""The doorbell, for link.pyx."""

cimport cython

cdef extern from "mapping.h" nogil:
    struct amp_bell:
        int reader
        int writer


@cython.final
cdef class Doorbell:
    cdef amp_bell bell

    cdef int usable(self) except -1
    cpdef int ring(self) except -1
    cpdef int clear(self) except -1
