"""The objects that the encoder has met in one item: a hash table of addresses (CODEC-3).

Each entry has the number of its item, so that the next item starts with an empty table at no cost.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t

from amp_ext.capi cimport *

cdef struct Entry:
    PyObject *value
    size_t item

cdef struct Seen:
    Entry *entries
    size_t capacity  # 0, or a power of two
    size_t count
    size_t item  # number of the item; entries of other items are free
    int shift  # 64 less the bits of an index


cdef inline void next_item(Seen *seen) noexcept:
    seen.item += 1
    seen.count = 0


cdef inline bint was_seen(Seen *seen, PyObject *value) except -1:
    """Note an object of this item; True if it was noted before."""
    if seen.count * 2 >= seen.capacity:
        grow(seen)
    return note(seen, value)


cdef inline bint note(Seen *seen, PyObject *value) noexcept:
    # Fibonacci hashing: the upper bits of the product depend on all bits of the address
    cdef size_t at = <size_t>((<uint64_t>value * <uint64_t>0x9E3779B97F4A7C15) >> seen.shift)
    while seen.entries[at].item == seen.item:
        if seen.entries[at].value == value:
            return True
        at = (at + 1) & (seen.capacity - 1)
    seen.entries[at].value = value
    seen.entries[at].item = seen.item
    seen.count += 1
    return False


cdef inline int grow(Seen *seen) except -1:
    cdef Entry *old = seen.entries
    cdef size_t i, old_capacity = seen.capacity
    cdef size_t capacity = max(<size_t>32, old_capacity * 4)
    cdef Entry *entries = <Entry *>PyMem_Calloc(capacity, sizeof(Entry))
    if entries == NULL:
        raise MemoryError()
    seen.entries, seen.capacity, seen.count = entries, capacity, 0
    seen.shift = 64
    while capacity > 1:
        capacity >>= 1
        seen.shift -= 1
    for i in range(old_capacity):
        if old[i].item == seen.item:
            note(seen, old[i].value)
    PyMem_Free(old)
    return 0
