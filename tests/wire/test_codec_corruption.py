"""Payloads that no encoder made are refused (CODEC-7), alike by both codecs, and nothing leaks."""

from __future__ import annotations

import gc
import pickle
import random
import struct
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomultiprocess._pure import tags
from aiomultiprocess._wire import frames
from codec_support import (
    ALL,
    CODECS,
    NATIVE,
    Plain,
    arrived,
    decode,
    encode,
    failing_dump,
    failing_load,
    shape,
)

#: Not a pickle: random pickles may do anything, and allocate what they like.
NOT_PICKLE = bytes.maketrans(bytes([tags.PICKLE]), bytes([tags.KEY]))


@pytest.fixture(params=CODECS, ids=lambda codec: codec.__name__.partition(".")[0])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


# -- payloads that no encoder made (CODEC-7) -------------------------------------------------------

SAMPLE = [*NATIVE, {"a": 1, "b": [1, 2, 3, 4]}, {"a": 2, "b": "x" * 300}, *range(300), b"y" * 300]


def outcome(codec: Any, payload: bytes | frames.PayloadParts, count: int) -> Any:
    """The result of a payload: the shapes of its values, or "corrupt"; other errors are raised."""
    try:
        decoded = decode(codec, payload, count)
    except codec.CorruptFrameError:
        return "corrupt"
    return [shape(item) for item in decoded]


def agree(payload: bytes, count: int) -> Any:
    outcomes = [outcome(codec, payload, count) for codec in CODECS]
    assert all(one == outcomes[0] for one in outcomes)
    return outcomes[0]


@pytest.mark.row("G72")
@pytest.mark.parametrize("count", [1 << 31, 1 << 32, sys.maxsize, sys.maxsize + 1, 1 << 64, -1])
def test_a_count_of_any_size_is_corrupt_and_no_overflow(codec: Any, count: int) -> None:
    """On a platform of 32 bits those from 2^31 on are beyond a size, here those from 2^63 on."""
    payload = encode(codec, ["a", {"key": [1, 2, 3, 4]}])
    for one in (payload, arrived([payload])):
        with pytest.raises(codec.CorruptFrameError, match=f"^{count} members, before byte 0 of "):
            codec.decode_items(one, count)


def test_every_shorter_payload_is_corrupt(codec: Any) -> None:
    items = [*SAMPLE[:60], Plain("a pickle"), pickle.PickleBuffer(b"a buffer"), [1, 2, 3, 4, 5.5]]
    payload = encode(codec, items)
    for size in range(len(payload)):
        with pytest.raises(codec.CorruptFrameError):
            codec.decode_items(payload[:size], len(items))


def test_a_payload_of_another_count_is_corrupt(codec: Any) -> None:
    for items in (["a"], [1, 2, 3, 4, 5], [{"a": 1}, {"a": 2}], [Plain(1)]):
        payload = encode(codec, items)
        for count in (0, len(items) - 1, len(items) + 1, 1 << 31, (1 << 32) - 1, -1):
            with pytest.raises(codec.CorruptFrameError):
                codec.decode_items(payload, count)
    with pytest.raises(codec.CorruptFrameError):
        codec.decode_items(encode(codec, [1]) + b"\0", 1)


def long(number: int) -> bytes:
    return b"\xff" + struct.pack("=Q", number)


@pytest.mark.parametrize(
    "payload",
    [
        bytes([23]),
        bytes([255]),
        bytes([tags.KEY, 0]),
        bytes([tags.DICT, 1, tags.KEY, 0, tags.NONE]),
        bytes([tags.DICT, 1, tags.LIST, 0, tags.NONE]),
        bytes([tags.DICT, 1, tags.INT8S, 1, 1, tags.NONE]),
        bytes([tags.DICT, 2, tags.NONE, tags.NONE, tags.NONE, tags.NONE]),
        bytes([tags.SET, 1, tags.LIST, 0]),
        bytes([tags.SET, 2, tags.TRUE, tags.INT8, 1]),
        bytes([tags.FROZENSET, 4, tags.INT8S, 4, 1, 2, 3, 4]),
        bytes([tags.LIST, 1, tags.PICKLE, 0, 0]),
        bytes([tags.LIST, 1, tags.INT8S, 2, 1, 1]),
        bytes([tags.LIST, 1, tags.INT8S, 0]),
        bytes([tags.INT8S, 2, 1, 1]),
        bytes([tags.STR, 2, 0xC3, 0x28]),
        bytes([tags.STR, 1, 0xC3]),
        bytes([tags.STR, 4, 0xF8, 0x88, 0x80, 0x80]),
        bytes([tags.LIST, 1] * 33 + [tags.NONE]),
        bytes([tags.LIST, 1] * 100_000 + [tags.NONE]),
        bytes([tags.STR]) + long(1 << 63),
        bytes([tags.BYTES]) + long((1 << 64) - 1),
        bytes([tags.LIST]) + long(1 << 40),
        bytes([tags.TUPLE]) + long((1 << 63) - 1),
        bytes([tags.DICT]) + long(1 << 62),
        bytes([tags.SET]) + long(1 << 40),
        bytes([tags.BIGINT]) + long(1 << 40),
        bytes([tags.INT64S]) + long(1 << 61),
        bytes([tags.FLOATS]) + long((1 << 61) + 1),
        bytes([tags.PICKLE]) + long(1 << 40),
        bytes([tags.PICKLE, 1, 0]) + long(1 << 40),
        bytes([tags.PICKLE, 0]) + long(1 << 40),
    ],
    ids=lambda payload: payload[:12].hex(),
)
def test_a_payload_that_breaks_the_rules_is_corrupt(codec: Any, payload: bytes) -> None:
    with pytest.raises(codec.CorruptFrameError, match="before byte"):
        codec.decode_items(payload, 1)


def test_unusual_but_sound_payloads_are_taken() -> None:
    empty = bytes([tags.BIGINT, 0])
    assert agree(empty, 1) == [(int, 0)]
    assert agree(bytes([tags.INT32S, 1, 1, 0, 0, 0, tags.STR]) + long(2) + b"ab", 2) == (
        [(int, int.from_bytes(b"\1\0\0\0", sys.byteorder)), (str, "ab")]
    )


def mutate(payload: bytes, chance: random.Random) -> bytes:
    mutant = bytearray(payload)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(mutant))
        end = min(len(mutant), at + chance.choice((1, 2, 8, 40)))
        kind = chance.randrange(5)
        if kind == 0:
            mutant[at] = chance.randrange(256)
        elif kind == 1:
            mutant[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del mutant[at:end]
        elif kind == 3:
            mutant[at:at] = mutant[at:end]
        else:
            mutant[at] = chance.randrange(tags.REFERENCE + 1)
        if not mutant:
            return b"\0"
    return bytes(mutant).translate(NOT_PICKLE)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_payloads_are_corrupt_or_values_to_both_alike(seed: int) -> None:
    chance = random.Random(seed)
    corrupt = 0
    for _ in range(1000):
        items = chance.sample(SAMPLE, chance.randrange(1, 12))
        payload = encode(CODECS[-1], items)
        for _ in range(4):
            corrupt += agree(mutate(payload, chance), len(items)) == "corrupt"
    assert 1000 < corrupt < 4000


@given(st.binary(max_size=64), st.integers(0, 8))
@settings(max_examples=1000)
def test_random_bytes_are_corrupt_or_values_to_both_alike(payload: bytes, count: int) -> None:
    agree(payload.translate(NOT_PICKLE), count)


# -- payloads in parts (CODEC-8) -------------------------------------------------------------------

LARGE = [
    b"l" * 70_000,
    {"a": b"m" * 80_000},
    5,
    pickle.PickleBuffer(bytearray(90_000)),
    b"n" * 65_536,
]


def parts(segments: list[Any]) -> frames.PayloadParts:
    return frames.PayloadParts(segments, sum(map(len, segments)))


def large_segments() -> list[Any]:
    payload = arrived(CODECS[0].encode_items(LARGE, 0, len(LARGE), ALL)[0])
    assert decode(CODECS[0], arrived(payload.segments), len(LARGE)) == [
        bytearray(90_000) if type(item) is pickle.PickleBuffer else item for item in LARGE
    ]
    return payload.segments


def test_parts_that_no_encoder_made_are_corrupt(codec: Any) -> None:
    whole = large_segments()
    wrong: list[list[Any]] = [[]]
    for at, segment in enumerate(whole):
        other = bytearray if type(segment) is bytes else bytes
        wrong += [
            [*whole[:at], *whole[at + 1 :]],
            [*whole[:at], segment, *whole[at:]],
            [*whole[:at], segment[:-1], *whole[at + 1 :]],
            [*whole[:at], segment + b"\0", *whole[at + 1 :]],
            [*whole[:at], segment[:1], segment[1:], *whole[at + 1 :]],
            [*whole[:at], other(segment), *whole[at + 1 :]],
        ]
    wrong += [[*whole[:at], whole[at] + whole[at + 1], *whole[at + 2 :]] for at in range(7)]
    for segments in wrong:
        with pytest.raises(codec.CorruptFrameError, match="before byte"):
            codec.decode_items(parts(segments), len(LARGE))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_parts_are_corrupt_or_values_to_both_alike(seed: int) -> None:
    chance = random.Random(seed)
    corrupt = 0
    for _ in range(200):
        # without the pickle, which may do anything
        segments = arrived(CODECS[0].encode_items(LARGE[:3], 0, 3, ALL)[0]).segments
        at = chance.choice([at for at, segment in enumerate(segments) if len(segment) < 1000])
        segments[at] = mutate(segments[at], chance)
        outcomes = [outcome(codec, parts(segments), 3) for codec in CODECS]
        assert all(one == outcomes[0] for one in outcomes)
        corrupt += outcomes[0] == "corrupt"
    assert corrupt > 50


# -- memory ----------------------------------------------------------------------------------------


def test_encoding_and_decoding_leak_nothing(codec: Any) -> None:
    shared = [1, 2]
    items = [*SAMPLE, [shared, shared], Plain(1), failing_load(ValueError), bytes(70_000)]
    payload = encode(codec, items)
    mutants = [mutate(payload, random.Random(seed)) for seed in range(50)]

    def everything() -> None:
        encode(codec, items)
        codec.encode_items([*items, failing_dump(ValueError)], 0, len(items) + 1, ALL)
        codec.decode_items(payload, len(items))
        codec.decode_items(arrived(codec.encode_items(LARGE, 0, 5, ALL)[0]), 5)
        with pytest.raises(codec.CorruptFrameError):
            codec.decode_items(parts(large_segments()[:-1]), 5)
        for mutant in mutants:
            outcome(codec, mutant, len(items))

    everything()
    blocks = []
    for _ in range(4):
        for _ in range(5):
            everything()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[1] < 100
