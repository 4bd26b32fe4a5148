"""The functions of a pool as a worker has received them (functions.py is the parent's side).

Each is called with an item, whatever became of it: a function that cannot be had here has a
stand-in that raises why, and so fails its items and no others. child.py is the only user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import backend

#: What helps where a function cannot be had; CPython says which one.
NOT_FOUND = (
    "The function must be importable in a worker, which is a process of its own: define it at the "
    "top level of a module, not in an interactive session or below `if __name__ == '__main__'`"
)


def load_function(payload: memoryview) -> Callable[..., Any]:
    """The function of a FUNCTION frame, or a stand-in that raises why it cannot be had."""
    try:
        function: Callable[..., Any] = backend.loads(payload)
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        error.add_note(NOT_FOUND)
        return Unloadable(error)
    return function


def raise_error(error: BaseException) -> None:
    """Stands in for the function of an item that cannot be run."""
    raise error


class Stateful:
    """A function with state that items might change: each gets a fresh copy (functions.py)."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = bytes(payload)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return backend.loads(self.payload)(*args, **kwargs)


class Unloadable:
    """Stands in for a function that could not be unpickled here: each of its items fails so."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise self.error
