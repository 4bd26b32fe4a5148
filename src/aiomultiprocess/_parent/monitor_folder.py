"""Where the sockets of monitored pools are: found, checked, named, and cleared of dead ones.

Used by monitor.py, which serves them, and by `python -m aiomultiprocess top`.

MONITORFOLDER-1  A socket lies in a folder that belongs to this user and that no other can open; a
    symbolic link in its place is refused. Besides, both sides check whose process is at the other
    end, so a folder that is exchanged later deceives neither.
MONITORFOLDER-2  A socket is removed only if nothing listens at it, and no process has its number.
    The number alone may be that of a process in another container.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

NAME: Final = "aiomultiprocess"
FORMAT: Final = 1  # of the answers; another one if the fields of the statistics change
LONGEST: Final = 103  # bytes of a socket's path; Linux takes four more
LONGEST_NAME: Final = len("4194304-99999.sock")

_PATTERN: Final = re.compile(r"(\d+)-(\d+)\.sock")
_own_uid: Any = getattr(os, "geteuid", None)


class UnsafeFolderError(Exception):
    """Others could open a folder, or put something else in its place."""


class Place(NamedTuple):
    """The socket of one pool."""

    pid: int
    number: int  # of the pool in its process
    path: str


def own_folder() -> str:
    """The folder for the sockets of this process, made if it is not there; RuntimeError if none."""
    reasons = []
    for folder in _folders():
        try:
            _prepare(folder)
        except (OSError, UnsafeFolderError) as error:
            reasons.append(str(error))
        else:
            return folder
    raise RuntimeError(
        "monitor=True needs a folder that only its owner can open, and there is none "
        f"({'; '.join(reasons)}): set XDG_RUNTIME_DIR to one"
    )


def places() -> list[Place]:
    """The sockets of this user's pools, of all processes; some may be dead."""
    found = []
    for folder in _searched():
        with contextlib.suppress(OSError, UnsafeFolderError):
            _check_private(folder)
            for name in os.listdir(folder):
                if match := _PATTERN.fullmatch(name):
                    path = os.path.join(folder, name)
                    found.append(Place(int(match[1]), int(match[2]), path))
    return sorted(found)


def path_of(folder: str, pid: int, number: int) -> str:
    """The path of the socket of one pool."""
    return os.path.join(folder, f"{pid}-{number}.sock")


def remove_dead(folder: str) -> None:
    """Remove what processes have left that were killed (MONITORFOLDER-2)."""
    for place in places():
        if os.path.dirname(place.path) == folder and not runs(place.pid) and is_dead(place.path):
            with contextlib.suppress(OSError):
                os.unlink(place.path)


def runs(pid: int) -> bool:
    """Whether a process of this number runs, of whatever user; a zombie does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as status:
            return status.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):  # another system, or it has ended just now
        return True


def is_dead(path: str) -> bool:
    """Whether no process listens at a socket."""
    with unix_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # a long queue of those that want to connect, for example
            pass
    return False


def unix_socket() -> socket.socket:
    """A new one for a stream."""
    family: Any = vars(socket)["AF_UNIX"]  # not in the types of Windows
    return socket.socket(family, socket.SOCK_STREAM)


def is_own(peer: socket.socket) -> bool:
    """Whether the process at the other end of a connection is this user's (MONITORFOLDER-1)."""
    options: Any = socket
    if hasattr(socket, "SO_PEERCRED"):
        packed = peer.getsockopt(socket.SOL_SOCKET, options.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3I", packed)[1]
    else:  # macOS: version and uid begin a struct xucred
        packed = peer.getsockopt(0, options.LOCAL_PEERCRED, 76)
        uid = struct.unpack_from("2I", packed)[1]
    return bool(uid == _own_uid())


def _folders() -> Iterator[str]:
    """Where this process may have its sockets, the best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        yield os.path.join(runtime, NAME)
    yield os.path.join(tempfile.gettempdir(), f"{NAME}-{_own_uid()}")


def _searched() -> list[str]:
    """Where processes with another environment may have them, too."""
    usual = (f"/run/user/{_own_uid()}/{NAME}", f"/tmp/{NAME}-{_own_uid()}")
    return list(dict.fromkeys([*_folders(), *usual]))


def _prepare(folder: str) -> None:
    if len(os.fsencode(folder)) + 1 + LONGEST_NAME > LONGEST:
        raise UnsafeFolderError(f"the path {folder} is too long for a socket")
    if not os.path.basename(folder).startswith(f"{NAME}-"):  # below XDG_RUNTIME_DIR
        _check_private(os.path.realpath(os.path.dirname(folder)))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    _check_private(folder)


def _check_private(folder: str) -> None:
    """MONITORFOLDER-1."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolderError(f"{folder} is no folder")
    if found.st_uid != _own_uid():
        raise UnsafeFolderError(f"{folder} belongs to another user")
    if found.st_mode & 0o077:
        raise UnsafeFolderError(f"{folder} is open to other users")
