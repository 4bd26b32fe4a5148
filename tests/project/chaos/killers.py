"""The killers: workers end at random moments, in every way there is, and each end is booked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import psutil

from aiomultiprocess import Pool
from aiomultiprocess.pool import PoolWorker
from chaos.accounts import Accounts
from chaos.hosts import HostKillers
from chaos.tasks import EXIT_CODE

WEIGHTS = {"SIGKILL": 35, "SIGSTOP, SIGKILL": 15, "SIGTERM": 20, "segfault": 15, "exit": 15}
STOPPED = (0.2, 2.0)  # seconds that a worker stands still before it is killed
LOOK = 0.1  # seconds between two looks at who is there

OVER_LIMIT = "its task was over its limit, and deaf"
WITH_HOST = "its host was lost"

#: What an exit code says, other than SIGKILL, which has two reasons.
EXITS = {
    -signal.SIGTERM: "SIGTERM",
    -signal.SIGSEGV: "segfault",
    EXIT_CODE: "exit",
    0: "none: it was replaced, or the pool closed",
}


class Census:
    """Which workers there are, and how those ended that are no more (CHAOS-5)."""

    def __init__(self, pool: Pool, accounts: Accounts) -> None:
        self.deaths: Counter[str] = Counter()
        self.spares_starting = True  # until a worker is seen to become ready
        self.sent: dict[int | None, set[str]] = {}  # what was done to a worker, by its pid
        self.hosts: HostKillers | None = None
        self._pool = pool
        self._accounts = accounts
        self._known: dict[PoolWorker, bool] = {}  # and whether it was seen to be ready

    async def keep(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK)

    def look(self) -> None:
        present = self._pool.processes
        for worker in self._known.keys() - present.keys():
            del self._known[worker]
            self._bury(worker)
        # CHAOS-15. One that exits, however long, has passed its index on (SUPERVISOR-4).
        indices = [worker.index for worker in present if not worker.exiting]
        if len(set(indices)) != len(indices):
            self._accounts.fault(f"workers share an index: {indices}")
        for worker in present:
            if worker.ready and not self._known.get(worker):
                self.spares_starting = False
            self._known[worker] = worker.ready

    def _bury(self, worker: PoolWorker) -> None:
        sent = self.sent.pop(worker.pid, set())
        code = worker.exitcode
        if code is None and self.hosts is not None and self.hosts.explains(str(worker.host)):
            way = WITH_HOST
        elif code == -signal.SIGKILL and sent - {"SIGTERM"}:
            way = max(sent - {"SIGTERM"})
        elif code == -signal.SIGKILL and worker.deadlines and worker.deadlines.why_killed:
            way = OVER_LIMIT
        elif code in EXITS and (code != -signal.SIGTERM or "SIGTERM" in sent):
            way = EXITS[code]
        else:
            way = "unexplained"
            self._accounts.fault(
                f"worker {worker.pid} ended with code {code}, sent: {sent} {worker.why_ended}"
            )
        self.deaths[way] += 1


def _on_host(victim: PoolWorker) -> psutil.Process | None:
    """The process of a worker on a host: it stands still, and outlives a host that dies now."""
    if victim.host:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, which is not known yet
            return psutil.Process(victim.pid)
    return None


class Killers:
    """End a worker now and then: a Poisson process, `mean` seconds between two."""

    def __init__(
        self,
        pool: Pool,
        census: Census,
        die: Callable[[str], Coroutine[Any, Any, None]],
        mean: float,
        rng: random.Random,
    ) -> None:
        self._pool = pool
        self._census = census
        self._die = die  # submits a task that ends its worker
        self._mean = mean
        self._rng = rng

    async def run(self, until: float) -> None:
        """Until that time of the loop; a worker that stands still then is killed all the same."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as blows:
            while True:
                await asyncio.sleep(self._rng.expovariate(1 / self._mean))
                if loop.time() > until:
                    return
                [way] = self._rng.choices([*WEIGHTS], [*WEIGHTS.values()])
                blows.create_task(self._strike(way, self._rng.random()))

    async def _strike(self, way: str, chance: float) -> None:
        if way in ("segfault", "exit"):
            await self._die(way)
            return
        stops = way == "SIGSTOP, SIGKILL"
        victim = self._choose(chance, ready=stops)
        if victim is None:
            return
        if stops:
            self._send(victim, signal.SIGSTOP, way)
            shortest, longest = STOPPED
            process = _on_host(victim)
            await asyncio.sleep(shortest + chance * (longest - shortest))
            if process is not None and victim not in self._pool.processes:  # its host was lost
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._send(victim, signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL, way)

    def _choose(self, chance: float, ready: bool) -> PoolWorker | None:
        """Any worker, even one that starts unless it must be ready. But a pool in which
        three workers in a row die while they start, and there are no others, is rightly broken
        (SUPERVISOR-2): so only one such death is dealt until another worker becomes ready.
        """
        self._census.look()
        workers = list(self._pool.processes)
        if ready or self._census.spares_starting:
            workers = [worker for worker in workers if worker.ready]
        if not workers:
            return None
        victim = workers[int(chance * len(workers))]
        if not victim.ready:
            self._census.spares_starting = True
        return victim

    def _send(self, victim: PoolWorker, signum: int, way: str) -> None:
        """Signal a worker, unless its exit is known: its pid may be another's by now."""
        pid = victim.pid
        if pid is not None and victim in self._pool.processes:
            self._census.sent.setdefault(pid, set()).add(way)
            # it has perhaps ended, which the pool does not know yet: multiprocessing reaps all
            # children that have when it starts another
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
