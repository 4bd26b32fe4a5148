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
THREAD-4  A thread takes its next call when its last item is answered: what a call returns may be
    an object that the next call in this thread changes, as a buffer in a `threading.local` is.
    Only a call that has returned a value that cannot change, or has raised, frees it at once.
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
from .._pure import tasks
from .functions import Stateful, Wrapper
from .leaving import THREAD_NAME

Outcome: TypeAlias = tuple[Any, BaseException | None]
#: What a call returns that no later call can change.
UNCHANGING = frozenset({type(None), bool, int, float, complex, str, bytes})


class ThreadCall:
    """A call in a thread. The thread is free when `unfinished` is 0 (THREAD-4)."""

    __slots__ = ("answered", "function", "future", "unfinished")

    def __init__(self, function: Callable[[], Any], future: asyncio.Future[Outcome]) -> None:
        self.function = function
        self.future = future
        self.unfinished = 2  # the call, and the answer of its item
        self.answered: threading.Lock | None = None  # what its thread waits for, if it does

    def free_thread(self) -> None:
        """Let the thread take its next call."""
        answered, self.answered = self.answered, None
        if answered is not None:
            answered.release()


class Hold:
    """The item's part in a call: it ends with the item's coroutine, also one that never ran."""

    __slots__ = ("_call", "_threads")

    def __init__(self, threads: Threads, call: ThreadCall) -> None:
        self._threads = threads
        self._call = call

    def __del__(self) -> None:
        self._threads.answer_soon(self._call)


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
        self._held: set[ThreadCall] = set()  # they have returned, and are not answered
        # None ends a thread
        self._calls: queue.SimpleQueue[ThreadCall | None] = queue.SimpleQueue()

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

    def start(self, function: Callable[[], Any]) -> tuple[asyncio.Future[Outcome], Hold]:
        """Run a call in a free thread; its outcome, and what holds the thread until it is gone."""
        call = ThreadCall(function, self._loop.create_future())
        if self.busy == self._started:
            number = self._started + 1
            threading.Thread(target=self._serve, name=f"{THREAD_NAME}{number}", daemon=True).start()
            self._started = number
        self.busy += 1
        self._calls.put(call)
        return call.future, Hold(self, call)

    def close(self) -> None:
        """End the threads, each when its call has returned."""
        for _ in range(self._started):
            self._calls.put(None)

    def abandon(self) -> None:
        """As `close`; items that are cancelled do not wait for their threads from now on."""
        self.abandoned = True
        self.close()
        for call in self._held:  # the loop may be closed before their items are answered
            call.free_thread()

    def _serve(self) -> None:
        answered = threading.Lock()
        answered.acquire()
        while (call := self._calls.get()) is not None:
            outcome = _outcome_of(call.function)
            if copies.is_copy():  # the call has forked, and returned in the copy (COPY-2)
                copies.end()
            waits = type(outcome[0]) not in UNCHANGING  # THREAD-4; an error comes with None
            call.answered = answered if waits else None
            try:
                self._loop.call_soon_threadsafe(self._on_returned, call, outcome)
            except RuntimeError:  # the worker ends, and its loop is closed
                return
            del call, outcome  # or this frame would keep them until the next call
            if waits:
                answered.acquire()

    def _on_returned(self, call: ThreadCall, outcome: Outcome) -> None:
        if not call.future.done():
            call.future.set_result(outcome)
        if call.answered is None:
            self._finish(call, 2)
        else:
            self._held.add(call)
            self._finish(call, 1)

    def answer_soon(self, call: ThreadCall) -> None:
        """An item's coroutine has ended, and its answer is written two turns later at the latest.

        In the same turn if the engine can, else when its task is done (engine.py, `_on_value`); or
        after a burst, which nothing else can start in (RESULTS-1).
        """
        if not call.unfinished:
            return
        try:  # also in this thread: the collector calls this wherever it runs
            self._loop.call_soon_threadsafe(self._after_this_turn, call)
        except RuntimeError:  # the loop is closed
            call.free_thread()

    def _after_this_turn(self, call: ThreadCall) -> None:
        self._loop.call_soon(self._finish, call, 1)

    def _finish(self, call: ThreadCall, parts: int) -> None:
        if call.unfinished:
            call.unfinished = max(0, call.unfinished - parts)
            if not call.unfinished:
                self.busy -= 1
                self._held.discard(call)
                call.free_thread()
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
        future, hold = self._threads.start(lambda: context.run(func, *args, **kwds))
        return wait_for_thread(future, hold, self._threads)


async def wait_for_thread(future: asyncio.Future[Outcome], hold: Hold, threads: Threads) -> Any:
    """The item: wait for a thread, and await what its call returns if it can (THREAD-3)."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as cancellation:  # THREAD-2
            cancelled = cancellation
            if threads.abandoned:
                future.cancel()  # its thread may never return
                del hold, cancelled  # as below
                raise
    value, error = future.result()
    try:
        if issubclass(type(error), StopIteration):
            raise tasks.CarriedStopError from error
        if error is not None:
            raise error
        if not inspect.isawaitable(value):
            return value
        if cancelled is not None:
            if inspect.iscoroutine(value):
                value.close()
            raise cancelled
    finally:
        del hold  # what is awaited now, or was raised, no call in the thread can change
        del cancelled, error  # the traceback and this frame would keep each other alive
    return await value
