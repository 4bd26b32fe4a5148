"""The line of task sources with priorities behaves as a deque for each priority (LINE-1)."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, cast

import pytest

from aiomultiprocess._arguments import TaskOptions
from aiomultiprocess._parent.feed import TaskSource
from aiomultiprocess._parent.line import Line


class Source:
    """What a line reads of a task source."""

    def __init__(self, name: object, priority: int) -> None:
        self.name = name
        self.options = TaskOptions(priority=priority)

    def __repr__(self) -> str:
        return f"{self.name} of {self.options.priority}"


def source(name: object, priority: int = 0) -> TaskSource:
    return cast("TaskSource", Source(name, priority))


def drained(line: Line[TaskSource]) -> list[Any]:
    return [cast("Source", line.popleft()).name for _ in range(len(line))]


def test_sources_of_a_higher_priority_stand_first() -> None:
    line = Line([source("low", -1), source("high", 2), source("usual")])
    line.append(source("highest", 10**30))
    assert drained(line) == ["highest", "high", "usual", "low"]


def test_sources_of_one_priority_keep_their_order() -> None:
    line = Line([source(1), source("high", 1), source(2)])
    line.append(source(3))
    line.appendleft(source(0))
    assert drained(line) == ["high", 0, 1, 2, 3]


def test_the_front_is_the_front_of_a_priority() -> None:
    line = Line([source("high", 1), source("usual")])
    line.appendleft(source("first of the usual"))
    assert cast("Source", line[0]).name == "high"
    assert drained(line) == ["high", "first of the usual", "usual"]


def test_only_the_highest_priority_is_rotated() -> None:
    line = Line([source("a", 1), source("b", 1), source("c"), source("d")])
    line.rotate(-1)
    assert drained(line) == ["b", "a", "c", "d"]


def test_a_line_knows_whom_it_has() -> None:
    one, other = source(1), source(1)
    line = Line([one])
    assert one in line
    assert other not in line
    assert len(line) == 1
    line.clear()
    assert not line
    assert one not in line


def test_an_empty_line_has_no_first_source() -> None:
    line: Line[TaskSource] = Line([])
    for look in (lambda: line[0], line.popleft):
        with pytest.raises(IndexError, match="empty"):
            look()
    with pytest.raises(IndexError, match="only the first"):
        line[1]


@pytest.mark.parametrize("seed", range(20))
def test_a_line_equals_one_deque_for_each_priority(seed: int) -> None:
    rng = random.Random(seed)
    line: Line[TaskSource] = Line([])
    model: dict[int, deque[TaskSource]] = {}
    for number in range(500):
        first = model[max(model)] if model else None
        step = rng.choice(["append", "appendleft", "popleft", "rotate"])
        if step in ("append", "appendleft"):
            priority = rng.randint(-3, 3)
            added = source(number, priority)
            getattr(line, step)(added)
            getattr(model.setdefault(priority, deque()), step)(added)
        elif first is not None and step == "popleft":
            assert line.popleft() is first.popleft()
            model = {priority: part for priority, part in model.items() if part}
        elif first is not None:
            line.rotate(-1)
            first.rotate(-1)
        assert len(line) == sum(map(len, model.values()))
        assert bool(line) == bool(model)
        if model:
            assert line[0] is model[max(model)][0]
