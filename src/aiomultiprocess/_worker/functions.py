"""The functions of a pool as a worker has received them (functions.py is the parent's side).

Each is called with an item, whatever became of it: a function that cannot be had here has a
stand-in that raises why, and so fails its items and no others. _worker/engine.py is the only user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _accel
from .._pure import tasks
from .._wire.frames import Payload, as_bytes


def load_function(payload: Payload, stateful: int = False) -> Callable[..., Any]:
    """The function of a FUNCTION frame, or a stand-in that raises why it cannot be had."""
    try:
        if stateful:
            return Stateful(payload)
        function: Callable[..., Any] = _accel.loads(as_bytes(payload))
    except MemoryError as error:
        return Unloadable(error)
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        return Unloadable(error)
    return function


def raise_error(error: BaseException) -> None:
    """Stands in for the function of an item that cannot be run."""
    if issubclass(type(error), MemoryError):  # several items may have it, each `raise` adds to it
        BaseException.with_traceback(error, None)
    try:
        raise error
    finally:
        del error  # the traceback and this frame would keep each other


class Stateful:
    """A function with state that items might change: each gets a fresh copy (functions.py)."""

    def __init__(self, payload: Payload) -> None:
        self.payload = bytes(payload)
        self.loading = False  # stays True if a copy cannot be made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.loading = True
        function = _accel.loads(self.payload)
        self.loading = False
        return function(*args, **kwargs)


class Unloadable:
    """Stands in for a function that could not be unpickled here: each of its items fails so."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._traceback = tasks.traceback_of(error)

    def __call__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs  # the traceback keeps this frame
        # from where it was raised first: each `raise` appends to what there is
        raise BaseException.with_traceback(self.error, self._traceback)
