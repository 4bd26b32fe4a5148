"""One machine, then a cluster: `make cluster-demo`, or `python examples/cluster.py --help`.

The same program runs on the processes of this machine, and on a dask cluster; one argument of
`Pool` differs. The cluster is a scheduler and two workers, which this program starts as processes;
while the program runs there, one of the workers is killed. Nothing is lost.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from aiomultiprocess import Pool

# ---- the program: what a user has


async def find(seed: int) -> tuple[int, int]:
    """The number that makes a hash begin with two zeros: about a tenth of a millisecond of work."""
    for number in range(1 << 20):
        if hashlib.sha256(f"{seed}/{number}".encode()).digest()[:1] == b"\0":
            return seed, number
    raise ValueError(seed)


async def program(count: int, half_way: asyncio.Event | None = None, **pool: Any) -> int:
    """Find `count` numbers, on whatever workers there are; their sum."""
    total = 0
    async with Pool(**pool) as workers:
        async for seed, number in workers.map(find, range(count), retries=1):
            total += number
            if half_way is not None and seed == count // 2:
                half_way.set()
    return total


# ---- the cluster: what an administrator has


def start(folder: Path, part: str, *options: str) -> "subprocess.Popen[bytes]":
    """Start a part of a dask cluster, as `dask scheduler` and `dask worker` do."""
    command = [sys.executable, "-Pm", f"distributed.cli.dask_{part}", "--no-dashboard", *options]
    with (folder / f"{part}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def address_of(scheduler: "subprocess.Popen[bytes]", file: Path) -> str:
    """The address that a scheduler has written into its file."""
    while not (file.exists() and file.read_text()):
        if scheduler.poll() is not None:
            log = (file.parent / "scheduler.log").read_text()
            sys.exit(f"the scheduler has ended with code {scheduler.returncode}:\n{log}")
        sleep(0.05)
    return str(json.loads(file.read_text())["address"])


async def kill_at(half_way: asyncio.Event, worker: "subprocess.Popen[bytes]") -> None:
    """Kill a dask worker when half of the work is done."""
    await half_way.wait()
    worker.send_signal(signal.SIGKILL)
    print(f"  half-way: dask worker {worker.pid} was killed")


async def compare(count: int, folder: Path) -> None:
    """Run the program here, and on a cluster."""
    begin = perf_counter()
    here = await program(count, processes=2)
    print(
        f"on this machine: the sum of {count:,} numbers is {here:,}, {perf_counter() - begin:.1f} s"
    )
    file = folder / "scheduler.json"
    parts = [start(folder, "scheduler", "--port", "0", "--scheduler-file", str(file))]
    try:
        address = address_of(parts[0], file)
        at = ("--scheduler-file", str(file), "--nthreads", "1", "--no-nanny")
        workers = [start(folder, "worker", *at, "--name", name) for name in ("left", "right")]
        parts += workers
        half_way = asyncio.Event()
        killer = asyncio.create_task(kill_at(half_way, workers[0]))
        begin = perf_counter()
        there = await program(count, half_way, backend="dask", address=address)
        await killer
        seconds = perf_counter() - begin
        print(f"on a cluster:    the sum of {count:,} numbers is {there:,}, {seconds:.1f} s")
    finally:
        for part in reversed(parts):
            part.terminate()
            part.wait()
    assert here == there, "a result was lost, or came twice"
    print("both are the same: nothing was lost with the worker")


def positive(text: str) -> int:
    """A number of the command line; argparse says what is wrong with any other text."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--count", type=positive, default=8_000, help="how many numbers to find, at least one"
    )
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(compare(arguments.parse_args().count, Path(scratch)))
