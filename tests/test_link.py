"""Small frames in and out of a ring (amp_ext/link.pyx), within one process."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("amp_ext.link", reason="it is part of the extension")

import ring_support
from aiomultiprocess.frames import HEADER, HEADER_SIZE
from amp_ext.link import Inlet, write_frame
from amp_ext.ring import BEGIN, END, WHOLE, Consumer, RingCorruptError
from ring_support import DOWN_TAIL, MakeLane, MakeMapping, Words

make = ring_support.make
lane = ring_support.lane

MOST = 128
FIELDS = (18, 2, 2**32 - 1, 2**64 - 1, 7, 2**32 - 2)  # kind, flags, count, ident, offset, function


class Heard:
    """What an inlet hands over."""

    def __init__(self, consumer: Consumer, most_frames: int = 64, quarter: int = 256) -> None:
        self.frames: list[tuple[Any, ...]] = []
        self.records: list[tuple[int, bytes]] = []
        self.quarters = 0
        self.views: list[memoryview] = []
        self.inlet = Inlet(
            consumer, self.frame, self.record, self.quarter, most_frames, 1 << 20, quarter
        )

    def frame(self, *frame: Any) -> None:
        *fields, payload = frame
        self.frames.append((*fields, bytes(payload)))
        self.views.append(payload)

    def record(self, flags: int, record: memoryview) -> None:
        self.records.append((flags, bytes(record)))

    def quarter(self) -> None:
        self.quarters += 1


def test_a_frame_arrives_with_its_header_and_payload(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    assert write_frame(producer, MOST, *FIELDS, (b"one", bytearray(b"two")))
    assert write_frame(producer, MOST, *FIELDS, ())
    producer.publish()
    assert heard.inlet.hand_over() == (2, False)
    assert heard.frames == [(*FIELDS, b"onetwo"), (*FIELDS, b"")]


def test_the_header_is_that_of_the_wire(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    kind, flags, count, ident, offset, function = FIELDS
    write_frame(producer, MOST, *FIELDS, (b"xyz",))
    producer.publish()
    record = consumer.read()
    assert record is not None
    assert record[1] == HEADER.pack(kind, flags, 0, count, ident, offset, function, 3) + b"xyz"


def test_a_payload_is_gone_when_its_handler_returns(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    write_frame(producer, MOST, *FIELDS, (b"x",))
    producer.publish()
    heard.inlet.hand_over()
    with pytest.raises(ValueError, match="released"):
        len(heard.views[0])


def test_a_frame_that_is_too_large_or_has_no_room_is_left_to_the_caller(lane: MakeLane) -> None:
    producer, _ = lane(256)
    assert not write_frame(producer, MOST, *FIELDS, (bytes(MOST - HEADER_SIZE + 1),))
    assert write_frame(producer, MOST, *FIELDS, (bytes(64),))
    assert write_frame(producer, MOST, *FIELDS, (bytes(64),))
    assert not write_frame(producer, MOST, *FIELDS, (bytes(64),))
    producer.publish()
    assert producer.published == 2


def test_a_frame_does_not_begin_within_another(lane: MakeLane) -> None:
    producer, _ = lane(1024)
    producer.write((b"first",), BEGIN)
    with pytest.raises(ValueError, match="before the one before it has ended"):
        write_frame(producer, MOST, *FIELDS, ())


@pytest.mark.parametrize(
    "record",
    [
        b"short",
        HEADER.pack(1, 0, 1, 0, 0, 0, 0, 0),  # `reserved` is not zero
        HEADER.pack(1, 0, 0, 0, 0, 0, 0, 1),  # a byte of payload is missing
        HEADER.pack(1, 0, 0, 0, 0, 0, 0, 0) + b"more",
    ],
)
def test_what_is_no_plain_frame_is_handed_over_as_it_is(lane: MakeLane, record: bytes) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    producer.write((record,))
    producer.write((b"a",), BEGIN)
    producer.write((b"b",), END)
    producer.publish()
    assert heard.inlet.hand_over() == (3, False)
    assert heard.records == [(WHOLE, record), (BEGIN, b"a"), (END, b"b")]
    assert not heard.frames


def test_a_batch_has_an_end(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer, most_frames=2)
    for _ in range(3):
        write_frame(producer, MOST, *FIELDS, ())
    producer.publish()
    assert heard.inlet.hand_over() == (2, True)
    assert heard.inlet.hand_over() == (1, False)
    assert heard.inlet.hand_over() == (0, False)


def test_room_is_given_back_while_a_batch_is_handed_over(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer, quarter=100)
    for _ in range(4):
        write_frame(producer, MOST, *FIELDS, (bytes(28),))
    producer.publish()
    heard.inlet.hand_over()
    assert heard.quarters == 2


def test_nothing_is_handed_over_after_a_stop(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    inlet = Inlet(
        consumer, lambda *frame: inlet.stop(), heard.record, heard.quarter, 64, 1 << 20, 256
    )
    for _ in range(3):
        write_frame(producer, MOST, *FIELDS, ())
    producer.publish()
    assert inlet.hand_over() == (1, False)
    assert inlet.hand_over() == (0, False)
    assert inlet.asleep()


def test_a_reader_that_sleeps_is_asleep_until_somebody_publishes(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    assert not heard.inlet.asleep()
    assert consumer.sleep()
    assert heard.inlet.asleep()
    write_frame(producer, MOST, *FIELDS, ())
    assert heard.inlet.asleep()
    assert producer.publish()
    assert not heard.inlet.asleep()


def test_a_reader_is_awake_while_it_hands_over(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    heard = Heard(consumer)
    assert consumer.sleep()
    write_frame(producer, MOST, *FIELDS, ())
    producer.publish()
    heard.inlet.hand_over()
    write_frame(producer, MOST, *FIELDS, ())
    assert not producer.publish()


def test_a_corrupt_ring_raises_and_hands_over_nothing(make: MakeMapping) -> None:
    mapping = make(256)
    heard = Heard(mapping.down_consumer())
    with Words(mapping) as words:
        words[DOWN_TAIL] = 1 << 20
    with pytest.raises(RingCorruptError):
        heard.inlet.hand_over()
    assert not heard.frames
