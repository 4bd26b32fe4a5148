"""Notices that an item blocks its worker: one that does not return, and holds up those after it.

A worker that holds several tasks is watched. If it starts none for a while, what it has finished is
taken from its journal (recovery.py).

    sent, or reported --arm()--> watched --none was started--> blocked: `on_blocked`
                                 ^ ^   |                         |  ^  |
                                 | +---+ some were started       |  +--+ none was started
                                 +------ sent, or reported, or some were started

BLOCKED-1  A worker that seems to be blocked may not have begun: the system let it wait, or stopped
    it. Then it may finish items and be blocked by the next one before it reports. So it is looked
    at again, each time after twice as long: of n seconds that it is blocked, some log2(40 n) looks,
    and results wait at most as long again as it was blocked before.
BLOCKED-2  Nothing is timed for longer than `PATIENCE` for a worker that holds less than two tasks,
    as it sends what it has finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._transport.link import Link

PATIENCE = 0.025  # seconds: a result waits for up to two of them


class BlockedWatch:
    """Watches one worker: `on_blocked` is called when for a while it has started no item.

    `holds_several` tells whether the worker holds two tasks or more (BLOCKED-2).
    """

    __slots__ = (
        "_holds_several",
        "_link",
        "_loop",
        "_on_blocked",
        "_started",
        "_timer",
        "is_armed",
        "waits_longer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        holds_several: Callable[[], bool],
        on_blocked: Callable[[], object],
    ) -> None:
        self.is_armed = False  # whether it looks within `PATIENCE`
        # Whether the worker seemed to be blocked, and a look is to come. An attribute, not a
        # property: `on_drained` (queue.py) reads it for each `apply`.
        self.waits_longer = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._link = link
        self._holds_several = holds_several
        self._on_blocked = on_blocked
        self._started = -1

    def arm(self) -> None:
        """Look soon whether the worker has started items; to be called only if not `is_armed`."""
        self.stop()
        self._started = self._link.started
        self._timer = self._loop.call_later(PATIENCE, self._look, PATIENCE)
        self.is_armed = True  # last: an interrupt may strike before

    def stop(self) -> None:
        """Watch no more: the worker has gone, or holds less than two tasks."""
        self.is_armed = self.waits_longer = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _look(self, waited: float) -> None:
        self.stop()
        if not self._holds_several():
            return
        if self._link.started != self._started:
            self.arm()
            return
        self.waits_longer = True  # first: an interrupt may strike before the timer is there
        self._timer = self._loop.call_later(2 * waited, self._look, 2 * waited)  # BLOCKED-1
        self._on_blocked()
