"""A host: the part of a pool that runs in a dask worker, for one client.

    client <--stream--> Host --link--> process, process, ...

The plugin (plugin.py) makes a `Host` for each stream that a client opens. A host starts processes,
passes frames on in both directions, and reports how processes end. It unpickles nothing of a user
and runs none of a user's code, so it cannot hold up the dask worker whose loop it shares; and it
decides nothing: which tasks a process gets, what its death costs and when it is killed is decided
by the client, by the same rules as for a process of its own machine.

HOST-1  How many items a process has started travels ahead of its results, some milliseconds after
    the last chunk, and again with the news of its exit.
HOST-2  A frame that this host cannot hold for lack of memory fails its own items. A process must
    count these, as the client does: both number tasks by that. So it gets a small frame instead,
    with the same header, which raises MemoryError where it is unpickled. Where there is no memory
    for that either, or the frame is of another kind, the process is killed: what it was not sent
    counts as not started.
HOST-3  When the stream ends, for whatever reason, its client is gone: the processes are ended, and
    killed after `KILL_AFTER` seconds. No other client gets them.
HOST-4  The host measures how long a process takes for its items, because the client's clock would
    count the way of the messages, and the time that they wait at a client with many hosts.
HOST-5  What a process has finished, and cannot send because an item blocks it (QUEUE-9), is sent
    from its journal, as a copy that counts with the client as the journal of its own machine does.
HOST-6  A host whose dask worker closes says so ahead of all else, and ends when the client leaves,
    which has everything from here by then (CONNECTION-3): no end of a stream shows that.
HOST-7  A shared object that this host cannot hold, or pass on, is logged, and fails the items that
    ask for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from struct import unpack_from
from typing import Any

from .. import _accel
from .._transport import select
from .._transport.link import Backend
from .._wire.frames import (
    MAX_COUNT,
    STATEFUL,
    Kind,
    Payload,
    PayloadParts,
    as_bytes,
    size_of,
)
from ..types import describe_error
from .host_memories import KeptMemories
from .messages import (
    BLOCKED,
    DRAIN,
    EXITED,
    FAILED,
    FORGET,
    LEAVE,
    LOOK,
    MARK,
    PASS,
    PING,
    PONG,
    SHARE,
    SIGNAL,
    START,
    STARTED,
    TABLE,
    ExitReport,
    Frame,
    as_payload,
    packed_exit,
    packed_table,
    segments_of,
)
from .processes import HostedProcess, segments_to_send
from .stream import Comm, FrameStream

CHUNK, UNSHARE, NEED_SHARED = int(Kind.CHUNK), int(Kind.UNSHARE), int(Kind.NEED_SHARED)
FUNCTION, CONTEXT = int(Kind.FUNCTION), int(Kind.CONTEXT)
SEVERAL = frozenset(map(int, (Kind.RESULTS, Kind.RETURNED)))  # these answer `count` items
ONE = frozenset(map(int, (Kind.ERROR, Kind.REFUSED, Kind.TIMED_OUT)))
MARK_AFTER = 0.01  # seconds from a chunk until it is reported what has started (HOST-1)

log = logging.getLogger(__name__)


class Missing:
    """What did not arrive here: to unpickle it raises MemoryError, as FRAME-5 does."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __reduce__(self) -> tuple[Any, ...]:
        return as_bytes, (PayloadParts([self._size], self._size),)


def stand_in(frame: Frame) -> Frame:
    """A small frame that a process counts as it does `frame`, and cannot load (HOST-2).

    MemoryError if there is none.
    """
    missing = Missing(sum(map(size_of, frame.segments)))
    if frame.kind == CHUNK:
        item, _, error = _accel.encode_items([missing], 0, 1, 1)
        if error is not None:
            raise error
        return frame._replace(segments=[memoryview(b"".join(item) * frame.number)])
    if frame.kind not in (FUNCTION, CONTEXT):
        raise MemoryError  # nothing can stand for it
    # with STATEFUL each item would load a function of its own, and fail as if that were at fault
    flags = frame.flags & ~STATEFUL if frame.kind == FUNCTION else frame.flags
    return frame._replace(flags=flags, segments=[memoryview(_accel.dumps(missing))])


class Host:
    """The processes of one client, in this dask worker."""

    def __init__(self, comm: Comm, loop: asyncio.AbstractEventLoop) -> None:
        self._comm = comm
        self._loop = loop
        self._stream = FrameStream(comm, loop)
        self._peer = comm.peer_address
        self._channels: Backend = select.select().make()
        self._processes: dict[int, HostedProcess] = {}
        self._memories = KeptMemories()
        self._marks: dict[int, int] = {}  # what the client knows of each process (HOST-1)
        self._ended = False
        self._end_event = asyncio.Event()
        self._marking: asyncio.TimerHandle | None = None

    async def serve(self, greeting: dict[str, Any]) -> None:
        """Greet the client, and do what it says until it is gone."""
        try:
            await self._comm.write(greeting)
            while not self._ended:
                try:
                    frames = await self._stream.read()
                except OSError:  # the end of the stream
                    break
                self._take(frames)
        finally:
            self._end()

    async def drain(self, patience: float) -> None:
        """This dask worker closes: let the client's processes finish what they hold (HOST-6)."""
        self._stream.send_ahead(DRAIN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._end_event.wait()
        self._end()

    # -- from the client -----------------------------------------------------------------------

    def _take(self, frames: list[Frame]) -> None:
        touched: dict[int, HostedProcess] = {}
        for frame in frames:
            process = self._processes.get(frame.slot)
            if frame.kind in (SHARE, PASS):
                self._share(frame, process)
            elif frame.kind >= START:
                self._obey(frame, process)
            elif process is not None and not process.lacks_frame:  # else it has exited, or will
                self._pass_on(process, frame)
                touched[frame.slot] = process
                if frame.kind == CHUNK and self._marking is None:
                    self._marking = self._loop.call_later(MARK_AFTER, self._mark_all)
        for process in touched.values():
            process.link.flush()
        self._stream.flush()

    def _pass_on(self, process: HostedProcess, frame: Frame) -> None:
        try:
            self._send(process, frame)
        except MemoryError:
            self._refuse(process, frame)

    def _send(self, process: HostedProcess, frame: Frame) -> None:
        process.link.send(
            frame.kind,
            flags=frame.flags,
            count=frame.number,
            chunk_id=frame.chunk_id,
            offset=frame.offset,
            function=frame.function,
            payload=segments_to_send(frame.segments),
        )
        if frame.kind == CHUNK:
            process.received(frame.number)
        elif frame.kind == UNSHARE:
            process.link.shared.discard(frame.chunk_id)

    def _refuse(self, process: HostedProcess, frame: Frame) -> None:  # HOST-2
        try:
            self._send(process, stand_in(frame))
        except MemoryError:
            process.give_up()
            log.error(
                "a process of the client %s is killed: there is no memory for what it was sent",
                self._peer,
            )

    def _obey(self, frame: Frame, process: HostedProcess | None) -> None:
        slot, kind = frame.slot, frame.kind
        if kind == START:
            self._start(slot, frame.number, bytes(as_payload(frame.segments)))
        elif kind == FORGET:
            self._memories.drop(frame.chunk_id)
        elif kind == PING:
            self._stream.send_ahead(PONG)
        elif kind == LEAVE:
            self._end()
        elif process is None:  # it has exited meanwhile
            return
        elif kind == SIGNAL:
            process.send_signal(frame.number)
        elif kind == LOOK:
            table = packed_table(process.link.counter.running(), time.monotonic_ns())
            self._stream.send(slot, TABLE, segments=[table])
        else:
            raise ValueError(f"a frame of kind {kind} from a client")

    def _share(self, frame: Frame, process: HostedProcess | None) -> None:  # HOST-7
        try:
            if frame.kind == SHARE:
                self._memories.keep(frame.chunk_id, segments_to_send(frame.segments))
            elif process is not None:
                self._memories.pass_to(process.link, frame.chunk_id)
        except (OSError, MemoryError) as error:
            log.error(
                "a shared object of the client %s cannot be used here (%s)",
                self._peer,
                describe_error(error),
            )

    # -- processes -----------------------------------------------------------------------------

    def _start(self, slot: int, shared: int, message: bytes) -> None:
        """Start a process, with so many shared objects: their numbers precede its start-up."""
        numbers, payload = unpack_from(f"<{shared}Q", message), message[8 * shared :]
        process = HostedProcess(
            self._loop,
            self._channels,
            partial(self._forward, slot),
            on_drained=self._stream.flush,
            on_broken=partial(self._on_broken, slot),
            on_blocked=partial(self._on_blocked, slot),
            on_exit=partial(self._on_exit, slot),
        )
        try:
            pid = process.start(
                payload, [partial(self._memories.pass_to, number=n) for n in numbers]
            )
        except Exception as error:  # the client decides what that means
            log.exception("a process of the client %s cannot be started", self._peer)
            self._stream.send(slot, FAILED, segments=[f"{type(error).__name__}: {error}".encode()])
            return
        self._processes[slot] = process
        self._stream.send(slot, STARTED, count=pid)

    def _forward(
        self,
        slot: int,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: Payload,
    ) -> None:
        """Pass on a frame of a process."""
        process = self._processes[slot]
        if kind == NEED_SHARED:  # the client will say that it is to be passed again
            process.link.shared.discard(int.from_bytes(as_bytes(payload), "little"))
        answered = count if kind in SEVERAL else int(kind in ONE)
        self._mark(slot, process.link.started, process.answered(answered) if answered else 0)
        self._stream.send(
            slot,
            kind,
            flags=flags,
            count=count,
            chunk_id=chunk_id,
            offset=offset,
            function=function,
            segments=segments_of(payload),
            owned=isinstance(payload, PayloadParts),
        )

    def _mark(self, slot: int, started: int, busy: int = 0) -> None:  # HOST-1, HOST-4
        if busy or self._marks.get(slot) != started:
            self._marks[slot] = started
            self._stream.send(slot, MARK, chunk_id=started, count=min(busy, MAX_COUNT))

    def _mark_all(self) -> None:
        """HOST-1: items may have started that send nothing for a long time."""
        self._marking = None
        for slot, process in self._processes.items():
            self._mark(slot, process.link.started)
        self._stream.flush()

    def _on_blocked(self, slot: int) -> None:  # HOST-5
        process = self._processes[slot]
        results = process.unsent_results() if process.intact else None
        if results is not None:
            self._mark(slot, process.link.started, process.take_busy())
            self._stream.send(slot, BLOCKED, segments=[results])
            self._stream.flush()

    def _on_broken(self, slot: int, error: BaseException) -> None:
        """The link of a process is of no use: its client learns that by its exit."""
        log.error("the link to a process of the client %s is broken", self._peer, exc_info=error)
        self._processes[slot].intact = False
        self._processes[slot].kill()

    def _on_exit(self, slot: int, process: HostedProcess) -> None:
        del self._processes[slot]
        self._marks.pop(slot, None)
        report = ExitReport(process.exitcode, process.link.started, process.intact, process.journal)
        try:
            self._stream.send(slot, EXITED, segments=packed_exit(report))
        except MemoryError:  # a client that does not learn of it would wait for its tasks for ever
            self._end()
        self._stream.flush()
        if self._ended and not self._processes:
            self._channels.close()

    def _end(self) -> None:  # HOST-3
        if self._ended:
            return
        self._ended = True
        self._end_event.set()
        if self._marking is not None:
            self._marking.cancel()
        self._stream.close()
        self._memories.close()
        for process in self._processes.values():
            process.end()
        if not self._processes:
            self._channels.close()
