"""The plugin that a pool installs in each worker of a dask cluster.

`Cluster` (cluster.py) registers one for its pool. dask gives it to the workers that there are, and
to each that joins later; there it adds a handler of its own to the worker, by which the client
opens a stream, and announces the worker under a topic of the pool. With the pool it is removed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from distributed import Worker, WorkerPlugin
from distributed.core import Status

from ..__version__ import __version__
from .host import Host
from .messages import FORMAT

if TYPE_CHECKING:
    from .stream import Comm

DRAIN_SECONDS: Final = 30.0  # that the processes of a closing worker have to finish what they hold


class HostPlugin(WorkerPlugin):
    """Makes a dask worker a host of one pool."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the plugin, of the handler, and of the topic

    def setup(self, worker: Worker) -> None:
        """Take part: called by dask in each worker."""
        self._worker = worker
        self._hosts: set[Host] = set()
        worker.handlers[self.name] = self._serve
        worker.log_event(self.name, {"address": worker.address})

    async def teardown(self, worker: Worker) -> None:
        """Called by dask when the worker closes, or the pool has ended."""
        worker.handlers.pop(self.name, None)
        await asyncio.gather(*(host.drain(DRAIN_SECONDS) for host in list(self._hosts)))

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name}

    async def _serve(self, comm: Comm) -> Status:
        """Turn the connection of a client into a stream, for as long as that lasts."""
        await comm.write(
            {
                "version": __version__,
                "format": FORMAT,
                "python": sys.version_info[:2],
                "threads": self._worker.state.nthreads,
                "name": str(self._worker.name),
            }
        )
        host = Host(comm, asyncio.get_running_loop())
        self._hosts.add(host)
        try:
            await host.serve()
        finally:
            self._hosts.discard(host)
        return Status.dont_reply
