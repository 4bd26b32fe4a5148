"""A pool over two dask workers, beside dask itself: `python benchmarks/cluster.py`.

Both workers are processes of this machine with one thread each, so are scheduler and client. Each
round measures every way once, in turn; the medians of the rounds count. Rates are of trivial
coroutines in thousand a second, times in milliseconds.

    --rounds N    5 by default
    --tls         the cluster speaks TLS (needs the command openssl)

The second pool over the cluster reaches its hosts through the scheduler. If ray is installed, a
cluster of two ray nodes of one CPU each runs beside it, with an async actor on each.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
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

    async def double(self, value: int) -> int:
        """Run one task."""
        return await double(value)


class Ray:
    """Two nodes of ray on this machine, with an async actor on each."""

    def __init__(self) -> None:
        ray: Any = import_module("ray")
        new_cluster = import_module("ray.cluster_utils").Cluster
        one = {"num_cpus": 1, "object_store_memory": 200 << 20}
        self._ray = ray
        self._cluster = new_cluster(
            initialize_head=True, head_node_args={**one, "include_dashboard": False}
        )
        self._cluster.add_node(**one)
        ray.init(address=self._cluster.address, log_to_driver=False)
        actor: Any = ray.remote(num_cpus=1, max_concurrency=1000)(Runner)
        self.actors = [actor.remote() for _ in range(2)]

    def close(self) -> None:
        """End both."""
        self._ray.shutdown()
        self._cluster.shutdown()

    async def calls(self) -> float:
        """Each task is a call: thousand a second."""

        async def run() -> None:
            calls = [self.actors[at % 2].double.remote(at) for at in range(PLAIN)]
            await asyncio.gather(*calls)

        return PLAIN / 1e3 / await timed(run)

    async def batches(self) -> float:
        """Batches of bytes, as for dask's actors; a call is sent at once, and waits there."""

        async def run() -> None:
            calls = [self.actors[at % 2].run.remote(data) for at, data in enumerate(batches())]
            for data in await asyncio.gather(*calls):
                pickle.loads(data)

        return ITEMS / 1e3 / await timed(run)

    async def call(self, at: int) -> None:
        """One call."""
        await self.actors[at % 2].double.remote(at)


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

    def __init__(self, client: Any, local: Pool, remote: Pool, relayed: Pool, ray: Any) -> None:
        self.client = client
        self.local = local
        self.remote = remote
        self.relayed = relayed
        self.ray = ray
        self.arrays = [np.full(1 << 17, at, dtype=float) for at in range(ARRAYS)]

    async def prepare(self) -> None:
        """Make the actors, and wait for all processes."""
        workers = list((await self.client.scheduler.identity(n_workers=-1))["workers"])
        self.actors = [
            await self.client.submit(Runner, actor=True, workers=[worker]) for worker in workers
        ]
        for pool in (self.remote, self.relayed):
            while len([worker for worker in pool.processes if worker.ready]) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for pool in (self.local, self.remote, self.relayed):
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

    async def relayed_pool(self) -> float:
        """The same through the scheduler."""
        return await self.map_of(self.relayed)

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

    async def ray_calls(self) -> float:
        """Async actors of ray, a call for each task."""
        return float(await self.ray.calls())

    async def ray_batches(self) -> float:
        """The same, a call for each batch."""
        return float(await self.ray.batches())

    # -- latency: milliseconds -----------------------------------------------------------------

    async def calls_of(self, call: Callable[[int], Awaitable[Any]]) -> float:
        """The median of single calls."""
        return 1e3 * median([await timed(partial(call, at)) for at in range(CALLS)])

    async def apply(self) -> float:
        """`apply` over the cluster."""
        return await self.calls_of(lambda at: self.remote.apply(double, (at,)))

    async def relayed_apply(self) -> float:
        """The same through the scheduler."""
        return await self.calls_of(lambda at: self.relayed.apply(double, (at,)))

    async def ray_call(self) -> float:
        """A call of an async actor of ray."""
        return await self.calls_of(self.ray.call)

    async def submit(self) -> float:
        """`submit` of dask."""
        return await self.calls_of(lambda at: self.client.submit(double_sync, at, pure=False))

    # -- arrays of 1 MB: a second --------------------------------------------------------------

    async def our_arrays(self) -> float:
        """There and back, over the cluster."""
        return ARRAYS / await timed(lambda: self.remote.map(same, self.arrays))

    async def relayed_arrays(self) -> float:
        """The same through the scheduler."""
        return ARRAYS / await timed(lambda: self.relayed.map(same, self.arrays))

    async def dask_arrays(self) -> float:
        """The same by dask."""

        async def run() -> None:
            futures = [self.client.submit(same_sync, array, pure=False) for array in self.arrays]
            await self.client.gather(futures)

        return ARRAYS / await timed(run)


WAYS = (
    *("shm", "dask_pool", "relayed_pool", "plain", "by_hand", "by_actors"),
    *("apply", "relayed_apply", "submit", "our_arrays", "relayed_arrays", "dask_arrays"),
)
RAY_WAYS = ("ray_calls", "ray_batches", "ray_call")


def certificate(folder: Path) -> Any:
    """A certificate of our own, for all parts."""
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    files = {f"tls_{part}_{kind}": file for part in ("client", "scheduler", "worker")
             for kind, file in (("key", key), ("cert", cert))}  # fmt: skip
    return Security(tls_ca_file=cert, require_encryption=True, **files)


@asynccontextmanager
async def prepared(security: Any, ray: Any) -> AsyncIterator[Bench]:
    """A cluster, and all that is measured."""
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
        Client(
            cluster.scheduler_address,
            asynchronous=True,
            security=security,
            set_as_default=False,
            direct_to_workers=False,
        ) as outsider,
        Pool(2) as local,
        Pool(1, backend="dask", client=client) as remote,
        Pool(1, backend="dask", client=outsider) as relayed,
    ):
        bench = Bench(client, local, remote, relayed, ray)
        await bench.prepare()
        yield bench


async def measure(rounds: int, security: Any) -> dict[str, float]:
    """The medians of all ways."""
    ray = Ray() if find_spec("ray") else None
    found: dict[str, list[float]] = {way: [] for way in WAYS + (RAY_WAYS if ray else ())}
    try:
        async with prepared(security, ray) as bench:
            for _ in range(rounds):
                for way, values in found.items():
                    values.append(await getattr(bench, way)())
    finally:
        if ray is not None:
            ray.close()
    return {way: median(values) for way, values in found.items()}


def report(found: dict[str, float]) -> None:
    """The figures, and what they must be."""
    for way, value in found.items():
        print(f"{way:14} {value:10.2f}")
    ratios = [
        ("times plain dask", found["dask_pool"] / found["plain"], 300),
        ("times batches by hand", found["dask_pool"] / found["by_hand"], 2),
        ("times actors", found["dask_pool"] / found["by_actors"], 0),
        ("of the local pool", found["dask_pool"] / found["shm"], 0.4),
        ("times dask's calls (time)", found["submit"] / found["apply"], 2),
        ("times dask's arrays", found["our_arrays"] / found["dask_arrays"], 1),
        ("of that, through the scheduler", found["relayed_pool"] / found["dask_pool"], 0),
        ("of its calls (time)", found["apply"] / found["relayed_apply"], 0),
        ("of its arrays", found["relayed_arrays"] / found["our_arrays"], 0),
    ]
    if "ray_calls" in found:
        ratios += [
            ("times ray's async actors", found["dask_pool"] / found["ray_calls"], 0),
            ("times batches to ray's actors", found["dask_pool"] / found["ray_batches"], 0),
            ("times ray's calls (time)", found["ray_call"] / found["apply"], 0),
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
