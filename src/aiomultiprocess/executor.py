"""`PoolExecutor`: a `concurrent.futures.Executor` over a pool in a thread of its own.

    submit(), in any thread --> incoming calls --one wake-up--> the loop's thread: Pool --> workers
       |                                                            |
       +---- Future  <------------------ result or error -----------+

The executor makes futures and puts calls into a line; `_Runner` has the line, the loop and the
thread. On the loop the calls become tasks of the pool (_parent/outside.py). Nothing here waits for
a worker but `shutdown` and the exit of the interpreter.

EXECUTOR-1  Any number of submissions costs one wake-up of the loop, as long as it has not begun to
    take them. What `submit` took is always ended: by a result, an error, or a cancellation.
EXECUTOR-2  The runner does not know the executor: one that is collected lets its runner end when
    all calls have.
EXECUTOR-3  At exit the interpreter waits until all calls have ended, before it joins threads. In a
    child of multiprocessing, the same happens before the finalizers of pools.
EXECUTOR-4  A forked copy of this process has neither the thread nor the workers: there the executor
    refuses calls, and its end touches nothing.
EXECUTOR-5  The first call waits until workers are launched, so that it raises what refuses them.
EXECUTOR-6  A Ctrl-C during the exit ends the workers, as `Pool.terminate`, and another one kills
    them. The exit goes on when the thread has ended: at its own exit multiprocessing joins all
    workers that are left, and the thread would close them meanwhile.
EXECUTOR-7  A shared object that is released stays for the calls that were submitted before. Those
    in the line, and the one that the thread takes out of it, are in no engine; so `hold` looks in
    the order in which calls go: line, thread, engine.
EXECUTOR-8  A start of the thread that fails, or that Ctrl-C cuts short at any line, is undone, and
    the next call starts anew; unless the thread runs. Ctrl-C within `Thread.start` leaves open
    whether it will. So the thread and what undoes it take one lock, which none releases: the first
    has its way.

Every worker imports this module if the main module names `PoolExecutor`: as for `Pool`, what only
the process that makes an executor needs is imported where it is used (pool.py, POOL-2).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import multiprocessing
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, overload

from ._arguments import any_seconds, check_callable, is_iterable, whole
from ._wire import sharing
from ._wire.tracebacks import without_our_frames
from .pool import Pool
from .types import R

if TYPE_CHECKING:
    from ._parent.engine import Engine
    from ._parent.outside import OutsideCalls
    from ._parent.queue import Queue

P = ParamSpec("P")

START_METHOD = "spawn"
AFTER_KILL = 5.0  # seconds to wait for a thread whose workers were killed
BATCH = 1000  # calls that the loop takes before it serves workers again

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"

FORKED = (
    "this executor belongs to process {}, this is a forked copy in process {}: "
    "make an executor of its own here"
)

_numbers = itertools.count(1)
_exiting = False
_exit_lock = threading.Lock()  # held while a runner starts, and while the exit begins
_runners: set[_Runner] = set()  # those whose thread runs


class _ThreadPool(Pool):
    """The pool of an executor: its loop is the one of the executor's thread."""

    def _bind_if_running(self) -> None:
        """Do nothing: a loop that runs in the thread of the caller is not ours."""


def _check_workers(max_workers: int | None, mp_context: object) -> None:
    if max_workers is not None and whole("max_workers", max_workers) <= 0:
        raise ValueError(f"max_workers must be greater than 0, got {max_workers}")
    if mp_context is not None and not isinstance(mp_context, BaseContext):
        raise TypeError(
            "mp_context must be a context of multiprocessing, such as "
            f"multiprocessing.get_context('spawn'), or None, got {mp_context!r}"
        )


def _for_pool(arguments: dict[str, Any], max_tasks_per_child: int | None) -> dict[str, Any]:
    """The further arguments of an executor's pool."""
    if "processes" in arguments:
        raise TypeError("processes is the name in Pool: use max_workers for a PoolExecutor")
    if max_tasks_per_child is None:
        return arguments
    if "maxtasksperchild" in arguments:
        raise TypeError("maxtasksperchild and max_tasks_per_child are one: pass one of them")
    if whole("max_tasks_per_child", max_tasks_per_child) < 1:
        raise ValueError(f"max_tasks_per_child must be >= 1, got {max_tasks_per_child}")
    return {**arguments, "maxtasksperchild": max_tasks_per_child}


class PoolExecutor(Executor):
    """Run functions and coroutine functions in a pool, from programs that have no event loop.

    It is used as `concurrent.futures.ProcessPoolExecutor` is, with the same futures, and with
    `concurrent.futures.wait`, `as_completed` and `loop.run_in_executor`. The pool runs in a thread
    of its own, which the first call starts together with the workers. The methods may be called in
    any thread; callbacks of futures run in the thread of the pool, and must not wait in there.

    It differs from a ProcessPoolExecutor in this: coroutine functions run side by side in each
    worker; a worker that dies fails only the calls that it had begun, and is replaced; workers are
    always started by "spawn" unless `mp_context` says otherwise.

    Arguments:
        max_workers: number of workers; None means the CPUs that this process may use.
        mp_context: the multiprocessing context that starts the workers; by default one of the start
            method "spawn". It has no effect on `set_start_method`, nor is it affected. ("fork" from
            a process with threads, as this one is, may deadlock.)
        initializer, initargs: as for `Pool`.
        max_tasks_per_child: replace a worker after so many calls; None means never. `Pool` calls
            it `maxtasksperchild`.
        pool_arguments: any other argument of `Pool` but `processes`.

    Raises:
        ValueError, TypeError: an argument has a wrong value or type; the message names it.
        RuntimeError: the backend is not available; the message gives the reason.

    Example:
        with PoolExecutor() as executor:
            for page in executor.map(fetch, urls):
                print(len(page))
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] | None = (),
        *,
        max_tasks_per_child: int | None = None,
        **pool_arguments: Any,
    ) -> None:
        from ._processes.cpus import usable_cpus  # POOL-2

        _check_workers(max_workers, mp_context)
        arguments = _for_pool(pool_arguments, max_tasks_per_child)
        pool = _ThreadPool(max_workers, initializer, initargs, **arguments)
        pool.context = mp_context or multiprocessing.get_context(START_METHOD)
        # dask reads this of the executors of concurrent.futures, and refuses one without it, or 0,
        # which `process_count` is where each host of a cluster decides
        self._max_workers = pool.process_count or usable_cpus()
        self._has_context = bool(pool.contextvars)
        self._runner = _Runner(pool)
        weakref.finalize(self, self._runner.close).atexit = False  # EXECUTOR-2

    def __reduce__(self) -> NoReturn:
        from ._parent.callers import refuse_to_pickle  # POOL-2

        refuse_to_pickle(self)

    @overload
    def submit(
        self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]: ...

    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, **kwargs)` in a worker; returns the future of its result.

        The future can be cancelled until the call is sent to a worker. Function and arguments are
        pickled some time after this returns: do not change them meanwhile. With `contextvars`, the
        call sees the values that this thread has now.

        `Future.result()` raises what the function raised (its `__cause__` shows the traceback from
        the worker), or one of these. For StopIteration and CancelledError, which asyncio would take
        for something else, it raises a ProxyException with that as its cause.

        The future raises:
            BrokenProcessPool: the worker died during the call; this error is a WorkerLostError too,
                and the executor goes on. Or no worker can be started, and nothing goes on.
            pickle.PicklingError: the function, an argument or the result cannot be sent.

        Raises:
            TypeError: fn is not callable, or is an async generator function.
            BrokenProcessPool: no worker can be started; the message says why.
            RuntimeError: the executor was shut down, or belongs to another process.
        """
        check_callable(fn, name="fn")
        future: Future[Any] = Future()
        context = contextvars.copy_context() if self._has_context else None
        self._runner.add((future, fn, args, kwargs, context))
        return future

    @overload
    def map(
        self,
        fn: Callable[..., Awaitable[R]],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]: ...

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Run `fn(*items)` for each tuple of `zip(*iterables)`; yields the results in that order.

        Closing the iterator cancels the calls that no worker was sent yet.

        Arguments:
            timeout: seconds from now until the last result must be there; None waits for ever.
            chunksize: at least 1. Pools make their own chunks, so it has no other effect.
            buffersize: how many calls may be ahead of the reader; the iterables are then read as
                the results are. None: all of them are read now.

        Raises:
            TypeError, ValueError: an argument has a wrong type or value; the message names it.
            RuntimeError, BrokenProcessPool: as `submit`. With a buffersize also while iterating.
            TimeoutError: while iterating, after `timeout` seconds.
        """
        check_callable(fn, name="fn")
        limit = any_seconds("timeout", timeout)
        if whole("chunksize", chunksize) < 1:
            raise ValueError(f"chunksize must be >= 1, got {chunksize}")
        if buffersize is not None and whole("buffersize", buffersize) < 1:
            raise ValueError(f"buffersize must be None or > 0, got {buffersize}")
        for iterable in iterables:
            if not is_iterable(iterable):
                raise TypeError(
                    f"iterables must be iterable, got {iterable!r}: pass one for each argument"
                )
        if limit is not None and limit > threading.TIMEOUT_MAX:  # 292 years, or infinite
            limit = None
        end = None if limit is None else time.monotonic() + limit
        calls = zip(*iterables, strict=False)
        first = calls if buffersize is None else itertools.islice(calls, buffersize)
        futures = deque(self.submit(fn, *args) for args in first)
        more = None if buffersize is None else partial(self._submit_next, fn, calls)
        return _results(futures, more, end)

    def _submit_next(
        self, fn: Callable[..., Any], calls: Iterator[tuple[Any, ...]]
    ) -> Future[Any] | None:
        args = next(calls, None)
        return None if args is None else self.submit(fn, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; end the workers and the thread when those under way have ended.

        Arguments:
            wait: whether to wait for that end.
            cancel_futures: cancel the calls that no worker was sent.

        Raises RuntimeError if a callback of a future, in the pool's thread, waits for it.
        """
        self._runner.close(cancel=cancel_futures)
        if wait:
            self._runner.join()


def _results(
    futures: deque[Future[Any]], more: Callable[[], Future[Any] | None] | None, end: float | None
) -> Generator[Any, None, None]:
    """The results of futures in their order; `more` is called for another before each."""
    try:
        while futures:
            if more is not None and (another := more()) is not None:
                futures.append(another)
            # no name for the future, or the generator would keep its result
            yield _result_of(futures.popleft(), end)
    finally:
        for future in futures:
            future.cancel()


def _result_of(future: Future[Any], end: float | None) -> Any:
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        del future  # an error and this frame would keep each other alive


#: The future, what it calls, and the context of its submitter if the pool needs that.
_Call = tuple[
    Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any], contextvars.Context | None
]


class _Runner:
    """The line of calls of one executor, and the thread in which its pool runs."""

    def __init__(self, pool: _ThreadPool) -> None:
        self._pool = pool
        self._pid = os.getpid()
        self._incoming: deque[_Call] = deque()
        self._taking: _Call | None = None  # out of the line, and perhaps not in the engine yet
        sharing.engines.add(self)
        # reentrant: a collection, or a signal, may end an executor while this thread holds it
        self._lock = threading.RLock()
        self._woken = self._closed = False  # woken: the loop takes calls without another wake-up
        self._cancelled = False  # calls that wait are to be cancelled
        self._broken: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._finalizer: Finalize[Any] | None = None
        self._engine: Engine | None = None
        self._launched = threading.Event()
        self._ended = threading.Event()
        self._over: asyncio.Event | None = None
        self._calls: weakref.WeakSet[OutsideCalls] = weakref.WeakSet()

    # -- in any thread -------------------------------------------------------------------------

    def add(self, call: _Call) -> None:
        """Put a call into the line (EXECUTOR-1)."""
        if os.getpid() != self._pid:  # EXECUTOR-4; the lock may be held for ever here
            raise RuntimeError(FORKED.format(self._pid, os.getpid()))
        with self._lock:
            self._check_open()
            if self._loop is None:
                self._start()
                self._launched.wait()  # EXECUTOR-5
                self._check_open()
            self._incoming.append(call)
            if not self._woken:
                self._wake()

    def hold(self, memory: object) -> None:
        """Keep the memory of a shared object for all calls that are not done (EXECUTOR-7)."""
        if os.getpid() != self._pid:
            return
        waiting, taking = self._incoming.copy(), self._taking
        if taking is not None:
            waiting.append(taking)
        for future, *_ in waiting:
            held = [memory]  # a future that is done still has its callbacks
            future.add_done_callback(partial(_let_go, held))
        if self._engine is not None:
            self._engine.hold(memory)

    def close(self, *, cancel: bool = False) -> None:
        """Take no more calls; with `cancel`, cancel those that wait."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            self._cancelled = self._cancelled or cancel
            self._wake()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, and with it all workers; or for `timeout` seconds."""
        thread = self._thread
        if thread is None or os.getpid() != self._pid:
            return
        # `join` not alone: up to CPython 3.12, Ctrl-C in it marks the thread as ended
        if thread is threading.current_thread() or self._ended.wait(timeout):
            thread.join()  # in a callback, an error

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and not self._ended.is_set()

    def kill(self) -> None:
        """Kill the workers; the thread notices that, as of any death."""
        workers = [] if self._engine is None else list(self._engine.supervisor.workers)
        for worker in workers:
            with contextlib.suppress(OSError, ValueError):  # it ends just now
                worker.kill()

    def terminate(self) -> None:
        """End the workers now: what they run is lost."""
        with self._lock:
            self._call_soon(self._pool.terminate)

    def _check_open(self) -> None:
        engine = self._engine
        if engine is not None and engine.state is engine.BROKEN and self._broken is None:
            self._break(_reason_of(engine))
        if self._broken is not None:
            raise type(self._broken)(*self._broken.args) from self._broken.__cause__
        if _exiting:
            raise RuntimeError(AFTER_EXIT)
        if self._closed:
            raise RuntimeError(AFTER_SHUTDOWN)

    def _wake(self) -> None:
        self._call_soon(self._take)
        self._woken = True  # last: if Ctrl-C strikes before, there is a wake-up more, and not less

    def _call_soon(self, callback: Callable[[], object]) -> None:
        """Call in the loop; not if that is closed, and with it every call has ended, or will."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed, perhaps since a moment
                self._loop.call_soon_threadsafe(callback)

    def _start(self) -> None:
        """Make loop and thread. RuntimeError if the system, or the exit, refuses a thread."""
        _prepare()
        loop = _new_loop()
        claim = threading.Lock()  # EXECUTOR-8
        try:
            name = f"PoolExecutor-{next(_numbers)}"
            thread = threading.Thread(target=self._run, args=(loop, claim), name=name, daemon=False)
            self._loop, self._thread = loop, thread
            self._start_thread(thread)
        except BaseException:
            if claim.acquire(blocking=False):
                self._undo_start(loop)
            raise

    def _undo_start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = self._thread = None  # first: the next call makes others
        _runners.discard(self)
        if self._finalizer is not None:
            self._finalizer.cancel()
        loop.close()

    def _start_thread(self, thread: threading.Thread) -> None:
        # EXECUTOR-3: before the pool's own, whose priority is 0
        self._finalizer = Finalize(None, _end_all, exitpriority=100)
        with _exit_lock:
            if _exiting:
                raise RuntimeError(AFTER_EXIT)
            _runners.add(self)
            thread.start()

    # -- in the thread -------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, claim: threading.Lock) -> None:
        """The thread."""
        if not claim.acquire(blocking=False):
            return
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - each call gets it, nothing else could
            self._fail_all(error)
        finally:
            self._launched.set()
            with _exit_lock:  # until `_start_thread` has ended
                _runners.discard(self)
            if self._finalizer is not None:
                self._finalizer.cancel()
            self._ended.set()

    async def _serve(self) -> None:
        """Run the pool until the executor is closed and all its calls have ended."""
        self._over = asyncio.Event()
        try:
            self._engine = self._pool._use_first()
        except Exception as error:  # noqa: BLE001 - of the system, or of pickling: as above
            self._break(error)
        self._launched.set()
        self._take()
        await self._over.wait()
        self._pool.close()
        await self._pool.join()

    def _take(self) -> None:
        """Give what is in the line to the pool."""
        if self._over is None:  # a wake-up that came before `_serve`, which takes them itself
            return
        with self._lock:
            self._woken = False
            closed, cancelled = self._closed, self._cancelled
        self._take_batch()
        if cancelled:  # after idle workers got theirs, as they would have by now
            self._cancel_waiting()
        if self._incoming:
            with self._lock:
                self._wake()
        elif closed:
            self._over.set()

    def _take_batch(self) -> None:
        to_offer: dict[OutsideCalls, Queue] = {}
        for _ in range(BATCH):
            if not self._incoming:
                break
            self._taking = self._incoming[0]
            calls = self._take_one(self._incoming.popleft())
            self._taking = None
            if calls is not None:
                to_offer[calls[1]] = calls[0]
        for source, queue in to_offer.items():
            queue.offer(source)

    def _take_one(self, call: _Call) -> tuple[Queue, OutsideCalls] | None:
        future, func, args, kwds, context = call
        engine = self._engine
        try:
            if engine is None:
                assert self._broken is not None
                raise self._broken
            find = partial(engine.calls_from_outside, self._new_calls, func, args, kwds)
            queue, calls, on_end = find() if context is None else context.run(find)
        except BaseException as error:  # noqa: BLE001 - pickling, and a scheduler, run any code
            _fail(future, error, broken=engine is not None and engine.state is engine.BROKEN)
            return None
        calls.add(future, (args, kwds), on_end)
        return queue, calls

    def _new_calls(self, *args: Any, **kwargs: Any) -> OutsideCalls:
        from ._parent.outside import OutsideCalls

        calls = OutsideCalls(*args, **kwargs)
        self._calls.add(calls)
        return calls

    def _cancel_waiting(self) -> None:
        from ._parent import outside

        while self._incoming:
            outside.cancel(self._incoming.popleft()[0])
        for calls in list(self._calls):
            calls.cancel_waiting()

    def _break(self, reason: BaseException) -> None:
        """No worker can be started: every call fails, now and from now on."""
        from ._parent.outside import broken_by

        self._broken = broken_by(reason)

    def _fail_all(self, reason: BaseException) -> None:
        """The loop was ended by an error: no call may be left that waits for it (EXECUTOR-1)."""
        from ._parent import outside

        self._launched.set()  # `add` waits for it with the lock
        with self._lock:
            self._break(reason)
        error = outside.broken_by(reason)
        while self._incoming:
            outside.fail(self._incoming.popleft()[0], error)
        for calls in list(self._calls):
            calls.fail_all(error)
        if self._engine is not None:
            self._pool.terminate()  # at once, as the loop is closed


def _let_go(held: list[object], future: Future[Any]) -> None:
    """A call that held the memory of a shared object is done."""
    held.clear()


def _fail(future: Future[Any], error: BaseException, *, broken: bool) -> None:
    """End a future whose call did not get into a queue."""
    from ._parent import outside

    without_our_frames(error)
    outside.fail(future, outside.broken_by(error) if broken else error)


def _reason_of(engine: Engine) -> BaseException:
    try:
        engine.check_open()
    except BaseException as error:  # noqa: BLE001 - it is what broke the pool
        return error
    return RuntimeError("its pool is broken")


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop that can watch the links of a pool."""
    return asyncio.SelectorEventLoop() if sys.platform == "win32" else asyncio.new_event_loop()


def _prepare() -> None:
    """What must not be left to the thread: CPython may be at its exit when that begins."""
    from ._parent import engine, outside  # what these import cannot be imported then

    del engine, outside


def _end_all() -> None:
    """At exit: wait until all calls have ended (EXECUTOR-3); after a Ctrl-C, end the workers."""
    global _exiting
    with _exit_lock:
        _exiting = True
        runners = list(_runners)
    try:
        _wait_for(runners)
    except BaseException:
        _end_now(runners)
        raise


def _end_now(runners: list[_Runner]) -> None:
    """EXECUTOR-6: end the workers, and kill them at another Ctrl-C."""
    try:
        for runner in runners:
            runner.close()  # again, as Ctrl-C may have struck within it
            runner.terminate()
        for runner in runners:
            runner.join()
    except BaseException:
        _kill_all(runners)
        raise


def _kill_all(runners: list[_Runner]) -> None:
    """Kill the workers, and wait for the threads, which then end soon, whatever strikes."""
    end = time.monotonic() + AFTER_KILL
    while time.monotonic() < end and any(runner.is_alive for runner in runners):
        with contextlib.suppress(KeyboardInterrupt):
            for runner in runners:
                runner.kill()
                runner.join(AFTER_KILL)


def _wait_for(runners: list[_Runner]) -> None:
    for runner in runners:
        runner.close()
    for runner in runners:
        runner.join()


def _after_fork() -> None:
    global _exit_lock
    _exit_lock = threading.Lock()
    _runners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# as concurrent.futures does: a hook of `atexit` would come after all threads were joined
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
