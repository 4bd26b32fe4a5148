"""Small frames in and out of a ring (amp_ext/link.pyx), within one process."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("amp_ext.link", reason="it is part of the extension")

import ring_support
from aiomultiprocess._wire.frames import HEADER, HEADER_SIZE
from amp_ext.link import Inlet, Outlet, answer
from amp_ext.ring import (
    BEGIN,
    END,
    WHOLE,
    Consumer,
    Doorbell,
    Mapping,
    Producer,
    RingCorruptError,
)
from ring_support import DOWN_HEAD, DOWN_TAIL, MakeLane, MakeMapping, Words

make = ring_support.make
lane = ring_support.lane

MOST = 128
FIELDS = (
    18,
    2,
    2**32 - 1,
    2**64 - 1,
    7,
    2**32 - 2,
)  # kind, flags, count, chunk_id, offset, function


class Sent:
    """Records what an outlet writes, and what it leaves to its owner."""

    def __init__(self, producer: Producer) -> None:
        self.outbox: list[str] = []
        self.others: list[tuple[Any, ...]] = []
        self.corruptions: list[RingCorruptError] = []
        self.bell = Doorbell()
        self.outlet = Outlet(
            producer, self.bell, self.outbox, self.other, self.corruptions.append, MOST
        )

    def other(self, *frame: Any) -> None:
        self.others.append(frame)

    def frame(self, *payload: Any) -> bool:
        """Send one; whether it was written."""
        kind, flags, count, chunk_id, offset, function = FIELDS
        before = len(self.others)
        self.outlet.send(
            kind, flags=flags, count=count, chunk_id=chunk_id, offset=offset, function=function,
            payload=payload,
        )  # fmt: skip
        return len(self.others) == before

    def rung(self) -> bool:
        return bool(select.select([self.bell], [], [], 0)[0])


class Received:
    """Records what an inlet hands over."""

    def __init__(
        self, consumer: Consumer, sent: Sent, most_frames: int = 64, quarter: int = 256
    ) -> None:
        self.frames: list[tuple[Any, ...]] = []
        self.records: list[tuple[int, bytes]] = []
        self.batches = 0
        self.calls = 0
        self.views: list[memoryview] = []
        self.act: Callable[[], object] = lambda: None
        self.inlet = Inlet(
            consumer, sent.outlet, self.frame, self.record, self.drained, self.called,
            most_frames, 1 << 20, quarter,
        )  # fmt: skip

    def asleep(self) -> bool:
        """Whether a bell finds nothing to do here."""
        before = self.calls
        answer(Doorbell(), [self.inlet])
        return self.calls == before

    def frame(self, *frame: Any) -> None:
        *fields, payload = frame
        self.frames.append((*fields, bytes(payload)))
        self.views.append(payload)
        self.act()

    def record(self, flags: int, record: memoryview) -> None:
        self.records.append((flags, bytes(record)))

    def drained(self) -> None:
        self.batches += 1

    def called(self) -> None:
        self.calls += 1
        self.act()


def test_a_frame_arrives_with_its_header_and_payload(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent)
    assert sent.frame(b"one", bytearray(b"two"))
    assert sent.frame()
    sent.outlet.send(3)
    assert received.inlet.hand_over() == (0, False)
    sent.outlet.flush()
    assert received.inlet.hand_over() == (3, False)
    assert received.frames == [(*FIELDS, b"onetwo"), (*FIELDS, b""), (3, 0, 0, 0, 0, 0, b"")]


def test_the_header_is_that_of_the_wire(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    kind, flags, count, chunk_id, offset, function = FIELDS
    sent.frame(b"xyz")
    sent.outlet.flush()
    record = consumer.read()
    assert record is not None
    assert record[1] == HEADER.pack(kind, flags, 0, count, chunk_id, offset, function, 3) + b"xyz"


def test_a_payload_is_gone_when_its_handler_returns(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent)
    sent.frame(b"x")
    sent.outlet.flush()
    received.inlet.hand_over()
    with pytest.raises(ValueError, match="released"):
        len(received.views[0])


def test_a_frame_that_is_too_large_or_has_no_room_is_left_to_the_owner(lane: MakeLane) -> None:
    producer, _ = lane(256)
    sent = Sent(producer)
    assert not sent.frame(bytes(MOST - HEADER_SIZE + 1))
    assert sent.others == [(*FIELDS, (bytes(MOST - HEADER_SIZE + 1),))]
    assert sent.frame(bytes(64))
    assert sent.frame(bytes(64))
    assert not sent.frame(bytes(64))
    sent.outlet.flush()
    assert producer.published == 2


def test_a_frame_does_not_overtake_what_is_in_the_outbox(lane: MakeLane) -> None:
    producer, _ = lane(256)
    sent = Sent(producer)
    sent.outbox.append("it waits for room")
    assert not sent.frame()
    sent.outbox.clear()
    assert sent.frame()


def test_a_frame_does_not_begin_within_another(lane: MakeLane) -> None:
    producer, _ = lane(1024)
    producer.write((b"first",), BEGIN)
    with pytest.raises(ValueError, match="before the one before it has ended"):
        Sent(producer).frame()


def test_the_bell_is_rung_for_a_reader_that_sleeps(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    sent.frame()
    sent.outlet.flush()
    assert not sent.rung()
    assert Received(consumer, sent).inlet.drain() is False
    sent.outlet.flush()  # of nothing
    assert not sent.rung()
    sent.frame()
    sent.outlet.flush()
    assert sent.rung()


def test_nothing_is_sent_after_a_stop(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    assert sent.frame()
    sent.outlet.stop()
    sent.outlet.flush()
    sent.frame(bytes(MOST))
    assert not sent.others
    producer.publish()
    assert Received(consumer, sent).inlet.hand_over() == (1, False)


def test_corruption_is_reported_and_not_raised(make: MakeMapping) -> None:
    mapping = make(256)
    sent = Sent(mapping.down_producer())
    with Words(mapping) as words:
        words[DOWN_HEAD] = 1 << 20
    for _ in range(4):  # until the writer has to read the reader's cursor
        sent.frame(bytes(64))
    sent.outlet.flush()
    assert len(sent.corruptions) == 3  # the third and the fourth frame, and the flush
    assert not sent.others


@pytest.mark.parametrize(
    "record",
    [
        b"short",
        HEADER.pack(1, 0, 1, 0, 0, 0, 0, 0),  # `reserved` is not zero
        HEADER.pack(1, 0, 0, 0, 0, 0, 0, 1),  # a byte of payload is missing
        HEADER.pack(1, 0, 0, 0, 0, 0, 0, 0) + b"more",
    ],
)
def test_a_record_that_is_no_whole_frame_is_handed_over_as_it_is(
    lane: MakeLane, record: bytes
) -> None:
    producer, consumer = lane(1024)
    received = Received(consumer, Sent(producer))
    producer.write((record,))
    producer.write((b"a",), BEGIN)
    producer.write((b"b",), END)
    producer.publish()
    assert received.inlet.hand_over() == (3, False)
    assert received.records == [(WHOLE, record), (BEGIN, b"a"), (END, b"b")]
    assert not received.frames


def test_a_batch_has_an_end(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent, most_frames=2)
    for _ in range(3):
        sent.frame()
    sent.outlet.flush()
    assert received.inlet.hand_over() == (2, True)
    assert received.inlet.hand_over() == (1, False)
    assert received.inlet.hand_over() == (0, False)


def test_the_end_of_each_batch_is_reported_and_the_reader_sleeps_after_the_last(
    lane: MakeLane,
) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent, most_frames=2)
    for _ in range(3):
        sent.frame()
    sent.outlet.flush()
    assert received.inlet.drain()
    assert received.batches == 1
    assert not received.asleep()
    assert not received.inlet.drain()
    assert received.batches == 2
    assert received.asleep()
    assert not received.inlet.drain()
    assert received.batches == 2


def test_a_frame_that_comes_after_a_batch_keeps_the_reader_awake(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent, most_frames=2)
    inlet = Inlet(
        consumer, sent.outlet, received.frame, received.record, sent.outlet.flush, received.called,
        64, 1 << 20, 256,
    )  # fmt: skip
    sent.frame()
    sent.outlet.flush()
    sent.frame()  # is published by on_drained
    assert inlet.drain()
    assert not inlet.drain()


def test_room_is_given_back_while_a_batch_is_handed_over(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent, quarter=100)
    room: list[int] = []
    received.act = lambda: room.append(producer.free())
    for _ in range(4):
        sent.frame(bytes(28))
    while sent.frame(bytes(28)):
        pass
    full = producer.free()
    sent.outlet.flush()
    received.inlet.hand_over()
    assert room[0] == room[1] == full
    assert room[2] > full


def test_nothing_is_handed_over_after_a_stop(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent)
    received.act = received.inlet.stop
    for _ in range(3):
        sent.frame()
    sent.outlet.flush()
    assert not received.inlet.drain()
    assert len(received.frames) == 1
    assert not received.batches
    assert received.inlet.hand_over() == (0, False)
    assert received.asleep()


def test_a_reader_stays_asleep_until_a_frame_is_published(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent)
    assert not received.asleep()
    assert consumer.sleep()
    assert received.asleep()
    sent.frame()
    assert received.asleep()
    assert producer.publish()
    assert not received.asleep()


def test_a_reader_is_awake_while_it_hands_over(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    sent = Sent(producer)
    received = Received(consumer, sent)
    assert consumer.sleep()
    sent.frame()
    producer.publish()
    received.inlet.hand_over()
    sent.frame()
    assert not producer.publish()


class Street:
    """Some lanes, whose readers sleep behind one bell."""

    def __init__(self, make: MakeMapping) -> None:
        self.bell = Doorbell()
        self.senders, self.readers = [], []
        for _ in range(3):
            mapping: Mapping = make(256)
            consumer = mapping.down_consumer()
            sent = Sent(mapping.down_producer())
            self.senders.append(sent)
            self.readers.append(Received(consumer, sent))
            consumer.sleep()
        self.inlets = [reader.inlet for reader in self.readers]

    def ring(self) -> list[int]:
        """How often each was called since."""
        self.bell.ring()
        before = [reader.calls for reader in self.readers]
        answer(self.bell, self.inlets)
        return [now.calls - then for now, then in zip(self.readers, before, strict=True)]

    def rings_still(self) -> bool:
        return bool(select.select([self.bell], [], [], 0)[0])


def test_a_bell_calls_the_readers_that_have_something_to_do(make: MakeMapping) -> None:
    street = Street(make)
    assert street.ring() == [0, 0, 0]
    street.senders[0].frame()
    street.senders[0].outlet.flush()
    street.senders[2].outbox.append("it waits for room")
    assert street.ring() == [1, 0, 1]
    assert not street.rings_still()


def test_a_bell_does_not_call_readers_that_have_gone(make: MakeMapping) -> None:
    street = Street(make)
    for sent in street.senders:
        sent.outbox.append("it waits for room")
    street.readers[0].act = lambda: [inlet.stop() for inlet in street.inlets[1:]]
    assert street.ring() == [1, 0, 0]


def test_a_bell_rings_on_for_readers_that_an_interrupt_kept_from_being_called(
    make: MakeMapping,
) -> None:
    street = Street(make)
    for sent in street.senders:
        sent.outbox.append("it waits for room")

    def interrupt() -> None:
        raise KeyboardInterrupt

    street.readers[0].act = interrupt
    with pytest.raises(KeyboardInterrupt):
        street.ring()
    assert street.rings_still()


def test_a_corrupt_ring_raises_and_hands_over_nothing(make: MakeMapping) -> None:
    mapping = make(256)
    received = Received(mapping.down_consumer(), Sent(mapping.down_producer()))
    with Words(mapping) as words:
        words[DOWN_TAIL] = 1 << 20
    with pytest.raises(RingCorruptError):
        received.inlet.hand_over()
    assert not received.frames
