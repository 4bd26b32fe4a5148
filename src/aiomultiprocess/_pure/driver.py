"""What the coroutine of an item's task awaits, and the task itself (`amp_ext.driver` is compiled).

The starter uses this module, and calls of `apply` use `BlockingFlag`. The starter's theory and
rules (STARTER-1 to STARTER-8) are in starter.py. `asyncio.Task` does the rest. An `ItemCoroutine`
has two sides: the one that a coroutine uses of what it awaits (`send`, `throw`), and the one that a
task uses of the future it waits for (`add_done_callback`, `cancel`, `result`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from . import tasks

__all__ = ["BlockingFlag", "ItemCoroutine", "MarkedItem"]

_WAITING, _ADOPTING, _RUNNING, _FINISHED, _ENDING = range(5)

_LOOP_STOPPERS: Final = (KeyboardInterrupt, SystemExit)


class BlockingFlag:
    """`_asyncio_future_blocking` of futures that become a `kind` once others than a task read it.

    A task reads it, as a flag that is true, when it begins to wait for the future.
    """

    __slots__ = ("_flag", "_kind")

    def __init__(self, flag: Any, kind: type[Any]) -> None:
        self._flag = flag  # the descriptor of `asyncio.Future`
        self._kind = kind

    def __get__(self, future: Any, owner: type[Any] | None = None, /) -> Any:
        if future is None:
            return self
        if self._flag.__get__(future):
            return True
        future.__class__ = self._kind
        return False

    def __set__(self, future: Any, value: bool, /) -> None:
        self._flag.__set__(future, value)


class MarkedItem(tasks.Item):
    """The task of an item, which notes attributes that are set, too."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_item_coro":
            self._item_coro.marked = True
        object.__setattr__(self, name, value)


class ItemCoroutine:
    """Runs the coroutine of an item; the gate of a reusable task while that has no item."""

    __slots__ = (
        "__weakref__",
        "_asyncio_future_blocking",
        "_loop",
        "_result",
        "_stage",
        "_wakeup",
        "cancel_message",
        "cancelled",
        "inner",
        "marked",
        "number",
        "on_value",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, inner: Coroutine[Any, Any, Any] | None = None
    ) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._stage = _WAITING if inner is None else _RUNNING
        self._wakeup: Callable[[ItemCoroutine], object] | None = None
        self._result: Any = None  # what the next step yields, or (value, error) to end with
        self.cancelled = False  # the task was cancelled while it waited at the gate
        #: Arguments of a cancellation in the first step, to be requested again after the adoption.
        self.cancel_message: list[Any] | None = None
        self.marked = False  # anything was attached to the task (STARTER-1)
        self.inner = inner  # the item's coroutine; in a forked copy, a `Halted` (copies.py)
        self.number = 0  # of the item, counted over all that this worker started
        #: Gets what the item returns, before anything else can run.
        self.on_value: Callable[[Any], object] | None = None

    # -- for the starter -----------------------------------------------------------------------

    def adopt(self, yielded: object) -> None:
        """Make the task wait for what its item has yielded."""
        self._stage, self._result = _ADOPTING, yielded
        self._wake()

    def finish(self, value: object, error: BaseException | None) -> None:
        """Make the task done (STARTER-3)."""
        self._stage, self._result = _FINISHED, (value, error)
        self._wake()

    def drop(self) -> None:
        """Drop the task, which refers to this object: a reference cycle."""
        self._wakeup = None

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        assert wakeup is not None
        with suppress(*_LOOP_STOPPERS):  # the task keeps the error, and also raises it (STARTER-5)
            wakeup(self)

    # -- the gate, as a task sees it -----------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context) -> None:
        self._wakeup = wakeup
        if self._stage == _ENDING:
            self._loop.call_soon(self._wake, context=context)

    def cancel(self, msg: object = None) -> bool:
        self.cancelled = True
        return False  # then the task notes the request, as a running task does

    def result(self) -> None:
        """The gate has no result."""

    # -- what the coroutine awaits -------------------------------------------------------------

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        """Step the item: `send(None)`."""
        return self.send(None)

    def send(self, value: Any, /) -> Any:
        if self._stage == _RUNNING:
            return self._step(self.inner.send, value)  # type: ignore[union-attr]
        if self._stage == _ADOPTING:
            return self._adopted()
        if self._stage == _WAITING:
            return self._gate()
        raise self._end()

    def throw(self, error: BaseException, /, *more: Any) -> Any:
        """Step with an exception; before the item runs here, that is always a CancelledError."""
        if self._stage == _RUNNING:
            return self._step(self.inner.throw, error)  # type: ignore[union-attr]
        if self._stage == _ADOPTING:
            self.cancel_message = list(error.args)
            return self._adopted()
        end = self._end()
        raise error if isinstance(end, StopIteration) else end

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()

    def __getattr__(self, name: str) -> Any:
        """Attributes such as `cr_frame` and `__qualname__` are those of the item's coroutine."""
        return getattr(self.inner, name)

    def _step(self, step: Callable[[Any], Any], what: Any) -> Any:
        try:
            return step(what)
        except StopIteration as stop:
            if self.on_value is not None:
                self.on_value(stop.value)
            raise
        except _LOOP_STOPPERS as error:  # end the task from `_wake`, one turn later (STARTER-5)
            self._stage, self._result = _ENDING, (None, error)
            return self._gate()

    def _gate(self) -> ItemCoroutine:
        self._asyncio_future_blocking = True
        return self

    def _adopted(self) -> Any:
        self._stage = _RUNNING
        yielded, self._result = self._result, None
        return yielded

    def _end(self) -> BaseException:
        (value, error), self._result = self._result, None
        if error is None:
            return StopIteration(value)
        if isinstance(error, StopIteration):  # a coroutine cannot raise it either
            return RuntimeError(f"item raised {error!r}")
        return error  # type: ignore[no-any-return]
