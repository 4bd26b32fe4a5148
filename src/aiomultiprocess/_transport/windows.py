"""The pipe transport on Windows, where a process cannot inherit descriptors. Experimental.

Frames and links are those of pipe.py. What is below them differs:

WINDOWS-1  A socket is duplicated for the pid of the worker that starts, without a server in
    between. The pid is known while the worker's start-up message is pickled, because on Windows
    multiprocessing writes that message to a process that runs already.
WINDOWS-2  The shared page has a name instead of a descriptor. The name is random, so no other
    process knows it, and the page goes with the last of the two processes that map it.
WINDOWS-3  The pair of sockets is a TCP connection. Small frames must not wait for an
    acknowledgement of those before them. The last bytes of a dead worker may still be in transit
    when its exit is noticed, so `drain_dead` waits for EOF, which follows them at once.

Windows drops what a killed process had sent and the peer had not received. Items whose results are
lost that way had been started, and fail with WorkerLostError: LINK-9 holds no further.
"""

from __future__ import annotations

import mmap
import os
import socket
from multiprocessing import context
from typing import Any, Final

from .endpoint import OpenLinks
from .link import entries_for
from .pipe import PipeBackend, PipeLink
from .shared_page import SharedPage, size_of

#: Seconds that `drain_dead` waits for the last bytes of a dead worker, which usually are there.
LAST_BYTES: Final = 1.0

# A type checker on another system does not know what these have on Windows.
_mmap: Any = mmap
_socket: Any = socket


class NamedSharedPage(SharedPage):
    """A shared page that is found by its name (WINDOWS-2)."""

    def __init__(self, name: str, entries: int = 1) -> None:
        """Map the page of that name; make it if there is none."""
        self.name = name
        super().__init__(-1, entries)

    @classmethod
    def create(cls, entries: int = 1) -> NamedSharedPage:
        """Make a page that counts from 0; OSError if there is no memory for it."""
        return cls(f"aiomultiprocess-{os.urandom(16).hex()}", entries)

    def _map_page(self) -> mmap.mmap:
        page: mmap.mmap = _mmap.mmap(-1, size_of(self.entries), tagname=self.name)
        return page


class TcpLink(PipeLink):
    """One end of a TCP connection, a `Link` (WINDOWS-3)."""

    def __init__(
        self, sock: socket.socket, page: SharedPage, links: OpenLinks | None = None
    ) -> None:
        super().__init__(sock, page, links)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _receive(self) -> int:
        try:
            return super()._receive()
        except TimeoutError:  # only while _drain_all waits
            return 0

    def _drain_all(self) -> None:
        self._sock.settimeout(LAST_BYTES)
        try:
            super()._drain_all()
        finally:
            self._sock.setblocking(False)


class SharedChildEnd:
    """The worker's side of a TCP connection, a `ChildEnd` (WINDOWS-1)."""

    def __init__(self, sock: socket.socket, page: NamedSharedPage) -> None:
        self._sock: Any = sock
        self._shared: Any = None  # in the worker: what `fromshare` makes the socket of
        self._name = page.name
        self._entries = page.entries

    def __getstate__(self) -> dict[str, object]:
        context.assert_spawning(self)
        worker: Any = context.get_spawning_popen()
        shared = self._sock.share(worker.pid)
        return {"_shared": shared, "_name": self._name, "_entries": self._entries}

    def open(self) -> PipeLink:
        page = NamedSharedPage(self._name, self._entries)
        return TcpLink(self._take(), page)

    def _take(self) -> socket.socket:
        if hasattr(self, "_sock"):  # in the process that made it, as in tests
            taken: socket.socket = self._sock.dup()
        else:
            taken = _socket.fromshare(self._shared)
        return taken

    def release(self) -> None:
        self._sock.close()


class WindowsPipeBackend(PipeBackend):
    """Makes TCP connections, a `Backend`."""

    def create(self, concurrency: int = 1) -> tuple[PipeLink, SharedChildEnd]:
        page = NamedSharedPage.create(entries_for(concurrency))
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            page.close()
            raise
        return TcpLink(ours, page, self._links), SharedChildEnd(theirs, page)
