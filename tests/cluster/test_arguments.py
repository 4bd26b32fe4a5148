"""What a pool over a cluster refuses, by name and with the way out, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, RoundRobin
from clusters import Dask

REFUSED = {
    "no cluster": ({"backend": "dask"}, TypeError, "needs either address or client, got neither"),
    "two clusters": (
        {"backend": "dask", "address": "tcp://here:1", "client": object()},
        TypeError,
        "either address or client, got both",
    ),
    "another backend": (
        {"backend": "shm", "address": "tcp://here:1"},
        TypeError,
        "address belongs to backend=\"dask\", got address='tcp://here:1' with backend='shm'",
    ),
    "no backend": ({"client": object()}, TypeError, 'client belongs to backend="dask"'),
    "an address that is none": ({"backend": "dask", "address": 8786}, TypeError, "got 8786"),
    "a client that is none": (
        {"backend": "dask", "client": "tcp://here:1"},
        TypeError,
        "client must be a distributed.Client",
    ),
    "a security that is none": (
        {"backend": "dask", "address": "tls://here:1", "security": "cert.pem"},
        TypeError,
        "security must be a distributed.Security, got 'cert.pem'",
    ),
    "a scheduler": (
        {"backend": "dask", "address": "tcp://here:1", "scheduler": RoundRobin()},
        ValueError,
        "scheduler cannot be used with",
    ),
    "queues": (
        {"backend": "dask", "address": "tcp://here:1", "queuecount": 2},
        ValueError,
        "queuecount cannot be used with",
    ),
    "a limit of shared memory": (
        {"backend": "dask", "address": "tcp://here:1", "sharedmemory": 0},
        ValueError,
        "sharedmemory cannot be used with",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(case: str) -> None:
    arguments: dict[str, Any]
    arguments, kind, message = REFUSED[case]
    with pytest.raises(kind) as caught:
        Pool(2, **arguments)
    assert message in str(caught.value)


async def test_a_scheduler_that_is_not_there_breaks_the_pool_and_is_named(tmp_path: Path) -> None:
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        async with Pool(backend="dask", address="tcp://127.0.0.1:9") as pool:
            with pytest.raises(RuntimeError, match=r"dask cluster cannot be used .*127\.0\.0\.1"):
                await pool.apply(workload.two)


async def test_resize_is_refused_with_the_way_out(dask: Dask) -> None:
    async with Pool(1, backend="dask", address=dask.address) as pool:
        with pytest.raises(RuntimeError, match=r"cluster\.scale"):
            await pool.resize(3)
        assert await pool.apply(workload.two) == 2


async def test_each_host_has_so_many_processes_and_stats_name_it(dask: Dask) -> None:
    async with Pool(2, backend="dask", address=dask.address) as pool:
        assert pool.backend == "dask"
        while len([worker for worker in pool.processes if worker.ready]) < 4:
            await pool.apply(workload.two)
        stats = pool.stats()
        assert [worker.index for worker in stats.workers] == [0, 1, 2, 3]
        hosts = [worker.host for worker in stats.workers]
        assert sorted(map(hosts.count, set(hosts))) == [2, 2]
        assert all(str(host).startswith("tcp://") for host in hosts)


async def test_a_synchronous_client_gives_the_cluster_and_stays_open(dask: Dask) -> None:
    import asyncio

    from distributed import Client

    client = await asyncio.to_thread(Client, dask.address, set_as_default=False)
    try:
        async with Pool(backend="dask", client=client) as pool:
            assert await pool.map(workload.double, [1, 2]) == [2, 4]
        assert client.status == "running"
    finally:
        await asyncio.to_thread(client.close)


@pytest.mark.row("H142")
async def test_a_client_that_is_closed_is_refused_by_name(dask: Dask) -> None:
    from distributed import Client

    async with Client(dask.address, asynchronous=True, set_as_default=False) as client:
        pass
    with pytest.raises(ValueError, match="client is closed: pass one that is connected"):
        Pool(backend="dask", client=client)


@pytest.mark.row("H142")
async def test_a_client_that_is_closed_as_the_pool_begins_is_named(dask: Dask) -> None:
    from distributed import Client

    async with Client(dask.address, asynchronous=True, set_as_default=False) as client:
        pass
    client.status = "running"
    pool = Pool(backend="dask", client=client)
    client.status = "closed"
    with pytest.raises(RuntimeError, match=r"cluster cannot be used .*client is closed"):
        await pool.apply(workload.two)
    pool.terminate()
    await pool.join()


def test_who_does_not_use_a_cluster_imports_nothing_of_dask() -> None:
    code = (
        "import asyncio, sys; from aiomultiprocess import Pool\n"
        "async def main():\n"
        "    async with Pool(1) as pool: assert await pool.map(abs, [-1]) == [1]\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if 'distributed' in name or '_cluster' in name])"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
