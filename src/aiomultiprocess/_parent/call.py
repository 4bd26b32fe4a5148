"""What `submit` and `apply` return: one call in a worker, as a future of the pool's loop.

The engine makes a `Call` and gives it to a queue: it is the handle of its task (feed.py), and the
worker's answer becomes its result. So it can be awaited by several tasks, and `asyncio.gather`
needs no task for it.

`apply` was a coroutine function, and programs give what it returns to `create_task`, to a TaskGroup
or to `asyncio.run`. So it returns an `ApplyCall`, which passes for a coroutine as well: `send`,
`throw` and `close`, as a task calls them.

CALL-1  Cancelling a call cancels its task, wherever that is: it leaves its queue, or is cancelled
    in its worker. The call itself is cancelled at once, and does not wait for the worker.
CALL-2  The coroutine's methods have no state of their own, as several tasks may use them at once: a
    call that is done gives its result, one that is not gives itself, to be waited for.
CALL-3  A call that is not done keeps its pool alive, although the engine does not (ENGINE-2): the
    caller may have dropped the pool and kept the call.
CALL-4  A program that leaves a pool with calls under way expects that they end. So if a call ends
    by PoolTerminatedError, neither it nor what waits for it is reported as never retrieved.
CALL-5  No other thread cancels a call while its loop runs, as that writes into a worker's link.
CALL-6  `asyncio.wait` takes what `ensure_future` returned, but no coroutines. So an `ApplyCall` is
    a `TakenCall`, and no coroutine any more, once `ensure_future` or `gather` takes it: they look
    for `_asyncio_future_blocking`. A task reads the same attribute of the future that it begins to
    wait for, but then its value is True; so only a read that finds False turns the call into a
    `TakenCall`. That is without `close`, by which alone it would count as a coroutine. Who only
    looks, by `isfuture` or in a debugger, reads the attribute, too.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Coroutine
from typing import Any, NoReturn, Protocol

from .. import _accel
from ..types import PoolTerminatedError, R
from .callers import ANOTHER_LOOP, mark_waiters, prepare_for_caller

ANOTHER_THREAD = (
    "cancel() of a call was called outside the pool's event loop, which runs in another thread: "
    "use loop.call_soon_threadsafe(call.cancel)"
)


class CallSource(Protocol):
    """What a call needs of the task source that has it (calls.py)."""

    def cancel(self, call: asyncio.Future[Any]) -> None:
        """Stop a call that its caller gave up."""


class Call(asyncio.Future[R]):
    """One call in a worker, as `Pool.submit` returns it: an `asyncio.Future` of its result.

    It is under way from the beginning. `cancel` cancels its task in the worker, and does not wait
    for that task's `finally` blocks. As with any future, it is cancelled too if a task that awaits
    it is cancelled; `asyncio.shield` prevents this.
    """

    __slots__ = ("pool", "source")

    source: CallSource
    """The source that has its task; not set while the call is not submitted."""
    pool: object  # only held (CALL-3)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call and its task in the worker (CALL-1); False if the call is done.

        Raises RuntimeError in another thread while the pool's loop runs.
        """
        if not self.may_change():
            raise RuntimeError(ANOTHER_THREAD)
        if not super().cancel(msg):
            return False
        self.source.cancel(self)
        self.pool = None  # CALL-3
        return True

    def may_change(self) -> bool:
        """Whether this is the thread of the call's loop, or that loop does not run (CALL-5)."""
        loop = self.get_loop()
        return asyncio._get_running_loop() is loop or not loop.is_running()


class TakenCall(Call[R]):
    """A call of `apply` that counts as a future alone (CALL-6).

    It has what a task needs that has begun to run it as a coroutine.
    """

    __slots__ = ()

    __name__ = "Pool.apply"  # in the repr of a task
    cr_running = False
    cr_frame = None

    @property
    def cr_suspended(self) -> bool:
        """Whether the call is under way: anyio cancels only tasks that are."""
        return not self.done()

    @property
    def cr_state(self) -> str:
        """The same, as `inspect.getcoroutinestate` reads it since Python 3.15."""
        return inspect.CORO_CLOSED if self.done() else inspect.CORO_SUSPENDED

    def send(self, value: object, /) -> Any:
        """Raise StopIteration with the result, or return what the running task must wait for."""
        try:
            if not self.done():
                if asyncio._get_running_loop() is not self.get_loop():
                    raise RuntimeError(ANOTHER_LOOP)
                self._asyncio_future_blocking = True
                return self
            result = self.result()
        except Exception as error:
            prepare_for_caller(error)
            raise
        raise StopIteration(result)

    def throw(
        self,
        kind: Any,
        value: Any = None,
        traceback: types.TracebackType | None = None,
        /,
    ) -> NoReturn:
        """Raise an exception where the coroutine waits: it ends the call."""
        if self.may_change():
            self.cancel()
        error: BaseException = value if isinstance(value, BaseException) else kind
        if isinstance(error, type):
            error = error() if value is None else error(value)
        try:
            raise error if traceback is None else BaseException.with_traceback(error, traceback)
        except BaseException:
            prepare_for_caller(error)
            raise


class ApplyCall(TakenCall[R], Coroutine[Any, Any, R]):
    """A call as `Pool.apply` returns it: it passes for a coroutine too (CALL-2)."""

    __slots__ = ()

    _asyncio_future_blocking: bool = _accel.BlockingFlag(  # type: ignore[assignment]  # CALL-6
        vars(asyncio.Future)["_asyncio_future_blocking"], TakenCall
    )

    # also here: a task looks for it by a new string, which no cache of attributes has
    result = asyncio.Future.result

    def close(self) -> None:
        """Cancel the call, unless it is done."""
        self.cancel()


def refuse(error: Exception, loop: asyncio.AbstractEventLoop) -> ApplyCall[Any]:
    """A call that has failed with `error`: it was never submitted."""
    call: ApplyCall[Any] = ApplyCall(loop=loop)
    if issubclass(type(error), StopIteration):  # which no future takes; a coroutine raised the same
        refusal = RuntimeError("coroutine raised StopIteration")
        refusal.__cause__ = error
        error = refusal
    call.set_exception(error)
    return call


def fail(call: asyncio.Future[Any], error: BaseException) -> None:
    """Let a call end by `error`."""
    if type(error) is not PoolTerminatedError:  # a subclass comes from a task
        call.set_exception(error)
        return
    mark_waiters(call)
    call.set_exception(error)
    call.exception()
