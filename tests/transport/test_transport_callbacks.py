"""The transport contract: what handlers may do, and links that break, by a handler or by damage.

Every backend passes these tests, regardless of how it works inside. LINK-1 ... LINK-10 are the
rules of _transport/link.py.
"""

from __future__ import annotations

import asyncio
import mmap
import pickle
import struct
from collections.abc import AsyncIterator

import pytest

import conftest
import transport_support
from aiomultiprocess import _accel
from aiomultiprocess._transport import pipe, select, shm
from aiomultiprocess._transport.link import Backend
from aiomultiprocess._wire import frames
from transport_support import (
    FLOOD,
    Pair,
    pattern,
    say,
    send,
)

made = transport_support.made
pair = transport_support.pair

# -- LINK-6, LINK-7: callbacks ---------------------------------------------------------------------


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
    await pair.parent.receives(2)
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.worker.chunk_ids == [0, 1, 2]
    assert pair.worker.broken == []


@pytest.mark.parametrize("size", [100, FLOOD])
async def test_a_payload_is_gone_after_its_handler(pair: Pair, size: int) -> None:
    pair.listen()
    kept: list[memoryview] = []
    pair.worker.act = kept.append
    say(pair.parent.link, 1, payload=pattern(size))
    await pair.worker.receives(1)
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
    assert pair.worker.chunk_ids == [0]
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
    assert bytes(kept.pop()) == pattern(100)  # memory outlives the link while a view exists
    pair.worker.broken.clear()  # a traceback holds a view too


async def test_links_may_be_closed_when_they_break(pair: Pair) -> None:
    pair.listen()
    pair.worker.act = lambda payload: 1 / 0  # type: ignore[assignment]
    pair.worker.on_broken = pair.close
    say(pair.parent.link, 1)
    await pair.worker.until(lambda: pair.worker.broken)
    await asyncio.sleep(0)


@pytest.mark.parametrize("where", ["a frame", "the last frame", "the end of the batch"])
def test_keyboard_interrupt_passes_through_the_loop_and_the_link_goes_on(
    made: Backend, where: str
) -> None:
    loop = asyncio.new_event_loop()
    pair = Pair(made)
    for receiver in (pair.parent, pair.worker):
        receiver.listen(loop)

    interrupts = iter([KeyboardInterrupt])

    def act(payload: memoryview) -> None:
        if len(pair.worker.frames) == {"a frame": 2, "the last frame": 5}.get(where):
            raise next(interrupts)

    def on_drained() -> None:
        if where == "the end of the batch":
            for interrupt in interrupts:
                raise interrupt
        ends.append(len(pair.worker.frames))

    ends: list[int] = []  # frames that were there at the end of a batch that was not cut short
    pair.worker.act, pair.worker.on_drained = act, on_drained
    say(pair.parent.link, *range(5))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(pair.worker.receives(6))  # as long as nothing interrupts it
    asyncio.set_event_loop(loop)
    loop.run_until_complete(pair.worker.until(lambda: ends))
    assert ends == [5]
    assert pair.worker.chunk_ids == list(range(5))
    assert pair.worker.broken == []
    pair.close()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    asyncio.set_event_loop(None)
    loop.close()


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.row("C31")
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
async def test_a_header_that_no_peer_writes_breaks_a_pipe(header: bytes) -> None:
    pair = Pair(pipe.PipeBackend()).listen()
    pair.parent.link._sock.send(header)  # type: ignore[attr-defined]
    await pair.worker.until(lambda: pair.worker.broken)
    assert [type(error) for error in pair.worker.broken] == [frames.CorruptHeaderError]
    assert pair.worker.frames == []
    pair.close()


async def test_a_false_length_costs_no_memory() -> None:
    pair = Pair(pipe.PipeBackend()).listen()
    header = frames.HEADER.pack(1, 0, 0, 0, 0, 0, 0, frames.MAX_PAYLOAD)
    pair.parent.link._sock.send(header + b"x")  # type: ignore[attr-defined]
    for _ in range(5):
        await asyncio.sleep(0)
    assembly = pair.worker.link._inbox._assembly  # type: ignore[attr-defined]
    assert assembly.missing == frames.MAX_PAYLOAD - 1
    assert len(assembly._data) == 1
    pair.close()


@pytest.fixture
async def spoiled(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Pair, mmap.mmap]]:
    """A pair of links over a ring, and its memory, for a test to damage."""
    backend = select.select("shm").make()
    link, end = backend.create()
    memory = mmap.mmap(end._mapping.fd, 4096 + 2 * shm.CAPACITY)  # type: ignore[attr-defined]
    monkeypatch.setattr(backend, "create", lambda: (link, end))
    pair = Pair(backend)
    yield pair, memory
    pair.close()
    memory.close()
    backend.close()


@pytest.mark.row("C31")
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
    expected = (_accel.ring.RingCorruptError, frames.CorruptHeaderError)
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
    for chunk_id in range(3000):
        send(pair.parent.link, chunk_id, pattern(1000))
    pair.parent.link.flush()
    assert pair.parent.broken == []
    await pair.parent.until(lambda: pair.parent.broken)
    assert [type(error) for error in pair.parent.broken] == [_accel.ring.RingCorruptError]
