"""Which hosts a pool has: a client of the scheduler, the plugin, and a connection to each host.

    client --register--> scheduler --plugin--> dask workers --"here I am"--> client --stream--> host

Each worker that gets the plugin announces itself under a topic of the pool; so the pool knows those
that join while it runs, without asking. A worker that leaves is noticed by the end of its stream.

CLUSTER-1  A host whose stream has ended, or cannot be opened, is tried again for as long as the
    scheduler knows the worker, each time after a longer pause. A host of which a process was ready
    begins anew with the shortest.
CLUSTER-2  A pool whose scheduler is gone is broken, at once: the dask workers end then, too.
CLUSTER-3  Where no host can be reached, the pool is broken by the reason; where some can, the
    others are logged. One that is refused may answer before the others: these have `HEAR_TIMEOUT`
    seconds. A cluster without workers is no error: they may come. How a host is reached is the
    business of routes.py.
CLUSTER-4  A subscription takes effect some time after its call, and what is announced before is not
    delivered. So the pool announces something itself until that arrives, and only then registers
    the plugin. That call returns when all dask workers have answered, which one that is stopped
    never does: the pool waits for announcements, and not for the answers.
CLUSTER-5  dask's connecting is not interrupted, as that leaves a socket behind. A pool that ends
    meanwhile waits for its client up to `END_TIMEOUT` seconds, and ends other connections when they
    are there.
CLUSTER-6  The scheduler fails to give the plugin to a worker that it cannot connect to, or that
    ends just then; one that lacks this package says so (PLUGIN-1). Others announce themselves all
    the same, so this is logged. It may be known before the others have answered. So these are asked
    for a sign of life, for up to `TIMEOUT` seconds, and announce themselves within `HEAR_TIMEOUT`
    after that. Without an announcement it is the end of the pool (CLUSTER-3).
CLUSTER-7  Another dask worker may start at the address of one that has ended, or was refused. So an
    announcement from an address that is tried ends the pause there, and the address is not
    forgotten by what the scheduler has answered before.
CLUSTER-8  A host that is lost before one of its processes was ready is of no more use than one that
    cannot be reached: it is logged, and tried again after the longer pause. As long as no process
    of the pool was ready, a host counts as reached while its stream lasts, and the loss of the last
    one as a failure to reach a first (CLUSTER-3). So hosts that come and go keep no pool waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import uuid
from collections.abc import Coroutine
from typing import Any, Protocol

from ..__version__ import __version__
from ..types import describe_error
from .connection import Connection
from .routes import TIMEOUT, IncompatibleError, Routes

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds until a host is tried again (CLUSTER-1)
ATTEMPTS = 3  # to reach a first host (CLUSTER-3)
PROBE = 0.1  # seconds until the subscription is probed again (CLUSTER-4)
HEAR_TIMEOUT = 2.0  # seconds for a scheduler or worker that lives to answer (ROUTE-5, CLUSTER-6)
END_TIMEOUT = 3.0  # seconds for what is polite at the end, and not necessary
LATE_TIMEOUT = 1.0  # seconds for that once some dask worker has not answered

log = logging.getLogger(__name__)


class Target(Protocol):
    """Where a pool finds its cluster, as the arguments of `Pool` say (arguments.py)."""

    def new_client(self) -> tuple[Any, bool]:
        """A distributed.Client for the running loop, and whether it is the pool's own."""


class HostUser(Protocol):
    """What is informed about hosts: the supervisor (supervisor.py)."""

    def on_host(self, connection: Connection) -> None:
        """A host is reached."""

    def before_host_lost(self, connection: Connection) -> None:
        """A host is lost, and none of its processes is reported as ended yet."""

    def on_host_lost(self, connection: Connection) -> None:
        """A host is lost; its processes were reported as ended."""

    def on_host_draining(self, connection: Connection) -> None:
        """A host is about to close, and waits for its processes."""

    def on_no_cluster(self, error: BaseException) -> None:
        """There is no cluster to work with."""


class Cluster:
    """The hosts of one pool."""

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop, user: HostUser) -> None:
        self.connections: list[Connection] = []
        self._target = target
        self._loop = loop
        self._user = user
        self._name = f"aiomultiprocess-{uuid.uuid4().hex}"
        self._client: Any = None
        self._routes: Routes
        self._owns_client = False
        self._registered = False
        # addresses of hosts that are reached, or tried; set by an announcement (CLUSTER-7)
        self._wanted: dict[str, asyncio.Event] = {}
        self._pauses: dict[str, float] = {}  # seconds until the next attempt after the first
        self._failures = 0  # to reach a first host
        self._reached = asyncio.Event()  # some host was (CLUSTER-3, CLUSTER-8)
        self._ever_ready = False  # a process of a host that is lost
        self._announced = asyncio.Event()  # some host was (CLUSTER-6)
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduler: Any = None  # a comm
        self._watch: asyncio.Task[None]  # for its end
        self._subscribed = asyncio.Event()
        self._beginning: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for hosts."""
        self._beginning = self._loop.create_task(self._begin())

    # -- the scheduler -------------------------------------------------------------------------

    async def _begin(self) -> None:
        try:
            await self._join()
        except Exception as error:  # noqa: BLE001 - of the network, or of dask
            self._give_up(_explain_begin(error))
            return
        if not self._closed:
            await self._install()

    async def _join(self) -> None:
        self._client, self._owns_client = self._target.new_client()
        await self._client
        if self._closed:  # CLUSTER-5
            return
        self._routes = Routes(self._client, self._name, self._connect, self._hear_scheduler)
        self._scheduler = await self._connect(self._client.scheduler.address)
        if self._closed:
            return
        self._watch = self._new_task(self._watch_scheduler())
        self._client.subscribe_topic(self._name, self._on_announcement)
        await self._wait_for_subscription()

    async def _install(self) -> None:
        """Register the plugin, which dask gives to all its workers (CLUSTER-4)."""
        from .plugin import HostPlugin  # imports distributed

        self._registered = True
        try:
            await self._client.register_plugin(HostPlugin(self._name), name=self._name)
        except OSError as error:
            self._spawn(self._on_failed_install(error, _explain_begin(error)))
        except Exception as error:  # noqa: BLE001 - of the plugin there
            self._spawn(self._on_failed_install(error, _explain_install(error)))

    async def _on_failed_install(self, error: Exception, refusal: BaseException) -> None:
        """CLUSTER-6; or the scheduler is gone, which is noticed elsewhere (CLUSTER-2)."""
        await self._hear_scheduler()
        if self._watch.done():
            return
        log.warning("a dask worker cannot be made a host (%s)", describe_error(error))
        await self._await_others(refusal)

    async def _await_others(self, refusal: BaseException) -> None:
        """Some worker is no host: the end of the pool if none is (CLUSTER-6)."""
        hearing = self._new_task(self._hear_workers())
        announced = self._new_task(self._wait_for(self._announced))
        await asyncio.wait([hearing, announced], timeout=TIMEOUT, return_when="FIRST_COMPLETED")
        hearing.cancel()
        await self._give_up_without(self._announced, refusal)
        announced.cancel()

    async def _hear_workers(self) -> None:
        """Until all dask workers that can be reached have answered something (CLUSTER-6)."""
        with contextlib.suppress(Exception):  # a question that fails has no answer to wait for
            await self._client.scheduler.broadcast(msg={"op": "identity"}, on_error="ignore")

    async def _wait_for(self, event: asyncio.Event) -> None:
        await event.wait()

    async def _give_up_without(self, event: asyncio.Event, reason: BaseException) -> None:
        """The end of the pool, unless something happens soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEAR_TIMEOUT):
                await event.wait()
                return
        self._give_up(reason)

    async def _wait_for_subscription(self) -> None:
        """Until what is announced arrives here (CLUSTER-4)."""
        while not (self._subscribed.is_set() or self._closed):
            await self._client.log_event(self._name, {"address": ""})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE):
                    await self._subscribed.wait()

    async def _watch_scheduler(self) -> None:
        """CLUSTER-2: nothing is ever sent on this connection, but it ends with the scheduler."""
        address = self._client.scheduler.address
        with contextlib.suppress(OSError):
            await self._scheduler.read()
        self._give_up(
            ConnectionError(
                f"the dask scheduler at {address} was lost: its workers end with it, and so does "
                "this pool. Make another when the cluster is back"
            )
        )

    async def _hear_scheduler(self) -> None:
        """Until the scheduler has answered, or its end is known here; for some time (ROUTE-5)."""
        asking = self._new_task(self._ask_scheduler())
        await asyncio.wait(
            [asking, self._watch], timeout=HEAR_TIMEOUT, return_when="FIRST_COMPLETED"
        )

    async def _ask_scheduler(self) -> None:
        with contextlib.suppress(OSError):
            await self._client.scheduler.identity(n_workers=0)
            return
        await asyncio.wait([self._watch], timeout=HEAR_TIMEOUT)

    def _give_up(self, error: BaseException) -> None:
        if not self._closed:
            self._user.on_no_cluster(error)

    async def _connect(self, address: str, patience: float = TIMEOUT) -> Any:
        from distributed.comm import core

        arguments = self._client.security.get_connection_args("client")
        connect: Any = core.connect
        connecting = self._loop.create_task(connect(address, timeout=patience, **arguments))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_abort_comm)  # CLUSTER-5
            raise

    # -- hosts ---------------------------------------------------------------------------------

    def _on_announcement(self, event: tuple[float, dict[str, str]]) -> None:
        self._subscribed.set()
        if "lacks" in event[1]:  # PLUGIN-1
            self._on_unequipped(event[1]["lacks"])
        elif event[1]["address"]:
            self._found(event[1]["address"])

    def _on_unequipped(self, address: str) -> None:
        log.warning(
            "the dask worker %s cannot be a host: install aiomultiprocess %s there too",
            address,
            __version__,
        )
        refusal = RuntimeError(
            f"the dask workers cannot be hosts of a pool: install aiomultiprocess {__version__} "
            "there too"
        )
        self._spawn(self._await_others(refusal))

    def _found(self, address: str) -> None:
        self._announced.set()
        if address in self._wanted:
            self._wanted[address].set()  # CLUSTER-7
        elif not self._closed:
            self._wanted[address] = asyncio.Event()
            self._spawn(self._reach(address))

    async def _reach(self, address: str) -> None:
        """Open the stream to a host (CLUSTER-1)."""
        while not self._closed:
            self._wanted[address].clear()
            try:
                await self._open(address)
                return
            except IncompatibleError as error:
                self._on_unreached(address, error, final=True)
                known = False
            except Exception as error:  # noqa: BLE001 - whatever the network, or dask, raises
                self._on_unreached(address, error, final=False)
                known = await self._is_known_after_pause(address)
            if not self._keeps(address, known=known):
                return

    async def _is_known_after_pause(self, address: str) -> bool:
        pause = self._pauses.get(address, FIRST_PAUSE)
        self._pauses[address] = min(2 * pause, LONGEST_PAUSE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wanted[address].wait()
        return await self._is_known(address)

    def _keeps(self, address: str, *, known: bool) -> bool:
        """Whether to go on with an address, which is forgotten otherwise (CLUSTER-7)."""
        if known or self._wanted[address].is_set():
            return True
        del self._wanted[address]
        self._pauses.pop(address, None)
        return False

    async def _open(self, address: str) -> None:
        comm, greeting = await self._routes.open(address)
        if self._closed:
            comm.abort()
            return
        user = self._user
        connection = Connection(
            comm, greeting, self._loop, user.before_host_lost, self._on_lost, user.on_host_draining
        )
        self._reached.set()
        self.connections.append(connection)
        self._user.on_host(connection)

    def _on_unreached(self, address: str, error: BaseException, *, final: bool) -> None:
        why = describe_error(error)
        if final:
            reason: Exception = RuntimeError(f"the dask worker {address} cannot be used ({why})")
        else:
            reason = ConnectionError(f"the dask worker {address} cannot be used ({why})")
        reason.__cause__ = error
        if not self._reached.is_set():
            self._failures += 1
            if final or self._failures >= ATTEMPTS:
                self._spawn(self._give_up_without(self._reached, reason))
        log.warning("the dask worker %s cannot be used (%s)", address, why)

    async def _is_known(self, address: str) -> bool:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(TIMEOUT):
                info = await self._client.scheduler.identity(n_workers=-1)
            return address in info["workers"]
        return True

    def _on_lost(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self._user.on_host_lost(connection)
        self._ever_ready |= connection.was_ready
        if self._closed or connection.cancelled:
            return
        if connection.was_ready:
            self._pauses.pop(connection.address, None)
        elif not connection.draining:
            self._on_useless(connection)
        self._spawn(self._return(connection.address))

    def _on_useless(self, connection: Connection) -> None:
        """CLUSTER-8: a host was lost before one of its processes was ready."""
        if not (self.connections or self._ever_ready):
            self._reached.clear()
        error = ConnectionError(f"{connection.why_lost}, before a process there was ready")
        self._on_unreached(connection.address, error, final=False)

    async def _return(self, address: str) -> None:
        """A host was lost: try it again, if the scheduler still knows its worker."""
        if self._keeps(address, known=await self._is_known_after_pause(address)):
            await self._reach(address)

    # -- the end -------------------------------------------------------------------------------

    def abandon(self) -> None:
        """End the streams here and now: hosts end their processes when they notice."""
        self._closed = True
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        if self._loop.is_running():
            self._spawn(self._leave_scheduler())
            return
        if self._scheduler is not None:
            self._scheduler.abort()
        if self._owns_client and self._client is not None:
            self._client.status = "closed"  # or it would try to close itself when it is collected
            _abort_client(self._client)

    async def close(self) -> None:
        """End the streams, remove the plugin, and close the client if it is the pool's own.

        All callers wait for the same end, which goes on if one of them is cancelled.
        """
        if self._end is None:
            self._end = self._loop.create_task(self._close())
        await asyncio.shield(self._end)

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.leave()
            await connection.finish()
        self.connections.clear()
        await self._leave_scheduler()

    async def _leave_scheduler(self) -> None:
        answered = await self._end_beginning()
        with contextlib.suppress(OSError, TimeoutError, Exception):
            async with asyncio.timeout(END_TIMEOUT if answered else LATE_TIMEOUT):
                if not self._owns_client:  # else it ends with the client
                    self._client.unsubscribe_topic(self._name)
                if self._registered:
                    await self._client.unregister_worker_plugin(self._name)
        if self._scheduler is not None:
            self._scheduler.abort()
        if self._owns_client and self._client is not None:
            with contextlib.suppress(OSError, TimeoutError, Exception):
                async with asyncio.timeout(END_TIMEOUT):
                    await self._client.close()

    async def _end_beginning(self) -> bool:
        """Whether it has ended by itself (CLUSTER-5).

        An announcement shows that the plugin is registered: then only answers are missing.
        """
        if self._beginning is None:
            return True
        patience = LATE_TIMEOUT if self._wanted else END_TIMEOUT
        _, late = await asyncio.wait([self._beginning], timeout=patience)
        self._beginning.cancel()
        return not late

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        _ = self._new_task(coroutine)

    def _new_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _abort_client(client: Any) -> None:
    """End the connections of a client whose loop has ended, so that it cannot."""
    report = getattr(client.scheduler_comm, "comm", None)
    if report is not None:
        report.abort()
    for some in (client.rpc.available, client.rpc.occupied):
        for comms in list(some.values()):
            for comm in list(comms):
                comm.abort()


def _abort_comm(connecting: asyncio.Task[Any]) -> None:
    """End a connection that is not wanted any more, when it is there."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().abort()


def _explain_begin(error: Exception) -> BaseException:
    """Why a pool has no cluster."""
    refusal = RuntimeError(f"the dask cluster cannot be used ({describe_error(error)})")
    refusal.__cause__ = error
    return refusal


def _explain_install(error: Exception) -> BaseException:
    """Why the dask workers did not take the plugin."""
    # a scheduler unpickles no error of a worker: it raises an Exception with its repr
    kinds = (ModuleNotFoundError, AttributeError, pickle.UnpicklingError)
    names = tuple(f"{kind.__name__}(" for kind in kinds)
    if not (isinstance(error, kinds) or str(error).startswith(names)):
        return _explain_begin(error)
    refusal = RuntimeError(
        f"the dask workers cannot be hosts of a pool ({describe_error(error)}): install "
        f"aiomultiprocess {__version__} there too"
    )
    refusal.__cause__ = error
    return refusal
