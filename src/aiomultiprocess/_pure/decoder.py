"""Decodes payloads. `codec` defines the format of a payload, and the rules CODEC-1 to CODEC-12.

`amp_ext/decoder.pyx` does the same in Cython: change both together.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from .._wire.frames import Part, Payload, PayloadParts, size_of
from .tags import (
    FLOATS,
    INT8S,
    INT16S,
    INT32S,
    INT64S,
    KEY,
    KEY_COUNT,
    KEY_SIZE,
    LONG_SIZE,
    MAX_DEPTH,
    PICKLE,
    REFERENCE,
    SEGMENT_MIN,
    STR,
    CorruptFrameError,
)

#: A payload of at most this size is copied first: bytes are faster to read than a view.
_COPY_MAX: Final = 64 * 1024
_RUNS: Final = {
    INT8S: ("b", 1),
    INT16S: ("h", 2),
    INT32S: ("i", 4),
    INT64S: ("q", 8),
    FLOATS: ("d", 8),
}


def decode_items(
    payload: bytes | Payload, count: int, skip: int = 0
) -> tuple[list[Any], dict[int, BaseException] | None]:
    """Decode a payload of `count` items; of the first `skip`, no pickle is loaded.

    Returns `count` values, and a dict of failures by the item's index, or None if all succeeded.
    The value of an item that failed, or of a pickle that is not loaded, is None. Raises
    CorruptFrameError for a payload that no encoder can have made (CODEC-7).
    """
    if isinstance(payload, PayloadParts):
        return _decode(b"", count, skip, payload.segments)
    with memoryview(payload) as view:
        if view.nbytes <= _COPY_MAX:
            return _decode(bytes(view), count, skip)
        with view.cast("B") as data:
            return _decode(data, count, skip)


def loads(payload: bytes | memoryview) -> Any:
    """Unpickle what `dumps` has pickled."""
    return pickle.loads(payload)


def receive_references(receive: Callable[[int], Any]) -> None:
    """Make the object of a reference by `receive`, from its number."""
    global _receive_reference
    _receive_reference = receive


_receive_reference: Callable[[int], Any] | None = None  # CODEC-12


def contain_interrupts() -> None:
    """From now on a KeyboardInterrupt is the failure of its item (CODEC-4)."""
    global _uncontained
    _uncontained = ()


_uncontained: tuple[type[BaseException], ...] = (KeyboardInterrupt,)


def _decode(
    data: bytes | memoryview, count: int, skip: int, segments: Sequence[Part] = ()
) -> tuple[list[Any], dict[int, BaseException] | None]:
    decoder = _Decoder(data, segments)
    decoder.skip = skip
    try:
        return decoder.items(count)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        # a read beyond the end; not UTF-8; not hashable. Only _unpickle runs user code.
        why = str(error)
    # raised out here, so that it does not keep the other error, whose traceback has views of the
    # payload (CODEC-8)
    raise decoder.corrupt(why)


class _Missing:
    """A segment that did not arrive, for lack of memory (CODEC-10): reading it raises."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return 0

    def __getitem__(self, at: object) -> NoReturn:
        raise _no_memory(self._size)


def _no_memory(size: int) -> MemoryError:
    return MemoryError(f"there is no memory, or no descriptor, for {size} bytes")


class _Decoder:
    """Reads one payload: `data`, or the segments that do not become values (CODEC-8)."""

    def __init__(self, data: bytes | memoryview, segments: Sequence[Part] = ()) -> None:
        self.at = 0
        self.skip = 0  # items whose pickles are not loaded
        self.failure: BaseException | None = None  # CODEC-12: why the item has no value
        self._data: Any = data
        self._in_segments = len(segments) > 0
        self._segments = list(segments)[::-1]  # those not read yet, the last first
        self._behind = 0  # bytes before _data
        self._ahead = sum(map(size_of, segments))  # bytes after it
        self._keys: list[str] = []  # CODEC-6
        if self._in_segments:
            self._go_on()

    def corrupt(self, why: str) -> CorruptFrameError:
        place, end = self._behind + self.at, self._behind + len(self._data) + self._ahead
        return CorruptFrameError(f"{why}, before byte {place} of {end}")

    def _go_on(self) -> None:
        """Read on in the next segment, if there is one."""
        self._behind += len(self._data)
        self._data, self.at = b"", 0
        if self._segments:
            segment = self._segments[-1]
            if isinstance(segment, int):
                self._data = _Missing(segment)  # _ahead still counts its bytes
                return
            if type(segment) is not bytes:
                raise self.corrupt("a bytearray that is not a buffer of a pickle")
            self._data = self._segments.pop()
            self._ahead -= len(self._data)

    def _take_segment(self, kind: type, size: int, *, lent: bool) -> Any:
        """The next segment as a value of its own (CODEC-8), or as a `lent` view (CODEC-11)."""
        if self.at != len(self._data) or not self._segments:
            raise self.corrupt(f"{size} bytes that are not a segment of their own")
        segment = self._segments.pop()
        if isinstance(segment, int):
            raise _no_memory(segment)
        if lent and type(segment) is memoryview:
            kind = memoryview if segment.readonly is (kind is bytes) else kind
        if type(segment) is not kind or len(segment) != size:
            raise self.corrupt(f"a segment that is not of type {kind.__name__} with {size} bytes")
        self._behind += size
        self._ahead -= size
        self._go_on()
        return segment

    # -- items ---------------------------------------------------------------------------------

    def items(self, count: int) -> tuple[list[Any], dict[int, BaseException] | None]:
        self._check_count(count, 1)
        values: list[Any] = []
        failures: dict[int, BaseException] = {}
        try:
            while len(values) < count:
                self._add_item(values, failures, count)
        except MemoryError as error:  # the items behind it cannot be found (CODEC-10)
            error = error.with_traceback(None)  # which would keep views of the payload (CODEC-8)
            failures.update(dict.fromkeys(range(len(values), count), error))
            values.extend([None] * (count - len(values)))
        else:
            if self.at != len(self._data) or self._segments:
                raise self.corrupt("bytes after the last item")
        return values, failures or None

    def _add_item(self, values: list[Any], failures: dict[int, BaseException], count: int) -> None:
        """Append the next item, or the items of the next run."""
        if self.at == len(self._data) and self._segments:
            self._go_on()  # CODEC-10
        tag = self._byte()
        if tag == PICKLE:
            pickled, buffers = self._pickled()
            place = len(values)
            if place < self.skip:
                pickled.release()
                values.append(None)
            else:
                values.append(self._unpickle(pickled, buffers, failures, place))
        else:
            self._add(values, tag, count, 0)
            if self.failure is not None:
                self._fail_item(values, failures)

    def _fail_item(self, values: list[Any], failures: dict[int, BaseException]) -> None:
        """Let the last item fail, because a shared object in it could not be made (CODEC-12)."""
        error, self.failure = self.failure, None
        values[-1] = None
        if error is not None and len(values) > self.skip:
            failures[len(values) - 1] = error

    def _pickled(self) -> tuple[memoryview, list[memoryview]]:
        buffers: list[memoryview] = []
        number = self._number()
        self._check_count(number, 2)
        for _ in range(number):
            kind = bytes if self._byte() else bytearray
            buffer = self._bytes_as(kind, lent=True)
            buffers.append(buffer if type(buffer) is memoryview else memoryview(buffer))  # CODEC-11
        return memoryview(self._bytes_as(bytes)), buffers

    @staticmethod
    def _unpickle(
        pickled: memoryview,
        buffers: list[memoryview],
        failures: dict[int, BaseException],
        place: int,
    ) -> Any:
        with pickled:
            try:
                return pickle.loads(pickled, buffers=buffers)
            except _uncontained:
                raise
            except BaseException as error:  # noqa: BLE001 - user code ran (CODEC-4)
                failures[place] = error
                return None

    # -- values --------------------------------------------------------------------------------

    def _add(self, values: list[Any], tag: int, count: int, depth: int) -> None:
        """Append the value, or the values of the run, that begins with `tag`."""
        if tag in _RUNS:
            code, width = _RUNS[tag]
            number = self._number()
            if not 0 < number <= count - len(values):
                raise self.corrupt(f"a run of {number} values among {count}")
            at = self._skip(number * width)
            values.extend(struct.unpack_from(f"={number}{code}", self._data, at))
        else:
            values.append(_READERS[tag](self, depth))

    def _value(self, depth: int) -> Any:
        return _READERS[self._byte()](self, depth)

    def _sequence(self, depth: int) -> list[Any]:
        count = self._enter(depth, 1)
        values: list[Any] = []
        while len(values) < count:
            self._add(values, self._byte(), count, depth + 1)
        return values

    def _members(self, depth: int) -> set[Any]:
        count = self._enter(depth, 1)
        members = {self._value(depth + 1) for _ in range(count)}
        if len(members) != count:
            raise self.corrupt("a set with equal members")
        return members

    def _dict(self, depth: int) -> dict[Any, Any]:
        count = self._enter(depth, 2)
        pairs: dict[Any, Any] = {}
        for _ in range(count):
            key = self._key(depth + 1)
            pairs[key] = self._value(depth + 1)
        if len(pairs) != count:
            raise self.corrupt("a dict with equal keys")
        return pairs

    def _key(self, depth: int) -> Any:
        tag = self._byte()
        if tag == KEY:
            return self._keys[self._byte()]
        if tag != STR:
            return _READERS[tag](self, depth)
        encoded = self._bytes()
        key = str(encoded, "utf-8", "surrogatepass")
        if len(encoded) <= KEY_SIZE and len(self._keys) < KEY_COUNT:
            self._keys.append(key)
        return key

    def _enter(self, depth: int, least: int) -> int:
        """Begin a container: check its depth, and return its number of members."""
        if depth >= MAX_DEPTH:
            raise self.corrupt(f"more than {MAX_DEPTH} nested containers")
        count = self._number()
        self._check_count(count, least)
        return count

    def _check_count(self, count: int, least: int) -> None:
        """CorruptFrameError if the bytes left are too few for `count` members (CODEC-7)."""
        if not 0 <= count * least <= len(self._data) - self.at + self._ahead:
            raise self.corrupt(f"{count} members")

    # -- bytes ---------------------------------------------------------------------------------

    def _byte(self) -> int:
        byte: int = self._data[self.at]
        self.at += 1
        return byte

    def _number(self) -> int:
        number = self._byte()
        return number if number < LONG_SIZE else self._unpack("=Q", 8)

    def _bytes_as(self, kind: type, *, lent: bool = False) -> Any:
        """Read a size and as many bytes; returns them as an object of their own."""
        size = self._number()
        if size >= SEGMENT_MIN and self._in_segments:
            return self._take_segment(kind, size, lent=lent)
        at = self._skip(size)
        return kind(self._data[at : self.at])

    def _bytes(self) -> bytes | bytearray | memoryview:
        at = self._skip(self._number())
        data: bytes | bytearray | memoryview = self._data[at : self.at]
        return data

    def _skip(self, size: int) -> int:
        """Skip `size` bytes; returns where they begin."""
        at = self.at
        if size > len(self._data) - at:
            raise self.corrupt(f"{size} bytes")
        self.at = at + size
        return at

    def _unpack(self, code: str, size: int) -> Any:
        (value,) = struct.unpack_from(code, self._data, self.at)
        self.at += size
        return value


def _foreign(decoder: _Decoder, _: int) -> NoReturn:
    raise decoder.corrupt("a tag that is not valid there")


def _reference(decoder: _Decoder, depth: int) -> Any:
    if _receive_reference is None:
        return _foreign(decoder, depth)
    value, error = _received(_receive_reference, decoder._unpack("=Q", 8))
    if decoder.failure is None:
        decoder.failure = error
    return value


def _received(receive: Callable[[int], Any], number: int) -> tuple[object, BaseException | None]:
    """A shared object, or what stands for it while the rest of its item is read, and why.

    The traceback of the error begins here, so that it keeps no views of the payload (CODEC-8).
    """
    try:
        return receive(number), None
    except _uncontained:
        raise
    except BaseException as error:  # noqa: BLE001 - it may import modules (CODEC-4)
        return object(), error  # which a set or dict can hold beside all others


_Reader: TypeAlias = Callable[[_Decoder, int], Any]

#: The reader of each tag, from NONE to REFERENCE.
_READERS: Final[tuple[_Reader, ...]] = (
    lambda decoder, _: None,
    lambda decoder, _: False,
    lambda decoder, _: True,
    lambda decoder, _: decoder._unpack("=b", 1),
    lambda decoder, _: decoder._unpack("=h", 2),
    lambda decoder, _: decoder._unpack("=i", 4),
    lambda decoder, _: decoder._unpack("=q", 8),
    lambda decoder, _: int.from_bytes(decoder._bytes_as(bytes), sys.byteorder, signed=True),
    lambda decoder, _: decoder._unpack("=d", 8),
    lambda decoder, _: str(decoder._bytes(), "utf-8", "surrogatepass"),
    lambda decoder, _: decoder._bytes_as(bytes),
    lambda decoder, depth: tuple(decoder._sequence(depth)),
    _Decoder._sequence,
    _Decoder._members,
    lambda decoder, depth: frozenset(decoder._members(depth)),
    _Decoder._dict,
    *[_foreign] * (REFERENCE - KEY),
    _reference,
)
