"""The socket over which the two ends of a link pass descriptors; endpoint.py makes it when needed.

Each message is numbers of eight bytes, at most `MOST`, and a descriptor for each. Linux holds some
280 messages, however long each is, until the other end receives them. A message is there as soon as
it was sent, so an end that learns of it by a frame receives without waiting. No event loop listens
to the socket. Who uses one in several threads holds a lock (endpoint.py, LARGE-1).
"""

from __future__ import annotations

import contextlib
import os
import socket
from struct import Struct
from typing import Any, Final

from .._processes.descriptors import REFUSALS
from .._wire.frames import CorruptHeaderError

_socket: Any = socket  # on Windows it has not all of this
#: The most descriptors of one message; Linux takes 253.
MOST: Final = 250
_NUMBER: Final = Struct("<Q")
_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # a fork in between inherits nothing


#: What `refusal` has found out, and in which process: a sandbox may begin in a fork.
_known: tuple[int, OSError | None] | None = None


def refusal() -> OSError | None:
    """The error by which this system refuses to pass descriptors; None if it passes them.

    It is tried once. None also if it cannot be tried now, for want of descriptors.
    """
    global _known
    if _known is None or _known[0] != os.getpid():
        try:
            _known = os.getpid(), _try_to_pass()
        except OSError:
            return None
    return _known[1]


def _try_to_pass() -> OSError | None:
    one, other = socket.socketpair()
    with one, other:
        try:
            _socket.send_fds(one, [b"x"], [one.fileno()])
            _, fds, _, _ = _socket.recv_fds(other, 1, 1, _FLAGS)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return error.with_traceback(None)
    for fd in fds:
        os.close(fd)
    return None


class DescriptorSocket:
    """One end of it."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, an end of a pair of Unix sockets."""
        # with all arguments given, Python makes no system call
        self._socket = _socket.socket(_socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self._socket.setblocking(False)
        self._received: list[tuple[int, int]] = []  # of the last message, not returned yet

    def send(self, *numbered: tuple[int, int]) -> int:
        """Send numbers, each with a copy of a descriptor, in one message; returns how many.

        These are the first, at most `MOST`. OSError if that is not possible now: the other end has
        not received so many others.
        """
        first = numbered[:MOST]
        numbers = b"".join(_NUMBER.pack(number) for number, _ in first)
        _socket.send_fds(self._socket, [numbers], [fd for _, fd in first])
        return len(first)

    def receive(self) -> tuple[int, int] | None:
        """The next number and its descriptor, which the caller owns; None if there is none.

        The descriptor is -1 if this process has no room for it.
        """
        if self._received:
            return self._received.pop(0)
        try:
            data, fds, _, _ = _socket.recv_fds(self._socket, MOST * _NUMBER.size, MOST, _FLAGS)
        except (BlockingIOError, ConnectionError):
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        if len(data) % _NUMBER.size or len(fds) > len(data) // _NUMBER.size:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise CorruptHeaderError(f"a message of {len(data)} bytes and {len(fds)} descriptors")
        numbers = [number for (number,) in _NUMBER.iter_unpack(data)]
        lacking = [-1] * (len(numbers) - len(fds))
        self._received += zip(numbers, [*fds, *lacking], strict=True)
        return self._received.pop(0)

    def close(self) -> None:
        """Close it; what was not received is closed too."""
        for _, fd in self._received:
            if fd >= 0:
                os.close(fd)
        self._received = []
        self._socket.close()
