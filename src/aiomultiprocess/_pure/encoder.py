"""Encodes items. `codec` defines the format of a payload, and the rules CODEC-1 to CODEC-12.

`amp_ext/encoder.pyx` does the same in Cython: change both together.

User code may run between any two instructions here: a finalizer, another thread, a signal handler.
So the encoder copies a container that can change before it puts the members. Nothing interrupts the
encoder in Cython.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from struct import Struct, pack
from typing import Any, Final

from .._wire.frames import Segment
from .tags import (
    BIGINT,
    BYTES,
    DICT,
    FALSE,
    FLOAT,
    FLOATS,
    FROZENSET,
    INT8,
    INT8S,
    INT16,
    INT16S,
    INT32,
    INT32S,
    INT64,
    INT64S,
    KEY,
    KEY_COUNT,
    KEY_SIZE,
    LIST,
    LONG_SIZE,
    MAX_DEPTH,
    NONE,
    PICKLE,
    REFERENCE,
    RUN_MIN,
    SEGMENT_MIN,
    SET,
    SHARED_MIN,
    STR,
    TRUE,
    TUPLE,
)

_INT64_END: Final = 1 << 63
#: Tag, tag of a run, format and smallest value of each width.
_WIDTHS: Final = (
    (INT8, INT8S, "b", -(1 << 7)),
    (INT16, INT16S, "h", -(1 << 15)),
    (INT32, INT32S, "i", -(1 << 31)),
    (INT64, INT64S, "q", -_INT64_END),
)


#: CODEC-9: the end of the names of modules whose reducers share memory, such as
#: torch.multiprocessing.reductions.
SHARING: Final = ".multiprocessing.reductions"

_INTS: Final = tuple((least, Struct(f"=B{code}").pack, tag) for tag, _, code, least in _WIDTHS)


def encode_items(
    items: Sequence[object], start: int, stop: int, max_bytes: int
) -> tuple[list[Segment], int, BaseException | None]:
    """Encode items[start:stop] until the payload has `max_bytes`, an item fails, or all are done.

    It tries at least one item. Returns the segments of the payload, the number of items in it, and
    the failure of the item after them, or None if that did not fail.
    """
    if start < 0:
        raise ValueError(f"start is {start}: items are counted from their beginning")
    if type(items) is not list and type(items) is not tuple:
        items = list(items)
    encoder = _Encoder()
    at = last = start
    error: BaseException | None = None
    while at < stop and error is None:
        room = max_bytes - encoder.size()
        if room <= 0 and at > start:
            break
        last = at
        taken, error = encoder.put_items(items, at, min(stop, at + max(room, 0) // 8 + 1))
        at += taken
    if encoder.references:
        _reference_note(encoder.references)
    try:
        return encoder.segments(), at - start, error
    except MemoryError as failure:  # `segments` copies bytes: the last item may be too large for it
        encoder.take_back()
        return encoder.segments(), last - start, failure


def dumps(obj: object) -> bytes:
    """Pickle one object with the reducers that items are pickled with."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.dispatch_table = _reducers()
    pickler.dump(obj)
    return file.getvalue()


def register(kind: type, reduce: Any) -> None:
    """Pickle exact instances of `kind` by `reduce`, here and nowhere else."""
    _own[kind] = reduce


def register_references(kind: type, note: Callable[[list[Any]], object]) -> None:
    """Encode exact instances of `kind` as their `_reference`; `note` gets a list of them."""
    global _reference_kind, _reference_note
    _reference_kind, _reference_note = kind, note


_reference_kind: type | None = None
_reference_note: Callable[[list[Any]], object] = len  # CODEC-12
_own: dict[type, Any] = {}
_registered: dict[type, Any] = {}  # ForkingPickler's reducers, of which _persistent was made
_persistent: dict[type, Any] = {}


def _reducers() -> dict[type, Any]:
    """The reducers that `multiprocessing` uses now, less those that share memory (CODEC-9).

    It imports `multiprocessing.reduction` only when called, so this module is cheap to import.
    """
    global _persistent, _registered
    from multiprocessing.reduction import ForkingPickler

    extra: dict[type, Any] = getattr(ForkingPickler, "_extra_reducers", {})
    if extra != _registered:
        _persistent = {kind: reduce for kind, reduce in extra.items() if not _shares(kind, reduce)}
        _registered = extra.copy()
    return {**copyreg.dispatch_table, **_persistent, **_own}


def _shares(kind: Any, reduce: object) -> bool:
    """Whether a reducer shares memory, and its type pickles without it too (CODEC-9)."""
    return (getattr(reduce, "__module__", None) or "").endswith(SHARING) and (
        kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__reduce__ is not object.__reduce__
        or kind in copyreg.dispatch_table
    )


class _ForeignError(Exception):
    """The item that is being encoded has to be pickled; its message says why, for a debugger."""


class _Encoder:
    """One payload in the making."""

    def __init__(self) -> None:
        self._out = bytearray()
        # CODEC-8: all of the payload before its last part, which is _out
        self._done: list[Segment] = []
        self._done_size = 0
        self._keys: dict[str, int] = {}  # CODEC-6
        self._mark = (0, 0, self._out, 0, 0)  # the state before the item (CODEC-4)
        self._seen: set[int] = set()  # CODEC-3: ids of objects in the item being encoded
        self._pickler: _ItemPickler | None = None
        self.references: list[Any] = []  # CODEC-12

    def size(self) -> int:
        return self._done_size + len(self._out)

    def segments(self) -> list[Segment]:
        parts: list[Segment] = []
        for part in (*self._done, self._out):
            if type(part) is bytearray:
                parts += self._pieces(part)
            elif len(part):
                parts.append(part)
        return parts

    def _pieces(self, part: bytearray) -> list[bytes]:
        """A part as bytes; in two if the last item begins in it and is large (CODEC-10)."""
        _, _, out, cut, _ = self._mark
        if part is not out or not cut or len(part) - cut < SEGMENT_MIN:
            return [bytes(part)] if part else []
        with memoryview(part) as view:
            return [bytes(view[:cut]), bytes(view[cut:])]

    # -- items ---------------------------------------------------------------------------------

    def put_items(
        self, items: Sequence[object], at: int, stop: int
    ) -> tuple[int, BaseException | None]:
        """Encode the next item or run; returns how many items that were, or 0 and the failure."""
        self.mark()
        try:
            taken = self.put_run(items, at, stop)
            if not taken:
                if at >= len(items):  # user code has changed them while the last was pickled
                    raise IndexError(f"there is no item {at}")
                self._put_item(items[at])
                taken = 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - user code ran (CODEC-4)
            self.take_back()
            return 0, error
        return taken, None

    def _put_item(self, item: object) -> None:
        self._seen.clear()
        try:
            self._put(item, 0)
        except _ForeignError:
            self.take_back()
            self._put_pickle(item)

    def mark(self) -> None:
        """Save the state before the next item."""
        parts, keys = len(self._done), len(self._keys)
        self._mark = parts, self._done_size, self._out, len(self._out), keys

    def take_back(self) -> None:
        """Restore the state before the item (CODEC-4)."""
        parts, self._done_size, self._out, size, key_count = self._mark
        del self._done[parts:], self._out[size:]
        while len(self._keys) > key_count:
            self._keys.popitem()

    def _put_pickle(self, item: object) -> None:
        pickler, self._pickler = self._pickler or _ItemPickler(), None
        pickled, buffers = pickler.dump(item)
        self._put_size(PICKLE, len(buffers))
        for buffer in buffers:
            view = buffer.raw()
            self._out.append(view.readonly)
            self._put_bytes(view)
        self._put_bytes(pickled)
        pickler.clear()
        self._pickler = pickler  # a pickler that raised is not used again

    # -- values --------------------------------------------------------------------------------

    def _put(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is str:
            self._put_str(value)
        elif kind is int:
            self._put_int(value)
        elif value is None:
            self._out.append(NONE)
        elif kind is float:
            self._out += pack("=Bd", FLOAT, value)
        elif kind is bool:
            self._out.append(TRUE if value else FALSE)
        elif kind is bytes:
            self._see(value, len(value) >= SHARED_MIN)
            self._out.append(BYTES)
            self._put_bytes(value)
        elif depth >= MAX_DEPTH:
            raise _ForeignError("nested too deep")
        else:
            self._put_container(kind, value, depth + 1)

    def _put_container(self, kind: type, value: Any, depth: int) -> None:
        """Put a container; of one that can change a copy, as other code may change it meanwhile."""
        if kind is dict:
            self._see(value)
            self._put_dict(value, depth)
        elif kind is list or kind is tuple:
            self._see(value, kind is list or value)
            members = [*value] if kind is list else value
            self._put_size(LIST if kind is list else TUPLE, len(members))
            self._put_sequence(members, depth)
        elif kind is set or kind is frozenset:
            self._see(value, kind is set or value)
            members = [*value]
            self._put_size(SET if kind is set else FROZENSET, len(members))
            for member in members:
                self._put(member, depth)
        elif kind is _reference_kind and value._reference is not None:
            self._see(value)
            self.references.append(value)
            self._out += pack("=BQ", REFERENCE, value._reference)
        else:
            raise _ForeignError("of a type without a tag")

    def _see(self, value: object, matters: object = True) -> None:
        """Note an object of this item; _ForeignError if the item holds it twice (CODEC-3)."""
        if matters:
            if id(value) in self._seen:
                raise _ForeignError("met twice")
            self._seen.add(id(value))

    def _put_dict(self, value: dict[Any, Any], depth: int) -> None:
        pairs = {**value}
        self._put_size(DICT, len(pairs))
        for key, member in pairs.items():
            if type(key) is str:
                self._put_key(key)
            else:
                self._put(key, depth)
            self._put(member, depth)

    def _put_key(self, key: str) -> None:
        """Put a key of a dict, or its number if it has one (CODEC-6)."""
        number = self._keys.get(key)
        if number is not None:
            self._out += bytes((KEY, number))
        elif self._put_str(key) <= KEY_SIZE and len(self._keys) < KEY_COUNT:
            self._keys[key] = len(self._keys)

    def _put_sequence(self, members: Sequence[object], depth: int) -> None:
        at, stop = 0, len(members)
        while at < stop:
            taken = self.put_run(members, at, stop)
            if not taken:
                self._put(members[at], depth)
                taken = 1
            at += taken

    # -- numbers, text and bytes ---------------------------------------------------------------

    def put_run(self, values: Sequence[Any], start: int, stop: int) -> int:
        """Put the run that begins at `start`; returns its number of values, or 0 (CODEC-5)."""
        stop = min(stop, len(values))
        if stop - start < RUN_MIN:
            return 0
        kind = type(values[start])
        if kind is not int and kind is not float:
            return 0
        end = start
        while end < stop and type(value := values[end]) is kind:
            if kind is int and not -_INT64_END <= value < _INT64_END:
                break
            end += 1
        if end - start < RUN_MIN:
            return 0
        run = values[start:end]
        tag, code = (FLOATS, "d") if kind is float else _narrowest(run)
        self._put_size(tag, len(run))
        self._out += pack(f"={len(run)}{code}", *run)
        return len(run)

    def _put_int(self, value: int) -> None:
        for tag, _, code, least in _WIDTHS:
            if least <= value < -least:
                self._out += pack(f"=B{code}", tag, value)
                return
        self._out.append(BIGINT)
        # one bit more for the sign, counted as to_bytes does: -128 takes one byte, 128 takes two
        size = (value if value >= 0 else ~value).bit_length() // 8 + 1
        self._put_bytes(value.to_bytes(size, sys.byteorder, signed=True))

    def _put_str(self, value: str) -> int:
        """Put a str; returns its number of bytes in UTF-8."""
        self._see(value, len(value) >= SHARED_MIN)
        encoded = value.encode("utf-8", "surrogatepass")
        self._put_size(STR, len(encoded))
        self._out += encoded
        return len(encoded)

    def _put_bytes(self, value: bytes | memoryview) -> None:
        """Put size and bytes; `SEGMENT_MIN` or more bytes are a segment of their own (CODEC-8)."""
        self._put_number(len(value))
        if len(value) < SEGMENT_MIN:
            self._out += value
        else:
            self._done += (self._out, value)
            self._done_size += len(self._out) + len(value)
            self._out = bytearray()

    def _put_size(self, tag: int, size: int) -> None:
        self._out.append(tag)
        self._put_number(size)

    def _put_number(self, number: int) -> None:
        if number < LONG_SIZE:
            self._out.append(number)
        else:
            self._out += pack("=BQ", LONG_SIZE, number)


class PayloadBuilder(_Encoder):
    """A payload that is made item by item, as results come in."""

    def add(self, item: object) -> bytes | bytearray:
        """Encode one more item; returns its bytes, or b"" if they are not in one piece.

        An exception raised while the item is pickled leaves nothing in the payload (CODEC-4).
        """
        if type(item) is int and not self._done:
            for least, pack_int, tag in _INTS:  # a short cut: most results are such ints
                if least <= item < -least:
                    data = pack_int(tag, item)
                    self._out += data
                    return data
        self.mark()
        size = len(self._out)
        try:
            self._put_item(item)
            return b"" if self._done else self._out[size:]
        except BaseException:
            self.take_back()
            raise


class _ItemPickler:
    """Pickles the items of one payload, one at a time, with nothing carried over (CODEC-2)."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._buffers: list[pickle.PickleBuffer] = []
        self._pickler = pickle.Pickler(self._file, 5, buffer_callback=self._buffers.append)
        self._pickler.dispatch_table = _reducers()

    def dump(self, item: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
        self._pickler.dump(item)
        return self._file.getvalue(), self._buffers

    def clear(self) -> None:
        """Drop what is left of the item, so that it can be freed and its buffers resized."""
        self._pickler.clear_memo()
        self._buffers.clear()
        self._file.seek(0)
        self._file.truncate()


def _narrowest(run: Sequence[int]) -> tuple[int, str]:
    """The tag and the format of the narrowest run that holds these ints."""
    low, high = min(run), max(run)
    for _, tag, code, least in _WIDTHS[:-1]:
        if least <= low and high < -least:
            return tag, code
    return INT64S, "q"
