"""How a pool grows with its hosts: `python benchmarks/cluster_simulation.py`.

One process: the real engine, connections and messages, over streams in memory, to hosts that are
imitations. Each has one process, which answers a chunk with its own payload (the results of a
function that returns its argument look like its arguments). So what is measured is the client: the
items that it can send out and take back in a second, and its memory.

    --hosts N,N   how many hosts; 1,10,100,1000 by default
    --delay S     seconds that an answer takes; 0.002 by default
    --memory      trace memory too, which makes all else slower
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from time import perf_counter
from typing import Any

from aiomultiprocess import Pool
from aiomultiprocess._cluster import engine, messages
from aiomultiprocess._cluster.connection import Connection, Greeting
from aiomultiprocess._wire.frames import Kind

RATE = 250_000  # items a second that each imitated process runs
SECONDS = 2.0  # about how long each measurement takes
NOTICE = 1 << 20  # bytes after which a host says that it has read them


async def same(value: Any) -> Any:
    """What the hosts seem to run."""
    return value


class Comm:
    """One end of a stream in memory: what the client writes, a host answers after a while."""

    allow_offload = True
    deserialize = True
    peer_address = "memory"

    def __init__(self, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._free_at = 0.0
        self._inbox = messages.IncomingFrames()
        self._unnoticed = 0
        self.messages = self.bytes = 0

    async def read(self) -> Any:
        """The next answer."""
        return await self._arrived.get()

    async def write(self, msg: Any) -> None:
        """Take a message of the client."""
        self.messages += 1
        out, items = messages.OutgoingFrames(), 0
        message = [bytes(msg[0]), *(part.data for part in msg[1:])]
        size = messages.size_of_message(message)
        self.bytes += size
        self._unnoticed += size
        for frame in self._inbox.take(message):
            items += answer(frame, out)
        if self._unnoticed >= NOTICE:
            self._arrived.put_nowait(messages.read_notice(self._unnoticed))
            self._unnoticed = 0
        now = self._loop.time()
        self._free_at = max(self._free_at, now) + items / RATE  # a process runs one at a time
        while out:
            self._loop.call_at(self._free_at + self._delay, self._arrived.put_nowait, out.take())

    def abort(self) -> None:
        """Nothing is held."""

    def closed(self) -> bool:
        """Never."""
        return False


def answer(frame: messages.Frame, out: messages.OutgoingFrames) -> int:
    """What a host and its process say to a frame; returns how many items that took."""
    slot = frame.slot
    if frame.kind == messages.START:
        out.add(slot, messages.STARTED, count=1 + slot)
        out.add(slot, Kind.READY)
    elif frame.kind == Kind.CHUNK:
        busy = round(1e6 * frame.number / RATE)
        out.add(slot, messages.MARK, chunk_id=frame.chunk_id + frame.number, count=busy)
        out.add(
            slot,
            Kind.RESULTS,
            count=frame.number,
            chunk_id=frame.chunk_id,
            segments=frame.segments,
        )
        return frame.number
    elif frame.kind == messages.PING:
        out.add(0, messages.PONG)
    elif frame.kind in (Kind.CLOSE, messages.SIGNAL):
        report = messages.ExitReport(0, 1 << 62, True, b"")
        out.add(slot, messages.EXITED, segments=messages.packed_exit(report))
    return 0


class Imitation:
    """Takes the place of a `Cluster`: all hosts are there at once."""

    hosts = 1
    delay = 0.0

    def __init__(self, target: object, loop: asyncio.AbstractEventLoop, user: Any) -> None:
        self.comms: list[Comm] = []
        self.connections: list[Connection] = []
        self._loop = loop
        self._user = user

    def start(self) -> None:
        """Reach the hosts."""
        nothing: Callable[[Connection], None] = lambda _: None  # noqa: E731
        for at in range(self.hosts):
            comm = Comm(self.delay)
            greeting = Greeting(f"memory://{at}", 1, str(at))
            connection = Connection(comm, greeting, self._loop, nothing, nothing, nothing)
            self.comms.append(comm)
            self.connections.append(connection)
            self._user.on_host(connection)

    def abandon(self) -> None:
        """Leave the hosts."""
        for connection in self.connections:
            connection.close()

    async def close(self) -> None:
        """Leave the hosts."""
        self.abandon()


def allocated() -> float:
    """The memory of Python objects of this process, in kB; 0 if it is not traced."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / 1e3


async def measure(hosts: int, delay: float) -> None:
    """One line of the table."""
    Imitation.hosts, Imitation.delay = hosts, delay
    vars(engine)["Cluster"] = Imitation
    before = allocated()
    begin = perf_counter()
    async with Pool(1, backend="dask", address="memory://") as pool:
        while len([worker for worker in pool.processes if worker.ready]) < hosts:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        start, memory = perf_counter() - begin, allocated() - before
        items, rate, seconds = max(50_000, 1000 * hosts), 0.0, 0.0
        while seconds < SECONDS / 2:
            items *= 2
            begin = perf_counter()
            await pool.map(same, range(items))
            seconds = perf_counter() - begin
            rate = items / seconds
        cluster: Any = pool._engine._cluster  # type: ignore[union-attr]
        sent = sum(comm.messages for comm in cluster.comms)
        size = sum(comm.bytes for comm in cluster.comms)
        done = sum(worker.credit.finished for worker in pool.processes)
        figures = (rate / 1e3, start * 1e3, memory / hosts, done / sent)
        row = " | ".join(f"{figure:8,.0f}" for figure in figures)
        print(f"{hosts:6,} | {row} | {size / done:6.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", default="1,10,100,1000")
    parser.add_argument("--delay", type=float, default=0.002)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        tracemalloc.start()
    print(" hosts | k items/s | start ms | kB/host | items/message | bytes/item")
    asyncio.run(measure(1, options.delay))  # not counted: it imports what the others use
    for number in map(int, options.hosts.split(",")):
        asyncio.run(measure(number, options.delay))
