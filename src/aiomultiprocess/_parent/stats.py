"""What a pool does at a moment: `Pool.stats()`, and the numbers that it is made of.

Nothing here counts single tasks. What a worker was sent and has reported is known to its credit
(credit.py), what it has started to its link, and what has not ended to the sources; only errors,
deaths, cancellations and replacements add to numbers of their own (counts.py). A worker is asked
nothing.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..types import QueueID

if TYPE_CHECKING:
    from .engine import Engine
    from .queue import Queue
    from .worker import PoolWorker


ATTEMPTS = 100  # to read two words that a worker does not change meanwhile


@dataclass(frozen=True)
class WorkerStats:
    """One worker of a pool.

    Attributes:
        index: as `current_worker().index` in it.
        pid: its process id.
        queue: the queue that it serves.
        uptime: seconds since its launch.
        running: tasks that it has started and not reported.
        waiting: tasks that were sent to it and that it has not started.
        done: tasks that it has reported, with a result or an error.
        busy: the share of its uptime that its event loop did not wait, from 0 to 1: nearly all of
            that is code of tasks. What threads run does not count (`threads`). None if its loop is
            none of asyncio's own (uvloop), or it is not ready yet.
        lag: how many seconds the turn of its event loop takes by now, 0 if the loop waits. A high
            one says that a task blocks the loop. None as for `busy`.
        rss: resident memory in bytes, shared memory included; None where it cannot be read.
        host: of a pool over a dask cluster, the address of the dask worker where it runs; else
            None.
    """

    index: int
    pid: int | None
    queue: QueueID
    uptime: float
    running: int
    waiting: int
    done: int
    busy: float | None
    lag: float | None
    rss: int | None
    host: str | None = None


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. All but `waiting` and `running` count since the pool has started.

    Each task is in exactly one of `waiting`, `running`, `done`, `failed`, `timed_out`, `cancelled`
    and `lost`, so that their sum is the number of tasks that were submitted.

    Attributes:
        waiting: tasks that no worker has started; of an iterator, only those that were read.
        running: tasks that workers have started and not reported.
        done: tasks that ended with a result, and for a stream: whose generator ended.
        failed: tasks that ended with an error of their own, or could not be sent.
        timed_out: tasks that ended by TaskTimeoutError, cancelled or killed.
        cancelled: tasks that were cancelled, or ended with their pool; also those that raised a
            CancelledError by themselves. One that still runs counts as running until its worker has
            reported it.
        lost: tasks whose worker died, and that do not run again.
        retried: how often a task runs again because its worker died.
        restarts: how many workers were replaced, by cause: "maxtasksperchild", "memory",
            "lifespan" (it ended by itself), "died", and "start" (before it was ready).
        workers: one record for each worker, by index.
    """

    waiting: int
    running: int
    done: int
    failed: int
    timed_out: int
    cancelled: int
    lost: int
    retried: int
    restarts: Mapping[str, int]
    workers: tuple[WorkerStats, ...]


def stats_of(engine: Engine) -> PoolStats:
    """The statistics of a pool."""
    queues = list(engine.queues.values())
    workers = sorted(
        (_worker_stats(worker, qid) for worker, qid in engine.supervisor.workers.items()),
        key=lambda worker: worker.index,
    )
    retry_queues = [queue.retry_queue for queue in queues]
    ends, counts = engine.ends, [queue.counts for queue in queues]
    running = 0 if engine.over else sum(worker.running for worker in workers)
    return PoolStats(
        waiting=engine.pending - running,  # COUNTS-2
        running=running,
        done=ends.done + sum(map(_done_in, queues)),
        failed=ends.failed + sum(count.failed for count in counts),
        timed_out=sum(count.timed_out for count in counts),
        cancelled=ends.cancelled
        + sum(count.cancelled for count in counts)
        + sum(retry_queue.cancelled for retry_queue in retry_queues),
        lost=ends.lost + sum(retry_queue.lost for retry_queue in retry_queues),
        retried=sum(retry_queue.retried for retry_queue in retry_queues),
        restarts=dict(engine.supervisor.restarts),
        workers=tuple(workers),
    )


def _done_in(queue: Queue) -> int:
    reported = sum(worker.credit.reported for worker in queue.workers)
    return queue.counts.ended + reported - queue.counts.errors


def _worker_stats(worker: PoolWorker, qid: QueueID) -> WorkerStats:
    credit = worker.credit
    started = min(max(worker.link.started, credit.reported), credit.sent)
    turn, uptime = _turn_of(worker), worker.uptime
    return WorkerStats(
        index=worker.index,
        pid=worker.pid,
        queue=qid,
        uptime=uptime,
        running=started - credit.reported,
        waiting=credit.sent - started,
        done=credit.reported,
        busy=None if turn is None else min(turn[0] / max(uptime, 1e-9), 1.0),
        lag=None if turn is None else min(turn[1], uptime),
        rss=_resident(worker.pid) if worker.host is None else None,
        host=worker.host,
    )


def _turn_of(worker: PoolWorker) -> tuple[float, float] | None:
    """The seconds that the loop of a worker was busy, and those of its turn (amp_ext/ring.h)."""
    words = next(filter(None, (worker.link.counter.turn for _ in range(ATTEMPTS))), None)
    if words is None or words == (0, 0):
        return None
    (origin, busy), now = words, time.monotonic_ns()
    if origin & 1 == busy & 1:  # it waits
        return busy / 1e9, 0.0
    return max(now - origin, 0) / 1e9, max(now - origin - busy, 0) / 1e9


def _resident(pid: Any) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):  # another system, or it has exited: no number
        return None
