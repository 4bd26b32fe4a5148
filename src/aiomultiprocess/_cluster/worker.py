"""A process of a host, as the client's engine sees it: a worker as any other.

`RemoteWorker` is a `PoolWorker` (_parent/worker.py) whose process is started, signalled and watched
by a host. What is decided about it, and when, is the base class's.

REMOTEWORKER-1  Signals and the wish to leave travel behind the start-up message, on the same
    stream: so they need no process id, and reach a process that has not begun yet.
REMOTEWORKER-2  More work waits at a process of a host than at one of this machine, because a
    message takes milliseconds: what it starts in `HORIZON` seconds. A map that is alone has no more
    (CREDIT-6), and no longer bursts: reports must come while much of it waits. If work is ample, no
    more than that waits (without CREDIT-3), because what was sent to a host that is lost counts as
    started (REMOTELINK-1).
REMOTEWORKER-3  Of large tasks that take less than that time, `AHEAD_BYTES` are on their way, as
    their transport takes longer than they do.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._parent.credit import Credit
from .._parent.deadlines import Deadlines
from .._parent.worker import PoolWorker, WorkerOptions
from .._processes.start_arguments import at_its_caller
from .link import RemoteLink
from .messages import SIGKILL, SIGTERM
from .processes import packed_spec

if TYPE_CHECKING:
    from .connection import Connection

HORIZON = 0.02  # seconds (REMOTEWORKER-2)
AHEAD_BYTES = 8 << 20  # REMOTEWORKER-3
LARGE_TASK = 64 << 10  # bytes from which a task counts as large

_numbers = itertools.count(1)


class RemoteCredit(Credit):
    """The account of a process of a host (REMOTEWORKER-2)."""

    __slots__ = ("_link",)

    def __init__(self, options: WorkerOptions, link: RemoteLink) -> None:
        super().__init__(options.concurrency, options.lifetime, options.threads)
        self.horizon = HORIZON
        self.alone_times = 1
        self._link = link

    def settle(self, started: int, now: float) -> None:
        """Adapt to a batch of reports, by the clock of the host (HOST-4)."""
        if self._ended:
            self._busy_since = now - self._link.take_busy()
            super().settle(started, now)

    def room(
        self,
        started: int,
        function: int,
        *,
        work_is_ample: bool | None = None,
        scale: float = 1,
    ) -> int:
        """How many tasks of `function` may be sent now."""
        ample = None if work_is_ample else work_is_ample
        room = super().room(started, function, work_is_ample=ample, scale=scale)
        held = self.in_flight
        if work_is_ample is False or not held or self.bytes < held * LARGE_TASK:
            return room
        return max(room, self._room_for_large(function, self.bytes // held))

    def _room_for_large(self, function: int, size: int) -> int:
        """REMOTEWORKER-3: how many tasks of `size` bytes may be on their way, beside those held."""
        pace = self._paces.get(function)
        if pace is None or not pace.backlog or self.is_occupied(function):
            return 0
        room = max(AHEAD_BYTES - self.bytes, 0) // size
        return min(room, self._lifetime - self.sent) if self._lifetime else room


class RemoteDeadlines(Deadlines):
    """The time limits of tasks of a host, judged when their start times have arrived here."""

    def __init__(self, worker: RemoteWorker, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        super().__init__(worker, loop, grace)
        self._link = worker.process.link

    def _on_timer(self) -> None:
        self._disarm()
        self._link.look(super()._on_timer)


class HostEnd:
    """The host of a worker that is made: it takes the place of the end of a channel."""

    def __init__(self, connection: Connection, link: RemoteLink) -> None:
        self.connection = connection
        self.link = link

    def open(self) -> Any:
        """Its process has another end (host.py)."""
        raise NotImplementedError

    def release(self) -> None:
        """The worker was started, or refused: of one that was refused nothing is left (HOST-6)."""
        if not self.link.launched:
            self.connection.discard(self.link)


class RemoteProcess:
    """A process of a host, and its exit: what `PoolWorker` uses of both (POOLWORKER-5)."""

    daemon = False

    def __init__(self, link: RemoteLink, payload: bytes) -> None:
        self.name = f"RemoteProcess-{next(_numbers)}"
        self.pid: int | None = None  # known when the host has reported it
        self.exitcode: int | None = None
        self.ended = False
        self._end = asyncio.Event()
        self.why_ended = self.why_lost = ""
        self.link = link
        link.process = self
        self._payload = payload
        self._on_exit: Callable[[], object] | None = None

    # -- the process ---------------------------------------------------------------------------

    def start(self) -> None:
        """Have the host start it."""
        self.link.launch(self._payload)
        self._payload = b""

    def terminate(self) -> None:
        """Have the host send SIGTERM (REMOTEWORKER-1)."""
        self.link.signal(SIGTERM)

    def kill(self) -> None:
        """Have the host send SIGKILL."""
        self.link.signal(SIGKILL)

    def close(self) -> None:
        """Report nothing more."""
        self._on_exit = None

    # -- its exit ------------------------------------------------------------------------------

    def check(self) -> bool:
        """Whether it has ended, as far as that is known here."""
        return self.ended

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> Any:
        """Call `callback` when it has ended; what this returns has `close`."""
        self._on_exit = callback
        return self

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._end.wait()

    def block(self) -> None:
        """Nothing: it ends when the stream of its host does."""

    # -- what its host reports -----------------------------------------------------------------

    def on_started(self, pid: int) -> None:
        """It runs."""
        self.pid = pid

    def on_ended(self, exitcode: int | None, why: str, why_lost: str = "") -> None:
        """It has ended; `why` it could not be started, `why_lost` its host, if it was so."""
        self.ended = True
        self._end.set()
        self.exitcode = exitcode
        self.why_ended, self.why_lost = why, why_lost
        on_exit, self._on_exit = self._on_exit, None
        if on_exit is not None:
            on_exit()


class RemoteWorker(PoolWorker):
    """A worker process on a host."""

    process: RemoteProcess

    def __init__(self, options: WorkerOptions, link: Any, end: Any, index: int, place: int) -> None:
        self.connection: Connection = end.connection
        self.host = self.connection.address
        super().__init__(options, link, end, index, place)
        self.credit = RemoteCredit(options, end.link)

    def _make_process(self, options: WorkerOptions, end: Any) -> RemoteProcess:
        payload = packed_spec(self._spec_of(options, None, None))  # type: ignore[arg-type]
        self.process = RemoteProcess(end.link, payload)
        return self.process

    def _make_exit(self) -> RemoteProcess:
        return self.process

    def launch(
        self,
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[PoolWorker], None],
        on_blocked: Callable[[], object],
    ) -> None:
        """Have the host start the process."""
        self.process.link.on_blocked = on_blocked
        super().launch(loop, on_exit, on_blocked)

    def watch(self) -> None:
        """Nothing: its host notices if an item blocks it (HOST-5)."""

    def limit(self, seconds: float) -> None:
        """Enforce the time limit of tasks that were sent just now."""
        if self.deadlines is None:
            self.deadlines = RemoteDeadlines(self, self._loop, self._grace)
        self.deadlines.sent(seconds)

    @property
    def pid(self) -> int | None:
        """The process id; None until the host has reported it."""
        return self.process.pid

    @property
    def why_ended(self) -> str:  # type: ignore[override]
        """Why it could not be started."""
        return self.process.why_ended

    @property
    def why_lost(self) -> str:  # type: ignore[override]
        """Why its host was lost, if it was."""
        return self.process.why_lost

    def _is_started(self) -> bool:
        return True


class _Nowhere:
    """Stands for a host where there is none yet."""

    address = ""


def check_start_arguments(options: WorkerOptions) -> None:
    """Raise a pickling error that names what cannot travel, before there is a host."""
    nowhere: Any = _Nowhere()
    link = RemoteLink(0, nowhere)
    try:
        _ = RemoteWorker(options, link, HostEnd(nowhere, link), 0, 0)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise at_its_caller(error) from error.__cause__
