"""The shared page: memory that outlives its worker, for the pipe transport.

It holds the number of items that the worker has started, and the worker's journal. (The mapping of
the ring transport holds both.) The worker stores the number before it runs user code; the parent
reads it, also after a signal killed the worker. A message would come too late for that, so it is
memory. _wire/journal.py says what a journal is and when the parent reads it; here it is bytes.

PAGE-1  Each word has one writer, and one aligned 8-byte store updates it. A cast memoryview copies
    the item by a fixed-size memcpy, which is one store on every 64-bit machine.
    `struct.pack_into("<Q")` would write byte by byte, and a reader could see half of the value.
PAGE-2  Memory is reserved before it is mapped, so that a full file system is an OSError at that
    point, and not a SIGBUS at the first store.
PAGE-3  Its size is sealed where the system can do that. A worker that changes the size gets an
    EPERM, and the parent gets no SIGBUS.
PAGE-4  Of the system calls that make it only mmap is indispensable, because this transport has to
    work where a sandbox refuses the rest. An unnamed temporary file, in /dev/shm if that is
    writable, replaces a memfd; writing zeros reserves memory as fallocate does.
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
    """Give the file its size, and reserve its memory (PAGE-2)."""
    try:
        os.ftruncate(fd, SIZE)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(fd, 0, SIZE)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _fill(fd)  # PAGE-4


def _fill(fd: int) -> None:
    """Write zeros to the whole file."""
    if sys.platform == "win32":
        raise NotImplementedError
    written = 0
    while written < SIZE:
        written += os.pwrite(fd, bytes(SIZE - written), written)


def _seal(fd: int) -> None:
    """Fix the size of the file (PAGE-3)."""
    if sys.platform != "win32" and hasattr(os, "memfd_create"):
        import fcntl

        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):  # refused by a sandbox, or no memfd (PAGE-4)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _memfd() -> int:
    if sys.platform == "win32":
        raise NotImplementedError
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with contextlib.suppress(OSError):  # before Linux 6.3
        return os.memfd_create("aiomultiprocess-page", flags | _NOEXEC_SEAL)
    return os.memfd_create("aiomultiprocess-page", flags)


def _unnamed_file() -> int:
    import tempfile  # only here: with a memfd, a worker does not need it

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
                error.filename = "mmap"  # names the call that failed
            raise
        self._counter = memoryview(self._map)[:8].cast("Q")

    @classmethod
    def create(cls) -> SharedPage:
        """Make a page that counts from 0; OSError if there is no memory for it."""
        return cls(_memory_fd())

    def _map_page(self) -> mmap.mmap:
        return mmap.mmap(self.fd, SIZE)

    @property
    def started(self) -> int:
        """The total that `mark_started` stored last."""
        return self._counter[0]

    def mark_started(self, n: int) -> None:
        """Store the total `n`, visible to the parent even if the process dies next (PAGE-1)."""
        self._counter[0] = n

    @property
    def journal(self) -> memoryview:
        """A new view of the journal's bytes; release it before `close`."""
        return memoryview(self._map)[_JOURNAL_AT : _JOURNAL_AT + JOURNAL]

    def close_fd(self) -> None:
        """Close the descriptor; the memory stays mapped."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptor and unmap the memory; `started` stays readable. Idempotent."""
        self.close_fd()
        if not self._map.closed:
            shared, self._counter = self._counter, memoryview(bytearray(8)).cast("Q")
            self._counter[0] = shared[0]
            shared.release()
            self._map.close()
