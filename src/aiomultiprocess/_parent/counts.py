"""Numbers that the statistics of a pool need and its workers' credit does not have (stats.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from .._wire.exceptions import original_of
from ..types import TaskTimeoutError


class TaskCounts:
    """Numbers of the tasks of one queue that cannot be derived from its workers."""

    def __init__(self) -> None:
        self.ended = 0  # tasks that workers have reported which are gone
        self.errors = 0  # of all tasks that were reported: those with errors
        self.failed = 0
        self.timed_out = 0
        self.cancelled = 0

    def add_errors(self, errors: Mapping[int, BaseException]) -> None:
        """Count tasks that workers have reported with these errors."""
        for error in errors.values():
            self.errors += 1
            if type(error) is TaskTimeoutError:  # one that a task raised itself is a ProxyException
                self.timed_out += 1
            elif issubclass(type(original_of(error)), asyncio.CancelledError):
                self.cancelled += 1
            else:
                self.failed += 1
