"""Chaos over a dask cluster: hosts that are stopped, or killed and restarted by their nannies."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from aiomultiprocess import Pool
from chaos.accounts import Accounts

if TYPE_CHECKING:
    from clusters import Dask

HOSTS = ("left", "right")
WEIGHTS = {"killed": 50, "stopped for a while": 25, "stopped until it is lost": 25}
SHORT = (0.1, 2.0)  # seconds of a stop that must not cost a host
LONG = 14.0  # seconds of a stop that must: within 9 s, and the client's own stops do not count
SETTLED = 5.0  # seconds after a stop until the loss of its host is no longer explained by it


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Dask]:
    """A cluster of two hosts, each below a nanny."""
    from clusters import Dask  # imports nothing of dask, as its programs do; but it is optional

    (folder / "dask").mkdir()
    with Dask(folder / "dask", nanny=True) as cluster:
        yield cluster.add(*HOSTS)


class HostKillers:
    """Stop or kill a host now and then, `mean` seconds between two (CHAOS-15)."""

    def __init__(
        self, pool: Pool, accounts: Accounts, cluster: Dask, mean: float, rng: random.Random
    ) -> None:
        self.struck: Counter[str] = Counter()
        self._pool = pool
        self._accounts = accounts
        self._cluster = cluster
        self._mean = mean
        self._rng = rng
        self._harmed: dict[str, float] = {}  # addresses, and until when they may be lost

    def explains(self, host: str) -> bool:
        """Whether something that was done to a host explains its loss."""
        return asyncio.get_running_loop().time() < self._harmed.get(host, -math.inf)

    async def run(self, until: float) -> None:
        """Until that time of the loop; each host that was stopped goes on before this returns."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as blows:
            while True:
                await asyncio.sleep(self._rng.expovariate(1 / self._mean))
                if loop.time() > until:
                    return
                [way] = self._rng.choices([*WEIGHTS], [*WEIGHTS.values()])
                blows.create_task(self._strike(way, self._rng.random()))

    async def _strike(self, way: str, chance: float) -> None:
        hosts = self._hosts()
        if not hosts:
            return
        address, process = hosts[int(chance * len(hosts))]
        with contextlib.suppress(psutil.NoSuchProcess):  # killed, while it stood still
            if process.status() == psutil.STATUS_STOPPED and way != "killed":
                return
            self.struck[way] += 1
            if way == "killed":
                self._harmed[address] = math.inf
                process.kill()
            elif way == "stopped for a while":
                await self._stop(process, SHORT[0] + chance * (SHORT[1] - SHORT[0]))
            else:
                await self._stop_until_lost(address, process)

    async def _stop(self, process: psutil.Process, seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)

    async def _stop_until_lost(self, address: str, process: psutil.Process) -> None:
        self._harmed[address] = math.inf
        await self._stop(process, LONG)
        if any(worker.host == address for worker in self._pool.processes):
            self._accounts.fault(f"the host {address} stood still for {LONG} s, and was not lost")
        self._harmed[address] = asyncio.get_running_loop().time() + SETTLED

    def _hosts(self) -> list[tuple[str, psutil.Process]]:
        """The hosts that have processes of the pool: their addresses, and the dask workers."""
        hosts: dict[int | None, Any] = {worker.pid: worker.host for worker in self._pool.processes}
        found = []
        for nanny in self._cluster.workers.values():
            for process in psutil.Process(nanny.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    theirs = {child.pid for child in process.children()} & hosts.keys()
                    found += [(hosts[pid], process) for pid in [*theirs][:1]]
        return found
