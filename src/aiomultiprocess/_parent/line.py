"""The lines of a queue in which some task sources go before others.

As long as every source in a queue has priority 0, its line is a plain deque (queue.py). The first
source of another priority makes it a `Line`. A queue over workers that have threads has a
`ThreadedLine` (threaded_queue.py). Both have the operations of a deque that the queue uses.

LINE-1  Sources of a higher priority stand before those of a lower one; those of one priority are in
    the order that a deque would give them. "The front" and "the end" are those of one priority.
LINE-2  While sources that need a thread are hidden, the line is as if they were not there; they
    keep their places among the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, merge
from itertools import chain
from typing import Generic, TypeVar

from .feed import TaskOwner, TaskSource

SourceT = TypeVar("SourceT", bound=TaskSource)


class Line(Generic[SourceT]):
    """Task sources in the order of their priorities (LINE-1)."""

    def __init__(self, sources: Iterable[SourceT]) -> None:
        self._parts: dict[int, deque[SourceT]] = {}  # by priority; none is empty
        self._order: list[int] = []  # a heap of their priorities, negated: the highest first
        self._count = 0
        for source in sources:
            self.append(source)

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def __iter__(self) -> Iterator[SourceT]:
        return chain.from_iterable(self._parts[-priority] for priority in sorted(self._order))

    def __contains__(self, source: object) -> bool:
        return any(source in part for part in self._parts.values())

    def __getitem__(self, at: int) -> SourceT:
        if at:
            raise IndexError("only the first source of a line can be looked at")
        return self._first()[0]

    def append(self, source: SourceT) -> None:
        """Put a source to the end of its priority."""
        self._grow_part_of(source).append(source)

    def appendleft(self, source: SourceT) -> None:
        """Put a source to the front of its priority."""
        self._grow_part_of(source).appendleft(source)

    def popleft(self) -> SourceT:
        """Take out the first source of the highest priority."""
        part = self._first()
        source = part.popleft()
        self._count -= 1
        if not part:
            del self._parts[-heappop(self._order)]
        return source

    def remove(self, source: SourceT) -> None:
        """Take out a source, wherever it is. ValueError if it is not in line."""
        priority = source.options.priority
        if priority not in self._parts:
            raise ValueError(f"{source!r} is not in line")
        part = self._parts[priority]
        part.remove(source)
        self._count -= 1
        if not part:
            del self._parts[priority]
            self._order.remove(-priority)
            heapify(self._order)

    def rotate(self, n: int) -> None:
        """Put the first source to the end of its priority: `n` is -1."""
        self._first().rotate(n)

    def clear(self) -> None:
        """Take out all sources."""
        self._parts.clear()
        self._order.clear()
        self._count = 0

    def _first(self) -> deque[SourceT]:
        if not self._order:
            raise IndexError("the line is empty")
        return self._parts[-self._order[0]]

    def _grow_part_of(self, source: SourceT) -> deque[SourceT]:
        self._count += 1
        priority = source.options.priority
        if priority not in self._parts:
            self._parts[priority] = deque()
            heappush(self._order, -priority)
        return self._parts[priority]


def needs_thread(owner: TaskOwner) -> bool:
    """Whether the tasks run in threads (THREAD-1)."""
    return owner.function.blocking and not owner.function.for_streams


class ThreadedLine(Generic[SourceT]):
    """Task sources in line; those that need a thread can be hidden for a while (LINE-2)."""

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
        """Put a source to the end, unless it is in line: an interrupt may have put it there."""
        if source in self._places:
            return
        self._last += 1
        self._places[source] = self._last
        self._part_of(source).append(source)

    def appendleft(self, source: SourceT) -> None:
        """Put a source to the front, unless it is in line."""
        if source in self._places:
            return
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
