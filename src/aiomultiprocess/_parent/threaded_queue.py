"""The queue of a pool whose workers run plain functions in threads: `Pool(threads=...)`.

A source whose tasks need a thread has to wait for one; those behind it in line need not (QUEUE-3,
CREDIT-9). So sources that need one are hidden while a worker is served that has none free (line.py,
LINE-2): to look at each of them would take as long as there are many.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from .calls import CallQueue
from .feed import TaskSource
from .functions import Function
from .line import ThreadedLine, needs_thread
from .queue import Queue

if TYPE_CHECKING:
    from .worker import PoolWorker


class ThreadedQueue(Queue):
    """A queue that serves coroutines past plain functions, while these wait for a thread."""

    _sources: ThreadedLine[TaskSource]
    _call_backlog: ThreadedLine[CallQueue]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._sources, self._call_backlog = ThreadedLine(), ThreadedLine()

    def _respect_priorities(self) -> None:
        self._sources.respect_priorities()
        self._call_backlog.respect_priorities()

    def _serve_sources(self, worker: PoolWorker) -> None:
        line = self._sources
        worker.credit.look_at_threads(monotonic())
        hid = line.hides_threaded  # by a call of this method that is under way: for another worker
        line.hides_threaded = False
        try:
            left = len(line)
            while left > 0 and line:
                left -= 1
                if self._serve_first(worker):
                    continue
                if line.hides_threaded or not self._waits_for_thread(worker, line[0]):
                    break
                line.hides_threaded = True
                left = min(left, len(line))
        finally:
            line.hides_threaded = hid

    def _serve_first(self, worker: PoolWorker) -> bool:
        """As `_serve_next`; a source that has no tasks any more leaves the line."""
        source = self._sources[0]
        if source.left == 0:
            self._sources.popleft()
            source.queued = False
            return True
        if needs_thread(source):
            worker.credit.note_threaded(source.function.id)
        return self._serve_next(worker)

    def _waits_for_thread(self, worker: PoolWorker, source: TaskSource) -> bool:
        return needs_thread(source) and worker.credit.free_threads() <= 0

    def _let_calls_overtake(self, worker: PoolWorker) -> None:
        line, backlog = self._sources, self._call_backlog
        hid = line.hides_threaded, backlog.hides_threaded
        line.hides_threaded = backlog.hides_threaded = worker.credit.threads_are_taken
        try:
            super()._let_calls_overtake(worker)
        finally:
            line.hides_threaded, backlog.hides_threaded = hid

    def _count_in_line(self) -> int:
        return self._sources.total

    def _fair_share(self, worker: PoolWorker, source: TaskSource, room: int) -> int:
        """QUEUE-6: of tasks that need a thread, as many as the worker has free ones are shared.

        Only the workers that have some count for these: the others could start none.
        """
        share = super()._fair_share(worker, source, room)
        if share >= room or not needs_thread(source):
            return share
        free = min(room, worker.credit.free_threads())
        if free <= max(share, 0):
            return share
        able = [other for other in self.workers if other.credit.free_threads() > 0]
        return max(share, self._share_among(able, worker, source, free))

    def _note_function(self, worker: PoolWorker, function: Function) -> None:
        worker.credit.note_threaded(function.id)


def threaded(kind: type[Queue]) -> type[Queue]:
    """A class of queues as `kind`, over workers that have threads."""
    return type("ThreadedQueue", (ThreadedQueue, kind), {})
