"""The parent engine: the life of a pool on its loop.

    open --close()--> closing --> finished       (every task settled, every worker gone)
      |  \\                          ^
      |   +--terminate()--> terminated
      +-- workers cannot start --> broken

It starts workers, decides what their death means, and gives calls to the queues (queue.py). All of
it runs in callbacks of one event loop; nothing is timed except the grace period of `terminate`, the
exit of a worker, and the next attempt at what the system has refused.

ENGINE-1  A feed is in `_open` from its first task until its last is settled: closing waits for all.
    The calls of a plain function stay there while there may be more of them, until the pool closes.
ENGINE-2  A worker that dies is replaced while there may be work. Respawning is limited: if one
    exits while it starts and none was ever ready, the pool is broken and says why. If
    `START_ATTEMPTS` in
    a row die while they start, or the system refuses one, no other is started at once: it is tried
    again later while the queue has other workers, and where it has none the pool is broken. If more
    in a row die soon after it, before they began a task, the next ones are started later too, even
    where there are no others.
    A worker that has done its work and takes more than a moment to exit is replaced before it has
    (worker.py, POOLWORKER-3): what holds it does not hold up the tasks that wait.
ENGINE-3  The engine does not know the `Pool`, so that a forgotten pool can be collected and cleaned
    up.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable
from enum import Enum
from functools import partial
from multiprocessing import util
from typing import Any, cast

from .. import _accel
from .._processes import loops
from .._transport.link import Backend
from .._wire.frames import CorruptHeaderError, Kind, Mode, as_bytes
from ..scheduler import RoundRobin, Scheduler
from ..types import PoolTerminatedError, QueueID, TaskID, describe_error
from .calls import CallQueue
from .errors import explain_start, load_error
from .functions import FunctionTable
from .job import Job
from .queue import Queue
from .routing import RoutedTasks, Router
from .worker import PoolWorker, WorkerOptions

CLOSED = "pool is closed: it takes no more calls, make another"
START_ATTEMPTS = 3
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds until the next attempt, each twice as long
EXIT_PATIENCE = 5.0  # seconds that an exiting interpreter waits for the thread of a pool's loop

log = logging.getLogger(__name__)


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    BROKEN = "broken"
    TERMINATED = "terminated"


OPEN = State.OPEN  # to find an enum's member takes long


class Engine:
    """The workers, queues and unfinished tasks of one pool."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: WorkerOptions,
        channels: Backend,
        scheduler: Scheduler,
    ) -> None:
        self.loop = loop
        self._new_future = loop.create_future
        self.state = State.OPEN
        self.queues: dict[QueueID, Queue] = {}
        self.workers: dict[PoolWorker, QueueID] = {}
        self.functions = FunctionTable(_accel.dumps)
        self._options = options
        self._channels = channels
        self._scheduler = scheduler
        # with one queue and the default scheduler the answer is known: it is not asked per task
        self._only: Queue | None = None
        self._task_ids = itertools.count(1)
        self._open: set[CallQueue | Job] = set()
        self._to_flush: set[PoolWorker] = set()  # those that were sent cancellations in this turn
        self._ever_ready = False
        self._failed_starts = 0  # in a row
        self._early_deaths = 0  # workers, in a row, that died young and had not begun a task
        self._pending_restarts: list[
            QueueID
        ] = []  # the queues of workers that the system refused (ENGINE-2)
        self._pause = FIRST_PAUSE
        self._next_try: asyncio.TimerHandle | None = None
        self._reason: BaseException | None = None
        self._pid = os.getpid()
        self._gone = asyncio.Event()

    # -- workers -------------------------------------------------------------------------------

    def start(self, processes: int, queues: int) -> None:
        """Create the queues and their first workers, telling the scheduler of each.

        If that fails the pool is broken: the scheduler already counts what is not there.
        """
        try:
            for _ in range(queues):
                queue = Queue(self.loop)
                self.queues[self._scheduler.register_queue(queue)] = queue
            if queues == 1 and type(self._scheduler) is RoundRobin:
                (self._only,) = self.queues.values()
            qids = list(self.queues)
            for at in range(processes):
                self._add_worker(qids[at % queues])
                self._scheduler.register_process(qids[at % queues])
        except Exception as error:
            # not the error itself, whose traceback leads here
            self._break(
                RuntimeError(
                    f"the pool could not be started ({describe_error(error)}): make another"
                )
            )
            raise
        except BaseException:
            self.terminate()
            raise

    def _add_worker(self, qid: QueueID) -> None:
        link, end = self._channels.create()
        try:
            worker = PoolWorker(self._options, link, end)
            queue = self.queues[qid]
            link.start(
                self.loop,
                partial(queue.on_frame, worker, self._on_notice),
                on_room=partial(queue.serve, worker),
                on_broken=worker.mark_corrupt,
                on_drained=partial(queue.on_drained, worker),
            )
            worker.launch(self.loop, self._on_exit)
        except BaseException:
            link.close()
            raise
        finally:
            end.release()
        self.workers[worker] = qid
        queue.workers.append(worker)

    def _on_notice(self, worker: PoolWorker, kind: int, count: int, payload: Any) -> None:
        """A frame that is not an answer."""
        if kind == Kind.NEED_WORK:
            worker.credit.need_work(count)
        elif kind == Kind.READY:
            self._on_ready(worker)
        elif kind == Kind.BROKEN:
            self._break(cast("BaseException", load_error(payload)))  # a start has no stages
        elif kind == Kind.LEAVING:
            threads = str(as_bytes(payload), "utf-8", "replace")
            worker.begin_exit(threads, lambda: self._on_lingering(worker))
        else:
            raise CorruptHeaderError(f"frame of kind {kind} from a worker")

    def _on_ready(self, worker: PoolWorker) -> None:
        worker.ready = self._ever_ready = True
        worker.ready_since = self.loop.time()
        self._failed_starts = 0
        self._pause = FIRST_PAUSE

    def _on_exit(self, worker: PoolWorker) -> None:
        """A worker process has ended, for whatever reason."""
        worker.link.drain_dead()
        qid = self.workers.pop(worker, None)
        if qid is None:  # a result that was unpickled has dropped the pool: it was killed meanwhile
            return
        queue = self.queues[qid]
        queue.on_death(worker)
        worker.link.close()
        if self._wants_workers() and not worker.replaced:
            if worker.ready:
                self._on_lost(worker, qid)
            else:
                self._on_failed_start(worker, qid)
        queue.dispatch_all()
        self._check_finished()

    def _on_lingering(self, worker: PoolWorker) -> None:
        """ENGINE-2: a worker that has done its work is slow to exit."""
        if worker in self.workers and self._wants_workers():
            worker.replaced = True
            qid = self.workers[worker]
            self._replace(qid)
            self.queues[qid].dispatch_all()

    def _wants_workers(self) -> bool:
        return self.state is State.OPEN or (self.state is State.CLOSING and bool(self._open))

    def _on_lost(self, worker: PoolWorker, qid: QueueID) -> None:
        """ENGINE-2: replace a worker; not for ever at once if none of them lives to begin a
        task."""
        age = self.loop.time() - worker.ready_since
        self._early_deaths = (
            0 if worker.link.started or age > FIRST_PAUSE else self._early_deaths + 1
        )
        if self._early_deaths <= START_ATTEMPTS:
            self._replace(qid)
        else:
            self._pending_restarts.append(qid)
            self._try_again_later()

    def _on_failed_start(self, worker: PoolWorker, qid: QueueID) -> None:
        """ENGINE-2. A signal may have come from outside; an exit is the worker's own doing."""
        self._failed_starts += 1
        exited = worker.exitcode is None or worker.exitcode >= 0
        if exited and not self._ever_ready:
            self._break(explain_start(worker.pid, worker.exitcode))
        elif self._failed_starts < START_ATTEMPTS:
            self._replace(qid)
        else:
            self._do_without(qid, explain_start(worker.pid, worker.exitcode))

    def _replace(self, qid: QueueID) -> None:
        """Start a worker, or see to it that one is started later (ENGINE-2)."""
        try:
            self._add_worker(qid)
        except Exception as error:  # noqa: BLE001 - the system's, or of pickling initargs: told
            self._do_without(qid, error)

    def _do_without(self, qid: QueueID, error: BaseException) -> None:
        """A worker cannot be started now: try again later, or give up if there are no others
        (ENGINE-2)."""
        if self.queues[qid].workers:
            log.error("a worker could not be started, its work is left to others", exc_info=error)
            self._pending_restarts.append(qid)
            self._try_again_later()
        else:
            self._break(error)

    def _try_again_later(self) -> None:
        if self._next_try is None:
            self._next_try = self.loop.call_later(self._pause, self._start_pending)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start_pending(self) -> None:
        """Start the workers that are missing, up to the first that is refused again."""
        missing, self._pending_restarts = self._pending_restarts, []
        self._next_try = None
        while missing and not self._pending_restarts and self.state in (State.OPEN, State.CLOSING):
            qid = missing.pop(0)
            self._replace(qid)
            self.queues[qid].dispatch_all()
        self._pending_restarts += missing

    def _drop_pending_restarts(self) -> None:
        self._pending_restarts.clear()
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None

    # -- calls ---------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise what broke the pool, or RuntimeError, unless it takes calls."""
        if self._reason is not None:
            raise BaseException.with_traceback(self._reason, None)  # or each call would add to it
        if self.state is not State.OPEN:
            raise RuntimeError(CLOSED)

    def submit_job(self, job: Job) -> None:
        """Give all tasks of a job to the workers."""
        if self.state is not OPEN:  # its input was asked for items, and may have ended the pool
            job.source.stop()
            self.check_open()
        if job.done:
            return
        self._open.add(job)
        if self._only is not None:
            self._only.offer(job)
            return
        job.router = Router(job, self._assign, self._complete)
        if job.left is None:
            job.router.route(1)
        else:
            job.router.route_all()

    def submit_call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        retries: int = 0,
    ) -> tuple[asyncio.Future[Any], CallQueue]:
        """Give one `apply` to the workers: its result, and the calls that it is one of."""
        function = self.functions.of(func)
        future: asyncio.Future[Any] = self._new_future()
        queue = self._only
        if queue is None:
            tid = TaskID(next(self._task_ids))
            queue = self._queue(self._scheduler.schedule_task(tid, func, args, kwds))
            future.add_done_callback(lambda _: self._complete(tid))
        if self.state is not OPEN:  # code of the user's was run above, and may have ended the pool
            future.cancel()
            self.check_open()
        calls = queue.calls.get(function.id)
        if calls is None:
            calls = CallQueue(function, self.on_settled, persistent=function.permanent)
            queue.calls[function.id] = calls
            self._open.add(calls)  # ENGINE-1
        if retries:
            calls.allow(future, retries)
        queue.call(calls, future, (args, kwds))
        return future, calls

    def cancel_call(self, calls: CallQueue, future: asyncio.Future[Any]) -> None:
        """The caller gave up on one of `calls`: stop it wherever it is (feed.py, FEED-4)."""
        chunk = calls.chunk_of(future)
        for worker in self.workers if chunk is not None else ():
            assert chunk is not None
            if worker.chunks.get(chunk.first) is chunk:
                offset = chunk.offset_of(future)
                worker.link.send(Kind.CANCEL, chunk_id=chunk.first, offset=offset)
                if not self._to_flush:
                    self.loop.call_soon(self._flush_cancelled)
                self._to_flush.add(worker)
                return
        for queue in self.queues.values():
            if queue.retry_queue.drop(future):
                queue.dispatch_all()  # a worker may have been kept free for it
                return

    def _flush_cancelled(self) -> None:
        """Wake each worker once for all cancellations of a turn."""
        workers, self._to_flush = self._to_flush, set()
        for worker in workers:
            worker.link.flush()

    def on_more(self, job: Job) -> None:
        """A job that had nothing to take may have more now."""
        if job not in self._open:
            return
        if job.router is not None:
            job.router.route(1)
        elif self._only is not None:
            self._only.offer(job)

    def reader_gone(self, job: Job) -> None:
        """An `async for` over the job's results was dropped; may be called from any thread."""
        if not job.done and self.loop.is_running():
            self.loop.call_soon_threadsafe(job.reader_gone)

    def drop_unread(self, job: Job) -> None:
        """No reader of the job's results can begin any more; may be called from any thread.

        A job that is done needs nothing, and must not wait for the loop: with it go its results.
        """
        if job.mark_unreferenced() and self.loop.is_running():
            self.loop.call_soon_threadsafe(job.drop_unread)

    def on_settled(self, source: CallQueue | Job) -> None:
        """The last task of a feed is settled."""
        self._open.discard(source)
        for queue in self.queues.values():
            queue.forget(source, source.function)
        self._check_finished()

    def _assign(self, router: Router, item: Any) -> tuple[TaskID, RoutedTasks]:
        tid = TaskID(next(self._task_ids))
        job = router.job
        args = item if job.mode is Mode.STAR else (item,)
        qid = self._scheduler.schedule_task(tid, job.func, args, {})
        share = router.shares.get(qid)
        if share is None:
            share = router.shares[qid] = RoutedTasks(job, router, self._queue(qid).offer)
        return tid, share

    def _complete(self, tid: TaskID) -> None:
        try:
            self._scheduler.complete_task(tid)
        except Exception:  # the task has ended all the same
            log.exception("complete_task of the scheduler failed")

    def _queue(self, qid: QueueID) -> Queue:
        queue = self.queues.get(qid)
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

    async def join(self) -> None:
        """Wait until every worker has gone; the pool must have been closed or terminated."""
        await self._gone.wait()

    def abandon(self) -> None:
        """The pool object is gone, or the interpreter ends; may be called from any thread.

        A pool that was closed finishes what it was given, as long as its loop runs.
        """
        count = len(self.workers) + len(self._pending_restarts)
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
        self._drop_pending_restarts()
        workers, self.workers = self.workers, {}
        for worker in workers:
            worker.kill_now()
        self._open.clear()  # they lead back here
        for queue in self.queues.values():
            queue.clear()
        self._channels.close()

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

    def _break(self, reason: BaseException) -> None:
        """Workers cannot be started: fail every call with the reason, now and from now on."""
        if self.state in (State.OPEN, State.CLOSING):
            self._reason = reason
            self._give_up(State.BROKEN, reason)

    def _give_up(self, state: State, error: BaseException) -> None:
        self.state = state
        self._drop_pending_restarts()
        sources, self._open = self._open, set()
        idle = {worker for worker in self.workers if not worker.chunks}
        for queue in self.queues.values():
            queue.clear()
        for source in sources:
            source.fail_all(error)
        for worker in list(self.workers):
            worker.end(idle=worker in idle)
        self._check_finished()

    def _check_finished(self) -> None:
        """ENGINE-1: let the workers go when nothing is left to do, and tell when they have gone."""
        if self.state is State.OPEN or self._open:
            return
        self._drop_pending_restarts()
        for worker in self.workers:
            worker.leave()
        if not self.workers:
            for queue in self.queues.values():
                queue.clear()
            self._channels.close()
            self._gone.set()
