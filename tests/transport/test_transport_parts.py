"""Payloads in parts: large segments arrive as the types they were; nothing is allocated in advance.

The rules: FRAME-2 to FRAME-4 of _wire/frames.py, LINK-10 of _transport/link.py.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

import transport_support
from aiomultiprocess import _accel
from aiomultiprocess._pure import buffer_builder as buffer_builder_
from aiomultiprocess._transport import segments
from aiomultiprocess._wire import assembly as assembly_
from aiomultiprocess._wire import frames
from aiomultiprocess._wire.frames import Kind
from conftest import BUILT
from transport_support import FLOOD, Pair, pattern

made = transport_support.made
pair = transport_support.pair

BUILDERS = list(
    {
        id(builder): builder for builder in (buffer_builder_.BufferBuilder, _accel.BufferBuilder)
    }.values()
)


async def test_large_segments_arrive_as_the_bytes_or_bytearrays_they_were(pair: Pair) -> None:
    pair.listen()
    kept: list[frames.Payload] = []
    taken: list[bytes | bytearray] = []

    def act(payload: frames.Payload) -> None:
        assert isinstance(payload, frames.PayloadParts)
        kept.append(payload)
        taken.extend(payload.segments)

    pair.worker.act = act
    for size in (200_000, FLOOD):
        taken.clear()
        big = pattern(size)
        array = bytearray(pattern(70_000, 1))
        segments = [b"a", big, b"", b"b", memoryview(array), memoryview(array).toreadonly(), big]
        pair.parent.link.send(Kind.CHUNK, chunk_id=size, payload=segments)
        pair.parent.link.flush()
        await pair.worker.receives(len(kept) + 1)
        await pair.worker.until(lambda: taken)
        assert taken == [segment for segment in segments if len(segment)]
        assert [type(one) for one in taken] == [bytes] * 3 + [bytearray] + [bytes] * 2
        assert pair.worker.payloads[-1] == b"".join(segments)
    assert all(
        not payload.segments for payload in kept if isinstance(payload, frames.PayloadParts)
    )  # FRAME-2


async def test_a_payload_of_too_many_segments_arrives_as_one_view(pair: Pair) -> None:
    pair.listen()
    kinds: list[type] = []
    pair.worker.act = lambda payload: kinds.append(type(payload))
    for count in (frames.MAX_PARTS, frames.MAX_PARTS + 1):
        segments = [pattern(1000, at) for at in range(count)]
        pair.parent.link.send(Kind.CHUNK, payload=segments)
        pair.parent.link.flush()
        await pair.worker.receives(len(kinds) + 1)
        await pair.worker.until(lambda: kinds)
        assert pair.worker.payloads[-1] == b"".join(segments)
    assert kinds == [frames.PayloadParts, memoryview]


@pytest.mark.parametrize("size", [100, 30_000, 400_000, FLOOD])
async def test_a_frame_is_what_its_segments_were_when_it_was_sent(pair: Pair, size: int) -> None:
    pair.listen()
    array = bytearray(pattern(size))
    for chunk_id in range(3):
        pair.parent.link.send(Kind.CHUNK, chunk_id=chunk_id, payload=[b"head", memoryview(array)])
        array[:] = pattern(size, chunk_id + 1)
        array += b"."  # a BufferError if a view were left
        del array[-1]
    pair.parent.link.flush()
    await pair.worker.receives(3)
    assert pair.worker.payloads == [b"head" + pattern(size, chunk_id) for chunk_id in range(3)]


def test_false_sizes_of_parts_cost_no_memory() -> None:
    made: list[int] = []
    for builder in BUILDERS:

        def counted(size: int, writable: bool, builder: Any = builder) -> Any:
            made.append(size)
            return builder(size, writable)

        assembly = assembly_.Assembly(counted)
        fields, half = (1, 0, 0, 0, 0, 0), frames.MAX_PAYLOAD // 2
        sizes = struct.pack("<2Q", half | frames.WRITABLE, half)
        tracemalloc.start()
        assembly.begin(fields, 2 * half, sizes)
        for _ in range(200):  # 20 MB; 64 MiB of address space are allocated at once
            assembly.add(memoryview(bytes(100_000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * 200 * 100_000
        assert assembly.missing == 2 * half - 20_000_000
    assert made == [half] * len(BUILDERS)


@pytest.mark.skipif(not BUILT or sys.platform != "linux", reason="segments are of Linux")
def test_segments_work_where_the_extension_is_built() -> None:
    """Else all their tests would be skipped."""
    assert segments.works()


FAULTS_OF_A_BUFFER = """
import mmap, resource
from aiomultiprocess import _accel
from aiomultiprocess._processes.freed_memory import WORKER_KEEPS, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory(WORKER_KEEPS)
size, piece = 64 << 20, memoryview(bytes(1 << 17))
begin = faults()
builder = _accel.BufferBuilder(size, False)
made = faults()
while builder.missing:
    builder.add(piece)
built = faults()
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
filling = faults()
while memory.tell() < size:
    memory.write(piece)
print(made - begin, built - made, faults() - filling)
"""


@pytest.mark.skipif(not BUILT or sys.platform != "linux", reason="faults of pages on Linux")
def test_a_large_buffer_takes_its_pages_once_and_only_when_they_are_written() -> None:
    # -P: the root of the checkout holds a folder amp_ext
    command = [sys.executable, "-P", "-c", FAULTS_OF_A_BUFFER]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    made, built, filled = map(int, done.stdout.split())
    assert made < 512  # of 16,384: what lies at its ends alone is 512; QEMU's records take 100
    assert built < filled + 3 * 512 + 100  # at its ends are no whole large pages


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("writable", [False, True])
def test_a_buffer_that_is_built_from_pieces_is_their_sum(builder: Any, writable: bool) -> None:
    for size in (0, 1, 5000, 1 << 20, (1 << 20) + 1, 30_000_000):
        whole = memoryview(pattern(size))
        buffer_builder = builder(size, writable)
        for at in range(0, size, 1_000_003):
            assert buffer_builder.missing == size - at
            buffer_builder.add(whole[at : at + 1_000_003])
        with pytest.raises(ValueError, match="1 bytes where 0 are missing"):
            buffer_builder.add(memoryview(b"x"))
        taken = buffer_builder.take()
        assert type(taken) is (bytearray if writable else bytes)
        assert taken == whole
        if writable:
            taken += b"it grows on"
    with pytest.raises(ValueError, match="missing"):
        builder(1, writable).take()
