"""Notices that an item blocks its worker: one that does not return, and holds up those after it.

A worker that holds several tasks is watched. If it starts none for a while, what it has finished is
taken from its journal (recovery.py).

    sent, or reported --arm()--> watched --none was started--> blocked: `on_blocked`
                                 ^ ^   |                          |
                                 | +---+ some were started        |
                                 +---------- sent, or reported ---+

BLOCKED-1  Nothing is timed while nothing changes: after `on_blocked` there is no timer until the
    worker is sent a chunk or reports. Until it reports, it finishes no more than the item that
    runs, and then it reports within one burst (_worker/engine.py, WORKER-4); an item that was
    suspended is reported as it ends, unless others were a moment before (RESULTS-3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._transport.link import Link

PATIENCE = 0.025  # seconds: a result waits for up to two of them


class BlockedWatch:
    """Watches one worker: `on_blocked` is called when for a while it has started no item."""

    __slots__ = ("_link", "_loop", "_on_blocked", "_started", "timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, link: Link, on_blocked: Callable[[], object]
    ) -> None:
        self.timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._link = link
        self._on_blocked = on_blocked
        self._started = -1

    def arm(self) -> None:
        """Watch the worker; to be called only if there is no timer."""
        self._started = self._link.started
        self.timer = self._loop.call_later(PATIENCE, self._look)

    def stop(self) -> None:
        """Watch no more: the worker has gone."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _look(self) -> None:
        self.timer = None  # BLOCKED-1
        if self._link.started != self._started:
            self.arm()
        else:
            self._on_blocked()
