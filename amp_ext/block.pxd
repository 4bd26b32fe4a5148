"""The block of bytes that an encoder fills, and the functions that put plain values into it.

A pointer into the block is valid until the next call of a function that takes the block, because
that may move it. If there is no memory to grow, these functions raise MemoryError and leave the
block unchanged.
"""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memmove

from amp_ext.capi cimport *
from amp_ext.small_copy cimport copy_small
from amp_ext.tags cimport *

cdef extern from "block.h":
    int amp_bytes_resize(PyObject **, Py_ssize_t) except -1
    Py_ssize_t amp_bytes_grow(PyObject **, Py_ssize_t, Py_ssize_t) except -1

cdef enum:
    STEP = 256  # put_ints makes room for so many ints at a time

cdef struct Block:
    PyObject *data  # a bytes object that no other code has seen
    Py_ssize_t size
    Py_ssize_t capacity


cdef inline uint8_t *room_for(Block *block, Py_ssize_t size) except NULL:
    """Make room for `size` more bytes; returns where they go."""
    if <size_t>size > <size_t>(block.capacity - block.size):  # unsigned: also after an overflow
        grow(block, size)
    return <uint8_t *>PyBytes_AS_STRING(block.data) + block.size


cdef inline int grow(Block *block, Py_ssize_t size) except -1:
    block.capacity = amp_bytes_grow(&block.data, block.size, size)
    return 0


cdef inline int put_byte(Block *block, int byte) except -1:
    room_for(block, 1)[0] = <uint8_t>byte
    block.size += 1
    return 0


cdef inline int put_number(Block *block, Py_ssize_t number) except -1:
    cdef uint8_t *out = room_for(block, 9)
    cdef uint64_t wide = number
    if number < LONG_SIZE:
        out[0] = <uint8_t>number
        block.size += 1
    else:
        out[0] = LONG_SIZE
        memcpy(out + 1, &wide, 8)
        block.size += 9
    return 0


cdef inline int put_size(Block *block, int tag, Py_ssize_t size) except -1:
    put_byte(block, tag)
    return put_number(block, size)


cdef inline int put_copy(Block *block, const char *data, Py_ssize_t size) except -1:
    memcpy(room_for(block, size), data, size)
    block.size += size
    return 0


cdef inline int put_short(Block *block, int tag, const uint8_t *data, Py_ssize_t size) except -1:
    """Put less than SMALL bytes, with their tag and size."""
    cdef uint8_t *out = room_for(block, size + 2)
    out[0] = <uint8_t>tag
    out[1] = <uint8_t>size
    copy_small(out + 2, data, size)
    block.size += size + 2
    return 0


cdef inline int put_float(Block *block, PyObject *value) except -1:
    cdef double number = PyFloat_AS_DOUBLE(value)
    cdef uint8_t *out = room_for(block, 9)
    out[0] = FLOAT
    memcpy(out + 1, &number, 8)
    block.size += 9
    return 0


# -- ints: of width 1 << shift -----------------------------------------------------------------

cdef inline int shift_for(int64_t low, int64_t high) noexcept:
    """The shift of the narrowest width that holds both numbers."""
    if low == <int8_t>low and high == <int8_t>high:
        return 0
    if low == <int16_t>low and high == <int16_t>high:
        return 1
    if low == <int32_t>low and high == <int32_t>high:
        return 2
    return 3


cdef inline void store(void *out, int64_t number, int shift) noexcept:
    cdef int8_t number8 = <int8_t>number
    cdef int16_t number16 = <int16_t>number
    cdef int32_t number32 = <int32_t>number
    if shift == 0:
        memcpy(out, &number8, 1)
    elif shift == 1:
        memcpy(out, &number16, 2)
    elif shift == 2:
        memcpy(out, &number32, 4)
    else:
        memcpy(out, &number, 8)


cdef inline bint put_int(Block *block, PyObject *value) except -1:
    """Put an int; False if it has more than 64 bits."""
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return False
    block.size += write_int(room_for(block, 9), number)
    return True


cdef inline Py_ssize_t write_int(uint8_t *out, int64_t number) noexcept:
    """Write an int with its tag; returns their size, at most 9."""
    cdef int shift = shift_for(number, number)
    out[0] = <uint8_t>(INT8 + shift)
    store(out + 1, number, shift)
    return 1 + (1 << shift)


# -- runs (CODEC-5) ----------------------------------------------------------------------------

cdef inline Py_ssize_t put_run(
    Block *block, PyObject *values, Py_ssize_t start, Py_ssize_t stop
) except -1:
    """Put the run that begins at `start`; returns its number of values, or 0 (CODEC-5)."""
    cdef PyObject **first = PySequence_Fast_ITEMS(values) + start
    cdef Py_ssize_t count = min(stop, PySequence_Fast_GET_SIZE(values)) - start
    cdef int i
    if count < RUN_MIN or not (PyLong_CheckExact(first[0]) or PyFloat_CheckExact(first[0])):
        return 0
    for i in range(1, RUN_MIN):
        if Py_TYPE(first[i]) != Py_TYPE(first[0]):
            return 0
    if PyLong_CheckExact(first[0]):
        return put_ints(block, first, count)
    return put_floats(block, first, count)


cdef inline Py_ssize_t put_ints(Block *block, PyObject **values, Py_ssize_t limit) except -1:
    cdef Py_ssize_t count = 0, end = 0
    cdef int64_t number, low = 0, high = 0
    cdef uint8_t *out = NULL
    cdef int overflow = 0
    # First with 64 bits for each, behind room for a tag and the longest count (nine bytes).
    while count < limit:
        if count == end:
            end = min(limit, end + STEP)
            out = room_for(block, 10 + end * 8) + 10
        if not PyLong_CheckExact(values[count]):
            break
        number = PyLong_AsLongLongAndOverflow(values[count], &overflow)
        if overflow:
            break
        low = min(low, number)
        high = max(high, number)
        memcpy(out + count * 8, &number, 8)
        count += 1
    if count < RUN_MIN:
        return 0
    narrow(block, count, shift_for(low, high))
    return count


cdef inline int narrow(Block *block, Py_ssize_t count, int shift) except -1:
    """Turn the numbers that `put_ints` has left behind the end of the block into a run in it."""
    cdef const char *wide = PyBytes_AS_STRING(block.data) + block.size + 10
    cdef char *out
    cdef Py_ssize_t i
    cdef int64_t number
    put_size(block, INT8S + shift, count)  # put_ints has made room, so the block does not move
    out = PyBytes_AS_STRING(block.data) + block.size
    # In place and forwards: a number is never written behind the place where it was read, so no
    # number is lost. One loop for each width, because compilers vectorize such loops.
    if shift == 0:
        for i in range(count):
            memcpy(&number, wide + i * 8, 8)
            store(out + i, number, 0)
    elif shift == 1:
        for i in range(count):
            memcpy(&number, wide + i * 8, 8)
            store(out + i * 2, number, 1)
    elif shift == 2:
        for i in range(count):
            memcpy(&number, wide + i * 8, 8)
            store(out + i * 4, number, 2)
    else:
        memmove(out, wide, count * 8)
    block.size += count << shift
    return 0


cdef inline Py_ssize_t put_floats(Block *block, PyObject **values, Py_ssize_t limit) except -1:
    cdef Py_ssize_t i, count = RUN_MIN
    cdef double number
    cdef uint8_t *out
    while count < limit and PyFloat_CheckExact(values[count]):
        count += 1
    put_size(block, FLOATS, count)
    out = room_for(block, count * 8)
    for i in range(count):
        number = PyFloat_AS_DOUBLE(values[i])
        memcpy(out + i * 8, &number, 8)
    block.size += count * 8
    return count
