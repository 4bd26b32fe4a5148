"""What the callers of a pool see: the texts of refusals, and errors prepared for them."""

from __future__ import annotations

import asyncio
import functools
import types
from typing import Any, NoReturn

from .._wire.tracebacks import without_our_frames
from ..types import PoolTerminatedError

CLOSED = "pool is closed: it takes no more calls, make another"
NO_LOOP = (
    "no event loop runs in this thread, and a pool needs one: call it in a coroutine that "
    "asyncio.run() runs, or, if the pool's loop runs in another thread, by "
    "asyncio.run_coroutine_threadsafe(coroutine, loop)"
)
ANOTHER_LOOP = (
    "this pool belongs to another event loop: make one here, or call it in its own loop by "
    "asyncio.run_coroutine_threadsafe(coroutine, loop). A program that makes a loop for each call "
    "(Flask, asgiref) does best with one pool in one loop that runs in a thread"
)


def refuse_to_pickle(obj: object) -> NoReturn:
    """Raise the error for an object that stays in its process."""
    raise TypeError(
        f"a {type(obj).__name__} stays in its process: keep it out of what is sent to another, "
        "such as the attributes of an object whose method is called there"
    )


def prepare_for_caller(error: BaseException) -> None:
    """Prepare an error for the task that waits for it: call it where the error leaves our code."""
    _end_quietly(error)
    without_our_frames(error)


def _end_quietly(error: BaseException) -> None:
    """Keep asyncio from reporting the running task if `error` ends it and nothing awaits it.

    A program that leaves a pool with calls under way expects that they end. 0.9.1 reported nothing
    either.
    """
    if type(error) is not PoolTerminatedError:  # a subclass comes from a task
        return
    task = asyncio.current_task()
    if task is not None:
        _mark(task)
        mark_waiters(task)


def mark_as_retrieved(task: asyncio.Future[Any]) -> None:
    """A done callback: asyncio does not report this task if it ended with its pool."""
    # not by `exception()`, which would mark another error as well
    if type(getattr(task, "_exception", None)) is PoolTerminatedError:
        task.exception()


def mark_waiters(future: asyncio.Future[Any]) -> None:
    """CALL-4: mark what waits for a future, directly or through others."""
    left = [future]
    while left:
        for callback, _ in getattr(left.pop(), "_callbacks", None) or ():
            waiter = _waiter_of(callback)
            if waiter is not None and _mark(waiter):
                left.append(waiter)


def _mark(waiter: asyncio.Future[Any]) -> bool:
    """Mark a future that may end by PoolTerminatedError; False if it was marked before."""
    was_marked = waiter.remove_done_callback(mark_as_retrieved) > 0
    waiter.add_done_callback(mark_as_retrieved)
    return not was_marked


def _waiter_of(callback: Any) -> asyncio.Future[Any] | None:
    """The future or task that a done callback of a future completes, if it is one of asyncio's.

    A task waits by a method of its own; `wait_for` of 3.11 by a partial of a future of its own;
    `gather` and `shield` by a function inside a function, of which `outer` is what they return.
    """
    waiter = getattr(callback, "__self__", None)
    if type(callback) is functools.partial and _is_of_asyncio(callback.func):
        waiter = next(iter(callback.args), None)
    if _is_of_asyncio(callback):
        cells = dict(zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=True))
        waiter = cells["outer"].cell_contents if "outer" in cells else None
    return waiter if isinstance(waiter, asyncio.Future) else None


def _is_of_asyncio(function: Any) -> bool:
    return type(function) is types.FunctionType and function.__module__ == "asyncio.tasks"
