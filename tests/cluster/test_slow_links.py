"""A slow link between a client and a host: it is not silence, as long as something arrives.

The dask worker is reached through a proxy (`Link`) that passes so many bytes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, WorkerLostError, share
from aiomultiprocess._cluster.stream import WINDOW
from clusters import Dask

INTERVAL = 0.3  # seconds: the patience of the client
RATE = 10e6  # bytes a second: a message of 1 MiB takes less than that patience
LARGE = 12 << 20  # bytes: takes five times as long
LARGEST = 3 * WINDOW  # bytes: more than may be under way


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Link:
    """Passes on what comes to `port`, at a limited rate each way, until it is stopped."""

    def __init__(self) -> None:
        self.port, self.target = free_port(), free_port()
        self.passed = 0
        self.stop_at: float = float("inf")
        self._streams: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for stream in self._streams:
                stream.cancel()
            await asyncio.gather(*self._streams, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._streams.add(task)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            with contextlib.closing(far_writer):
                ways = (reader, far_writer), (far_reader, writer)
                await asyncio.gather(*(self._pass(*way) for way in ways))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.passed += len(data)
            if self.passed >= self.stop_at:
                await asyncio.Event().wait()  # nothing is closed, and nothing passes
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / RATE)
        writer.close()


@pytest.fixture
def link() -> Link:
    """The way to the host."""
    return Link()


@pytest.fixture
def far_dask(tmp_path: Path, link: Link, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dask]:
    """A cluster whose worker listens behind the link."""
    pytest.importorskip("distributed")
    from aiomultiprocess._cluster import connection

    monkeypatch.setattr(connection, "INTERVAL", INTERVAL)
    listen, contact = (f"tcp://127.0.0.1:{port}" for port in (link.target, link.port))
    with Dask(tmp_path) as running:
        running.options = ("--listen-address", listen, "--contact-address", contact)
        yield running.add("far")


@contextlib.asynccontextmanager
async def pool_behind(link: Link, dask: Dask) -> AsyncIterator[Pool]:
    async with link.open(), Pool(backend="dask", address=dask.address) as pool:
        assert await pool.apply(workload.two) == 2
        yield pool


async def length_of_shared(shared: Any) -> int:
    return len(shared.value)


async def large_result(size: int) -> bytes:
    return bytes(size)


@pytest.mark.row("H143")
async def test_a_large_value_over_a_slow_link_does_not_make_a_host_silent(
    link: Link, far_dask: Dask
) -> None:
    async with pool_behind(link, far_dask) as pool:
        assert await pool.apply(large_result, (LARGE,)) == bytes(LARGE)
        assert await pool.apply(len, (bytes(LARGE),)) == LARGE
        with share(bytes(LARGE)) as shared:
            assert await pool.apply(length_of_shared, (shared,)) == LARGE
        assert pool.stats().restarts == {}


@pytest.mark.row("H143")
@pytest.mark.parametrize("way", ["there", "back"])
async def test_a_link_that_stops_in_the_middle_of_a_large_value_is_noticed(
    link: Link, far_dask: Dask, way: str
) -> None:
    async with pool_behind(link, far_dask) as pool:
        if way == "there":
            call = pool.apply(workload.identity, (bytes(LARGE),))
        else:
            call = pool.apply(large_result, (LARGE,))
        link.stop_at = link.passed + LARGE // 3
        with pytest.raises(WorkerLostError, match=r"lost with its host \(it has not answered"):
            async with asyncio.timeout(8):
                await call
        assert link.passed >= link.stop_at


@pytest.mark.row("H151")
async def test_a_host_that_is_retired_behind_a_slow_link_loses_no_result(
    link: Link, far_dask: Dask
) -> None:
    from distributed import Client

    async with (
        Client(far_dask.address, asynchronous=True) as client,  # type: ignore[no-untyped-call]
        pool_behind(link, far_dask) as pool,
    ):
        (worker,) = pool.processes
        before = link.passed
        call = pool.apply(large_result, (LARGEST,))
        while link.passed < before + LARGEST // 24:  # noqa: ASYNC110 - the link has no events
            await asyncio.sleep(0.001)
        await client.retire_workers([worker.host])
        assert await call == bytes(LARGEST)
        await asyncio.to_thread(far_dask.workers["far"].wait, 30)
