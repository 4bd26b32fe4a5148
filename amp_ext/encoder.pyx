# cython: language_level=3, boundscheck=False, wraparound=False
"""Items to payloads, at the speed of C. What a payload is, and C1 to C8: aiomultiprocess/codec.py.

aiomultiprocess/encoder.py does the same in Python; a rule changed here is changed there.

Values are handled as borrowed pointers, because counting references would cost as much as encoding.
That is sound: encoding a value without a pickle runs no code of the user's, except that on CPython
3.11 an allocation may start a garbage collection and with it a finalizer. So a container is held
while its members are visited, and a size is asked for again at each step.
"""

import copyreg
import io
import pickle
import sys

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from amp_ext.tags cimport *

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    PyTypeObject *Py_TYPE(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)
    bint PyLong_CheckExact(PyObject *)
    bint PyFloat_CheckExact(PyObject *)
    bint PyUnicode_CheckExact(PyObject *)
    bint PyBytes_CheckExact(PyObject *)
    bint PyDict_CheckExact(PyObject *)
    bint PyList_CheckExact(PyObject *)
    bint PyTuple_CheckExact(PyObject *)
    bint PySet_CheckExact "PyAnySet_CheckExact" (PyObject *)
    bint PyFrozenSet_CheckExact(PyObject *)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *) except? -1
    double PyFloat_AS_DOUBLE(PyObject *)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *)
    Py_ssize_t PyUnicode_GetLength(PyObject *) except -1
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    void *PyUnicode_DATA(PyObject *)
    char *PyBytes_AS_STRING(PyObject *)
    Py_ssize_t PyBytes_GET_SIZE(PyObject *)
    PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    Py_ssize_t PyDict_GET_SIZE(PyObject *)
    bint PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **)
    PyObject *PyDict_GetItemWithError(object, PyObject *) except? NULL
    Py_ssize_t PySet_GET_SIZE(PyObject *)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *)
    PyObject **PySequence_Fast_ITEMS(PyObject *)

cdef enum:
    # what putting a value says
    PUT = 0
    FOREIGN = 1  # this item is to be a PICKLE
    KEY_SLOTS = 512
    BLOCK = 256  # numbers of a run that room is made for at a time

cdef str BYTE_ORDER = sys.byteorder

cdef struct Met:
    PyObject *value
    size_t item


def encode_items(items, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t max_bytes):
    """Encode items[start:stop] until the payload has `max_bytes`, an item fails, or all are done."""
    if start < 0:
        raise ValueError(f"start is {start}: items are counted from their beginning")
    if type(items) is not list and type(items) is not tuple:
        items = list(items)
    cdef Encoder encoder = Encoder(start, min(stop - start, 4096) * 9)
    cdef object error = None
    while True:
        try:
            if encoder.put_items(<PyObject *>items, stop, max_bytes):
                break
            encoder.put_pickle(items[encoder.at])
            encoder.at += 1
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # C4: user code was run, which may raise anything
            encoder.take_back()
            error = failure
            break
    return encoder.segments(), encoder.at - start, error


def dumps(obj):
    """Pickle one object with the reducers that items are pickled with."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.dispatch_table = reducers()
    pickler.dump(obj)
    return file.getvalue()


cdef dict reducers():
    """What `multiprocessing` would pickle with now; looked up late, and so cheap to import."""
    from multiprocessing.reduction import ForkingPickler

    return {**copyreg.dispatch_table, **getattr(ForkingPickler, "_extra_reducers", {})}


@cython.final
cdef class ItemPickler:
    """Pickles the items of one payload, one at a time, with nothing carried over (C2)."""
    cdef object file, pickler
    cdef list buffers

    def __init__(self):
        self.file = io.BytesIO()
        self.buffers = []
        self.pickler = pickle.Pickler(self.file, 5, buffer_callback=self.buffers.append)
        self.pickler.dispatch_table = reducers()

    cdef bytes dump(self, item):
        self.pickler.clear_memo()
        self.buffers.clear()
        self.file.seek(0)
        self.file.truncate()
        self.pickler.dump(item)
        return self.file.getvalue()


@cython.final
cdef class Encoder:
    """One payload in the making: a growing block of bytes, and large bytes by their place in it."""
    cdef:
        Py_ssize_t first, at  # the first item, the one that is being encoded
        PyObject *block
        Py_ssize_t size, capacity
        list large  # C8: bytes that go between those of the block, and in large_at where
        list large_at
        Py_ssize_t large_size
        # how all was before the item (C4)
        Py_ssize_t mark_size, mark_large, mark_large_size, mark_keys
        # C6: the keys' numbers; the keys by number, which `numbers` holds; numbers by address
        dict numbers
        Py_ssize_t key_count
        PyObject *keys[KEY_COUNT]
        uint16_t slots[KEY_SLOTS]
        # C3: a hash table of addresses; only entries with the number of this item count
        Met *met
        size_t met_capacity, met_count, item
        int met_shift
        ItemPickler pickler

    def __cinit__(self, Py_ssize_t first, Py_ssize_t expected):
        self.first = self.at = first
        self.capacity = expected + 64
        self.block = PyBytes_FromStringAndSize(NULL, self.capacity)

    def __dealloc__(self):
        Py_XDECREF(self.block)
        PyMem_Free(self.met)

    # -- items ---------------------------------------------------------------------------------

    cdef bint put_items(self, PyObject *items, Py_ssize_t stop, Py_ssize_t max_bytes) except -1:
        """Put items up to the first that must be pickled (False), or to the end of the payload."""
        cdef Py_ssize_t room, taken
        while self.at < stop:
            room = max_bytes - self.size - self.large_size
            if room <= 0:
                if self.at > self.first:
                    break
                room = 0
            self.mark()
            taken = self.put_run(items, self.at, min(stop, self.at + room // 8 + 1))
            if taken == 0:
                if self.at >= PySequence_Fast_GET_SIZE(items):
                    raise IndexError(f"there is no item {self.at}")
                if self.put(PySequence_Fast_ITEMS(items)[self.at], 0) == FOREIGN:
                    self.take_back()
                    return False
                taken = 1
            self.at += taken
        return True

    cdef void mark(self) noexcept:
        self.item += 1
        self.met_count = 0
        self.mark_size = self.size
        self.mark_keys = self.key_count
        self.mark_large_size = self.large_size
        self.mark_large = 0 if self.large is None else len(self.large)

    cdef int take_back(self) except -1:
        """C4: be as before the item."""
        self.size = self.mark_size
        self.large_size = self.mark_large_size
        if self.large is not None:
            del self.large[self.mark_large:], self.large_at[self.mark_large:]
        while self.key_count > self.mark_keys:
            self.key_count -= 1
            del self.numbers[<object>self.keys[self.key_count]]
        return 0

    cdef int put_pickle(self, item) except -1:
        pickler = self.pickler or ItemPickler()
        self.pickler = None  # one that raised is not used again
        pickled = pickler.dump(item)
        self.pickler = pickler
        self.put_size(PICKLE, len(pickler.buffers))
        for buffer in pickler.buffers:
            with buffer.raw() as view:
                self.put_byte(view.readonly)
                self.put_bytes(bytes(view))
            buffer.release()
        return self.put_bytes(pickled)

    cdef list segments(self):
        cdef Py_ssize_t at = 0, stop, i
        cdef list parts = []
        if self.large is not None:
            for i in range(len(self.large)):
                stop = self.large_at[i]
                if stop > at:
                    parts.append((PyBytes_AS_STRING(self.block) + at)[:stop - at])
                parts.append(self.large[i])
                at = stop
        if at:
            if self.size > at:
                parts.append((PyBytes_AS_STRING(self.block) + at)[:self.size - at])
        elif self.size:
            _PyBytes_Resize(&self.block, self.size)
            parts.append(<object>self.block)
        return parts

    # -- values --------------------------------------------------------------------------------

    cdef int put(self, PyObject *value, int depth) except -1:
        if PyUnicode_CheckExact(value):
            return FOREIGN if self.put_str(value) < 0 else PUT
        if PyLong_CheckExact(value):
            return self.put_int(value)
        if value == Py_None:
            return self.put_byte(NONE)
        if PyFloat_CheckExact(value):
            return self.put_float(value)
        if value == Py_True:
            return self.put_byte(TRUE)
        if value == Py_False:
            return self.put_byte(FALSE)
        if PyBytes_CheckExact(value):
            if PyBytes_GET_SIZE(value) >= SHARED_MIN and self.meet(value):
                return FOREIGN
            self.put_byte(BYTES)
            return self.put_bytes(<object>value)
        return self.put_container(value, depth + 1)

    cdef int put_container(self, PyObject *value, int depth) except -1:
        cdef int tag
        if PyDict_CheckExact(value):
            tag = DICT
        elif PyList_CheckExact(value):
            tag = LIST
        elif PyTuple_CheckExact(value):
            tag = TUPLE
        elif PySet_CheckExact(value):
            tag = FROZENSET if PyFrozenSet_CheckExact(value) else SET
        else:
            return FOREIGN
        if depth > MAX_DEPTH:
            return FOREIGN
        if self.meet_container(value, tag):
            return FOREIGN
        Py_INCREF(value)
        try:
            if tag == DICT:
                return self.put_dict(value, depth)
            if tag == SET or tag == FROZENSET:
                return self.put_set(tag, value, depth)
            return self.put_sequence(tag, value, depth)
        finally:
            Py_DECREF(value)

    cdef int put_dict(self, PyObject *value, int depth) except -1:
        cdef Py_ssize_t position = 0, left = PyDict_GET_SIZE(value)
        cdef PyObject *key
        cdef PyObject *member
        self.put_size(DICT, left)
        while PyDict_Next(value, &position, &key, &member):
            left -= 1
            if PyUnicode_CheckExact(key):
                if self.put_key(key) == FOREIGN:
                    return FOREIGN
            elif self.put(key, depth) == FOREIGN:
                return FOREIGN
            if self.put(member, depth) == FOREIGN:
                return FOREIGN
        return FOREIGN if left else PUT  # it was changed meanwhile: pickle it as it is now

    cdef int put_set(self, int tag, PyObject *value, int depth) except -1:
        self.put_size(tag, PySet_GET_SIZE(value))
        for member in <object>value:
            if self.put(<PyObject *>member, depth) == FOREIGN:
                return FOREIGN
        return PUT

    cdef int put_sequence(self, int tag, PyObject *value, int depth) except -1:
        cdef Py_ssize_t at = 0, taken, count = PySequence_Fast_GET_SIZE(value)
        self.put_size(tag, count)
        while at < count and at < PySequence_Fast_GET_SIZE(value):
            taken = self.put_run(value, at, count)
            if taken == 0:
                if self.put(PySequence_Fast_ITEMS(value)[at], depth) == FOREIGN:
                    return FOREIGN
                taken = 1
            at += taken
        return FOREIGN if at < count else PUT

    cdef inline int put_key(self, PyObject *key) except -1:
        """C6."""
        cdef size_t slot = (<size_t>key >> 4) % KEY_SLOTS
        cdef int number = self.slots[slot]
        cdef uint8_t *out
        if number >= self.key_count or self.keys[number] != key:
            number = self.number_of(key, slot)
            if number < 0:
                return FOREIGN if self.put_str(key) < 0 else PUT
            if number == KEY_COUNT:
                return PUT
        out = self.room(2)
        out[0] = KEY
        out[1] = <uint8_t>number
        self.size += 2
        return PUT

    cdef int number_of(self, PyObject *key, size_t slot) except -2:
        """The number of a key at an address not seen before: -1 if it has none and gets none,
        KEY_COUNT if it has got one and was put."""
        cdef PyObject *known
        cdef Py_ssize_t size
        if PyUnicode_GetLength(key) > KEY_SIZE:
            return -1
        if self.numbers is None:
            self.numbers = {}
        known = PyDict_GetItemWithError(self.numbers, key)
        if known != NULL:
            return <object>known
        if self.key_count == KEY_COUNT:
            return -1
        size = self.put_str(key)
        if size <= KEY_SIZE:
            self.numbers[<object>key] = self.key_count
            self.keys[self.key_count] = key
            self.slots[slot] = <uint16_t>self.key_count
            self.key_count += 1
        return KEY_COUNT

    # -- numbers, text and bytes ---------------------------------------------------------------

    cdef inline Py_ssize_t put_run(self, PyObject *values, Py_ssize_t start, Py_ssize_t stop) except -1:
        """C5: put the run that begins at `start`; how many values it has, 0 if there is none."""
        cdef PyObject **first = PySequence_Fast_ITEMS(values) + start
        cdef Py_ssize_t count = min(stop, PySequence_Fast_GET_SIZE(values)) - start
        cdef PyTypeObject *kind
        cdef int i
        if count < RUN_MIN:
            return 0
        kind = Py_TYPE(first[0])
        for i in range(1, RUN_MIN):
            if Py_TYPE(first[i]) != kind:
                return 0
        if PyLong_CheckExact(first[0]):
            return self.put_ints(first, count)
        if PyFloat_CheckExact(first[0]):
            return self.put_floats(first, count)
        return 0

    cdef Py_ssize_t put_ints(self, PyObject **values, Py_ssize_t limit) except -1:
        cdef Py_ssize_t count = 0, end = 0, start = self.size
        cdef int64_t number, low = 0, high = 0
        cdef int64_t *out = NULL
        cdef int overflow = 0
        # all in 64 bits at first, where a run's values begin if its number takes nine bytes
        while count < limit:
            if count == end:
                end = min(limit, end + BLOCK)
                out = <int64_t *>(self.room(10 + end * 8) + 10)
            if not PyLong_CheckExact(values[count]):
                break
            number = PyLong_AsLongLongAndOverflow(values[count], &overflow)
            if overflow:
                break
            low = min(low, number)
            high = max(high, number)
            memcpy(out + count, &number, 8)
            count += 1
        if count < RUN_MIN:
            return 0
        self.narrow(start + 10, count, low, high)
        return count

    cdef int narrow(self, Py_ssize_t wide, Py_ssize_t count, int64_t low, int64_t high) except -1:
        """Put a run of ints, whose values are in the block in 64 bits, beyond its end."""
        cdef const char *source = PyBytes_AS_STRING(self.block) + wide
        cdef char *out
        cdef Py_ssize_t i
        cdef int64_t number
        cdef int8_t number8
        cdef int16_t number16
        cdef int32_t number32
        cdef int shift = 0 if low >= -(1 << 7) and high < 1 << 7 else \
            1 if low >= -(1 << 15) and high < 1 << 15 else \
            2 if low >= -(<int64_t>1 << 31) and high < <int64_t>1 << 31 else 3
        self.put_size(INT8S + shift, count)
        out = PyBytes_AS_STRING(self.block) + self.size
        # forwards in place: each value's bytes begin at or after those of its narrow form
        for i in range(count):
            memcpy(&number, source + i * 8, 8)
            if shift == 0:
                number8 = <int8_t>number
                memcpy(out + i, &number8, 1)
            elif shift == 1:
                number16 = <int16_t>number
                memcpy(out + i * 2, &number16, 2)
            elif shift == 2:
                number32 = <int32_t>number
                memcpy(out + i * 4, &number32, 4)
            else:
                memcpy(out + i * 8, &number, 8)
        self.size += count << shift
        return 0

    cdef Py_ssize_t put_floats(self, PyObject **values, Py_ssize_t limit) except -1:
        cdef Py_ssize_t i, count = RUN_MIN
        cdef double number
        cdef uint8_t *out
        while count < limit and PyFloat_CheckExact(values[count]):
            count += 1
        self.put_size(FLOATS, count)
        out = self.room(count * 8)
        for i in range(count):
            number = PyFloat_AS_DOUBLE(values[i])
            memcpy(out + i * 8, &number, 8)
        self.size += count * 8
        return count

    cdef inline int put_int(self, PyObject *value) except -1:
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
        cdef uint8_t *out = self.room(9)
        cdef int16_t number16
        cdef int32_t number32
        if overflow:
            return self.put_bigint(<object>value)
        if number == <int8_t>number:
            out[0] = INT8
            out[1] = <uint8_t>number
            self.size += 2
        elif number == <int16_t>number:
            out[0] = INT16
            number16 = <int16_t>number
            memcpy(out + 1, &number16, 2)
            self.size += 3
        elif number == <int32_t>number:
            out[0] = INT32
            number32 = <int32_t>number
            memcpy(out + 1, &number32, 4)
            self.size += 5
        else:
            out[0] = INT64
            memcpy(out + 1, &number, 8)
            self.size += 9
        return PUT

    cdef int put_bigint(self, value) except -1:
        # one bit more for the sign, counted as to_bytes does: -128 takes one byte, 128 takes two
        size = (value if value >= 0 else ~value).bit_length() // 8 + 1
        self.put_byte(BIGINT)
        return self.put_bytes(value.to_bytes(size, BYTE_ORDER, signed=True))

    cdef inline int put_float(self, PyObject *value) except -1:
        cdef double number = PyFloat_AS_DOUBLE(value)
        cdef uint8_t *out = self.room(9)
        out[0] = FLOAT
        memcpy(out + 1, &number, 8)
        self.size += 9
        return PUT

    cdef inline Py_ssize_t put_str(self, PyObject *value) except -1:
        """Put a str; how many bytes of UTF-8 it is, -2 if it is FOREIGN."""
        cdef Py_ssize_t size
        if not PyUnicode_IS_COMPACT_ASCII(value):
            return self.put_wide_str(value)
        size = PyUnicode_GET_LENGTH(value)
        if size >= SHARED_MIN and self.meet(value):
            return -2
        return self.put_text(<const char *>PyUnicode_DATA(value), size)

    cdef Py_ssize_t put_wide_str(self, PyObject *value) except -1:
        if PyUnicode_GetLength(value) >= SHARED_MIN and self.meet(value):
            return -2
        encoded = (<str>value).encode("utf-8", "surrogatepass")
        return self.put_text(PyBytes_AS_STRING(<PyObject *>encoded), len(encoded))

    cdef inline Py_ssize_t put_text(self, const char *text, Py_ssize_t size) except -1:
        cdef uint8_t *out = self.room(10 + size)
        self.put_size(STR, size)
        memcpy(PyBytes_AS_STRING(self.block) + self.size, text, size)
        self.size += size
        return size

    cdef int put_bytes(self, value) except -1:
        """Put size and bytes, the bytes as a segment of their own if they are many (C8)."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject *>value)
        self.put_number(size)
        if size < SEGMENT_MIN:
            memcpy(self.room(size), PyBytes_AS_STRING(<PyObject *>value), size)
            self.size += size
            return 0
        if self.large is None:
            self.large, self.large_at = [], []
        self.large_at.append(self.size)
        self.large.append(value)
        self.large_size += size
        return 0

    cdef inline int put_byte(self, uint8_t byte) except -1:
        self.room(1)[0] = byte
        self.size += 1
        return PUT

    cdef inline int put_size(self, int tag, Py_ssize_t size) except -1:
        self.put_byte(<uint8_t>tag)
        return self.put_number(size)

    cdef inline int put_number(self, Py_ssize_t number) except -1:
        cdef uint8_t *out = self.room(9)
        cdef uint64_t wide = number
        if number < LONG_SIZE:
            out[0] = <uint8_t>number
            self.size += 1
        else:
            out[0] = LONG_SIZE
            memcpy(out + 1, &wide, 8)
            self.size += 9
        return 0

    cdef inline uint8_t *room(self, Py_ssize_t size) except NULL:
        """Where the next `size` bytes go. Valid until the next call of anything that puts."""
        if size > self.capacity - self.size:
            self.grow(size)
        return <uint8_t *>PyBytes_AS_STRING(self.block) + self.size

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t capacity = max(self.capacity * 2, self.size + size + 64)
        _PyBytes_Resize(&self.block, capacity)
        self.capacity = capacity
        return 0

    # -- what was met --------------------------------------------------------------------------

    cdef inline bint meet_container(self, PyObject *value, int tag) except -1:
        """C3. What one reference holds cannot be met twice, unless what holds that one is."""
        if Py_REFCNT(value) == 1:
            return False
        if tag == TUPLE and PySequence_Fast_GET_SIZE(value) == 0:
            return False
        if tag == FROZENSET and PySet_GET_SIZE(value) == 0:
            return False
        return self.meet(value)

    cdef bint meet(self, PyObject *value) except -1:
        """C3: whether this item has it already."""
        cdef size_t at
        if self.met_count * 2 >= self.met_capacity:
            self.grow_met()
        at = (<uint64_t>value * <uint64_t>0x9E3779B97F4A7C15) >> self.met_shift
        while self.met[at].item == self.item:
            if self.met[at].value == value:
                return True
            at = (at + 1) % self.met_capacity
        self.met[at].value = value
        self.met[at].item = self.item
        self.met_count += 1
        return False

    cdef int grow_met(self) except -1:
        cdef Met *old = self.met
        cdef size_t i, capacity = self.met_capacity
        cdef size_t wanted = max(<size_t>32, capacity * 4)
        cdef Met *new = <Met *>PyMem_Calloc(wanted, sizeof(Met))
        if new == NULL:
            raise MemoryError()
        self.met = new
        self.met_capacity = wanted
        self.met_count = 0
        self.met_shift = 64
        while wanted > 1:
            wanted >>= 1
            self.met_shift -= 1
        for i in range(capacity):
            if old[i].item == self.item:
                self.meet(old[i].value)
        PyMem_Free(old)
        return 0
