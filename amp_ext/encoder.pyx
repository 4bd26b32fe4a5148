# cython: language_level=3, boundscheck=False, wraparound=False
"""Encodes items, in Cython. aiomultiprocess/_pure/codec.py defines the format of a payload, and the
rules CODEC-1 to CODEC-12.

aiomultiprocess/_pure/encoder.py does the same in Python: change both together.

The encoder handles values as borrowed pointers, because to count references would cost as much as
to encode. That is sound: no user code runs while an item is encoded without a pickle, because the
garbage collector is paused meanwhile (collector.pxd). So nothing can change an item before all of
it is encoded.
"""

import copyreg
import io
import pickle
import sys

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from amp_ext cimport block, collector, seen
from amp_ext.block cimport Block
from amp_ext.capi cimport *
from amp_ext.collector cimport Pause
from amp_ext.seen cimport Seen
from amp_ext.small_copy cimport SMALL
from amp_ext.tags cimport *

cdef enum:
    # what a function that puts a value returns
    PUT = 0
    FOREIGN = 1  # the item must be a PICKLE
    # in place of the number of a key (CODEC-6), which is below KEY_COUNT
    NEW_KEY = KEY_COUNT
    NO_KEY = KEY_COUNT + 1
    KEY_SLOTS = 512

cdef struct Large:
    Py_ssize_t at  # place in the block
    PyObject *value  # bytes, or a view of bytes; owns a reference

cdef struct Keys:
    Py_ssize_t count
    PyObject *by_number[KEY_COUNT]  # borrowed from Encoder.numbers
    uint16_t by_address[KEY_SLOTS]  # a cache: the number of that key, or of another


cdef str BYTE_ORDER = sys.byteorder
# CODEC-9: the end of the names of modules whose reducers share memory, such as
# torch.multiprocessing.reductions.
cdef str SHARING = ".multiprocessing.reductions"


def encode_items(items, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t max_bytes):
    """Encode items[start:stop] until it has `max_bytes`, an item fails, or all are done."""
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
            collector.resume(&encoder.pause)
            item = <object>item_at(<PyObject *>items, encoder.at)  # its reducer may empty `items`
            encoder.put_pickle(item)
            encoder.at += 1
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # CODEC-4: user code ran, and may raise anything
            encoder.take_back()
            error = failure
            break
    collector.resume(&encoder.pause)
    if encoder.references is not None:
        reference_note(encoder.references)
    return encoder.segments(), encoder.at - start, error


def dumps(obj):
    """Pickle one object with the reducers that items are pickled with."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.dispatch_table = reducers()
    pickler.dump(obj)
    return file.getvalue()


def register(kind, reduce):
    """Pickle exact instances of `kind` by `reduce`, here and nowhere else."""
    own[kind] = reduce


def register_references(kind, note):
    """Encode exact instances of `kind` as their `_reference`; `note` gets a list of them."""
    global reference_kind, reference_note
    reference_kind, reference_note = kind, note


cdef object reference_kind = None
cdef object reference_note = None  # CODEC-12
cdef dict own = {}
cdef dict registered = {}  # ForkingPickler's reducers, of which `persistent` was made
cdef dict persistent = {}


cdef dict reducers():
    """The reducers that `multiprocessing` uses now, less those that share memory (CODEC-9).

    It imports `multiprocessing.reduction` only when called, so this module is cheap to import.
    """
    global persistent, registered
    from multiprocessing.reduction import ForkingPickler

    extra = getattr(ForkingPickler, "_extra_reducers", {})
    if extra != registered:
        persistent = {kind: reduce for kind, reduce in extra.items() if not shares(kind, reduce)}
        registered = extra.copy()
    return {**copyreg.dispatch_table, **persistent, **own}


cdef bint shares(kind, reduce) except -1:
    """Whether a reducer shares memory, and its type pickles without it too (CODEC-9)."""
    return (getattr(reduce, "__module__", None) or "").endswith(SHARING) and (
        kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__reduce__ is not object.__reduce__
        or kind in copyreg.dispatch_table
    )


@cython.final
cdef class ItemPickler:
    """Pickles the items of one payload, one at a time, with nothing carried over (CODEC-2)."""
    cdef object file, pickler
    cdef list buffers

    def __init__(self):
        self.file = io.BytesIO()
        self.buffers = []
        self.pickler = pickle.Pickler(self.file, 5, buffer_callback=self.buffers.append)
        self.pickler.dispatch_table = reducers()

    cdef bytes dump(self, item):
        self.pickler.dump(item)
        return self.file.getvalue()

    cdef int clear(self) except -1:
        """Drop what is left of the item, so that it can be freed and its buffers resized."""
        self.pickler.clear_memo()
        self.buffers.clear()
        self.file.seek(0)
        self.file.truncate()
        return 0


@cython.final
cdef class Encoder:
    """One payload in the making: a growing block of bytes, and the large values that go between."""
    cdef:
        Py_ssize_t first, at  # indexes of the first item, and of the item being encoded
        Block block
        Large *large  # CODEC-8: large values that go between bytes of the block
        Py_ssize_t large_count, large_capacity, large_size
        # the state before the item (CODEC-4)
        Py_ssize_t mark_size, mark_large_count, mark_large_size, mark_keys
        Pause pause
        Seen seen  # CODEC-3
        Keys *keys  # CODEC-6
        dict numbers
        list references  # CODEC-12
        ItemPickler pickler

    def __cinit__(self, Py_ssize_t first, Py_ssize_t expected):
        self.first = self.at = first
        self.block.capacity = max(expected, 0) + 64
        self.block.data = PyBytes_FromStringAndSize(NULL, self.block.capacity)

    def __dealloc__(self):
        collector.resume(&self.pause)
        self.drop_large(0)
        PyMem_Free(self.large)
        Py_XDECREF(self.block.data)
        PyMem_Free(self.seen.entries)
        PyMem_Free(self.keys)

    # -- items ---------------------------------------------------------------------------------

    cdef bint put_items(self, PyObject *items, Py_ssize_t stop, Py_ssize_t max_bytes) except -1:
        """Put items up to the end of the payload (True), or to one that must be pickled (False)."""
        cdef Py_ssize_t room, taken
        while self.at < stop:
            room = max_bytes - self.block.size - self.large_size
            if room <= 0:
                if self.at > self.first:
                    break
                room = 0
            self.mark()
            taken = block.put_run(&self.block, items, self.at, min(stop, self.at + room // 8 + 1))
            if taken == 0:
                if self.put(item_at(items, self.at), 0) == FOREIGN:
                    self.take_back()
                    return False
                taken = 1
            self.at += taken
        return True

    cdef void mark(self) noexcept:
        seen.next_item(&self.seen)
        self.mark_size = self.block.size
        self.mark_keys = 0 if self.keys == NULL else self.keys.count
        self.mark_large_size = self.large_size
        self.mark_large_count = self.large_count

    cdef int take_back(self) except -1:
        """Restore the state before the item (CODEC-4). It takes no memory, so it cannot fail."""
        self.block.size = self.mark_size
        self.large_size = self.mark_large_size
        self.drop_large(self.mark_large_count)
        while self.keys != NULL and self.keys.count > self.mark_keys:
            self.keys.count -= 1
            del self.numbers[<object>self.keys.by_number[self.keys.count]]
        return 0

    cdef int put_pickle(self, item) except -1:
        pickler = self.pickler or ItemPickler()
        self.pickler = None
        pickled = pickler.dump(item)
        block.put_size(&self.block, PICKLE, len(pickler.buffers))
        for buffer in pickler.buffers:
            view = buffer.raw()
            block.put_byte(&self.block, view.readonly)
            self.put_view(view)
        self.put_bytes(pickled)
        pickler.clear()
        self.pickler = pickler  # a pickler that raised is not used again
        return 0

    cdef void drop_large(self, Py_ssize_t count) noexcept:
        """Drop all large values but the first `count`."""
        while self.large_count > count:
            self.large_count -= 1
            Py_DECREF(self.large[self.large_count].value)

    cdef list segments(self):
        """The segments of the payload. Encode no item after this call."""
        cdef Py_ssize_t at = 0, i
        cdef list parts = []
        if self.block.size:
            block.amp_bytes_resize(&self.block.data, self.block.size)
            self.block.capacity = self.block.size
        if self.large_count == 0 and not self.cuts(0, self.block.size):
            if self.block.size:
                parts.append(<object>self.block.data)
            return parts
        for i in range(self.large_count):
            at = self.add_piece(parts, at, self.large[i].at)
            parts.append(<object>self.large[i].value)
        self.add_piece(parts, at, self.block.size)
        return parts

    cdef bint cuts(self, Py_ssize_t start, Py_ssize_t stop) noexcept:
        """Whether the last item begins in these bytes, and has SEGMENT_MIN of them (CODEC-10)."""
        return start < self.mark_size and stop - self.mark_size >= SEGMENT_MIN

    cdef Py_ssize_t add_piece(self, list parts, Py_ssize_t start, Py_ssize_t stop) except -1:
        """Append bytes of the block; it copies less than SEGMENT_MIN, and takes a view of more."""
        if self.cuts(start, stop):
            start = self.add_piece(parts, start, self.mark_size)
        if stop - start >= SEGMENT_MIN:
            parts.append(memoryview(<object>self.block.data)[start:stop])
        elif stop > start:
            parts.append(PyBytes_AS_STRING(self.block.data)[start:stop])
        return stop

    # -- values --------------------------------------------------------------------------------

    cdef inline int put(self, PyObject *value, int depth) except -1:
        """Put a value. The most frequent types are inline here, to save a call."""
        if PyUnicode_CheckExact(value):
            return self.put_str(value)
        if PyLong_CheckExact(value):
            return PUT if block.put_int(&self.block, value) else self.put_bigint(<object>value)
        if PyFloat_CheckExact(value):
            return block.put_float(&self.block, value)
        return self.put_other(value, depth)

    cdef int put_other(self, PyObject *value, int depth) except -1:
        if value == Py_None:
            return block.put_byte(&self.block, NONE)
        if value == Py_True:
            return block.put_byte(&self.block, TRUE)
        if value == Py_False:
            return block.put_byte(&self.block, FALSE)
        if PyBytes_CheckExact(value):
            if PyBytes_GET_SIZE(value) >= SHARED_MIN and self.see(value):
                return FOREIGN
            block.put_byte(&self.block, BYTES)
            return self.put_bytes(<object>value)
        return self.put_container(value, depth + 1)

    cdef int put_container(self, PyObject *value, int depth) except -1:
        cdef int tag = container_tag(value)
        if <PyObject *>Py_TYPE(value) == <PyObject *>reference_kind:
            return self.put_reference(value)
        if tag == 0 or depth > MAX_DEPTH or (matters(value, tag) and self.see(value)):
            return FOREIGN
        collector.pause(&self.pause)
        if tag == DICT:
            return self.put_dict(value, depth)
        if tag == SET or tag == FROZENSET:
            return self.put_set(tag, value, depth)
        return self.put_sequence(tag, value, depth)

    cdef int put_reference(self, PyObject *value) except -1:
        """Put the number of a shared object (CODEC-12). `_reference` is a slot: no code runs."""
        cdef uint64_t number
        reference = (<object>value)._reference
        if reference is None or self.see(value):
            return FOREIGN
        number = reference
        if self.references is None:
            self.references = []
        self.references.append(<object>value)
        block.put_byte(&self.block, REFERENCE)
        return block.put_copy(&self.block, <const char *>&number, 8)

    cdef inline bint see(self, PyObject *value) except -1:
        """Note an object of this item; True if the item holds it twice (CODEC-3).

        An object with one reference has one holder. If the item held it twice, it would hold that
        holder twice, and this function would have found the holder, or one above it.
        """
        return Py_REFCNT(value) != 1 and seen.was_seen(&self.seen, value)

    cdef int put_dict(self, PyObject *value, int depth) except -1:
        cdef Py_ssize_t position = 0
        cdef PyObject *key
        cdef PyObject *member
        block.put_size(&self.block, DICT, PyDict_GET_SIZE(value))
        while PyDict_Next(value, &position, &key, &member):
            if PyUnicode_CheckExact(key):
                if self.put_key(key) == FOREIGN:
                    return FOREIGN
            elif self.put(key, depth) == FOREIGN:
                return FOREIGN
            if self.put(member, depth) == FOREIGN:
                return FOREIGN
        return PUT

    cdef int put_set(self, int tag, PyObject *value, int depth) except -1:
        block.put_size(&self.block, tag, PySet_GET_SIZE(value))
        for member in <object>value:
            if self.put(<PyObject *>member, depth) == FOREIGN:
                return FOREIGN
        return PUT

    cdef int put_sequence(self, int tag, PyObject *value, int depth) except -1:
        cdef Py_ssize_t at = 0, taken, count = PySequence_Fast_GET_SIZE(value)
        block.put_size(&self.block, tag, count)
        while at < count:
            taken = block.put_run(&self.block, value, at, count)
            if taken == 0:
                if self.put(PySequence_Fast_ITEMS(value)[at], depth) == FOREIGN:
                    return FOREIGN
                taken = 1
            at += taken
        return PUT

    # -- text and bytes ------------------------------------------------------------------------

    cdef inline int put_str(self, PyObject *value) except -1:
        if not PyUnicode_IS_COMPACT_ASCII(value):
            return self.put_wide_str(value)
        cdef Py_ssize_t size = PyUnicode_GET_LENGTH(value)
        if size < SMALL:
            return block.put_short(&self.block, STR, <const uint8_t *>PyUnicode_DATA(value), size)
        if size >= SHARED_MIN and self.see(value):
            return FOREIGN
        block.put_size(&self.block, STR, size)
        return block.put_copy(&self.block, <const char *>PyUnicode_DATA(value), size)

    cdef int put_wide_str(self, PyObject *value) except -1:
        if PyUnicode_GetLength(value) >= SHARED_MIN and self.see(value):
            return FOREIGN
        encoded = (<str>value).encode("utf-8", "surrogatepass")
        block.put_size(&self.block, STR, len(encoded))
        return block.put_copy(&self.block, PyBytes_AS_STRING(<PyObject *>encoded), len(encoded))

    cdef int put_bigint(self, value) except -1:
        # one bit more for the sign, counted as to_bytes does: -128 takes one byte, 128 takes two
        size = (value if value >= 0 else ~value).bit_length() // 8 + 1
        block.put_byte(&self.block, BIGINT)
        return self.put_bytes(value.to_bytes(size, BYTE_ORDER, signed=True))

    cdef int put_bytes(self, value) except -1:
        """Put size and bytes; `SEGMENT_MIN` or more bytes are a segment of their own (CODEC-8)."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(<PyObject *>value)
        block.put_number(&self.block, size)
        if size < SEGMENT_MIN:
            return block.put_copy(&self.block, PyBytes_AS_STRING(<PyObject *>value), size)
        return self.put_segment(value, size)

    cdef int put_view(self, view) except -1:
        """Put size and bytes of a view, as `put_bytes` does."""
        cdef Py_ssize_t size = len(view)
        if size < SEGMENT_MIN:
            return self.put_bytes(bytes(view))
        block.put_number(&self.block, size)
        return self.put_segment(view, size)

    cdef int put_segment(self, value, Py_ssize_t size) except -1:
        if self.large_count == self.large_capacity:
            self.grow_large()
        self.large[self.large_count].at = self.block.size
        self.large[self.large_count].value = <PyObject *>value
        Py_INCREF(<PyObject *>value)
        self.large_count += 1
        self.large_size += size
        return PUT

    cdef int grow_large(self) except -1:
        cdef Py_ssize_t capacity = max(4, self.large_capacity * 2)
        cdef void *large = PyMem_Realloc(self.large, capacity * sizeof(Large))
        if large == NULL:
            raise MemoryError()
        self.large = <Large *>large
        self.large_capacity = capacity
        return 0

    # -- keys (CODEC-6) ------------------------------------------------------------------------

    cdef inline int put_key(self, PyObject *key) except -1:
        cdef int number = KEY_COUNT
        if self.keys != NULL:
            number = self.keys.by_address[slot_of(key)]
        if self.keys == NULL or number >= self.keys.count or self.keys.by_number[number] != key:
            number = self.number_of(key)
            if number == NEW_KEY:
                return PUT
            if number == NO_KEY:
                return self.put_str(key)
        cdef uint8_t *out = block.room_for(&self.block, 2)
        out[0] = KEY
        out[1] = <uint8_t>number
        self.block.size += 2
        return PUT

    cdef int number_of(self, PyObject *key) except -1:
        """The number of a key that the cache does not have; NEW_KEY if it has put a new one."""
        cdef Py_ssize_t size = self.block.size
        cdef PyObject *known
        if PyUnicode_GetLength(key) > KEY_SIZE:
            return NO_KEY
        if self.keys == NULL:
            self.make_keys()
        known = PyDict_GetItemWithError(self.numbers, key)
        if known != NULL:
            return <object>known
        if self.keys.count == KEY_COUNT:
            return NO_KEY
        self.put_str(key)
        if self.block.size - size - 2 <= KEY_SIZE:  # less the tag and a size of one byte
            self.numbers[<object>key] = self.keys.count
            self.keys.by_number[self.keys.count] = key
            self.keys.by_address[slot_of(key)] = <uint16_t>self.keys.count
            self.keys.count += 1
        return NEW_KEY

    cdef int make_keys(self) except -1:
        self.numbers = {}  # first, because a `keys` that is set says that both exist
        self.keys = <Keys *>PyMem_Calloc(1, sizeof(Keys))
        if self.keys == NULL:
            raise MemoryError()
        return 0


cdef inline PyObject *item_at(PyObject *items, Py_ssize_t at) except NULL:
    """An item of a list, which user code may have changed while the last one was pickled."""
    if at >= PySequence_Fast_GET_SIZE(items):
        raise IndexError(f"there is no item {at}")
    return PySequence_Fast_ITEMS(items)[at]


cdef inline size_t slot_of(PyObject *key) noexcept:
    return (<size_t>key >> 4) % KEY_SLOTS


cdef inline int container_tag(PyObject *value) noexcept:
    """The tag of a container; 0 if its type has none (CODEC-1)."""
    if PyDict_CheckExact(value):
        return DICT
    if PyList_CheckExact(value):
        return LIST
    if PyTuple_CheckExact(value):
        return TUPLE
    if PyAnySet_CheckExact(value):
        return FROZENSET if PyFrozenSet_CheckExact(value) else SET
    return 0


cdef inline bint matters(PyObject *value, int tag) noexcept:
    """Whether it makes a difference that an item holds a container twice (CODEC-3)."""
    if tag == TUPLE:
        return PySequence_Fast_GET_SIZE(value) > 0
    if tag == FROZENSET:
        return PySet_GET_SIZE(value) > 0
    return True


# -- payloads that are made item by item (PayloadBuilder in _pure/encoder.py) ----------------------

cdef object new_payload():
    return Encoder(0, 4096)


cdef Py_ssize_t put_quickly(object payload, object item, uint8_t *copy) noexcept:
    """Encode an int twice, into the payload and to `copy`; returns its size, at most 9.

    0, and nothing encoded, if `item` is no int of 64 bits or the block has no room. A copy of what
    was just encoded would wait until the stores of tag and number have left the CPU's store buffer.
    """
    cdef Block *out = &(<Encoder>payload).block
    cdef int overflow = 0
    cdef int64_t number
    if not PyLong_CheckExact(<PyObject *>item) or out.capacity - out.size < 9:
        return 0
    number = PyLong_AsLongLongAndOverflow(<PyObject *>item, &overflow)
    if overflow:
        return 0
    out.size += block.write_int(<uint8_t *>PyBytes_AS_STRING(out.data) + out.size, number)
    return block.write_int(copy, number)


cdef Py_ssize_t put_item(object payload, object item, const char **data) except -2:
    """Encode one more item, and set `data` to its bytes.

    Returns their size; or -1, with `data` unchanged, if they are not in one piece.
    """
    cdef Encoder encoder = <Encoder>payload
    cdef Py_ssize_t size = encoder.block.size
    put_or_pickle(encoder, item)
    if encoder.large_count:
        return -1
    data[0] = PyBytes_AS_STRING(encoder.block.data) + size
    return encoder.block.size - size


cdef int put_or_pickle(Encoder encoder, item) except -1:
    cdef bint whole = False
    encoder.mark()
    try:  # `finally`, because `except` has a cost even if nothing is raised
        if encoder.put(<PyObject *>item, 0) == FOREIGN:
            collector.resume(&encoder.pause)
            encoder.take_back()
            encoder.put_pickle(item)
        whole = True
    finally:
        collector.resume(&encoder.pause)
        if not whole:  # CODEC-4: user code ran, and may raise anything
            encoder.take_back()
    return 0


cdef list take_payload(object payload):
    return (<Encoder>payload).segments()
