"""Threads for plain functions that block: `Pool(threads=...)`.

An item whose function is plain becomes a coroutine item: `ThreadedFunction` gives the call to a
thread of the worker, and `wait_for_thread` waits for it on the loop. The engine imports this module
if its pool has threads.

THREAD-1  An item starts when a thread takes it: while none is free, the engine starts neither it
    nor an item behind it (engine.py, WORKER-1). An item that is given up meanwhile is answered in
    its turn, without a thread, and does not hold up those behind it.
THREAD-2  A thread cannot be interrupted. An item that is cancelled ends when its thread has
    returned, as its function did: a value or an exception stands (LIMITS-2). An awaitable that it
    returns is not awaited any more. Until then the item keeps its slot. A worker that is to exit
    does not wait for it longer than the grace period (engine.py, WORKER-12). An inline worker
    that goes without it leaves the thread alone (`abandon`), and the item ends at once.
THREAD-3  Only the call runs in the thread, in a copy of the item's context. An awaitable that it
    returns is awaited on the loop, and so is every answer written there.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from .._processes import copies
from .functions import Stateful, Wrapper
from .leaving import THREAD_NAME

#: A call, and the future that gets its value and error.
Job: TypeAlias = tuple["asyncio.Future[Outcome]", Callable[[], Any]]
Outcome: TypeAlias = tuple[Any, BaseException | None]


class Threads:
    """The threads of a worker; they are started when they are needed, and daemons."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: int, on_free: Callable[[], object]
    ) -> None:
        self.busy = 0
        self.abandoned = False
        self._on_free = on_free
        self._loop = loop
        self._limit = limit
        self._started = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    @property
    def free(self) -> int:
        """How many more calls can run now."""
        return self._limit - self.busy

    def serves(self, func: object) -> bool:
        """Whether items of `func` run in threads."""
        return type(func) is ThreadedFunction

    def must_wait(self, func: object) -> bool:
        """Whether an item of `func` cannot start now (THREAD-1)."""
        return not self.free and self.serves(func)

    def start(self, call: Callable[[], Any]) -> asyncio.Future[Outcome]:
        """Run `call` in a free thread."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        if self.busy == self._started:
            number = self._started + 1
            threading.Thread(target=self._serve, name=f"{THREAD_NAME}{number}", daemon=True).start()
            self._started = number
        self.busy += 1
        self._jobs.put((future, call))
        return future

    def close(self) -> None:
        """End the threads, each when its call has returned."""
        for _ in range(self._started):
            self._jobs.put(None)

    def abandon(self) -> None:
        """As `close`; items that are cancelled do not wait for their threads from now on."""
        self.abandoned = True
        self.close()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            outcome = _outcome_of(call)
            if copies.is_copy():  # the call has forked, and returned in the copy (COPY-2)
                copies.end()
            try:
                self._loop.call_soon_threadsafe(self._finish, future, outcome)
            except RuntimeError:  # the worker ends, and its loop is closed
                return
            del job, future, call, outcome  # or this frame would keep them until the next call

    def _finish(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self.busy -= 1
        if not future.done():
            future.set_result(outcome)
        self._on_free()


def _outcome_of(call: Callable[[], Any]) -> Outcome:
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - raised on the loop, where the item waits
        return None, error


class ThreadedFunction(Wrapper):
    """Stands for a plain function: each call makes the coroutine that runs it in a thread."""

    def __init__(self, func: Callable[..., Any], threads: Threads) -> None:
        super().__init__(func)
        self._threads = threads

    def __call__(self, *args: Any, **kwds: Any) -> Coroutine[Any, Any, Any]:
        # unpickled here, so that an error is reported as one of the function
        func = self.func.load() if type(self.func) is Stateful else self.func
        context = contextvars.copy_context()
        # started here: the task of a task factory runs the coroutine a turn later (THREAD-1)
        future = self._threads.start(lambda: context.run(func, *args, **kwds))
        return wait_for_thread(future, self._threads)


async def wait_for_thread(future: asyncio.Future[Outcome], threads: Threads) -> Any:
    """The item: wait for a thread, and await what its call returns if it can (THREAD-3)."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as cancellation:  # THREAD-2
            cancelled = cancellation
            if threads.abandoned:
                future.cancel()  # its thread may never return
                raise
    value, error = future.result()
    try:
        if error is not None:
            raise error
        if not inspect.isawaitable(value):
            return value
        if cancelled is not None:
            if inspect.iscoroutine(value):
                value.close()
            raise cancelled
    finally:
        del cancelled, error  # the traceback and this frame would keep each other alive
    return await value
