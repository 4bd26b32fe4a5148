"""Descriptors that are owned here, or on their way into a worker."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import context, reduction
from typing import Any, Final

#: How a sandbox, or a kernel that is too old, refuses a system call. Where the call is a matter of
#: speed or of caution there is a way without; that it is refused says nothing of what it was for.
REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
)


class Descriptor:
    """A file descriptor that is closed with its owner, but not by a forked copy of the owner."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._pid = os.getpid()

    def fileno(self) -> int:
        """The number; ValueError once closed."""
        if self._fd is None:
            raise ValueError("the descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd is None

    def close(self) -> None:
        """Close it, once."""
        fd, self._fd = self._fd, None
        if fd is not None and os.getpid() == self._pid:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Handover:
    """Descriptors on their way into a worker, under every start method.

    Pickled while a process is spawned, they are passed on by number (`DupFd`); a forked worker
    finds the object as it was, as does a test that opens the child end in its own process.
    """

    def __init__(self, fds: Sequence[int], drop_parent: Callable[[], None]) -> None:
        """Hand over `fds`; `drop_parent` closes, in a forked worker, what belongs to the parent."""
        self._handles: Sequence[Any] = ()
        self._fds = tuple(fds)
        self._drop_parent = drop_parent
        self._pid = os.getpid()

    def __getstate__(self) -> tuple[Any, ...]:
        if sys.platform == "win32":
            raise NotImplementedError  # descriptors are numbers of one process there
        context.assert_spawning(self)
        return tuple(reduction.DupFd(fd) for fd in self._fds)

    def __setstate__(self, handles: tuple[Any, ...]) -> None:
        self._handles = handles

    def take(self) -> list[int]:
        """The descriptors, now the caller's own, and not inherited by its children."""
        if self._handles:
            fds = [handle.detach() for handle in self._handles]
            for fd in fds:
                os.set_inheritable(fd, False)
            return fds
        fds = [os.dup(fd) for fd in self._fds]
        if os.getpid() != self._pid:
            self._drop_parent()
        return fds
