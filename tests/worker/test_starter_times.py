"""Both starters mark since when an item with a time limit runs (STARTER-9)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import starter_support
from starter_support import COMPILED, DONE, EVER, SUSPENDED, Worker, in_loop

loop = starter_support.loop
kind = starter_support.kind

TICK_NS = 15_000_000  # STARTER-9, with a coarse clock of 100 Hz


class Counter:
    """The table as the parent would read it at any moment."""

    def __init__(self) -> None:
        self.started = self.first = self.since = 0
        self.marks = 0

    def mark_started(self, n: int) -> None:
        self.started = n

    def mark_time(self, first: int, since: int) -> None:
        self.first, self.since = first, since
        self.marks += 1


def run(starter: Any, func: Any, items: list[Any], *args: Any) -> tuple[int, int, Any]:
    found: tuple[int, int, Any] = starter.run(0, func, items, 0, len(items), [], EVER, *args)
    return found


def test_at_each_moment_the_time_is_not_after_the_start_of_the_item_that_runs(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    counter = Counter()
    starter = kind(loop, counter)
    seen: list[tuple[int, int, int, int]] = []

    def item(n: int) -> None:
        seen.append((counter.started, counter.first, counter.since, time.monotonic_ns()))
        if n % 5 == 0:
            time.sleep(0.02)

    worker = Worker.__new__(Worker)
    worker.loop = loop
    end, status, _ = in_loop(worker, lambda: run(starter, item, list(range(40)), True))
    assert (end, status) == (40, DONE)
    assert [started for started, *_ in seen] == list(range(1, 41))
    for started, first, since, begun in seen:
        assert 0 < first <= started
        assert since <= begun
    for (_, _, since, _), (_, _, _, before) in zip(seen[1:], seen, strict=False):
        assert since >= before - TICK_NS
    starter.close()


def test_items_that_finish_at_once_share_a_time(kind: Any, loop: asyncio.AbstractEventLoop) -> None:
    counter = Counter()
    starter = kind(loop, counter)
    worker = Worker.__new__(Worker)
    worker.loop = loop
    for _ in range(2):
        in_loop(worker, lambda: run(starter, abs, [1] * 1000, True))
    assert counter.started == 2000
    assert 2 <= counter.marks < 1000  # one in 4 ms, and one for each run: the engine ends it
    starter.close()


def test_items_without_a_limit_have_no_time(kind: Any, loop: asyncio.AbstractEventLoop) -> None:
    counter = Counter()
    starter = kind(loop, counter)
    worker = Worker.__new__(Worker)
    worker.loop = loop
    for timed, first in ((False, 0), (True, 3), (False, 3)):
        in_loop(worker, lambda timed=timed: run(starter, abs, [1, 2], timed))
        assert counter.first == first
    assert counter.started == 6
    starter.close()


@pytest.mark.skipif(not COMPILED, reason="the ring is part of the extension")
def test_the_memory_of_the_ring_has_the_item_that_suspends(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    from amp_ext.ring import Mapping

    mapping = Mapping.create(1 << 12)
    starter = kind(loop, mapping)
    worker = Worker.__new__(Worker)
    worker.loop = loop
    before = time.monotonic_ns()
    _, status, task = in_loop(worker, lambda: run(starter, asyncio.sleep, [0, 0], True))
    assert status == SUSPENDED
    assert mapping.started == 1
    assert list(mapping.running()) == [1]
    assert before - TICK_NS <= mapping.running()[1] <= time.monotonic_ns()
    loop.run_until_complete(task)
    starter.close()
    mapping.close()
