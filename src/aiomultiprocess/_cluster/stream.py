"""A comm stream of dask (distributed.comm), as client and host use it: frames in, frames out.

Frames that are added in one turn of the loop leave together, in as few messages as their sizes
allow (messages.py). One task writes; it exists while there is something to write that may leave, so
that the messages keep their order.

COMM-1  A comm never serializes in a thread: a later message could overtake an earlier one, and
    what we send is bytes already.
COMM-2  A message that cannot be sent ends the stream: a frame that is lost would leave its tasks
    waiting for ever.
COMM-3  A comm takes whatever it is given, and so does a relay: neither waits for a slow link. So at
    most `WINDOW` bytes and a message are under way. The reader says from time to time how much it
    has read, at least every `NOTICE_AFTER` seconds while much arrives: so the writer knows that a
    large message makes progress. Such a notice waits for nothing, since both sides may be waiting
    for one, and is not counted.
COMM-4  What `send_ahead` adds overtakes the frames that wait for room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._wire.frames import Segment
from .messages import (
    READ,
    Frame,
    IncomingFrames,
    OutgoingFrames,
    read_notice,
    size_of_message,
    wrapped,
)

if TYPE_CHECKING:
    from .messages import Message

WINDOW = 8 << 20  # bytes (COMM-3)
NOTICE_AFTER = 0.5  # seconds
NOTICE_LEAST = 64 << 10  # bytes: what is read in smaller amounts fills no link

log = logging.getLogger(__name__)


class Comm(Protocol):
    """What this subpackage uses of a `distributed.comm.Comm`."""

    allow_offload: bool
    deserialize: bool

    async def read(self) -> Any:
        """The next message. OSError when the other side is gone."""

    async def write(self, msg: Any) -> Any:
        """Send a message. OSError when the other side is gone."""

    def abort(self) -> None:
        """Close at once."""

    def closed(self) -> bool:
        """Whether it is closed."""

    @property
    def peer_address(self) -> str:
        """The address of the other side."""


class FrameStream:
    """Sends the frames of one turn together, and reads those of the other side."""

    def __init__(self, comm: Comm, loop: asyncio.AbstractEventLoop) -> None:
        from distributed.protocol.serialize import to_serialize

        comm.allow_offload = False  # COMM-1
        comm.deserialize = True
        self._comm = comm
        self._loop = loop
        self._wrap = to_serialize
        self._outbox = OutgoingFrames()
        self._ahead = OutgoingFrames()  # COMM-4
        self._inbox = IncomingFrames()
        self._under_way = 0  # bytes that the other side has not said to have read (COMM-3)
        self._read_size = 0  # bytes that the other side does not know to be read
        self._owed = 0  # of these, what the next notice says
        self._noticed = loop.time()
        self._writer: asyncio.Task[None] | None = None
        self.closed = False

    def send(
        self,
        slot: int,
        kind: int,
        *,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        segments: Sequence[Segment | int] = (),
        owned: bool = False,
    ) -> None:
        """Add a frame to what the next `flush` sends, see `OutgoingFrames.add`."""
        if not self.closed:
            self._outbox.add(slot, kind, flags, count, chunk_id, offset, function, segments, owned)

    def send_ahead(self, kind: int) -> None:
        """Send a frame about no process, before those that wait (COMM-4)."""
        if not self.closed:
            self._ahead.add(0, kind)
            self.flush()

    def flush(self) -> None:
        """Send, at the end of this turn of the loop, what was added."""
        if self._writer is None and self._may_write():
            self._writer = self._loop.create_task(self._write())

    def _may_write(self) -> bool:
        has_room = self._under_way < WINDOW
        return not self.closed and bool(self._owed or self._ahead or (has_room and self._outbox))

    async def read(self) -> list[Frame]:
        """The frames that the next message completes, which may be none.

        OSError when the stream has ended, from whichever side; ValueError if it is no message.
        """
        message: Message = await self._comm.read()
        frames = self._inbox.take(message)
        if frames and frames[0].kind == READ:
            self._under_way -= frames[0].chunk_id
            frames = []
        else:
            self._count(size_of_message(message))
        self.flush()
        return frames

    def _count(self, size: int) -> None:
        """So many bytes were read (COMM-3)."""
        self._read_size += size
        if self._read_size < NOTICE_LEAST:
            return
        now = self._loop.time()
        if self._read_size >= WINDOW // 2 or now - self._noticed >= NOTICE_AFTER:
            self._noticed = now
            self._owed += self._read_size
            self._read_size = 0

    def close(self) -> None:
        """End the stream at once; the other side notices."""
        if not self.closed:
            self.closed = True
            self._comm.abort()

    async def finish(self) -> None:
        """Write what was added, as far as there is room, and then end the stream."""
        self.flush()
        if self._writer is not None:
            await self._writer
        self.close()

    def _next_message(self) -> Message:
        """What leaves first of that which may leave."""
        if self._owed:
            size, self._owed = self._owed, 0
            return read_notice(size)
        message = (self._ahead or self._outbox).take()
        self._under_way += size_of_message(message)
        return message

    async def _write(self) -> None:
        try:
            while self._may_write():
                await self._comm.write(wrapped(self._next_message(), self._wrap))
        except OSError:
            return  # the reader notices that the stream has ended
        except Exception:
            peer = self._comm.peer_address
            log.exception("a message to %s cannot be sent: the stream ends", peer)
            self._comm.abort()  # COMM-2; the reader notices
        finally:
            self._writer = None
