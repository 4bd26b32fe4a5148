"""The transport contract: every backend passes these tests, regardless of how it works inside.

The rules T1 ... T10 are those of aiomultiprocess/transport.py. Most tests hold both ends of a
channel in one event loop, where every order of events can be arranged; those that need a process
have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import multiprocessing
import os
import pickle
import selectors
import signal
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, Self

import pytest

import conftest
import transport_peers as peers
from aiomultiprocess import backend as backends
from aiomultiprocess import frames, pipe, shm
from aiomultiprocess.frames import Kind
from aiomultiprocess.transport import BATCH_BYTES, BATCH_FRAMES, Backend, ChildEnd, Link

#: More than any channel holds.
FLOOD = 4 << 20
#: Around every size at which something changes: records, fragments, the ring, the pipe's buffers.
EDGES = [shm.CAPACITY >> shift for shift in range(4)] + [pipe.BUFFER_SIZE, pipe.LARGE_SEGMENT]
SIZES = sorted(
    {0, 1, 7, 8, 9, 5 * shm.CAPACITY + 3} | {e + d for e in EDGES for d in (-41, -32, -1, 0, 1)}
)
GROWINGS = list({id(grow): grow for grow in (frames.Growing, backends.Growing)}.values())
METHODS = [
    pytest.param(name, marks=conftest.FORK_WARNING if name == "fork" else ())
    for name in multiprocessing.get_all_start_methods()
]


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every displacement shows."""
    unit = bytes((i * 7 + i // 256 + seed) % 256 for i in range(4099))
    return (unit * (size // len(unit) + 1))[:size]


class Ear:
    """Everything that one link tells, and the means to wait for it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[tuple[Any, ...]] = []
        self.batches: list[int] = []  # frames seen at each on_drained
        self.rooms = 0
        self.broken: list[BaseException] = []
        self.act: Callable[[Any], None] = lambda payload: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_broken: Callable[[], None] = lambda: None
        self._news = asyncio.Event()

    def listen(self, loop: asyncio.AbstractEventLoop | None = None) -> Self:
        loop = loop or asyncio.get_running_loop()
        self.link.start(loop, self._frame, self._room, self._break, self._drained)
        return self

    @property
    def idents(self) -> list[int]:
        return [frame[3] for frame in self.frames]

    @property
    def payloads(self) -> list[bytes]:
        return [frame[-1] for frame in self.frames]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def hears(self, count: int) -> None:
        await self.until(lambda: len(self.frames) >= count)

    def _frame(self, *frame: Any) -> None:
        self.frames.append((*frame[:-1], bytes(frame[-1])))
        self._news.set()
        self.act(frame[-1])

    def _room(self) -> None:
        self.rooms += 1
        self._news.set()
        self.on_room()

    def _break(self, error: BaseException) -> None:
        self.broken.append(error)
        self._news.set()
        self.on_broken()

    def _drained(self) -> None:
        self.batches.append(len(self.frames) - sum(self.batches))


class Pair:
    """Both ends of a channel in this process."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        link, self.end = backend.create()
        self.parent = Ear(link)
        self.worker = Ear(self.end.open())
        self.end.release()

    def listen(self) -> Self:
        self.parent.listen()
        self.worker.listen()
        return self

    def close(self) -> None:
        self.worker.link.close()
        self.parent.link.close()


@pytest.fixture
def made(backend: str) -> Iterator[Backend]:
    made = backends.select(backend).make()
    assert made.name == backend
    yield made
    made.close()


@pytest.fixture
async def pair(made: Backend) -> AsyncIterator[Pair]:
    pair = Pair(made)
    yield pair
    pair.close()


def send(link: Link, ident: int, payload: bytes = b"") -> None:
    link.send(Kind.RESULTS, ident=ident, payload=[payload] if payload else ())


def say(link: Link, *idents: int, payload: bytes = b"") -> None:
    for ident in idents:
        send(link, ident, payload)
    link.flush()


def flood(link: Link, size: int = 1000) -> int:
    """Send more than the channel holds; how many frames that were."""
    count = FLOOD // size
    say(link, *range(count), payload=pattern(size))
    assert link.congested
    return count


# -- T1: order, wholeness, sizes -------------------------------------------------------------------


async def test_every_header_field_arrives_as_it_was_sent(pair: Pair) -> None:
    pair.listen()
    small = (1, 0, 0, 0, 0, 0, b"")
    large = (255, 255, 2**32 - 1, 2**64 - 1, 2**32 - 2, 2**32 - 3, b"payload")
    for kind, flags, count, ident, offset, function, payload in (small, large):
        pair.parent.link.send(
            kind, flags=flags, count=count, ident=ident, offset=offset, function=function,
            payload=[payload],
        )  # fmt: skip
    pair.parent.link.flush()
    await pair.worker.hears(2)
    assert pair.worker.frames == [small, large]


@pytest.mark.parametrize("size", SIZES)
async def test_a_payload_of_any_size_arrives_both_ways(pair: Pair, size: int) -> None:
    pair.listen()
    down, up = pattern(size, 1), pattern(size, 2)
    say(pair.parent.link, 1, payload=down)
    say(pair.worker.link, 2, payload=up)
    await pair.worker.hears(1)
    await pair.parent.hears(1)
    assert pair.worker.payloads == [down]
    assert pair.parent.payloads == [up]


async def test_small_and_large_frames_arrive_in_the_order_of_their_sending(pair: Pair) -> None:
    pair.listen()
    payloads = [pattern(size, at) for at, size in enumerate(SIZES * 2)]
    payloads[::2] = sorted(payloads[::2], key=len, reverse=True)
    for ident, payload in enumerate(payloads):
        send(pair.parent.link, ident, payload)
    pair.parent.link.flush()
    await pair.worker.hears(len(payloads))
    assert pair.worker.idents == list(range(len(payloads)))
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
    await pair.worker.hears(1)
    assert pair.worker.payloads == [b"".join(segments)]


async def test_large_segments_arrive_as_the_bytes_or_bytearrays_they_were(pair: Pair) -> None:
    pair.listen()
    kept: list[frames.Payload] = []
    taken: list[bytes | bytearray] = []

    def act(payload: frames.Payload) -> None:
        assert isinstance(payload, frames.Parts)
        kept.append(payload)
        taken.extend(payload.segments)

    pair.worker.act = act
    for size in (200_000, FLOOD):
        taken.clear()
        big = pattern(size)
        array = bytearray(pattern(70_000, 1))
        segments = [b"a", big, b"", b"b", memoryview(array), memoryview(array).toreadonly(), big]
        pair.parent.link.send(Kind.CHUNK, ident=size, payload=segments)
        pair.parent.link.flush()
        await pair.worker.hears(len(kept) + 1)
        await pair.worker.until(lambda: taken)
        assert taken == [segment for segment in segments if len(segment)]
        assert [type(one) for one in taken] == [bytes] * 3 + [bytearray] + [bytes] * 2
        assert pair.worker.payloads[-1] == b"".join(segments)
    assert all(not payload.segments for payload in kept if isinstance(payload, frames.Parts))  # F2


async def test_a_payload_of_too_many_segments_arrives_as_one_view(pair: Pair) -> None:
    pair.listen()
    kinds: list[type] = []
    pair.worker.act = lambda payload: kinds.append(type(payload))
    for count in (frames.MAX_PARTS, frames.MAX_PARTS + 1):
        segments = [pattern(1000, at) for at in range(count)]
        pair.parent.link.send(Kind.CHUNK, payload=segments)
        pair.parent.link.flush()
        await pair.worker.hears(len(kinds) + 1)
        await pair.worker.until(lambda: kinds)
        assert pair.worker.payloads[-1] == b"".join(segments)
    assert kinds == [frames.Parts, memoryview]


@pytest.mark.parametrize("size", [100, 30_000, 400_000, FLOOD])
async def test_a_frame_is_what_its_segments_were_when_it_was_sent(pair: Pair, size: int) -> None:
    pair.listen()
    array = bytearray(pattern(size))
    for ident in range(3):
        pair.parent.link.send(Kind.CHUNK, ident=ident, payload=[b"head", memoryview(array)])
        array[:] = pattern(size, ident + 1)
        array += b"."  # a BufferError if it were still looked at
        del array[-1]
    pair.parent.link.flush()
    await pair.worker.hears(3)
    assert pair.worker.payloads == [b"head" + pattern(size, ident) for ident in range(3)]


async def test_many_frames_wrap_around_many_times(pair: Pair) -> None:
    pair.listen()
    rounds = [[pattern((at * step) % 3001) for at in range(200)] for step in range(20)]
    for payloads in rounds:
        for payload in payloads:
            send(pair.parent.link, 0, payload)
        pair.parent.link.flush()
        await pair.worker.hears(len(pair.worker.frames) + len(payloads))
    assert pair.worker.payloads == [payload for payloads in rounds for payload in payloads]


async def test_a_payload_over_the_limit_is_refused_with_the_limit(pair: Pair) -> None:
    pair.listen()
    segment = memoryview(bytes(1 << 26))
    with pytest.raises(ValueError, match=f"limit of {frames.MAX_PAYLOAD} bytes"):
        pair.parent.link.send(Kind.CHUNK, payload=[segment] * 1025)
    say(pair.parent.link, 1)
    await pair.worker.hears(1)
    assert pair.worker.idents == [1]


# -- T2, T5: nothing blocks ------------------------------------------------------------------------


async def test_a_full_channel_is_congested_until_its_outbox_is_empty(pair: Pair) -> None:
    pair.parent.listen()
    count = flood(pair.parent.link)
    assert pair.parent.rooms == 0
    pair.worker.listen()
    await pair.parent.until(lambda: pair.parent.rooms)
    assert not pair.parent.link.congested
    await pair.worker.hears(count)
    assert pair.worker.idents == list(range(count))
    assert pair.parent.rooms == 1


async def test_what_is_sent_from_on_room_keeps_its_place(pair: Pair) -> None:
    pair.parent.listen()
    count = flood(pair.parent.link)
    pair.parent.on_room = lambda: say(pair.parent.link, count)
    pair.worker.listen()
    await pair.worker.hears(count + 1)
    assert pair.worker.idents == list(range(count + 1))


@pytest.mark.parametrize("size", [100, 1000, 200_000, FLOOD])
async def test_two_full_directions_do_not_wait_for_each_other(pair: Pair, size: int) -> None:
    count = 2 * FLOOD // size
    for ear in (pair.parent, pair.worker):
        ear.listen()
        say(ear.link, *range(count), payload=pattern(size))
        assert ear.link.congested
    for ear in (pair.parent, pair.worker):
        await ear.hears(count)
        assert ear.idents == list(range(count))


async def test_a_peer_that_answers_everything_at_once_does_not_deadlock(pair: Pair) -> None:
    pair.listen()
    pair.worker.act = lambda payload: say(pair.worker.link, 0, payload=bytes(payload))
    count = flood(pair.parent.link, 20_000)
    await pair.parent.hears(count)
    assert set(pair.parent.payloads) == {pattern(20_000)}


async def test_a_saturated_bell_neither_blocks_nor_swallows(pair: Pair) -> None:
    if isinstance(pair.end, shm.ShmChildEnd):
        for ear in (pair.parent, pair.worker):
            *_, fd = ear.link._bell.fds  # type: ignore[attr-defined]
            with contextlib.suppress(BlockingIOError):
                while True:  # an eventfd takes one of these, a pipe its size
                    os.write(fd, (2**64 - 2).to_bytes(8, "little"))
    pair.listen()
    for ident in range(10):
        say(pair.parent.link, ident)
        say(pair.worker.link, ident)
    await pair.worker.hears(10)
    await pair.parent.hears(10)


# -- T3: nothing polls -----------------------------------------------------------------------------


class CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop wakes up."""

    wakeups = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.wakeups += 1
        return super().select(timeout)


def run_counted(scenario: Callable[[CountingSelector], Coroutine[Any, Any, None]]) -> None:
    selector = CountingSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario(selector))


def test_an_idle_pair_makes_no_wake_up(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        pair = Pair(made).listen()
        say(pair.parent.link, 1, payload=pattern(5000))
        say(pair.worker.link, 2, payload=pattern(500_000))
        await pair.worker.hears(1)
        await pair.parent.hears(1)
        for _ in range(5):  # what the traffic left to do, sleep() at the end of a turn, is done
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.3)  # nothing is to happen, and nothing has no event
        assert selector.wakeups - before <= 2  # to fall asleep, and to wake from it
        pair.close()

    run_counted(scenario)


def test_a_congested_pair_whose_peer_sleeps_makes_no_wake_up(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        pair = Pair(made)
        pair.parent.listen()
        flood(pair.parent.link)
        for _ in range(20):
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.2)  # as above
        assert selector.wakeups - before <= 2
        pair.close()

    run_counted(scenario)


@conftest.FORK_WARNING
async def test_a_ping_pong_of_sleepers_loses_no_wake_up(made: Backend) -> None:
    link, end = made.create()
    ear = Ear(link).listen()
    process = start("fork", peers.echo, end)
    for done in range(2000):
        say(link, done)
        await ear.hears(done + 1)
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)


@conftest.FORK_WARNING
def test_a_stream_wakes_its_reader_less_than_once_in_twenty_frames(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        link, end = made.create()
        ear = Ear(link).listen()
        process = start("fork", peers.stream, end, 20_000, 50)
        await ear.hears(1)
        before = selector.wakeups
        await ear.hears(20_000)
        assert (selector.wakeups - before) * 20 < 20_000
        assert ear.idents == list(range(20_000))
        say(link, 0)
        await finished(process)
        link.close()

    run_counted(scenario)


async def test_frames_of_one_flush_arrive_in_one_batch(pair: Pair) -> None:
    pair.listen()
    for ident in range(50):
        send(pair.parent.link, ident, pattern(100))
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.worker.frames == []
    pair.parent.link.flush()
    await pair.worker.hears(50)
    await asyncio.sleep(0)
    assert pair.worker.batches == [50]


async def test_a_batch_rings_the_bell_once(pair: Pair) -> None:
    pair.listen()
    await asyncio.sleep(0)  # shm: both ends go to sleep
    if isinstance(pair.parent.link, shm.ShmLink):
        for done in (1, 2, 3):
            say(pair.parent.link, *range(20))
            say(pair.parent.link, *range(20))  # nobody sleeps: nobody is rung
            assert pair.parent.link._producer.bells == done
            await pair.worker.hears(40 * done)
            await asyncio.sleep(0)


# -- T4: bounded turns -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 5_000, 100_000])
async def test_a_turn_hands_over_a_bounded_batch(pair: Pair, size: int) -> None:
    pair.listen()
    count = max(3 * BATCH_FRAMES, 3 * BATCH_BYTES // size)
    say(pair.parent.link, *range(count), payload=pattern(size))
    await pair.worker.hears(count)
    await asyncio.sleep(0)
    assert sum(pair.worker.batches) == count
    assert max(pair.worker.batches) <= BATCH_FRAMES
    assert max(pair.worker.batches) * size <= BATCH_BYTES + pipe.BUFFER_SIZE + size


async def test_the_loop_breathes_while_a_large_payload_arrives(pair: Pair) -> None:
    pair.listen()
    turns = 0

    def count_turns() -> None:
        nonlocal turns
        turns += 1
        if not pair.worker.frames:
            asyncio.get_running_loop().call_soon(count_turns)

    asyncio.get_running_loop().call_soon(count_turns)
    say(pair.parent.link, 1, payload=bytes(32 << 20))
    await pair.worker.hears(1)
    assert turns >= 32


# -- T6, T7: callbacks -----------------------------------------------------------------------------


async def test_a_handler_may_send_flush_and_close(pair: Pair) -> None:
    pair.listen()

    def act(payload: memoryview) -> None:
        say(pair.worker.link, len(pair.worker.frames))
        if len(pair.worker.frames) == 3:
            pair.worker.link.close()
            pair.worker.link.close()
            assert bytes(payload) == b"payload"

    pair.worker.act = act
    say(pair.parent.link, *range(10), payload=b"payload")
    await pair.parent.hears(2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.worker.idents == [0, 1, 2]
    assert pair.worker.broken == []


@pytest.mark.parametrize("size", [100, FLOOD])
async def test_a_payload_is_gone_after_its_handler(pair: Pair, size: int) -> None:
    pair.listen()
    kept: list[memoryview] = []
    pair.worker.act = kept.append
    say(pair.parent.link, 1, payload=pattern(size))
    await pair.worker.hears(1)
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


@pytest.mark.parametrize("size", [100, FLOOD])
async def test_a_handler_that_raises_breaks_its_link_once(pair: Pair, size: int) -> None:
    pair.listen()
    pair.worker.act = lambda payload: 1 / 0  # type: ignore[assignment]
    say(pair.parent.link, *range(5), payload=pattern(size))
    await pair.worker.until(lambda: pair.worker.broken)
    say(pair.parent.link, 9)
    say(pair.worker.link, 1)  # dropped
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.worker.idents == [0]
    assert [type(error) for error in pair.worker.broken] == [ZeroDivisionError]
    assert pair.parent.frames == []


async def test_a_handler_that_keeps_a_view_of_its_payload_breaks_its_link(pair: Pair) -> None:
    pair.listen()
    kept: list[memoryview] = []
    pair.worker.act = lambda payload: kept.append(memoryview(pickle.PickleBuffer(payload)))
    say(pair.parent.link, 1, payload=pattern(100))
    await pair.worker.until(lambda: pair.worker.broken)
    assert [type(error) for error in pair.worker.broken] == [BufferError]
    pair.close()
    assert bytes(kept.pop()) == pattern(100)  # memory outlives the link as long as it is looked at
    pair.worker.broken.clear()  # a traceback looks at it too


async def test_links_may_be_closed_when_they_break(pair: Pair) -> None:
    pair.listen()
    pair.worker.act = lambda payload: 1 / 0  # type: ignore[assignment]
    pair.worker.on_broken = pair.close
    say(pair.parent.link, 1)
    await pair.worker.until(lambda: pair.worker.broken)
    await asyncio.sleep(0)


def test_keyboard_interrupt_passes_through_the_loop_and_the_link_goes_on(made: Backend) -> None:
    loop = asyncio.new_event_loop()
    pair = Pair(made)
    for ear in (pair.parent, pair.worker):
        ear.listen(loop)

    def act(payload: memoryview) -> None:
        if len(pair.worker.frames) == 2:
            raise KeyboardInterrupt

    pair.worker.act = act
    say(pair.parent.link, *range(5))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(pair.worker.hears(5))
    asyncio.set_event_loop(loop)
    loop.run_until_complete(pair.worker.hears(5))
    assert pair.worker.idents == list(range(5))
    assert pair.worker.broken == []
    pair.close()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    asyncio.set_event_loop(None)
    loop.close()


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        frames.HEADER.pack(1, 0, frames.MAX_PARTS + 1, 0, 0, 0, 0, 0),
        frames.HEADER.pack(1, 0, 1, 0, 0, 0, 0, 0) + bytes(8),  # an empty part
        frames.HEADER.pack(1, 0, 2, 0, 0, 0, 0, 3) + struct.pack("<2Q", 2, 2),
        frames.HEADER.pack(1, 0, 2, 0, 0, 0, 0, 3) + struct.pack("<2Q", 4, (1 << 63) - 1),
        frames.HEADER.pack(1, 0, 0, 0, 0, 0, 0, frames.MAX_PAYLOAD + 1),
        b"\xff" * frames.HEADER_SIZE,
    ],
)
async def test_a_header_that_nobody_sent_breaks_a_pipe(header: bytes) -> None:
    pair = Pair(pipe.PipeBackend()).listen()
    pair.parent.link._sock.send(header)  # type: ignore[attr-defined]
    await pair.worker.until(lambda: pair.worker.broken)
    assert [type(error) for error in pair.worker.broken] == [frames.CorruptHeaderError]
    assert pair.worker.frames == []
    pair.close()


async def test_a_length_that_lies_costs_no_memory() -> None:
    pair = Pair(pipe.PipeBackend()).listen()
    header = frames.HEADER.pack(1, 0, 0, 0, 0, 0, 0, frames.MAX_PAYLOAD)
    pair.parent.link._sock.send(header + b"x")  # type: ignore[attr-defined]
    for _ in range(5):
        await asyncio.sleep(0)
    assembly = pair.worker.link._inbox._assembly  # type: ignore[attr-defined]
    assert assembly.missing == frames.MAX_PAYLOAD - 1
    assert len(assembly._data) == 1
    pair.close()


def test_sizes_of_parts_that_lie_cost_no_memory() -> None:
    made: list[int] = []
    for grow in GROWINGS:

        def counted(size: int, writable: bool, grow: Any = grow) -> Any:
            made.append(size)
            return grow(size, writable)

        assembly = frames.Assembly(counted)
        fields, half = (1, 0, 0, 0, 0, 0), frames.MAX_PAYLOAD // 2
        sizes = struct.pack("<2Q", half | frames.WRITABLE, half)
        tracemalloc.start()
        assembly.begin(fields, 2 * half, sizes)
        for _ in range(100):
            assembly.add(memoryview(bytes(100_000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * 100 * 100_000
        assert assembly.missing == 2 * half - 10_000_000
    assert made == [half] * len(GROWINGS)


@pytest.mark.parametrize("grow", GROWINGS)
@pytest.mark.parametrize("writable", [False, True])
def test_what_grows_from_pieces_is_their_sum(grow: Any, writable: bool) -> None:
    for size in (0, 1, 5000, 1 << 20, (1 << 20) + 1, 30_000_000):
        whole = memoryview(pattern(size))
        growing = grow(size, writable)
        for at in range(0, size, 1_000_003):
            assert growing.missing == size - at
            growing.add(whole[at : at + 1_000_003])
        with pytest.raises(ValueError, match="1 bytes where 0 are missing"):
            growing.add(memoryview(b"x"))
        taken = growing.take()
        assert type(taken) is (bytearray if writable else bytes)
        assert taken == whole
        if writable:
            taken += b"it grows on"
    with pytest.raises(ValueError, match="missing"):
        grow(1, writable).take()


@pytest.fixture
async def spoiled(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Pair, mmap.mmap]]:
    """A pair of links over a ring, and its memory in the hands of a vandal."""
    backend = backends.select("shm").make()
    link, end = backend.create()
    memory = mmap.mmap(end._mapping.fd, 4096 + 2 * shm.CAPACITY)  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "create", lambda: (link, end))
    pair = Pair(backend)
    yield pair, memory
    pair.close()
    memory.close()
    backend.close()


@pytest.mark.skipif("shm" not in conftest.BACKENDS, reason="there is no ring without amp_ext")
@pytest.mark.parametrize(
    ("offset", "damage"),
    [
        pytest.param(4096, b"\xff" * 8, id="record header"),
        pytest.param(4096 + 8 + 2, b"\xff\xff", id="number of parts"),
        pytest.param(4096 + 8 + 2, b"\x01", id="sizes that are not there"),
        pytest.param(4096 + 8 + 24, b"\x08", id="length"),
        pytest.param(256, b"\xff" * 8, id="tail"),
    ],
)
async def test_a_damaged_ring_breaks_the_link_that_reads_it(
    spoiled: tuple[Pair, mmap.mmap], offset: int, damage: bytes
) -> None:
    pair, memory = spoiled
    pair.parent.listen()
    say(pair.parent.link, 1, payload=b"payload")
    memory[offset : offset + len(damage)] = damage
    pair.worker.listen()
    await pair.worker.until(lambda: pair.worker.broken)
    expected = (backends.ring.RingCorruptError, frames.CorruptHeaderError)
    assert len(pair.worker.broken) == 1
    assert isinstance(pair.worker.broken[0], expected)
    assert pair.worker.frames == []


@pytest.mark.skipif("shm" not in conftest.BACKENDS, reason="there is no ring without amp_ext")
async def test_a_damaged_head_breaks_the_link_that_writes_but_not_inside_send(
    spoiled: tuple[Pair, mmap.mmap],
) -> None:
    pair, memory = spoiled
    pair.listen()
    memory[256 + 128 : 256 + 136] = b"\xff" * 8
    for ident in range(3000):
        send(pair.parent.link, ident, pattern(1000))
    pair.parent.link.flush()
    assert pair.parent.broken == []
    await pair.parent.until(lambda: pair.parent.broken)
    assert [type(error) for error in pair.parent.broken] == [backends.ring.RingCorruptError]


# -- T8: close -------------------------------------------------------------------------------------


async def test_close_is_idempotent_and_everything_after_it_does_nothing(pair: Pair) -> None:
    pair.listen()
    pair.worker.link.mark_started(3)
    flood(pair.parent.link)
    for ear in (pair.parent, pair.worker):
        for _ in range(2):
            ear.link.close()
    for ear in (pair.parent, pair.worker):
        say(ear.link, 1)
        ear.link.drain_dead()
        ear.link.mark_started(4)
        assert not ear.link.congested
    assert pair.parent.link.started == 3
    await asyncio.sleep(0)
    assert pair.worker.frames == []
    assert pair.parent.rooms == 0


async def test_closing_a_backend_closes_its_links(made: Backend) -> None:
    pairs = [Pair(made).listen() for _ in range(3)]
    for pair in pairs:
        say(pair.parent.link, 1)
    made.close()
    made.close()
    for pair in pairs:
        say(pair.parent.link, 2)
        pair.close()


def test_a_link_whose_loop_is_closed_can_be_closed(made: Backend) -> None:
    loop = asyncio.new_event_loop()
    pair = Pair(made)
    pair.parent.listen(loop)
    pair.worker.listen(loop)
    loop.close()
    pair.close()


async def test_a_link_that_was_never_started_can_be_closed(pair: Pair) -> None:
    pair.close()


def test_descriptors_for_a_worker_are_few_and_constant(made: Backend) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    constant = {"shm": 1, "pipe": 2}[made.name]
    before = descriptors()
    links = []
    for _ in range(5):
        link, end = made.create()
        end.release()
        end.release()
        links.append(link)
    assert descriptors() == before + 5 * constant
    for link in links:
        link.close()
    assert descriptors() == before


# -- where links run -------------------------------------------------------------------------------


async def test_links_are_started_once(pair: Pair) -> None:
    pair.listen()
    with pytest.raises(RuntimeError, match="started once"):
        pair.parent.listen()


async def test_a_loop_that_cannot_watch_descriptors_is_refused_by_name(pair: Pair) -> None:
    class ProactorEventLoop(asyncio.BaseEventLoop):
        pass

    loop = ProactorEventLoop()
    with pytest.raises(RuntimeError, match="ProactorEventLoop cannot watch descriptors"):
        pair.parent.listen(loop)
    loop.close()


@pytest.fixture(scope="session")
def new_uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    uvloop = pytest.importorskip("uvloop", reason="an optional dependency")
    uvloop.new_event_loop().close()  # libuv keeps two descriptors for the process from now on
    return uvloop.new_event_loop  # type: ignore[no-any-return]


def test_uvloop_carries_it_too(
    new_uvloop: Callable[[], asyncio.AbstractEventLoop], made: Backend
) -> None:
    async def scenario() -> None:
        pair = Pair(made).listen()
        down = flood(pair.parent.link)
        up = flood(pair.worker.link, 300_000)
        await pair.worker.hears(down)
        await pair.parent.hears(up)
        assert pair.worker.idents == list(range(down))
        assert pair.parent.idents == list(range(up))
        pair.close()

    with asyncio.Runner(loop_factory=new_uvloop) as runner:
        runner.run(scenario())


# -- processes -------------------------------------------------------------------------------------


_processes: list[BaseProcess] = []


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    yield
    while _processes:
        process = _processes.pop()
        with contextlib.suppress(ValueError):  # closed, because it went as it should
            process.kill()
            process.join()
            process.close()


def start(method: str, target: Callable[..., None], end: ChildEnd, *args: object) -> BaseProcess:
    """A worker process that has got its end of the channel."""
    process = multiprocessing.get_context(method).Process(target=target, args=(end, *args))  # type: ignore[attr-defined]
    process.start()
    _processes.append(process)
    end.release()
    return process  # type: ignore[no-any-return]


async def finished(process: BaseProcess) -> None:
    await asyncio.to_thread(process.join, 20)
    assert process.exitcode == 0
    process.close()


@pytest.mark.parametrize("method", METHODS)
async def test_every_start_method_hands_over_the_child_end(made: Backend, method: str) -> None:
    link, end = made.create()
    ear = Ear(link).listen()
    sizes = [0, 10, 5_000, 3_000_000, 1]
    for ident, size in enumerate(sizes):  # before the process exists
        send(link, ident, pattern(size, ident))
    link.flush()
    process = start(method, peers.echo, end)
    await ear.hears(len(sizes))
    assert ear.payloads == [pattern(size, ident) for ident, size in enumerate(sizes)]
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)


@pytest.mark.parametrize("method", METHODS)
async def test_siblings_talk_at_the_same_time(made: Backend, method: str) -> None:
    ears, processes = [], []
    for _ in range(2):
        link, end = made.create()
        ears.append(Ear(link).listen())
        processes.append(start(method, peers.echo, end))
    for ear in ears:
        say(ear.link, *range(300), payload=pattern(3000))
    for ear in ears:
        await ear.hears(300)
        assert ear.idents == list(range(300))
    ears[0].link.send(Kind.CLOSE)
    ears[0].link.flush()
    await finished(processes[0])
    ears[0].link.close()
    say(ears[1].link, 300)
    await ears[1].hears(301)  # the end of one worker is nothing to the other
    ears[1].link.send(Kind.CLOSE)
    ears[1].link.flush()
    await finished(processes[1])


@pytest.mark.parametrize("method", METHODS)
async def test_a_worker_keeps_few_descriptors_and_passes_none_on(
    made: Backend, method: str
) -> None:
    others = [made.create() for _ in range(3)]
    link, end = made.create()
    ear = Ear(link).listen()
    process = start(method, peers.count_descriptors, end)
    say(link, 1)
    await ear.hears(1)
    before, after, passed_on = map(int, ear.payloads[0].split())
    if method == "fork":
        assert after < before  # what it had inherited of four links is gone, even of its siblings
    else:
        # they came with the process; the memory's descriptor is closed, mmap has one of its own
        assert after <= before
    assert passed_on == 0
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)
    for _, other in others:
        other.release()


def test_a_child_end_is_pickled_only_for_a_process(made: Backend) -> None:
    _, end = made.create()
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(end)
    end.release()


def test_the_started_counter_is_readable_after_sigkill(made: Backend) -> None:
    link, end = made.create()
    assert link.started == 0
    process = start("spawn", peers.mark_and_die, end, 1234)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert link.started == 1234
    link.close()
    assert link.started == 1234
    process.close()


def test_the_dead_are_drained_to_their_last_whole_frame(made: Backend) -> None:
    loop = asyncio.new_event_loop()
    link, end = made.create()
    ear = Ear(link).listen(loop)
    process = start("spawn", peers.publish_and_die, end, 200)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    link.drain_dead()  # all at once: the loop has not run at all
    assert ear.payloads == [b"x" * ident for ident in range(200)]
    assert ear.broken == []
    say(link, *range(5000), payload=pattern(1000))  # to nobody
    loop.run_until_complete(asyncio.sleep(0))
    link.close()
    loop.close()
    process.close()


def test_a_dead_peer_causes_no_busy_loop(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        link, end = made.create()
        ear = Ear(link).listen()
        process = start("spawn", peers.publish_and_die, end, 10)
        await ear.hears(10)
        await asyncio.to_thread(process.join, 20)
        for _ in range(50):
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.1)  # nothing is to happen
        assert selector.wakeups - before <= 2
        assert ear.broken == []
        link.close()
        process.close()

    run_counted(scenario)
