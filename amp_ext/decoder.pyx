# cython: language_level=3, boundscheck=False, wraparound=False
"""Payloads to items, at the speed of C. What a payload is, and C1 to C8: aiomultiprocess/codec.py.

aiomultiprocess/decoder.py does the same in Python; a rule changed here is changed there.

A payload lies in memory that another process can write, so each byte of it is read once: what was
checked is a copy (C7).
"""

import pickle
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from amp_ext.capi cimport *
from amp_ext.tags cimport *

cdef str BYTE_ORDER = sys.byteorder
cdef object unpickle = pickle.loads

cdef struct Reader:
    const uint8_t *start
    const uint8_t *at
    const uint8_t *end
    int key_count
    PyObject *keys[KEY_COUNT]  # C6


class CorruptFrameError(ValueError):
    """A payload that no encoder can have made."""


def decode_items(payload, Py_ssize_t count):
    """Decode a payload of `count` items: their values, and the failures by place if there are any."""
    cdef Py_buffer view
    cdef Reader reader
    cdef int i
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    reader.start = reader.at = <const uint8_t *>view.buf
    reader.end = reader.start + view.len
    reader.key_count = 0
    try:
        return read_items(&reader, count)
    except (TypeError, UnicodeDecodeError) as error:  # not hashable; not UTF-8
        corrupt(&reader, str(error))
    finally:
        for i in range(reader.key_count):
            Py_DECREF(reader.keys[i])
        PyBuffer_Release(&view)


def loads(payload):
    """Unpickle what `dumps` has pickled."""
    return unpickle(payload)


cdef int corrupt(Reader *reader, why) except -1:
    raise CorruptFrameError(
        f"{why}, before byte {reader.at - reader.start} of {reader.end - reader.start}"
    )


# -- items -------------------------------------------------------------------------------------

cdef tuple read_items(Reader *reader, Py_ssize_t count):
    cdef PyObject *values
    cdef dict failures = {}
    check_count(reader, count, 1)
    values = PyList_New(count)
    # Unpickling runs user code, which must not find a list with holes: keep it from the collector.
    PyObject_GC_UnTrack(values)
    try:
        fill_items(reader, PySequence_Fast_ITEMS(values), count, failures)
        if reader.at != reader.end:
            corrupt(reader, "more than the items")
        return <object>values, failures or None
    finally:
        PyObject_GC_Track(values)
        Py_DECREF(values)


cdef int fill_items(Reader *reader, PyObject **slots, Py_ssize_t count, dict failures) except -1:
    cdef Py_ssize_t place = 0
    while place < count:
        if reader.at < reader.end and reader.at[0] == PICKLE:
            reader.at += 1
            value = read_pickle(reader, failures, place)
            Py_INCREF(<PyObject *>value)
            slots[place] = <PyObject *>value
            place += 1
        else:
            place += fill(reader, slots + place, count - place, 0)
    return 0


cdef object read_pickle(Reader *reader, dict failures, Py_ssize_t place):
    cdef Py_ssize_t number = read_number(reader), size, i
    cdef bint is_readonly
    cdef const char *data
    cdef list buffers = []
    check_count(reader, number, 2)
    for i in range(number):
        is_readonly = read_byte(reader)
        size = read_number(reader)
        data = <const char *>take(reader, size)
        buffers.append(data[:size] if is_readonly else PyByteArray_FromStringAndSize(data, size))
    size = read_number(reader)
    pickled = (<const char *>take(reader, size))[:size]
    try:
        return unpickle(pickled, buffers=buffers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # C4: user code was run, which may raise anything
        failures[place] = error
        return None


# -- values ------------------------------------------------------------------------------------

cdef Py_ssize_t fill(Reader *reader, PyObject **slots, Py_ssize_t room, int depth) except -1:
    """Fill slots with the value, or the values of the run, that comes; how many these are."""
    if reader.at < reader.end and INT8S <= reader.at[0] <= FLOATS:
        return fill_run(reader, slots, room)
    slots[0] = read(reader, depth)
    return 1


cdef Py_ssize_t fill_run(Reader *reader, PyObject **slots, Py_ssize_t room) except -1:
    cdef int tag = read_byte(reader)
    cdef int shift = 3 if tag == FLOATS else tag - INT8S
    cdef Py_ssize_t count = read_number(reader), i
    cdef const uint8_t *data
    cdef double real
    if not 0 < count <= room:
        corrupt(reader, f"a run of {count} where {room} may be")
    data = take(reader, count << shift)
    if tag == FLOATS:
        for i in range(count):
            memcpy(&real, data + i * 8, 8)
            slots[i] = PyFloat_FromDouble(real)
    else:
        for i in range(count):
            slots[i] = load_int(data + (i << shift), shift)
    return count


cdef inline PyObject *load_int(const uint8_t *data, int shift) except NULL:
    cdef int16_t number16
    cdef int32_t number32
    cdef int64_t number64
    if shift == 0:
        return PyLong_FromLong(<int8_t>data[0])
    if shift == 1:
        memcpy(&number16, data, 2)
        return PyLong_FromLong(number16)
    if shift == 2:
        memcpy(&number32, data, 4)
        return PyLong_FromLong(number32)
    memcpy(&number64, data, 8)
    return PyLong_FromLongLong(number64)


cdef PyObject *read(Reader *reader, int depth) except NULL:
    """The value that comes: a new reference."""
    cdef int tag = read_byte(reader)
    if tag == NONE:
        return owned(Py_None)
    elif tag == FALSE:
        return owned(Py_False)
    elif tag == TRUE:
        return owned(Py_True)
    elif tag == INT8 or tag == INT16 or tag == INT32 or tag == INT64:
        return load_int(take(reader, 1 << (tag - INT8)), tag - INT8)
    elif tag == BIGINT:
        return read_bigint(reader)
    elif tag == FLOAT:
        return read_float(reader)
    elif tag == STR:
        return read_str(reader, read_number(reader))
    elif tag == BYTES:
        return read_bytes(reader)
    if tag < TUPLE or tag > DICT:
        corrupt(reader, f"tag {tag}, which has no place there")
    if depth >= MAX_DEPTH:
        corrupt(reader, f"more than {MAX_DEPTH} nested containers")
    if tag == DICT:
        return read_dict(reader, depth + 1)
    if tag == LIST or tag == TUPLE:
        return read_sequence(reader, tag, depth + 1)
    return read_set(reader, tag, depth + 1)


cdef inline PyObject *owned(PyObject *value) noexcept:
    Py_INCREF(value)
    return value


cdef PyObject *read_sequence(Reader *reader, int tag, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), at = 0
    cdef PyObject *values
    cdef PyObject **slots
    check_count(reader, count, 1)
    values = PyList_New(count) if tag == LIST else PyTuple_New(count)
    try:
        slots = PySequence_Fast_ITEMS(values)
        while at < count:
            at += fill(reader, slots + at, count - at, depth)
    except:
        Py_DECREF(values)
        raise
    return values


cdef PyObject *read_dict(Reader *reader, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), i
    cdef PyObject *pairs
    cdef PyObject *key = NULL
    cdef PyObject *value = NULL
    check_count(reader, count, 2)
    pairs = PyDict_New()
    try:
        for i in range(count):
            key = read_key(reader, depth)
            value = read(reader, depth)
            PyDict_SetItem(pairs, key, value)
            Py_DECREF(key)
            key = NULL
            Py_DECREF(value)
            value = NULL
        if PyDict_GET_SIZE(pairs) != count:
            corrupt(reader, "a dict with equal keys")
    except:
        Py_XDECREF(key)
        Py_XDECREF(value)
        Py_DECREF(pairs)
        raise
    return pairs


cdef PyObject *read_key(Reader *reader, int depth) except NULL:
    cdef Py_ssize_t size
    cdef int number
    cdef PyObject *key
    if reader.at < reader.end and reader.at[0] == KEY:
        reader.at += 1
        number = read_byte(reader)
        if number >= reader.key_count:
            corrupt(reader, f"key {number} of {reader.key_count}")
        return owned(reader.keys[number])
    if reader.at == reader.end or reader.at[0] != STR:
        return read(reader, depth)
    reader.at += 1
    size = read_number(reader)
    key = read_str(reader, size)
    if size <= KEY_SIZE and reader.key_count < KEY_COUNT:
        reader.keys[reader.key_count] = owned(key)
        reader.key_count += 1
    return key


cdef PyObject *read_set(Reader *reader, int tag, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), i
    cdef PyObject *members
    cdef PyObject *member = NULL
    check_count(reader, count, 1)
    members = PySet_New(NULL) if tag == SET else PyFrozenSet_New(NULL)
    try:
        for i in range(count):
            member = read(reader, depth)
            PySet_Add(members, member)
            Py_DECREF(member)
            member = NULL
        if PySet_GET_SIZE(members) != count:
            corrupt(reader, "a set with equal members")
    except:
        Py_XDECREF(member)
        Py_DECREF(members)
        raise
    return members


# -- numbers, text and bytes -------------------------------------------------------------------

cdef PyObject *read_float(Reader *reader) except NULL:
    cdef double number
    memcpy(&number, take(reader, 8), 8)
    return PyFloat_FromDouble(number)


cdef PyObject *read_bigint(Reader *reader) except NULL:
    cdef Py_ssize_t size = read_number(reader)
    cdef const uint8_t *data = take(reader, size)
    value = int.from_bytes((<const char *>data)[:size], BYTE_ORDER, signed=True)
    return owned(<PyObject *>value)


cdef PyObject *read_bytes(Reader *reader) except NULL:
    cdef Py_ssize_t size = read_number(reader)
    return PyBytes_FromStringAndSize(<const char *>take(reader, size), size)


cdef PyObject *read_str(Reader *reader, Py_ssize_t size) except NULL:
    cdef const uint8_t *data = take(reader, size)
    cdef PyObject *text
    cdef uint8_t *copy
    if size < 2:  # there is one str for each of these
        return PyUnicode_DecodeUTF8(<const char *>data, size, b"surrogatepass")
    text = PyUnicode_New(size, 127)
    copy = <uint8_t *>PyUnicode_DATA(text)
    memcpy(copy, data, size)
    if is_ascii(copy, size):
        return text
    Py_DECREF(text)
    return PyUnicode_DecodeUTF8(<const char *>data, size, b"surrogatepass")


cdef inline bint is_ascii(const uint8_t *text, Py_ssize_t size) noexcept:
    cdef uint64_t seen = 0, eight
    cdef Py_ssize_t at = 0
    while at + 8 <= size:
        memcpy(&eight, text + at, 8)
        seen |= eight
        at += 8
    while at < size:
        seen |= text[at]
        at += 1
    return seen & <uint64_t>0x8080808080808080 == 0


cdef inline int read_byte(Reader *reader) except -1:
    return take(reader, 1)[0]


cdef inline Py_ssize_t read_number(Reader *reader) except -1:
    cdef int byte = read_byte(reader)
    cdef uint64_t wide
    if byte < LONG_SIZE:
        return byte
    memcpy(&wide, take(reader, 8), 8)
    if wide > <uint64_t>(reader.end - reader.at):  # C7: nothing is counted that takes no byte
        corrupt(reader, f"a number of {wide}")
    return <Py_ssize_t>wide


cdef inline int check_count(Reader *reader, Py_ssize_t count, int least) except -1:
    """C7: no room for more members than there can be."""
    if count < 0 or count > (reader.end - reader.at) // least:
        corrupt(reader, f"{count} members")
    return 0


cdef inline const uint8_t *take(Reader *reader, Py_ssize_t size) except NULL:
    cdef const uint8_t *data = reader.at
    if size > reader.end - data:
        corrupt(reader, f"{size} bytes")
    reader.at += size
    return data
