"""The supervisor: it starts the workers of a pool, and replaces those that die.

SUPERVISOR-1  A worker that dies is replaced while there may be work.
SUPERVISOR-2  Replacing is limited. If a worker exits while it starts and none was ever ready, the
    pool is broken and says why. If `START_ATTEMPTS` in a row die while they start, or the system
    refuses one, no other is started at once: the supervisor tries again later while the queue has
    other workers, and where it has none the pool is broken. If more than `START_ATTEMPTS` in a row
    die within `FIRST_PAUSE` seconds of being ready, before they began a task, the next ones are
    started later too, even where there are no others. A worker whose initializer, lifespan or event
    loop raises, or that cannot unpickle what it starts with, reports that itself (BROKEN): the pool
    is broken at once, whatever other workers there are.
SUPERVISOR-3  A worker that has done its work and takes more than a moment to exit is replaced
    before it has (worker.py, POOLWORKER-3): what holds it does not hold up the tasks that wait.
SUPERVISOR-4  Each worker has an index, 0 to the number of workers less one. The worker that
    replaces another has its index, and starts after its exit; or, if that lingers (SUPERVISOR-3),
    after its items and its lifespan have ended. So an index belongs to one initializer, one
    lifespan and one set of items at a time. (SUPERVISOR-5 has the exception to the range.)
SUPERVISOR-5  A worker that is to leave and has nothing but open streams is replaced at once: their
    readers may wait for tasks that no other worker would run. It keeps its index, and exits when
    the streams have ended. Its *place*, a number below that of the workers, passes to the
    replacement, whose index is the number of that place, or, while another worker still has that
    index, one above all places. Streams keep their slots: there is no replacement as long as those
    of a place have `childconcurrency` slots, unless the worker was dismissed and its place is
    wanted again. A worker that lingers with calls that were given up (SUPERVISOR-3) keeps its
    index, too.
SUPERVISOR-6  Ctrl-C may strike at any step here, and the loop may go on. A worker whose start it
    cut short is started later. A worker that has exited is replaced whatever step it struck.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from functools import partial
from typing import Any, Protocol, cast

from .._transport.link import Backend
from .._wire.exceptions import append_note
from .._wire.frames import CorruptHeaderError, Kind, as_bytes
from ..types import QueueID
from .errors import explain_start, load_error
from .kinds import worker_class
from .queue import Queue
from .sharing import pass_again
from .worker import PoolWorker, WorkerOptions

START_ATTEMPTS = 3
NOT_STARTED = "this was raised when a worker was to be started in place of one that has ended"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds until the next attempt, each twice as long

log = logging.getLogger(__name__)


class SupervisedPool(Protocol):
    """What the supervisor needs of the pool whose workers it starts."""

    def wants_workers(self) -> bool:
        """Whether there may be work for a new worker."""

    def break_down(self, reason: BaseException) -> None:
        """Workers cannot be started: fail every call with the reason."""

    def on_worker_gone(self) -> None:
        """A worker has exited, and what it held was settled or put back."""

    def on_worker_replaced(self) -> None:
        """A worker was replaced before its exit."""


class Supervisor:
    """The workers of one pool, by the id of the queue that each serves."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: WorkerOptions,
        channels: Backend,
        queues: dict[QueueID, Queue],
        pool: SupervisedPool,
    ) -> None:
        self.workers: dict[PoolWorker, QueueID] = {}
        self.restarts: Counter[str] = Counter()  # how many workers were replaced, by cause
        self.size = 0  # the number of workers that are wanted: the places below it
        self._loop = loop
        self._options = options
        self._channels = channels
        self._worker_class = worker_class(channels.name)
        self._queues = queues
        self._pool = pool
        self._ever_ready = False
        self._failed_starts = 0  # in a row
        self._early_deaths = 0  # workers, in a row, that died young and had not begun a task
        #: The places of workers that are started later, each with the queue.
        self._pending: list[tuple[int, QueueID]] = []
        self._pause = FIRST_PAUSE
        self._next_try: asyncio.TimerHandle | None = None

    @property
    def worker_count(self) -> int:
        """How many workers there are, those that are started later included."""
        return len(self.workers) + len(self._pending)

    def start_worker(self, place: int, qid: QueueID) -> None:
        """Start the worker of a place (SUPERVISOR-5) for a queue.

        Raises what refuses it: OSError of the system, a pickling error for bad `initargs`.
        """
        link, end = self._channels.create(self._options.concurrency)
        worker: PoolWorker | None = None
        try:
            index = self._index_for(place)
            worker = self._worker_class(self._options, link, end, index, place)
            worker.takes_tasks = not self._ever_ready  # QUEUE-10
            queue = self._queues[qid]
            link.start(
                self._loop,
                partial(queue.on_frame, worker, self._on_notice),
                on_room=partial(queue.serve, worker),
                on_broken=worker.mark_corrupt,
                on_drained=partial(queue.on_drained, worker),
            )
            worker.launch(self._loop, self._on_exit, partial(queue.on_blocked, worker))
            self.workers[worker] = qid
            queue.workers.append(worker)
        except BaseException:
            if worker is not None:
                self._undo_start(worker, qid)
            link.close()
            raise
        finally:
            end.release()

    def _undo_start(self, worker: PoolWorker, qid: QueueID) -> None:
        """SUPERVISOR-6: nothing is left of a worker whose start was cut short."""
        self.workers.pop(worker, None)
        with contextlib.suppress(ValueError):  # it has not come so far
            self._queues[qid].workers.remove(worker)
        worker.undo_launch()

    def _index_for(self, place: int) -> int:
        """The index of a new worker (SUPERVISOR-4, SUPERVISOR-5)."""
        taken = {worker.index for worker in self.workers if not worker.exiting}
        if place not in taken:
            return place
        above = itertools.count(max(place + 1, self.size))
        return next(index for index in above if index not in taken)

    def fill(self, place: int, qid: QueueID) -> None:
        """See to it that a place has a worker, or gets one when its own has exited."""
        for worker in self.workers:
            if worker.place == place and worker.dismissed and worker.streams:
                worker.replaced = True  # SUPERVISOR-5
        if not self._is_held(place) and all(pending != place for pending, _ in self._pending):
            self.start_worker(place, qid)

    def _is_held(self, place: int) -> bool:
        """Whether a place has a worker that is not replaced before its exit."""
        return any(worker.place == place and not worker.replaced for worker in self.workers)

    def dismiss(self, place: int) -> None:
        """Let the worker of a place finish what it holds, and go; it is not replaced."""
        self._pending = [pending for pending in self._pending if pending[0] != place]
        for worker in list(self.workers):
            if worker.place == place:
                worker.dismissed = True
                worker.leave()

    def dismissed_below(self, size: int) -> bool:
        """Whether a worker that was dismissed still has a place that is wanted again."""
        size = min(size, self.size)
        dismissed = [each for each in self.workers if each.dismissed and not each.replaced]
        return any(worker.place < size for worker in dismissed)

    def stop_restarts(self) -> None:
        """Start no worker later."""
        self._pending.clear()
        if self._next_try is not None:
            self._next_try.cancel()
            self._next_try = None

    def kill_all(self) -> None:
        """End the workers here and now, without a loop that would notice their exit."""
        self.stop_restarts()
        workers = list(self.workers)
        self.workers.clear()
        for worker in workers:
            worker.kill_now()

    # -- what a worker reports of itself -------------------------------------------------------

    def _on_notice(self, worker: PoolWorker, kind: int, count: int, payload: Any) -> None:
        """A frame that is no answer to a task."""
        if kind == Kind.READY:
            self._on_ready(worker)
        elif kind == Kind.BROKEN:
            # never a `Failure`: that names a stage of an item, and a start belongs to none
            self._pool.break_down(cast("BaseException", load_error(payload)))
        elif kind == Kind.RETIRING:
            worker.retired = str(as_bytes(payload), "utf-8", "replace")
            worker.leave()
        elif kind == Kind.LEAVING:
            if count:
                worker.leave_lifespan()
                return
            held_by = str(as_bytes(payload), "utf-8", "replace")
            worker.begin_exit(held_by, lambda: self._replace_early(worker))
        elif kind == Kind.HELD:
            self._on_held(worker, count, payload)
        elif kind == Kind.NEED_SHARED:
            pass_again(worker.link, int.from_bytes(as_bytes(payload), "little"))
        elif kind == Kind.LOG:
            from . import logs  # here: few pools need it

            logs.handle(worker.pid, count, payload)
        else:
            raise CorruptHeaderError(f"frame of kind {kind} from a worker")

    def _on_ready(self, worker: PoolWorker) -> None:
        worker.ready = worker.takes_tasks = self._ever_ready = True
        worker.ready_since = self._loop.time()
        self._failed_starts = 0
        self._pause = FIRST_PAUSE
        if not worker.leaving:
            self._queues[self.workers[worker]].on_ready(worker)

    # -- exits and replacements ----------------------------------------------------------------

    def _on_exit(self, worker: PoolWorker) -> None:
        """A worker process has ended, for whatever reason: replace it (SUPERVISOR-1)."""
        worker.leaving = True  # it is sent nothing more, whatever it has said
        try:
            worker.link.drain_dead()
        finally:  # SUPERVISOR-6
            if worker in self.workers:  # else a result that was unpickled has dropped the pool
                self._bury(worker, self.workers[worker])

    def _bury(self, worker: PoolWorker, qid: QueueID) -> None:
        """Settle what a dead worker held, and replace it: each step, whatever one may raise."""
        try:
            del self.workers[worker]
            self._queues[qid].on_death(worker)
        finally:
            try:
                worker.link.close()
            finally:
                self._go_on_without(worker, qid)

    def _go_on_without(self, worker: PoolWorker, qid: QueueID) -> None:
        try:
            self._replace_dead(worker, qid)
        finally:
            try:
                self._queues[qid].dispatch_all()
            finally:
                self._pool.on_worker_gone()

    def _replace_dead(self, worker: PoolWorker, qid: QueueID) -> None:
        if self._wants_replacement(worker):
            if worker.dismissed:  # and its place is wanted again
                self._replace(worker.place, qid)
            elif worker.ready:
                self._on_lost(worker, qid)
            else:
                self._on_failed_start(worker, qid)
        for other in [other for other in self.workers if other.place == worker.place]:
            self._replace_held(other)

    def _wants_replacement(self, worker: PoolWorker) -> bool:
        wanted = worker.place < self.size and not worker.replaced
        if not (wanted and self._pool.wants_workers()):
            return False
        if not worker.dismissed:
            self.restarts[worker.cause] += 1
        return True

    def _on_held(self, worker: PoolWorker, streams: int, payload: Any) -> None:
        """A worker that is to leave has only streams, or only calls that were given up."""
        worker.streams = streams
        if streams:
            self._replace_held(worker)
        else:
            held_by = str(as_bytes(payload), "utf-8", "replace")
            worker.wait_for_calls(held_by, lambda: self._replace_early(worker))

    def _replace_held(self, worker: PoolWorker) -> None:
        """SUPERVISOR-5: replace a worker that only streams keep, if they leave the place a slot."""
        held = sum(other.streams for other in self.workers if other.place == worker.place)
        if worker.streams and (worker.dismissed or held < self._options.concurrency):
            self._replace_early(worker)

    def _replace_early(self, worker: PoolWorker) -> None:
        """Replace a worker before its exit (SUPERVISOR-3, SUPERVISOR-5)."""
        if worker in self.workers and self._wants_replacement(worker):
            worker.replaced = True
            qid = self.workers[worker]
            self._replace(worker.place, qid)
            self._queues[qid].dispatch_all()
            self._pool.on_worker_replaced()

    def _on_lost(self, worker: PoolWorker, qid: QueueID) -> None:
        """SUPERVISOR-2: not at once if one after the other dies before it begins a task."""
        age = self._loop.time() - worker.ready_since
        young = not worker.link.started and age <= FIRST_PAUSE
        self._early_deaths = self._early_deaths + 1 if young else 0
        if self._early_deaths <= START_ATTEMPTS:
            self._replace(worker.place, qid)
        else:
            self._replace_later(worker.place, qid)

    def _on_failed_start(self, worker: PoolWorker, qid: QueueID) -> None:
        """SUPERVISOR-2. A signal may have come from outside; an exit is the worker's own doing."""
        self._failed_starts += 1
        exited = worker.exitcode is None or worker.exitcode >= 0
        if exited and not self._ever_ready:
            self._pool.break_down(explain_start(worker))
        elif self._failed_starts < START_ATTEMPTS:
            self._replace(worker.place, qid)
        else:
            self._do_without(worker.place, qid, explain_start(worker))

    def _replace(self, place: int, qid: QueueID) -> None:
        """Start a worker, or see to it that one is started later."""
        try:
            self.start_worker(place, qid)
        except Exception as error:  # noqa: BLE001 - the system's, or of pickling initargs: logged
            append_note(error, NOT_STARTED)
            self._do_without(place, qid, error)
        except BaseException:  # SUPERVISOR-6
            self._replace_later(place, qid)
            raise

    def _do_without(self, place: int, qid: QueueID, error: BaseException) -> None:
        """A worker cannot be started now: try again later, or give up if there are no others."""
        if self._queues[qid].workers:
            log.error("a worker could not be started, its work is left to others", exc_info=error)
            self._replace_later(place, qid)
        else:
            self._pool.break_down(error)

    def _replace_later(self, place: int, qid: QueueID) -> None:
        self._pending.append((place, qid))
        self._try_later()

    def _try_later(self) -> None:
        if self._next_try is None:
            self._next_try = self._loop.call_later(self._pause, self._start_pending)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start_pending(self) -> None:
        """Start the workers that are missing, up to the first that is refused again."""
        missing, self._pending = self._pending, []
        self._next_try = None
        try:
            while missing and not self._pending and self._pool.wants_workers():
                place, qid = missing[0]
                if not self._is_held(place):  # an interrupt may have left one here twice
                    self._replace(place, qid)
                del missing[0]
                self._queues[qid].dispatch_all()
        except BaseException:  # SUPERVISOR-6
            self._try_later()
            raise
        finally:
            self._pending += missing
