"""The socket over which the two ends of a link pass descriptors; endpoint.py makes it when needed.

Each message is a number of eight bytes and one descriptor. It is there as soon as it was sent, so
an end that learns of it by a frame receives without waiting. No event loop listens to the socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
from struct import Struct
from typing import Any, Final

from .._wire.frames import CorruptHeaderError

_socket: Any = socket  # on Windows it has not all of this
_NUMBER: Final = Struct("<Q")
_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # a fork in between inherits nothing


class DescriptorSocket:
    """One end of it."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`, an end of a pair of Unix sockets."""
        # with all arguments given, Python makes no system call
        self._socket = _socket.socket(_socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
        self._socket.setblocking(False)

    def send(self, number: int, fd: int) -> None:
        """Send a number with a copy of a descriptor.

        OSError if that is not possible now: the other end has not received so many others.
        """
        _socket.send_fds(self._socket, [_NUMBER.pack(number)], [fd])

    def receive(self) -> tuple[int, int] | None:
        """The next number and its descriptor, which the caller owns; None if there is none.

        The descriptor is -1 if this process has no room for it.
        """
        try:
            data, fds, _, _ = _socket.recv_fds(self._socket, _NUMBER.size, 1, _FLAGS)
        except (BlockingIOError, ConnectionError):
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        if len(data) != _NUMBER.size or len(fds) > 1:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise CorruptHeaderError(f"a message of {len(data)} bytes and {len(fds)} descriptors")
        return _NUMBER.unpack(data)[0], fds[0] if fds else -1

    def close(self) -> None:
        """Close it; what was not received is closed too."""
        self._socket.close()
