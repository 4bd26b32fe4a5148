"""The line of a queue whose task sources have priorities.

As long as every source in a queue has priority 0, its line is a plain deque (queue.py). The first
source of another priority makes it a `Line`, which has the operations of a deque that the queue
uses.

LINE-1  Sources of a higher priority stand before those of a lower one; those of one priority are in
    the order that a deque would give them. "The front" and "the end" are those of one priority.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Generic, TypeVar

from .feed import TaskSource

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
