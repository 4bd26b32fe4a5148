"""Items that the codec pickles: which item fails (CODEC-4), and which reducers are used."""

from __future__ import annotations

import copyreg
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

from aiomultiprocess._pure.tags import SEGMENT_MIN
from codec_support import (
    ALL,
    CODECS,
    Pickles,
    Plain,
    WithBuffer,
    arrived,
    decode,
    encode,
    failing_dump,
    failing_load,
    nest,
)


@pytest.fixture(params=CODECS, ids=lambda codec: codec.__name__.partition(".")[0])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- pickling (CODEC-4) ----------------------------------------------------------------------------


@pytest.mark.row("A1")
@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("error", [ValueError, SystemExit, RecursionError, MemoryError])
def test_an_item_that_cannot_be_pickled_ends_the_payload_before_it(
    codec: Any, place: int, error: type[BaseException]
) -> None:
    items: list[Any] = [1, {"a": 2}, b"x" * 70_000, Plain(3), 4]
    items.insert(place, [{"new": 1}, bytes(70_000), failing_dump(error)])
    segments, count, failure = codec.encode_items(items, 0, len(items), ALL)
    assert count == place
    assert type(failure) is error
    assert failure.args == ("in dumping",)
    assert decode(codec, b"".join(segments), place) == items[:place]
    segments, count, failure = codec.encode_items(items, place + 1, len(items), ALL)
    assert failure is None
    assert decode(codec, b"".join(segments), count) == items[place + 1 :]


def test_pickles_own_errors_come_as_they_are(codec: Any) -> None:
    for item in (lambda: 1, threading.Lock(), (1, {"key": threading.Lock()}), [Plain(sys)]):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as pickles:
            pickle.dumps(item, 5)
        failure = codec.encode_items([item], 0, 1, ALL)[2]
        assert type(failure) is pickles.type
        assert str(failure).partition(" at 0x")[0] == str(pickles.value).partition(" at 0x")[0]


def test_nesting_too_deep_for_pickle_is_a_failure(codec: Any) -> None:
    deep = nest(300_000)
    assert codec.encode_items([deep], 0, 1, ALL)[:2] == ([], 0)
    assert isinstance(codec.encode_items([deep], 0, 1, ALL)[2], RecursionError)


@pytest.mark.row("A3")
def test_an_item_that_cannot_be_unpickled_fails_alone(codec: Any) -> None:
    errors = [ValueError, SystemExit, MemoryError, GeneratorExit]
    items: list[Any] = [1, *map(failing_load, errors), {"a": 2}, Plain(3)]
    decoded, failures = codec.decode_items(encode(codec, items), len(items))
    assert decoded == [1, None, None, None, None, {"a": 2}, Plain(3)]
    assert [type(failures[place]) for place in (1, 2, 3, 4)] == errors
    assert len(failures) == 4


def test_garbage_in_place_of_a_pickle_is_that_items_failure(codec: Any) -> None:
    payload = encode(codec, [1, Plain("here"), 2]).replace(b"codec_support", b"cedoc_support")
    decoded, failures = codec.decode_items(payload, 3)
    assert decoded == [1, None, 2]
    assert isinstance(failures[1], ImportError)


def test_keyboard_interrupt_is_no_items_failure(codec: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        codec.encode_items([1, failing_dump(KeyboardInterrupt)], 0, 2, ALL)
    payload = encode(codec, [1, failing_load(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        codec.decode_items(payload, 2)


def test_pickling_that_changes_the_items_does_no_harm(codec: Any) -> None:
    def shrink(items: list[Any]) -> Any:
        items.clear()
        gc.collect()
        return int, ()

    items: list[Any] = [{"a": [1]}, 1.5]
    items += [Pickles(lambda: shrink(items)), *range(20), "rest"]
    segments, count, error = codec.encode_items(items, 0, len(items), ALL)
    assert decode(codec, b"".join(segments), count) == [{"a": [1]}, 1.5, 0]
    assert isinstance(error, IndexError)
    assert str(error) == "there is no item 3"

    item: list[Any] = [[2], "text", {"b": {"c": [3]}}]
    item.append(Pickles(lambda: shrink(item)))
    codec.encode_items([item, item], 0, 2, ALL)


def test_pickling_may_encode_and_decode(codec: Any) -> None:
    def reduce() -> Any:
        return decode, (codec_name, encode(codec, [Plain(1), {"a": 2}]), 2)

    codec_name = Codec(codec.__name__)
    items = [{"a": 1}, Pickles(reduce), Plain(2), {"a": 3}]
    assert decode(codec, encode(codec, items), 4) == [
        {"a": 1}, [Plain(1), {"a": 2}], Plain(2), {"a": 3},
    ]  # fmt: skip


class Codec:
    """A codec that can be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def decode_items(self, payload: bytes, count: int) -> Any:
        return sys.modules[self.name].decode_items(payload, count)


class Odd:
    """Cannot be pickled unless a reducer is registered."""

    def __reduce__(self) -> Any:
        raise TypeError("not by itself")


def reduce_odd(_: Odd) -> Any:
    return str, ("odd",)


@pytest.fixture(params=["copyreg", "multiprocessing"])
def _reducer_for_odd(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "copyreg":
        copyreg.pickle(Odd, reduce_odd)
        yield
        del copyreg.dispatch_table[Odd]
    else:
        ForkingPickler.register(Odd, reduce_odd)
        yield
        del ForkingPickler._extra_reducers[Odd]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_reducer_for_odd")
def test_registered_reducers_are_honoured(codec: Any) -> None:
    assert decode(codec, encode(codec, [1, Odd(), [Odd()]]), 3) == [1, "odd", ["odd"]]
    assert codec.loads(codec.dumps({"a": Odd()})) == {"a": "odd"}


def test_dumps_and_loads_are_one_pickle(codec: Any) -> None:
    for obj in (print, Plain([1]), ValueError("x"), {"a": bytearray(100_000)}):
        pickled = codec.dumps(obj)
        assert type(pickled) is bytes
        assert repr(pickle.loads(pickled)) == repr(codec.loads(memoryview(pickled))) or obj == (
            codec.loads(pickled)
        )
    with pytest.raises((pickle.PicklingError, AttributeError)):
        codec.dumps(lambda: 1)
    assert len({other.dumps([Plain(1), 2]) for other in CODECS}) == 1


@pytest.mark.row("H200")
@pytest.mark.parametrize("size", [0, 10, SEGMENT_MIN - 1, SEGMENT_MIN])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_buffer_becomes_a_memoryview_and_can_be_written_as_before(
    codec: Any, kind: type, size: int
) -> None:
    item = pickle.PickleBuffer(kind(b"x" * size))
    segments = codec.encode_items([item], 0, 1, ALL)[0]
    for payload in (b"".join(segments), arrived(segments)):
        (found,) = decode(codec, payload, 1)
        assert (type(found), found.readonly, found.nbytes) == (memoryview, kind is bytes, size)
        assert found == b"x" * size
        if kind is bytearray and size:
            found[0] = 1
            assert found.obj[0] == 1


# -- what is held afterwards -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, SEGMENT_MIN - 1])
def test_nothing_of_an_item_is_held_once_it_is_pickled(codec: Any, size: int) -> None:
    item = WithBuffer(bytearray(size))
    known, buffer = weakref.ref(item), item.buffer
    encode(codec, [item])
    del item
    buffer.clear()  # BufferError if a view were left
    assert known() is None
