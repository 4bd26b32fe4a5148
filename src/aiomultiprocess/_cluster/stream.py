"""A comm stream of dask (distributed.comm), as client and host use it: frames in, frames out.

Frames that are added in one turn of the loop leave together, in one message (messages.py). One task
writes; it exists while there is something to write, so that the messages keep their order.

COMM-1  A comm never serializes in a thread: a later message could overtake an earlier one, and
    what we send is bytes already.
COMM-2  A message that cannot be sent ends the stream: a frame that is lost would leave its tasks
    waiting for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from .._wire.frames import Segment
from .messages import Message, Outbox, wrapped

log = logging.getLogger(__name__)


class Comm(Protocol):
    """What this wing uses of a `distributed.comm.Comm`."""

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


class Stream:
    """Sends the frames of one turn as one message."""

    def __init__(self, comm: Comm, loop: asyncio.AbstractEventLoop) -> None:
        from distributed.protocol.serialize import to_serialize

        comm.allow_offload = False  # COMM-1
        comm.deserialize = True
        self._comm = comm
        self._loop = loop
        self._wrap = to_serialize
        self._outbox = Outbox()
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
        """Add a frame to what the next `flush` sends, see `Outbox.add`."""
        if not self.closed:
            self._outbox.add(slot, kind, flags, count, chunk_id, offset, function, segments, owned)

    def flush(self) -> None:
        """Send, at the end of this turn of the loop, what was added."""
        if self._outbox and self._writer is None and not self.closed:
            self._writer = self._loop.create_task(self._write())

    async def read(self) -> Message:
        """The next message. OSError when the stream has ended, from whichever side."""
        message: Message = await self._comm.read()
        return message

    def close(self) -> None:
        """End the stream at once; the other side notices."""
        if not self.closed:
            self.closed = True
            self._comm.abort()

    async def finish(self) -> None:
        """Write what was added, and then end the stream."""
        self.flush()
        if self._writer is not None:
            await self._writer
        self.close()

    async def _write(self) -> None:
        try:
            while self._outbox and not self.closed:
                await self._comm.write(wrapped(self._outbox.take(), self._wrap))
        except OSError:
            return  # the reader notices that the stream has ended
        except Exception:
            peer = self._comm.peer_address
            log.exception("a message to %s cannot be sent: the stream ends", peer)
            self._comm.abort()  # COMM-2; the reader notices
        finally:
            self._writer = None
