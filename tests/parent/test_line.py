"""Lines with priorities behave as a deque for each, and can hide sources (LINE-1, LINE-2)."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_queue import Setting, Worker, ignore

import workload
from aiomultiprocess import _accel
from aiomultiprocess._arguments import TaskOptions
from aiomultiprocess._parent.calls import CallQueue
from aiomultiprocess._parent.feed import TaskSource
from aiomultiprocess._parent.functions import FunctionTable
from aiomultiprocess._parent.job import Job
from aiomultiprocess._parent.line import Line, ThreadedLine
from aiomultiprocess._parent.queue import Queue
from aiomultiprocess._parent.sources import source_of
from aiomultiprocess._wire.frames import Mode


class Source:
    """What a line reads of a task source."""

    def __init__(self, name: object, priority: int, threaded: bool = False) -> None:
        self.name = name
        self.options = TaskOptions(priority=priority)
        self.function = SimpleNamespace(blocking=threaded, for_streams=False)

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


# -- the line in a queue -------------------------------------------------------------------------


class PrioritizedMap(Setting):
    """A worker with a backlog of quick tasks, of a map that has a priority."""

    def __init__(self, priority: int) -> None:
        super().__init__()
        self.job.options = TaskOptions(priority=priority)
        self.queue._respect_priorities()

    def chunks_after_calls(self, priority: int) -> list[tuple[int, int]]:
        """What the worker is sent when ten calls of a priority come."""
        before = len(self.sent)
        function = self.table.of(workload.two)
        options = TaskOptions(priority=priority)
        calls = CallQueue(function, lambda _: None, options)
        for _ in range(10):
            future = asyncio.get_running_loop().create_future()
            self.queue.call(calls, future, ((), {}))
        self.queue.dispatch_all()
        return [(task, count) for task, count in self.sent[before:] if task == function.id]


@pytest.mark.parametrize("priority", [-7, 0, 7])
async def test_calls_overtake_a_map_of_their_priority(priority: int) -> None:
    assert PrioritizedMap(priority).chunks_after_calls(priority)


async def test_calls_overtake_a_map_of_a_lower_priority() -> None:
    assert PrioritizedMap(1).chunks_after_calls(2)


async def test_calls_do_not_overtake_a_map_of_a_higher_priority() -> None:
    assert PrioritizedMap(2).chunks_after_calls(1) == []


@pytest.mark.parametrize("priority", [-7, 7])
async def test_few_items_with_a_priority_are_spread_evenly(priority: int) -> None:
    queue = Queue(asyncio.get_running_loop())
    workers = [Worker() for _ in range(3)]
    queue.workers.extend(workers)  # type: ignore[arg-type]
    function = FunctionTable(_accel.dumps).of(workload.double)
    loop = asyncio.get_running_loop()
    options = TaskOptions(priority=priority)
    for _ in range(2):
        job = Job(workload.double, function, Mode.MAP, ignore, ignore, options, loop=loop)
        job.open(source_of(range(3), ignore))
        queue.offer(job)
    queue.dispatch_all()
    assert [worker.credit.in_flight for worker in workers] == [1, 1, 1]


def test_a_line_is_iterated_in_its_order_and_gives_up_any_source() -> None:
    sources = [source(at, priority) for at, priority in enumerate((0, 5, -1, 5, 0))]
    line = Line(sources)
    assert list(line) == [sources[1], sources[3], sources[0], sources[4], sources[2]]
    for taken in (sources[3], sources[2], sources[1]):
        line.remove(taken)
    assert list(line) == [sources[0], sources[4]]
    assert len(line) == 2
    with pytest.raises(ValueError, match="not in line"):
        line.remove(sources[2])
    assert line.popleft() is sources[0]


@pytest.mark.parametrize("priorities", [False, True])
def test_a_line_that_can_hide_what_needs_a_thread_keeps_its_order(priorities: bool) -> None:
    """A plain list is the model: some thousand operations at random."""
    rng = random.Random(5)
    line: ThreadedLine[TaskSource] = ThreadedLine()
    if priorities:
        line.respect_priorities()
    model: list[Source] = []

    def first(shown: list[Source]) -> Source:
        return max(shown, key=lambda source: source.options.priority)

    for name in range(5000):
        new = Source(name, rng.choice((0, 1, -3)) if priorities else 0, rng.random() < 0.5)
        line.hides_threaded = rng.random() < 0.3
        shown = [one for one in model if not (line.hides_threaded and one.function.blocking)]
        assert (len(line), bool(line), line.total) == (len(shown), bool(shown), len(model))
        what = rng.choice(("append", "appendleft", "popleft", "rotate"))
        if what == "append":
            line.append(cast("TaskSource", new))
            model.append(new)
        elif what == "appendleft":
            line.appendleft(cast("TaskSource", new))
            model.insert(0, new)
        elif shown:
            assert line[0] is first(shown)
            model.remove(first(shown))
            if what == "popleft":
                assert line.popleft() is first(shown)
            else:
                line.rotate(-1)
                model.append(first(shown))
    if model:
        line.append(cast("TaskSource", model[0]))  # it is in line: nothing changes
        line.appendleft(cast("TaskSource", model[-1]))
    in_order = sorted(model, key=lambda source: -source.options.priority)
    assert list(line) == in_order
    assert all(source in line for source in model)
    line.clear()
    assert not list(line)
    assert line.total == 0
