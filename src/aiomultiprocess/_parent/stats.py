"""What a pool does at a moment: `Pool.stats()`, and the numbers that it is made of.

Nothing here counts single tasks. What a worker was sent and has reported is known to its credit
(credit.py), what it has started to its link; only errors, deaths and replacements add to numbers of
their own. A worker is asked nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..types import QueueID

if TYPE_CHECKING:
    from .engine import Engine
    from .queue import Queue
    from .worker import PoolWorker


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
    rss: int | None
    host: str | None = None


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. All but `waiting` and `running` count since the pool has started.

    Attributes:
        waiting: tasks that no worker has started; of an iterator, only those that were read.
        running: tasks that workers have started and not reported.
        done: tasks that ended with a result.
        failed: tasks that ended with an error of their own, or could not be sent.
        timed_out: tasks that ended by TaskTimeoutError, cancelled or killed.
        cancelled: tasks that were cancelled, or ended with their pool.
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
    return PoolStats(
        waiting=engine.waiting + sum(worker.waiting for worker in workers),
        running=sum(worker.running for worker in workers),
        done=sum(map(_done_in, queues)),
        failed=sum(queue.counts.failed for queue in queues),
        timed_out=sum(queue.counts.timed_out for queue in queues),
        cancelled=engine.cancelled + sum(queue.counts.cancelled for queue in queues),
        lost=sum(retry_queue.lost for retry_queue in retry_queues),
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
    return WorkerStats(
        index=worker.index,
        pid=worker.pid,
        queue=qid,
        uptime=worker.uptime,
        running=started - credit.reported,
        waiting=credit.sent - started,
        done=credit.reported,
        rss=_resident(worker.pid) if worker.host is None else None,
        host=worker.host,
    )


def _resident(pid: Any) -> int | None:
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):  # another system, or it has exited: no number
        return None
