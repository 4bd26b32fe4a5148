"""The client's side of the stream to one host, from its opening to the loss of the host.

Everything that arrives waits in line, and is handled in callbacks of the loop, as with a link of
this machine (LINK-4, LINK-6). The end of the stream stands in the same line, so what a host had
sent before it was lost is handled first.

CONNECTION-1  A connection is an epoch of its host. After its end nothing that comes from there is
    handed over; a host that is reached again gets a new connection, and new processes.
CONNECTION-2  A host from which nothing has come for `INTERVAL` seconds is asked for an answer, and
    is lost if none has come after as many more. So a silent one is noticed within three times that.
    Time in which this loop did not run does not count. Each piece of a large frame counts as heard,
    and so does the news that the host has read one (COMM-3): a slow link is not silence.
CONNECTION-3  The client leaves a host that closes (HOST-6) once all its processes have ended. The
    news of an exit is the last that comes of a process, so nothing is under way then.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .._transport.link import BATCH_FRAMES
from ..types import describe_error
from .host_memories import HostMemories
from .link import RemoteLink
from .messages import (
    BLOCKED,
    DRAIN,
    EXITED,
    FAILED,
    FIRST_CONTROL,
    LEAVE,
    MARK,
    PING,
    PONG,
    STARTED,
    TABLE,
    Frame,
    as_payload,
)
from .stream import Comm, FrameStream

INTERVAL = 3.0  # seconds (CONNECTION-2)
LATE = 0.5  # seconds by which a timer is late if the loop did not run

log = logging.getLogger(__name__)


class Greeting(NamedTuple):
    """What a host says of itself when a stream is opened."""

    address: str
    threads: int  # of the dask worker
    name: str  # of the dask worker


class Connection:
    """One host, as long as it is reached."""

    def __init__(
        self,
        comm: Comm,
        greeting: Greeting,
        loop: asyncio.AbstractEventLoop,
        before_lost: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
        on_drain: Callable[[Connection], None],
    ) -> None:
        self.address = greeting.address
        self.greeting = greeting
        self.lost = False
        self.why_lost = ""
        self.was_ready = False  # a process there was
        self.draining = False
        self.cancelled = False  # the loop ends
        self._loop = loop
        self._stream = FrameStream(comm, loop)
        self._before_lost = before_lost
        self._on_lost = on_lost
        self._on_drain = on_drain
        self._memories = HostMemories(self._stream, loop)
        self._links: dict[int, RemoteLink] = {}
        self._slots = itertools.count()
        self._line: deque[Frame | str] = deque()  # a str: why the host is lost
        self._turn_scheduled = False
        self._heard = True  # since the last look
        self._asked = False
        self._reader = loop.create_task(self._read())
        self._due = loop.time() + INTERVAL
        self._timer = loop.call_at(self._due, self._look)

    def __repr__(self) -> str:
        return f"<host {self.address}{' (lost)' if self.lost else ''}>"

    def new_link(self) -> RemoteLink:
        """The link of a process that is to be started there."""
        link = RemoteLink(next(self._slots), self._stream, self._memories)
        self._links[link.slot] = link
        return link

    def discard(self, link: RemoteLink) -> None:
        """No process was started for a link: a host that closes need not wait for one."""
        self._links.pop(link.slot, None)

    def leave(self) -> None:
        """The pool needs the host no more: its processes end."""
        if not self.lost:
            self._stream.send(0, LEAVE)
            self._stream.flush()

    def close(self) -> None:
        """End the stream; nothing is reported."""
        self.lost = True
        self._timer.cancel()
        self._reader.cancel()
        self._line.clear()
        self._stream.close()

    async def finish(self) -> None:
        """Write what was sent, and then end the stream; nothing is reported."""
        await self._stream.finish()
        self.close()

    # -- reading -------------------------------------------------------------------------------

    async def _read(self) -> None:
        why = "its stream ended"
        try:
            while True:
                frames = await self._stream.read()
                self._heard = True  # also by a piece of a frame, or a notice (CONNECTION-2)
                if frames:
                    self._put(*frames)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        except OSError as error:
            why = f"its stream ended: {error}" if str(error) else why
        except Exception as error:  # noqa: BLE001 - what it sent is no message, or does not fit
            why = f"its messages cannot be read: {describe_error(error)}"
        finally:
            if not self.lost:  # also if this task is cancelled, as `asyncio.run` does at its end
                self._put(why)

    def _put(self, *arrived: Frame | str) -> None:
        self._line += arrived
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self._loop.is_closed():
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Handle a bounded part of what has arrived."""
        self._turn_scheduled = False
        touched: dict[int, RemoteLink] = {}
        try:
            for _ in range(BATCH_FRAMES):
                if not self._line:
                    break
                arrived = self._line.popleft()
                if isinstance(arrived, str):
                    self._lose(arrived)
                else:
                    self._handle(arrived, touched)
            for link in touched.values():
                link.drained()
        finally:  # a KeyboardInterrupt of a callback passes through the loop (LINK-7)
            if self._line:
                self._schedule_turn()

    def _handle(self, frame: Frame, touched: dict[int, RemoteLink]) -> None:
        link = self._links.get(frame.slot)
        if frame.kind == DRAIN:
            self.draining = True
            self._on_drain(self)
        elif frame.kind == PONG or link is None:
            return
        elif frame.kind < FIRST_CONTROL:
            link.deliver(frame)
            touched[frame.slot] = link
        else:
            self._report(link, frame)
        if self.draining and not self._links:
            self.leave()  # CONNECTION-3

    def _report(self, link: RemoteLink, frame: Frame) -> None:
        """What the host says of a process."""
        if frame.kind == MARK:
            link.mark(frame.chunk_id, frame.number)
        elif frame.kind == TABLE:
            link.take_table(frame)
        elif frame.kind == BLOCKED:
            link.take_results(frame)
        elif frame.kind == STARTED:
            if link.process is not None:
                link.process.on_started(frame.number)
        elif frame.kind == EXITED:
            del self._links[frame.slot]
            link.take_exit(frame)
        elif frame.kind == FAILED:
            del self._links[frame.slot]
            link.fail(str(bytes(as_payload(frame.segments)), "utf-8", "replace"))
        else:
            log.error("%r sent a frame of kind %d", self, frame.kind)

    # -- the end -------------------------------------------------------------------------------

    def _look(self) -> None:
        """CONNECTION-2."""
        late = self._loop.time() - self._due > LATE
        if self._heard or late:
            self._heard = self._asked = False
            if late:
                self._ask()
        elif not self._asked:
            self._ask()
        else:
            self._put(f"it has not answered for {INTERVAL:g} s")
            return
        self._due = self._loop.time() + INTERVAL
        self._timer = self._loop.call_at(self._due, self._look)

    def _ask(self) -> None:
        self._asked = True
        self._stream.send_ahead(PING)

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.why_lost = why
        self.close()  # CONNECTION-1
        self._before_lost(self)
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.lose(why)
        self._on_lost(self)
