"""The calls that an executor hands over from other threads: a task source of concurrent futures.

`PoolExecutor` (executor.py) makes the futures, in any thread, and gives them to the loop of its
pool. Here they are the handles of a task source (feed.py). All of it runs on that loop.

OUTSIDE-1  A future can be cancelled until a worker is sent its call; from then on it is running.
OUTSIDE-2  What a future calls, or refuses, never reaches the queue: callbacks are the user's code.
OUTSIDE-3  Errors are those of `concurrent.futures.ProcessPoolExecutor`: what the function raised is
    itself and no proxy of it; the death of a worker and a pool that cannot start its workers are a
    `BrokenProcessPool`.
OUTSIDE-4  asyncio can wait for each of these futures. So none gets an error that it takes for
    something else: a CancelledError of either kind would cancel what awaits it; a StopIteration is
    refused before Python 3.13, and the wait never ends, or one of a subclass becomes a result. Such
    an error is the cause of a ProxyException, or of a RuntimeError if it arose in this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .._wire.exceptions import original_of, unwrap
from ..types import PoolTerminatedError, ProxyException, WorkerLostError, describe_error
from .calls import CallQueue
from .feed import Handles

log = logging.getLogger(__name__)

Ends = Callable[[], object]

MISTAKEN = (asyncio.CancelledError, CancelledError, StopIteration)  # OUTSIDE-4


class ExecutorWorkerLostError(WorkerLostError, BrokenProcessPool):
    """A worker of a `PoolExecutor` ended while it ran this call.

    It is a `BrokenProcessPool`, so that programs written for a `ProcessPoolExecutor` catch it. The
    executor itself is not broken: it starts another worker, and only the calls that the dead one
    had begun are lost.
    """


class OutsideCalls(CallQueue):
    """All waiting calls of one function that came from an executor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ends: dict[Any, Ends] = {}

    def add(self, future: Future[Any], item: Any, on_end: Ends | None) -> None:
        """Take one more call; `on_end` is called when it has ended, however it does."""
        handle: Any = future
        self.expect(handle)
        self.wait((handle, item))
        if on_end is not None:
            self._ends[handle] = on_end

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        futures: list[Any] = []
        items: list[Any] = []
        waiting = self._waiting
        while waiting and len(futures) < n:
            future, item = waiting.popleft()
            if _begin(future):  # OUTSIDE-1
                futures.append(future)
                items.append(item)
            else:
                self._drop(future)
        return futures, items

    def cancel_waiting(self) -> None:
        """Cancel all calls that no worker was sent."""
        for _ in range(len(self._waiting)):
            if not self._waiting:  # a callback has sent the others, or has ended them
                break
            future: Any
            future, item = self._waiting.popleft()
            if future.cancel():
                _begin(future)
                self._drop(future)
            else:
                self._waiting.append((future, item))

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        for at, future in enumerate(handles):
            value, values[at] = values[at], None  # the future alone keeps it
            _conclude(future, future.set_result, value)
            del value
            self._settle(future)

    def fail(self, handle: Any, error: BaseException, size: int = 0) -> None:
        _conclude(handle, handle.set_exception, error_for_executor(error))
        self._settle(handle)

    def fail_all(self, error: BaseException) -> None:
        super().fail_all(broken_by(error))

    def _settle(self, future: Any) -> None:
        on_end = self._ends.pop(future, None)
        if on_end is not None:
            on_end()
        super()._settle(future)


def fail(future: Future[Any], error: BaseException) -> None:
    """End a future by an error that arose before its call was in a queue."""
    _conclude(future, future.set_exception, error_for_executor(error))


def cancel(future: Future[Any]) -> None:
    """Cancel a future whose call is in no queue."""
    if future.cancel():
        _begin(future)


def broken_by(reason: BaseException) -> BaseException:
    """The error of all calls of a pool that has given up for this reason."""
    if isinstance(reason, PoolTerminatedError | BrokenProcessPool):
        return reason
    error = BrokenProcessPool(f"the pool of this executor is broken ({describe_error(reason)})")
    error.__cause__ = reason
    return error


def error_for_executor(error: BaseException) -> BaseException:
    """The error that a future gets for one of the pool's (OUTSIDE-3, OUTSIDE-4)."""
    if type(error) is WorkerLostError:
        return ExecutorWorkerLostError(
            error.task, error.pid, error.exitcode, error.host, error.reason
        )
    if issubclass(type(error), ProxyException):
        # by its type: `__class__` may be the user's
        mistaken = issubclass(type(original_of(error)), MISTAKEN)
        return error if mistaken else unwrap(error)
    if issubclass(type(error), MISTAKEN):
        raised = RuntimeError(f"a call was ended by {type(error).__name__}")
        raised.__cause__ = error
        return raised
    return error


def _begin(future: Any) -> bool:
    """Mark a future as running; False if it was cancelled, or settled by others."""
    try:
        # one that came back from a dead worker runs already
        return bool(future.running() or future.set_running_or_notify_cancel())
    except (InvalidStateError, RuntimeError):
        return False


def _conclude(future: Any, settle: Callable[[Any], object], outcome: Any) -> None:
    """Give a future its result or error (OUTSIDE-2)."""
    try:
        settle(outcome)
    except InvalidStateError:  # cancelled, or settled by others
        if future.cancelled():
            _begin(future)
    except BaseException:  # of a callback: its SystemExit would end the loop
        log.exception("a callback of %r failed", future)
