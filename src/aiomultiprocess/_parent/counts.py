"""Numbers that the statistics of a pool need and its workers' credit does not have (stats.py).

COUNTS-1  A task counts as its caller sees it: one that was given up counts as cancelled, whatever
    its worker reports of it afterwards, and though its worker may die.
COUNTS-2  At any time a task is in exactly one of waiting, running, done, failed, timed_out,
    cancelled and lost. Those that have not ended are known to their sources (`pending`), those that
    were reported to the credit of their workers. Only where a report does not say how a task has
    ended, or there is none, is a task counted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .._wire.exceptions import original_of
from ..types import TaskTimeoutError

if TYPE_CHECKING:
    from .feed import Handles, TaskOwner


class TaskCounts:
    """Numbers of the tasks of one queue that cannot be derived from its workers."""

    def __init__(self) -> None:
        self.ended = 0  # tasks that workers have reported which are gone
        self.errors = 0  # of all tasks that were reported: those with errors
        self.failed = 0
        self.timed_out = 0
        self.cancelled = 0

    def add_errors(
        self, owner: TaskOwner, handles: Handles, errors: Mapping[int, BaseException]
    ) -> None:
        """Count those of the tasks `handles` that a worker has reported with these errors."""
        for at, error in errors.items():
            self.errors += 1
            if owner.gave_up(handles[at]):  # COUNTS-1
                self.cancelled += 1
            elif type(error) is TaskTimeoutError:  # one that a task raised is a ProxyException
                self.timed_out += 1
            elif issubclass(type(original_of(error)), asyncio.CancelledError):
                self.cancelled += 1
            else:
                self.failed += 1

    def add_unsent(self, *, given_up: bool) -> None:
        """Count a task that cannot be sent."""
        if given_up:
            self.cancelled += 1
        else:
            self.failed += 1

    def add_killed(self, *, given_up: bool) -> None:
        """Count a task over its time limit that has ended with its worker."""
        if given_up:
            self.cancelled += 1
        else:
            self.timed_out += 1


class EndCounts:
    """What the sources of a pool add to the numbers of its queues, for all of them together."""

    def __init__(self) -> None:
        self.done = 0  # not more than 0: those that were reported with a value, and count otherwise
        self.failed = 0
        self.cancelled = 0
        self.lost = 0

    def late(self, count: int) -> None:
        """Tasks were reported with values, and had been given up."""
        self.done -= count
        self.cancelled += count
