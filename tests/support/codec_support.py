"""What tests of the codec share: both codecs, values of all kinds, and when two are the same."""

from __future__ import annotations

import collections
import enum
import importlib
import importlib.util
import itertools
import math
import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from aiomultiprocess._pure import codec as python_codec
from aiomultiprocess._pure import tags
from aiomultiprocess._transport import shared_objects
from aiomultiprocess._wire import frames

CODECS: list[Any] = [python_codec]
if importlib.util.find_spec("amp_ext") and importlib.util.find_spec("amp_ext.encoder"):
    CODECS.append(importlib.import_module("amp_ext.codec"))
for _codec in CODECS:
    _codec.register(shared_objects.Shared, shared_objects.reduce)
    _codec.register_references(shared_objects.Shared, shared_objects.note)
    _codec.receive_references(shared_objects.receive)

ALL = sys.maxsize


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: Any
    y: Any


class Text(str):
    pass


class Real(float):
    pass


class Row(list):  # type: ignore[type-arg]
    pass


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Plain and shape(other.value) == shape(self.value)

    __hash__ = None  # type: ignore[assignment]


class Pickles:
    """Pickles by a call of `reduce`, which may do anything, and is unpickled by what it returns."""

    def __init__(self, reduce: Callable[[], Any]) -> None:
        self.reduce = reduce

    def __reduce__(self) -> Any:
        return self.reduce()


class WithBuffer:
    """Is pickled with a buffer beside the pickle, which is a view of its own."""

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer

    def __reduce_ex__(self, protocol: object) -> Any:
        return WithBuffer, (pickle.PickleBuffer(self.buffer),)


def fail(error: type[BaseException], *args: Any) -> Any:
    raise error(*args)


def failing_load(error: type[BaseException]) -> Pickles:
    return Pickles(lambda: (fail, (error, "in loading")))


def failing_dump(error: type[BaseException]) -> Pickles:
    return Pickles(lambda: fail(error, "in dumping"))


def shape(value: Any) -> Any:
    """What a value is: with exact types, the bits of floats, and which containers are the same."""
    return _shape(value, {})


def _shape(value: Any, seen: dict[int, int]) -> Any:
    kind = type(value)
    if kind is shared_objects.Shared:
        return kind, value._reference
    if isinstance(value, float):
        return kind, struct.pack("=d", value)
    if not isinstance(value, list | tuple | dict | set | frozenset | Plain):
        return kind, value
    if value or not isinstance(value, tuple | frozenset):
        if id(value) in seen:
            return "as above", seen[id(value)]
        seen[id(value)] = len(seen)
    if isinstance(value, Plain):
        return kind, _shape(value.value, seen)
    if isinstance(value, dict):
        return kind, tuple((_shape(key, seen), _shape(item, seen)) for key, item in value.items())
    if isinstance(value, set | frozenset):  # their order is not kept, nor what they share
        return kind, frozenset(collections.Counter(map(shape, value)).items())
    return kind, tuple(_shape(item, seen) for item in value)


def nest(depth: int, inner: Any = None) -> Any:
    for kind in itertools.islice(itertools.cycle((list, dict, tuple)), depth):
        inner = {"in": inner} if kind is dict else kind([inner])
    return inner


INTS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from(
        [sign * (1 << bits) + off for bits in (7, 8, 15, 31, 63, 64, 71, 400)
         for sign in (1, -1) for off in (-1, 0, 1)]
    ),
)  # fmt: skip
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, math.nan, -math.nan, math.inf, 5e-324])
STRS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(codec="ascii"), max_size=20),
    st.text(st.characters(categories=["Cs", "Ll"]), max_size=4),
    st.sampled_from(["", "key", "\0", "\U0010ffff"]),
    # in parts, because Hypothesis writes strategies out when it reports
    st.tuples(st.sampled_from("xé"), st.sampled_from([32, 33, 64, 65, 255, 5000])).map(
        lambda part: part[0] * part[1]
    ),
)  # fmt: skip
BYTES = st.binary(max_size=8) | st.sampled_from([0, 254, 255, 5000, 70_000]).map(bytes)
SCALARS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, STRS, BYTES)
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=4,
)
FOREIGN = st.one_of(
    st.just(Colour.RED),
    st.builds(Point, INTS, STRS),
    STRS.map(Text),
    FLOATS.map(Real),
    st.builds(Row, st.lists(INTS, max_size=2)),
    st.just(range(3)),
    st.just(1 + 2j),
    st.binary(max_size=3).map(bytearray),
    st.builds(collections.OrderedDict, st.dictionaries(STRS, INTS, max_size=2)),
    st.just(collections.defaultdict(list, a=[1])),
    INTS.map(Plain),
)
RUNS = st.one_of(
    st.lists(st.integers(-200, 200), max_size=40),
    st.lists(INTS, max_size=12),
    st.lists(FLOATS, max_size=12),
    st.lists(st.booleans() | st.integers(0, 1), max_size=12),
    st.lists(st.just(Colour.RED) | st.integers(0, 1), max_size=12),
)


@st.composite
def values(draw: st.DrawFn, scalars: st.SearchStrategy[Any] = SCALARS | FOREIGN) -> Any:
    """A value in which anything may be there more than once."""
    parts: list[Any] = [draw(scalars)]
    for _ in range(draw(st.integers(0, 6))):
        some = st.lists(scalars | st.sampled_from(parts), max_size=6)
        keys = HASHABLE
        parts.append(
            draw(
                st.one_of(
                    some,
                    some.map(tuple),
                    RUNS,
                    RUNS.map(tuple),
                    st.sets(keys, max_size=4),
                    st.frozensets(keys, max_size=4),
                    st.dictionaries(keys, some, max_size=4),
                    st.dictionaries(st.sampled_from("abcdefgh"), scalars, max_size=8),
                    st.builds(Plain, st.sampled_from(parts)),
                )
            )
        )
    return parts[-1]


ITEMS = st.lists(values() | SCALARS, max_size=8) | RUNS


def encode(codec: Any, items: Any, max_bytes: int = ALL) -> bytes:
    """The payload of all items."""
    segments, count, error = codec.encode_items(items, 0, len(items), max_bytes)
    assert error is None
    assert count == len(items)
    return b"".join(segments)


def decode(codec: Any, payload: bytes | frames.Payload, count: int) -> list[Any]:
    """The values of a payload without failures."""
    items, failures = codec.decode_items(payload, count)
    assert failures is None
    assert type(items) is list
    assert len(items) == count
    return items


def arrived(segments: list[Any]) -> frames.PayloadParts:
    """Segments as a transport hands them over: copies of their own."""
    copies = [
        bytes(bytearray(one)) if frames.is_readonly(one) else bytearray(one) for one in segments
    ]
    return frames.PayloadParts(copies, sum(map(len, copies)))


def echo(codec: Any, item: Any) -> Any:
    (value,) = decode(codec, encode(codec, [item]), 1)
    return value


def native(codec: Any, item: Any) -> bool:
    """Whether an item is encoded without a pickle."""
    return encode(codec, [item])[0] != tags.PICKLE


NATIVE: list[Any] = [
    None, True, False, 0, -1, 127, 128, -128, -129, 1 << 31, -(1 << 63), 1 << 63, 10**1000,
    0.0, -0.0, math.nan, math.inf, "", "a", "ab", "é", "\ud800\udc00", "\U0001f600", "x" * 1000,
    b"", b"x", b"x" * 1000, (), (1,), [], [1, "a"], {}, {"a": 1}, {1: 2, None: (), (1, 2): 3},
    set(), {1, "a"}, frozenset(), frozenset({1.5}), [[], [], {}, {}, (), ()], [1, 2, 3, 4, True, 5],
    [1.0] * 5, [0, 1, 2, 1 << 70, 3, 4, 5, 6], [True] * 9, {"a": {"a": {"a": [{"a": 1}]}}},
]  # fmt: skip
NOT_NATIVE: list[Any] = [
    Colour.RED, Point(1, 2), Text("a"), Real(1.5), Row([1]), 1j, range(3), bytearray(b"x"),
    collections.OrderedDict(a=1), collections.defaultdict(int, a=1), Plain(1), print, int,
    [1, 2, 3, 4, Colour.RED], {"a": Text("b")}, {Text("a"): 1}, {1, Colour.RED, Real(3)}, Ellipsis,
]  # fmt: skip
