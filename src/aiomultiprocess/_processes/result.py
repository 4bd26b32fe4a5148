"""Bring the result of a `Worker` from its child process to the parent, through a pipe of its own.

    child: STARTED, then one header and its payload -> pipe -> Receiver, in the parent's loop

PROCRESULT-1  The parent reads whenever it can: when its loop runs, when the process is queried, and
    when the process has ended. So a child that writes more than a pipe holds does not wait forever
    for a parent that waits for its exit.
    After a Ctrl-C within a read, which may have lost bytes, it reads no more.
PROCRESULT-2  The length in the header, not the end of the pipe, marks the end of a result: a
    process that the child forked may keep the pipe open.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import struct
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.util import Finalize
from typing import Any, TypeAlias

from .._wire import exceptions
from .._wire.tracebacks import without_our_frames
from ..types import describe_error, import_hint, shown
from . import loops
from .descriptors import REFUSALS, Descriptor, Handover

STARTED = b"\x01"  # our code runs in the child, so its main module was imported
HEADER = struct.Struct("<BQ")  # kind, length of the payload
RESULT, ERROR, START_ERROR = 0, 1, 2
PUMP_BYTES = 1 << 20  # read in one callback, so that the loop goes on in between


def dump_result(value: object, label: str, dumps: Callable[[Any], bytes]) -> bytes:
    """Pickle a result. PicklingError names the target and the way out."""
    try:
        return dumps(value)
    except Exception as error:  # a __reduce__ of the user may raise anything
        without_our_frames(error)
        raise _unsent(error, value, label) from error


def _unsent(error: Exception, value: object, label: str) -> Exception:
    why = describe_error(error)
    if issubclass(type(error), MemoryError):
        return MemoryError(
            f"the result of {label} cannot be sent to the parent process: there is too little "
            f"memory for it ({why}). Return it in parts, or put it into a file and return its name"
        )
    return pickle.PicklingError(
        f"the result of {label} cannot be pickled and sent to the parent process ({why}); "
        f"return plain data, not {shown(value)}"
    )


def load_result(kind: int, payload: bytearray, label: str) -> Any:
    """The result, or the exception that the parent returns in its place."""
    if kind == ERROR:
        return exceptions.load_original(payload)
    try:
        return pickle.loads(payload)
    except Exception as error:  # a __setstate__ of the user may raise anything
        without_our_frames(error)
        raise pickle.UnpicklingError(
            f"the result of {label} arrived but cannot be unpickled here ({describe_error(error)})"
            f"{import_hint(error)}"
        ) from error


class Incoming:
    """Collects the bytes of one result."""

    def __init__(self) -> None:
        self.started = False
        self.lacked = 0  # bytes of a result for which there is no memory
        self._head = bytearray(len(STARTED) + HEADER.size)
        self._body: bytearray | None = None
        self._kind = RESULT
        self._unread = memoryview(self._head)

    @property
    def message(self) -> tuple[int, bytearray] | None:
        """Kind and payload; None until they are complete."""
        if self._unread or self._body is None:
            return None
        return self._kind, self._body

    def read(self, read: Callable[[memoryview], int]) -> int:
        """Read on by one call of `read`, which fills a view and returns how many bytes came."""
        count = read(self._unread)
        self._unread = self._unread[count:]
        self.started = self.started or count > 0
        if not self._unread and self._body is None:
            # PROCRESULT-2
            self._kind, length = HEADER.unpack_from(self._head, len(STARTED))
            try:
                body = bytearray(length)
            except MemoryError:
                self.lacked = length
            else:
                self._unread = memoryview(body)  # first: an empty one means that all has come
                self._body = body
        return count


class PipeSender:
    """The child's end; it travels with the process that starts."""

    def __init__(self, handover: Handover) -> None:
        self._handover = handover
        self._fd = -1
        self._pid = 0

    def open(self) -> None:
        """In the child: take the pipe over, and write STARTED."""
        [self._fd] = self._handover.take()
        self._pid = os.getpid()
        self._write(STARTED)

    def send(self, kind: int, payload: Any) -> None:
        """Write the result. It blocks until the parent has read all but what a pipe holds.

        A forked copy of the child, in which its target went on, writes nothing.
        """
        if os.getpid() != self._pid:
            return
        self._write(HEADER.pack(kind, len(payload)))
        self._write(payload)

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError:
            return  # the parent does not want it


class PipeReceiver:
    """The parent's end: a pipe that the loop reads."""

    def __init__(self) -> None:
        ours, theirs = os.pipe()
        self._ours = Descriptor(ours)
        self._theirs = Descriptor(theirs)
        if sys.platform != "win32":
            os.set_blocking(ours, False)
        self._readers: dict[asyncio.AbstractEventLoop, Descriptor] = {}
        # at exit, before multiprocessing joins a child that may still write (PROCRESULT-1)
        Finalize(self, _close_ends, (self._ours, self._readers), exitpriority=0)
        self.incoming = Incoming()
        self.sender = PipeSender(Handover([theirs], self._drop_parent))
        self._open = True
        self._lock = threading.RLock()
        self._reading = False  # a signal handler may call `pump` inside `pump`
        self._pid = os.getpid()

    def release(self) -> None:
        """After the start of the process: close its end here."""
        self._theirs.close()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read in this loop too (PROCRESULT-1).

        Each loop has a descriptor of its own, since another loop may close first.
        """
        with self._lock:
            for ended in [other for other in self._readers if other.is_closed()]:
                self._readers.pop(ended).close()
            if self._is_open() and loop not in self._readers:
                own = self._readers[loop] = Descriptor(os.dup(self._ours.fileno()))
                loop.add_reader(own.fileno(), self.pump)

    def pump(self, limit: int = PUMP_BYTES) -> None:
        """Read what has arrived, about `limit` bytes at most. For any thread."""
        with self._lock:
            if self._reading:
                return
            self._reading = True
            try:
                self._read_on(limit)
            finally:
                self._reading = False

    def _read_on(self, limit: int) -> None:
        while self._is_open() and limit > 0:
            try:
                count = self.incoming.read(self._read)
            except BlockingIOError:
                return
            except BaseException:  # PROCRESULT-1
                self.close()
                raise
            limit -= count
            if not count or self.incoming.lacked or self.incoming.message is not None:
                self.close()

    def _is_open(self) -> bool:
        """Whether there may be more to read. A forked copy of the parent reads nothing."""
        return self._open and not self._ours.closed and os.getpid() == self._pid

    def close(self) -> None:
        """Stop reading; what was read stays."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._open = False
            readers = dict(self._readers)
            self._readers.clear()
            self._ours.close()
            self._theirs.close()
        for loop, own in readers.items():
            if loop.is_closed():
                own.close()
            elif loop.is_running() and loop is not loops.running_loop():  # in another thread
                with contextlib.suppress(RuntimeError):  # it was closed just now
                    loop.call_soon_threadsafe(_stop_reading, loop, own)
            else:
                _stop_reading(loop, own)

    def _read(self, view: memoryview) -> int:
        if sys.platform == "win32":
            raise NotImplementedError
        try:
            return os.readv(self._ours.fileno(), [view])
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
        # a sandbox refuses it
        return _copy(memoryview(os.read(self._ours.fileno(), min(len(view), PUMP_BYTES))), view)

    def _drop_parent(self) -> None:
        """In a forked child: close its copies of the parent's ends, which keep the pipe open."""
        os.close(self._ours.fileno())
        os.close(self._theirs.fileno())


def _close_ends(ours: Descriptor, readers: dict[Any, Descriptor]) -> None:
    for descriptor in (ours, *readers.values()):
        descriptor.close()


def _stop_reading(loop: asyncio.AbstractEventLoop, own: Descriptor) -> None:
    loop.remove_reader(own.fileno())
    own.close()


class ConnectionSender:
    """The child's end; it travels with the process that starts."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def open(self) -> None:
        """In the child: write STARTED."""
        self._connection.send_bytes(STARTED)

    def send(self, kind: int, payload: Any) -> None:
        """Write the result."""
        self._connection.send_bytes(HEADER.pack(kind, len(payload)))
        self._connection.send_bytes(payload)


class ThreadReceiver:
    """The parent's end on Windows, where loops cannot wait for pipes: a thread reads."""

    def __init__(self) -> None:
        self._ours, self._theirs = Pipe(duplex=False)
        self.incoming = Incoming()
        self.sender = ConnectionSender(self._theirs)
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def release(self) -> None:
        """After the start of the process: close its end here."""
        self._theirs.close()
        self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do nothing: the thread reads."""

    def pump(self, limit: int = PUMP_BYTES) -> None:
        """Do nothing: the thread reads."""

    def close(self) -> None:
        """Wait until the thread has read to the end of the pipe."""
        self._theirs.close()
        if self._thread.is_alive():
            self._thread.join()
        self._ours.close()

    def _receive(self) -> None:
        try:
            while self.incoming.message is None and not self.incoming.lacked:
                data = memoryview(self._ours.recv_bytes())
                while data:
                    data = data[self.incoming.read(functools.partial(_copy, data)) :]
        except (EOFError, OSError):
            return


def _copy(source: memoryview, target: memoryview) -> int:
    count = min(len(source), len(target))
    target[:count] = source[:count]
    return count


Sender: TypeAlias = PipeSender | ConnectionSender
Receiver: type[PipeReceiver] | type[ThreadReceiver]
Receiver = ThreadReceiver if sys.platform == "win32" else PipeReceiver
