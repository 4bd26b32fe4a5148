# cython: language_level=3, boundscheck=False, wraparound=False
"""Decodes payloads, in Cython. aiomultiprocess/_pure/codec.py defines the format of a payload, and
the rules CODEC-1 to CODEC-12.

aiomultiprocess/_pure/decoder.py does the same in Python: change both together.

A payload lies in memory that another process can write. So the decoder reads each byte once, and
checks the copy that it uses (CODEC-7).

A new list or tuple has no members yet, and user code must not see it like that. The garbage
collector, which could run user code, is paused meanwhile (collector.pxd). A pickle runs user code
too, so the list of all items is not among `gc.get_objects()` until it is full.
"""

import pickle
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from amp_ext cimport collector
from amp_ext.capi cimport *
from amp_ext.collector cimport Pause
from amp_ext.small_copy cimport SMALL, copy_small
from amp_ext.tags cimport *

cdef extern from "block.h":
    bytearray amp_bytearray(Py_ssize_t)

cdef str BYTE_ORDER = sys.byteorder
cdef object unpickle = pickle.loads
cdef uint64_t HIGH_BITS = 0x8080808080808080

cdef struct Reader:
    const uint8_t *start
    const uint8_t *at
    const uint8_t *end
    PyObject *segments  # a list that no other code refers to; NULL if the payload is one piece
    Py_ssize_t next  # index of the next segment
    Py_ssize_t missing  # CODEC-10: size of the segment to read now, if it did not arrive
    Py_ssize_t behind  # bytes before `start`, in other segments
    Py_ssize_t ahead  # bytes after `end`, in other segments
    Pause pause
    Py_ssize_t skip  # items whose pickles are not loaded
    PyObject *failure  # CODEC-12: why the item has no value; NULL if it has
    int key_count
    PyObject *keys[KEY_COUNT]  # CODEC-6


class CorruptFrameError(ValueError):
    """A payload that no encoder can have made."""


def decode_items(payload, count, Py_ssize_t skip=0):
    """Decode a payload of `count` items; returns the values, and the failures by index or None.

    Of the first `skip` items, no pickle is loaded: None is its value.
    """
    cdef Reader reader
    cdef Py_buffer view
    cdef list segments
    memset(&reader, 0, sizeof(Reader))
    reader.skip = skip
    if not PyObject_CheckBuffer(payload):
        segments = list(payload.segments)
        PyObject_GC_UnTrack(<PyObject *>segments)  # the reader points into its segments
        reader.segments = <PyObject *>segments
        reader.ahead = len(payload)
        go_on(&reader)
        return decode(&reader, count)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        reader.start = reader.at = <const uint8_t *>view.buf
        reader.end = reader.start + view.len
        return decode(&reader, count)
    finally:
        PyBuffer_Release(&view)


cdef tuple decode(Reader *reader, number):
    cdef list values = None
    cdef dict failures = {}
    cdef Py_ssize_t count = 0, place = 0
    try:
        count = count_of(reader, number)
        values = PyList_New(count)
        # Unpickling runs user code, which must not find a list with holes.
        PyObject_GC_UnTrack(<PyObject *>values)
        read_items(reader, PySequence_Fast_ITEMS(<PyObject *>values), &place, count, failures)
    except (TypeError, UnicodeDecodeError) as error:  # not hashable; not UTF-8
        corrupt(reader, str(error))
    except MemoryError as error:
        if values is None:
            raise
        fail_rest(PySequence_Fast_ITEMS(<PyObject *>values), place, count, failures, error)
    finally:
        drop_unread(reader)
    PyObject_GC_Track(<PyObject *>values)
    return values, failures or None


cdef void drop_unread(Reader *reader) noexcept:
    cdef int i
    collector.resume(&reader.pause)
    Py_XDECREF(reader.failure)
    for i in range(reader.key_count):
        Py_DECREF(reader.keys[i])


def loads(payload):
    """Unpickle what `dumps` has pickled."""
    return unpickle(payload)


def receive_references(receive):
    """Make the object of a reference by `receive`, from its number."""
    global reference_receiver
    reference_receiver = receive


cdef object reference_receiver = None  # CODEC-12


def contain_interrupts():
    """From now on a KeyboardInterrupt is the failure of its item (CODEC-4)."""
    global uncontained
    uncontained = ()


cdef tuple uncontained = (KeyboardInterrupt,)


cdef int corrupt(Reader *reader, why) except -1:
    cdef Py_ssize_t place = reader.behind + (reader.at - reader.start)
    if reader.missing:
        no_memory(reader.missing)
    raise CorruptFrameError(f"{why}, before byte {place} of {place + left(reader)}")


cdef int no_memory(Py_ssize_t size) except -1:
    raise MemoryError(f"there is no memory, or no descriptor, for {size} bytes")


cdef Py_ssize_t count_of(Reader *reader, count) except -1:
    """The number of items; also one that is too large for C is a CorruptFrameError (CODEC-7)."""
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(<PyObject *>count, &overflow)
    if overflow or number < 0 or number > PY_SSIZE_T_MAX:
        corrupt(reader, f"{count} members")
    check_count(reader, <Py_ssize_t>number, 1)
    return <Py_ssize_t>number


cdef int corrupt_number(Reader *reader, const char *what, uint64_t number) except -1:
    return corrupt(reader, f"{number} {what.decode()}")


# -- items -------------------------------------------------------------------------------------

cdef int read_items(
    Reader *reader, PyObject **slots, Py_ssize_t *place, Py_ssize_t count, dict failures
) except -1:
    """Fill the slots of all items; at any time, those before `place` are filled."""
    cdef int tag
    while place[0] < count:
        if reader.at == reader.end and reader.segments != NULL:
            go_on(reader)  # CODEC-10
        tag = read_byte(reader)
        if tag == PICKLE:
            keep(slots + place[0], read_pickle(reader, failures, place[0]))
            place[0] += 1
        else:
            place[0] += fill(reader, tag, slots + place[0], count - place[0], 0)
            if reader.failure != NULL:
                fail_item(reader, slots + place[0] - 1, failures, place[0] - 1)
    if left(reader):
        corrupt(reader, "bytes after the last item")
    return 0


cdef int fail_item(Reader *reader, PyObject **slot, dict failures, Py_ssize_t place) except -1:
    """Let the item in a slot fail, because a shared object in it could not be made (CODEC-12)."""
    cdef PyObject *partial = slot[0]
    error = <object>reader.failure
    Py_DECREF(reader.failure)
    reader.failure = NULL
    slot[0] = new_reference(Py_None)
    Py_DECREF(partial)
    if place >= reader.skip:
        failures[place] = error
    return 0


cdef int fail_rest(
    PyObject **slots, Py_ssize_t place, Py_ssize_t count, dict failures, error
) except -1:
    """Let the item at `place`, for which there was no memory, and those behind it fail (CODEC-10).

    The items behind it cannot be found. All share one error, because more would take more memory.
    """
    cdef PyObject *partial
    while place < count:
        failures[place] = error
        partial = slots[place]  # a value of a run that is not complete
        slots[place] = new_reference(Py_None)
        Py_XDECREF(partial)
        place += 1
    return 0


cdef object read_pickle(Reader *reader, dict failures, Py_ssize_t place):
    cdef Py_ssize_t number = read_number(reader), i
    cdef list buffers = []
    check_count(reader, number, 2)
    for i in range(number):
        buffers.append(read_buffer(reader, read_byte(reader)))
    pickled = read_bytes(reader)
    if place < reader.skip:
        return None
    collector.resume(&reader.pause)
    try:
        return unpickle(pickled, buffers=buffers)
    except uncontained:
        raise
    except BaseException as error:  # CODEC-4: user code ran, and may raise anything
        failures[place] = error
        return None


# -- values ------------------------------------------------------------------------------------
#
# A function that reads a value returns a new reference as a pointer. For an object, Cython would
# count one more reference, and drop it.

cdef inline Py_ssize_t fill(
    Reader *reader, int tag, PyObject **slots, Py_ssize_t room, int depth
) except -1:
    """Fill slots with the value, or the values of the run, of a tag; returns how many slots."""
    if INT8S <= tag <= FLOATS:
        return fill_run(reader, tag, slots, room)
    slots[0] = read(reader, tag, depth)
    return 1


cdef Py_ssize_t fill_run(
    Reader *reader, int tag, PyObject **slots, Py_ssize_t room
) except -1:
    cdef int shift = 3 if tag == FLOATS else tag - INT8S
    cdef Py_ssize_t count = read_number(reader), i
    cdef const uint8_t *data
    if not 0 < count <= room:
        corrupt(reader, f"a run of {count} values where at most {room} fit")
    if count > PY_SSIZE_T_MAX >> shift:
        corrupt_number(reader, b"bytes", <uint64_t>count << shift)
    data = take(reader, count << shift)
    if tag == FLOATS:
        for i in range(count):
            slots[i] = load_float(data + i * 8)
    else:
        for i in range(count):
            slots[i] = load_int(data + (i << shift), shift)
    return count


cdef inline void keep(PyObject **slot, object value) noexcept:
    Py_INCREF(<PyObject *>value)
    slot[0] = <PyObject *>value


cdef inline PyObject *read(Reader *reader, int tag, int depth) except NULL:
    """Read the value of a tag. The most frequent types are inline here, to save a call."""
    if tag == INT8:
        return load_int(take(reader, 1), 0)
    if tag == INT16:
        return load_int(take(reader, 2), 1)
    if tag == INT32:
        return load_int(take(reader, 4), 2)
    if tag == FLOAT:
        return load_float(take(reader, 8))
    if tag == STR:
        return read_str(reader, read_number(reader))
    return read_other(reader, tag, depth)


cdef PyObject *read_other(Reader *reader, int tag, int depth) except NULL:
    if tag == NONE:
        return new_reference(Py_None)
    if tag == FALSE:
        return new_reference(Py_False)
    if tag == TRUE:
        return new_reference(Py_True)
    if tag == INT64:
        return load_int(take(reader, 8), 3)
    if tag == BIGINT:
        number = int.from_bytes(read_bytes(reader), BYTE_ORDER, signed=True)
        return new_reference(<PyObject *>number)
    if tag == BYTES:
        value = read_bytes(reader)
        return new_reference(<PyObject *>value)
    if tag == REFERENCE and reference_receiver is not None:
        return read_reference(reader, number_at(take(reader, 8)))
    if tag < TUPLE or tag > DICT:
        corrupt(reader, f"tag {tag}, which is not valid there")
    if depth >= MAX_DEPTH:
        corrupt(reader, f"more than {MAX_DEPTH} nested containers")
    collector.pause(&reader.pause)
    if tag == DICT:
        return read_dict(reader, depth + 1)
    if tag == LIST or tag == TUPLE:
        return read_sequence(reader, tag, depth + 1)
    return read_set(reader, tag, depth + 1)


cdef PyObject *read_reference(Reader *reader, uint64_t number) except NULL:
    """Make a shared object. If that fails, the rest of the item is read on, to find the next."""
    try:
        value = reference_receiver(number)
    except uncontained:
        raise
    except BaseException as error:  # CODEC-4: it may import modules, or have no memory
        value = object()  # which a set or dict can hold beside all others
        if reader.failure == NULL:
            keep(&reader.failure, error)
    return new_reference(<PyObject *>value)


cdef inline uint64_t number_at(const uint8_t *data) noexcept:
    cdef uint64_t number
    memcpy(&number, data, 8)
    return number


cdef inline PyObject *new_reference(PyObject *value) noexcept:
    Py_INCREF(value)
    return value


cdef PyObject *read_sequence(Reader *reader, int tag, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), at = 0
    cdef PyObject **slots
    check_count(reader, count, 1)
    values = PyList_New(count) if tag == LIST else PyTuple_New(count)
    slots = PySequence_Fast_ITEMS(<PyObject *>values)
    if count:  # CODEC-12 runs Python code, which must not find a sequence with holes
        PyObject_GC_UnTrack(<PyObject *>values)
    while at < count:
        at += fill(reader, read_byte(reader), slots + at, count - at, depth)
    if count:
        PyObject_GC_Track(<PyObject *>values)
    return new_reference(<PyObject *>values)


cdef PyObject *read_dict(Reader *reader, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), i
    cdef dict pairs = {}
    cdef int tag, number
    check_count(reader, count, 2)
    for i in range(count):
        tag = read_byte(reader)
        if tag != KEY:
            read_pair(reader, pairs, tag, depth)
            continue
        number = read_byte(reader)
        if number >= reader.key_count:
            corrupt(reader, f"key {number} of {reader.key_count}")
        put_pair(pairs, reader.keys[number], read(reader, read_byte(reader), depth))
    if PyDict_GET_SIZE(<PyObject *>pairs) != count:
        corrupt(reader, "a dict with equal keys")
    return new_reference(<PyObject *>pairs)


cdef int read_pair(Reader *reader, dict pairs, int tag, int depth) except -1:
    """Read a pair whose key is spelled out; the key may get a number (CODEC-6)."""
    cdef PyObject *made
    cdef Py_ssize_t size = 0
    if tag == STR:
        size = read_number(reader)
        made = read_str(reader, size)
    else:
        made = read(reader, tag, depth)
    key = <object>made
    Py_DECREF(made)
    if tag == STR and size <= KEY_SIZE and reader.key_count < KEY_COUNT:
        keep(&reader.keys[reader.key_count], key)
        reader.key_count += 1
    return put_pair(pairs, <PyObject *>key, read(reader, read_byte(reader), depth))


cdef inline int put_pair(dict pairs, PyObject *key, PyObject *value) except -1:
    """Put a pair into a dict; this takes over the reference to the value."""
    cdef int status = PyDict_SetItem(<PyObject *>pairs, key, value)
    Py_DECREF(value)
    return status


cdef PyObject *read_set(Reader *reader, int tag, int depth) except NULL:
    cdef Py_ssize_t count = read_number(reader), i
    cdef PyObject *member
    check_count(reader, count, 1)
    members = PySet_New(NULL) if tag == SET else PyFrozenSet_New(NULL)
    for i in range(count):
        member = read(reader, read_byte(reader), depth)
        put_member(members, member)
    if PySet_GET_SIZE(<PyObject *>members) != count:
        corrupt(reader, "a set with equal members")
    return new_reference(<PyObject *>members)


cdef inline int put_member(members, PyObject *member) except -1:
    """Add a member to a set; this takes over the reference."""
    cdef int status = PySet_Add(<PyObject *>members, member)
    Py_DECREF(member)
    return status


# -- numbers, text and bytes -------------------------------------------------------------------

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


cdef inline PyObject *load_float(const uint8_t *data) except NULL:
    cdef double number
    memcpy(&number, data, 8)
    return PyFloat_FromDouble(number)


cdef bytes read_bytes(Reader *reader):
    cdef Py_ssize_t size = read_number(reader)
    if size >= SEGMENT_MIN and reader.segments != NULL:
        return take_segment(reader, bytes, size, False)
    return (<const char *>take(reader, size))[:size]


cdef object read_buffer(Reader *reader, bint readonly):
    """Read a buffer of a pickle, as a view (CODEC-11)."""
    cdef Py_ssize_t size = read_number(reader)
    cdef const uint8_t *data
    if size >= SEGMENT_MIN and reader.segments != NULL:
        made = take_segment(reader, bytes if readonly else bytearray, size, True)
        return made if type(made) is memoryview else PyMemoryView_FromObject(made)
    data = take(reader, size)
    if readonly:
        return PyMemoryView_FromObject((<const char *>data)[:size])
    made = amp_bytearray(size)
    memcpy(PyByteArray_AS_STRING(<PyObject *>made), data, size)
    return PyMemoryView_FromObject(made)


cdef PyObject *read_str(Reader *reader, Py_ssize_t size) except NULL:
    """Read a str. The peer may change `data` meanwhile, so this decodes a copy of it."""
    cdef const uint8_t *data = take(reader, size)
    cdef PyObject *text
    if size > 1:  # CPython has one str for each shorter text, and returns that
        text = PyUnicode_New(size, 127)
        if copy_ascii(<uint8_t *>PyUnicode_DATA(text), data, size):
            return text
        try:
            return PyUnicode_DecodeUTF8(<const char *>PyUnicode_DATA(text), size, b"surrogatepass")
        finally:
            Py_DECREF(text)
    return PyUnicode_DecodeUTF8(<const char *>data, size, b"surrogatepass")


cdef inline bint copy_ascii(uint8_t *to, const uint8_t *data, Py_ssize_t size) noexcept:
    """Copy text; returns whether the copy is ASCII."""
    if size < SMALL:
        return copy_small(to, data, size) & HIGH_BITS == 0
    memcpy(to, data, size)
    return is_ascii(to, size)


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
    return seen & HIGH_BITS == 0


cdef inline int read_byte(Reader *reader) except -1:
    return take(reader, 1)[0]


cdef inline Py_ssize_t read_number(Reader *reader) except -1:
    cdef int byte = read_byte(reader)
    return byte if byte < LONG_SIZE else read_long_number(reader)


cdef Py_ssize_t read_long_number(Reader *reader) except -1:
    cdef uint64_t number
    memcpy(&number, take(reader, 8), 8)
    if number > <uint64_t>left(reader):  # CODEC-7: what is counted takes a byte each
        corrupt_number(reader, b"members or bytes", number)
    return <Py_ssize_t>number


cdef inline int check_count(Reader *reader, Py_ssize_t count, int least) except -1:
    """CorruptFrameError if the bytes left are too few for `count` members (CODEC-7)."""
    if count < 0 or count > left(reader) // least:
        corrupt_number(reader, b"members", count)
    return 0


cdef inline const uint8_t *take(Reader *reader, Py_ssize_t size) except NULL:
    cdef const uint8_t *data = reader.at
    if size > reader.end - data:
        corrupt_number(reader, b"bytes", size)
    reader.at += size
    return data


cdef inline Py_ssize_t left(Reader *reader) noexcept:
    return reader.end - reader.at + reader.ahead


# -- segments (CODEC-8) ------------------------------------------------------------------------

cdef object take_segment(Reader *reader, type kind, Py_ssize_t size, bint lent):
    """The next segment as a value of its own, or as a `lent` view (CODEC-11)."""
    if reader.at != reader.end or reader.next >= len(<list>reader.segments):
        corrupt_number(reader, b"bytes that are not a segment of their own", size)
    segment = (<list>reader.segments)[reader.next]
    if type(segment) is int:
        no_memory(size)
    if lent and type(segment) is memoryview and segment.readonly is (kind is bytes):
        kind = memoryview
    if type(segment) is not kind or len(segment) != size:
        corrupt(reader, f"a segment that is not of type {kind.__name__} with {size} bytes")
    (<list>reader.segments)[reader.next] = None  # the segment is the value from now on
    reader.next += 1
    reader.behind += size
    reader.ahead -= size
    go_on(reader)
    return segment


cdef int go_on(Reader *reader) except -1:
    """Read on in the next segment, if there is one."""
    reader.behind += reader.end - reader.start
    reader.start = reader.at = reader.end = NULL
    if reader.next < len(<list>reader.segments):
        segment = (<list>reader.segments)[reader.next]
        if type(segment) is int:
            reader.missing = segment
            return 0
        if type(segment) is not bytes:
            corrupt(reader, "a bytearray that is not a buffer of a pickle")
        reader.next += 1
        reader.start = reader.at = <const uint8_t *>PyBytes_AS_STRING(<PyObject *>segment)
        reader.end = reader.start + len(segment)
        reader.ahead -= len(segment)
    return 0
