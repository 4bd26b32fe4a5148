"""What pools take, and give back: memory that is refused, memory that stays, large loads.

A number such as D35 is that of the row in the catalogue of failures. Some loads are smaller here
than what it asks for: AIOMULTIPROCESS_TEST_SCALE=full is all of it, and takes some minutes, for
which pytest wants `-o faulthandler_timeout=1500`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import psutil
import pytest

import leaks
import mishaps
import workload
from aiomultiprocess import Pool, WorkerLostError
from aiomultiprocess._processes.exit import Exit
from aiomultiprocess._transport import pipe, shared_page
from chaos.meter import Malloc
from conftest import BUILT
from support import Meeting, outcomes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and counts are Linux's")

FULL = os.environ.get("AIOMULTIPROCESS_TEST_SCALE") == "full"
POOLS = 1000 if FULL else 24
NOTHINGS = 1_000_000 if FULL else 100_000
LARGE = 2_200_000_000 if FULL else 100_000_000  # bytes
MIB = 1 << 20
WAITING = 64 * MIB  # that a map holds of results not read yet, and as much of those just read
#: How much memory may differ for reasons of the allocator.
SLACK = 16 * MIB


def memory() -> int:
    """Bytes of memory that this process has, its shared memory included; not what is free again."""
    Malloc().trim()
    return int(psutil.Process().memory_info().rss)


# -- memory that is refused (D35, D36) -------------------------------------------------------------


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Leaves no room for a ring, as if memory ran out; it is in no file system to be filled."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.row("D35")
async def test_a_pool_that_gets_no_memory_for_rings_works_by_pipes(no_large_files: None) -> None:
    async with Pool(1) as pool:
        assert pool.backend == "pipe"
        assert await pool.map(workload.double, range(1000)) == [2 * i for i in range(1000)]


@pytest.mark.row("D35")
@pytest.mark.skipif(not BUILT, reason="there is no ring without the extension")
async def test_a_new_worker_that_gets_no_memory_is_an_error_of_the_calls_that_wait(
    request: pytest.FixtureRequest,
) -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1, backend="shm") as pool:
        running = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        waiting = asyncio.ensure_future(pool.map(workload.double, range(100)))
        request.getfixturevalue("no_large_files")
        os.kill(arrival.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await running
        for call in (waiting, pool.apply(workload.two)):
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                await call


class Buffered:
    """Is pickled with a buffer that can change, and so has to be copied where it must wait."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytearray, (pickle.PickleBuffer(self.data),)


@pytest.mark.row("D35")
async def test_an_item_that_memory_is_too_small_to_send_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kept_segment(segment: Any) -> Any:
        if len(segment) >= MIB:
            raise MemoryError
        return copied(segment)

    copied = pipe.kept_segment
    monkeypatch.setattr(pipe, "kept_segment", kept_segment)
    async with Pool(1, backend="pipe") as pool:
        with pytest.raises(MemoryError, match=r"argument .*len cannot be sent .*too little memory"):
            await pool.apply(len, (Buffered(MIB),))
        items = [b"small"] * 20
        items[7] = items[12] = Buffered(MIB)  # type: ignore[call-overload]
        found = await outcomes(pool.map(len, items))
        assert [at for at, value in enumerate(found) if value != 5] == [7, 12]
        for at in (7, 12):
            with pytest.raises(MemoryError, match=f"item {at} of .*too little memory"):
                raise found[at]
        # what was not sent is not waited for, nor taken for started
        [worker] = pool.processes
        assert worker.credit.sent == worker.link.started == 18


@pytest.mark.row("B20")
async def test_a_worker_whose_end_cannot_be_watched_is_ended(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """With no descriptor left a thread watches; here no thread starts either."""

    def watch(self: Exit, *args: Any) -> Any:
        watched.append(self)
        if len(watched) == 2:
            raise RuntimeError("can't start new thread")
        return listen(self, *args)

    watched: list[Exit] = []
    listen = Exit.watch
    monkeypatch.setattr(Exit, "watch", watch)
    with pytest.raises(RuntimeError, match="new thread"):
        Pool(2)
    assert watched[1].ended
    await watched[0].wait()


@pytest.mark.row("D36")
async def test_a_worker_cannot_shrink_the_memory_that_it_shares(backend: str) -> None:
    """The ring, or the page where pipes keep count: a seal forbids it."""
    async with Pool(1) as pool:
        refused = await pool.apply(mishaps.shrink_shared_memory)
        assert refused
        assert set(refused) == {errno.EPERM}
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]


@pytest.mark.row("D36")
def test_the_parent_cannot_shrink_the_page_where_pipes_keep_count() -> None:
    page = shared_page.SharedPage.create()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(page.fd, 0)
    finally:
        page.close()


# -- pools that come and go (D37) ------------------------------------------------------------------


@pytest.mark.row("D37")
@pytest.mark.timeout(1200 if FULL else 120)
async def test_pools_that_come_and_go_leave_nothing(backend: str) -> None:
    async def use() -> None:
        async with Pool(1) as pool:
            assert await pool.map(workload.double, range(10)) == [2 * i for i in range(10)]

    for _ in range(3):
        await use()
    before, memory_before = leaks.holdings(), memory()
    for _ in range(POOLS):
        await use()
    assert leaks.left_behind(before) == {}
    assert memory() - memory_before < 4 * MIB + 1000 * POOLS  # a pool has megabytes


# -- large loads (D39) -----------------------------------------------------------------------------


@pytest.mark.row("D39")
@pytest.mark.timeout(600 if FULL else 120)
async def test_tasks_by_the_million_are_all_answered(backend: str) -> None:
    async with Pool(2) as pool:
        count = 0
        memory_before = memory()
        items = (at.to_bytes(8, "little") * 512 for at in range(NOTHINGS))  # 4 KiB each
        async for value in pool.map(workload.identity, items):
            assert value == count.to_bytes(8, "little") * 512
            count += 1
        assert count == NOTHINGS
        assert memory() - memory_before < 2 * WAITING + SLACK


@pytest.mark.row("D39")
@pytest.mark.timeout(600 if FULL else 120)
async def test_a_payload_of_gigabytes_arrives(backend: str) -> None:
    async with Pool(1) as pool:
        assert await pool.apply(len, (bytes(LARGE),)) == LARGE
        assert len(await pool.apply(bytes, (LARGE,))) == LARGE


@pytest.mark.row("D39")
@pytest.mark.parametrize("func", [workload.identity, len], ids=["large results", "small results"])
async def test_a_slow_reader_of_an_endless_input_needs_bounded_memory(
    backend: str, func: Callable[..., Any]
) -> None:
    """By the size of what waits for it, not only by its number: and what was read goes again."""
    size = 1_000_000

    def blocks() -> Iterator[bytes]:
        while True:
            yield b"\1" * size

    async with Pool(1) as pool:
        memory_before = memory()
        results = aiter(pool.map(func, blocks()))
        for at in range(400):
            assert await anext(results) in (size, b"\1" * size)
            if at % 50 == 0:
                await pool.map(workload.double, range(20_000))  # time enough to run away
                # read and unread results, and as much again that is on its way
                assert memory() - memory_before < 3 * WAITING + SLACK


async def test_nothing_is_kept_of_a_function_that_is_never_used_again(backend: str) -> None:
    """A class method of a builtin type is another object at each access."""
    async with Pool(1) as pool:
        assert await pool.apply(workload.two) == 2
        engine = pool._engine
        assert engine is not None
        [worker], [queue] = engine.supervisor.workers, engine.queues.values()
        for year in range(2000, 2050):
            assert (await pool.apply(date.fromisoformat, (f"{year}-01-01",))).year == year
        assert await pool.map(date.fromisoformat, ["2000-01-01"]) == [date(2000, 1, 1)]
        assert len(engine._open) == len(queue.calls) == len(worker.functions) == 1
