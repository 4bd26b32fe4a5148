"""The users' functions as a worker receives them; the parent's side is _parent/functions.py.

The engine calls `load_function` for each FUNCTION frame. Where the function cannot be unpickled, a
stand-in takes its place that raises the reason, so that its items fail, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from .. import _accel
from .._pure import tasks
from .._wire.frames import STATEFUL, Payload, as_bytes


def load_function(payload: Payload, flags: int = 0) -> Callable[..., Any]:
    """The function of a FUNCTION frame, or an `Unloadable` if it cannot be unpickled."""
    try:
        if flags & STATEFUL:
            return Stateful(payload)
        function: Callable[..., Any] = _accel.loads(as_bytes(payload))
    except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
        return Unloadable(error)
    return function


def raise_error(error: BaseException) -> None:
    """The stand-in for the function of an item that cannot be run: it gets the item's error."""
    if issubclass(type(error), MemoryError):  # several items may have it, each `raise` adds to it
        BaseException.with_traceback(error, None)
    try:
        raise error
    finally:
        del error  # the traceback and this frame would keep each other alive


class Stateful:
    """A function with state that items might change: each item gets a fresh copy."""

    def __init__(self, payload: Payload) -> None:
        self.payload = bytes(payload)
        self.loading = False  # stays True if unpickling a copy fails (received_chunk.stage_of)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)

    def load(self) -> Callable[..., Any]:
        """A fresh copy of the function."""
        self.loading = True
        function: Callable[..., Any] = _accel.loads(self.payload)
        self.loading = False
        return function


class Wrapper:
    """The base of callables that stand for `func` and do more than to call it."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func


def unwrapped(func: Any) -> Callable[..., Any]:
    """The user's function, or its stand-in, behind a `Wrapper`."""
    return func.func if issubclass(type(func), Wrapper) else func  # type: ignore[no-any-return]


class StreamFunction(Wrapper):
    """Stands for a generator function: makes the coroutine that sends the values of a stream."""

    def __init__(
        self,
        func: Callable[..., Any],
        send_values: Callable[[Any, int], Coroutine[Any, Any, int]],
    ) -> None:
        super().__init__(func)
        self._send_values = send_values

    def __call__(self, item: tuple[Any, Any, int]) -> Coroutine[Any, Any, int]:
        args, kwds, ahead = item
        return self._send_values(self.func(*args, **kwds), ahead)


class Unloadable:
    """The stand-in for a function that could not be unpickled: each of its items fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._traceback = tasks.traceback_of(error)

    def __call__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs  # the traceback keeps this frame
        # the first traceback again, because each `raise` extends the one that the error has
        raise BaseException.with_traceback(self.error, self._traceback)
