"""When the parent looks at the tasks of a worker, cancels one, and kills the worker (DEADLINE-1 to
DEADLINE-4). Without processes, and with a clock of the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import workload
from aiomultiprocess import _accel
from aiomultiprocess._arguments import TaskOptions
from aiomultiprocess._parent import deadlines
from aiomultiprocess._parent.chunk import Chunk
from aiomultiprocess._parent.deadlines import PAUSE, TICK, Deadlines
from aiomultiprocess._parent.functions import FunctionTable
from aiomultiprocess._wire.frames import TIMED, Kind, Mode

GRACE = 3.0


class Timer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Owner:
    mode = Mode.MAP

    def __init__(self, limit: float | None) -> None:
        self.options = TaskOptions(timeout=limit)
        self.function = FunctionTable(_accel.dumps).of(workload.double)


class World:
    """A worker, its link and its memory, and the loop, at the time `now`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.link = self.counter = self
        self.chunks: dict[int, Any] = {}
        self.table: dict[int, int] = {}
        self.cancelled: list[tuple[int, int, Any]] = []
        self.flushed = self.kills = self.looks = 0
        self.alive = True
        self.pid = 123
        self.deadlines = Deadlines(self, self, GRACE)  # type: ignore[arg-type]

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    @property
    def armed(self) -> list[float]:
        return [timer.when for timer in self.timers if not timer.cancelled]

    def running(self) -> dict[int, int]:
        self.looks += 1
        return dict(self.table)

    def send(self, kind: int, **fields: Any) -> None:
        assert (kind, fields["flags"]) == (Kind.CANCEL, TIMED)
        what = _accel.loads(fields["payload"][0])
        self.cancelled.append((fields["chunk_id"], fields["offset"], what))

    def flush(self) -> None:
        self.flushed += 1

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.kills += 1

    def give(self, first: int, count: int, limit: float | None) -> Chunk:
        """Send a chunk."""
        chunk = Chunk(Owner(limit), range(count), [None] * count, first, 0)  # type: ignore[arg-type]
        self.chunks[first] = chunk
        if limit is not None:
            self.deadlines.sent(limit)
        return chunk

    def start(self, number: int) -> None:
        self.table[number] = int(self.now * 1e9)

    def pass_until(self, when: float) -> None:
        """Let time pass; timers fire on the way."""
        while (due := [timer for timer in self.timers if not timer.cancelled]) and min(
            timer.when for timer in due
        ) <= when:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = max(self.now, when)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(deadlines, "monotonic", lambda: world.now)
    yield world
    assert len(world.armed) <= 1  # one timer a worker


def test_a_task_is_cancelled_after_its_limit_and_killed_after_the_grace_period(
    world: World,
) -> None:
    world.give(0, 5, 1.0)
    world.start(3)
    world.pass_until(1001.0)
    assert world.cancelled == []
    world.pass_until(1001.0 + 3 * TICK)
    assert world.cancelled == [(0, 2, ("item 2 of a call of workload.double", 1.0))]
    assert world.flushed
    assert world.deadlines.is_over(3)
    assert not world.deadlines.is_over(2)
    world.pass_until(1003.9)
    assert not world.kills
    world.pass_until(1004.1)
    assert world.kills == 1
    assert len(world.cancelled) == 1
    assert "item 2 of a call of workload.double" in world.deadlines.why_killed
    assert world.armed == []
    world.give(5, 1, 1.0)
    assert world.armed == []


def test_time_runs_from_the_start_of_a_task(world: World) -> None:
    world.give(0, 2, 1.0)
    world.pass_until(1005.0)
    world.start(1)
    world.pass_until(1005.9)
    assert world.cancelled == []
    world.pass_until(1006.1)
    assert len(world.cancelled) == 1


def test_a_task_that_ended_or_was_reported_is_left_alone(world: World) -> None:
    chunk = world.give(0, 3, 1.0)
    world.start(1)
    chunk.report(0, 1)  # and the worker has not freed its entry yet
    world.start(2)
    world.pass_until(1000.5)
    del world.table[2]  # ended, not reported
    world.pass_until(1010.0)
    assert (world.cancelled, world.kills) == ([], 0)


def test_a_task_that_ends_within_the_grace_period_costs_nothing(world: World) -> None:
    world.give(0, 1, 1.0)
    world.start(1)
    world.pass_until(1001.1)
    assert world.deadlines.is_over(1)
    del world.table[1]
    world.pass_until(1010.0)
    assert not world.kills
    assert not world.deadlines.is_over(1)


def test_tasks_without_a_limit_and_numbers_that_were_never_sent_are_ignored(world: World) -> None:
    world.give(10, 2, None)
    world.give(12, 2, 1.0)
    for number in (1, 10, 11, 12, 15, 2**64 - 1):
        world.start(number)
    world.pass_until(1010.0)
    assert (world.cancelled, world.kills) == ([], 0)
    world.start(13)
    world.pass_until(1011.1)
    assert [(chunk, offset) for chunk, offset, _ in world.cancelled] == [(12, 0)]


def test_each_of_several_limits_holds(world: World) -> None:
    world.give(0, 1, 5.0)
    world.give(1, 1, 1.0)
    world.start(1)
    world.start(2)
    world.pass_until(1001.1)
    assert [chunk for chunk, _, _ in world.cancelled] == [1]
    del world.table[2], world.chunks[1]
    world.pass_until(1005.1)
    assert [chunk for chunk, _, _ in world.cancelled] == [1, 0]


def test_the_timer_rests_while_no_task_with_a_limit_is_held(world: World) -> None:
    world.give(0, 1, 1.0)
    del world.chunks[0]
    world.give(1, 1, None)
    world.pass_until(1002.0)
    assert world.armed == []
    world.give(2, 1, 1.0)
    assert world.armed


def test_many_chunks_arm_the_timer_once(world: World) -> None:
    for first in range(1000):
        world.give(first, 1, 1.0)
        world.now += 0.0001
    assert len(world.timers) == 1
    world.pass_until(world.now + 10.0)
    assert world.looks <= 11  # at most one in each limit, as none was started


def test_tasks_that_start_one_after_the_other_are_not_looked_at_one_by_one(world: World) -> None:
    world.give(0, 1000, 1.0)
    for number in range(1, 1001):
        world.start(number)
        world.now += 0.001
    world.pass_until(1005.0)
    assert len(world.cancelled) == 1000
    assert world.looks <= 1.2 / PAUSE


def test_a_very_long_limit_is_one(world: World) -> None:
    world.give(0, 1, 1e9)
    assert world.armed[0] < 1000.0 + 1e6
    world.start(1)
    world.pass_until(1000.0 + 1e6)
    assert (world.cancelled, world.kills) == ([], 0)
    assert world.armed


def test_a_late_parent_gives_the_whole_grace_period(world: World) -> None:
    """DEADLINE-3."""
    world.give(0, 1, 1.0)
    world.start(1)
    timer = world.timers.pop()
    world.now = 1100.0  # the loop was blocked
    timer.callback()
    assert (len(world.cancelled), world.kills) == (1, 0)
    world.pass_until(1102.9)
    assert not world.kills
    world.pass_until(1103.1)
    assert world.kills == 1


def test_a_dead_worker_is_not_judged(world: World) -> None:
    """DEADLINE-2."""
    world.give(0, 1, 1.0)
    world.start(1)
    world.alive = False
    world.pass_until(1010.0)
    assert (world.cancelled, world.kills, world.armed) == ([], 0, [])


def test_after_the_end_no_timer_is_left(world: World) -> None:
    world.give(0, 1, 1.0)
    world.deadlines.stop()
    assert world.armed == []
    world.deadlines.sent(1.0)
    assert world.armed == []


def test_an_interrupt_does_not_end_the_watch(world: World) -> None:
    world.give(0, 1, 1.0)
    world.start(1)
    timer = world.timers.pop()
    world.now = timer.when
    world.running = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        timer.callback()
    del world.running
    world.pass_until(1001.2)
    assert len(world.cancelled) == 1


def interrupted() -> dict[int, int]:
    raise KeyboardInterrupt


async def test_the_timer_runs_on_a_real_loop() -> None:
    world = World()
    done = asyncio.get_running_loop().create_future()
    world.kill = lambda: done.set_result(None)  # type: ignore[method-assign]
    world.deadlines = Deadlines(world, asyncio.get_running_loop(), 0.05)  # type: ignore[arg-type]
    world.now = 0.0
    world.give(0, 1, 0.05)
    world.start(1)
    await done
    assert len(world.cancelled) == 1
