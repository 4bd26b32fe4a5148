"""Which transport a pool gets, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from .. import _accel
from .._accel import _probe_sockets, ring
from .link import Backend

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
    """Why there is no ledger or no socket pair, or None."""
    if sys.platform == "win32":
        from .windows import NamedSharedPage as SharedPage
    else:
        from .shared_page import SharedPage

    try:
        SharedPage.create().close()
    except OSError as error:
        return f"one page of shared memory was refused ({error})"
    return _probe_sockets()


def _make_shm() -> Backend:
    from .shm import ShmBackend

    return ShmBackend()


def _make_pipe() -> Backend:
    if sys.platform == "win32":
        from .windows import WindowsPipeBackend as PipeBackend
    else:
        from .pipe import PipeBackend

    return PipeBackend()


_PROBES: Final = {"shm": _probe_shm, "pipe": _probe_pipe}
_MAKERS: Final = {"shm": _make_shm, "pipe": _make_pipe}
