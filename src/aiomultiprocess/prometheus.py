"""Statistics of pools for Prometheus: `pip install aiomultiprocess[prometheus]`.

from prometheus_client import REGISTRY
REGISTRY.register(PoolCollector(pool, name="thumbnails").add(another, name="mails"))
"""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "aiomultiprocess.prometheus needs prometheus_client: install aiomultiprocess[prometheus]"
    ) from error

from ._arguments import duration
from ._parent.stats import PoolStats
from ._processes import loops

if TYPE_CHECKING:
    from ._parent.engine import Engine

__all__ = ["PoolCollector"]

PREFIX = "aiomultiprocess"


class MeasuredPool(Protocol):
    """What a collector needs of a `Pool`."""

    _engine: Engine | None

    def stats(self) -> PoolStats:
        """Its statistics now."""


class PoolCollector(Collector):
    """A collector of prometheus_client over `Pool.stats()` of one or more pools.

    A registry takes one PoolCollector, because it refuses a second collector of the same metrics
    ("Duplicated timeseries in CollectorRegistry"). `add` gives that one further pools.

    It does not keep a pool alive, and collects nothing of a pool that is gone. It may be called in
    any thread: the numbers are read in the pool's event loop.

    Arguments:
        pool: the first pool; without it, the collector has no pools until `add`.
        name: the value of the label `pool` of all metrics of that pool.
        timeout: seconds to wait for a pool's event loop if it runs in another thread; after that
            `collect` raises TimeoutError.
    """

    def __init__(
        self, pool: MeasuredPool | None = None, name: str = "default", timeout: float = 5.0
    ) -> None:
        limit = duration("timeout", timeout)
        self._lock = threading.Lock()  # around changes of `_pools`
        # by name; replaced and never changed, since `collect` iterates over it in any thread
        self._pools: Mapping[str, weakref.ref[MeasuredPool]] = {}
        self._timeout = limit
        if pool is not None:
            self.add(pool, name)

    def add(self, pool: MeasuredPool, name: str) -> Self:
        """Collect another pool too, under a name that no living pool of this collector has."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        if not callable(getattr(pool, "stats", None)):
            raise TypeError(f"pool must be a Pool, not {pool!r}")
        with self._lock:
            alive = {key: ref for key, ref in self._pools.items() if ref() is not None}
            if name in alive:
                raise ValueError(
                    f"name={name!r} belongs to a pool of this collector: choose another name, "
                    f"or call remove({name!r}) first"
                )
            self._pools = {**alive, name: weakref.ref(pool)}
        return self

    def remove(self, name: str) -> None:
        """Collect the pool of this name no longer; without effect if there is none."""
        with self._lock:
            self._pools = {key: ref for key, ref in self._pools.items() if key != name}

    def describe(self) -> Iterator[Any]:
        """The metrics without their values, so that a registry reads no pool to register this."""
        return iter(_with_values({}))

    def collect(self) -> Iterator[Any]:
        """The metrics of the pools now: each once, with the samples of all pools."""
        stats = self._read_all()
        return iter(_with_values(stats) if stats else [])

    def _read_all(self) -> dict[str, PoolStats]:
        pools = ((name, ref()) for name, ref in self._pools.items())
        return {name: self._read(pool) for name, pool in pools if pool is not None}

    def _read(self, pool: MeasuredPool) -> PoolStats:
        loop = None if pool._engine is None else pool._engine.loop
        if loop is None or not loop.is_running() or loops.running_loop() is loop:
            return pool.stats()
        read: concurrent.futures.Future[PoolStats] = concurrent.futures.Future()

        def read_now() -> None:
            try:
                read.set_result(pool.stats())
            except Exception as error:  # noqa: BLE001 - it is the collector's
                read.set_exception(error)

        loop.call_soon_threadsafe(read_now)
        return read.result(self._timeout)


def _pool_metrics() -> list[Any]:
    return [
        CounterMetricFamily(
            f"{PREFIX}_tasks", "Tasks that have ended, by outcome", labels=["pool", "outcome"]
        ),
        CounterMetricFamily(f"{PREFIX}_retries", "Tasks that run again", labels=["pool"]),
        CounterMetricFamily(
            f"{PREFIX}_restarts", "Workers that were replaced, by cause", labels=["pool", "cause"]
        ),
        GaugeMetricFamily(
            f"{PREFIX}_tasks_open", "Tasks that wait or run", labels=["pool", "state"]
        ),
        GaugeMetricFamily(f"{PREFIX}_workers", "Worker processes", labels=["pool"]),
    ]


def _worker_metrics() -> list[Any]:
    labels = ["pool", "index"]
    return [
        GaugeMetricFamily(f"{PREFIX}_worker_running", "Tasks that run", labels=labels),
        GaugeMetricFamily(f"{PREFIX}_worker_waiting", "Tasks that wait there", labels=labels),
        GaugeMetricFamily(f"{PREFIX}_worker_uptime_seconds", "Since its launch", labels=labels),
        GaugeMetricFamily(
            f"{PREFIX}_worker_resident_memory_bytes", "Resident memory", labels=labels
        ),
        GaugeMetricFamily(
            f"{PREFIX}_worker_busy_ratio", "Part of its uptime in turns of its loop", labels=labels
        ),
        GaugeMetricFamily(
            f"{PREFIX}_worker_lag_seconds", "Age of the turn that its loop is in", labels=labels
        ),
    ]


def _with_values(pools: Mapping[str, PoolStats]) -> list[Any]:
    of_pools, of_workers = _pool_metrics(), _worker_metrics()
    for name, stats in pools.items():
        _add_pool(of_pools, name, stats)
        _add_workers(of_workers, name, stats)
    return [*of_pools, *of_workers]


def _add_pool(metrics: list[Any], name: str, stats: PoolStats) -> None:
    tasks, retries, restarts, still_open, workers = metrics
    for outcome in ("done", "failed", "timed_out", "cancelled", "lost"):
        tasks.add_metric([name, outcome], getattr(stats, outcome))
    retries.add_metric([name], stats.retried)
    for cause, number in stats.restarts.items():
        restarts.add_metric([name, cause], number)
    for state in ("waiting", "running"):
        still_open.add_metric([name, state], getattr(stats, state))
    workers.add_metric([name], len(stats.workers))


def _add_workers(metrics: list[Any], name: str, stats: PoolStats) -> None:
    running, waiting, uptime, memory, busy, lag = metrics
    # by index: of a worker that is slow to exit and its replacement, the younger
    workers = {each.index: each for each in sorted(stats.workers, key=lambda each: -each.uptime)}
    for worker in sorted(workers.values(), key=lambda each: each.index):
        labels = [name, str(worker.index)]
        running.add_metric(labels, worker.running)
        waiting.add_metric(labels, worker.waiting)
        uptime.add_metric(labels, worker.uptime)
        for metric, value in ((memory, worker.rss), (busy, worker.busy), (lag, worker.lag)):
            if value is not None:
                metric.add_metric(labels, value)
