"""The workloads: what is done with a peer's pool, how much of it, and which figures are shown."""

from dataclasses import dataclass
from typing import Any

import items
import measures as m
import sharing
from items import Task
from measures import CONCURRENCY, WORKERS, Measure


@dataclass(frozen=True)
class Metric:
    """One figure of a workload, as the tables show it."""

    key: str
    title: str
    unit: str  # one of report.UNITS
    more_is_better: bool


@dataclass(frozen=True)
class Workload:
    """`size` is the most that is done at a time; a slow peer does what it can in its time."""

    key: str
    measure: Measure
    metrics: tuple[Metric, ...]
    size: int
    quick: int
    peers: frozenset[str]
    tiny: int = 8  # for the test of the suite, and where the search for a size begins
    least: int = 1  # what the slowest peer does, however long it takes
    multiple: int = 1  # sizes are multiples of this where they can be
    workers: int = WORKERS
    concurrency: int = CONCURRENCY
    chunked: bool = True  # whether a chunk size matters
    opens: bool = False  # it opens the pool itself
    spoils: bool = False  # the pool is of no use afterwards
    fixed: bool = False  # the size is the point: a peer that is too slow for it is left out
    scaling: bool = False  # slow, or one of a series: a few rounds will do
    once: bool = False  # very slow: one round will do
    patience: float = 0  # seconds for an answer, if the suite's own are too few


RATE = (Metric("rate", "", "/s", True),)
EFFICIENCY = (Metric("efficiency", "", "%", True),)
THROUGHPUT = (Metric("throughput", "", "B/s", True),)
LATENCY = (Metric("p50", "p50", "s", False), Metric("p99", "p99", "s", False))
MEMORY = (Metric("parent", "peak memory, parent", "B", False),)
LIFE = (
    Metric("first", "pool of 2, to its first result", "s", False),
    Metric("children", "children of a pool of 2", "", False),
    Metric("descriptors", "descriptors of a pool of 2", "", False),
    Metric("cpu", "idle: CPU of parent and workers", "%", False),
    Metric("switches", "idle: wake-ups a second", "", False),
    Metric("parent", "peak memory, parent", "B", False),
    Metric("workers", "peak memory, workers", "B", False),
)

SHARE = (
    Metric("total", "share of 1 GB, and the first read of all of it by 8 workers", "s", False),
    Metric("written", "share of 1 GB, by itself", "s", False),
    Metric("memory", "share of 1 GB to 8 workers, memory of all processes", "B", False),
    Metric("beyond", "share of 1 GB to 8 workers, what it added to their memory", "B", False),
    Metric("calls", "apply with a shared object, to one with an int", "x", False),
    Metric("maps", "map by a partial of a shared object, to one of an int", "x", False),
)

STANDARD = frozenset(("multiprocessing", "executor", "run_in_executor", "interpreters"))
POOLS = frozenset(("shm", "pipe", "old", "mpire", "loky", "ray", "dask")) | STANDARD
MAPS = POOLS | {"joblib"}
WITH_LIMIT = MAPS | {"one_process"}
PAYLOAD = MAPS | {"memcpy", "fresh_copy"}
SCALED = frozenset(("shm", "pipe", "old", "multiprocessing"))


def titled(title: str, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    return tuple(
        Metric(
            one.key, f"{title}, {one.title}" if one.title else title, one.unit, one.more_is_better
        )
        for one in metrics
    )


def small(key: str, title: str, task: Task, make: Any, size: int, **more: Any) -> Workload:
    measure = m.mapping(task, make, m.rate, **more)
    quick = size // 5
    peers = WITH_LIMIT - {"old"} if task is items.PLAIN_ECHO else WITH_LIMIT  # 0.9.1 would hang
    return Workload(key, measure, titled(title, RATE), size, quick, peers, tiny=64)


def payload(key: str, title: str, make: Any, size: int) -> Workload:
    measure = m.mapping(items.ECHO, make, m.throughput, rehearsed=True)
    return Workload(key, measure, titled(title, THROUGHPUT), size, max(1, size // 4), PAYLOAD, 2)


def computing(key: str, title: str, make: Any, size: int) -> Workload:
    measure = m.mapping(items.BURN, make, m.efficiency(WORKERS))
    # an odd number of items would leave one worker idle during the last
    return Workload(
        key, measure, titled(title, EFFICIENCY), size, size // 4, MAPS, multiple=WORKERS
    )


def waiting(key: str, title: str, concurrency: int, size: int, quick: int) -> Workload:
    at_once = WORKERS * concurrency
    return Workload(
        key,
        m.mapping(items.WAIT, m.same(0.01), m.efficiency(at_once)),
        titled(title, EFFICIENCY),
        size,
        quick,
        WITH_LIMIT,
        tiny=16,
        multiple=at_once,
        concurrency=concurrency,
    )


KB, MB = 1 << 10, 1 << 20
COUNTS = tuple(10**power for power in range(3, 8))
WORKER_COUNTS = (1, 2, 4, 8, 16)

MAIN = (
    small("ints", "map, ints", items.ECHO, m.ints, 500_000),
    small("plain", "map, ints, synchronous function", items.PLAIN_ECHO, m.ints, 500_000),
    small("dicts", "map, 72-byte dicts", items.ECHO, m.dicts, 200_000),
    small("strings", "map, 1 KB strings", items.ECHO, m.strings, 50_000),
    small(
        "starmap",
        "starmap, pairs of ints",
        items.ADD,
        m.pairs,
        200_000,
        star=True,
        expected=m.together,
    ),
    Workload(
        "apply",
        m.one_by_one,
        titled("apply, one at a time", LATENCY),
        2_000,
        1_000,
        POOLS | {"one_process", "ping_pong"},
        least=20,
        chunked=False,
    ),
    Workload(
        "gather",
        m.gather,
        titled("gather of 20,000 apply", RATE),
        20_000,
        4_000,
        POOLS - {"ray", "dask"} | {"one_process"},  # those two would take 20 s and more
        chunked=False,
        fixed=True,
    ),
    waiting("wait", "items that await 10 ms, 2 x 16 at once", 16, 1_600, 640),
    waiting("wait_many", "items that await 10 ms, 2 x 1,000 at once", 1_000, 40_000, 10_000),
    Workload(
        "skewed",
        m.mapping(items.BURN, m.skewed, m.efficiency(WORKERS)),
        titled("1 % of items take 100 x as long", EFFICIENCY),
        4_000,
        500,
        MAPS,
        tiny=200,
        fixed=True,
    ),
    computing("cpu_100us", "items of 0.1 ms CPU", m.same(0.0001), 8_000),
    computing("cpu_1ms", "items of 1 ms CPU", m.same(0.001), 800),
    computing("cpu_10ms", "items of 10 ms CPU", m.same(0.01), 80),
    payload("bytes_64k", "echo of 64 KB bytes", m.blocks(64 * KB), 1_024),
    payload("bytes_1m", "echo of 1 MB bytes", m.blocks(MB), 128),
    payload("bytes_64m", "echo of 64 MB bytes", m.blocks(64 * MB), 2),
    payload("array_64k", "echo of 64 KB arrays", m.arrays(64 * KB), 1_024),
    payload("array_1m", "echo of 1 MB arrays", m.arrays(MB), 128),
    payload("array_64m", "echo of 64 MB arrays", m.arrays(64 * MB), 2),
    Workload(
        "beside",
        m.beside,
        titled("apply beside a map of 1,000,000 ints", LATENCY),
        1_000_000,
        1_000_000,
        frozenset(("shm", "pipe", "old")) | STANDARD,
        chunked=False,
        spoils=True,
        fixed=True,
        scaling=True,
    ),
    Workload(
        "bells",
        m.doorbells,
        # no stream: a frame carries thousands of items, and mostly finds the other side asleep
        (Metric("bells", "map of ints: frames that ring the doorbell", "%", False),),
        1_000_000,
        200_000,
        frozenset({"shm"}),
        chunked=False,
        fixed=True,
    ),
    Workload(
        "frames",
        m.frames,
        (
            Metric("rate", "stream of 64-byte frames over one link", "/s", True),
            Metric("bells", "stream of frames: those that ring the doorbell", "%", False),
        ),
        200_000,
        50_000,
        frozenset({"shm", "pipe"}),
        tiny=2_000,
        chunked=False,
        fixed=True,
    ),
    Workload(
        "share",
        sharing.sharing,
        SHARE,
        10**9,
        10**8,
        frozenset({"shm", "pipe", "ray", "memcpy", "fresh_copy"}),
        tiny=10**6,
        workers=sharing.WORKERS,
        concurrency=1,
        chunked=False,
        fixed=True,
    ),
)

# One after the other in a runner that does nothing else, seen from outside; see Suite._life
FIRST = Workload("life", m.first_result, LIFE, 1, 1, POOLS, chunked=False, opens=True, fixed=True)

BY_WORKERS = tuple(
    Workload(
        f"workers_{count}",
        m.one_by_one,
        titled(f"apply, one at a time, {count} workers", LATENCY),
        500,
        100,
        SCALED - {"old"},  # what it takes there is its polling
        least=20,
        workers=count,
        chunked=False,
        scaling=True,
    )
    for count in WORKER_COUNTS
)

BY_ITEMS = tuple(
    Workload(
        f"items_{count}",
        m.mapping(items.ECHO, m.ints, m.rate),
        titled(f"map of {count:,} ints", RATE),
        count,
        count,
        SCALED,
        fixed=True,
    )
    for count in COUNTS
)

STREAMS = tuple(
    Workload(
        f"stream_{count}",
        m.stream(range),
        titled(f"async for over an iterator of {count:,} ints", RATE + MEMORY),
        count,
        count,
        frozenset(("shm", "pipe")),
        chunked=False,
        fixed=True,
        scaling=True,
    )
    for count in COUNTS[1:]
) + tuple(
    Workload(
        f"stream_arrays_{count}",
        m.stream(m.fresh_arrays(MB)),
        titled(f"async for over an iterator of {count:,} arrays of 1 MB", RATE + MEMORY),
        count,
        count // 50,
        frozenset(("shm", "pipe")),
        chunked=False,
        fixed=True,
        once=True,
        patience=900,
    )
    for count in COUNTS[1:3]
)

WORKLOADS = {
    workload.key: workload for workload in (*MAIN, FIRST, *BY_WORKERS, *BY_ITEMS, *STREAMS)
}
