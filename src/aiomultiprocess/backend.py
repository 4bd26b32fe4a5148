"""The one place that knows whether the accelerator is there, and the one place that imports it.

`amp_ext` is used whole or not at all: with it come the shared-memory ring, the codec, the starter
of items, the journal and the watchdog thread. Without it their Python counterparts do the same,
byte for byte, so that a parent and a worker of different builds still understand each other.

`select` chooses the transport of a pool: what the caller asks for, else what the environment
variable `AIOMULTIPROCESS_BACKEND` asks for, else the first of `NAMES` that can be had. A worker
does not choose: it opens the child end that it was started with.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .transport import Backend

if TYPE_CHECKING:
    # The counterparts have the same signatures; a type checker reads those of the Python ones.
    from amp_ext import growing as growing
    from amp_ext import link as link
    from amp_ext import ring as ring

    from .codec import decode_items, dumps, encode_items, loads
    from .frames import Growing
    from .journal import Journal
    from .stepper import DONE, FULL, RAISED, SUSPENDED, Starter

    EXTENSION_ERROR: ImportError | None
    _watchdog: Any
else:
    try:
        from amp_ext import growing, link, ring
        from amp_ext import watchdog as _watchdog
        from amp_ext.codec import decode_items, dumps, encode_items, loads
        from amp_ext.growing import Growing
        from amp_ext.journal import Journal
        from amp_ext.step import DONE, FULL, RAISED, SUSPENDED, Starter, share

        from . import _tasks

        share(_tasks)
        EXTENSION_ERROR = None
    except ImportError as error:  # not built, or built for another Python: `select` tells which
        from .codec import decode_items, dumps, encode_items, loads
        from .frames import Growing
        from .journal import Journal
        from .stepper import DONE, FULL, RAISED, SUSPENDED, Starter

        growing = link = ring = _watchdog = None
        EXTENSION_ERROR = error.with_traceback(None)

__all__ = [
    "DONE",
    "EXTENSION_ERROR",
    "FULL",
    "RAISED",
    "SUSPENDED",
    "Growing",
    "Journal",
    "Selection",
    "Starter",
    "decode_items",
    "dumps",
    "encode_items",
    "loads",
    "native_watchdog",
    "select",
]

#: Asks for a backend, for a whole program.
VARIABLE: Final = "AIOMULTIPROCESS_BACKEND"
#: The backends there are, the best first.
NAMES: Final = ("shm", "pipe")


class Selection(NamedTuple):
    """A backend that can be had."""

    name: str
    #: One sentence on how it came to be this one.
    why: str
    #: Makes the backend of one pool.
    make: Callable[[], Backend]


def native_watchdog() -> Callable[[int, int, float], None] | None:
    """`amp_ext.watchdog.start`, if the accelerator is there."""
    return None if _watchdog is None else _watchdog.start


def select(requested: str | None = None) -> Selection:
    """Choose the backend of a pool.

    Raises ValueError for a name that does not exist, and RuntimeError, which lists every attempt
    with its reason, if what was asked for (or anything at all) cannot be had.
    """
    name, asked_by = _request(requested)
    attempts: list[str] = []
    for candidate in NAMES if name is None else (name,):
        reason = _PROBES[candidate]()
        if reason is None:
            return Selection(candidate, _why(asked_by, attempts), _MAKERS[candidate])
        attempts.append(f"{candidate}: {reason}")
    listed = "; ".join(attempts)
    if name is None:
        raise RuntimeError(f"no backend can be had here: {listed}")
    others = ", ".join(repr(other) for other in NAMES if other != name)
    raise RuntimeError(
        f"the backend {name!r}, asked for by {asked_by}, cannot be had: {listed}. "
        f"Ask for {others}, or leave the choice open"
    )


def _request(requested: str | None) -> tuple[str | None, str]:
    """What was asked for, and by whom."""
    if requested is not None:
        name, asked_by = requested, "the argument"
    else:
        name, asked_by = os.environ.get(VARIABLE, ""), VARIABLE
        if not name:
            return None, ""
    if name not in NAMES:
        known = " and ".join(repr(other) for other in NAMES)
        raise ValueError(f"unknown backend {name!r}, asked for by {asked_by}: there are {known}")
    return name, asked_by


def _why(asked_by: str, attempts: list[str]) -> str:
    if asked_by:
        return f"asked for by {asked_by}"
    return "; ".join(attempts) if attempts else "the best there is"


def _probe_shm() -> str | None:
    """Why there is no shared memory, or None."""
    if EXTENSION_ERROR is not None:
        return f"amp_ext cannot be imported ({EXTENSION_ERROR})"
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
    """Why there is no ledger or no socket pair, or None."""
    if sys.platform == "win32":
        from ._windows import NamedLedger as Ledger
    else:
        from .ledger import Ledger

    try:
        Ledger.create().close()
    except OSError as error:
        return f"one page of shared memory was refused ({error})"
    return _probe_sockets()


def _probe_sockets() -> str | None:
    """Why there is no socket pair, or None; the event loop of each worker has one too."""
    try:
        for end in socket.socketpair():
            end.close()
    except OSError as error:
        return f"a socket pair was refused ({error})"
    return None


def _make_shm() -> Backend:
    from .shm import ShmBackend

    return ShmBackend()


def _make_pipe() -> Backend:
    if sys.platform == "win32":
        from ._windows import WindowsPipeBackend as PipeBackend
    else:
        from .pipe import PipeBackend

    return PipeBackend()


_PROBES: Final = {"shm": _probe_shm, "pipe": _probe_pipe}
_MAKERS: Final = {"shm": _make_shm, "pipe": _make_pipe}
