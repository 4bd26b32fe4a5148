"""The meter: samples of what the parent holds, and what all processes used."""

from __future__ import annotations

import array
import asyncio
import ctypes
import gc
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

import leaks
from aiomultiprocess import Pool

EVERY = 1.0  # seconds between two samples
WARM_UP = 60.0  # seconds at most, and a quarter of the run, that slopes leave out

MB = 1e6

#: Hours since the beginning; MB of RSS; MB that malloc has given away; blocks that Python's objects
#: take; descriptors.
COLUMNS = ("hours", "rss", "given", "blocks", "descriptors")
Columns = dict[str, Sequence[float]]


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class Malloc:
    """What glibc's allocator says of itself: RSS is what it has given, and what lies in pieces."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._info = getattr(libc, "mallinfo2", None)  # neither of them, where there is no glibc
        self._trim = getattr(libc, "malloc_trim", None)
        if self._info is not None:
            self._info.restype = _MallInfo

    def given(self) -> float:
        """Bytes that are in use; NaN where that cannot be asked."""
        if self._info is None:
            return math.nan
        info = self._info()
        return float(info.uordblks + info.hblkhd)

    def trim(self) -> None:
        """Return every page to the system on which nothing is in use."""
        if self._trim is not None:
            self._trim(0)


def warm_up(seconds: float) -> float:
    """How many of the first seconds of a run are no part of what is measured."""
    return min(WARM_UP, seconds / 4)


class Samples:
    """A table in a file (CHAOS-4): it must not be the samples that grow."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)

    def add(self, *row: float) -> None:
        """One more row, a value for each column."""
        array.array("d", row).tofile(self._file)

    def columns(self) -> Columns:
        """All rows that there are; none can be added any more."""
        with self._file as file:
            file.seek(0)
            table = array.array("d", file.read())
        return {name: table[at :: len(COLUMNS)] for at, name in enumerate(COLUMNS)}


class Meter:
    """Samples what the parent holds, and measures what all processes use."""

    def __init__(self, pool: Pool, folder: Path, *, trim: bool) -> None:
        self.under_load: Columns = {}  # once it has stopped
        self.at_rest: Columns = {}
        self.names: set[str] = set()  # in /dev/shm, of what any of us had mapped
        self.seconds = 0.0
        self.cpu: list[float] = []  # of the parent and of its workers, of one core
        self.trim = trim
        self._pool = pool
        self._under_load = Samples(folder / "under load")
        self._at_rest = Samples(folder / "at rest")
        self._malloc = Malloc()
        self._began = time.monotonic()
        self._process = psutil.Process()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self._sample(self._under_load)
            pids = [worker.pid for worker in self._pool.processes if worker.pid]
            for pid in ("self", *pids):
                self.names |= {line.rpartition("/")[2] for line in leaks.mappings(str(pid))}
            await asyncio.sleep(EVERY)

    def rest(self) -> None:
        """Sample once while no operation is under way: the load then is no part of it (CHAOS-7)."""
        gc.collect()
        self._sample(self._at_rest)

    def _sample(self, samples: Samples) -> None:
        if self.trim:
            self._malloc.trim()
        samples.add(
            (time.monotonic() - self._began) / 3600,
            self._process.memory_info().rss / MB,
            self._malloc.given() / MB,
            sys.getallocatedblocks(),
            self._process.num_fds(),
        )

    def stop(self) -> None:
        """The run is over: what follows is not measured."""
        self.seconds = time.monotonic() - self._began
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self.cpu = [(one.ru_utime + one.ru_stime) / self.seconds for one in used]
        self.under_load = self._under_load.columns()
        self.at_rest = self._at_rest.columns()

    @property
    def settled(self) -> float:
        """When the warm-up was over, in hours."""
        return warm_up(self.seconds) / 3600
