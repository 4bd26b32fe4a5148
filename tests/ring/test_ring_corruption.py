"""The ring over memory that no sound peer wrote gives an error or data, never a fault.

The rules: RING-1 to RING-10 of amp_ext/ring.h.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("amp_ext.ring", reason="the ring is part of the extension")

from hypothesis import given, settings
from hypothesis import strategies as st

import ring_support
from amp_ext.ring import (
    BEGIN,
    END,
    WHOLE,
    Consumer,
    Mapping,
    Producer,
    RingCorruptError,
    RingError,
)
from ring_support import (
    CAPACITY,
    CURSORS,
    DATA,
    DOWN_HEAD,
    DOWN_TAIL,
    ENTRIES,
    MAGIC,
    PADDING,
    PAGE,
    UP_TAIL,
    VERSION,
    MakeMapping,
    Words,
    fill_up,
    read_all,
)

make = ring_support.make
lane = ring_support.lane


HEADERS = {
    "fresh memory": (0, 0, "no known type"),
    "an unknown type": (8, 0x41414141, "no known type"),
    "an unknown flag": (8, DATA | 4, "no known type"),
    "longer than published": (25, DATA | WHOLE, "longer"),
    "longer than anything": (2**32 - 1, DATA | WHOLE, "longer"),
    "so long that its size overflows": (2**32 - 7, DATA | WHOLE, "longer"),
    "padding at the beginning": (8, PADDING, "padding"),
    "a middle without a beginning": (8, DATA, "order"),
    "an end without a beginning": (8, DATA | END, "order"),
}


@pytest.mark.row("C30")
@pytest.mark.parametrize(("length", "type_", "message"), HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_no_producer_writes_poisons(
    make: MakeMapping, length: int, type_: int, message: str
) -> None:
    """RING-5, RING-6, RING-8."""
    mapping = make(64)
    consumer = mapping.down_consumer()
    with Words(mapping) as words:
        words.header(0, length, type_)
        words[DOWN_TAIL] = 32
    for _ in range(2):
        with pytest.raises(RingCorruptError, match=message):
            consumer.read()
    for call in (consumer.release, consumer.sleep, consumer.awake):
        with pytest.raises(RingCorruptError, match=message):
            call()


@pytest.mark.parametrize(
    ("start", "length", "tail"),
    [(32, 8, 64), (32, 24, 64), (48, 16, 88), (48, 0, 72)],
    ids=["short of the end", "nothing after it", "past the end", "before the end"],
)
def test_padding_that_is_not_between_a_record_and_the_end_poisons(
    make: MakeMapping, start: int, length: int, tail: int
) -> None:
    """RING-6."""
    mapping = make(64, start)
    consumer = mapping.down_consumer()
    with Words(mapping) as words:
        words.header(start, length, PADDING)
        words[DOWN_TAIL] = tail
    with pytest.raises(RingCorruptError):
        consumer.read()


@pytest.mark.row("C30")
@pytest.mark.parametrize("start", CURSORS)
@pytest.mark.parametrize("step", [1, 7, 72, -8, 2**32, 2**63])
def test_a_cursor_out_of_order_poisons(make: MakeMapping, start: int, step: int) -> None:
    """RING-2, for both ends."""
    mapping = make(64, start)
    producer, consumer = mapping.down_producer(), mapping.down_consumer()
    fill_up(producer)
    read_all(consumer)
    consumer.release()
    assert producer.free(), "both have seen both cursors"
    with Words(mapping) as words:
        words[DOWN_TAIL] += step
        words[DOWN_HEAD] += step
    with pytest.raises(RingCorruptError, match="tail"):
        consumer.read()
    with pytest.raises(RingCorruptError, match="head"):
        fill_up(producer)
    for call in (producer.free, producer.publish, producer.want_room):
        with pytest.raises(RingCorruptError, match="head"):
            call()


def test_ends_are_not_opened_on_cursors_out_of_order(make: MakeMapping) -> None:
    """RING-2."""
    for offset, value in ((DOWN_TAIL, 4), (DOWN_HEAD, 4), (DOWN_TAIL, 1000)):
        mapping = make(64)
        with Words(mapping) as words:
            words[offset] = value
        with pytest.raises(RingCorruptError):
            mapping.down_producer()
        with pytest.raises(RingCorruptError):
            mapping.down_consumer().read()


def poke(call: Callable[[], Any]) -> None:
    """Whatever the memory holds, a call returns or raises this."""
    with suppress(RingError):
        call()


@pytest.mark.row("C30")
@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_as_the_mapping_are_an_error_or_data(data: st.DataObject) -> None:
    capacity = data.draw(st.sampled_from([64, 256]))
    size = PAGE + 2 * capacity
    mapping = Mapping.create(capacity)
    header = st.builds(
        lambda length, type_: (type_ << 32 | length).to_bytes(8, "little"),
        st.integers(0, capacity) | st.sampled_from([2**32 - 1, 2**31]),
        st.sampled_from([PADDING, DATA, DATA | BEGIN, DATA | END, DATA | WHOLE, 0]),
    )
    body = b"".join(data.draw(st.lists(header, max_size=capacity // 4)))
    with Words(mapping) as words:
        control = bytes(words._memory[:256])
        noise = random.Random(data.draw(st.integers(0, 2**32))).randbytes(size)
        words.fill(control + noise[256 : size - len(body)] + body)
        if data.draw(st.booleans()):
            words[DOWN_HEAD] = words[UP_TAIL + 128] = start = data.draw(st.integers(0, 2**61)) * 8
            words[DOWN_TAIL] = words[UP_TAIL] = start + data.draw(st.integers(0, capacity // 8)) * 8
    for take in (mapping.down_consumer, mapping.up_consumer):
        poke(lambda take=take: use_consumer(take()))  # type: ignore[misc]  # a loop variable bound
    for take in (mapping.down_producer, mapping.up_producer):
        poke(lambda take=take: use_producer(take()))  # type: ignore[misc]  # a loop variable bound
    mapping.close()


def use_consumer(consumer: Consumer) -> None:
    for _, record in read_all(consumer):
        assert len(record) <= PAGE
    consumer.release()
    consumer.sleep()
    consumer.awake()


def use_producer(producer: Producer) -> None:
    for _ in range(20):
        producer.free()
        producer.write((b"record",))
    producer.write_some((b"frame" * 10,))
    producer.publish()
    producer.want_room()


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (MAGIC, 0, "not a ring"),
        (VERSION, 1, "not a ring"),
        (CAPACITY, 128, "capacity"),
        (CAPACITY, 63, "capacity"),
        (CAPACITY, 2**64 - 64, "capacity"),
        (CAPACITY, 2**63, "capacity"),
        (ENTRIES, 9, "capacity"),
        (ENTRIES, 2**16 + 1, "capacity"),
        (ENTRIES, 2**60, "capacity"),
    ],
)
def test_a_mapping_that_does_not_say_what_it_is_is_not_attached(
    make: MakeMapping, offset: int, value: int, message: str
) -> None:
    mapping = make(64)
    with Words(mapping) as words:
        words[offset] = value
    with pytest.raises(RingCorruptError, match=message):
        Mapping.attach(os.dup(mapping.fd))
