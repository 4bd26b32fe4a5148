"""The report: a table of what was done and found, and the slope of the parent's memory."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.accounts import MEANING, Outcome, Verdict
from chaos.meter import Columns, Meter

Rows = Iterator[tuple[str, object]]

PARTS = 10  # of a run, whose medians show whether a figure has come to rest


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


def tenths_of(
    values: Sequence[float], measure: Callable[[Sequence[float]], float] = statistics.median
) -> list[float]:
    """The measure of each tenth of a run, in order; of each value, where these are fewer."""
    edges = [len(values) * part // PARTS for part in range(PARTS + 1)]
    parts = (values[begin:end] for begin, end in itertools.pairwise(edges))
    return [measure(part) for part in parts if part]


@dataclass
class Report:
    """All that a run has found."""

    verdict: Verdict
    deaths: Counter[str]
    meter: Meter
    left_behind: dict[str, set[object]] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    struck: Counter[str] = field(default_factory=Counter)  # hosts, by way

    @property
    def sound(self) -> bool:
        if self.verdict.lost_unexecuted > self._died:  # CHAOS-6
            return False
        return self.verdict.sound and not self.left_behind

    @property
    def _died(self) -> int:
        return sum(count for way, count in self.deaths.items() if not way.startswith("none"))

    def lines(self) -> Iterator[str]:
        for name, value in self._rows():
            yield f"  {name:42} {value}"
        for text in self.verdict.words:
            yield f"  ! {text}"
        yield "sound" if self.sound else "NOT SOUND"

    def _rows(self) -> Rows:
        verdict, seconds = self.verdict, self.meter.seconds
        yield "seconds", f"{seconds:.0f}"
        yield "tasks submitted", f"{verdict.submitted:,} ({verdict.submitted / seconds:,.0f}/s)"
        for outcome, (meaning, _) in MEANING.items():
            yield f"  ended by {meaning}", f"{verdict.outcomes[outcome]:,}"
            if outcome is Outcome.TIMED_OUT:
                yield "  these or lost, never executed", f"{verdict.lost_unexecuted:,}"
            if outcome is Outcome.HOST_LOST:
                yield "  these, never executed", f"{verdict.lost_with_host_unexecuted:,}"
        yield "executions", f"{verdict.executions:,}"
        yield "lost (never resolved)", verdict.lost
        yield "resolved twice", verdict.resolved_twice
        yield "executed too often", verdict.executed_too_often
        yield "resolved without being executed", verdict.executed_too_seldom
        yield "wrong results and other faults", verdict.faults
        yield from self._deaths()
        yield from self._resources()
        yield "left behind", self.left_behind or "nothing"

    def _deaths(self) -> Rows:
        rate = self._died / self.meter.seconds * 3600
        yield "deaths of workers", f"{self._died:,} ({rate:,.0f}/h)"
        for way, count in sorted(self.deaths.items()):
            yield f"  {way}", f"{count:,}"
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(self.restarts.items()))
        for way, count in sorted(self.struck.items()):
            yield f"hosts {way}", f"{count:,}"
        yield "replacements by cause", causes or "none"

    def _resources(self) -> Rows:
        mine, theirs = self.meter.cpu
        for when, table in (
            ("at rest", self.meter.at_rest),
            ("under load", self.meter.under_load),
        ):
            trimmed = ", trimmed" if self.meter.trim else ""
            yield from self._growth(f"RSS of the parent {when}{trimmed}, MB", table, "rss", ".1f")
            yield from self._growth(f"given by its malloc {when}, MB", table, "given", ".1f")
            yield from self._growth(f"blocks of its objects {when}", table, "blocks", ",.0f")
            what = f"descriptors of the parent {when}"
            yield from self._growth(what, table, "descriptors", ".0f")
            # each worker has some, so that what stays shows when the fewest live
            least = tenths_of(table["descriptors"], min)
            yield f"  the least of {PARTS} parts", " ".join(f"{one:.0f}" for one in least)
        yield "CPU, of one core", f"parent {mine:.0%}, workers {theirs:.0%}"

    def _growth(self, what: str, table: Columns, column: str, style: str) -> Rows:
        hours, values = table["hours"], table[column]
        yield what, f"{values[0]:{style}} at first, {values[-1]:{style}} at last"
        yield f"  medians of {PARTS} parts", " ".join(f"{m:{style}}" for m in tenths_of(values))
        begin, end = self.meter.settled, hours[-1]
        for part, since in (("", begin), (", second half", (begin + end) / 2)):
            points = [at for at in zip(hours, values, strict=True) if at[0] >= since]
            slope, error = slope_of(points)
            yield (
                f"  slope, an hour{part}",
                f"{slope:+{style}} +- {error:{style}}, of {len(points)} samples",
            )
