"""The parent engine: the life of a pool on its loop.

    open --close()--> closing --> finished       (every task settled, every worker gone)
      |  \\                          ^
      |   +--terminate()--> terminated
      +-- workers cannot start --> broken

It gives calls to the queues (queue.py); the supervisor starts the workers that serve these, and
replaces those that die (supervisor.py). All of it runs in callbacks of one event loop. Nothing of
it polls while the pool is idle. Timers exist for the limits of tasks (deadlines.py), for workers
that an item blocks (blocked.py), for ends and exits of workers (worker.py), for the progress
display and the monitor, and for the next attempt at a start (supervisor.py).

ENGINE-1  A task source is in `_open` from its first task until its last is settled: closing waits
    for all. The calls of a plain function, without a priority, stay there until the pool closes,
    as more may come; of those with a time limit only some (calls.py, `is_persistent`). The last
    task of a cancelled job is settled when workers have reported what they held of it (JOB-7):
    `join` waits for the `finally` blocks of items that were cancelled.
ENGINE-2  The engine does not know the `Pool`, so that a forgotten pool can be collected and its
    workers ended.
ENGINE-3  The first pool of a program imports this module, and then starts its workers. What only
    maps and streams need is imported at the first of them, while the workers start.
ENGINE-4  What is cancelled is stopped at the end of the turn of the loop, and nothing of it is sent
    before: the code that cancels may have interrupted this engine anywhere. It can be the input's,
    that of an item that is pickled, a finalizer, or the handler by which `asyncio.run` answers
    Ctrl-C. It also lets all that is cancelled in one turn of the loop be looked for together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import ExitStack, suppress
from enum import Enum
from functools import partial
from multiprocessing import util
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _accel
from .._arguments import DEFAULT_OPTIONS, TaskOptions
from .._processes import loops
from .._processes.freed_memory import PARENT_KEEPS, keep_freed_memory
from .._transport.link import Backend
from .._wire import sharing
from .._wire.exceptions import twin_of
from .._wire.frames import Kind, Mode
from ..scheduler import RoundRobin, Scheduler
from ..types import PoolTerminatedError, Progress, QueueID, TaskID, describe_error
from .call import ApplyCall, Call
from .callers import CLOSED
from .calls import CallQueue, call_key, is_persistent
from .chunk import Chunk
from .counts import EndCounts
from .errors import INTERRUPTS
from .functions import Function, FunctionTable
from .queue import Queue, preparing
from .resizing import Resizer
from .sharing import Holding
from .supervisor import Supervisor
from .worker import PoolWorker, WorkerOptions

if TYPE_CHECKING:  # ENGINE-3
    from .iterators import CompletionIterator, ResultIterator
    from .job import Job
    from .routing import RoutedTasks, Router
    from .stream_source import StreamSource

EXIT_PATIENCE = 5.0  # seconds that an exiting interpreter waits for the thread of a pool's loop

log = logging.getLogger(__name__)

CallT = TypeVar("CallT", bound="Call[Any]")
CallsT = TypeVar("CallsT", bound=CallQueue)


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    BROKEN = "broken"
    TERMINATED = "terminated"


class Engine:
    """The workers, queues and unfinished tasks of one pool."""

    BROKEN = State.BROKEN
    queue_class = Queue
    supervisor_class = Supervisor

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: WorkerOptions,
        channels: Backend,
        scheduler: Scheduler,
    ) -> None:
        self.loop = loop
        self.state = State.OPEN
        # for the pool, which imports this module late; of the object, since each `apply` needs them
        # and CPython specializes no load of a class's plain attribute before 3.13
        self.OPEN, self.CALL, self.APPLY_CALL = State.OPEN, Call, ApplyCall
        self.queues: dict[QueueID, Queue] = {}
        self.options = options
        self.supervisor = self.supervisor_class(loop, options, channels, self.queues, self)
        self.functions = FunctionTable(
            _accel.dumps, options.choice, self._retire, self._retire_dead_soon
        )
        self._choice = options.choice
        self._resizer = Resizer(self.supervisor, scheduler)
        self._channels = channels
        self._scheduler = scheduler
        # with one queue and the default scheduler the answer is known: it is not asked per task
        self._only: Queue | None = None
        self._task_ids = itertools.count(1)
        self._open: set[CallQueue | Job | StreamSource] = set()
        self._cancelled_jobs: set[Job] = set()  # in this turn (ENGINE-4)
        self._cancelled_calls: list[tuple[CallQueue, asyncio.Future[Any]]] = []
        self._flush_scheduled = False
        self.ends = EndCounts()
        self._to_flush: set[PoolWorker] = set()  # those that were sent cancellations in this turn
        self._reason: BaseException | None = None
        self._pid = os.getpid()
        self._gone = asyncio.Event()
        self._holding = Holding()
        self._start_holds = options.shared
        self.at_end: Callable[[], object] | None = None  # for the pool's monitor
        sharing.add_engine(self)

    # -- workers -------------------------------------------------------------------------------

    def start(self, processes: int, queues: int) -> None:
        """Create the queues and their first workers, telling the scheduler of each.

        If that fails the pool is broken: the scheduler already counts what is not there.
        """
        try:
            for _ in range(queues):
                queue = self._queue_kind()(self.loop)
                queue.choice = self._choice
                queue.holding = self._holding
                self.queues[self._scheduler.register_queue(queue)] = queue
            if queues == 1 and type(self._scheduler) is RoundRobin:
                (self._only,) = self.queues.values()
            self._resizer.start(processes, list(self.queues))
            keep_freed_memory(PARENT_KEEPS, _accel.keep_freed)  # while the workers start
        except Exception as error:
            # not the error itself, whose traceback leads here
            self.break_down(
                RuntimeError(
                    f"the pool could not be started ({describe_error(error)}): make another"
                )
            )
            raise
        except BaseException:
            self.terminate()
            raise

    def _queue_kind(self) -> type[Queue]:
        kind = self.queue_class
        if self.options.threads:
            from .threaded_queue import threaded  # ENGINE-3

            kind = threaded(kind)
        return preparing(kind) if self._choice.prepares else kind

    def wants_workers(self) -> bool:
        """Whether there may be work for a new worker."""
        return self.state is State.OPEN or (self.state is State.CLOSING and bool(self._open))

    @property
    def pending(self) -> int:
        """How many tasks have not ended, wherever they are (COUNTS-2)."""
        return sum(source.pending for source in self._open)

    @property
    def over(self) -> bool:
        """Whether every task has ended, though workers may still run some."""
        return self.state in (State.TERMINATED, State.BROKEN)

    def resize(self, processes: int) -> None:
        """Change the number of workers (resizing.py); `launched` waits for those that are new."""
        self.check_open()
        self._channels.limits = self._channels.limits._replace(workers=processes)
        try:
            self._resizer.resize(processes)
        finally:
            for queue in list(self.queues.values()):
                queue.dispatch_all()

    async def launched(self, processes: int) -> None:
        """Wait until these workers are launched; raises as `check_open` if that cannot be."""
        await self._resizer.launched(processes)
        self.check_open()

    def on_worker_gone(self) -> None:
        """A worker has exited, and what it held was settled or put back."""
        self._resizer.wake()
        self._check_finished()

    def on_worker_replaced(self) -> None:
        """A worker was replaced before its exit."""
        self._resizer.wake()

    # -- calls ---------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise what broke the pool, or RuntimeError, unless it takes calls."""
        if self._reason is not None:
            raise BaseException.with_traceback(twin_of(self._reason), None)  # JOB-11
        if self.state is not State.OPEN:
            raise RuntimeError(CLOSED)

    def submit_map(
        self,
        func: Callable[..., Any],
        mode: Mode,
        iterable: Iterable[Any] | AsyncIterable[Any],
        options: TaskOptions,
        *,
        return_exceptions: bool = False,
        progress: bool | Callable[[Progress], object] = False,
    ) -> Job:
        """Give a `map` or `starmap` to the workers."""
        from .job import Job  # ENGINE-3
        from .progress import Bar, Reporter
        from .sources import source_of

        function = self.functions.of(func)
        show = Bar() if progress is True else progress
        job = Job(
            func,
            function,
            mode,
            self.on_more,
            self.on_settled,
            options,
            loop=self.loop,
            on_cancelled=self.on_cancelled,
            return_exceptions=return_exceptions,
            reporter=None if show is False else Reporter(show, self.loop, function.label),
            ends=self.ends,
        )
        job.open(source_of(iterable, lambda: self.on_more(job)))
        self._submit_job(job)
        return job

    def _submit_job(self, job: Job) -> None:
        if self.state is not self.OPEN:  # reading its input may have ended the pool
            job.source.stop()
            self.check_open()
        if job.done:
            return
        self._add_open(job)
        if self._only is not None:
            self._only.offer(job)
        else:
            self._route(job)

    def _route(self, job: Job) -> None:
        from .routing import RoutedTasks, Router  # ENGINE-3

        job.router = router = Router(job, self._assign, self._complete)
        for qid, queue in self.queues.items():
            router.shares[qid] = RoutedTasks(job, router, queue.offer)
        if job.left is None:
            job.router.route(1)
        else:
            job.router.route_all()

    def submit_call(
        self,
        kind: type[CallT],
        pool: object,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> CallT:
        """Give one `apply` or `submit` to the workers; the call keeps `pool` alive (CALL-3)."""
        function = self.functions.of(func)
        call = kind(loop=self.loop)
        call.pool = pool
        queue = self._only
        if queue is None:
            queue = self._schedule(call, func, args, kwds)
        if self.state is not self.OPEN:  # the scheduler, or pickling, may have ended the pool
            asyncio.Future.cancel(call)  # it has no source
            self.check_open()
        if options is DEFAULT_OPTIONS:
            calls = queue.calls.get(function.id)
        else:
            calls = queue.calls.get(call_key(function, options))
        if calls is None:
            calls = CallQueue(
                function,
                self.on_settled,
                options,
                persistent=is_persistent(function, options, len(queue.calls)),
                on_cancel=self.cancel_call,
                ends=self.ends,
            )
            queue.calls[calls.key] = calls
            self._add_open(calls)  # ENGINE-1
        if options is not DEFAULT_OPTIONS and options.retries:
            calls.allow(call, options.retries)
        call.source = calls
        queue.call(calls, call, (args, kwds))
        return call

    def calls_from_outside(
        self,
        kind: Callable[..., CallsT],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
    ) -> tuple[Queue, CallsT, Callable[[], None] | None]:
        """Where to put one call of an executor: the queue, and the calls that it becomes one of.

        Third: what is to be called when it has ended, or None. `kind` makes the calls of a function
        that has none there (outside.py).
        """
        function = self.functions.of(func)
        options = self.options_from_outside()  # may be refused: before the scheduler counts it
        queue, on_end = self._only, None
        if queue is None:
            tid = TaskID(next(self._task_ids))
            queue = self._queue(self._scheduler.schedule_task(tid, func, args, kwds))
            on_end = partial(self._complete, tid)
        self.check_open()  # as in submit_call
        calls: Any = queue.calls.get(call_key(function, options))
        if calls is None:
            persistent = is_persistent(function, options, len(queue.calls))
            calls = kind(function, self.on_settled, options, persistent=persistent, ends=self.ends)
            queue.calls[calls.key] = calls
            self._add_open(calls)  # ENGINE-1
        return queue, calls, on_end

    def options_from_outside(self) -> TaskOptions:
        """The options of a call of an executor."""
        return DEFAULT_OPTIONS

    def _schedule(
        self,
        call: asyncio.Future[Any],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
    ) -> Queue:
        """The queue that the scheduler chooses for a call; the scheduler learns when it is done."""
        tid = TaskID(next(self._task_ids))
        queue = self._queue(self._scheduler.schedule_task(tid, func, args, kwds))
        call.add_done_callback(lambda _: self._complete(tid))
        return queue

    def submit_stream(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        ahead: int,
        options: TaskOptions,
    ) -> StreamSource:
        """Give one stream to the workers."""
        from .stream_source import StreamSource  # ENGINE-3

        function = self.functions.of(func, generator=True)
        on_done: Callable[[StreamSource], None] = self.on_settled
        queue = self._only
        if queue is None:
            tid = TaskID(next(self._task_ids))
            queue = self._queue(self._scheduler.schedule_task(tid, func, args, kwds))
            on_done = partial(self._on_stream_done, tid)
        self.check_open()  # the scheduler, or pickling, may have ended the pool
        item = (args, kwds, ahead)
        cancel = self._stop_stream
        source = StreamSource(
            function, item, options, cancel, on_done, loop=self.loop, ends=self.ends
        )
        self._add_open(source)
        queue.offer(source)
        return source

    def _on_stream_done(self, tid: TaskID, source: StreamSource) -> None:
        self._complete(tid)
        self.on_settled(source)

    def _cancel_chunk(self, chunk: Chunk, offset: int = 0) -> bool:
        """Cancel one task in the worker that holds its chunk; False if none does any more.

        `_flush_cancelled` must follow.
        """
        for worker in self.supervisor.workers:
            if worker.chunks.get(chunk.first) is chunk:
                worker.link.send(Kind.CANCEL, chunk_id=chunk.first, offset=offset)
                self._to_flush.add(worker)
                return True
        return False

    def _stop_stream(self, chunk: Chunk) -> None:
        self._flush_soon()
        self._cancel_chunk(chunk)

    def cancel_call(self, calls: CallQueue, future: asyncio.Future[Any]) -> None:
        """The caller gave up on one of `calls`: stop it, at the end of this turn (ENGINE-4)."""
        if not self.loop.is_closed():  # else its workers will be killed
            self._flush_soon()
            self._cancelled_calls.append((calls, future))

    def _stop_call(self, calls: CallQueue, future: asyncio.Future[Any]) -> None:
        """Stop a call wherever it is (CALL-1, FEED-4)."""
        chunk = calls.chunk_of(future)
        if chunk is not None and self._cancel_chunk(chunk, chunk.offset_of(future)):
            return
        for queue in self.queues.values():
            if queue.retry_queue.drop(future):
                queue.dispatch_all()  # a worker may have been kept free for it
                return
        calls.drop_cancelled()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush_cancelled)

    def _flush_cancelled(self) -> None:
        """Stop what was cancelled in this turn; wake each worker once for all of it."""
        self._flush_scheduled = False  # first: from now on, what is cancelled is for the next time
        calls, self._cancelled_calls = self._cancelled_calls, []
        for source, future in calls:
            self._stop_call(source, future)
            self._holding.drop_sent(source)
        jobs, self._cancelled_jobs = self._cancelled_jobs, set()
        if jobs:
            for queue in self.queues.values():
                queue.drop(jobs)
            self._cancel_chunks(jobs)
            for job in jobs:
                self._holding.drop_sent(job)
        workers, self._to_flush = self._to_flush, set()
        for worker in workers:
            worker.link.flush()

    def on_cancelled(self, job: Job) -> None:
        """A job was cancelled: drop what waits of it, and stop what workers hold (ENGINE-4)."""
        self._flush_soon()
        self._cancelled_jobs.add(job)

    def _cancel_chunks(self, jobs: set[Job]) -> None:
        """Send one CANCEL frame for each chunk of these jobs."""
        for worker in self.supervisor.workers:
            for chunk in worker.chunks.values():
                if chunk.owner.origin in jobs:
                    count = len(chunk.handles)
                    worker.link.send(Kind.CANCEL, chunk_id=chunk.first, count=count)
                    self._to_flush.add(worker)

    def _retire(self, function: Function) -> None:
        """No later call has this function: workers drop it when its tasks are settled."""
        function.permanent = False
        for queue in self.queues.values():
            if not function.uses:
                queue.drop_function(None, function)
                continue
            for calls in [calls for calls in queue.calls.values() if calls.function is function]:
                calls.pool_closes()

    def _retire_dead_soon(self) -> None:
        """In any thread: functions by value were collected."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.functions.retire_dead)

    def on_more(self, job: Job) -> None:
        """A job that had nothing to take may have more now."""
        if job.cancelled or job not in self._open:
            return
        if job.router is not None:
            job.router.route(1)
        elif job.source.exhausted:
            job.end_of_input()
        elif self._only is not None:
            self._only.offer(job)

    def read(self, job: Job, *, keep: object) -> ResultIterator[Any]:
        """An iterator over the results of a job; it keeps `keep` alive until it ends."""
        from .iterators import ResultIterator  # ENGINE-3

        reader = job.add_reader()
        return ResultIterator(keep, reader, job.watch_reader(reader))

    def read_completed(
        self, job: Job, *, keep: object, with_index: bool
    ) -> CompletionIterator[Any]:
        """As `read`, in the order in which the results are ready."""
        from .iterators import CompletionIterator  # ENGINE-3

        reader = job.add_completion_reader()
        released = job.watch_reader(reader)
        return CompletionIterator(keep, reader, released, with_index=with_index)

    def _add_open(self, source: CallQueue | Job | StreamSource) -> None:
        self._open.add(source)
        source.function.uses += 1

    def on_settled(self, source: CallQueue | Job | StreamSource) -> None:
        """The last task of a source is settled."""
        if source in self._open:
            self._open.discard(source)
            source.function.uses -= 1
        self._holding.settled(source)
        if not source.function.permanent:
            source.function.shared = ()
        for queue in self.queues.values():
            queue.drop_function(source, source.function)
        self._check_finished()

    def hold(self, memory: object) -> None:
        """Hold the memory of a shared object that was released for the tasks that may have it.

        In any thread. In the next turn of the loop, as this one may be about to send some of them.
        """
        if not self._open:
            return
        if loops.running_loop() is self.loop:
            self.loop.call_soon(self._hold, memory)
            return
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._hold, memory)

    def _hold(self, memory: object) -> None:
        self._holding.hold(memory, self._open)

    def _assign(self, router: Router, item: Any) -> tuple[TaskID, RoutedTasks]:
        tid = TaskID(next(self._task_ids))
        job = router.job
        args = item if job.mode is Mode.STAR else (item,)
        qid = self._scheduler.schedule_task(tid, job.func, args, {})
        self._queue(qid)  # refuses a queue that is not there
        return tid, router.shares[qid]

    def _complete(self, tid: TaskID) -> None:
        """Report to the scheduler that a task has ended, which it has whatever is raised."""
        try:
            self._scheduler.complete_task(tid)
        except INTERRUPTS as error:  # raised later: what the caller delivers with it has to arrive
            if self.loop.is_closed():
                raise
            self.loop.call_soon_threadsafe(_raise, error)
        except BaseException:
            log.exception("complete_task of the scheduler failed")

    def _queue(self, qid: QueueID) -> Queue:
        try:
            queue = self.queues.get(qid)
        except TypeError:  # not hashable
            queue = None
        if queue is None:
            known = list(self.queues)
            raise ValueError(
                f"the scheduler chose queue {qid!r}; this pool has {known}: schedule_task must "
                "return what register_queue did, and a scheduler can serve one pool only"
            )
        return queue

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; workers go when all tasks are settled."""
        if self.loop.is_closed():
            self._kill()
        elif self.state is State.OPEN:
            self.state = State.CLOSING
            for source in list(self._open):
                source.pool_closes()
            self._check_finished()

    def terminate(self) -> None:
        """Fail all that is not settled and end the workers."""
        if self.loop.is_closed():
            self._kill()
        elif self.state is not State.TERMINATED:
            self._give_up(State.TERMINATED, PoolTerminatedError("the pool was terminated"))

    @property
    def unsettled(self) -> int:
        """How many tasks have neither a result nor an error, as far as inputs were read."""
        return sum(source.unsettled for source in self._open)

    async def join(self) -> None:
        """Wait until every worker has gone; the pool must have been closed or terminated."""
        await self._gone.wait()

    def abandon(self) -> None:
        """The pool object is gone, or the interpreter ends; may be called from any thread.

        A pool that was closed finishes what it was given, as long as its loop runs.
        """
        count = self.supervisor.worker_count
        if os.getpid() != self._pid or not count:
            return
        forgotten = self.state is State.OPEN
        # The workers' exits will not be awaited, and the loop may end with the next callback: so
        # they are killed here and now, unless this is another thread's garbage collection.
        if not self.loop.is_running() or (forgotten and loops.running_loop() is self.loop):
            self._kill()
        elif forgotten:
            self._kill_from_another_thread()
        if forgotten:  # last, as a warning may be made an error
            warnings.warn(
                f"a pool of {count} workers was never closed: use `async with Pool()`, "
                "or close() and join()",
                ResourceWarning,
                stacklevel=2,
            )

    def _kill(self) -> None:
        """End the workers here and now, without a loop that would tell of their exit."""
        self.state = State.TERMINATED
        self.supervisor.kill_all()
        self.ends.cancelled += self.pending
        self._open.clear()  # they lead back here
        for queue in self.queues.values():
            queue.clear()
        self._close_channels()

    def _close_channels(self) -> None:
        """All workers are gone: nothing is needed for them any more."""
        self._channels.close()
        self._start_holds.clear()
        self._holding.sources.clear()
        if self.at_end is not None:
            self.at_end()

    def _kill_from_another_thread(self) -> None:
        killed = threading.Event()

        def kill() -> None:
            try:
                self._kill()
            finally:
                killed.set()

        self.loop.call_soon_threadsafe(kill)
        if util.is_exiting():  # multiprocessing is about to join our workers from this thread
            killed.wait(EXIT_PATIENCE)

    def break_down(self, reason: BaseException) -> None:
        """Workers cannot be started: fail every call with the reason, now and from now on."""
        if self.state in (State.OPEN, State.CLOSING):
            self._reason = twin_of(reason)
            self._give_up(State.BROKEN, reason)

    def _give_up(self, state: State, error: BaseException) -> None:
        self.state = state
        self.ends.cancelled += self.pending
        self.supervisor.stop_restarts()
        sources, self._open = self._open, set()
        idle = {worker for worker in self.supervisor.workers if not worker.chunks}
        for queue in self.queues.values():
            queue.clear()
        with ExitStack() as steps:  # the last one first; all of them, whatever one may raise
            steps.callback(self._check_finished)
            for worker in list(self.supervisor.workers):
                steps.callback(worker.end, idle=worker in idle)
            for source in sources:
                steps.callback(source.fail_all, error)

    def _check_finished(self) -> None:
        """ENGINE-1: let the workers go when nothing is left to do, and tell when they have gone."""
        if self.state is State.OPEN or self._open:
            return
        self.supervisor.stop_restarts()
        for worker in self.supervisor.workers:
            worker.leave()
        if not self.supervisor.workers:
            for queue in self.queues.values():
                queue.clear()
            self._close_channels()
            self._gone.set()


def _raise(error: BaseException) -> None:
    raise error
