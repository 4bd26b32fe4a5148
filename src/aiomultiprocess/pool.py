"""The public pool: `Pool` and `PoolResult`.

`Pool` checks its arguments, and gives the engine (engine.py) a call for each `apply` and a job
(job.py) for each map. `PoolResult` reads the results of a job. Nothing here knows frames or links.

POOL-1  Programs of 0.9.1 override public methods. Our own code calls those that 0.9.1 called, with
    its parameters: `terminate` and `join()` at the end, and `close` by `terminate`. Everywhere else
    it calls private ones: an override would run twice for one call, or refuse an argument of ours.
POOL-2  Every worker imports this module if the main module names `Pool`. So what only the process
    that makes a pool needs is imported where it is used; there, the last lines import most of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing import current_process, parent_process
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, overload

from . import _legacy
from ._arguments import (
    DEFAULT_OPTIONS,
    TaskOptions,
    check_callable,
    check_flag,
    check_hooks,
    check_monitor,
    check_progress,
    checked_keywords,
    checked_sequence,
    count,
    duration,
    mark_coroutine_function,
    memory_limit,
    patience,
    positive,
    queue_count,
    refuse_inline,
    shared_memory,
    task_options,
    whole,
)
from ._processes import loops
from ._transport.link import Limits
from ._wire.frames import Mode
from ._wire.tracebacks import without_our_frames
from .scheduler import RoundRobin, Scheduler, checked_scheduler
from .types import (
    LoopInitializer,
    PoolTask,
    Progress,
    ProxyException,
    Queue,
    QueueID,
    R,
    T,
    TaskID,
    TracebackStr,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from contextvars import ContextVar
    from multiprocessing.context import BaseContext

    import distributed

    from ._cluster.arguments import ClusterTarget
    from ._parent.call import ApplyCall, Call
    from ._parent.engine import Engine
    from ._parent.result import PoolResult
    from ._parent.serializers import Choice, Serializing
    from ._parent.stats import PoolStats
    from ._parent.stream import Stream
    from ._parent.worker import PoolWorker
    from ._processes.context_variables import NamedVariable
    from ._transport.select import Selection
    from .core import Process, get_context

MAX_TASKS_PER_CHILD = 0  # tasks that a worker runs before it is replaced; 0: no limit
CHILD_CONCURRENCY = 16  # tasks that one worker runs at once
NONE_GIVEN = 0  # `is` this: the int, which needs no check, and not False or 0.0
GRACE = 3.0  # seconds that a task has to end after it was cancelled, and a worker to exit

P = ParamSpec("P")

# Includes names that are only imported here: programs of 0.9.1 import them from this module.
__all__ = [
    "CHILD_CONCURRENCY",
    "MAX_TASKS_PER_CHILD",
    "Call",
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


#: Public names that this module imports at their first use (POOL-2), and their modules.
_HOMES = {
    "Call": "_parent.call",
    "PoolResult": "_parent.result",
    "PoolWorker": "_parent.worker",
    "Process": "core",
    "get_context": "core",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_HOMES[name]}", __package__)
    except AttributeError as error:  # as in __init__.py: it would mean that there is no such name
        raise ImportError(
            f"{__name__}.{name} cannot be imported, because of an AttributeError: {error}",
            name=__name__,
        ) from error
    return getattr(module, name)


def _import_stats() -> None:
    """Have what `Pool.stats` and its hint need, also once the process has no descriptor left.

    If there is none by now, or no memory, the workers of a pool have started all the same: then
    `Pool.stats` says so.
    """
    global PoolStats
    with suppress(ImportError, OSError, MemoryError):
        from ._parent.stats import PoolStats


def _refused(error: Exception, loop: asyncio.AbstractEventLoop) -> ApplyCall[Any]:
    from ._parent.call import refuse  # POOL-2

    without_our_frames(error)
    return refuse(error, loop)


_running_loop = asyncio._get_running_loop  # None where none runs
_process = os.getpid()  # kept, because to ask for it at every `apply` is slow


def _after_fork() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _start_context() -> BaseContext:
    from .core import get_context  # POOL-2

    return get_context()


def _named_variables(variables: Iterable[ContextVar[Any]]) -> tuple[NamedVariable, ...]:
    if type(variables) is tuple and not variables:
        return ()
    from ._processes.context_variables import named  # POOL-2: few pools need it

    return named(variables)


@_legacy.without(_legacy.POOL)
class Pool:
    """Run coroutines (and plain functions) on a pool of worker processes.

    Each worker runs an event loop of its own, with up to `childconcurrency` tasks at once. Use it
    as `async with Pool() as pool:`, which ends with `terminate()` and `join()`. A pool may be made
    before a loop runs; its first use then starts the workers, and binds the pool to the loop.

    Arguments:
        processes: number of workers; None or 0 means the CPUs that this process may use.
        initializer: called as `initializer(*initargs)` in each worker before its first task; not a
            coroutine function. If it fails, the pool is broken and its calls raise that error.
        initargs: arguments of the initializer; None means no arguments.
        maxtasksperchild: replace a worker after it ran this many tasks; 0 or less: never. A worker
            that does not exit then is killed after `grace` seconds, and replaced earlier.
        childconcurrency: how many tasks one worker runs at once; below 1 means 1, as in 0.9.1.
        queuecount: number of queues that the workers are spread over, 1 to `processes`.
        scheduler: decides the queue of each task; round robin by default.
        loop_initializer: makes each worker's event loop; by default it is of the parent's kind.
        exception_handler: called in the worker with the exception of each task that fails, also
            with a CancelledError that the task raised by itself, and with the TaskTimeoutError of a
            task that its time limit has cancelled; not for a task that is cancelled because its
            caller was, or the pool was terminated, nor for one that was killed.
        threads: how many threads each worker has for plain functions, so that those that block wait
            side by side; None: a plain function runs on the worker's loop and blocks it. A thread
            cannot be interrupted: a cancelled call keeps it until the function returns. A worker
            that is to be replaced, and has only such calls, is replaced soon, and killed after
            `grace` seconds.
        backend: "shm" (shared memory) or "pipe"; None means the value of the environment variable
            AIOMULTIPROCESS_BACKEND, or, if that is not set, the best one that works here. "inline"
            starts no processes: tasks run in this process and event loop, where a debugger can stop
            them, and the pool behaves as it does with `processes` workers. Arguments and results
            are pickled all the same. A task that blocks holds up the whole program. Workers share
            the globals of this process, and an initializer cannot run its loop; a process that a
            task forks is a copy of the program, what ends a process, such as `os._exit`, ends the
            program, and a KeyboardInterrupt in a task also stops its loop. Nothing can be killed: a
            task that goes on after its cancellation is left to run, so `TaskTimeoutError.killed` is
            never true. Time at a prompt counts for `task_timeout`. Log records are handled here
            whatever `logs` says. `loop_initializer` and `maxmemoryperchild` are refused. "dask":
            the workers are on the hosts of a dask cluster, which `address` or `client` names (extra
            `dask`). Then `processes` counts for each host, and None means as many as its dask
            worker has threads; `scheduler`, `queuecount` and `sharedmemory` are refused. Hosts may
            join and leave.
        grace: seconds, positive. A task that was cancelled, because it was over its `task_timeout`
            or the pool was terminated, has so long to end; a worker has so long to exit when it
            has no more work. After that the worker is killed.
        serializer: how functions, arguments and results travel. None: by pickle; and by
            cloudpickle, if that is installed, what pickle refuses (lambdas, closures, local
            classes), and what lives in a main module that workers cannot import (of a notebook,
            `python -c`, stdin). "pickle": by pickle alone, which is also the default where the
            environment variable AIOMULTIPROCESS_SERIALIZER says so. "cloudpickle", or an object
            with `dumps` and `loads` that workers can import: it takes all functions, all arguments
            that are not plain values, and results and exceptions that pickle refuses.
        logs: True sends the records of the workers' loggers to this process, where the handlers of
            the loggers of the same name get them, in the thread of the pool's loop; a worker's
            loggers have the levels that this process's have when it starts. A level (10, "INFO",
            "info") is used in place of the root logger's, and limits what is sent. Records leave it
            between tasks, in their order; if too many wait, some are dropped, and a warning says
            how many. A worker that is killed takes with it what it has not sent.
        lifespan: called without arguments in each worker, to make an async context manager: a
            function decorated with `contextlib.asynccontextmanager`, for example. The worker enters
            it in its event loop after the initializer and before its first task, and leaves it
            after its last one; what it yields is `current_worker().state`. Tasks see the context
            variables that it sets. If entering fails, the pool is broken and its calls raise that
            error; if leaving fails, the error is logged. Leaving may take `grace` seconds, then
            the worker is killed; when the pool is terminated, tasks have the first two thirds.
        contextvars: ContextVar objects whose values at the call of `map`, `starmap`, `apply` or
            `submit`, or at the first step of a stream, the tasks see; values must be picklable.
            Each must be a global of a module that workers can import. A variable that is unset at
            the call stays as it is in the worker.
        maxmemoryperchild: replace a worker that has more than this many bytes of memory of its own
            (resident, without what it shares): it starts no more tasks, those that it has not
            started go to other workers, and it exits when the others have ended. None means no
            limit. A forked worker's memory includes its copy of the parent's. If a worker has more
            before its first task, the pool is broken.
        sharedmemory: the most bytes of memory that processes share for large buffers, those of
            arrays for example: each of 256 KiB or more that pickle gives out of band is copied into
            such memory once, and what its receiver gets lies there, until it is gone. None means a
            quarter of the memory of the machine or container; 0 means none. Each worker has the
            same part of it, one half for what it receives and one for what it sends; what finds no
            room there is copied as all else. Only Linux, and the compiled extension, have it.
        address: of the scheduler of a dask cluster, such as "tcp://10.0.0.1:8786".
        client: a `distributed.Client` of the cluster, instead of an address. The pool does not
            close it.
        security: a `distributed.Security`, for an address that begins with "tls://".
        monitor: True lets the user of this process, and no other, watch the pool from outside, by
            `python -m aiomultiprocess top PID`: a unix socket in a private folder (below
            XDG_RUNTIME_DIR or the folder for temporary files) gives its statistics. Not on Windows.

    Attributes:
        process_count: how many workers there are to be, as the last `resize` has it; over a cluster
            those of each host, and 0 if each has as many as its dask worker has threads.
        queue_count: the number of queues.

    Raises:
        ValueError, TypeError: an argument has a wrong value or type; the message names it.
        RuntimeError: the backend is not available, or `maxmemoryperchild` where memory cannot be
            read, or `monitor` where there is no private folder; the message gives the reason.
        OSError: workers cannot be started. If the first use of the pool starts them, it raises
            this, and the pool is broken.
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
        threads: int | None = None,
        backend: str | None = None,
        grace: float = GRACE,
        serializer: Literal["pickle", "cloudpickle"] | Serializing | None = None,
        logs: bool | int | str = False,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        contextvars: Iterable[ContextVar[Any]] = (),
        maxmemoryperchild: int | None = None,
        sharedmemory: int | None = None,
        address: str | None = None,
        client: distributed.Client | None = None,
        security: distributed.Security | None = None,
        monitor: bool = False,
    ) -> None:
        self._cluster = self._target(backend, scheduler, queuecount, address, client, security)
        check_hooks(initializer, loop_initializer, exception_handler, lifespan)
        self.context = _start_context()
        self.process_count = count("processes", processes) or self._usual_count()
        self.queue_count = queue_count(queuecount, self.process_count or 1)
        self.scheduler = checked_scheduler(scheduler)
        self.initializer = initializer
        self.initargs = checked_sequence("initargs", initargs)
        self.loop_initializer = loop_initializer
        # as in 0.9.1, a number that is too small means the smallest valid one
        self.maxtasksperchild = max(0, whole("maxtasksperchild", maxtasksperchild))
        self.childconcurrency = max(1, whole("childconcurrency", childconcurrency))
        self.exception_handler = exception_handler
        self.grace = duration("grace", grace)
        self.threads = None if threads is None else positive("threads", threads)
        self._logs = self._checked_logs(logs)
        self._serializer = self._checked_serializer(serializer)
        self.lifespan = lifespan
        self.contextvars = _named_variables(contextvars)
        self.maxmemoryperchild = memory_limit("maxmemoryperchild", maxmemoryperchild)
        self.sharedmemory = shared_memory("sharedmemory", sharedmemory)
        self._monitor = check_monitor(monitor)
        self._selection = self._select(backend)
        self._open()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError for a subclass that overrides a method of 0.9.1 that is never called now."""
        super().__init_subclass__(**kwargs)
        _legacy.refuse_hooks(cls, _legacy.POOL_HOOKS)

    async def __aenter__(self) -> Pool:
        """Start the workers if they do not run yet. RuntimeError if the pool was closed."""
        self._use_first()
        return self

    async def __aexit__(self, *args: object) -> None:
        """Terminate the pool, and wait until its workers have exited."""
        self.terminate()  # POOL-1
        await self.join()

    def __reduce__(self) -> NoReturn:
        from ._parent.callers import refuse_to_pickle  # POOL-2

        refuse_to_pickle(self)

    @property
    def backend(self) -> str:
        """The transport in use: "shm", "pipe", "inline" or "dask"."""
        return self._selection.name

    @property
    def running(self) -> bool:
        """Whether the pool takes calls."""
        return not self._closed

    @property
    def processes(self) -> dict[PoolWorker, QueueID]:
        """The workers that run now, each with its queue; also those that streams keep alive."""
        return {} if self._engine is None else dict(self._engine.supervisor.workers)

    # -- calls ---------------------------------------------------------------------------------

    @overload
    def apply(
        self,
        func: Callable[..., Awaitable[R]],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
    ) -> ApplyCall[R]: ...

    @overload
    def apply(
        self,
        func: Callable[..., R],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
    ) -> ApplyCall[R]: ...

    @mark_coroutine_function
    def apply(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwds: Mapping[str, Any] | None = None,
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
    ) -> Any:
        """Run `func(*args, **kwds)` in a worker; awaiting the `Call` gives its result.

        The call is under way from now on; its arguments are pickled when it is sent, so do not
        change them meanwhile. If an awaiting task is cancelled, so is the call in the worker. For
        `asyncio.run` and the like, the `Call` passes for a coroutine. Called outside the pool's
        loop, `apply` returns a coroutine, which submits the call in the pool's loop.

        Arguments:
            func, args, kwds: a (coroutine) function that workers can import, and its arguments.
            retries: how often `func` may run again, alone in another worker, if the worker that ran
                it dies. It then repeats what it had done. An exception that it raises is a result.
            task_timeout: seconds that `func` may run, from its start in the worker; None: no limit.
            priority: calls and maps that wait go first if theirs is higher; it may be negative.

        Awaiting the call raises:
            ProxyException: the function raised an exception. The error is also an instance of that
                exception's type where the two can be combined, and has it as its `__cause__`. For
                a result that cannot be pickled, it is a pickle.PicklingError too.
            TaskTimeoutError: the function ran longer than `task_timeout`; see there.
            WorkerLostError: the worker died while it ran the function, and no retry is left.
            PoolTerminatedError: the pool was terminated before the call ended.
            pickle.PicklingError: the function or an argument cannot be sent; the message says why.
            TypeError, ValueError: an argument has a wrong type, or is negative.
            RuntimeError: the pool is closed, or belongs to another loop or process.
        """
        engine, loop = self._engine, _running_loop()
        if loop is None or (engine is not None and engine.loop is not loop):
            return self._apply_later(func, args, kwds, retries, task_timeout, priority)
        try:
            if engine is None or engine.state is not engine.OPEN or _process != self._pid:
                engine = self._use_first()
            options = DEFAULT_OPTIONS
            if not (task_timeout is None and retries is NONE_GIVEN and priority is NONE_GIVEN):
                options = task_options(retries, task_timeout, priority)
            if type(args) is not tuple:
                args = () if args is None else checked_sequence("args", args)
            keywords = {} if kwds is None else checked_keywords("kwds", kwds)
            return engine.submit_call(engine.APPLY_CALL, self, func, args, keywords, options)
        except Exception as error:  # noqa: BLE001 - of any kind: it is the error of the call
            return _refused(error, loop)

    _apply_here = apply  # POOL-1; not a function that both call, which costs time at each `apply`

    async def _apply_later(
        self, func: Callable[..., Any], args: Any, kwds: Any, *options: Any
    ) -> Any:
        """The same, submitted when the coroutine runs, if that is in the pool's loop."""
        try:
            self._use()
            retries, task_timeout, priority = options
            return await self._apply_here(
                func, args, kwds, retries=retries, task_timeout=task_timeout, priority=priority
            )
        except Exception as error:
            from ._parent.callers import prepare_for_caller  # POOL-2

            prepare_for_caller(error)
            raise

    @overload
    def submit(
        self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Call[R]: ...

    @overload
    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...

    def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `func(*args, **kwargs)` in a worker: a `Call`, an `asyncio.Future` of the result.

        The call is under way from now on; as in `apply`, leave its arguments unchanged until it has
        ended. Cancelling it, or a task that awaits it, cancels it in the worker too, and does not
        wait for its `finally` blocks; `asyncio.shield` prevents this. There are no options: `apply`
        has them. Awaiting the call raises what awaiting that of `apply` does.

        Raises:
            pickle.PicklingError: the function cannot be sent; the message says why. (An argument
                that cannot be sent is the error of the call.)
            TypeError: func is not callable.
            RuntimeError: the pool is closed, or belongs to another loop or process.
        """
        engine = self._use()
        try:
            return engine.submit_call(engine.CALL, self, func, args, kwargs)
        except pickle.PicklingError as error:
            without_our_frames(error)
            raise

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: Literal[False] = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R]: ...

    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: Literal[False] = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R]: ...

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[R]],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R | BaseException]: ...

    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R | BaseException]: ...

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[Any]:
        """Run `func(item)` in the workers for each item.

        A sequence is copied at the call, and so is any other iterable that is not an iterator (a
        set, a dict, a view of one). An iterator, a generator or an async iterable is read *later
        than the call* (0.9.1 read it at once), when workers have room: some thousands of items
        ahead of an `async for`, or to its end once the result is awaited. Until then a file or a
        cursor must stay open and a dict unchanged, and two maps over one iterator share its items.
        To have the input read at once, pass `list(...)` of it. Each item is pickled when it is
        sent: do not change it before its result is there, and yield no object twice that changes
        in between, as a buffer that is filled anew. If the input is an iterator, results
        that an `async for` has read stay readable for about 65,536 items or 16 MiB.

        An item that cannot be pickled, or whose function raises, fails alone: awaiting the result
        raises its error, `async for` raises it at its place. An item whose worker dies while it
        runs fails with WorkerLostError, unless it may run again: up to `retries` times each, as in
        `apply`. An item that runs longer than `task_timeout` seconds, counted from its own start,
        fails alone with TaskTimeoutError, as in `apply`. Of the calls and maps that wait, those of
        a higher `priority` go first.

        Arguments:
            return_exceptions: let the error of an item, also a WorkerLostError or
                PoolTerminatedError, be the result in its place, as in `asyncio.gather`. Still
                raised are an error of the input, the end of a pool before the input of an iterator
                has ended, and the CancelledError of a map that was cancelled.
            progress: True shows a bar of tqdm (the extra `progress`). A function is called on the
                pool's loop with a `Progress`: at most ten times a second while items end, and once
                at the end. What it raises goes to the loop's exception handler, the first time.

        Raises:
            pickle.PicklingError: the function or an argument cannot be sent; the message says why.
            TypeError: func is not callable, the input is not iterable, or an argument has a wrong
                type.
            ValueError: retries is negative, task_timeout is not positive, or progress is a
                coroutine function.
            ImportError: progress is True, and tqdm is not installed.
            RuntimeError: the pool is closed, or belongs to another loop or process.
        """
        options = task_options(retries, task_timeout, priority)
        return self._submit(func, Mode.MAP, iterable, options, return_exceptions, progress)

    @overload
    def starmap(
        self,
        func: Callable[..., Awaitable[R]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: Literal[False] = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R]: ...

    @overload
    def starmap(
        self,
        func: Callable[..., Awaitable[R]],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R | BaseException]: ...

    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: Literal[False] = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R]: ...

    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[R | BaseException]: ...

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        retries: int = 0,
        task_timeout: float | None = None,
        priority: int = 0,
        return_exceptions: bool = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> PoolResult[Any]:
        """Run `func(*item)` in the workers for each item, itself a sequence; otherwise as `map`."""
        options = task_options(retries, task_timeout, priority)
        return self._submit(func, Mode.STAR, iterable, options, return_exceptions, progress)

    @overload
    def stream(
        self,
        func: Callable[..., AsyncIterable[R]],
        args: Sequence[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        ahead: int = 64,
        task_timeout: float | None = None,
    ) -> Stream[R]: ...

    @overload
    def stream(
        self,
        func: Callable[..., Iterable[R]],
        args: Sequence[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        ahead: int = 64,
        task_timeout: float | None = None,
    ) -> Stream[R]: ...

    def stream(
        self,
        func: Callable[..., Any],
        args: Sequence[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        ahead: int = 64,
        task_timeout: float | None = None,
    ) -> Stream[Any]:
        """Run the generator `func(*args, **kwds)` in a worker; `async for` reads its values.

        The generator starts with the first step, and takes one of the worker's places until it
        ends. An error that it raises comes after the values before it. A loop that may end early
        belongs in `async with contextlib.aclosing(pool.stream(...)) as values`: `aclose()` closes
        the generator in the worker, whose `finally` blocks run. A worker that is to be replaced or
        dismissed, and has nothing but open streams, is replaced at once, and exits when they have
        ended; its streams still count for `childconcurrency`.

        Arguments:
            func: an async generator function or a generator function, importable in the worker.
            args, kwds: what it is called with.
            ahead: how many values may be produced and not read yet, at least 1.
            task_timeout: seconds that each value may take, and the end. The wait for a reader does
                not count. See `TaskTimeoutError`.

        Raises:
            TypeError, ValueError: an argument that cannot be; the message names it.

        The first step raises what `map` raises. A step raises what the generator raises, as
        `apply` does; WorkerLostError if its worker died; TaskTimeoutError; PoolTerminatedError.
        """
        from ._parent.stream import Stream  # POOL-2

        check_callable(func, generator=True)
        ahead = positive("ahead", ahead)
        positional, named = checked_sequence("args", args), checked_keywords("kwds", kwds)
        options = task_options(0, task_timeout, 0)
        return Stream(
            self, lambda: self._use().submit_stream(func, positional, named, ahead, options)
        )

    def _submit(
        self,
        func: Callable[..., Any],
        mode: Mode,
        iterable: Iterable[Any] | AsyncIterable[Any],
        options: TaskOptions,
        return_exceptions: bool,
        progress: bool | Callable[[Progress], object],
    ) -> PoolResult[Any]:
        from ._parent.result import PoolResult  # POOL-2

        check_flag("return_exceptions", return_exceptions)
        check_progress(progress)
        engine = self._use()
        try:
            job = engine.submit_map(
                func,
                mode,
                iterable,
                options,
                return_exceptions=return_exceptions,
                progress=progress,
            )
        except pickle.PicklingError as error:
            without_our_frames(error)
            raise
        return PoolResult(self, job)

    def stats(self) -> PoolStats:
        """What the pool does now, and what it has done: a record of plain numbers.

        No worker is asked, so this neither waits nor disturbs one.
        `aiomultiprocess.prometheus.PoolCollector` exports it.

        Raises RuntimeError in another thread while the pool's loop runs, or in a forked process.
        """
        from ._parent.stats import PoolStats, stats_of  # POOL-2: few programs need it

        self._check_process()
        self._check_thread("stats")
        if self._engine is None:
            return PoolStats(0, 0, 0, 0, 0, 0, 0, 0, {}, ())
        return stats_of(self._engine)

    # -- workers -------------------------------------------------------------------------------

    async def resize(self, processes: int) -> None:
        """Change the number of workers; returns when new ones are launched, not yet ready.

        If there are to be fewer, those of the highest indices take no more tasks, and exit when
        they have finished what they hold; this is not awaited. If a place is wanted again before
        its worker has exited, a new one starts after that exit, or at once if only open streams
        keep that worker. `process_count` is the new number at once. Of several calls the last
        counts. If the caller is cancelled, the change stays.

        Raises:
            ValueError, TypeError: `processes` is less than the pool's `queuecount`, or no number.
            RuntimeError: the pool is closed, or belongs to another loop or process.
            OSError: a worker cannot be started; `process_count` says how many there are.
        """
        number = whole("processes", processes)
        if number < 1:
            raise ValueError(
                f"processes must be at least 1, got {processes}; to end all workers, use close() "
                "or shutdown()"
            )
        if number < self.queue_count:
            raise ValueError(
                f"a pool cannot have fewer workers than queues, got processes={processes} with "
                f"queuecount={self.queue_count}"
            )
        if self._engine is None and not self._closed:
            self.process_count = number
        engine = self._use()
        try:
            engine.resize(number)
        finally:
            self.process_count = engine.supervisor.size
        await engine.launched(number)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; workers end when every task is done. Wait with `join`.

        A worker that has no more work gets `grace` seconds to exit (see Pool), then it is killed:
        threads that tasks left in it, or exit hooks, could otherwise hold it for ever.

        Raises RuntimeError in another thread while the pool's loop runs, or in a forked process.
        """
        self._check_process()
        self._check_thread("close")
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    def terminate(self) -> None:
        """Stop now: pending calls raise PoolTerminatedError, running tasks are cancelled.

        Tasks get `grace` seconds (see Pool) for their `finally` blocks; then their worker is
        killed. A worker that runs nothing exits as a process of multiprocessing does, with its
        `atexit` hooks. If a call or a task of the program ends by PoolTerminatedError and is not
        awaited, asyncio reports nothing, unless it waits in `asyncio.as_completed` or a TaskGroup.

        Raises RuntimeError in another thread while the pool's loop runs, or in a forked process.
        """
        self._check_process()
        self._check_thread("terminate")
        try:
            if not self._closed and type(self).close is not Pool.close:
                self.close()  # POOL-1; our own has nothing to do before `terminate`
        finally:
            self._closed = True
            if self._engine is not None:
                self._engine.terminate()

    async def join(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in Process
        """Wait until all workers have exited; the pool must have been closed or terminated.

        Arguments:
            timeout: in seconds; None waits for ever.

        Raises:
            TimeoutError: the workers have not exited in time; the pool stays as it is.
            RuntimeError: the pool is still open, or belongs to another loop or process.
            TypeError, ValueError: timeout is no number, or is negative.
        """
        await self._join(patience("timeout", timeout))

    async def _join(self, limit: float | None) -> None:
        self._check_process()
        if not self._closed:
            raise RuntimeError("pool is still open: call close() or terminate() before join()")
        if self._engine is not None:
            self._check_loop()
            try:
                async with asyncio.timeout(limit) as scope:
                    await self._engine.join()
            except TimeoutError:
                if scope.expired():
                    self._refuse_to_wait(self._engine, limit)
                raise

    def _refuse_to_wait(self, engine: Engine, limit: float | None) -> NoReturn:
        from ._parent.stats import stats_of  # POOL-2

        stats = stats_of(engine)  # POOL-1: a subclass of 0.9.1 may have a `stats` of its own
        open_tasks = stats.waiting + stats.running
        raise TimeoutError(
            f"join(timeout={limit}): not all has ended (workers: {len(stats.workers)}, tasks: "
            f"{open_tasks}): wait again, or call terminate()"
        ) from None

    async def shutdown(self, timeout: float | None = None) -> int:  # noqa: ASYNC109 - as in `join`
        """Close the pool, let its tasks finish, terminate it, and wait for its workers.

        If this is cancelled while it waits, it terminates the pool at once and does not wait until
        the workers have exited: `join` does. To give up waiting and let tasks run on, use `close`
        and `join(timeout)`.

        Arguments:
            timeout: how many seconds the tasks may take; None: as long as they need.

        Returns:
            How many tasks were cut off: they had not ended after `timeout` seconds. Of an input of
            unknown length, only the items that were read count.

        Raises:
            RuntimeError: the pool belongs to another loop or process.
            TypeError, ValueError: timeout is no number, or is negative; the pool stays open.
        """
        limit = patience("timeout", timeout)
        self._check_process()
        self._check_loop()
        self.close()
        cut_off = 0
        try:
            await self._join(limit)  # POOL-1: `join` of 0.9.1 has no timeout
        except TimeoutError:
            cut_off = 0 if self._engine is None else self._engine.unsettled
        finally:
            self.terminate()
        await self.join()
        return cut_off

    # -- binding -------------------------------------------------------------------------------

    def _use(self) -> Engine:
        """The engine, for one more call."""
        engine = self._engine
        if (
            engine is None
            or engine.state is not engine.OPEN
            or _process != self._pid
            or _running_loop() is not engine.loop
        ):
            return self._use_first()
        return engine

    def _use_first(self) -> Engine:
        """The engine, for a call that may be the first use, or that is refused."""
        if self._closed:
            from ._parent.callers import CLOSED  # POOL-2

            raise RuntimeError(CLOSED)
        self._check_process()
        engine = self._bind()
        engine.check_open()
        return engine

    def _open(self) -> None:
        """Take calls of this process from now on."""
        self._pid = _process
        self._closed = False
        self._engine: Engine | None = None
        self._bind_if_running()

    def _bind_if_running(self) -> None:
        """Start the workers of a new pool that was made where a loop runs."""
        if loops.running_loop() is not None:
            self._bind()

    def _bind(self) -> Engine:
        """Belong to the running loop, and start the workers on first use."""
        if self._engine is not None:
            self._check_loop()
            return self._engine
        loop = loops.running_loop()
        from ._parent.callers import NO_LOOP  # POOL-2
        from ._parent.engine import Engine
        from ._parent.worker import WorkerOptions

        if loop is None:
            raise RuntimeError(NO_LOOP)
        options = WorkerOptions(
            context=self.context,
            concurrency=self.childconcurrency,
            lifetime=self.maxtasksperchild,
            threads=self.threads or 0,
            loop=loops.spec_of(loop, self.loop_initializer),
            initializer=self.initializer,
            initargs=self.initargs,
            exception_handler=self.exception_handler,
            grace=self.grace,
            choice=self._choose_serializer(),
            logs=self._logs,
            lifespan=self.lifespan,
            contextvars=self.contextvars,
            memory_limit=self.maxmemoryperchild or 0,
        )
        make_engine = self._engine_class(Engine)
        limits = Limits(self.sharedmemory, self.process_count or 1)
        channels = self._selection.make(limits)
        self._engine = engine = make_engine(loop, options, channels, self.scheduler)
        # not weakref.finalize, which at exit may run after multiprocessing has begun to join all
        # children. The finalizer refers to the engine, which does not refer to the pool (ENGINE-2)
        Finalize(self, engine.abandon, exitpriority=0)
        if self._monitor:
            from ._parent.monitor import watch

            watch(self, engine, self.backend)
        engine.start(self.process_count, self.queue_count)
        _import_stats()  # while the workers start: two dataclasses take 1 to 2 ms
        return engine

    def _engine_class(self, usual: type[Engine]) -> Callable[..., Engine]:
        """What makes the engine, with the features that this pool uses."""
        if self._cluster is not None:
            from ._cluster import engine as over_hosts  # POOL-2: few pools need it

            if self.contextvars:
                return partial(over_hosts.ClusterContextEngine, self._cluster, self.contextvars)
            return partial(over_hosts.ClusterEngine, self._cluster)
        if self.contextvars:
            from ._parent.context_variables import ContextEngine

            return partial(ContextEngine, self.contextvars)
        return usual

    def _target(
        self, backend: str | None, scheduler: object, queuecount: object, *where: object
    ) -> ClusterTarget | None:
        """The cluster that the arguments address, client and security name; None without one."""
        if backend != "dask" and all(value is None for value in where):
            return None
        from ._cluster.arguments import checked_target  # POOL-2

        return checked_target(backend, scheduler, queuecount, *where)

    def _usual_count(self) -> int:
        """How many workers there are if the user does not say it; 0: it depends on the host."""
        from ._processes.cpus import usable_cpus  # POOL-2

        return usable_cpus() if self._cluster is None else 0

    def _select(self, backend: str | None) -> Selection:
        """The transport; ValueError for an argument that it cannot serve."""
        if self._cluster is not None:
            from ._cluster.arguments import selection  # POOL-2

            return selection(self.sharedmemory)
        from ._transport.select import select  # POOL-2

        selected = select(backend)
        if selected.name == "inline":
            refuse_inline(
                loop_initializer=self.loop_initializer, maxmemoryperchild=self.maxmemoryperchild
            )
        return selected

    def _checked_logs(self, logs: bool | int | str) -> bool | int | str | None:
        if logs is False or logs is None:
            return None
        from ._parent.logs import threshold_of  # POOL-2

        threshold_of(logs)
        return logs

    def _checked_serializer(
        self, serializer: Literal["pickle", "cloudpickle"] | Serializing | None
    ) -> Literal["pickle", "cloudpickle"] | Serializing | None:
        self._serializer = serializer
        if serializer is not None:
            self._choose_serializer()
        return serializer

    def _choose_serializer(self) -> Choice:
        from ._parent.serializers import choose  # POOL-2

        return choose(self._serializer, elsewhere=self._cluster is not None)

    def _check_loop(self) -> None:
        if self._engine is not None:
            running = loops.running_loop()
            if running is not self._engine.loop:
                from ._parent.callers import ANOTHER_LOOP, NO_LOOP  # POOL-2

                raise RuntimeError(NO_LOOP if running is None else ANOTHER_LOOP)

    def _check_thread(self, name: str) -> None:
        """RuntimeError in another thread while the loop runs: the engine is not thread-safe."""
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


if parent_process() is None and not getattr(current_process(), "_inheriting", False):
    # Now, and not when a pool opens, whose first workers would start later by that much.
    # A process of multiprocessing may be a worker, which does without (POOL-2).
    from ._parent import engine as _engine  # noqa: F401
    from ._parent.result import PoolResult
    from ._parent.serializers import Serializing
    from ._parent.stream import Stream
    from ._transport import endpoint as _endpoint  # noqa: F401
    from ._transport import select as _select  # noqa: F401
    from .core import Process, get_context
