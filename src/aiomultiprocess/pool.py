"""The pool: what a user touches.

`Pool` checks what it is given and turns each call into a job (job.py) for the engine (engine.py);
`PoolResult` reads the job's results. Nothing of the transport or the workers shows here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from multiprocessing.util import Finalize
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, overload

from . import _legacy
from ._arguments import check_synchronous, checked_sequence, count, natural, whole
from ._parent.engine import CLOSED, OPEN, Engine
from ._parent.job import ANOTHER_LOOP, Job, Reader
from ._parent.sources import source_of
from ._parent.worker import PoolWorker, WorkerOptions
from ._processes import loops
from ._processes.cpus import usable_cpus
from ._transport import select
from ._wire.frames import Mode
from ._wire.tracebacks import without_our_frames
from .core import Process, get_context
from .scheduler import RoundRobin, Scheduler, checked_scheduler
from .types import (
    LoopInitializer,
    PoolTask,
    PoolTerminatedError,
    ProxyException,
    Queue,
    QueueID,
    R,
    T,
    TaskID,
    TracebackStr,
)

MAX_TASKS_PER_CHILD = 0  # tasks that a worker runs before it is replaced; 0: no limit
CHILD_CONCURRENCY = 16  # tasks that one worker runs at once

# Also what is only imported here, as programs of 0.9.1 import it from here.
__all__ = [
    "CHILD_CONCURRENCY",
    "MAX_TASKS_PER_CHILD",
    "LoopInitializer",
    "Pool",
    "PoolResult",
    "PoolTask",
    "PoolWorker",
    "Process",
    "ProxyException",
    "Queue",
    "QueueID",
    "R",
    "RoundRobin",
    "Scheduler",
    "T",
    "TaskID",
    "TracebackStr",
    "get_context",
    "log",
]

log = logging.getLogger(__name__)

NO_LOOP = (
    "no event loop runs in this thread, and a pool is used in one: call it in a coroutine that "
    "asyncio.run() runs, or, if the pool's loop runs in another thread, by "
    "asyncio.run_coroutine_threadsafe(coroutine, loop)"
)

_running_loop = asyncio._get_running_loop  # None where none runs
_process = os.getpid()  # of this process: kept, as to ask for it at every `apply` is not cheap


def _after_fork() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class PoolResult(Awaitable[list[R]], AsyncIterable[R], Generic[R]):
    """The results of one `map` or `starmap`.

    Awaited, it gives the list of all results in the order of the input, or raises the first error.
    With `async for` it gives each result as soon as it and all before it are ready; the error of an
    item is raised at its place, and the same iterator may be asked for the next one. Both may be
    done any number of times, by several tasks. (The input being an iterator, results that were read
    are dropped after a while; see `Pool.map`.)
    """

    def __init__(self, pool: Pool, job: Job) -> None:
        if not isinstance(job, Job):
            raise TypeError(f"a PoolResult is made by map and starmap, not from {job!r}")
        self.pool = pool
        self._job = job
        weakref.finalize(self, pool._bind().drop_unread, job).atexit = False

    if not TYPE_CHECKING:  # or every attribute would be known to type checkers

        def __getattr__(self, name: str) -> NoReturn:
            _legacy.refuse_attribute(self, name, _legacy.RESULT)

    def __await__(self) -> Generator[Any, None, list[R]]:
        self.pool._check_loop()
        return _keep(self.pool, self._job.await_all()).__await__()

    async def results(self) -> list[R]:
        """Wait for all results and return them in the order of the input."""
        return await self

    def __aiter__(self) -> AsyncGenerator[R, None]:
        """A reader of its own, with the methods of an async generator: `aclose` releases it.

        Unlike a generator it goes on after the error of an item.
        """
        engine = self.pool._bind()
        reader = self._job.add_reader()
        released = weakref.finalize(reader, engine.reader_gone, self._job)
        released.atexit = False
        return _ResultIterator(self, reader, released)

    def results_generator(self) -> AsyncGenerator[R, None]:
        """The same as `aiter(result)`, for `contextlib.aclosing` and programs of 0.9.1."""
        return self.__aiter__()


async def _keep(pool: Pool, results: Coroutine[Any, Any, list[R]]) -> list[R]:
    """What an `await` waits for: it keeps the pool, but not the `PoolResult` (job.py, JOB-5)."""
    try:
        return await results
    except PoolTerminatedError as error:
        _end_quietly(error)
        without_our_frames(error)
        raise
    except Exception as error:
        without_our_frames(error)
        raise


def _end_quietly(error: Exception) -> None:
    """Keep asyncio from reporting the running task if `error` ends it and nothing awaits it.

    Who leaves a pool with calls under way expects that they end. 0.9.1 said nothing either.
    """
    task = asyncio.current_task()
    if task is not None and type(error) is PoolTerminatedError:  # no subclass: a task raised that
        task.remove_done_callback(_mark_as_retrieved)
        task.add_done_callback(_mark_as_retrieved)


def _mark_as_retrieved(task: asyncio.Task[Any]) -> None:
    # not by `exception()`, which would mark another error as well
    if type(getattr(task, "_exception", None)) is PoolTerminatedError:
        task.exception()


class _ResultIterator(AsyncGenerator[R, None]):
    """One pass over a PoolResult, which it keeps alive until it ends or is closed.

    0.9.1 had an async generator here. Unlike one, it goes on after the error of an item, and
    several tasks may wait for a step each; steps under way when it is closed get their results.
    """

    __slots__ = ("__weakref__", "_reader", "_released", "_result")

    def __init__(
        self, result: PoolResult[R], reader: Reader, released: Callable[[], object]
    ) -> None:
        self._result: PoolResult[R] | None = result
        self._reader: Reader | None = reader
        self._released = released

    async def __anext__(self) -> R:
        reader = self._reader
        if reader is None:
            raise StopAsyncIteration
        try:
            result: R = await reader.next()
        except StopAsyncIteration:
            self._close()
            raise
        except PoolTerminatedError as error:
            _end_quietly(error)
            without_our_frames(error)
            raise
        except Exception as error:
            without_our_frames(error)
            raise
        return result

    async def asend(self, value: None, /) -> R:
        """The next result; nothing is done with `value`."""
        if value is not None and self._reader is not None and self._reader.index == 0:
            raise TypeError("can't send non-None value to a just-started async generator")
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        """Close it and raise the exception, unless it has ended: then do nothing."""
        if self._reader is not None:
            self._close()
            await super().athrow(typ, val, tb)

    async def aclose(self) -> None:
        """End it: an endless input is pulled no further for it, and its results may be freed."""
        self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = self._result = None
            self._released()

    @property
    def ag_running(self) -> bool:
        """Whether a step waits for its result."""
        return self._reader is not None and self._reader.is_waiting

    @property
    def ag_suspended(self) -> bool:
        """Whether it has not ended, and no step waits."""
        return self._reader is not None and not self._reader.is_waiting

    @property
    def ag_await(self) -> None:
        """None: a generator has here what it awaits."""

    @property
    def ag_frame(self) -> None:
        """None: there is no frame that stays from one step to the next."""

    @property
    def ag_code(self) -> CodeType:
        """The code of a step."""
        return type(self).__anext__.__code__


class Pool:
    """Run coroutines (and plain functions) on a pool of worker processes.

    Each worker runs an event loop of its own, with up to `childconcurrency` tasks at once. Use it
    as `async with Pool() as pool:`, which ends with `terminate()` and `join()`. A pool may be made
    before a loop runs; its workers then start with its first use, and it belongs to that loop.

    Arguments:
        processes: number of workers; None or 0 means the CPUs that this process may use.
        initializer: called as `initializer(*initargs)` in each worker before its first task; not a
            coroutine function. If it fails, the pool is broken and its calls raise that error.
        initargs: what the initializer is called with; None means nothing.
        maxtasksperchild: replace a worker after it ran this many tasks; 0 means never. One that
            does not exit after that is killed 3 seconds later, and replaced before.
        childconcurrency: how many tasks one worker runs at once, at least 1.
        queuecount: number of queues that the workers are spread over, 1 to `processes`.
        scheduler: decides the queue of each task; round robin by default.
        loop_initializer: makes each worker's event loop; by default it is of the parent's kind.
        exception_handler: called in the worker with the exception of each task that fails, also
            with a CancelledError that the task raised by itself; not for a task that is cancelled
            because its caller was, or the pool was terminated.
        backend: "shm" (shared memory) or "pipe"; None leaves the choice to the environment variable
            AIOMULTIPROCESS_BACKEND, else to what this machine has.

    Raises:
        ValueError, TypeError: an argument that cannot be; the message names it.
        RuntimeError: the backend that was asked for is not available, with the reason.
        OSError: workers cannot be started; at the first use that breaks the pool.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] | None = (),
        maxtasksperchild: int = MAX_TASKS_PER_CHILD,
        childconcurrency: int = CHILD_CONCURRENCY,
        queuecount: int | None = None,
        scheduler: Scheduler | None = None,
        loop_initializer: LoopInitializer | None = None,
        exception_handler: Callable[[BaseException], object] | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        check_synchronous("initializer", initializer)
        check_synchronous("loop_initializer", loop_initializer)
        check_synchronous("exception_handler", exception_handler)
        self.context = get_context()
        self.process_count = count("processes", processes) or usable_cpus()
        self.queue_count = count("queuecount", queuecount) or 1
        if self.queue_count > self.process_count:
            raise ValueError(
                f"queue count must be <= process count, got queuecount={self.queue_count} "
                f"and processes={self.process_count}"
            )
        self.scheduler = checked_scheduler(scheduler)
        self.initializer = initializer
        self.initargs = checked_sequence("initargs", initargs)
        self.loop_initializer = loop_initializer
        # as in 0.9.1, what is too small means the least there is
        self.maxtasksperchild = max(0, whole("maxtasksperchild", maxtasksperchild))
        self.childconcurrency = max(1, whole("childconcurrency", childconcurrency))
        self.exception_handler = exception_handler
        self._selection = select.select(backend)
        self._pid = _process
        self._closed = False
        self._engine: Engine | None = None
        if loops.running_loop() is not None:
            self._bind()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError for a subclass of 0.9.1's times whose overridden methods nothing would call."""
        super().__init_subclass__(**kwargs)
        _legacy.refuse_hooks(cls, _legacy.POOL_HOOKS)

    if not TYPE_CHECKING:  # or every attribute would be known to type checkers

        def __getattr__(self, name: str) -> NoReturn:
            _legacy.refuse_attribute(self, name, _legacy.POOL)

    async def __aenter__(self) -> Pool:
        """Start the workers if they do not run yet. RuntimeError if the pool was closed."""
        self._use_first()
        return self

    async def __aexit__(self, *args: object) -> None:
        """Terminate the pool, and wait until its workers are gone."""
        self.terminate()
        await self.join()

    @property
    def backend(self) -> str:
        """The transport in use: "shm" or "pipe"."""
        return self._selection.name

    @property
    def running(self) -> bool:
        """Whether the pool takes calls."""
        return not self._closed

    @property
    def processes(self) -> dict[PoolWorker, QueueID]:
        """The workers that run now, each with its queue."""
        return {} if self._engine is None else dict(self._engine.supervisor.workers)

    # -- calls ---------------------------------------------------------------------------------

    @overload
    async def apply(
        self,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
    ) -> R: ...

    @overload
    async def apply(
        self,
        func: Callable[..., R],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
    ) -> R: ...

    async def apply(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
    ) -> Any:
        """Run `func(*args, **kwds)` in a worker and return its result.

        A task that is cancelled while it waits here cancels the call in the worker.

        Arguments:
            func: a coroutine function or a plain function, importable in the worker.
            args, kwds: what it is called with.
            retries: how many times `func` may run again, in another worker, because the one that
                ran it died; then nothing else runs in that worker beside it. What it did before
                its worker died is done again. What it raises is its result, and not retried.

        Raises:
            ProxyException: what the function raised; also an instance of the original's type where
                the two can be combined, with the original as its `__cause__`, or as a
                pickle.PicklingError for a result that cannot be pickled.
            WorkerLostError: the worker died while it ran the function, and no retry is left.
            PoolTerminatedError: the pool was terminated first.
            pickle.PicklingError: the function or an argument cannot be sent; the message says why.
            TypeError, ValueError: func, args, kwds or retries is of a wrong type, or negative.
            RuntimeError: the pool is closed, or belongs to another loop or process.
        """
        engine = self._use()
        if type(retries) is not int or retries < 0:
            retries = natural("retries", retries)
        if type(args) is not tuple:
            args = checked_sequence("args", args)
        if kwds is not None and not isinstance(kwds, Mapping):
            raise TypeError(f"kwds must be a mapping of keyword arguments, got {kwds!r}")
        try:
            future, calls = engine.submit_call(func, args, dict(kwds) if kwds else {}, retries)
        except pickle.PicklingError as error:
            without_our_frames(error)
            raise
        try:
            return await future
        except asyncio.CancelledError:
            engine.cancel_call(calls, future)
            raise
        except Exception as error:
            _end_quietly(error)
            without_our_frames(error)
            raise

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
    ) -> PoolResult[R]: ...

    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
    ) -> PoolResult[R]: ...

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        *,
        retries: int = 0,
    ) -> PoolResult[Any]:
        """Run `func(item)` in the workers for each item.

        A sequence is copied at the call, and so is any other iterable that is no iterator (a set, a
        dict, a view of one). An iterator, a generator or an async iterable is read *later than the
        call* (0.9.1 read it at once), as there is room: some thousands of items ahead of an `async
        for`, or to its end once the result is awaited. Until then a file or a cursor must stay open
        and a dict unchanged, and two maps over one iterator share its items. `list(...)` of it is
        read at once. Of an iterator, results that an `async for` has read stay readable for about
        65,536 items.

        An item that cannot be pickled, or whose function raises, fails alone: awaiting the result
        raises its error, `async for` raises it at its place. An item whose worker dies while it
        runs fails with WorkerLostError, unless it may run again: up to `retries` times each, as in
        `apply`.

        Raises:
            pickle.PicklingError: the function or an argument cannot be sent; the message says why.
            TypeError: func is not callable, the input is not iterable, or retries is not a whole
                number.
            ValueError: retries is negative.
            RuntimeError: the pool is closed, or belongs to another loop or process.
        """
        return self._submit(func, Mode.MAP, iterable, retries)

    @overload
    def starmap(
        self,
        func: Callable[..., Awaitable[R]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
    ) -> PoolResult[R]: ...

    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
    ) -> PoolResult[R]: ...

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
    ) -> PoolResult[Any]:
        """Run `func(*item)` in the workers for each item, itself a sequence; otherwise as `map`."""
        return self._submit(func, Mode.STAR, iterable, retries)

    def _submit(
        self,
        func: Callable[..., Any],
        mode: Mode,
        iterable: Iterable[Any] | AsyncIterable[Any],
        retries: int,
    ) -> PoolResult[Any]:
        engine = self._use()
        retries = natural("retries", retries)
        try:
            function = engine.functions.of(func)
        except pickle.PicklingError as error:
            without_our_frames(error)
            raise
        job = Job(
            func, function, mode, engine.on_more, engine.on_settled, retries, loop=engine.loop
        )
        job.open(source_of(iterable, lambda: engine.on_more(job)))
        engine.submit_job(job)
        return PoolResult(self, job)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; workers end when every task is done. Wait with `join`.

        A worker that has nothing to do any more has 3 seconds for its exit: threads that tasks have
        left in it, or hooks, could hold it for ever.

        Raises RuntimeError in another thread while the pool's loop runs, or in a forked copy.
        """
        self._check_process()
        self._check_thread("close")
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    def terminate(self) -> None:
        """Stop now: pending calls raise PoolTerminatedError, running tasks are cancelled.

        Tasks get 3 seconds for their `finally` blocks; then their worker is killed. A worker that
        runs nothing exits as a process of multiprocessing does, with its `atexit` hooks. A task of
        the program that ends by PoolTerminatedError and is not awaited is not reported.

        Raises RuntimeError in another thread while the pool's loop runs, or in a forked copy.
        """
        self._check_process()
        self._check_thread("terminate")
        self._closed = True
        if self._engine is not None:
            self._engine.terminate()

    async def join(self) -> None:
        """Wait until all workers are gone. Raises RuntimeError unless the pool was closed."""
        self._check_process()
        if not self._closed:
            raise RuntimeError("pool is still open: call close() or terminate() before join()")
        if self._engine is not None:
            self._check_loop()
            await self._engine.join()

    # -- binding -------------------------------------------------------------------------------

    def _use(self) -> Engine:
        """The engine, for one more call."""
        engine = self._engine
        if (
            engine is None
            or engine.state is not OPEN
            or _process != self._pid
            or _running_loop() is not engine.loop
        ):
            return self._use_first()
        return engine

    def _use_first(self) -> Engine:
        """The same for what may be the first use, and for what is refused."""
        if self._closed:
            raise RuntimeError(CLOSED)
        self._check_process()
        engine = self._bind()
        engine.check_open()
        return engine

    def _bind(self) -> Engine:
        """Belong to the running loop, and start the workers on first use."""
        if self._engine is not None:
            self._check_loop()
            return self._engine
        loop = loops.running_loop()
        if loop is None:
            raise RuntimeError(NO_LOOP)
        options = WorkerOptions(
            context=self.context,
            concurrency=self.childconcurrency,
            lifetime=self.maxtasksperchild,
            loop=loops.spec_of(loop, self.loop_initializer),
            initializer=self.initializer,
            initargs=self.initargs,
            exception_handler=self.exception_handler,
        )
        self._engine = engine = Engine(loop, options, self._selection.make(), self.scheduler)
        # not by weakref: at exit that may come after multiprocessing, which joins all children. The
        # finalizer of a forgotten pool holds the engine, which does not hold the pool (ENGINE-2)
        Finalize(self, engine.abandon, exitpriority=0)
        engine.start(self.process_count, self.queue_count)
        return engine

    def _check_loop(self) -> None:
        if self._engine is not None:
            running = loops.running_loop()
            if running is not self._engine.loop:
                raise RuntimeError(NO_LOOP if running is None else ANOTHER_LOOP)

    def _check_thread(self, name: str) -> None:
        """Nothing of the engine may run beside its loop; where that stands still, it may."""
        loop = None if self._engine is None else self._engine.loop
        if loop is not None and loop.is_running() and loops.running_loop() is not loop:
            raise RuntimeError(
                f"{name}() was called outside the pool's event loop, which runs in another thread: "
                f"use loop.call_soon_threadsafe(pool.{name}), and for coroutines, such as join(), "
                "asyncio.run_coroutine_threadsafe(coroutine, loop)"
            )

    def _check_process(self) -> None:
        if _process != self._pid:
            raise RuntimeError(
                f"this pool belongs to process {self._pid}, this is a forked copy in process "
                f"{_process}: make a pool of its own here"
            )
