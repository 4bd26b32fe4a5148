"""The supervisor of a pool over hosts: which process is where, and what happens to it.

CSUPERVISOR-1  A host that is reached gets `processes` processes, or as many as its dask worker has
    threads. Their places are the lowest that are free; a process that replaces another is at the
    same host. When the host is lost, its places are free, and nothing is started there later.
CSUPERVISOR-2  A host that closes gets no new processes and no new tasks; what its processes hold,
    they finish.
CSUPERVISOR-3  A pool that is forgotten before it has reached a host leaves the cluster as any
    other, so that no host starts processes for it.
CSUPERVISOR-4  A process that its host cannot start is tried again later, whether or not one was
    ever ready: other hosts may start theirs. `START_ATTEMPTS` in a row without any worker break the
    pool, as on one machine.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any, cast

from .._parent.supervisor import START_ATTEMPTS, Supervisor
from .._parent.worker import PoolWorker
from .._transport.link import DEFAULT_LIMITS, Limits, Link
from ..types import QueueID
from .connection import Connection
from .worker import HostEnd, RemoteWorker

log = logging.getLogger(__name__)


class HostChannels:
    """Makes the channels of a pool over hosts: each to a new process of the chosen host."""

    name = "dask"
    chosen: Connection

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits  # those of hosts are their own

    def create(self, concurrency: int = 1) -> tuple[Link, HostEnd]:
        """The channel of one process."""
        link = self.chosen.new_link()
        return link, HostEnd(self.chosen, link)

    def close(self) -> None:
        """Nothing: hosts have their own end (cluster.py)."""


class ClusterSupervisor(Supervisor):
    """The workers of a pool over hosts."""

    in_cluster = False  # whether hosts are found, or looked for
    processes = 0  # per host; 0: the threads of its dask worker

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._worker_class = RemoteWorker
        self._hosts = cast("HostChannels", self._channels)
        self._places: dict[int, Connection] = {}  # CSUPERVISOR-1

    @property
    def worker_count(self) -> int:
        """How many workers there are, and hosts, which have to be left too (CSUPERVISOR-3)."""
        count = super().worker_count + len(set(map(id, self._places.values())))
        return max(count, int(self.in_cluster))

    def start_worker(self, place: int, qid: QueueID) -> None:
        """Start the process of a place at its host."""
        self._hosts.chosen = self._places[place]
        super().start_worker(place, qid)

    # -- hosts ---------------------------------------------------------------------------------

    def on_host(self, connection: Connection) -> None:
        """CSUPERVISOR-1: a host is reached."""
        if not self._pool.wants_workers():
            return
        (qid,) = self._queues
        for _ in range(self.processes or connection.greeting.threads):
            place = next(at for at in itertools.count() if at not in self._places)
            self._places[place] = connection
            self._replace(place, qid)
        self.size = max(self._places, default=-1) + 1
        self._queues[qid].dispatch_all()

    def before_host_lost(self, connection: Connection) -> None:
        """No process of a lost host is sent what the others give back."""
        for worker in self.workers:
            if cast("RemoteWorker", worker).connection is connection:
                worker.leaving = True

    def on_host_lost(self, connection: Connection) -> None:
        """CSUPERVISOR-1: its processes were reported as ended."""
        freed = [at for at, host in self._places.items() if host is connection]
        for place in freed:
            del self._places[place]
        self._pending = [pending for pending in self._pending if pending[0] not in freed]
        self._pool.on_worker_gone()

    def on_host_draining(self, connection: Connection) -> None:
        """CSUPERVISOR-2."""
        for worker in list(self.workers):
            if cast("RemoteWorker", worker).connection is connection:
                worker.leave()

    def on_no_cluster(self, error: BaseException) -> None:
        """There is no cluster to work with."""
        self._pool.break_down(error)

    # -- exits and replacements ----------------------------------------------------------------

    def _on_ready(self, worker: PoolWorker) -> None:
        super()._on_ready(worker)
        cast("RemoteWorker", worker).connection.was_ready = True

    def _wants_replacement(self, worker: PoolWorker) -> bool:
        connection = cast("RemoteWorker", worker).connection
        return (
            self._is_usable(connection)
            and self._places.get(worker.place) is connection
            and super()._wants_replacement(worker)
        )

    def _on_failed_start(self, worker: PoolWorker, qid: QueueID) -> None:
        refused = worker.exitcode is None and worker.why_ended  # CSUPERVISOR-4
        if refused and (self._failed_starts + 1 < START_ATTEMPTS or self._queues[qid].workers):
            self._failed_starts += 1
            log.error("host %s could not start a worker (%s)", worker.host, worker.why_ended)
            self._replace_later(worker.place, qid)
        else:
            super()._on_failed_start(worker, qid)

    def _is_usable(self, connection: Connection) -> bool:
        return not (connection.lost or connection.draining)

    def _replace(self, place: int, qid: QueueID) -> None:
        connection = self._places.get(place)
        if connection is not None and self._is_usable(connection):
            super()._replace(place, qid)
