"""The engine of a pool over the workers of a dask cluster.

All that it does with tasks is done by its base class. It has one queue, which the processes of all
hosts serve, and a `Cluster` instead of processes of this machine.
"""

from __future__ import annotations

from typing import Any, NoReturn

from .._parent.context_variables import ContextEngine
from .._parent.engine import Engine
from .._parent.supervisor import Supervisor
from .cluster import Cluster, Target
from .supervisor import ClusterSupervisor
from .worker import check_start_arguments

NO_RESIZE = (
    "a pool over a dask cluster has `processes` workers on each host, and cannot be resized: "
    "change the number of hosts, as by cluster.scale(n); a pool uses those that join while it runs"
)


class ClusterEngine(Engine):
    """The workers, queue and unfinished tasks of one pool over a cluster."""

    supervisor_class: type[Supervisor] = ClusterSupervisor
    supervisor: ClusterSupervisor

    def __init__(self, target: Target, *args: Any) -> None:
        super().__init__(*args)
        self._cluster = Cluster(target, self.loop, self.supervisor)

    def start(self, processes: int, queues: int) -> None:
        """Create the queue, and begin to look for hosts.

        Raises what pickling the initializer, its arguments or the lifespan raises.
        """
        check_start_arguments(self.options)
        super().start(0, queues)
        self.supervisor.processes = processes
        self.supervisor.in_cluster = True
        self._cluster.start()

    def resize(self, processes: int) -> NoReturn:
        """Refuse it."""
        raise RuntimeError(NO_RESIZE)

    async def join(self) -> None:
        """Wait until every process has gone, and leave the cluster."""
        await super().join()
        await self._cluster.close()
        self.supervisor.in_cluster = False

    def _kill(self) -> None:
        super()._kill()
        self.supervisor.in_cluster = False
        self._cluster.abandon()


class ClusterContextEngine(ClusterEngine, ContextEngine):
    """The same, for tasks that see values of context variables."""

    def __init__(self, target: Target, variables: Any, *args: Any) -> None:
        super().__init__(target, variables, *args)
