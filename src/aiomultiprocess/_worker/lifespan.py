"""The lifespan of a worker: a user's async context manager around all items.

    initializer -> entered -> items -> left -> exit

`main` imports this module only in pools that have a lifespan. The engine (engine.py) enters it
before it takes items, and leaves it when it has run the last one.

LIFESPAN-1  One task enters the context manager, waits, and leaves it: cancel scopes and task groups
    demand this. Besides items, it is the only task in `asyncio.all_tasks()`.
LIFESPAN-2  `on_entered` is called in the context of that task. The engine makes the starter there,
    so items see the context variables that entering has set.
LIFESPAN-3  What the context manager raises stays here: `check` raises it again, or it is logged. So
    is an end that `leave` and `kill` have not asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from .._wire.tracebacks import without_our_frames
from ..types import shown

NAME = "aiomultiprocess-lifespan"  # of the task

log = logging.getLogger(__name__)


class Lifespan:
    """Enters and leaves what `make()` returns.

    `on_left` is called when it was left, or has ended by itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], AbstractAsyncContextManager[Any]],
        on_left: Callable[[], object],
    ) -> None:
        self.state: Any = None  # what the context manager has returned when it was entered
        self.done = False  # whether it was left, or could not be entered
        self._loop = loop
        self._make = make
        self._on_left = on_left
        self.settled = loop.create_future()  # when it is entered, or has failed
        self._entered = False
        self._killed = False
        self._asked_to_leave = False  # `_leaving` is also done if the task was cancelled
        self._leaving = loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        #: While `on_left` is called: what has ended it.
        self.error_at_end: BaseException | None = None

    def enter(self, on_entered: Callable[[], object]) -> None:
        """Begin to enter the context manager; call `check` when it is `settled`."""
        # LIFESPAN-1; not by the loop's task factory, which is the user's
        self._task = asyncio.Task(self._live(on_entered), loop=self._loop, name=NAME)

    def check(self) -> None:
        """Raise the error of a context manager that could not be entered."""
        error, self._error = self._error, None
        if issubclass(type(error), asyncio.CancelledError):  # it would cancel the callers
            raise RuntimeError("the lifespan was cancelled while it was entered") from error
        if error is not None:
            try:
                raise error
            finally:
                del error  # the traceback and this frame would keep each other alive

    def leave(self) -> None:
        """Let the context manager be left, now or when it is entered; may be called again."""
        self._asked_to_leave = True
        if not self._leaving.done():
            self._leaving.set_result(None)

    def cancel(self) -> None:
        """Give up entering: this worker was terminated."""
        if self._task is not None and not self._entered:
            self._task.cancel()

    def kill(self) -> None:
        """Cancel it whatever it does: a worker that is no process is killed."""
        if self._task is not None and not self.done:
            self._killed = True
            self._task.cancel()

    async def _live(self, on_entered: Callable[[], object]) -> None:
        error: BaseException | None = None
        try:
            async with _checked(self._make()) as self.state:
                on_entered()  # LIFESPAN-2
                self._entered = True
                self.settled.set_result(None)
                await self._leaving
        except BaseException as raised:  # noqa: BLE001 - the user's code, LIFESPAN-3
            error = raised
        self.done = True
        self._leaving.cancel()  # if it was not entered, nothing has waited for it
        if self._entered:
            self._log_end(error)
            self.error_at_end = error
            self._on_left()
            self.error_at_end = None
        else:
            self._error = error
        del error  # its traceback and this frame would keep each other alive
        if not self.settled.done():
            self.settled.set_result(None)

    def _log_end(self, error: BaseException | None) -> None:
        """Log what leaving raised, and an end that nothing has asked for."""
        if error is not None:
            without_our_frames(error)
        cancelled = issubclass(type(error), asyncio.CancelledError)
        if self._asked_to_leave or self._killed:
            if error is not None and not (self._killed and cancelled):
                log.error("the lifespan of this worker failed while it was left", exc_info=error)
        else:
            log.error(
                "the lifespan of this worker has ended by itself; the worker is replaced",
                exc_info=None if cancelled else error,
            )


def _checked(manager: object) -> AbstractAsyncContextManager[Any]:
    """What a lifespan has returned; TypeError unless it is an async context manager."""
    kind = type(manager)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        return manager  # type: ignore[return-value]
    if asyncio.iscoroutine(manager):
        manager.close()  # or Python would warn that it was never awaited
    raise TypeError(
        f"lifespan must return an async context manager, not {shown(manager)}: "
        "decorate an async generator function with contextlib.asynccontextmanager"
    )
