"""The promises of this library about its speed, and whether a run of the suite keeps them.

Ratios are medians of the ratios of each round, so that a minute in which the machine was slow hurts
both sides of a ratio.
"""

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from peers import PEERS
from workloads import MAIN, WORKLOADS, Metric

Results = dict[str, dict[str, list[dict[str, float]]]]

SLACK = 0.95  # what is "level" is so much of the other


@dataclass(frozen=True)
class Goal:
    title: str
    wanted: str
    got: str
    met: bool | None  # None: this run cannot tell


def ratio(results: Results, one: tuple[str, str, str], other: tuple[str, str, str]) -> float | None:
    """One figure divided by another, each (workload, peer, metric)."""
    try:
        ours, theirs = (
            [figures[metric] for figures in results[workload][peer]]
            for workload, peer, metric in (one, other)
        )
        return median(a / b for a, b in zip(ours, theirs, strict=False))
    except (KeyError, ZeroDivisionError):
        return None


def better(results: Results, workload: str, metric: Metric, one: str, other: str) -> float | None:
    """How many times as good the peer `one` is as `other`."""
    sides = [(workload, peer, metric.key) for peer in (one, other)]
    return ratio(results, *(sides if metric.more_is_better else sides[::-1]))


def value(results: Results, workload: str, peer: str, metric: str) -> float | None:
    """The median of one figure."""
    try:
        return median(figures[metric] for figures in results[workload][peer])
    except KeyError:
        return None


def at_least(title: str, least: float, got: float | None) -> Goal:
    shown = "not measured" if got is None else f"{got:.2f}x"
    return Goal(title, f">= {least:g}x", shown, None if got is None else got >= least)


def at_most(title: str, most: float, got: float | None, scale: float = 1, unit: str = "") -> Goal:
    shown = "not measured" if got is None else f"{got * scale:.3g}{unit}"
    wanted = f"<= {most * scale:g}{unit}"
    return Goal(title, wanted, shown, None if got is None else got <= most)


def all_goals(found: dict[str, Any]) -> list[Goal]:
    """What was promised at first, and what was promised for each Python and for large data."""
    later = goals_of_each_python(found["results"])
    if found.get("scale", {}).get("size", "size") != "size":  # of less, it says nothing of these
        later = [replace(goal, met=None) if goal.title in OF_ALL else goal for goal in later]
    return [*goals(found), *later]


def goals(found: dict[str, Any]) -> list[Goal]:
    """The first promises, in the order of the issue that made them."""
    results: Results = found["results"]

    def compared(workload: str, one: str, other: str) -> float | None:
        return better(results, workload, WORKLOADS[workload].metrics[0], one, other)

    waiting = value(results, "wait", "shm", "efficiency")
    first = ratio(results, ("life", "shm", "first"), ("life", "old", "first"))
    by_workers = ratio(results, ("workers_16", "shm", "p50"), ("workers_2", "shm", "p50"))
    by_items = ratio(results, ("items_100000", "shm", "rate"), ("items_10000000", "shm", "rate"))
    pool = "multiprocessing.Pool"
    return [
        at_least("map, ints: to 0.9.1", 100, compared("ints", "shm", "old")),
        at_least(f"map, ints: to {pool}", SLACK, compared("ints", "shm", "multiprocessing")),
        at_least(
            f"map, synchronous function: to {pool}", 1, compared("plain", "shm", "multiprocessing")
        ),
        at_least(f"map, dicts: to {pool}", 2, compared("dicts", "shm", "multiprocessing")),
        at_most(
            "apply, p50: to the eventfd ping-pong",
            2,
            ratio(results, ("apply", "shm", "p50"), ("apply", "ping_pong", "p50")),
            unit="x",
        ),
        at_least("gather of apply: to 0.9.1", 15, compared("gather", "shm", "old")),
        Goal(
            "items that await 10 ms, 2 x 16: of the ideal",
            ">= 98 %",
            _waiting(results, waiting),
            None if waiting is None else waiting >= 0.98,
        ),
        _beside_limit(
            at_least(f"echo of 1 MB: to {pool}", 5, compared("bytes_1m", "shm", "multiprocessing")),
            "a copy in fresh memory",
            compared("bytes_1m", "fresh_copy", "multiprocessing"),
        ),
        at_most("idle: CPU", 0.0005, value(results, "life", "shm", "cpu"), 100, " %"),
        at_most("idle: wake-ups a second", 0.0, value(results, "life", "shm", "switches")),
        at_most("time to first result: to 0.9.1", 0.7, first, unit="x"),
        at_most("children of a pool of 2", 2, value(results, "life", "shm", "children")),
        at_least("map, ints, pipe: to 0.9.1", 20, compared("ints", "pipe", "old")),
        at_most(
            "apply beside a map, p99", 0.005, value(results, "beside", "shm", "p99"), 1e3, " ms"
        ),
        at_most("skewed items: seconds to those of the best peer", 1.1, _skewed(results), unit="x"),
        at_most("cost of an item, 10^7 to 10^5", 1.2, by_items, unit="x"),
        at_most(
            "memory of the parent, async for over 10^7 items to 10^5",
            1.25,
            ratio(
                results, ("stream_10000000", "shm", "parent"), ("stream_100000", "shm", "parent")
            ),
            unit="x",
        ),
        at_most("latency of apply, 16 workers to 2", 1.2, by_workers, unit="x"),
        at_most(
            "stream of frames: those that ring the doorbell",
            0.05,
            value(results, "frames", "shm", "bells"),
            100,
            " %",
        ),
        _never_slower(results),
    ]


def goals_of_each_python(results: Results) -> list[Goal]:
    """Large data without a copy, and the same speed on every Python: in the order of that issue."""

    def compared(workload: str, other: str, one: str = "shm") -> float | None:
        return better(results, workload, WORKLOADS[workload].metrics[0], one, other)

    def memory(count: int) -> tuple[str, str, str]:
        return f"stream_arrays_{count}", "shm", "parent"

    pool = "multiprocessing.Pool"
    return [
        at_least("echo of 64 MB arrays: to ray", 2, compared("array_64m", "ray")),
        at_least(f"echo of 64 MB arrays: to {pool}", 40, compared("array_64m", "multiprocessing")),
        _to_best("echo of 1 MB arrays: to the best peer", 1.2, results, "array_1m"),
        _to_best("echo of 64 KB arrays: to the best peer", 1.2, results, "array_64k"),
        at_least("echo of 64 MB bytes: shm to pipe", 1, compared("bytes_64m", "pipe")),
        at_least("echo of 1 MB bytes: shm to pipe", 1, compared("bytes_1m", "pipe")),
        at_least(f"echo of 64 MB bytes: to {pool}", 5, compared("bytes_64m", "multiprocessing")),
        *_sharing(results),
        at_least(f"map, ints, each Python: to {pool}", 1, compared("ints", "multiprocessing")),
        at_least(
            f"map, synchronous function, each Python: to {pool}",
            1.1,
            compared("plain", "multiprocessing"),
        ),
        at_least(f"map, dicts, each Python: to {pool}", 1.8, compared("dicts", "multiprocessing")),
        at_least("gather of apply, each Python: to 0.9.1", 10, compared("gather", "old")),
        _within_a_point("items of 0.1 ms CPU", results, "cpu_100us"),
        _within_a_point("items of 1 ms CPU", results, "cpu_1ms"),
        _within_a_point("1 % of items take 100 x as long", results, "skewed"),
        at_most(
            ARRAYS,
            FLAT,
            ratio(results, memory(100_000), memory(10_000)),
            unit="x",
        ),
    ]


FLAT = 1.05  # what does not grow
ARRAYS = "memory of the parent, async for over 10^5 arrays of 1 MB to 10^4"
SHARED_MEMORY = "share of 1 GB: memory of all processes"
SHARED_TIME = "share of 1 GB, and its first read by 8 workers: to one memcpy"
#: Goals that only a run of full size can meet or miss.
OF_ALL = (ARRAYS, SHARED_MEMORY, SHARED_TIME)


def _sharing(results: Results) -> list[Goal]:
    def of(metric: str) -> float | None:
        return value(results, "share", "shm", metric)

    written = ("share", "shm", "written"), ("share", "memcpy", "written")
    whole = at_most(
        SHARED_TIME,
        1.3,
        ratio(results, ("share", "shm", "total"), ("share", "memcpy", "total")),
        unit="x",
    )
    memory = at_most(SHARED_MEMORY, 1.1e9, of("memory"), 1e-9, " GB")
    calls, maps = of("calls"), of("maps")
    task = None if calls is None or maps is None else max(calls, maps)
    return [
        _with(memory, "what it added", of("beyond"), 1e-9, " GB"),
        _with(whole, "share by itself", ratio(results, *written)),
        at_most("a task with a shared object: to one with an int", 1.1, task, unit="x"),
    ]


def _with(goal: Goal, what: str, got: float | None, scale: float = 1, unit: str = "x") -> Goal:
    """A goal together with a figure that explains it."""
    return (
        goal if got is None else replace(goal, got=f"{goal.got} ({what}: {got * scale:.3g}{unit})")
    )


def _rivals(results: Results, workload: str) -> list[str]:
    return [
        peer
        for peer in results.get(workload, {})
        if peer not in ("shm", "pipe") and not PEERS[peer].limit
    ]


def _to_best(title: str, least: float, results: Results, workload: str) -> Goal:
    """To whichever peer comes closest."""
    metric = WORKLOADS[workload].metrics[0]
    got = {
        peer: times
        for peer in _rivals(results, workload)
        if (times := better(results, workload, metric, "shm", peer)) is not None
    }
    closest = min(got, key=lambda peer: got[peer], default=None)
    goal = at_least(title, least, None if closest is None else got[closest])
    return goal if closest is None else replace(goal, got=f"{goal.got} ({PEERS[closest].title})")


def _within_a_point(title: str, results: Results, workload: str) -> Goal:
    """Of the ideal, in per cent; level with the best peer but for one point."""
    ours = value(results, workload, "shm", "efficiency")
    theirs = {
        peer: efficiency
        for peer in _rivals(results, workload)
        if (efficiency := value(results, workload, peer, "efficiency")) is not None
    }
    title, wanted = f"{title}: of the ideal", ">= best peer - 1 point"
    if ours is None or not theirs:
        return Goal(title, wanted, "not measured", None)
    best = max(theirs, key=lambda peer: theirs[peer])
    got = f"{ours:.1%} ({PEERS[best].title}: {theirs[best]:.1%})"
    return Goal(title, wanted, got, ours >= theirs[best] - 0.01)


def _beside_limit(goal: Goal, what: str, limit: float | None) -> Goal:
    """A goal together with what a limit reaches in the same run."""
    if limit is None:
        return goal
    return replace(goal, got=f"{goal.got} ({what}: {limit:.2f}x)")


def _waiting(results: Results, got: float | None) -> str:
    if got is None:
        return "not measured"
    limit = value(results, "wait", "one_process", "efficiency")
    return f"{got:.1%}" + ("" if limit is None else f" (one loop by itself: {limit:.1%})")


def _skewed(results: Results) -> float | None:
    ours = value(results, "skewed", "shm", "efficiency")
    theirs = [
        value(results, "skewed", peer, "efficiency")
        for peer in results.get("skewed", {})
        if peer not in ("shm", "pipe") and not PEERS[peer].limit
    ]
    if ours is None or not theirs:
        return None
    return max(efficiency for efficiency in theirs if efficiency is not None) / ours


def _never_slower(results: Results) -> Goal:
    """The worst of all rows against 0.9.1."""
    worst: tuple[float, str] | None = None
    for workload in (*MAIN, WORKLOADS["life"]):
        for metric in workload.metrics:
            got = better(results, workload.key, metric, "shm", "old")
            if got is not None and metric.unit and (worst is None or got < worst[0]):
                worst = got, metric.title
    title, wanted = "the worst row against 0.9.1", ">= 1x"
    if worst is None:
        return Goal(title, wanted, "not measured", None)
    return Goal(title, wanted, f"{worst[0]:.2f}x ({worst[1]})", worst[0] >= 1)
