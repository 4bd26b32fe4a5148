"""How much is sent to a process of a host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aiomultiprocess._cluster.link import RemoteLink
from aiomultiprocess._cluster.worker import AHEAD_BYTES, HORIZON, RemoteCredit

LARGE = 1 << 20


def measured(seconds_each: float, count: int = 10, *, concurrency: int = 1) -> RemoteCredit:
    """The credit of a process whose function took so long for each task, by its host's clock."""
    link = RemoteLink(0, None)  # type: ignore[arg-type]
    options: Any = SimpleNamespace(concurrency=concurrency, lifetime=0, threads=0)
    credit = RemoteCredit(options, link)
    for _ in range(4):
        credit.send(count, 1, 0.0, count)
        link.mark(credit.sent, round(1e6 * seconds_each * count))
        credit.report(count, 1, count)
        credit.settle(credit.sent, 99.0)  # this clock, which counts the way too, does not matter
    return credit


@pytest.mark.row("H114")
def test_what_a_process_starts_within_the_horizon_waits_there() -> None:
    credit = measured(0.001)
    assert abs(credit.room(credit.sent, 1) - HORIZON / 0.001) <= 1.5  # and what a free slot takes


def test_nothing_waits_behind_tasks_that_are_slow_however_many_there_are() -> None:
    credit = measured(1.0, 1)
    assert credit.room(credit.sent, 1, work_is_ample=True) == 1
    credit.send(1, 1, 0.0, 1)
    assert credit.room(credit.sent, 1, work_is_ample=True) == 0


def test_of_large_quick_tasks_some_megabytes_are_on_their_way() -> None:
    credit = measured(0.015, 1, concurrency=4)
    credit.send(2, 1, 0.0, 2 * LARGE)
    assert credit.room(credit.sent - 2, 1, work_is_ample=True) == AHEAD_BYTES // LARGE - 2


def test_at_the_end_of_a_map_large_tasks_do_not_wait_either() -> None:
    credit = measured(0.015, 1, concurrency=4)
    credit.send(2, 1, 0.0, 2 * LARGE)
    assert credit.room(credit.sent - 2, 1, work_is_ample=False) <= 1


def test_of_large_slow_tasks_none_waits() -> None:
    credit = measured(1.0, 1, concurrency=4)
    credit.send(1, 1, 0.0, LARGE)
    assert credit.room(credit.sent, 1, work_is_ample=True) <= 1
