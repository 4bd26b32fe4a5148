"""The functions of a pool as a worker has received them (functions.py is the parent's side).

Each is called with an item, whatever became of it: a function that cannot be had here has a
stand-in that raises why, and so fails its items and no others. child.py is the only user.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from . import _tasks, backend
from .frames import Payload, as_bytes

#: What helps where a function cannot be had; CPython says which one.
NOT_FOUND = (
    "The function must be importable in a worker, which is a process of its own: define it at the "
    "top level of a module, not in an interactive session or below `if __name__ == '__main__'`"
)


def load_function(payload: Payload, stateful: int = False) -> Callable[..., Any]:
    """The function of a FUNCTION frame, or a stand-in that raises why it cannot be had."""
    try:
        if stateful:
            return Stateful(payload)
        function: Callable[..., Any] = backend.loads(as_bytes(payload))
    except MemoryError as error:
        return Unloadable(error)
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        _add_note(error, NOT_FOUND)
        return Unloadable(error)
    return function


def _add_note(error: BaseException, note: str) -> None:
    """What `add_note` does, also for a frozen dataclass, whose attributes nobody may set."""
    with contextlib.suppress(Exception):  # notes of the user's own kind: the error itself counts
        vars(error).setdefault("__notes__", []).append(note)


def raise_error(error: BaseException) -> None:
    """Stands in for the function of an item that cannot be run."""
    if isinstance(error, MemoryError):  # several items may have it, and each `raise` adds to it
        BaseException.with_traceback(error, None)
    try:
        raise error
    finally:
        del error  # the traceback and this frame would keep each other


class Stateful:
    """A function with state that items might change: each gets a fresh copy (functions.py)."""

    def __init__(self, payload: Payload) -> None:
        self.payload = bytes(payload)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return backend.loads(self.payload)(*args, **kwargs)


class Unloadable:
    """Stands in for a function that could not be unpickled here: each of its items fails so."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._traceback = _tasks.traceback_of(error)

    def __call__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs  # the traceback keeps this frame
        # from where it was raised first: each `raise` appends to what there is
        raise BaseException.with_traceback(self.error, self._traceback)
