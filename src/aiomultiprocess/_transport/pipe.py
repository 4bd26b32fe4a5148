"""The pipe transport: frames over a non-blocking socket pair for each worker. Pure Python.

Not a ring in shared memory: Python cannot express acquire and release. Chosen where the extension
is missing or memory is refused (see `backend`). The contract is `transport`'s; what is particular:

Sending: small segments are copied together into a *tail*, so that a batch of small frames is one
system call; large ones queue in the outbox as they are. What the socket does not take waits for
`add_writer`. Receiving: one `recv_into` a callback, into a buffer that frames are handed over from
in place; a payload that is larger than the buffer is put together piece by piece.

PP1  What is received ahead of the parser stays within [begin, end) of the buffer, and the buffer
     never moves: payloads are views of it.
PP2  EOF and every error of the connection mean that the peer has gone (LINK-9): stop listening,
drop
     what is sent.

On Windows sockets have no `sendmsg` (`_send_joined`); all else that differs there is in `_windows`.

Descriptors: in the parent two for a worker (socket, ledger), two more until `ChildEnd.release`; in
the worker two.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from .._accel import BufferBuilder
from .._processes.descriptors import REFUSALS, Handover
from .._wire.assembly import Assembly
from .._wire.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_PARTS,
    MAX_PAYLOAD,
    PART_SIZE,
    Handler,
    Segment,
    check_header,
    is_constant,
    part_sizes,
    refuse_payload,
)
from .endpoint import Endpoint, Links, watch_fd
from .link import BATCH_BYTES, BATCH_FRAMES, Callback, ChildEnd
from .shared_page import SharedPage

#: Received at once, and the most that a payload may take to be handed over from the buffer.
BUFFER_SIZE: Final = 1 << 17
#: Segments from this size on are sent from where they are instead of being copied together.
LARGE_SEGMENT: Final = 1 << 14
#: A batch that has grown so large is sent without waiting for `flush`.
EAGER: Final = 1 << 16
#: Asked of the kernel for each direction; it may grant less.
SOCKET_BUFFER: Final = 1 << 20
#: Handed to one `sendmsg`; POSIX promises 16, every kernel of interest takes 1024.
MAX_SEGMENTS: Final = 64
#: Copied together for one `send` where there is no `sendmsg`.
JOINED: Final = 1 << 17

_pack, _unpack = HEADER.pack, HEADER.unpack_from


def _send_joined(sock: socket.socket, segments: Sequence[Segment]) -> int:
    """What `sendmsg` does, for sockets that have none: send a bounded copy of the segments."""
    joined = bytearray()
    for segment in segments:
        joined += memoryview(segment)[: JOINED - len(joined)]
        if len(joined) == JOINED:
            break
    return sock.send(joined)


_send: Any = getattr(socket.socket, "sendmsg", _send_joined)


def _adopt(fd: int) -> socket.socket:
    """The socket behind one end of a pair. Python asks for nothing that it is told here."""
    if sys.platform == "win32":
        raise NotImplementedError
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)


def kept_segment(segment: Segment) -> Segment:
    """A segment that may wait: one that is copied later, or cannot change, or a copy (LINK-10)."""
    if len(segment) < LARGE_SEGMENT or is_constant(segment):
        return segment
    return bytes(segment)


class Outbox:
    """What waits to be written, in order: whole segments, and a tail of small ones."""

    def __init__(self) -> None:
        self.queue: deque[Segment] = deque()
        self.tail = bytearray()

    def __bool__(self) -> bool:
        return bool(self.tail or self.queue)

    def add(self, segment: Segment) -> None:
        """Append one segment that is `kept_segment`."""
        if len(segment) < LARGE_SEGMENT:
            self.tail += segment
        else:
            self._seal()
            self.queue.append(segment)

    def _seal(self) -> None:
        if self.tail:
            self.queue.append(self.tail)
            self.tail = bytearray()

    def mark(self) -> tuple[int, bytearray, int]:
        """Where the next frame begins, for `take_back`."""
        return len(self.queue), self.tail, len(self.tail)

    def take_back(self, segments: int, tail: bytearray, size: int) -> None:
        """Drop all of a frame that could be added in part only; nothing of it is written yet."""
        while len(self.queue) > segments:
            self.queue.pop()
        self.tail = tail
        del tail[size:]

    def next(self) -> list[Segment]:
        """The segments to write next, a few of them."""
        self._seal()
        return list(islice(self.queue, MAX_SEGMENTS))

    def written(self, n: int) -> None:
        """Drop the first `n` bytes."""
        while n:
            first = self.queue.popleft()
            if n < len(first):
                self.queue.appendleft(memoryview(first)[n:])
                return
            n -= len(first)

    def clear(self) -> None:
        """Drop all."""
        self.queue.clear()
        self.tail = bytearray()


class Inbox:
    """What has arrived and is not handed over yet."""

    def __init__(self) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._assembly = Assembly(BufferBuilder)

    def receive(self, sock: socket.socket) -> int:
        """Receive once; the number of bytes, 0 at EOF. BlockingIOError if there is nothing."""
        if self._begin:
            self._compact()
        n = sock.recv_into(self._view[self._end :])
        self._end += n
        return n

    def _compact(self) -> None:
        size = self._end - self._begin
        self._view[:size] = self._view[self._begin : self._end]
        self._begin, self._end = 0, size

    def deliver(self, handler: Handler) -> bool:
        """Hand over the next frame; False if it has not arrived whole."""
        if self._assembly.missing:
            return self._assemble(handler)
        begin = self._begin + HEADER_SIZE
        if begin > self._end:
            return False
        header = _unpack(self._buffer, self._begin)
        kind, flags, parts, count, chunk_id, offset, function, length = header
        check_header(parts, length)
        if parts or HEADER_SIZE + length > BUFFER_SIZE:
            begin += parts * PART_SIZE
            if begin > self._end:
                return False
            with self._view[self._begin + HEADER_SIZE : begin] as sizes:
                fields = (kind, flags, count, chunk_id, offset, function)
                self._assembly.begin(fields, length, sizes)
            self._begin = begin
            return self._assemble(handler)
        end = begin + length
        if end > self._end:
            return False
        self._begin = end  # before the call: a handler that raises does not see its frame again
        with self._view[begin:end] as payload:
            handler(kind, flags, count, chunk_id, offset, function, payload)
        return True

    def _assemble(self, handler: Handler) -> bool:
        end = min(self._end, self._begin + self._assembly.missing)
        with self._view[self._begin : end] as piece:
            self._assembly.add(piece)
        self._begin = end
        if self._assembly.missing:
            return False
        self._assembly.deliver(handler)
        return True


class PipeLink(Endpoint):
    """One end of a socket pair, see `transport.Link`."""

    def __init__(self, sock: socket.socket, page: SharedPage, links: Links | None = None) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a sandbox refuses it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        super().__init__(page, links)
        self._sock = sock
        self._fd = sock.fileno()
        self._page = page
        self._outbox = Outbox()
        self._inbox = Inbox()
        self._heard = False  # frames, since the end of the last batch
        self._gone = False

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            watch_fd(loop, self._fd, self._turn, self._drain)
        except RuntimeError:
            self._loop = None  # which could not remove us either
            raise

    # Sending

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
        size = sum(map(len, payload))
        if size > MAX_PAYLOAD:
            refuse_payload(size)
        if self._closed or self._broken or self._gone:
            return
        sizes = b""
        if HEADER_SIZE + size > BUFFER_SIZE and 1 < len(payload) <= MAX_PARTS:  # FRAME-4
            payload = [segment for segment in payload if len(segment)]
            sizes = part_sizes(payload)
        parts = len(sizes) // PART_SIZE
        # first, as it may be too much for memory: then nothing of the frame is here
        payload = [kept_segment(segment) for segment in payload]
        outbox = self._outbox
        mark = outbox.mark()
        try:
            outbox.tail += _pack(kind, flags, parts, count, chunk_id, offset, function, size)
            outbox.tail += sizes
            for segment in payload:
                outbox.add(segment)
        except MemoryError:
            outbox.take_back(*mark)
            raise
        if size + len(outbox.tail) >= EAGER:
            self.flush()

    def flush(self) -> None:
        if not self._outbox or self.congested or self._closed or self._broken or self._gone:
            return
        self._write()
        if self._outbox and self._loop is not None:
            self.congested = True
            self._loop.add_writer(self._fd, self._turn, self._pump)

    def _write(self) -> None:
        """Write until all is written, the socket is full, or a turn's worth has gone (LINK-2,
        LINK-4)."""
        room = BATCH_BYTES
        try:
            while self._outbox and room > 0:
                n: int = _send(self._sock, self._outbox.next())
                self._outbox.written(n)
                room -= n
        except BlockingIOError:
            pass
        except ConnectionError:  # PP2
            self._gone = True
            self._outbox.clear()
        except OSError as error:
            self._on_refusal(error)

    def _on_refusal(self, error: OSError) -> None:
        """The kernel may have no memory for it now, and a sandbox no `sendmsg`."""
        global _send
        if error.errno in REFUSALS and _send is not _send_joined:
            _send = _send_joined
            self._write()
        elif error.errno not in (errno.ENOBUFS, errno.ENOMEM):
            raise error

    def _pump(self) -> bool:
        """The socket takes more."""
        self._write()
        if not self._outbox and self._loop is not None:
            self._loop.remove_writer(self._fd)
            self.congested = False
            if not self._gone:
                self._on_room()
        return False  # add_writer goes on calling

    # Receiving

    def _drain(self) -> bool:
        """The socket has something; True if frames are left when the batch is full (LINK-4)."""
        frames = self._hand_over(BATCH_FRAMES)
        room = BATCH_BYTES
        while room > 0 and frames < BATCH_FRAMES and not self._closed:
            n = self._receive()
            room -= n
            frames += self._hand_over(BATCH_FRAMES - frames)
            if n < BUFFER_SIZE:  # add_reader calls again if there is more
                break
        if self._heard and not self._closed:
            if self._on_drained is not None:
                self._on_drained()
            self._heard = False
        return frames >= BATCH_FRAMES

    def _hand_over(self, limit: int) -> int:
        frames = 0
        while frames < limit and not self._closed:
            heard, self._heard = (
                self._heard,
                True,
            )  # also if a KeyboardInterrupt cuts it short (LINK-7)
            if not self._inbox.deliver(self._handler):
                self._heard = heard
                break
            frames += 1
        return frames

    def _receive(self) -> int:
        try:
            n = self._inbox.receive(self._sock)
        except BlockingIOError:
            return 0
        except ConnectionError:  # PP2
            n = 0
        if not n:
            self._gone = True
            self._stop_listening()
        return n

    def _drain_all(self) -> None:
        while not self._closed:
            if not self._hand_over(BATCH_FRAMES) and not self._receive():
                break

    # Closing

    def _stop_listening(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)

    def _release(self) -> None:
        self._sock.close()
        self._page.close()
        self._outbox.clear()


class PipeChildEnd:
    """The worker's side of a socket pair, see `transport.ChildEnd`."""

    def __init__(self, sock: socket.socket, page: SharedPage, forget: Callback) -> None:
        self._sock = sock
        self._page = page
        self._handover = Handover((sock.fileno(), page.fd), forget)

    def __getstate__(self) -> dict[str, object]:
        return {"_handover": self._handover}

    def open(self) -> PipeLink:
        sock_fd, ledger_fd = self._handover.take()
        page = SharedPage(ledger_fd)
        page.close_fd()
        return PipeLink(_adopt(sock_fd), page)

    def release(self) -> None:
        self._sock.close()
        self._page.close_fd()


class PipeBackend:
    """Makes socket pairs, see `transport.Backend`."""

    name: Final = "pipe"

    def __init__(self) -> None:
        self._links = Links()

    def create(self) -> tuple[PipeLink, ChildEnd]:
        page = SharedPage.create()
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            page.close()
            raise
        link = PipeLink(ours, page, self._links)
        return link, PipeChildEnd(theirs, page, self._links.abandon)

    def close(self) -> None:
        self._links.close()
