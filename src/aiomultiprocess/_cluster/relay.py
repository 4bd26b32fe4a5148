"""Passes streams on between clients and hosts, in the scheduler of a dask cluster.

    client <--comm--> scheduler <--comm--> dask worker

A client that cannot connect to the dask workers (routes.py) has this in the scheduler, by dask's
`run_on_scheduler`, and opens each stream there. The scheduler connects to the worker, as it does
for what dask itself broadcasts, and passes each message on as it is: nothing is unpickled, and the
stream stays a stream, with its order, its end and its silence.

RELAY-1  When one side of a stream ends, the other gets what was under way, and ends too.
RELAY-2  A scheduler keeps one relay for each version of this package, whatever pools come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final, Protocol

from distributed.comm import core
from distributed.core import Status

from ..__version__ import __version__
from .stream import Comm

OPERATION: Final = f"aiomultiprocess-{__version__}-relay"
TIMEOUT: Final = 8.0  # seconds to reach a worker: less than a client waits for that
END_TIMEOUT: Final = 3.0  # seconds for what was under way (RELAY-1)

log = logging.getLogger(__name__)


class ClosableComm(Comm, Protocol):
    """What a relay uses of a comm in addition."""

    async def close(self) -> None:
        """Close it when what was written is sent."""


def install(dask_scheduler: Any) -> None:
    """Let a scheduler pass streams on (RELAY-2). dask gives the scheduler by this name."""

    async def serve(comm: ClosableComm, worker: str, operation: str) -> Status:
        await _serve(dask_scheduler, comm, worker, operation)
        return Status.dont_reply

    dask_scheduler.handlers.setdefault(OPERATION, serve)


async def _serve(scheduler: Any, near: ClosableComm, worker: str, operation: str) -> None:
    """Turn the connection of a client into a stream to a worker, which begins with `operation`."""
    connect: Any = core.connect
    try:
        if worker not in scheduler.workers:
            raise ConnectionError("the scheduler does not know it any more")
        far = await connect(worker, timeout=TIMEOUT, **scheduler.connection_args)
    except OSError as error:
        await near.write({"unreached": f"{type(error).__name__}: {error}"})
        return
    try:
        await far.write({"op": operation})
        await _pass_on(near, far)
    finally:
        near.abort()
        far.abort()


async def _pass_on(near: ClosableComm, far: ClosableComm) -> None:
    """Both ways, until one side ends (RELAY-1)."""
    for comm in (near, far):
        comm.deserialize = False
        comm.allow_offload = False  # COMM-1
    ways = {asyncio.ensure_future(_copy(*way)): way[1] for way in ((near, far), (far, near))}
    try:
        ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ended:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(END_TIMEOUT):
                    await ways[way].close()
    finally:
        for way in ways:
            way.cancel()


async def _copy(source: Comm, sink: Comm) -> None:
    """Pass the messages of one way on, until there can be no more."""
    try:
        while True:
            await sink.write(await source.read())
    except OSError:  # the end of either
        return
    except Exception:
        log.exception("a message from %s cannot be passed on: the stream ends", source.peer_address)
