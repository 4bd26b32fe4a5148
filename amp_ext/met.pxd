"""The objects that one item was found to hold: a hash table of addresses, emptied in no time."""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t

from amp_ext.capi cimport *

cdef struct Entry:
    PyObject *value
    size_t item

cdef struct Met:
    Entry *entries
    size_t capacity  # 0, or a power of two
    size_t count
    size_t item  # entries of other items count as free
    int shift  # 64 less the bits of an index


cdef inline void next_item(Met *met) noexcept:
    met.item += 1
    met.count = 0


cdef inline bint was_met(Met *met, PyObject *value) except -1:
    """Note an object of this item; True if it was noted before."""
    if met.count * 2 >= met.capacity:
        grow(met)
    return note(met, value)


cdef inline bint note(Met *met, PyObject *value) noexcept:
    # Fibonacci hashing: the upper bits of the product depend on all bits of the address
    cdef size_t at = <size_t>((<uint64_t>value * <uint64_t>0x9E3779B97F4A7C15) >> met.shift)
    while met.entries[at].item == met.item:
        if met.entries[at].value == value:
            return True
        at = (at + 1) & (met.capacity - 1)
    met.entries[at].value = value
    met.entries[at].item = met.item
    met.count += 1
    return False


cdef inline int grow(Met *met) except -1:
    cdef Entry *old = met.entries
    cdef size_t i, old_capacity = met.capacity
    cdef size_t capacity = max(<size_t>32, old_capacity * 4)
    cdef Entry *entries = <Entry *>PyMem_Calloc(capacity, sizeof(Entry))
    if entries == NULL:
        raise MemoryError()
    met.entries, met.capacity, met.count = entries, capacity, 0
    met.shift = 64
    while capacity > 1:
        capacity >>= 1
        met.shift -= 1
    for i in range(old_capacity):
        if old[i].item == met.item:
            note(met, old[i].value)
    PyMem_Free(old)
    return 0
