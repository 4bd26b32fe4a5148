"""The transport contract: frames arrive whole and in order, and nothing blocks or floods a loop.

Every backend passes these tests, regardless of how it works inside. LINK-1 ... LINK-10 are the
rules of _transport/link.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from typing import Any

import pytest

import scarcity
import transport_support
from aiomultiprocess._transport import pipe, shm
from aiomultiprocess._transport.link import BATCH_BYTES, BATCH_FRAMES
from aiomultiprocess._wire import frames
from aiomultiprocess._wire.frames import Kind
from transport_support import (
    FLOOD,
    Pair,
    flood,
    pattern,
    say,
    send,
)

made = transport_support.made
pair = transport_support.pair

#: Around every size at which something changes: records, fragments, the ring, the pipe's buffers.
EDGES = [shm.CAPACITY >> shift for shift in range(4)] + [pipe.BUFFER_SIZE, pipe.LARGE_SEGMENT]
SIZES = sorted(
    {0, 1, 7, 8, 9, 5 * shm.CAPACITY + 3} | {e + d for e in EDGES for d in (-41, -32, -1, 0, 1)}
)

# -- LINK-1: order, wholeness, sizes ---------------------------------------------------------------


async def test_every_header_field_arrives_as_it_was_sent(pair: Pair) -> None:
    pair.listen()
    small = (1, 0, 0, 0, 0, 0, b"")
    large = (255, 255, 2**32 - 1, 2**64 - 1, 2**32 - 2, 2**32 - 3, b"payload")
    for kind, flags, count, chunk_id, offset, function, payload in (small, large):
        pair.parent.link.send(
            kind, flags=flags, count=count, chunk_id=chunk_id, offset=offset, function=function,
            payload=[payload],
        )  # fmt: skip
    pair.parent.link.flush()
    await pair.worker.receives(2)
    assert pair.worker.frames == [small, large]


@pytest.mark.row("C27")
@pytest.mark.parametrize("size", SIZES)
async def test_a_payload_of_any_size_arrives_both_ways(pair: Pair, size: int) -> None:
    pair.listen()
    down, up = pattern(size, 1), pattern(size, 2)
    say(pair.parent.link, 1, payload=down)
    say(pair.worker.link, 2, payload=up)
    await pair.worker.receives(1)
    await pair.parent.receives(1)
    assert pair.worker.payloads == [down]
    assert pair.parent.payloads == [up]


async def test_small_and_large_frames_arrive_in_the_order_of_their_sending(pair: Pair) -> None:
    pair.listen()
    payloads = [pattern(size, at) for at, size in enumerate(SIZES * 2)]
    payloads[::2] = sorted(payloads[::2], key=len, reverse=True)
    for chunk_id, payload in enumerate(payloads):
        send(pair.parent.link, chunk_id, payload)
    pair.parent.link.flush()
    await pair.worker.receives(len(payloads))
    assert pair.worker.chunk_ids == list(range(len(payloads)))
    assert pair.worker.payloads == payloads


async def test_a_payload_of_several_segments_of_any_type_arrives_in_one_piece(pair: Pair) -> None:
    pair.listen()
    big = pattern(300_000)
    segments: list[frames.Segment] = [
        b"a",
        bytearray(b"bc"),
        memoryview(big)[5:],
        b"",
        big,
        b"d",
    ] * 20
    pair.parent.link.send(Kind.CHUNK, payload=segments)
    pair.parent.link.flush()
    await pair.worker.receives(1)
    assert pair.worker.payloads == [b"".join(segments)]


async def test_many_frames_wrap_around_many_times(pair: Pair) -> None:
    pair.listen()
    rounds = [[pattern((at * step) % 3001) for at in range(200)] for step in range(20)]
    for payloads in rounds:
        for payload in payloads:
            send(pair.parent.link, 0, payload)
        pair.parent.link.flush()
        await pair.worker.receives(len(pair.worker.frames) + len(payloads))
    assert pair.worker.payloads == [payload for payloads in rounds for payload in payloads]


@pytest.mark.row("D39")
async def test_a_payload_over_the_limit_is_refused_with_the_limit(pair: Pair) -> None:
    pair.listen()
    segment = memoryview(bytes(1 << 26))
    with pytest.raises(ValueError, match=f"limit of {frames.MAX_PAYLOAD} bytes"):
        pair.parent.link.send(Kind.CHUNK, payload=[segment] * 1025)
    say(pair.parent.link, 1)
    await pair.worker.receives(1)
    assert pair.worker.chunk_ids == [1]


@pytest.mark.row("G49")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "behind others"])
async def test_of_a_frame_that_is_too_much_for_memory_nothing_is_sent(
    pair: Pair, waits: bool
) -> None:
    """What may change is copied if it has to wait; no part of it may be under way by then."""
    pair.listen()
    large = bytearray(160 * scarcity.MIB)
    before = flood(pair.parent.link) if waits else 0
    with scarcity.limited(32 * scarcity.MIB), pytest.raises(MemoryError):
        pair.parent.link.send(Kind.CHUNK, payload=[b"head", large])
    say(pair.parent.link, before)
    await pair.worker.receives(before + 1)
    assert pair.worker.chunk_ids == [*range(before + 1)]
    assert not pair.parent.broken
    assert not pair.worker.broken


@pytest.mark.row("G51")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize("shape", ["one view", "parts", "parts that can change"])
async def test_a_payload_that_is_too_much_for_memory_arrives_without_it(
    pair: Pair, shape: str
) -> None:
    """FRAME-5: the frames behind it arrive, and so do the parts before it."""
    pair.listen()
    taken: list[Any] = []
    pair.worker.take = lambda *frame: taken.append(list(frame[-1].segments))
    large: Any = b"x" * (160 * scarcity.MIB)
    if shape == "parts that can change":
        large = bytearray(large)
    payload = [large] if shape == "one view" else [b"head", large, b"tail"]
    pair.parent.link.send(Kind.CHUNK, payload=payload)
    pair.parent.link.flush()
    with scarcity.limited(32 * scarcity.MIB):
        await pair.worker.until(lambda: taken)
    missing = len(large)
    assert taken == [[missing] if shape == "one view" else [b"head", missing, b"tail"]]
    pair.worker.take = None
    say(pair.parent.link, 7)
    await pair.worker.receives(1)
    assert pair.worker.chunk_ids == [7]
    assert not pair.worker.broken


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("times", [1, 2], ids=["eagerly", "and when it is tried again"])
async def test_a_frame_that_the_kernel_has_no_memory_for_now_arrives_later(
    monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    real, failures = pipe._send, [OSError(code, os.strerror(code)) for _ in range(times)]

    def short_of_memory(*args: Any) -> int:
        if failures:
            raise failures.pop()
        return real(*args)

    with contextlib.closing(Pair(pipe.PipeBackend())) as pair:
        pair.listen()
        monkeypatch.setattr(pipe, "_send", short_of_memory)
        send(pair.worker.link, 1, pattern(pipe.EAGER))  # which is flushed at once
        assert len(failures) == times - 1
        assert pair.worker.link.congested
        say(pair.worker.link, 2)
        await pair.parent.receives(2)
        assert pair.parent.chunk_ids == [1, 2]
        assert pair.parent.payloads == [pattern(pipe.EAGER), b""]
        assert pair.worker.rooms == 1
        assert not pair.worker.broken
        assert not pair.parent.broken


# -- LINK-2, LINK-5: nothing blocks ------------------------------------------------------------


async def test_a_full_channel_is_congested_until_its_outbox_is_empty(pair: Pair) -> None:
    pair.parent.listen()
    count = flood(pair.parent.link)
    assert pair.parent.rooms == 0
    pair.worker.listen()
    await pair.parent.until(lambda: pair.parent.rooms)
    assert not pair.parent.link.congested
    await pair.worker.receives(count)
    assert pair.worker.chunk_ids == list(range(count))
    assert pair.parent.rooms == 1


async def test_a_frame_that_is_sent_from_on_room_keeps_its_place(pair: Pair) -> None:
    pair.parent.listen()
    count = flood(pair.parent.link)
    pair.parent.on_room = lambda: say(pair.parent.link, count)
    pair.worker.listen()
    await pair.worker.receives(count + 1)
    assert pair.worker.chunk_ids == list(range(count + 1))


@pytest.mark.row("C34")
@pytest.mark.parametrize("size", [100, 1000, 200_000, FLOOD])
async def test_two_full_directions_do_not_wait_for_each_other(pair: Pair, size: int) -> None:
    count = 2 * FLOOD // size
    for receiver in (pair.parent, pair.worker):
        receiver.listen()
        say(receiver.link, *range(count), payload=pattern(size))
        assert receiver.link.congested
    for receiver in (pair.parent, pair.worker):
        await receiver.receives(count)
        assert receiver.chunk_ids == list(range(count))


async def test_a_peer_that_answers_everything_at_once_does_not_deadlock(pair: Pair) -> None:
    pair.listen()
    pair.worker.act = lambda payload: say(pair.worker.link, 0, payload=bytes(payload))
    count = flood(pair.parent.link, 20_000)
    await pair.parent.receives(count)
    assert set(pair.parent.payloads) == {pattern(20_000)}


@pytest.mark.row("C34")
async def test_a_saturated_bell_neither_blocks_nor_loses_a_frame(pair: Pair) -> None:
    if isinstance(pair.end, shm.ShmChildEnd):
        for receiver in (pair.parent, pair.worker):
            *_, fd = receiver.link._bell.fds  # type: ignore[attr-defined]
            with contextlib.suppress(BlockingIOError):
                while True:  # an eventfd takes one of these, a pipe its size
                    os.write(fd, (2**64 - 2).to_bytes(8, "little"))
    pair.listen()
    for chunk_id in range(10):
        say(pair.parent.link, chunk_id)
        say(pair.worker.link, chunk_id)
    await pair.worker.receives(10)
    await pair.parent.receives(10)


# -- LINK-4: bounded turns -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 5_000, 100_000])
async def test_a_turn_hands_over_a_bounded_batch(pair: Pair, size: int) -> None:
    pair.listen()
    count = max(3 * BATCH_FRAMES, 3 * BATCH_BYTES // size)
    say(pair.parent.link, *range(count), payload=pattern(size))
    await pair.worker.receives(count)
    await asyncio.sleep(0)
    assert sum(pair.worker.batches) == count
    assert max(pair.worker.batches) <= BATCH_FRAMES
    assert max(pair.worker.batches) * size <= BATCH_BYTES + pipe.BUFFER_SIZE + size


async def test_the_loop_runs_other_callbacks_while_a_large_payload_arrives(pair: Pair) -> None:
    pair.listen()
    turns = 0

    def count_turns() -> None:
        nonlocal turns
        turns += 1
        if not pair.worker.frames:
            asyncio.get_running_loop().call_soon(count_turns)

    asyncio.get_running_loop().call_soon(count_turns)
    say(pair.parent.link, 1, payload=bytes(32 << 20))
    await pair.worker.receives(1)
    assert turns >= 32
