"""`progress=` of `map` and `starmap`: reports to a callable of the user's, or to a tqdm bar.

A job (job.py) that has a `Reporter` tells it of each change. The reporter calls on the pool's loop,
never inside a step of the job: the callable may use the pool, or cancel the map.

PROGRESS-1  The callable is called at most once in `INTERVAL` while the job runs, and once when it
    is done. A timer runs only between a change and the call that reports it.
PROGRESS-2  An error of the callable does not touch the job. The first goes to the exception handler
    of the loop; later ones are dropped, as they would come ten times a second.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from ..types import Progress
from .errors import INTERRUPTS

INTERVAL = 0.1  # seconds (PROGRESS-1)


class Reporter:
    """Reports the progress of one job by `show`, in the context in which the map was called."""

    def __init__(
        self, show: Callable[[Progress], object], loop: asyncio.AbstractEventLoop, label: str
    ) -> None:
        self._show = show
        self._loop = loop
        self._label = label
        self._context = contextvars.copy_context()
        self._timer: asyncio.TimerHandle | None = None
        self._last: Progress | None = None  # what was reported
        self._next_at = 0.0  # the earliest time of the next call
        self._failed = False

    def begin(self, progress: Callable[[], Progress]) -> None:
        """Report what `progress` returns from now on; a bar is shown at once."""
        self._progress = progress
        if isinstance(self._show, Bar):
            self.note_change()
        else:
            self._last = progress()

    def note_change(self) -> None:
        """Report soon."""
        if self._timer is None:
            self._timer = self._loop.call_at(self._next_at, self._report, context=self._context)

    def end(self) -> None:
        """Report for the last time; before callers that wait for the job go on."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._loop.call_soon(self._report_last, self._progress(), context=self._context)

    def _report(self) -> None:
        self._timer = None
        progress = self._progress()
        if progress != self._last:  # the change may be one that it does not show
            self._last = progress
            self._next_at = self._loop.time() + INTERVAL
            self._call(self._show, progress)

    def _report_last(self, progress: Progress) -> None:
        self._call(self._show, progress)
        if isinstance(self._show, Bar):
            self._call(self._show.close)

    def _call(self, show: Callable[..., object], *args: Any) -> None:
        try:
            show(*args)
        except INTERRUPTS:
            raise
        except BaseException as error:  # noqa: BLE001 - PROGRESS-2
            if not self._failed:
                self._failed = True
                message = f"the progress of a map of {self._label} could not be shown"
                self._loop.call_exception_handler({"message": message, "exception": error})


class Bar:
    """A tqdm bar, made at the first report, so that a map that is refused shows none.

    tqdm would start a thread, and make a lock of multiprocessing, which starts a process. Both
    would be in the way of a fork, and only one thread writes here.
    """

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True shows a bar of tqdm, which cannot be imported: install "
                "aiomultiprocess[progress], or pass a callable that takes a Progress",
                name="tqdm",
            ) from error
        self._class = _without_a_monitor(tqdm)
        if not hasattr(tqdm, "_lock"):  # else bars of the user's share theirs
            self._class.set_lock(threading.RLock())
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = self._class(total=progress.total)
        bar = self._bar
        bar.total = progress.total
        if progress.failed:
            bar.set_postfix(failed=progress.failed, refresh=False)
        bar.update(progress.done - bar.n)
        bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _without_a_monitor(bar_class: Any) -> Any:
    return type("Bar", (bar_class,), {"monitor_interval": 0})
