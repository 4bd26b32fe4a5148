"""Shared memory that outlives its writer: how many items a worker has started, and its journal.

The pipe transport keeps it (the ring transport has both in its mapping). The worker stores the
total before it runs user code; the parent reads it, also after the worker was killed by a signal
that left it no time to say anything. So it is memory, not a message. What a journal is, and who
reads it when, is told in `journal`; here it is bytes.

PAGE-1  One writer, one aligned 8-byte store for an update: a cast memoryview copies the item by a
    fixed-size memcpy, which is one store on every 64-bit machine. `struct.pack_into("<Q")` would
    not do: it writes byte by byte, and a reader could see half of it.
PAGE-2  Memory is reserved before it is mapped, so that a full file system is an OSError here and
    not a SIGBUS at the first store.
PAGE-3  Its size is sealed where the system can: what a worker does to the descriptor is an EPERM
    there and not a SIGBUS in the parent.
PAGE-4  Of the system calls that make it, only mmap cannot be done without: this transport serves
    where a sandbox leaves nothing else. An unnamed temporary file serves in place of a memfd, in
    /dev/shm
    where that can be written; and zeros that are written reserve memory as fallocate does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys

from .._processes.descriptors import REFUSALS

JOURNAL = 64 << 10  # bytes: about what one RESULTS frame carries
_JOURNAL_AT = 128  # bytes: on a cache line of its own
SIZE = mmap.PAGESIZE + JOURNAL
_NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL: a kernel with vm.memfd_noexec=2 insists on it


def _reserve(fd: int) -> None:
    """PAGE-2."""
    try:
        os.ftruncate(fd, SIZE)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(fd, 0, SIZE)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _fill(fd)  # PAGE-4


def _fill(fd: int) -> None:
    """Write zeros to all of it."""
    if sys.platform == "win32":
        raise NotImplementedError
    written = 0
    while written < SIZE:
        written += os.pwrite(fd, bytes(SIZE - written), written)


def _seal(fd: int) -> None:
    """PAGE-3: from now on, nobody can change the size."""
    if sys.platform != "win32" and hasattr(os, "memfd_create"):
        import fcntl

        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):  # a sandbox refuses it, or it is no memfd (PAGE-4)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _memfd() -> int:
    if sys.platform == "win32":
        raise NotImplementedError
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with contextlib.suppress(OSError):  # before Linux 6.3
        return os.memfd_create("aiomultiprocess-ledger", flags | _NOEXEC_SEAL)
    return os.memfd_create("aiomultiprocess-ledger", flags)


def _unnamed_file() -> int:
    import tempfile  # only here: where there is a memfd, a worker would load it for nothing

    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _memory_fd() -> int:
    """A new descriptor of `SIZE` bytes of memory that have no name."""
    try:
        fd = _memfd() if hasattr(os, "memfd_create") else _unnamed_file()
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        fd = _unnamed_file()  # PAGE-4
    try:
        _reserve(fd)
        _seal(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedPage:
    """A counter, `started`, and room for a journal."""

    def __init__(self, fd: int) -> None:
        """Map the memory behind `fd` and keep the descriptor until `close_fd`."""
        self.fd = fd
        try:
            self._map = self._map_page()
        except (OSError, ValueError) as error:
            self.close_fd()
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = "mmap"  # which call of several it was
            raise
        self._counter = memoryview(self._map)[:8].cast("Q")

    @classmethod
    def create(cls) -> SharedPage:
        """A new ledger that counts from 0; OSError if there is no memory for it."""
        return cls(_memory_fd())

    def _map_page(self) -> mmap.mmap:
        return mmap.mmap(self.fd, SIZE)

    @property
    def started(self) -> int:
        """The last total that was marked."""
        return self._counter[0]

    def mark_started(self, n: int) -> None:
        """Store the total `n` where the parent will find it, whatever happens next (PAGE-1)."""
        self._counter[0] = n

    @property
    def journal(self) -> memoryview:
        """A view of the journal's bytes; it must be released before `close`."""
        return memoryview(self._map)[_JOURNAL_AT : _JOURNAL_AT + JOURNAL]

    def close_fd(self) -> None:
        """Give up the descriptor; the memory stays mapped."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give up the descriptor and the memory; the last total stays readable. Idempotent."""
        self.close_fd()
        if not self._map.closed:
            shared, self._counter = self._counter, memoryview(bytearray(8)).cast("Q")
            self._counter[0] = shared[0]
            shared.release()
            self._map.close()
