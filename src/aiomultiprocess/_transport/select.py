"""Choose the transport of a pool, and say why.

`Pool` calls `select`, which takes the backend that the caller names, else the one that the
environment variable `AIOMULTIPROCESS_BACKEND` names, else the first of `NAMES` that works here. A
worker does not choose: it opens the child end that it was started with.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from .. import _accel
from .._accel import ring
from .link import DEFAULT_LIMITS, Backend, Limits

#: The environment variable that names the backend for a whole program.
VARIABLE: Final = "AIOMULTIPROCESS_BACKEND"
#: The backends to choose from, the best first.
NAMES: Final = ("shm", "pipe")
#: Backends for a purpose: they are used where they are requested, and never chosen.
ON_REQUEST: Final = ("inline",)


class Selection(NamedTuple):
    """A backend that works here."""

    name: str
    #: One sentence on why it was chosen.
    why: str
    #: Makes the backend of one pool; its argument, if there is one, is the pool's `Limits`.
    make: Callable[..., Backend]


def select(requested: str | None = None) -> Selection:
    """Choose the backend of a pool.

    Raises ValueError for an unknown name. Raises RuntimeError, which lists each attempt and why it
    failed, if the requested backend, or every backend, is unavailable.
    """
    name, requester = _request(requested)
    attempts: list[str] = []
    for candidate in NAMES if name is None else (name,):
        reason = _PROBES[candidate]()
        if reason is None:
            return Selection(candidate, _why(requester, attempts), _MAKERS[candidate])
        attempts.append(f"{candidate}: {reason}")
    listed = "; ".join(attempts)
    if name is None:
        raise RuntimeError(f"no backend works here: {listed}")
    others = ", ".join(repr(other) for other in NAMES if other != name)
    raise RuntimeError(
        f"the backend {name!r}, requested by {requester}, is unavailable: {listed}. "
        f"Request {others}, or leave the choice open"
    )


def _request(requested: str | None) -> tuple[str | None, str]:
    """The name that was requested, and where: by the argument or the variable."""
    if requested is not None:
        name, requester = requested, "the argument"
    else:
        name, requester = os.environ.get(VARIABLE, ""), VARIABLE
        if not name:
            return None, ""
    known = (*NAMES, *ON_REQUEST)
    if name not in known:
        # "dask" is for the argument alone, and never comes here: the pool deals with it
        listed = ", ".join(map(repr, (*known, "dask") if requested is not None else known))
        raise ValueError(f"unknown backend {name!r}, requested by {requester}: there are {listed}")
    return name, requester


def _why(requester: str, attempts: list[str]) -> str:
    if requester:
        return f"requested by {requester}"
    return "; ".join(attempts) if attempts else "the best that works here"


def _probe_shm() -> str | None:
    """Why there is no shared memory, or None."""
    if _accel.EXTENSION_ERROR is not None:
        return f"amp_ext cannot be imported ({_accel.EXTENSION_ERROR})"
    from .shm import CAPACITY

    try:
        ring.Mapping.create(CAPACITY).close()
    except OSError as error:
        return f"shared memory for a ring of {CAPACITY} bytes was refused ({error})"
    try:
        ring.Doorbell().close()
    except OSError as error:
        return f"a doorbell, an eventfd or a pipe, was refused ({error})"
    return _probe_sockets()


def _probe_pipe() -> str | None:
    """Why there is no shared page or no socket pair, or None."""
    if sys.platform == "win32":
        from .windows import NamedSharedPage as SharedPage
    else:
        from .shared_page import SharedPage

    try:
        SharedPage.create().close()
    except OSError as error:
        return f"one page of shared memory was refused ({error})"
    return _probe_sockets()


def _probe_sockets() -> str | None:
    """Why there is no socket pair, or None. Each event loop needs one too."""
    try:
        for end in socket.socketpair():
            end.close()
    except OSError as error:
        return f"a socket pair was refused ({error})"
    return None


def _make_shm(limits: Limits = DEFAULT_LIMITS) -> Backend:
    from .shm import ShmBackend

    return ShmBackend(limits=limits)


def _make_pipe(limits: Limits = DEFAULT_LIMITS) -> Backend:
    if sys.platform == "win32":
        from .windows import WindowsPipeBackend as PipeBackend
    else:
        from .pipe import PipeBackend

    return PipeBackend(limits)


def _probe_inline() -> str | None:
    """It needs nothing."""
    return None


def _make_inline(limits: Limits = DEFAULT_LIMITS) -> Backend:
    from .inline import InlineBackend

    return InlineBackend(limits)


_PROBES: Final = {"shm": _probe_shm, "pipe": _probe_pipe, "inline": _probe_inline}
_MAKERS: Final = {"shm": _make_shm, "pipe": _make_pipe, "inline": _make_inline}
