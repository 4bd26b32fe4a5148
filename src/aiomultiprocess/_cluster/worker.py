"""A process of a host, as the client's engine sees it: a worker as any other.

`RemoteWorker` is a `PoolWorker` (_parent/worker.py) whose process is started, signalled and watched
by a host. What is decided about it, and when, is the base class's.

REMOTEWORKER-1  Signals and the wish to leave travel behind the start-up message, on the same
    stream: so they need no process id, and reach a process that has not begun yet.
REMOTEWORKER-2  More work waits at a process of a host than at one of this machine, because a
    message takes milliseconds: what it starts in `HORIZON` seconds. If work is ample, no more than
    that waits (without CREDIT-3), because what was sent to a host that is lost counts as started
    (REMOTELINK-1).
"""

from __future__ import annotations

import asyncio
import pickle
import signal
from collections.abc import Callable
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, cast

from .._parent.credit import Credit
from .._parent.deadlines import Deadlines
from .._parent.worker import PoolWorker, WorkerOptions
from .._processes.start_arguments import at_its_caller
from .link import RemoteLink
from .processes import packed_spec

if TYPE_CHECKING:
    from .connection import Connection

HORIZON = 0.02  # seconds (REMOTEWORKER-2)


class RemoteCredit(Credit):
    """The account of a process of a host (REMOTEWORKER-2)."""

    __slots__ = ()

    horizon = HORIZON

    def room(
        self,
        started: int,
        function: int,
        *,
        work_is_ample: bool | None = None,
        contended: bool = False,
    ) -> int:
        """How many tasks of `function` may be sent now."""
        ample = None if work_is_ample else work_is_ample
        return super().room(started, function, work_is_ample=ample, contended=contended)


class RemoteDeadlines(Deadlines):
    """The time limits of tasks of a host, judged when their start times have arrived here."""

    def __init__(self, worker: RemoteWorker, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        super().__init__(worker, loop, grace)
        self._link = worker.remote

    def _on_timer(self) -> None:
        self._disarm()
        self._link.look(super()._on_timer)


class RemoteWorker(PoolWorker):
    """A worker process on a host."""

    def __init__(
        self, options: WorkerOptions, link: RemoteLink, host: Connection, index: int
    ) -> None:
        self.remote = link
        self.connection = host
        self.host = host.address
        self.why_ended = ""  # if it could not be started, or its host was lost
        self._exitcode: int | None = None
        super().__init__(options, link, cast("Any", None), index)
        self.credit = RemoteCredit(options.concurrency, options.lifetime)
        link.worker = self

    def _prepare(self, options: WorkerOptions, end: Any) -> None:
        self._payload = packed(options, self.index)
        self._parent_fd = None
        self.aio_process = get_context("spawn").Process()  # never started: it has a name

    def launch(
        self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[PoolWorker], None]
    ) -> None:
        """Have the host start the process."""
        self._loop = loop
        self._launched_at = loop.time()
        self._on_exit_of_worker = on_exit
        self.remote.launch(self._payload)
        self._payload = b""

    def limit(self, seconds: float) -> None:
        """Enforce the time limit of tasks that were sent just now."""
        if self.deadlines is None:
            self.deadlines = RemoteDeadlines(self, self._loop, self._grace)
        self.deadlines.sent(seconds)

    def is_alive(self) -> bool:
        """Whether the process has not ended, as far as that is known here."""
        return not self.remote.ended

    def terminate(self) -> None:
        """Have the host send SIGTERM (REMOTEWORKER-1)."""
        self.remote.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Have the host send SIGKILL."""
        self.remote.signal(signal.SIGKILL)

    def kill_now(self) -> None:
        """Give everything back; the host ends the process when its stream ends."""
        self._settle()
        self.link.close()

    @property
    def exitcode(self) -> int | None:
        """The exit code; None before the end, and if it is not known."""
        return self._exitcode

    def on_started(self, pid: int) -> None:
        """The host has started the process."""
        self._pid = pid

    def on_host_lost(self) -> None:
        """Send it nothing more; `on_ended` follows."""
        self.leaving = True

    def on_ended(self, exitcode: int | None, why: str) -> None:
        """The process has ended, or its host was lost (POOLWORKER-1)."""
        self._exitcode = exitcode
        self.why_ended = why
        if not self._settled:
            self._settle()
            self._on_exit_of_worker(self)

    def _is_started(self) -> bool:
        return True

    def _settle(self) -> None:
        self._settled = True
        for timer in (self._kill_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        if self.deadlines is not None:
            self.deadlines.stop()


def packed(options: WorkerOptions, index: int) -> bytes:
    """The start-up message of a worker. A pickling error names what cannot travel."""
    try:
        return packed_spec(options.spec(None, index))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise at_its_caller(error) from error.__cause__
