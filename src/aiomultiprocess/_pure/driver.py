"""What the coroutine of a spare task awaits, and the task itself, in Python (see `starter`).

What a coroutine calls on what it awaits (`send`, `throw`) and a task on what it waits for
(`add_done_callback`, `cancel`, `result`) is all that passes; `asyncio.Task` does the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from . import tasks

__all__ = ["ItemCoroutine", "MarkedItem"]

_PARKED, _ADOPTING, _RUNNING, _FINISHED, _ENDING = range(5)

_LOOP_STOPPERS: Final = (KeyboardInterrupt, SystemExit)


class MarkedItem(tasks.Item):
    """The task of an item. It tells whether something was attached to it (STARTER-1)."""

    __slots__ = ("marked",)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        object.__setattr__(self, "marked", True)

    def set_name(self, value: object) -> None:
        super().set_name(value)
        self.marked = True

    def add_done_callback(self, fn: Callable[[Any], object], /, **context: Any) -> None:
        super().add_done_callback(fn, **context)
        self.marked = True


class ItemCoroutine:
    """Runs an item for the coroutine of a task; the gate of a spare while it has no item."""

    __slots__ = (
        "__weakref__",
        "_asyncio_future_blocking",
        "_loop",
        "_result",
        "_stage",
        "_wakeup",
        "cancel_message",
        "cancelled",
        "coro",
        "number",
        "on_value",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any] | None = None
    ) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._stage = _PARKED if coro is None else _RUNNING
        self._wakeup: Callable[[ItemCoroutine], object] | None = None
        self._result: Any = None  # what the task is told next: a yielded object, or an outcome
        self.cancelled = False  # the task was cancelled, and the gate could not be
        self.cancel_message: list[Any] | None = None
        self.coro: Coroutine[Any, Any, Any] | None = coro
        self.number = 0  # of the item among all that the worker has started
        #: Called with what the item returns, before anything else can run.
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
        """Let go of the task, which holds this driver."""
        self._wakeup = None

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        assert wakeup is not None
        with suppress(
            *_LOOP_STOPPERS
        ):  # the task has it, and raises it to stop the loop (STARTER-5)
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
        return False  # so the task notes the request, as one does that runs

    def result(self) -> None:
        """What the gate was waited for: nothing."""

    # -- what the coroutine awaits -------------------------------------------------------------

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        """Step, as the task asks: this is send(None)."""
        return self.send(None)

    def send(self, value: Any, /) -> Any:
        if self._stage == _RUNNING:
            return self._step(self.coro.send, value)  # type: ignore[union-attr]
        if self._stage == _ADOPTING:
            return self._adopted()
        if self._stage == _PARKED:
            return self._gate()
        raise self._end()

    def throw(self, error: BaseException, /, *more: Any) -> Any:
        """Step with an exception, which is a CancelledError until the item runs here."""
        if self._stage == _RUNNING:
            return self._step(self.coro.throw, error)  # type: ignore[union-attr]
        if self._stage == _ADOPTING:
            self.cancel_message = list(error.args)
            return self._adopted()
        end = self._end()
        raise error if isinstance(end, StopIteration) else end

    def close(self) -> None:
        if self.coro is not None:
            self.coro.close()

    def __getattr__(self, name: str) -> Any:
        """`cr_frame`, `__qualname__` and the like are those of the item's coroutine."""
        return getattr(self.coro, name)

    def _step(self, step: Callable[[Any], Any], what: Any) -> Any:
        try:
            return step(what)
        except StopIteration as stop:
            if self.on_value is not None:
                self.on_value(stop.value)
            raise
        except _LOOP_STOPPERS as error:  # raised in a step that is ours, a turn later (STARTER-5)
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
