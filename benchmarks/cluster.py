"""A pool over two dask workers, beside dask itself: `python benchmarks/cluster.py`.

Both workers are processes of this machine with one thread each, so are scheduler and client. Each
round measures every way once, in turn; the medians of the rounds count. Rates are of trivial
coroutines in thousand a second, times in milliseconds.

    --rounds N    5 by default
    --tls         the cluster speaks TLS (needs the command openssl)
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import distributed
import numpy as np

from aiomultiprocess import Pool

# dask has no types
Client: Any = distributed.Client
LocalCluster: Any = distributed.LocalCluster
Security: Any = distributed.Security

ITEMS = 200_000  # of each way of ours, and of batches
PLAIN = 2_000  # tasks of plain dask, which takes a millisecond for each
BATCH = 1_000
CALLS = 200
ARRAYS = 100


async def double(value: int) -> int:
    """A trivial task."""
    return 2 * value


def double_sync(value: int) -> int:
    """The same for dask, whose tasks are plain functions."""
    return 2 * value


async def same(value: Any) -> Any:
    """A task that returns what it gets."""
    return value


def same_sync(value: Any) -> Any:
    """The same for dask."""
    return value


async def run_all(items: list[int]) -> list[int]:
    """A batch of trivial tasks."""
    return [await double(item) for item in items]


def run_batch(data: bytes) -> bytes:
    """What a careful user writes: one task of dask for a batch, with bytes both ways."""
    return pickle.dumps(asyncio.run(run_all(pickle.loads(data))))


class Runner:
    """The same as an actor."""

    async def run(self, data: bytes) -> bytes:
        """Run a batch."""
        return pickle.dumps(await run_all(pickle.loads(data)))


def batches() -> list[bytes]:
    """The items in batches, pickled."""
    return [pickle.dumps(list(range(start, start + BATCH))) for start in range(0, ITEMS, BATCH)]


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """How long something takes, in seconds."""
    begin = perf_counter()
    await call()
    return perf_counter() - begin


class Bench:
    """All ways, over one cluster."""

    def __init__(self, client: Any, local: Pool, remote: Pool) -> None:
        self.client = client
        self.local = local
        self.remote = remote
        self.arrays = [np.full(1 << 17, at, dtype=float) for at in range(ARRAYS)]

    async def prepare(self) -> None:
        """Make the actors, and wait for all processes."""
        workers = list((await self.client.scheduler.identity(n_workers=-1))["workers"])
        self.actors = [
            await self.client.submit(Runner, actor=True, workers=[worker]) for worker in workers
        ]
        while len([worker for worker in self.remote.processes if worker.ready]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for pool in (self.local, self.remote):
            await pool.map(double, range(1000))

    # -- throughput: thousand tasks a second ---------------------------------------------------

    async def map_of(self, pool: Pool) -> float:
        """The rate of a pool."""
        return ITEMS / 1e3 / await timed(lambda: pool.map(double, range(ITEMS)))

    async def shm(self) -> float:
        """Our pool on this machine."""
        return await self.map_of(self.local)

    async def dask_pool(self) -> float:
        """Our pool over the cluster."""
        return await self.map_of(self.remote)

    async def plain(self) -> float:
        """`client.map`."""

        async def run() -> None:
            futures = self.client.map(double_sync, range(PLAIN), pure=False)
            await self.client.gather(futures)

        return PLAIN / 1e3 / await timed(run)

    async def by_hand(self) -> float:
        """Batches, one `submit` each."""

        async def run() -> None:
            futures = [self.client.submit(run_batch, data, pure=False) for data in batches()]
            for data in await self.client.gather(futures):
                pickle.loads(data)

        return ITEMS / 1e3 / await timed(run)

    async def by_actors(self) -> float:
        """Batches, one call of an actor each, four at a time at each actor."""

        async def feed(actor: Any, mine: list[bytes]) -> None:
            while mine:
                for call in [actor.run(mine.pop()) for _ in range(min(4, len(mine)))]:
                    pickle.loads(await call)

        async def run() -> None:
            all_of_them = batches()
            shares = [all_of_them[at::2] for at in range(2)]
            await asyncio.gather(*map(feed, self.actors, shares))

        return ITEMS / 1e3 / await timed(run)

    # -- latency: milliseconds -----------------------------------------------------------------

    async def calls_of(self, call: Callable[[int], Awaitable[Any]]) -> float:
        """The median of single calls."""
        return 1e3 * median([await timed(partial(call, at)) for at in range(CALLS)])

    async def apply(self) -> float:
        """`apply` over the cluster."""
        return await self.calls_of(lambda at: self.remote.apply(double, (at,)))

    async def submit(self) -> float:
        """`submit` of dask."""
        return await self.calls_of(lambda at: self.client.submit(double_sync, at, pure=False))

    # -- arrays of 1 MB: a second --------------------------------------------------------------

    async def our_arrays(self) -> float:
        """There and back, over the cluster."""
        return ARRAYS / await timed(lambda: self.remote.map(same, self.arrays))

    async def dask_arrays(self) -> float:
        """The same by dask."""

        async def run() -> None:
            futures = [self.client.submit(same_sync, array, pure=False) for array in self.arrays]
            await self.client.gather(futures)

        return ARRAYS / await timed(run)


WAYS = ("shm", "dask_pool", "plain", "by_hand", "by_actors", "apply", "submit", "our_arrays",
        "dask_arrays")  # fmt: skip


def certificate(folder: Path) -> Any:
    """A certificate of our own, for all parts."""
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    files = {f"tls_{part}_{kind}": file for part in ("client", "scheduler", "worker")
             for kind, file in (("key", key), ("cert", cert))}  # fmt: skip
    return Security(tls_ca_file=cert, require_encryption=True, **files)


async def measure(rounds: int, security: Any) -> dict[str, float]:
    """The medians of all ways."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    async with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            asynchronous=True,
            dashboard_address=None,
            security=security,
            protocol="tcp" if security is None else "tls",
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
        Pool(2) as local,
        Pool(1, backend="dask", client=client) as remote,
    ):
        bench = Bench(client, local, remote)
        await bench.prepare()
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(await getattr(bench, way)())
    return {way: median(values) for way, values in found.items()}


def report(found: dict[str, float]) -> None:
    """The figures, and what they must be."""
    for way, value in found.items():
        print(f"{way:12} {value:10.2f}")
    ratios = [
        ("times plain dask", found["dask_pool"] / found["plain"], 300),
        ("times batches by hand", found["dask_pool"] / found["by_hand"], 2),
        ("times actors", found["dask_pool"] / found["by_actors"], 0),
        ("of the local pool", found["dask_pool"] / found["shm"], 0.4),
        ("times dask's calls (time)", found["submit"] / found["apply"], 2),
        ("times dask's arrays", found["our_arrays"] / found["dask_arrays"], 1),
    ]
    for what, ratio, goal in ratios:
        print(f"{ratio:10.2f} {what}" + (f", the goal is {goal}" if goal else ""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        chosen = certificate(Path(scratch)) if options.tls else None
        report(asyncio.run(measure(options.rounds, chosen)))
