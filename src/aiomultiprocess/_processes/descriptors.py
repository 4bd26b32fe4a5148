"""File descriptors: their owner, and their way into a child process."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import context, reduction
from typing import Any, Final

#: The errors by which a sandbox or an old kernel refuses a system call. They say nothing about what
#: the call was for. Where the call only adds speed or safety, the caller goes on without it.
REFUSALS: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
)


class Descriptor:
    """A descriptor that closes with its owner, but not in a forked copy of the process."""

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
        """Whether it is closed."""
        return self._fd is None

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None and os.getpid() == self._pid:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Handover:
    """Descriptors that a child process takes over, under every start method.

    While a process is spawned they are pickled as numbers (`DupFd`). A forked child finds this
    object unchanged, as does a test that opens the child end in its own process.
    """

    def __init__(self, fds: Sequence[int], drop_parent: Callable[[], None]) -> None:
        """Hand over `fds`; `drop_parent` closes, in a forked worker, what belongs to the parent."""
        self._handles: Sequence[Any] = ()
        self._fds = tuple(fds)
        self._drop_parent = drop_parent
        self._pid = os.getpid()

    def __getstate__(self) -> tuple[Any, ...]:
        if sys.platform == "win32":
            raise NotImplementedError  # there a descriptor is a number of one process
        context.assert_spawning(self)
        return tuple(reduction.DupFd(fd) for fd in self._fds)

    def __setstate__(self, handles: tuple[Any, ...]) -> None:
        self._handles = handles

    def take(self) -> list[int]:
        """The descriptors, which the caller now owns and its children do not inherit."""
        if self._handles:
            fds = [handle.detach() for handle in self._handles]
            for fd in fds:
                os.set_inheritable(fd, False)
            return fds
        fds = [os.dup(fd) for fd in self._fds]
        if os.getpid() != self._pid:
            self._drop_parent()
        return fds
