"""The number of workers of a running pool, and how it changes.

`Pool.resize` calls `Engine.resize`, which calls `resize` here, and then waits (`launched`).

RESIZE-1  The worker of place i serves queue i modulo the number of queues, so that every queue
    keeps a worker while there are as many workers as queues.
RESIZE-2  The workers of the highest places leave: each finishes what it holds, and gets no more.
RESIZE-3  A place that is wanted again while its worker still leaves is filled after the exit of
    that worker, or as soon as it has nothing but open streams (SUPERVISOR-5).
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..scheduler import Scheduler
from ..types import QueueID
from .supervisor import Supervisor


class Resizer:
    """Starts and dismisses workers, and reports their number to the scheduler."""

    def __init__(self, supervisor: Supervisor, scheduler: Scheduler) -> None:
        self._supervisor = supervisor
        self._scheduler = scheduler
        self._qids: list[QueueID] = []
        self._changed = asyncio.Event()

    def start(self, processes: int, qids: list[QueueID]) -> None:
        """Start the first workers."""
        self._qids = qids
        self._grow(processes)

    def resize(self, processes: int) -> None:
        """Start the workers that are missing, or dismiss those that are too many (RESIZE-2).

        If the system or the scheduler refuses one, those before it stay, and its error is raised.
        """
        try:
            self._shrink(processes)
            self._grow(processes)
        finally:
            self.wake()

    def wake(self) -> None:
        """Let `launched` look again: a worker has exited, or the number has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def launched(self, processes: int) -> None:
        """Wait until the first `processes` workers are launched, or fewer are wanted (RESIZE-3)."""
        while self._supervisor.dismissed_below(processes):
            await self._changed.wait()

    def _grow(self, processes: int) -> None:
        supervisor = self._supervisor
        while supervisor.size < processes:
            place = supervisor.size
            qid = self._qids[place % len(self._qids)]  # RESIZE-1
            supervisor.fill(place, qid)
            supervisor.size += 1
            self._scheduler.register_process(qid)

    def _shrink(self, processes: int) -> None:
        supervisor = self._supervisor
        unregister: Any = getattr(self._scheduler, "unregister_process", None)
        while supervisor.size > processes:
            supervisor.size -= 1
            supervisor.dismiss(supervisor.size)
            if unregister is not None:
                unregister(self._qids[supervisor.size % len(self._qids)])
