"""How a client finds hosts, and what a stream does with a message that it cannot write."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import psutil
import pytest

import cluster_tasks
import leaks
import workload
from aiomultiprocess._cluster.cluster import Cluster
from aiomultiprocess._cluster.stream import FrameStream
from aiomultiprocess._wire.frames import LENT_MIN, Kind
from conftest import BUILT


class LateClient:
    """A client of dask whose subscription takes effect with its third event."""

    def __init__(self) -> None:
        self.scheduler = self
        self.address = "tcp://scheduler"
        self.direct_to_workers = None
        self.events: list[tuple[float, dict[str, str]]] = []
        self.deliver: Any = None
        self.removed = asyncio.Event()

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        self.deliver = handler

    def unsubscribe_topic(self, topic: str) -> None:
        self.deliver = None

    async def register_plugin(self, plugin: object, name: str) -> dict[str, str]:
        await self.log_event(name, {"address": "tcp://early"})
        return {}

    async def unregister_worker_plugin(self, name: str) -> None:
        self.removed.set()

    async def log_event(self, topic: str, event: dict[str, str]) -> None:
        self.events.append((0.0, event))
        if len(self.events) > 2:
            asyncio.get_running_loop().call_soon(self.deliver, self.events[-1])


class Finder(Cluster):
    """A cluster of which only the addresses of hosts are asked for."""

    def __init__(self, client: LateClient) -> None:
        super().__init__(self, asyncio.get_running_loop(), self)  # type: ignore[arg-type]
        self.found: asyncio.Queue[str] = asyncio.Queue()
        self.client = client

    def new_client(self) -> tuple[Any, bool]:
        return self.client, False

    async def _connect(self, address: str, patience: float = 0) -> Any:
        return SilentComm()

    def _found(self, address: str) -> None:
        self.found.put_nowait(address)


class SilentComm:
    """A comm on which nothing ever comes."""

    peer_address = "tcp://there"
    allow_offload = deserialize = True

    def __init__(self) -> None:
        self.aborted = asyncio.Event()

    async def read(self) -> Any:
        await self.aborted.wait()
        raise OSError("closed")

    async def write(self, message: object) -> None:
        raise TypeError("cannot serialize this")

    def abort(self) -> None:
        self.aborted.set()

    def closed(self) -> bool:
        return self.aborted.is_set()


@pytest.mark.row("H111")
async def test_a_host_is_found_that_announced_itself_before_the_subscription_took_effect() -> None:
    pytest.importorskip("distributed")
    client = LateClient()
    cluster = Finder(client)
    cluster.start()
    assert await cluster.found.get() == "tcp://early"
    await cluster.close()
    assert client.removed.is_set()


@pytest.mark.row("H113")
async def test_a_message_that_cannot_be_written_ends_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("distributed")
    comm = SilentComm()
    stream = FrameStream(comm, asyncio.get_running_loop())
    reading = asyncio.create_task(stream.read())
    stream.send(0, Kind.CHUNK, segments=[b"item"])
    stream.flush()
    with pytest.raises(OSError, match="closed"):
        await reading
    assert "a message to tcp://there cannot be sent: the stream ends" in caplog.text
    stream.close()


@pytest.mark.row("H115")
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_what_ends_a_test_that_hangs_spares_what_other_tests_use() -> None:
    with_helper = (
        "import subprocess; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    )
    shared = subprocess.Popen(
        [sys.executable, "-c", with_helper], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    own = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leaks.SHARED.add(shared.pid)
    try:
        assert shared.stdout is not None
        helper = int(shared.stdout.readline())  # as the fork server of a host
        leaks.dump_stacks_of_descendants()
        assert not psutil.pid_exists(own.pid)
        assert shared.poll() is None
        assert psutil.Process(helper).status() != psutil.STATUS_ZOMBIE
    finally:
        leaks.SHARED.discard(shared.pid)
        shared.communicate()  # the helper ends at the end of its input
        own.kill()
        own.communicate()


async def test_the_processes_on_hosts_have_the_extension_where_it_is_built(dask_pool: Any) -> None:
    async with dask_pool(2) as pool:
        assert await pool.apply(cluster_tasks.has_extension) is BUILT


@pytest.mark.row("H137")
@pytest.mark.parametrize("make", [bytes, bytearray])
async def test_large_bytes_reach_processes_on_hosts_and_come_back(
    dask_pool: Any, make: Any
) -> None:
    async with dask_pool(1) as pool:
        for size in (LENT_MIN - 1, LENT_MIN, 3 << 20):
            value = make(b"\x05") * size
            result = await pool.apply(workload.identity, (value,))
            assert type(result) is make
            assert result == value
