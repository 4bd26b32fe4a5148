"""The plugin that a pool installs in each worker of a dask cluster.

`Cluster` (cluster.py) registers one for its pool. dask gives it to the workers that there are, and
to each that joins later; there it adds a handler of its own to the worker, by which the client
opens a stream, and announces the worker under a topic of the pool. With the pool it is removed.

PLUGIN-1  A dask worker that lacks this package could not unpickle the plugin, and one that joins
    would fail to start for that. So the plugin is pickled as an expression, which makes of it
    there one that only announces what is missing.
PLUGIN-2  A dask worker that can be no host, as one whose settings ask for a transport that it does
    not have, says so in its greeting, and why: a stream that ended would say nothing of it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

from distributed import Worker, WorkerPlugin
from distributed.core import Status

from ..__version__ import __version__
from ..types import describe_error
from .host import Host
from .messages import FORMAT

if TYPE_CHECKING:
    from .stream import Comm

DRAIN_SECONDS: Final = 30.0  # that the processes of a closing worker have to finish what they hold


_LOADED: Final = """(
    __import__("aiomultiprocess._cluster.plugin", fromlist=["HostPlugin"]).HostPlugin(name)
    if all(map(__import__("importlib.util").util.find_spec, names))
    else type("NoHostPlugin", (__import__("distributed").WorkerPlugin,), {
        "setup": lambda self, worker: worker.log_event(name, {"lacks": worker.address})
    })()
)"""  # PLUGIN-1


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

    def __reduce__(self) -> tuple[Any, ...]:
        names = ["aiomultiprocess", "aiomultiprocess._cluster"]  # 0.9.1 has the first
        return eval, (_LOADED, {"name": self.name, "names": names})

    async def _serve(self, comm: Comm) -> Status:
        """Turn the connection of a client into a stream, for as long as that lasts."""
        greeting = {
            "version": __version__,
            "format": FORMAT,
            "python": sys.version_info[:2],
            "threads": self._worker.state.nthreads,
            "name": str(self._worker.name),
        }
        try:
            host = Host(comm, asyncio.get_running_loop())
        except Exception as error:  # noqa: BLE001 - of the system, or of settings: PLUGIN-2
            await comm.write({**greeting, "refusal": describe_error(error)})
            return Status.dont_reply
        self._hosts.add(host)
        try:
            await host.serve(greeting)
        finally:
            self._hosts.discard(host)
        return Status.dont_reply
