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

TICK_NS = 10_000_000  # of a coarse clock, at most


class Counter:
    def __init__(self) -> None:
        self.plain: list[int] = []
        self.timed: list[tuple[int, int]] = []

    def mark_started(self, n: int) -> None:
        self.plain.append(n)

    def mark_timed(self, n: int, since: int) -> None:
        self.timed.append((n, since))


def run(starter: Any, func: Any, items: list[Any], *args: Any) -> tuple[int, int, Any]:
    found: tuple[int, int, Any] = starter.run(0, func, items, 0, len(items), [], EVER, *args)
    return found


def test_each_item_is_marked_with_a_time_that_is_not_after_its_start(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    counter = Counter()
    starter = kind(loop, counter)
    begun: list[int] = []

    def item(_: object) -> None:
        begun.append(time.monotonic_ns())
        if len(begun) % 5 == 0:
            time.sleep(0.01)

    worker = Worker.__new__(Worker)
    worker.loop = loop
    end, status, _ = in_loop(worker, lambda: run(starter, item, list(range(40)), True))
    assert (end, status, counter.plain) == (40, DONE, [])
    assert [n for n, _ in counter.timed] == list(range(1, 41))
    for (_, since), start in zip(counter.timed, begun, strict=True):
        assert since <= start
    # each is after the item before, but for the tick of a coarse clock
    for (_, since), start in zip(counter.timed[1:], begun, strict=False):
        assert since >= start - TICK_NS
    starter.close()


def test_items_without_a_limit_are_counted_on_and_have_no_time(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    counter = Counter()
    starter = kind(loop, counter)
    worker = Worker.__new__(Worker)
    worker.loop = loop
    for timed in (False, True, False):
        in_loop(worker, lambda timed=timed: run(starter, abs, [1, 2], timed))
    assert counter.plain == [1, 2, 5, 6]
    assert [n for n, _ in counter.timed] == [3, 4]
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
