"""The shared page: memory that outlives its worker, for the pipe transport.

It holds the number of items that the worker has started, the words of its loop's turn (ring.h says
what these are), the worker's journal, and the table of running items, which says which items with a
time limit run, and since when. (The mapping of the
ring transport holds the same.) The worker stores the number before it runs user code; the parent
reads it, also after a signal killed the worker. A message would come too late for that, so it is
memory. _wire/journal.py says what a journal is and when the parent reads it; here it is bytes.

An entry of the table has two words: the number of an item, counted from 1 (0: the entry is free),
and its start time in nanoseconds of the monotonic clock. Entry 0 is of items that run their first
steps, one after the other: it has the number of the first that has this time, and the counter is
the number of the one that runs. The others are of items that are suspended.

PAGE-1  Each word has one writer, and one aligned 8-byte store updates it. A cast memoryview copies
    the item by a fixed-size memcpy, which is one store on every 64-bit machine.
    `struct.pack_into("<Q")` would write byte by byte, and a reader could see half of the value.
    On 32 bits it may be two stores. A number below 2^32 never changes its upper half, and is always
    seen whole; a time can be seen half for the instant between them, hence two readings (PAGE-5).
PAGE-2  Memory is reserved before it is mapped, so that a full file system is an OSError at that
    point, and not a SIGBUS at the first store.
PAGE-3  Its size is sealed where the system can do that. A worker that changes the size gets an
    EPERM, and the parent gets no SIGBUS.
PAGE-4  Of the system calls that make it only mmap is indispensable, because this transport has to
    work where a sandbox refuses the rest. An unnamed temporary file, in /dev/shm if that is
    writable, replaces a memfd; writing zeros reserves memory as fallocate does.
PAGE-5  `running` never shows an item as older than it is. A worker stores the time, then the
    number. Python has no barrier that would keep this order for a reader on every CPU, but a store
    is delayed by far less than a reading of the table takes: so the table is read twice, and an
    entry counts only if both readings agree. `turn` is read so, too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys

from .._processes.descriptors import REFUSALS

JOURNAL = 80 << 10  # bytes: about what one RESULTS frame carries, and a batch of values
_JOURNAL_AT = 128  # bytes: on a cache line of its own
_WORDS = 3  # that come first: the number started, and the two of the turn
_TABLE_AT = _JOURNAL_AT + JOURNAL
_ENTRY = 16  # bytes
_NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL: a kernel with vm.memfd_noexec=2 insists on it


def size_of(entries: int) -> int:
    """The size in bytes of a page whose table has so many entries: whole pages of the system."""
    return -(-(_TABLE_AT + entries * _ENTRY) // mmap.PAGESIZE) * mmap.PAGESIZE


def _reserve(fd: int, size: int) -> None:
    """Give the file its size, and reserve its memory (PAGE-2)."""
    try:
        os.ftruncate(fd, size)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _fill(fd, size)  # PAGE-4


def _fill(fd: int, size: int) -> None:
    """Write zeros to the whole file."""
    if sys.platform == "win32":
        raise NotImplementedError
    written = 0
    while written < size:
        written += os.pwrite(fd, bytes(size - written), written)


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


def _memory_fd(size: int) -> int:
    """A new descriptor of `size` bytes of memory that have no name."""
    try:
        fd = _memfd() if hasattr(os, "memfd_create") else _unnamed_file()
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        fd = _unnamed_file()  # PAGE-4
    try:
        _reserve(fd, size)
        _seal(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedPage:
    """A counter, `started`, room for a journal, and the table of running items."""

    def __init__(self, fd: int, entries: int = 1) -> None:
        """Map the memory behind `fd` and keep the descriptor until `close_fd`."""
        self.fd = fd
        self.entries = entries
        try:
            self._map = self._map_page()
        except (OSError, ValueError) as error:
            self.close_fd()
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = "mmap"  # names the call that failed
            raise
        self._counter = memoryview(self._map)[: 8 * _WORDS].cast("Q")
        self._table = memoryview(self._map)[_TABLE_AT : _TABLE_AT + entries * _ENTRY].cast("Q")

    @classmethod
    def create(cls, entries: int = 1) -> SharedPage:
        """Make a page that counts from 0; OSError if there is no memory for it."""
        return cls(_memory_fd(size_of(entries)), entries)

    def _map_page(self) -> mmap.mmap:
        return mmap.mmap(self.fd, size_of(self.entries))

    @property
    def started(self) -> int:
        """The total that `mark_started` stored last."""
        return self._counter[0]

    def mark_started(self, n: int) -> None:
        """Store the total `n`, visible to the parent even if the process dies next (PAGE-1)."""
        self._counter[0] = n

    def begin_turn(self, origin: int) -> None:
        """Store the first word of the turn."""
        self._counter[1] = origin

    def end_turn(self, busy: int) -> None:
        """Store the second word of the turn."""
        self._counter[2] = busy

    @property
    def turn(self) -> tuple[int, int] | None:
        """Both words of the turn; None if the worker has just changed them (PAGE-5)."""
        _, origin, busy = self._counter
        return (origin, busy) if [origin, busy] == self._counter.tolist()[1:] else None

    def mark_time(self, first: int, since: int) -> None:
        """Set entry 0 of the table: items from number `first` on run since `since`."""
        self._table[1] = since  # PAGE-5
        self._table[0] = first

    def set_running(self, at: int, number: int, since: int) -> None:
        """Fill entry `at` of the table: item `number` runs since `since`."""
        self._table[2 * at + 1] = since  # PAGE-5
        self._table[2 * at] = number

    def keep_running(self, at: int) -> None:
        """Move entry 0 of the table to entry `at`, as its item is suspended."""
        self._table[2 * at + 1] = self._table[1]
        self._table[2 * at] = self._table[0] and self._counter[0]
        self._table[0] = 0

    def clear_running(self, at: int) -> None:
        """Free an entry: its item has ended, and the result is in the journal."""
        self._table[2 * at] = 0

    def running(self) -> dict[int, int]:
        """The start times of the items in the table, by their numbers (PAGE-5)."""
        table, started = self._table.tolist(), self.started
        again, started_again = self._table.tolist(), self.started
        if table[0] <= started == started_again:
            table[0] = table[0] and started
            again[0] = again[0] and started
        else:
            table[0] = 0
        return {
            table[at]: table[at + 1]
            for at in range(0, len(table), 2)
            if table[at] and table[at : at + 2] == again[at : at + 2]
        }

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
            shared, self._counter = self._counter, memoryview(bytearray(8 * _WORDS)).cast("Q")
            self._counter[0] = shared[0]
            shared.release()
            self._table.release()
            self._map.close()
