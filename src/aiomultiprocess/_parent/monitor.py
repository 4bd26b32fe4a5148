"""`Pool(monitor=True)`: a unix socket at which the pool's owner reads what the pool does.

Who connects gets one JSON object with the statistics of the moment, and the end of the connection.
What a client sends is never read. `python -m aiomultiprocess top` is such a client.

MONITOR-1  All of it runs in callbacks of the pool's loop, and nothing there waits for a client:
    what does not fit into the socket's buffer at once is sent when there is room, to a limited
    number of clients; the one that has waited longest gives way to one more.
MONITOR-2  A forked copy of this process closes its copies of the descriptors, so that the socket is
    dead when its owner is. It neither answers, nor removes the socket, nor touches the selector,
    which it shares with its parent.
MONITOR-3  A monitor refers to the engine and not to the pool, as the engine does (ENGINE-2). It
    ends with the engine's workers, or with the pool object.
MONITOR-4  A socket gets its final name when it accepts connections: one of that name that refuses
    them is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import socket
import sys
import time
import weakref
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Final

from .._processes import loops
from ..types import describe_error, shown
from . import monitor_folder
from .stats import stats_of

if TYPE_CHECKING:
    from .engine import Engine
    from .worker import PoolWorker

CLIENTS: Final = 16  # that may be slow at once, and as many that wait to be accepted
PAUSE: Final = 1.0  # seconds until the next attempt, where the system has no descriptor left
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
QUIET: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)  # for programs that have reset SIGPIPE

_numbers = itertools.count(1)
_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


def watch(pool: object, engine: Engine, backend: str) -> None:
    """Serve the statistics of a pool until it ends; if that cannot be, the pool is broken."""
    try:
        monitor = Monitor(engine, backend)
    except Exception as error:
        # as where workers cannot be started: not the error itself, whose traceback leads here
        engine.break_down(
            RuntimeError(f"the pool could not be started ({describe_error(error)}): make another")
        )
        raise
    engine.at_end = monitor.close
    Finalize(pool, monitor.close, exitpriority=0)  # MONITOR-3: it may have no workers to be ended


class Monitor:
    """The socket of one pool, and the clients that have not got all yet."""

    def __init__(self, engine: Engine, backend: str) -> None:
        """Begin to serve. RuntimeError if there is no safe folder, OSError if no socket."""
        self._engine = engine
        self._backend = backend
        self._loop = engine.loop
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._closed = False
        self._clients: dict[socket.socket, memoryview] = {}  # with the rest that each has to get
        self._retry: asyncio.TimerHandle | None = None
        folder = monitor_folder.own_folder()
        monitor_folder.remove_dead(folder)
        self._listener = monitor_folder.unix_socket()
        try:
            self._listen(folder)
            self._loop.add_reader(self._listener.fileno(), self._accept)
        except BaseException:
            self._listener.close()
            raise
        _monitors.add(self)

    def _listen(self, folder: str) -> None:
        self._number, self.path = self._free_name(folder)
        hidden = os.path.join(folder, f".{self._pid}-{self._number}")
        with contextlib.suppress(FileNotFoundError):  # of a process that had this number
            os.unlink(hidden)
        self._listener.setblocking(False)
        self._listener.bind(hidden)
        os.chmod(hidden, 0o600)
        self._listener.listen(CLIENTS)
        self._inode = os.lstat(hidden).st_ino
        os.rename(hidden, self.path)  # MONITOR-4

    def _free_name(self, folder: str) -> tuple[int, str]:
        """A number and a path that no other pool has: processes in containers share numbers."""
        while True:
            number = next(_numbers)
            path = monitor_folder.path_of(folder, self._pid, number)
            if monitor_folder.is_dead(path):
                return number, path

    # -- clients -------------------------------------------------------------------------------

    def _accept(self) -> None:
        if self._closed:
            return
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # else the client has gone meanwhile
            if error.errno in EXHAUSTED:
                self._pause()
            return
        try:
            client.setblocking(False)
            answer = self._answer() if monitor_folder.is_own(client) else b""
        except BaseException:
            client.close()
            raise
        self._send(client, memoryview(answer))

    def _pause(self) -> None:
        """Do not ask again at once: the loop would do nothing else."""
        self._loop.remove_reader(self._listener.fileno())
        self._retry = self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _send(self, client: socket.socket, rest: memoryview) -> None:
        """Send what there is room for (MONITOR-1)."""
        try:
            rest = rest[client.send(rest, QUIET) :]
        except BlockingIOError:
            pass
        except OSError:  # it has gone
            rest = rest[:0]
        if rest:
            self._keep(client, rest)
        else:
            self._drop(client)

    def _keep(self, client: socket.socket, rest: memoryview) -> None:
        """Go on when there is room; the client that has waited longest gives way."""
        if client not in self._clients:
            if len(self._clients) == CLIENTS:
                self._drop(next(iter(self._clients)))
            self._loop.add_writer(client.fileno(), self._go_on, client)
        self._clients[client] = rest

    def _go_on(self, client: socket.socket) -> None:
        if client in self._clients:
            self._send(client, self._clients[client])

    def _drop(self, client: socket.socket) -> None:
        if self._clients.pop(client, None) is not None and not self._loop.is_closed():
            self._loop.remove_writer(client.fileno())
        client.close()

    def _answer(self) -> bytes:
        engine = self._engine
        states = {(each.index, each.pid): state_of(each) for each in engine.supervisor.workers}
        # not by asdict(), which copies: what a scheduler names its queues by may refuse that
        stats = dict(vars(stats_of(engine)))
        stats["workers"] = [
            {**vars(worker), "state": states[worker.index, worker.pid]}
            for worker in stats["workers"]
        ]
        answer = {
            "format": monitor_folder.FORMAT,
            "pid": self._pid,
            "program": os.path.basename((getattr(sys, "argv", None) or [""])[0]),
            "pool": self._number,
            "backend": self._backend,
            "state": engine.state.value,
            "uptime": time.monotonic() - self._began,
            "stats": stats,
        }
        return json.dumps(answer, default=shown).encode() + b"\n"

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove the socket, and close it; from any thread. Idempotent."""
        if self._closed or os.getpid() != self._pid:  # MONITOR-2
            return
        self._closed = True
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        if self._loop.is_running() and loops.running_loop() is not self._loop:
            with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                self._loop.call_soon_threadsafe(self._release)
                return
        self._release()

    def _release(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        if self._retry is not None:
            self._retry.cancel()
        elif not self._loop.is_closed():
            self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def leave_to_parent(self) -> None:
        """This is a forked copy of the process (MONITOR-2)."""
        self._closed = True
        for each in (self._listener, *self._clients):
            each.close()
        self._clients.clear()


def state_of(worker: PoolWorker) -> str:
    """What a worker is at: "starting", "leaving", "running" or "idle"."""
    if not worker.ready:
        return "starting"
    if worker.leaving or worker.retired or worker.dismissed or worker.exiting:
        return "leaving"
    return "running" if worker.credit.sent > worker.credit.reported else "idle"


def _after_fork() -> None:
    for monitor in list(_monitors):
        monitor.leave_to_parent()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
