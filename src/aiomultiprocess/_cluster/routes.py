"""How the stream to a host is opened: straight, or through the scheduler where that cannot be.

    client --stream--> dask worker                    straight
    client --stream--> scheduler --stream--> dask worker     through the scheduler (relay.py)

A client reaches only the scheduler if the workers have addresses of another network: behind a
forwarded port of Kubernetes, an SSH tunnel, a proxy, or a firewall.

ROUTE-1  The client's `direct_to_workers` decides, as for dask's own data: True allows the straight
    way alone, False the one through the scheduler. If it is None, as usual, the straight way is
    tried first, for `STRAIGHT_TIMEOUT` seconds.
ROUTE-2  A pool that has reached a host through the scheduler, and none straight, tries no other way
    any more. A pool that has reached some host straight tries that for each.
ROUTE-3  A worker that answers, but is not fit to be a host, is not tried another way.
ROUTE-4  What a pool does not get by the straight way is logged once.
ROUTE-5  The end of a stream through the scheduler is reported when the scheduler has said something
    since, or has ended too: then the pool is broken by that, and no host is lost (CLUSTER-2).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from ..__version__ import __version__
from ..types import describe_error
from .connection import Greeting
from .messages import FORMAT

STRAIGHT_TIMEOUT = 5.0  # seconds to connect to a dask worker, if there is another way (ROUTE-1)
TIMEOUT = 10.0  # seconds for one step of a connection

log = logging.getLogger(__name__)


class IncompatibleError(RuntimeError):
    """A host has another version of this package or of Python."""


class RefusedError(ConnectionError):
    """A dask worker can be no host now (PLUGIN-2)."""


class RelayedComm:
    """A comm through the scheduler (ROUTE-5). The attributes are not used: it passes bytes on."""

    allow_offload = deserialize = False

    def __init__(self, comm: Any, on_end: Callable[[], Awaitable[None]]) -> None:
        comm.allow_offload = False  # COMM-1
        self.write = comm.write
        self.abort = comm.abort
        self.closed = comm.closed
        self.peer_address: str = comm.peer_address
        self._comm = comm
        self._on_end = on_end

    async def read(self) -> Any:
        """The next message. OSError when the other side is gone."""
        try:
            return await self._comm.read()
        except OSError:
            await self._on_end()
            raise


class Routes:
    """The ways to the hosts of one pool."""

    def __init__(
        self,
        client: Any,
        operation: str,
        connect: Callable[[str, float], Awaitable[Any]],
        hear_scheduler: Callable[[], Awaitable[None]],
    ) -> None:
        """`operation`: of the plugin in the dask workers; `hear_scheduler` is for ROUTE-5."""
        self._client = client
        self._operation = operation
        self._connect = connect
        self._hear_scheduler = hear_scheduler
        self._choice: bool | None = client.direct_to_workers
        self._any_straight = False
        self._logged = False
        self._installing = asyncio.Lock()
        self._has_relay = False

    async def open(self, address: str) -> tuple[Any, Greeting]:
        """A stream to a dask worker, and what that says of itself. OSError if there is no way."""
        if self._choice is False:
            return await self._open_through_scheduler(address)
        try:
            found = await self._open_straight(address)
        except (IncompatibleError, RefusedError):  # ROUTE-3
            raise
        except Exception as error:  # whatever the network, or dask, raises
            if self._choice is True:
                raise
            return await self._open_otherwise(address, error)
        self._any_straight = True
        return found

    async def _open_otherwise(self, address: str, error: Exception) -> tuple[Any, Greeting]:
        why = describe_error(error)
        try:
            found = await self._open_through_scheduler(address)
        except (IncompatibleError, RefusedError):
            raise
        except Exception as other:  # noqa: BLE001 - as in `open`
            raise ConnectionError(
                f"straight: {why}; through the scheduler: {describe_error(other)}"
            ) from error
        if not self._any_straight:
            self._choice = False  # ROUTE-2
        if not self._logged:  # ROUTE-4
            self._logged = True
            log.warning(
                "the dask worker %s cannot be reached straight (%s): its stream goes through the "
                "scheduler, which makes it slower, and makes the scheduler carry its data",
                address,
                why,
            )
        return found

    async def _open_straight(self, address: str) -> tuple[Any, Greeting]:
        comm = await self._connect(address, TIMEOUT if self._choice else STRAIGHT_TIMEOUT)
        return comm, await _greet(comm, address, {"op": self._operation})

    async def _open_through_scheduler(self, address: str) -> tuple[Any, Greeting]:
        from .relay import OPERATION  # imports distributed

        async with self._installing:
            if not self._has_relay:
                await self._install_relay()
        comm = await self._connect(self._client.scheduler.address, TIMEOUT)
        request = {"op": OPERATION, "worker": address, "operation": self._operation}
        greeting = await _greet(comm, address, request)
        return RelayedComm(comm, self._hear_scheduler), greeting

    async def _install_relay(self) -> None:
        from .relay import install

        try:
            async with asyncio.timeout(TIMEOUT):
                await self._client.run_on_scheduler(install)
        except ImportError as error:
            raise ConnectionError(
                f"the scheduler needs aiomultiprocess {__version__} too ({describe_error(error)})"
            ) from error
        self._has_relay = True


async def _greet(comm: Any, address: str, request: dict[str, str]) -> Greeting:
    """Ask for a stream."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await comm.write(request)
            return _checked(await comm.read(), address)
    except BaseException:
        comm.abort()
        raise


def _checked(answer: Any, address: str) -> Greeting:
    """What a host says of itself. IncompatibleError if it cannot be a host of this program."""
    if isinstance(answer, dict) and "unreached" in answer:
        raise ConnectionError(f"the scheduler cannot reach it: {answer['unreached']}")
    if not isinstance(answer, dict) or "format" not in answer:
        raise ConnectionError(f"it answered {answer!r}")
    ours = (__version__, FORMAT, list(sys.version_info[:2]))
    theirs = (answer["version"], answer["format"], list(answer["python"]))
    if theirs != ours:
        raise IncompatibleError(
            f"it has aiomultiprocess {theirs[0]} on Python {theirs[2][0]}.{theirs[2][1]}, and this "
            f"program has {ours[0]} on Python {ours[2][0]}.{ours[2][1]}: they must be the same"
        )
    if "refusal" in answer:
        raise RefusedError(f"it cannot be a host now ({answer['refusal']})")
    return Greeting(address, int(answer["threads"]), str(answer["name"]))
