"""The messages of a stream (messages.py): large segments in pieces, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from aiomultiprocess._cluster import messages
from aiomultiprocess._cluster.messages import (
    LARGE,
    PIECE,
    SMALL_MOST,
    Frame,
    IncomingFrames,
    OutgoingFrames,
)
from aiomultiprocess._cluster.stream import WINDOW, FrameStream
from aiomultiprocess._wire.frames import MAX_PAYLOAD, Kind

CHUNK = int(Kind.CHUNK)


def taken(outbox: OutgoingFrames) -> list[list[bytes]]:
    """All messages, as they arrive."""
    found = []
    while outbox:
        found.append([bytes(part) for part in outbox.take()])
    return found


def arrived(found: Sequence[Any], inbox: IncomingFrames | None = None) -> list[Frame]:
    inbox = inbox or IncomingFrames()
    return [frame for message in found for frame in inbox.take(message)]


@pytest.mark.row("H143")
@pytest.mark.parametrize(
    "sizes",
    [
        [PIECE],
        [PIECE + 1],
        [3 * PIECE],
        [10, 2 * PIECE + 5, LARGE, 7, PIECE, PIECE // 2, 5 * PIECE],
        [LARGE - 1] * 1024,
        [LARGE] * 100,
    ],
)
@pytest.mark.parametrize("make", [bytes, bytearray])
def test_messages_are_bounded_and_frames_arrive_as_they_were(sizes: list[int], make: Any) -> None:
    segments = [make([at % 251]) * size for at, size in enumerate(sizes)]
    outbox = OutgoingFrames()
    for at in range(3):
        outbox.add(at, CHUNK, count=at, segments=segments)
        outbox.add(at, CHUNK, count=7, segments=[b"small"])
    found = taken(outbox)
    assert max(map(messages.size_of_message, found)) <= PIECE + SMALL_MOST + 64 * 1024
    frames = arrived(found)
    assert [(frame.slot, frame.number) for frame in frames] == [
        (0, 0), (0, 7), (1, 1), (1, 7), (2, 2), (2, 7)
    ]  # fmt: skip
    for frame in frames[::2]:
        assert frame.segments == segments
        readonly = {part.readonly for part in frame.segments if isinstance(part, memoryview)}
        assert readonly == {make is bytes}


@pytest.mark.row("H143")
def test_many_small_frames_are_several_messages() -> None:
    outbox = OutgoingFrames()
    for at in range(100):
        outbox.add(at, CHUNK, segments=[bytes(LARGE - 1)])
    found = taken(outbox)
    assert max(map(messages.size_of_message, found)) <= SMALL_MOST + LARGE + 64
    assert [frame.slot for frame in arrived(found)] == list(range(100))


@pytest.mark.row("H143")
def test_a_segment_longer_than_what_is_trusted_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "TRUSTED", PIECE + 100)
    outbox = OutgoingFrames()
    value = bytearray(range(256)) * (5 * PIECE // 256)
    outbox.add(1, CHUNK, segments=[value])
    (frame,) = arrived(taken(outbox))
    assert frame.segments == [value]


@pytest.mark.row("H143")
def test_announced_sizes_that_are_wrong_are_refused() -> None:
    def begin(size: int) -> bytes:
        outbox = OutgoingFrames()
        outbox.add(0, messages.BEGIN, chunk_id=size)
        return bytes(outbox.take()[0])

    with pytest.raises(ValueError, match="belong to no frame yet"):
        IncomingFrames().take([begin(MAX_PAYLOAD + 1)])
    with pytest.raises(ValueError, match="a segment of 11 bytes where 10 were announced"):
        IncomingFrames().take([begin(10), bytes(11)])
    outbox = OutgoingFrames()
    outbox.add(1, CHUNK, segments=[bytes(3 * PIECE)])
    found = taken(outbox)
    for broken in (found[1:], found[:1] + found[2:], [*found[:1], found[0]]):
        with pytest.raises(ValueError, match="were announced"):
            arrived(broken)


class Scarce(bytearray):
    """Memory of an outbox, which is there so many times; less than 0: always."""

    left = -1

    def __init__(self, *args: Any) -> None:
        self._take()
        super().__init__(*args)

    def __iadd__(self, more: Any) -> Any:
        self._take()
        return super().__iadd__(more)

    @staticmethod
    def _take() -> None:
        if Scarce.left == 0:
            raise MemoryError
        Scarce.left -= 1


@pytest.mark.row("H184")
@pytest.mark.parametrize(
    "sizes",
    [
        [10, 20, 30],
        [LARGE - 1],
        [LARGE - 1] * 10,
        [10, LARGE, 20],
        [10, 2 * PIECE + 5, LARGE, 7, PIECE, PIECE // 2, 5 * PIECE],
    ],
)
@pytest.mark.parametrize("before", [[], [10], [LARGE - 1] * 7, [PIECE - LARGE]])
def test_nothing_is_added_of_a_frame_for_which_there_is_no_memory(
    sizes: list[int], before: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "bytearray", Scarce, raising=False)
    segments = [bytes([at + 1]) * size for at, size in enumerate(sizes)]
    refused = 0
    for left in range(100):
        Scarce.left = -1
        outbox = OutgoingFrames()
        for size in before:
            outbox.add(0, CHUNK, segments=[bytes(size)])
        Scarce.left = left
        try:
            outbox.add(1, CHUNK, segments=segments)
        except MemoryError:
            refused += 1
        else:
            break
        Scarce.left = -1
        outbox.add(2, CHUNK, segments=[b"a", b"b"])
        outbox.add(3, CHUNK, segments=[bytes(LARGE)])
        frames = arrived(taken(outbox))
        assert [frame.slot for frame in frames] == [*[0] * len(before), 2, 3]
        found = [b"".join(map(bytes, frame.segments)) for frame in frames]
        assert found == [*map(bytes, before), b"ab", bytes(LARGE)]
    assert refused


class Recorder:
    """A comm that takes everything and says what the test has it say."""

    peer_address = "tcp://there"
    allow_offload = deserialize = True

    def __init__(self) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[Any] = []

    async def read(self) -> Any:
        return await self.said.get()

    async def write(self, message: list[Any]) -> None:
        self.written.append([message[0], *(part.data for part in message[1:])])

    def abort(self) -> None: ...

    def closed(self) -> bool:
        return False


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.row("H143")
async def test_a_stream_waits_for_a_slow_reader_and_a_ping_does_not_wait() -> None:
    pytest.importorskip("distributed")
    comm = Recorder()
    stream = FrameStream(comm, asyncio.get_running_loop())
    stream.send(1, CHUNK, segments=[bytes(4 * WINDOW)])
    stream.flush()
    await settled()
    under_way = sum(map(messages.size_of_message, comm.written))
    assert WINDOW <= under_way <= WINDOW + 2 * PIECE
    stream.send_ahead(messages.PING)
    await settled()
    (ping,) = IncomingFrames().take(comm.written.pop())
    assert ping.kind == messages.PING
    comm.said.put_nowait(messages.read_notice(under_way))
    assert await stream.read() == []
    await settled()
    assert sum(map(messages.size_of_message, comm.written)) >= under_way + WINDOW
    stream.close()


@pytest.mark.row("H143")
async def test_a_reader_says_what_it_has_read_though_it_may_not_write() -> None:
    pytest.importorskip("distributed")
    comm = Recorder()
    stream = FrameStream(comm, asyncio.get_running_loop())
    stream.send(1, CHUNK, segments=[bytes(2 * WINDOW)])
    stream.flush()
    await settled()
    outbox = OutgoingFrames()
    outbox.add(1, CHUNK, segments=[bytes(WINDOW)])
    sizes = 0
    for message in taken(outbox):
        sizes += messages.size_of_message(message)
        comm.said.put_nowait(message)
        await stream.read()
    await settled()
    said = [message[0] for message in comm.written if len(message) == 1]
    (notice,) = IncomingFrames().take([said[0]])
    assert notice.kind == messages.READ
    assert WINDOW // 2 <= notice.chunk_id <= sizes
    stream.close()
