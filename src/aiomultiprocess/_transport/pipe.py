"""The pipe transport: frames over a non-blocking socket pair for each worker, in pure Python.

It serves where the extension is missing or shared memory is refused (select.py). It is no ring in
shared memory because Python cannot express acquire and release. link.py is the contract.

Sending: small segments are copied together into a *tail*, so that a batch of small frames is one
system call; large segments queue in the outbox as they are. What the socket does not take waits for
`add_writer`. Receiving: one `recv_into` a callback, into a buffer that frames are handed over from
in place. An `Assembly` puts a payload together that is larger than the buffer.

PIPE-1  Bytes that are received and not yet handed over stay within [begin, end) of the buffer, and
    the buffer never moves: payloads are views of it.
PIPE-2  EOF and every error of the connection mean that the peer is gone (LINK-9). The link then
    stops listening and drops what it is given to send.

Sockets of Windows have no `sendmsg` (see `_send_joined`); windows.py has all other differences.

Descriptors: the parent has three for each worker (socket, shared page, and the socket by which
descriptors of large buffers pass), and until `ChildEnd.release` three more; a worker has three. On
Windows there are no descriptors to pass.
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
from .._wire.assembly import Assembly, Borrow
from .._wire.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_PARTS,
    PART_SIZE,
    Handler,
    Segment,
    check_header,
    check_payload,
    is_constant,
)
from .endpoint import Endpoint, LargeBuffers, OpenLinks, open_this_end, watch_fd
from .link import (
    BATCH_BYTES,
    BATCH_FRAMES,
    DEFAULT_LIMITS,
    Callback,
    ChildEnd,
    Limits,
    entries_for,
)
from .shared_page import SharedPage

#: Bytes received at once. A larger payload is not handed over from the buffer.
BUFFER_SIZE: Final = 1 << 17
#: Segments of this size or more are sent from where they are, and not copied together.
LARGE_SEGMENT: Final = 1 << 14
#: A batch of this size is sent without waiting for `flush`.
EAGER: Final = 1 << 16
#: The send buffer that a link requests from the kernel, which may grant less.
SOCKET_BUFFER: Final = 1 << 20
#: The most segments of one `sendmsg`; POSIX promises 16, every kernel of interest takes 1024.
MAX_SEGMENTS: Final = 64
#: Bytes that are copied together for one `send` where there is no `sendmsg`.
JOINED: Final = 1 << 17

_pack, _unpack = HEADER.pack, HEADER.unpack_from


def _send_joined(sock: socket.socket, segments: Sequence[Segment]) -> int:
    """`sendmsg` for sockets that have none: send a bounded copy of the segments."""
    joined = bytearray()
    for segment in segments:
        joined += memoryview(segment)[: JOINED - len(joined)]
        if len(joined) == JOINED:
            break
    return sock.send(joined)


_send: Any = getattr(socket.socket, "sendmsg", _send_joined)


def _adopt(fd: int) -> socket.socket:
    """Make a socket of one end of a pair. With all arguments given, Python makes no system call."""
    if sys.platform == "win32":
        raise NotImplementedError
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)


def kept_segment(segment: Segment) -> Segment:
    """The segment itself if `Outbox.add` copies it or it cannot change; else a copy (LINK-10)."""
    if len(segment) < LARGE_SEGMENT or is_constant(segment):
        return segment
    return bytes(segment)


class Outbox:
    """What waits to be written, in order: whole segments, then a tail of small ones."""

    def __init__(self) -> None:
        self.queue: deque[Segment] = deque()
        self.tail = bytearray()

    def __bool__(self) -> bool:
        return bool(self.tail or self.queue)

    def add(self, segment: Segment) -> None:
        """Append a segment that `kept_segment` returned."""
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
        """The place where the next frame begins, for `take_back`."""
        return len(self.queue), self.tail, len(self.tail)

    def take_back(self, segments: int, tail: bytearray, size: int) -> None:
        """Drop a frame of which only a part was added; nothing of it is written yet."""
        while len(self.queue) > segments:
            self.queue.pop()
        self.tail = tail
        del tail[size:]

    def next(self) -> list[Segment]:
        """The segments to write next, at most `MAX_SEGMENTS`."""
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
    """What has arrived and is not yet handed over."""

    def __init__(self, borrow: Borrow) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._assembly = Assembly(BufferBuilder, borrow)

    def receive(self, sock: socket.socket) -> int:
        """Receive once; return the number of bytes, 0 at EOF. BlockingIOError if there are none."""
        if self._begin:  # PIPE-1
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
        self._begin = end  # before the call: a handler that raises does not get its frame again
        with self._view[begin:end] as payload:
            handler(kind, flags, count, chunk_id, offset, function, payload)
        return True

    def drop(self) -> None:
        """Drop what has arrived of a payload."""
        self._assembly = Assembly(BufferBuilder)

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
    """One end of a socket pair, a `Link`."""

    def __init__(
        self,
        sock: socket.socket,
        page: SharedPage,
        links: OpenLinks | None = None,
        large_buffers: LargeBuffers | None = None,
    ) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a sandbox refuses it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        super().__init__(page, None, large_buffers)
        self._sock = sock
        self._fd = sock.fileno()
        self._page = page
        self._outbox = Outbox()
        self._inbox = Inbox(self._large.borrow)
        self._in_batch = False  # frames were handed over since the last `on_drained`
        self._gone = False
        if links is not None:  # last: Ctrl-C may cut this short, and `close` needs all of a link
            self._links = links
            links.add(self)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            watch_fd(loop, self._fd, self._turn, self._drain)
        except RuntimeError:
            self._loop = None  # it could not remove the reader either
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
        check_payload(size)
        if self._closed or self._broken or self._gone:
            return
        sizes, lent = b"", False
        if HEADER_SIZE + size > BUFFER_SIZE and 1 < len(payload) <= MAX_PARTS:  # FRAME-4
            payload, sizes = self._in_parts(payload)
            lent = sum(map(len, payload)) < size
            size = sum(map(len, payload))
        parts = len(sizes) // PART_SIZE
        outbox = self._outbox
        mark = outbox.mark()
        try:
            # first, as the copies may be too much for memory: then nothing of the frame is queued
            payload = [kept_segment(segment) for segment in payload]
            outbox.tail += _pack(kind, flags, parts, count, chunk_id, offset, function, size)
            outbox.tail += sizes
            for segment in payload:
                outbox.add(segment)
        except MemoryError:
            outbox.take_back(*mark)
            if sizes:
                self._large.undo()
            raise
        if lent or size + len(outbox.tail) >= EAGER:  # to copy the next large buffer takes long
            self.flush()

    def flush(self) -> None:
        if not self._outbox or self.congested or self._closed or self._broken or self._gone:
            return
        self._write()
        if self._outbox and self._loop is not None:
            self.congested = True
            self._loop.add_writer(self._fd, self._turn, self._pump)

    def _write(self) -> None:
        """Write until nothing is left, the socket is full, or the turn is over (LINK-2, LINK-4)."""
        room = BATCH_BYTES
        try:
            while self._outbox and room > 0:
                n: int = _send(self._sock, self._outbox.next())
                self._outbox.written(n)
                room -= n
        except BlockingIOError:
            pass
        except ConnectionError:  # PIPE-2
            self._gone = True
            self._outbox.clear()
        except OSError as error:
            self._on_refusal(error)

    def _on_refusal(self, error: OSError) -> None:
        """Handle an error of `_send`: a sandbox refuses `sendmsg`, or memory is short."""
        global _send
        if error.errno in REFUSALS and _send is not _send_joined:
            _send = _send_joined
            self._write()
        elif error.errno not in (errno.ENOBUFS, errno.ENOMEM):
            raise error

    def _pump(self) -> bool:
        """Write on, now that the socket takes more."""
        self._write()
        if not self._outbox and self._loop is not None:
            self._loop.remove_writer(self._fd)
            self.congested = False
            if not self._gone:
                self._on_room()
        return False  # the loop calls again while the socket takes more

    # Receiving

    def _drain(self) -> bool:
        """Receive and hand over one batch; True if frames may be left after it (LINK-4)."""
        frames = self._hand_over(BATCH_FRAMES)
        room = BATCH_BYTES
        while room > 0 and frames < BATCH_FRAMES and not self._closed:
            n = self._receive()
            room -= n
            frames += self._hand_over(BATCH_FRAMES - frames)
            if n < BUFFER_SIZE:  # add_reader calls again if there is more
                break
        if self._in_batch and not self._closed:
            if self._on_drained is not None:
                self._on_drained()
            self._in_batch = False
        return frames >= BATCH_FRAMES

    def _hand_over(self, limit: int) -> int:
        frames = 0
        while frames < limit and not self._closed:
            # before the handler runs, as a KeyboardInterrupt may end it (LINK-7)
            in_batch, self._in_batch = self._in_batch, True
            if not self._inbox.deliver(self._handler):
                self._in_batch = in_batch
                break
            frames += 1
        return frames

    def _receive(self) -> int:
        try:
            n = self._inbox.receive(self._sock)
        except BlockingIOError:
            return 0
        except ConnectionError:  # PIPE-2
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
        self._inbox.drop()


class PipeChildEnd:
    """The worker's side of a socket pair, a `ChildEnd`."""

    def __init__(
        self,
        sock: socket.socket,
        page: SharedPage,
        descriptors: socket.socket,
        limits: Limits,
        drop_parent: Callback,
    ) -> None:
        self._sock = sock
        self._page = page
        self._descriptors = descriptors
        self._limits = limits
        self._entries = page.entries
        self._handover = Handover((sock.fileno(), page.fd, descriptors.fileno()), drop_parent)

    def __getstate__(self) -> dict[str, object]:
        return {
            "_handover": self._handover,
            "_entries": self._entries,
            "_limits": tuple(self._limits),
        }

    def open(self) -> PipeLink:
        sock_fd, page_fd, descriptors_fd = self._handover.take()
        page = SharedPage(page_fd, self._entries)
        page.close_fd()
        large_buffers = open_this_end(descriptors_fd, Limits(*self._limits))
        return PipeLink(_adopt(sock_fd), page, large_buffers=large_buffers)

    def release(self) -> None:
        self._sock.close()
        self._descriptors.close()
        self._page.close_fd()


class PipeBackend:
    """Makes socket pairs, a `Backend`."""

    name: Final = "pipe"

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._links = OpenLinks()
        self.limits = limits

    def create(self, concurrency: int = 1) -> tuple[PipeLink, ChildEnd]:
        with contextlib.ExitStack() as undo:  # if the system refuses one, or Ctrl-C strikes
            page = SharedPage.create(entries_for(concurrency))
            undo.callback(page.close)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours_too, theirs_too = socket.socketpair()
            undo.callback(theirs_too.close)
            large_buffers = LargeBuffers(ours_too.detach(), self.limits)
            undo.callback(large_buffers.close)
            link = PipeLink(ours, page, self._links, large_buffers)
            undo.callback(link.close)
            end = PipeChildEnd(theirs, page, theirs_too, self.limits, self._links.abandon)
            undo.pop_all()
        return link, end

    def close(self) -> None:
        self._links.close()
