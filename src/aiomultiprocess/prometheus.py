"""Statistics of pools for Prometheus: `pip install aiomultiprocess[prometheus]`.

from prometheus_client import REGISTRY
REGISTRY.register(PoolCollector(pool, name="thumbnails"))
"""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "aiomultiprocess.prometheus needs prometheus_client: install aiomultiprocess[prometheus]"
    ) from error

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
    """A collector of prometheus_client over `Pool.stats()`.

    It does not keep the pool alive, and collects nothing once the pool is gone. It may be called in
    any thread: the numbers are read in the pool's event loop.

    Arguments:
        pool: the pool.
        name: the value of the label `pool` of all its metrics; must be unique in a registry.
        timeout: seconds to wait for the pool's event loop if it runs in another thread; after that
            `collect` raises TimeoutError.
    """

    def __init__(self, pool: MeasuredPool, name: str = "default", timeout: float = 5.0) -> None:
        self._pool = weakref.ref(pool)
        self._name = name
        self._timeout = timeout

    def describe(self) -> Iterator[Any]:
        """The metrics without their values, so that a registry reads no pool to register this."""
        return iter([*_pool_metrics(), *_worker_metrics()])

    def collect(self) -> Iterator[Any]:
        """The metrics of the pool now."""
        pool = self._pool()
        if pool is None:
            return
        stats = self._read(pool)
        yield from _with_values(self._name, stats)

    def _read(self, pool: MeasuredPool) -> PoolStats:
        loop = None if pool._engine is None else pool._engine.loop
        if loop is None or not loop.is_running() or loops.running_loop() is loop:
            return pool.stats()
        read: concurrent.futures.Future[PoolStats] = concurrent.futures.Future()
        loop.call_soon_threadsafe(lambda: read.set_result(pool.stats()))
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


def _with_values(name: str, stats: PoolStats) -> list[Any]:
    tasks, retries, restarts, still_open, workers = metrics = _pool_metrics()
    for outcome in ("done", "failed", "timed_out", "cancelled", "lost"):
        tasks.add_metric([name, outcome], getattr(stats, outcome))
    retries.add_metric([name], stats.retried)
    for cause, number in stats.restarts.items():
        restarts.add_metric([name, cause], number)
    for state in ("waiting", "running"):
        still_open.add_metric([name, state], getattr(stats, state))
    workers.add_metric([name], len(stats.workers))
    return [*metrics, *_with_workers(name, stats)]


def _with_workers(name: str, stats: PoolStats) -> list[Any]:
    running, waiting, uptime, memory, busy, lag = metrics = _worker_metrics()
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
    return metrics
