"""The codec, in Python and in Cython: both against each other, and against pickle.

The rules: CODEC-1 to CODEC-12 of _pure/codec.py.
"""

from __future__ import annotations

import collections
import gc
import itertools
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiomultiprocess
from aiomultiprocess._pure import tags
from aiomultiprocess._transport import shared_objects
from aiomultiprocess._wire import sharing
from codec_support import (
    ALL,
    CODECS,
    ITEMS,
    NATIVE,
    NOT_NATIVE,
    Plain,
    arrived,
    decode,
    echo,
    encode,
    failing_load,
    native,
    nest,
    shape,
)
from conftest import ROOT


@pytest.fixture(params=CODECS, ids=lambda codec: codec.__name__.partition(".")[0])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- both against each other, and against pickle ---------------------------------------------------


@pytest.mark.row("C26")
@settings(max_examples=300)
@given(ITEMS, st.integers(0, 3), st.sampled_from([1, 2, 30, 64, 1000, 70_000, ALL]))
def test_both_codecs_make_the_same_segments(items: list[Any], start: int, max_bytes: int) -> None:
    results = [codec.encode_items(items, start, len(items), max_bytes) for codec in CODECS]
    assert all(result == results[0] for result in results)
    segments, count, error = results[0]
    assert error is None
    assert 0 < count <= len(items) - start or (count == 0 and start >= len(items) and not segments)
    assert all(type(segment) is bytes and segment for segment in segments)


@pytest.mark.row("C26")
@settings(max_examples=300)
@given(ITEMS)
def test_each_codec_decodes_what_any_codec_encodes_as_pickle_would(items: list[Any]) -> None:
    expected = [shape(pickle.loads(pickle.dumps(item))) for item in items]
    for encoder, decoder in itertools.product(CODECS, repeat=2):
        decoded = decode(decoder, encode(encoder, items), len(items))
        assert [shape(item) for item in decoded] == expected


@settings(max_examples=200)
@given(ITEMS)
def test_a_payload_in_parts_holds_the_same_values(items: list[Any]) -> None:
    for encoder, decoder in itertools.product(CODECS, repeat=2):
        segments, count, error = encoder.encode_items(items, 0, len(items), ALL)
        assert error is None
        decoded = decode(decoder, arrived(segments), count)
        assert [shape(item) for item in decoded] == [shape(item) for item in items]


@pytest.mark.row("C26")
@settings(max_examples=300)
@given(ITEMS, st.sampled_from([1, 20, 100, 1000]))
def test_payloads_of_limited_size_make_up_the_whole(items: list[Any], max_bytes: int) -> None:
    for codec in CODECS:
        at, decoded = 0, []
        while at < len(items):
            segments, count, error = codec.encode_items(items, at, len(items), max_bytes)
            assert error is None
            decoded += decode(codec, b"".join(segments), count)
            at += count
        assert [shape(item) for item in decoded] == [shape(item) for item in items]


def test_the_tags_of_both_codecs_are_the_same() -> None:
    source = (ROOT / "amp_ext" / "tags.pxd").read_text()
    theirs = {name: int(value) for name, value in re.findall(r"^ +(\w+) = (\d+)$", source, re.M)}
    ours = {name: value for name, value in vars(tags).items() if type(value) is int}
    assert ours == theirs


# -- what is native, and what exact types do (CODEC-1, CODEC-3) ------------------------------------


@pytest.mark.parametrize("item", NATIVE, ids=lambda item: repr(item)[:30])
def test_exact_builtin_values_are_native(codec: Any, item: Any) -> None:
    assert native(codec, item)
    assert shape(echo(codec, item)) == shape(item)


@pytest.mark.parametrize("item", NOT_NATIVE, ids=lambda item: repr(item)[:30])
def test_anything_else_anywhere_makes_the_item_a_pickle(codec: Any, item: Any) -> None:
    for nested in (item, [item], {"key": (item,)}):
        assert not native(codec, nested)
        assert shape(echo(codec, nested)) == shape(nested)


def test_what_an_item_holds_twice_stays_one_object(codec: Any) -> None:
    shared: Any
    for shared in ([1], [], {}, set(), {"a": 1}, (1,), frozenset({1}), "s" * 4096, b"b" * 4096):
        first, second, third = echo(codec, [shared, [shared], {"key": shared}])
        assert first is second[0] is third["key"]
        assert type(first) is type(shared)
        assert first == shared


def test_a_large_str_that_occurs_twice_is_sent_once(codec: Any) -> None:
    assert len(encode(codec, [["s" * 100_000] * 1000])) < 200_000


def test_a_cycle_stays_a_cycle(codec: Any) -> None:
    loop: list[Any] = [1]
    loop.append({"loop": loop})
    decoded = echo(codec, loop)
    assert decoded[1]["loop"] is decoded


def test_items_share_nothing_even_if_they_did(codec: Any) -> None:
    shared = [1]
    for items in ([shared] * 3, [Plain(shared)] * 3, [{"a": shared}] * 2, [bytearray(b"a")] * 2):
        decoded = decode(codec, encode(codec, items), len(items))
        assert len({id(item) for item in decoded}) == len(items)
    first, second = decode(codec, encode(codec, [Plain(shared), Plain(shared)]), 2)
    assert first.value is not second.value


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 34, 200])
def test_deep_nesting_goes_by_pickle(codec: Any, depth: int) -> None:
    item = nest(depth)
    assert native(codec, item) == (depth <= tags.MAX_DEPTH)
    assert shape(echo(codec, item)) == shape(item)


def test_keys_have_numbers_up_to_the_limits(codec: Any) -> None:
    names = [f"k{number}" for number in range(300)] + ["e" * 64, "e" * 65, "é" * 32, "é" * 33]
    for items in (
        [dict.fromkeys(names, 1)] * 2,
        [{"".join(["k", str(number)]): number for number in range(5)} for _ in range(5)],
        [{"a": 1}, {"b": Plain(1), "c": 2}, {"c": 1}, {"a": {"b": 3}}, {"c": 2}],
    ):
        assert [shape(item) for item in decode(codec, encode(codec, items), len(items))] == [
            shape(item) for item in items
        ]
        assert all(encode(other, items) == encode(codec, items) for other in CODECS)


def test_a_repeated_key_costs_two_bytes(codec: Any) -> None:
    one = len(encode(codec, [{"a_long_name": None}]))
    assert len(encode(codec, [{"a_long_name": None}, {"a_long_name": None}])) == one + 5


def test_numbers_are_packed(codec: Any) -> None:
    assert len(encode(codec, list(range(100)))) == 102
    assert len(encode(codec, [list(range(-1000, 1000))])) == 2 * 10 + 2 * 2000
    assert len(encode(codec, [0.5] * 100)) == 802


def test_any_sequence_is_taken(codec: Any) -> None:
    for items in ((1, "a", [2]), collections.deque([1, "a", [2]]), range(9), "abc"):
        segments, count, error = codec.encode_items(items, 1, len(items), ALL)
        assert error is None
        assert decode(codec, b"".join(segments), count) == list(items)[1:]


def test_nothing_is_encoded_from_an_empty_range(codec: Any) -> None:
    for start, stop in ((0, 0), (1, 1), (2, 1), (9, 9)):
        assert codec.encode_items([1, 2], start, stop, ALL) == ([], 0, None)
    assert codec.decode_items(b"", 0) == ([], None)
    with pytest.raises(ValueError, match="start is -1"):
        codec.encode_items([1, 2], -1, 2, ALL)


# -- segments and buffers (CODEC-8) ----------------------------------------------------------------


def test_large_bytes_are_segments_and_are_not_copied(codec: Any) -> None:
    large = bytes(100_000)
    segments, count, error = codec.encode_items([1, {"a": large}, large, 2], 0, 4, ALL)
    assert (count, error) == (4, None)
    assert [segment is large for segment in segments] == [False, True, False, True, False]
    assert decode(codec, b"".join(segments), 4) == [1, {"a": large}, large, 2]


def test_max_bytes_counts_large_segments(codec: Any) -> None:
    items = [bytes(70_000)] * 4
    assert codec.encode_items(items, 0, 4, 140_000)[1] == 2
    assert codec.encode_items(items, 0, 4, 1)[1] == 1


def test_max_bytes_bounds_runs(codec: Any) -> None:
    items = list(range(1000, 11_000))
    assert codec.encode_items(items, 0, len(items), 0)[1] == 1
    segments, count, error = codec.encode_items(items, 0, len(items), 2000)
    assert error is None
    assert 2000 <= sum(map(len, segments)) < 2010
    assert decode(codec, b"".join(segments), count) == items[:count]


def test_arrays_go_out_of_band_and_keep_their_flags(codec: Any) -> None:
    numpy = pytest.importorskip("numpy")
    frozen = numpy.arange(5)
    frozen.flags.writeable = False
    arrays = [numpy.arange(10.0), frozen, numpy.zeros((300, 300)), numpy.arange(6).reshape(2, 3).T]
    arrays += [numpy.zeros((4, 0)), numpy.arange(10)[::2], numpy.array(["a", None], dtype=object)]
    for array in arrays:
        decoded = echo(codec, {"in": array})["in"]
        assert decoded.dtype == array.dtype
        assert (decoded == array).all()
        assert decoded.flags.writeable == array.flags.writeable
        assert decoded.strides == pickle.loads(pickle.dumps(array, 5)).strides
    assert encode(codec, [arrays[2]])[1] == 1  # one buffer beside the pickle
    assert type(echo(codec, numpy.float64(1.5))) is numpy.float64


def test_large_buffers_are_segments_and_are_not_copied(codec: Any) -> None:
    numpy = pytest.importorskip("numpy")
    array, small = numpy.zeros(100_000), numpy.zeros(10)
    segments, _, _ = codec.encode_items([array, small], 0, 2, ALL)
    array += 1
    small += 1
    decoded = decode(codec, b"".join(segments), 2)
    assert decoded[0].all()
    assert not decoded[1].any()


def test_a_buffer_is_locked_no_longer_than_its_segment_is_kept(codec: Any) -> None:
    data = bytearray(100_000)
    segments, _, _ = codec.encode_items([pickle.PickleBuffer(data)], 0, 1, ALL)
    del segments
    data += b"a BufferError if any view were left"


def test_large_values_are_taken_from_a_payload_in_parts(codec: Any) -> None:
    numpy = pytest.importorskip("numpy")
    frozen = numpy.ones(20_000)
    frozen.flags.writeable = False
    large, number, text = bytes(100_000), 1 << 600_000, Plain("x" * 100_000)
    items = [1, {"a": large}, frozen, numpy.zeros(20_000), text, number, large, 2]
    payload = arrived(codec.encode_items(items, 0, len(items), ALL)[0])
    segments = list(payload.segments)
    decoded = decode(codec, payload, len(items))
    assert decoded[1]["a"] is segments[1]
    assert numpy.shares_memory(decoded[2], numpy.frombuffer(segments[3]))
    assert numpy.shares_memory(decoded[3], numpy.frombuffer(segments[5]))
    assert (decoded[2].flags.writeable, decoded[3].flags.writeable) == (False, True)
    assert (decoded[4], decoded[5], decoded[6:]) == (text, number, [large, 2])
    assert decoded[6] is not decoded[1]["a"]


def test_values_do_not_refer_to_the_payload(codec: Any) -> None:
    numpy = pytest.importorskip("numpy")
    items = ["text", b"bytes" * 20_000, numpy.ones(20_000), Plain("x" * 100), {"key": 1}]
    memory = bytearray(encode(codec, items))
    with memoryview(memory) as view:
        decoded = decode(codec, view, len(items))
    memory[:] = bytes(len(memory))
    memory.clear()  # a BufferError if any view were left
    assert decoded[:2] == items[:2]
    assert (decoded[2] == items[2]).all()
    assert decoded[3:] == items[3:]


@pytest.mark.parametrize("filler", [b"", bytes(100_000)], ids=["small", "large"])
def test_errors_do_not_hold_the_payload(codec: Any, filler: bytes) -> None:
    items = [filler, failing_load(ValueError), {"é": [1]}]
    memory = bytearray(encode(codec, items))
    errors: list[Any] = [codec.decode_items(memory, len(items))[1]]
    memory[memory.index("é".encode())] = 255
    memory[-2:] = b"\0\0"
    for count in (len(items), 1000):
        with memoryview(memory) as view, pytest.raises(codec.CorruptFrameError) as caught:
            codec.decode_items(view, count)
        errors.append(caught)
    memory.clear()  # a BufferError if any view were left
    assert len(errors) == 3


# -- results of which some were taken before (RECOVERY-2 of _parent/recovery.py) -------------------


@pytest.mark.parametrize("skip", range(6))
def test_skipped_pickles_are_not_loaded_and_other_values_are_as_always(
    codec: Any, skip: int
) -> None:
    items = [{"a": 1}, Plain([1]), {"a": 2, "b": 3}, Plain([2]), {"b": 4}]
    values, failures = codec.decode_items(encode(codec, items), len(items), skip)
    assert failures is None
    skipped = [None if type(item) is Plain else item for item in items[:skip]]
    assert [*map(shape, values)] == [*map(shape, skipped + items[skip:])]


def test_a_skipped_pickle_cannot_fail(codec: Any) -> None:
    items = [failing_load(ValueError), 1, failing_load(ValueError)]
    values, failures = codec.decode_items(encode(codec, items), 3, 1)
    assert values == [None, 1, None]
    assert list(failures) == [2]


# -- references (CODEC-12) -------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Any]:
    """A shared object, in a process that has a pool."""

    class Engine:
        def hold(self, memory: object) -> None:
            """Nothing waits that would need it."""

    engine = Engine()
    sharing.add_engine(engine)
    with aiomultiprocess.share({"a": [1, 2]}) as shared:
        yield shared
    sharing.take()


@pytest.mark.parametrize("nest", [lambda x: x, lambda x: [1, x], lambda x: ((x,), {"key": x})])
def test_a_shared_object_travels_as_its_number(codec: Any, shared: Any, nest: Any) -> None:
    item = nest(shared)
    segments, count, error = codec.encode_items([item, 7], 0, 2, ALL)
    assert (count, error) == (2, None)
    assert len(b"".join(segments)) < 130 if item is not shared else len(segments[0]) == 11
    assert sharing.take() == (shared._memory,)
    assert sharing.take() == ()
    (value, seven), failures = codec.decode_items(b"".join(segments), 2)
    assert (seven, failures) == (7, None)
    while not hasattr(value, "value"):
        value = value[0] if type(value) is tuple else value[1]
    assert value.value == {"a": [1, 2]}


def test_an_item_that_holds_a_shared_object_twice_holds_it_twice_afterwards(
    codec: Any, shared: Any
) -> None:
    ((first, second),), failures = codec.decode_items(encode(codec, [[shared, shared]]), 1)
    assert first is second
    assert failures is None


@pytest.mark.row("H186")
def test_code_that_runs_while_an_object_is_found_sees_no_sequence_with_holes(
    codec: Any, shared: Any
) -> None:
    seen = 0

    def look(number: int) -> Any:
        nonlocal seen
        for found in gc.get_objects():
            if type(found) in (list, tuple):
                seen += len([*found])  # a hole would end this process
        return shared_objects.receive(number)

    item = [1, (2, [0, shared, 3], (), []), 4]
    encoded = codec.encode_items([item], 0, 1, ALL)[0]
    sharing.take()
    codec.receive_references(look)
    try:
        ((one, inner, four),), failures = codec.decode_items(b"".join(encoded), 1)
    finally:
        codec.receive_references(shared_objects.receive)
    assert failures is None
    assert seen
    assert (one, inner[0], inner[1][2], inner[2:], four) == (1, 2, 3, ((), []), 4)
    found = gc.get_objects()
    assert all(any(value is each for each in found) for value in (inner, inner[1]))


@pytest.mark.row("H195")
@pytest.mark.parametrize("error", [OSError, TypeError, IndexError, MemoryError, SystemExit])
def test_an_object_that_cannot_be_made_is_the_failure_of_its_item(
    codec: Any, shared: Any, error: type[BaseException]
) -> None:
    with aiomultiprocess.share(1) as other:
        items = [1, [shared], [2, ({other, shared, None}, "x")], {shared: 3, other: 4}, {"y": 5}, 6]
        encoded = encode(codec, items)
    sharing.take()

    def refuse(_: int) -> Any:
        raise error("no descriptor")

    codec.receive_references(refuse)
    try:
        values, failures = codec.decode_items(encoded, len(items))
        skipped = codec.decode_items(encoded, len(items), 3)
    finally:
        codec.receive_references(shared_objects.receive)
    assert values == [1, None, None, None, {"y": 5}, 6]
    assert [(at, type(failures[at])) for at in failures] == [(1, error), (2, error), (3, error)]
    assert skipped[0] == values
    assert list(skipped[1]) == [3]


@pytest.mark.row("H195")
def test_an_interrupt_while_an_object_is_made_is_no_failure(codec: Any, shared: Any) -> None:
    encoded = encode(codec, [[1, (shared, 2)]])
    sharing.take()

    def interrupt(_: int) -> Any:
        raise KeyboardInterrupt

    codec.receive_references(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            codec.decode_items(encoded, 1)
    finally:
        codec.receive_references(shared_objects.receive)


@pytest.mark.row("H186")
def test_a_reducer_may_empty_the_list_that_is_encoded(codec: Any) -> None:
    items: list[Any] = []
    items += [1, Emptying(items), 3]
    segments, count, _ = codec.encode_items(items, 0, 3, ALL)
    assert count in (1, 2)
    assert items == []
    assert decode(codec, b"".join(segments), count)[0] == 1


class Emptying:
    """Empties the list that holds it, and so loses its last reference, while it is pickled."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __reduce__(self) -> Any:
        self.items.clear()
        return complex, (1, 2)


def test_a_released_object_is_pickled_while_a_task_may_need_it(codec: Any, shared: Any) -> None:
    memory = shared._memory
    shared.release()
    (value,), failures = codec.decode_items(encode(codec, [shared]), 1)
    assert failures is None
    assert value.value == {"a": [1, 2]}
    assert memory in sharing.take()


def test_nothing_is_noted_in_a_process_without_pools(
    codec: Any, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "getpid", lambda: -1)
    encode(codec, [shared])
    assert sharing.take() == ()


@pytest.mark.parametrize("size", range(8))
def test_a_reference_that_is_cut_off_is_corrupt(codec: Any, shared: Any, size: int) -> None:
    with pytest.raises(ValueError, match="before byte"):
        codec.decode_items(bytes([tags.REFERENCE]) + bytes(size), 1)
