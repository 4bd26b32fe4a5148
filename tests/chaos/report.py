"""The report: a table of what was done and found, and the slope of the parent's memory."""

from __future__ import annotations

import array
import asyncio
import ctypes
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psutil

import leaks
from aiomultiprocess import Pool
from chaos.accounts import MEANING, Verdict

EVERY = 1.0  # seconds between two samples
WARM_UP = 60.0  # seconds at most, and a quarter of the run, that the slope leaves out

MB = 1e6


def slope_of(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope of a straight line through points, by least squares, and its standard error."""
    n = len(points)
    if n < 3:
        return math.nan, math.nan
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(rest / (n - 2) / spread)


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


class Series:
    """Samples of one figure: arrays, for it must not be the samples that grow."""

    def __init__(self) -> None:
        self.hours = array.array("d")
        self.values = array.array("d")

    def add(self, hours: float, value: float) -> None:
        self.hours.append(hours)
        self.values.append(value)

    def since(self, hours: float) -> list[tuple[float, float]]:
        """The samples from that time on."""
        return [at for at in zip(self.hours, self.values, strict=True) if at[0] >= hours]


class Meter:
    """Samples what the parent holds, and measures what all processes use."""

    def __init__(self, pool: Pool, *, trim: bool) -> None:
        self.rss = Series()  # MB
        self.malloc = Series()  # MB that malloc has given away
        self.blocks = Series()  # that Python's objects take
        self.descriptors = array.array("l")
        self.names: set[str] = set()  # in /dev/shm, of what any of us had mapped
        self.seconds = 0.0
        self.cpu: list[float] = []  # of the parent and of its workers, of one core
        self.trim = trim
        self._pool = pool
        self._malloc = Malloc()
        self._began = time.monotonic()
        self._process = psutil.Process()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            if self.trim:
                self._malloc.trim()
            hours = (time.monotonic() - self._began) / 3600
            self.rss.add(hours, self._process.memory_info().rss / MB)
            self.malloc.add(hours, self._malloc.given() / MB)
            self.blocks.add(hours, sys.getallocatedblocks())
            self.descriptors.append(self._process.num_fds())
            for pid in ("self", *(worker.pid for worker in self._pool.processes)):
                self.names |= {line.rpartition("/")[2] for line in leaks.mappings(str(pid))}
            await asyncio.sleep(EVERY)

    def stop(self) -> None:
        """The run is over: what follows is not measured."""
        self.seconds = time.monotonic() - self._began
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self.cpu = [(one.ru_utime + one.ru_stime) / self.seconds for one in used]

    @property
    def settled(self) -> float:
        """When the warm-up was over, in hours."""
        return min(WARM_UP, self.seconds / 4) / 3600


@dataclass
class Report:
    """All that a run has to tell."""

    verdict: Verdict
    deaths: Counter[str]
    meter: Meter
    left_behind: dict[str, set[object]] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return self.verdict.sound and not self.left_behind

    def lines(self) -> Iterator[str]:
        for name, value in self._rows():
            yield f"  {name:42} {value}"
        for text in self.verdict.words:
            yield f"  ! {text}"
        yield "sound" if self.sound else "NOT SOUND"

    def _rows(self) -> Iterator[tuple[str, object]]:
        verdict, seconds = self.verdict, self.meter.seconds
        yield "seconds", f"{seconds:.0f}"
        yield "tasks submitted", f"{verdict.submitted:,} ({verdict.submitted / seconds:,.0f}/s)"
        for outcome, (meaning, _) in MEANING.items():
            yield f"  ended by {meaning}", f"{verdict.outcomes[outcome]:,}"
        yield "executions", f"{verdict.executions:,}"
        yield "lost (never resolved)", verdict.lost
        yield "resolved twice", verdict.resolved_twice
        yield "executed too often", verdict.executed_too_often
        yield "resolved without being executed", verdict.executed_too_seldom
        yield "wrong results and other faults", verdict.faults
        yield from self._deaths()
        yield from self._resources()
        yield "left behind", self.left_behind or "nothing"

    def _deaths(self) -> Iterator[tuple[str, object]]:
        total = sum(count for way, count in self.deaths.items() if not way.startswith("none"))
        yield "deaths of workers", f"{total:,} ({total / self.meter.seconds * 3600:,.0f}/h)"
        for way, count in sorted(self.deaths.items()):
            yield f"  {way}", f"{count:,}"

    def _resources(self) -> Iterator[tuple[str, object]]:
        mine, theirs = self.meter.cpu
        what = "RSS of the parent, trimmed, MB" if self.meter.trim else "RSS of the parent, MB"
        yield from self._growth(what, self.meter.rss, ".1f")
        yield from self._growth("what malloc has given it, MB", self.meter.malloc, ".1f")
        yield from self._growth("blocks of its objects", self.meter.blocks, ",.0f")
        held = self.meter.descriptors
        yield "descriptors of the parent", f"{held[0]} at first, {held[-1]} at last"
        yield "CPU, of one core", f"parent {mine:.0%}, workers {theirs:.0%}"

    def _growth(self, what: str, series: Series, style: str) -> Iterator[tuple[str, object]]:
        begin, end = self.meter.settled, self.meter.seconds / 3600
        yield what, f"{series.values[0]:{style}} at first, {series.values[-1]:{style}} at last"
        for part, since in (("", begin), (", second half", (begin + end) / 2)):
            samples = series.since(since)
            slope, error = slope_of(samples)
            yield (
                f"  slope, an hour{part}",
                f"{slope:+{style}} +- {error:{style}}, of {len(samples)} samples",
            )
