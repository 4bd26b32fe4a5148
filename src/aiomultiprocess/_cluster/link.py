"""The client's end of the channel to one process of a host.

To the engine it is a link as any other (_transport/link.py). What a link of this machine reads in
shared memory, this one keeps as the host has reported it last: how many items the process has
started, which items with a time limit run, and, after its exit or while an item blocks it, its
journal.

REMOTELINK-1  If the host is lost, no one can say what its processes have started. All that was sent
    to them then counts as started: a task whose caller does not allow retries never runs twice.
REMOTELINK-2  The code that needs a table of running items asks for it (`look`). It may be old when
    it is read: an item that it shows may have ended, and it shows none as older than it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._wire import journal
from .._wire.frames import CorruptHeaderError, Handler, Kind, Segment, check_payload
from .messages import LOOK, PASS, SIGNAL, START, Frame, as_payload, read_exit, read_table

if TYPE_CHECKING:
    from .._transport.link import Callback
    from .host_memories import HostMemories
    from .stream import FrameStream

EVERYTHING = 1 << 62  # more items than any process is sent


class ReportedProcess(Protocol):
    """What a link reports the life of its process to."""

    def on_started(self, pid: int) -> None:
        """The process runs."""

    def on_ended(self, exitcode: int | None, why: str, why_lost: str = "") -> None:
        """It has ended; `why` it could not be started, `why_lost` its host, if it was so."""


class RemoteLink:
    """The channel to one process of a host."""

    turn = 0, 0  # hosts do not report how busy the loops of their processes are
    congested = False  # what may wait to be sent is limited by credit (CREDIT-5)
    entries = 1

    def __init__(
        self, slot: int, stream: FrameStream, memories: HostMemories | None = None
    ) -> None:
        """`memories`: of the host; None if there is none yet."""
        self.slot = slot
        self.process: ReportedProcess | None = None
        self.ended = False
        self._stream = stream
        self._memories = memories
        self.shared: set[int] = set()  # numbers of the shared objects that the process has
        self.launched = False  # its process, or what will be one
        self._started = 0
        self._busy = 0  # microseconds
        self._running: dict[int, int] = {}
        self._on_table: Callable[[], None] | None = None
        self.on_blocked: Callable[[], object] | None = None
        self._journal = b""
        self._closed = False
        self._broken = False
        self._handler: Handler | None = None
        self._on_drained: Callback | None = None

    # -- the contract of a link ----------------------------------------------------------------

    @property
    def started(self) -> int:
        """How many items the process has started, as far as that is known here."""
        return self._started

    @property
    def counter(self) -> RemoteLink:
        """Itself: it has the attributes of a counter."""
        return self

    @property
    def journal(self) -> memoryview:
        """A new view of the journal; empty as long as the process runs and is not blocked."""
        return memoryview(self._journal)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        on_room: Callback,
        on_broken: Callable[[BaseException], None],
        on_drained: Callback | None = None,
    ) -> None:
        """Hand over from now on what the process sends."""
        self._handler = handler
        self._on_broken = on_broken
        self._on_drained = on_drained

    def send(
        self,
        kind: int,
        *,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        payload: Sequence[Segment] = (),
    ) -> None:
        """Accept a frame; see the contract."""
        if payload:
            check_payload(sum(map(len, payload)))
        if not (self._closed or self._broken or self.ended):
            self._stream.send(
                self.slot,
                kind,
                flags=flags,
                count=count,
                chunk_id=chunk_id,
                offset=offset,
                function=function,
                segments=payload,
            )

    def lend_nothing(self) -> None:
        """It never lends: there is no memory that both machines have."""

    def share(self, number: int, fd: int) -> tuple[Any, ...]:
        """Pass a shared object to the process, and to its host if that does not have it."""
        if number in self.shared or self._closed or self._memories is None:
            return ()
        new = self._memories.share(number, fd)
        self.shared.add(number)
        if self.launched:  # else it travels with the start-up message
            self._stream.send(self.slot, PASS, chunk_id=number)
        return (self, *new)

    def pass_shared(self) -> None:
        """Do nothing: `share` has passed it."""

    def unshare_soon(self, number: int) -> None:
        """In any thread: let the process drop a shared object."""
        if self._memories is not None:
            self._memories.call_soon(self._unshare, number)

    def _unshare(self, number: int) -> None:
        self.shared.discard(number)
        self.send(Kind.UNSHARE, chunk_id=number)
        self.flush()

    def flush(self) -> None:
        """Let the host have what was sent, at the end of this turn."""
        self._stream.flush()

    def drain_dead(self) -> None:
        """Nothing: the news of an exit comes behind all that the process has sent (HOSTED-3)."""

    def close(self) -> None:
        """Hand over nothing more."""
        self._closed = True
        self._handler = self._on_drained = self._on_table = self.on_blocked = None

    def abandon(self) -> None:
        """In a forked copy of this process: as `close`."""
        self.close()

    def running(self) -> dict[int, int]:
        """The start times of running items (REMOTELINK-2)."""
        return self._running

    def mark_started(self, n: int) -> None:
        """A worker's, as the five below."""
        raise NotImplementedError

    def begin_turn(self, origin: int) -> None:
        raise NotImplementedError

    def end_turn(self, busy: int) -> None:
        raise NotImplementedError

    def mark_time(self, first: int, since: int) -> None:
        raise NotImplementedError

    def set_running(self, at: int, number: int, since: int) -> None:
        raise NotImplementedError

    def keep_running(self, at: int) -> None:
        raise NotImplementedError

    def clear_running(self, at: int) -> None:
        raise NotImplementedError

    # -- to the host ---------------------------------------------------------------------------

    def launch(self, payload: bytes) -> None:
        """Have the host start the process, with the shared objects that it was passed by now."""
        self.launched = True
        numbers = b"".join(number.to_bytes(8, "little") for number in self.shared)
        self._stream.send(self.slot, START, count=len(self.shared), segments=[numbers + payload])
        self._stream.flush()

    def signal(self, signum: int) -> None:
        """Have the host send a signal to the process."""
        if not self.ended:
            self._stream.send(self.slot, SIGNAL, count=signum)
            self._stream.flush()

    def look(self, on_table: Callable[[], None]) -> None:
        """Ask for the table of running items, and call back when it is there (REMOTELINK-2)."""
        self._on_table = on_table
        self._stream.send(self.slot, LOOK)
        self._stream.flush()

    # -- from the host -------------------------------------------------------------------------

    def deliver(self, frame: Frame) -> None:
        """Hand over a frame of the process. An error in handling it breaks the link (LINK-7)."""
        if self._handler is None or self._broken:
            return
        try:
            payload = as_payload(frame.segments)
            self._handler(*frame[1:7], payload)
        except Exception as error:  # noqa: BLE001 - any error has lost a frame
            self._break(error)

    def drained(self) -> None:
        """The frames of a batch were handed over."""
        if self._on_drained is not None and not self._broken:
            try:
                self._on_drained()
            except Exception as error:  # noqa: BLE001 - as in `deliver`
                self._break(error)

    def mark(self, started: int, busy: int = 0) -> None:
        """So many items were started; the last answers took so many microseconds (HOST-4)."""
        self._started = max(self._started, started)
        self._busy += busy

    def take_busy(self) -> float:
        """How long the process took for what it has answered since the last call, in seconds."""
        busy, self._busy = self._busy, 0
        return busy / 1e6

    def take_table(self, frame: Frame) -> None:
        """The table that was asked for."""
        self._running = read_table(as_payload(frame.segments), time.monotonic_ns())
        on_table, self._on_table = self._on_table, None
        if on_table is not None:
            on_table()

    def take_results(self, frame: Frame) -> None:
        """An item blocks the process: what it has finished and cannot send (HOST-5)."""
        if self.on_blocked is not None and not self._broken:
            self._journal = journal.memory_of(bytes(as_payload(frame.segments)))
            self.on_blocked()
            self._journal = b""

    def take_exit(self, frame: Frame) -> None:
        """The process has ended."""
        report = read_exit(as_payload(frame.segments))
        self._journal = report.journal
        self.mark(report.started)
        if not report.intact:
            self._break(CorruptHeaderError("the link of the process was broken on its host"))
        self._end(report.exitcode, "")

    def fail(self, why: str) -> None:
        """The process could not be started."""
        self._end(None, why)

    def lose(self, why: str) -> None:
        """The host is lost, and the process with it (REMOTELINK-1)."""
        self._started = EVERYTHING
        self._end(None, "", why)

    def _end(self, exitcode: int | None, why: str, why_lost: str = "") -> None:
        if not self.ended:
            self.ended = True
            self._running = {}
            if self.process is not None:
                self.process.on_ended(exitcode, why, why_lost)

    def _break(self, error: BaseException) -> None:
        if not (self._broken or self._closed):
            self._broken = True
            self._on_broken(error)
