"""The queue of a pool whose workers run plain functions in threads: `Pool(threads=...)`.

A source whose tasks need a thread has to wait for one; those behind it in line need not (QUEUE-3,
CREDIT-9). So the line has two parts, and the part of those that need a thread is hidden while a
worker is served that has none free: to look at each of them would take as long as there are many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from heapq import merge
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from .calls import CallQueue
from .feed import TaskOwner, TaskSource
from .functions import Function
from .line import Line
from .queue import Queue

if TYPE_CHECKING:
    from .worker import PoolWorker

SourceT = TypeVar("SourceT", bound=TaskSource)


def needs_thread(owner: TaskOwner) -> bool:
    """Whether the tasks run in threads (THREAD-1)."""
    return owner.function.blocking and not owner.function.for_streams


class ThreadedLine(Generic[SourceT]):
    """Task sources in line, of which those that need a thread can be hidden for a while.

    It has the operations of a deque that the queue uses. The length, the first source and its
    removal are of those that are not hidden.
    """

    def __init__(self) -> None:
        self.hides_threaded = False
        self._threaded: deque[SourceT] | Line[SourceT] = deque()
        self._others: deque[SourceT] | Line[SourceT] = deque()
        self._places: dict[SourceT, int] = {}  # they ascend in each part, within a priority
        self._first = self._last = 0

    def __len__(self) -> int:
        return len(self._others) + (0 if self.hides_threaded else len(self._threaded))

    def __bool__(self) -> bool:
        return len(self) > 0

    @property
    def total(self) -> int:
        """How many there are with those that are hidden."""
        return len(self._places)

    def __contains__(self, source: object) -> bool:
        return source in self._places

    def __iter__(self) -> Iterator[SourceT]:
        """All, with those that are hidden."""
        return merge(self._threaded, self._others, key=self._rank)

    def __getitem__(self, at: int) -> SourceT:
        return self._front()[at]

    def append(self, source: SourceT) -> None:
        """Put a source to the end."""
        self._last += 1
        self._places[source] = self._last
        self._part_of(source).append(source)

    def appendleft(self, source: SourceT) -> None:
        """Put a source to the front."""
        self._first -= 1
        self._places[source] = self._first
        self._part_of(source).appendleft(source)

    def popleft(self) -> SourceT:
        """Take out the first source."""
        source = self._front().popleft()
        del self._places[source]
        return source

    def rotate(self, n: int) -> None:
        """Put the first source to the end: `n` is -1."""
        self.append(self.popleft())

    def clear(self) -> None:
        """Take out all sources."""
        self._threaded.clear()
        self._others.clear()
        self._places.clear()

    def respect_priorities(self) -> None:
        """From now on, the first source is one of the highest priority."""
        if isinstance(self._threaded, deque) and isinstance(self._others, deque):
            self._threaded, self._others = Line(self._threaded), Line(self._others)

    def _rank(self, source: SourceT) -> tuple[int, int]:
        return -source.options.priority, self._places[source]

    def _part_of(self, source: SourceT) -> deque[SourceT] | Line[SourceT]:
        return self._threaded if needs_thread(source) else self._others

    def _front(self) -> deque[SourceT] | Line[SourceT]:
        """The part in which the first source is."""
        threaded, others = self._threaded, self._others
        if self.hides_threaded or not threaded:
            return others
        if not others or self._rank(threaded[0]) < self._rank(others[0]):
            return threaded
        return others


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
