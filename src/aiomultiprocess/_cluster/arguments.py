"""The arguments of `Pool(backend="dask")`: checked where the user gives them."""

from __future__ import annotations

import asyncio
from typing import Any

from .._transport.select import Selection

INSTALL = (
    'backend="dask" needs the package distributed, which is not installed: install '
    '"aiomultiprocess[dask]"'
)


class ClusterTarget:
    """Where the cluster of a pool is: the address of its scheduler, or a client of it."""

    def __init__(self, address: str | None, client: Any, security: Any) -> None:
        self.address = address
        self.client = client
        self.security = security

    def new_client(self) -> tuple[Any, bool]:
        """A client for the running loop, and whether it is the pool's own.

        A synchronous client has a loop in another thread: the pool makes one of its own to the same
        scheduler.
        """
        from distributed import Client as AnyClient

        new_client: Any = AnyClient
        client, loop = self.client, asyncio.get_running_loop()
        if client is not None:
            _check_open(client)  # it may have been closed since it was given
            if client.asynchronous and client.loop.asyncio_loop is loop:
                return client, False
            address, security = client.scheduler.address, client.security
            direct = client.direct_to_workers  # ROUTE-1
        else:
            address, security, direct = self.address, self.security, None
        own = new_client(
            address,
            security=security,
            asynchronous=True,
            set_as_default=False,
            direct_to_workers=direct,
        )
        return own, True


def checked_target(
    backend: str | None,
    scheduler: object,
    queuecount: object,
    address: object,
    client: object,
    security: object,
) -> ClusterTarget:
    """The target that these arguments of `Pool` mean. TypeError, ValueError, RuntimeError if none.

    `scheduler` and `queuecount` are refused: hosts come and go, and with them the workers of a
    queue.
    """
    if backend != "dask":
        refuse_stray(backend, address=address, client=client, security=security)
    for name, value in (("scheduler", scheduler), ("queuecount", queuecount)):
        if value:
            raise ValueError(
                f'{name} cannot be used with backend="dask", got {value!r}: hosts come and go, so '
                "a queue could be left without workers. All hosts serve one queue"
            )
    if (address is None) == (client is None):
        given = "neither" if client is None else "both"
        raise TypeError(f'backend="dask" needs either address or client, got {given}')
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be that of a dask scheduler, got {address!r}")
    if security is not None and client is not None:
        raise TypeError(f"security belongs to address: a client has its own, got {security!r}")
    _check_kinds(client, security)
    return ClusterTarget(address, client, security)


def _check_kinds(client: object, security: object) -> None:
    try:
        from distributed import Client
        from distributed.security import Security
    except ImportError as error:
        raise RuntimeError(f"{INSTALL} ({error})") from None
    if client is not None and not isinstance(client, Client):
        raise TypeError(f"client must be a distributed.Client, got {client!r}")
    if client is not None:
        _check_open(client)
    if security is not None and not isinstance(security, Security):
        raise TypeError(f"security must be a distributed.Security, got {security!r}")


def _check_open(client: Any) -> None:
    if client.status in ("closing", "closed"):
        raise ValueError(f"client is {client.status}: pass one that is connected, got {client!r}")


def refuse_stray(backend: str | None, **arguments: object) -> None:
    """TypeError for an argument that only a pool over a cluster can have."""
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(
                f'{name} belongs to backend="dask", got {name}={value!r} with backend={backend!r}'
            )


def selection(sharedmemory: int | None) -> Selection:
    """The selection of a pool over a cluster; hosts have the channels, and the memory of these."""
    if sharedmemory is not None:
        raise ValueError(
            f'sharedmemory cannot be used with backend="dask", got {sharedmemory!r}: each host has '
            "its own limit, by its memory"
        )
    from .supervisor import HostChannels

    return Selection("dask", "requested by the argument", HostChannels)
