"""Functions that make a payload item by item, for journal.pyx."""

from libc.stdint cimport uint8_t

cdef object new_payload()
cdef Py_ssize_t put_quickly(object payload, object item, uint8_t *copy) noexcept
cdef Py_ssize_t put_item(object payload, object item, const char **data) except -2
cdef list take_payload(object payload)
