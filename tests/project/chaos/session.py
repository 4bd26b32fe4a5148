"""One run: a pool, a load, killers, and the accounts of it all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiomultiprocess
import leaks
from aiomultiprocess import Pool
from chaos import hosts, tasks
from chaos.accounts import Accounts, Complaints, Outcome
from chaos.killers import OVER_LIMIT, Census, Killers
from chaos.load import RATE, Load
from chaos.meter import Meter, warm_up
from chaos.report import Report
from chaos.stall import Watchdog

if TYPE_CHECKING:
    from clusters import Dask

LIFETIME = 4000  # tasks after which a worker is replaced, if it lives as long
MEMORY = 120 << 20  # bytes of a worker after which it is replaced (CHAOS-11)
GRACE = 2.0  # seconds for a task that was cancelled, and for the exit of a worker


RESIZED = 3.0  # seconds between two changes of the number of workers


@dataclass(frozen=True)
class Options:
    """What a run is made of."""

    seconds: float
    seed: int
    backend: str | None = None
    processes: int = 2
    load: float = 1.0
    mean: float = 1.0  # seconds between two deaths
    patience: float = 30.0  # seconds without any task resolved that are a hang
    host_mean: float = 12.0  # seconds between two blows against a host
    trim: bool = False  # return free memory to the system before each sample of RSS


def run(options: Options) -> Report:
    """Run to the end, and see whether anything is left."""
    leaks.adopt_orphans()
    if options.backend == "dask":
        import distributed  # noqa: F401 - it makes threads that stay
    before = leaks.holdings()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, contextlib.ExitStack() as stack:
        cluster = None
        if options.backend == "dask":
            cluster = stack.enter_context(hosts.running(Path(folder)))
        report = asyncio.run(_run(options, Path(folder), cluster))
    left = leaks.left_behind(before)
    leaks.clear_away(left)
    # /dev/shm is the whole machine's, and an hour is long: what we never used is not ours
    left["shared memory"] = left.get("shared memory", set()) & report.meter.names
    report.left_behind = {kind: things for kind, things in left.items() if things}
    return report


async def _run(options: Options, folder: Path, cluster: Dask | None) -> Report:
    accounts = Accounts(folder)
    complaints = Complaints(accounts)
    logging.getLogger().addHandler(complaints)
    where: dict[str, Any] = {"backend": options.backend}
    processes = options.processes
    if cluster is not None:
        where["address"] = cluster.address
        processes = max(1, processes // len(hosts.HOSTS))  # on each
    pool = Pool(
        processes,
        initializer=tasks.prepare,
        initargs=(str(accounts.executed),),
        maxtasksperchild=LIFETIME,
        maxmemoryperchild=MEMORY,
        grace=GRACE,
        lifespan=tasks.Living(str(folder), locks=cluster is None),
        contextvars=[tasks.MARK],
        serializer="pickle",  # which refuses what tasks of some kinds send and return
        **where,
    )
    census, meter = Census(pool, accounts), Meter(pool, folder, trim=options.trim)
    print(describe(pool, options), flush=True)
    with Watchdog(lambda: accounts.resolved, options.patience):
        others = [asyncio.ensure_future(each) for each in (census.keep(), meter.run())]
        if cluster is not None:
            rng = random.Random(f"hosts {options.seed}")
            census.hosts = hosts.HostKillers(pool, accounts, cluster, options.host_mean, rng)
        await _work(pool, accounts, census, meter, options)
        pool.close()
        await pool.join()
        for other in others:
            other.cancel()
        await asyncio.wait(others)
    census.look()
    logging.getLogger().removeHandler(complaints)
    meter.stop()
    verdict = accounts.close()
    stats = pool.stats()
    if stats.waiting or stats.running:  # CHAOS-14
        verdict.fault(f"{stats.waiting} tasks wait and {stats.running} run after the end")
    counted, found = stats.timed_out, verdict.outcomes[Outcome.TIMED_OUT]
    if counted != found:  # CHAOS-9
        verdict.fault(f"the pool counts {counted} tasks over their limits, there were {found}")
    if census.deaths[OVER_LIMIT] > accounts.deaf:
        verdict.fault(f"only {accounts.deaf} tasks were to be killed")
    report = Report(verdict, census.deaths, meter, restarts=pool.stats().restarts)
    if census.hosts is not None:
        report.struck = census.hosts.struck
    return report


async def _work(
    pool: Pool, accounts: Accounts, census: Census, meter: Meter, options: Options
) -> None:
    """Load and killers, side by side; each has a random generator of its own."""
    now = asyncio.get_running_loop().time()
    until, crowded = now + options.seconds, now + warm_up(options.seconds)
    rng = random.Random(f"load {options.seed}")
    load = Load(pool, accounts, RATE * options.load, rng, meter.rest)
    rng = random.Random(f"killers {options.seed}")
    killers = Killers(pool, census, load.die, options.mean, rng)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(until, crowded))
        group.create_task(killers.run(until))
        if census.hosts is not None:
            group.create_task(census.hosts.run(until))
        else:  # hosts decide how many workers there are
            group.create_task(resize(pool, until, random.Random(f"sizes {options.seed}")))


async def resize(pool: Pool, until: float, rng: random.Random) -> None:
    """Change the number of workers now and then (CHAOS-11)."""
    loop, processes = asyncio.get_running_loop(), pool.process_count
    while loop.time() < until:
        await asyncio.sleep(rng.expovariate(1 / RESIZED))
        await pool.resize(rng.randint(1, processes + 2))
    await pool.resize(processes)


def describe(pool: Pool, options: Options) -> str:
    """What runs, and from where."""
    folder = Path(aiomultiprocess.__file__).parent
    return (
        f"aiomultiprocess {aiomultiprocess.__version__} of {folder}, "
        f"backend {pool.backend}, {pool.process_count} workers, "
        f"{platform.python_implementation()} {platform.python_version()}, seed {options.seed}"
    )
