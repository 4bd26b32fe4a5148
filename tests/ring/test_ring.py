"""The ring of amp_ext: records, buffers, room and wake-ups, within one process.

The rules: RING-1 to RING-10 of amp_ext/ring.h, MAPPING-1 and MAPPING-2 of amp_ext/ring.pyx.
"""

from __future__ import annotations

import random
import threading

import pytest

pytest.importorskip("amp_ext.ring", reason="the ring is part of the extension")

import ring_support
from amp_ext.ring import (
    BEGIN,
    END,
    WHOLE,
    RingError,
)
from ring_support import (
    CURSORS,
    MakeLane,
    fill_up,
    read_all,
)

make = ring_support.make
lane = ring_support.lane


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.row("C27")
@pytest.mark.parametrize("start", CURSORS)
@pytest.mark.parametrize("capacity", [64, 256])
def test_every_length_arrives_whole_or_is_refused_by_name(
    lane: MakeLane, capacity: int, start: int
) -> None:
    """RING-5, RING-7: also across the end, and across 2^32 and 2^64."""
    producer, consumer = lane(capacity, start)
    for length in range(capacity + 2):
        sent = bytes(random.Random(length).randbytes(length))
        if length > producer.max_payload:
            with pytest.raises(
                ValueError, match=f"at most {capacity // 2 - 8} bytes, not {length}"
            ):
                producer.write((sent,))
            continue
        assert producer.write((sent,))
        producer.publish()
        assert read_all(consumer) == [(WHOLE, sent)]
        consumer.release()


@pytest.mark.row("C27")
@pytest.mark.parametrize("start", CURSORS)
def test_every_frame_arrives_in_fragments_that_the_reader_can_join(
    lane: MakeLane, start: int
) -> None:
    """RING-8."""
    producer, consumer = lane(64, start)
    for length in range(1, 200):
        sent, got, flags, offset = random.Random(length).randbytes(length), b"", [], 0
        while offset < length:
            offset += producer.write_some((sent[:5], b"", sent[5:]), offset)
            producer.publish()
            for flag, record in read_all(consumer):
                flags.append(flag)
                got += record
            consumer.release()
        assert got == sent
        assert flags[0] & BEGIN
        assert flags[-1] & END
        assert not any(flag & BEGIN for flag in flags[1:])
        assert not any(flag & END for flag in flags[:-1])


def test_nothing_is_visible_before_it_is_published(lane: MakeLane) -> None:
    producer, consumer = lane()
    producer.write((b"one",))
    producer.write((b"two",))
    assert consumer.read() is None
    assert producer.published == 0
    producer.publish()
    assert [record for _, record in read_all(consumer)] == [b"one", b"two"]
    assert producer.published == 2


def test_what_is_read_is_not_overwritten_before_it_is_released(lane: MakeLane) -> None:
    """RING-4."""
    producer, consumer = lane(64)
    fill_up(producer)
    record = consumer.read()
    assert record is not None
    with record[1] as view:
        assert not producer.write((b"overwritten",))
        assert view == bytes(8)


def test_flags_that_do_not_follow_are_refused_by_the_writer(lane: MakeLane) -> None:
    """RING-8."""
    producer, consumer = lane()
    with pytest.raises(ValueError, match="flags 0"):
        producer.write((b"middle",), 0)
    with pytest.raises(ValueError, match="flags 4"):
        producer.write((b"unknown",), 4)
    producer.write((b"first",), BEGIN)
    with pytest.raises(ValueError, match="flags 3"):
        producer.write((b"whole",))
    producer.write((b"last",), END)
    producer.publish()
    assert read_all(consumer) == [(BEGIN, b"first"), (END, b"last")]


# -- buffers ---------------------------------------------------------------------------------------


def test_any_number_of_buffers_of_any_kind_are_joined(lane: MakeLane) -> None:
    producer, consumer = lane(1024)
    parts = [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", *(bytes([i]) for i in range(20))]
    assert producer.write(parts)
    assert producer.write(())
    producer.publish()
    assert read_all(consumer) == [(WHOLE, b"abc" + bytes(range(20))), (WHOLE, b"")]


@pytest.mark.parametrize("count", [1, 20])
def test_a_part_that_is_no_flat_buffer_is_refused_and_nothing_is_written(
    lane: MakeLane, count: int
) -> None:
    producer, consumer = lane()
    held = bytearray(b"held")
    for wrong in ("text", memoryview(b"abcd")[::2], None):
        with pytest.raises((TypeError, BufferError)):
            producer.write([held] * count + [wrong])  # type: ignore[list-item]  # refused at run time
    with pytest.raises(TypeError, match="sequence of bytes-like"):
        producer.write(7)  # type: ignore[arg-type]  # refused at run time
    held.append(0)  # would be a BufferError if a part were still exported
    assert not producer.publish()
    assert consumer.read() is None


def test_an_offset_outside_the_frame_is_refused(lane: MakeLane) -> None:
    producer, _ = lane()
    for parts, offset in (((b"abc",), 3), ((b"abc",), -1), ((), 0)):
        with pytest.raises(ValueError, match="outside a frame"):
            producer.write_some(parts, offset)


def test_a_large_copy_lets_other_threads_run_but_not_write(lane: MakeLane) -> None:
    """MAPPING-2."""
    producer, _ = lane(1 << 26)
    large = bytes(producer.max_payload)
    refused = 0
    while not refused:
        writer = threading.Thread(target=producer.write, args=((large,),))
        writer.start()
        while writer.is_alive():
            try:
                producer.free()
            except RingError:
                refused += 1
        writer.join()
        producer.publish()


# -- sleeping and waking ---------------------------------------------------------------------------


def test_a_sleeper_is_rung_once_for_what_comes_after(lane: MakeLane) -> None:
    """RING-9."""
    producer, consumer = lane()
    assert consumer.sleep()
    producer.write((b"one",))
    assert producer.publish()
    producer.write((b"two",))
    assert not producer.publish()
    assert producer.bells == 1


@pytest.mark.row("C33")
def test_no_reader_falls_asleep_before_it_has_read_what_is_published(lane: MakeLane) -> None:
    """RING-9."""
    producer, consumer = lane()
    producer.write((b"one",))
    assert not producer.publish()
    assert not consumer.sleep()
    producer.write((b"two",))
    assert not producer.publish(), "sleep() that returned False asks for no bell"


def test_a_reader_that_is_awake_is_not_rung(lane: MakeLane) -> None:
    producer, consumer = lane()
    assert consumer.sleep()
    consumer.awake()
    producer.write((b"one",))
    assert not producer.publish()
    assert not producer.publish(), "nothing new"


def test_a_writer_that_waits_for_room_is_rung_when_a_quarter_is_free(lane: MakeLane) -> None:
    """RING-10."""
    producer, consumer = lane(256)
    count = fill_up(producer)
    assert producer.want_room()
    rung_after = None
    for n in range(1, count + 1):
        consumer.read()
        if consumer.release():
            assert rung_after is None, "rung twice"
            rung_after = n
    assert rung_after == count // 4
    assert not producer.want_room()


def test_no_writer_waits_for_room_that_is_free(lane: MakeLane) -> None:
    """RING-10: also when the room appears between the refusal and the question."""
    producer, consumer = lane(64)
    fill_up(producer)
    read_all(consumer)
    assert not consumer.release()
    assert not producer.want_room()
    producer.write((b"next",))
    producer.publish()
    read_all(consumer)
    assert not consumer.release(), "want_room() that returned False asks for no bell"


def test_an_order_of_calls_that_could_lose_a_wake_up_is_refused(lane: MakeLane) -> None:
    """RING-10."""
    producer, consumer = lane()
    producer.write((b"one",))
    with pytest.raises(RingError, match=r"publish\(\) before want_room"):
        producer.want_room()
    producer.publish()
    consumer.read()
    with pytest.raises(RingError, match=r"release\(\) before sleep"):
        consumer.sleep()
