"""Lets this process behave as on Windows, as far as another system can simulate it.

`pretend` takes away what Windows lacks, and puts in what it has instead. A shared socket carries
the pretence to the worker that receives it, so that workers do as their parent does.

That shows that the fallbacks run, and fit together. It does not show that Windows is as documented.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from aiomultiprocess import _accel
from aiomultiprocess._parent import worker
from aiomultiprocess._processes import exit as exits
from aiomultiprocess._processes import loops, result, spawn
from aiomultiprocess._transport import pipe, select, windows
from aiomultiprocess._worker import engine, watchdog

#: These ask for the platform when they are called.
ASKING = (exits, loops, spawn, select, engine, watchdog, worker)


class WindowsSys:
    """The module `sys`, on another platform."""

    platform = "win32"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def pretend(folder: Path, replace: Callable[[Any, str, object], None] = setattr) -> None:
    """Do as on Windows from now on; pages that have names are files in `folder`."""
    from multiprocessing import popen_spawn_posix  # which Windows could not import

    for module in ASKING:
        replace(module, "sys", WindowsSys())
    replace(_accel, "_watchdog", None)  # the extension is not built there
    replace(result, "Receiver", result.ThreadReceiver)
    replace(pipe, "_send", pipe._send_joined)
    replace(socket, "socketpair", tcp_pair)
    replace(socket.socket, "share", lambda sock, _pid: Shared(folder, sock))
    replace(windows, "_socket", Sockets)
    replace(windows, "_mmap", Pages(folder))
    # there, a process runs before it gets its start-up message
    replace(popen_spawn_posix.Popen, "pid", None)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """What `socket.socketpair` returns there: two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


class Shared:
    """What `socket.share` returns, bytes there: all that the other process needs for the socket."""

    def __init__(self, folder: Path, sock: socket.socket) -> None:
        self._folder = folder
        self._fd = reduction.DupFd(sock.fileno())

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._folder, self._fd)


def _arrive(folder: Path, fd: Any) -> Any:
    pretend(folder)
    return fd


class Sockets:
    """What the module `socket` has there."""

    @staticmethod
    def fromshare(shared: Any) -> socket.socket:
        sock = socket.socket(fileno=shared.detach())
        sock.set_inheritable(False)
        return sock


class Pages:
    """What the module `mmap` has there: memory that is found by its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mmap(self, fileno: int, length: int, *, tagname: str) -> mmap.mmap:
        assert fileno == -1
        fd = os.open(self._folder / tagname, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, length)
            return mmap.mmap(fd, length)
        finally:
            os.close(fd)
