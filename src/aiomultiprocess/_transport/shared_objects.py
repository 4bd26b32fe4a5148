"""Shared objects: pickled once, into memory that each process maps once and only reads.

    share(obj) -> Memory (parent) -- number, in any pickle for a worker --> Shared (worker)
                    \\-- descriptor, once for each worker, before that frame --> Received -> value

`aiomultiprocess.share` makes the memory: a file without a name, which holds a pickle and, behind
it, the buffers that the pickle has out of band. `Shared` is what users pass to tasks. It travels as
the number of its memory. The parent passes the descriptor to each worker that gets one, over the
socket of its link (descriptor_socket.py), before the frame that needs it; the worker takes it from
there when `.value` is asked for, which loads the pickle over a read-only mapping.

OBJECT-1  The memory is sealed against every change (on Linux): no process can write it, not even
    the one that made it.
OBJECT-2  The parent closes its descriptor when nothing refers to the `Memory`: no open `Shared`,
    no task that is not settled, no function, no pool whose workers start with it. Then it tells the
    workers that have it (UNSHARE), and they close theirs. Frames are in order, so no task that was
    sent before finds it gone.
OBJECT-3  A process loads a value once, and keeps it as long as it has the descriptor. The mapping
    is the value's: it goes with the last view of it, also later than that.
OBJECT-4  A forked worker has inherited the memories of its parent. It counts as one that they were
    passed to, so it closes them when they end.
OBJECT-5  A worker that has a pool of its own passes a memory on to the workers of that, and tells
    them when its parent has released it.
OBJECT-6  A process that a task forks keeps the descriptors that its worker had, until it ends or
    becomes a worker itself: they are of no other use than to be read. It can receive none, so the
    worker takes all that have come before it forks.
OBJECT-7  A thread that loads a value uses its descriptor, so what is released meanwhile is closed
    by that thread, when it has loaded the value.
OBJECT-8  In a worker, no one releases a memory. Tasks that got it by one function have one `Shared`
    between them, so what one of them released would be missing to the others.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import weakref
from struct import Struct, pack, unpack_from
from typing import Any, Final, Generic, TypeVar

from .. import _accel
from .._wire import sharing

# the first here: to import it when an object is passed needs a descriptor (LARGE-2)
from . import descriptor_socket, endpoint  # noqa: F401

T = TypeVar("T")

#: Numbers of memories, as a socket of descriptors has them, from here on; below are segments.
FIRST: Final = endpoint.FIRST_SHARED
ALIGNMENT: Final = 64  # bytes: what NumPy and Arrow ask for
_HEAD: Final = Struct("<QQ")  # size of the pickle, number of buffers; then these: place and size
_NOEXEC_SEAL: Final = 0x0008  # MFD_NOEXEC_SEAL: a kernel with vm.memfd_noexec=2 insists on it
_MOST: Final = 1 << 30  # bytes of one write
#: For `mmap`, which otherwise keeps a copy of the descriptor.
_ONE_DESCRIPTOR: Final[Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


RELEASED: Final = (
    "a shared object has no memory here any more: the process that made it has released it, or its "
    "host had no room for it, and has logged that. Use it in tasks that get it as an argument"
)


class Holders:
    """The workers, and hosts of workers, that have a memory."""

    number: int

    def __init__(self) -> None:
        self._links: list[weakref.ref[Any]] = []

    def pass_over(self, link: Any, fd: int) -> None:
        """Pass the descriptor to a worker, unless it has it. OSError if that cannot be now."""
        self._add(link.share(self.number, fd))

    def inherited_by(self, link: Any) -> None:
        """The worker of this link was forked (OBJECT-4)."""
        link.shared.add(self.number)
        self._add((link,))

    def _add(self, links: tuple[Any, ...]) -> None:
        """Keep those links that are new, as LARGE-3 may pass a memory twice, and drop dead ones.

        Each step is atomic: pools of several threads may pass a memory on.
        """
        for link in links:
            for gone in [ref for ref in self._links if ref() is None]:
                with contextlib.suppress(ValueError):  # another thread removed it
                    self._links.remove(gone)
            if all(ref() is not link for ref in self._links):
                self._links.append(weakref.ref(link))

    def unshare(self) -> None:
        """Tell the workers that the memory is released (OBJECT-2)."""
        for ref in self._links.copy():
            link = ref()
            if link is not None:
                link.unshare_soon(self.number)


class Loadable(Holders):
    """A memory whose value any thread may ask for."""

    _ended = False  # and still to be closed

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._value: list[Any] = []  # once it was loaded

    @property
    def value(self) -> Any:
        """The object, loaded over the memory (OBJECT-3)."""
        try:
            with self._lock:
                if not self._value:
                    self._value.append(load(self._descriptor()))
                return self._value[0]
        finally:
            if self._ended:
                self._close_unused()

    def end(self) -> None:
        """It is released: close it, now or when no thread loads its value (OBJECT-7)."""
        self.unshare()
        self._ended = True  # first, so that a thread that has the lock closes it
        self._close_unused()

    def _close_unused(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._ended = False
                self.close()
            finally:
                self._lock.release()

    def _descriptor(self) -> int:
        """That of the memory. RuntimeError if it was released, OSError if there was no room."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it, in this process alone. Idempotent."""
        raise NotImplementedError


class Memory(Loadable):
    """The memory of one shared object, in the process that made it."""

    def __init__(self, fd: int, size: int) -> None:
        # no other process makes the same: workers may have memories of several
        self.number = FIRST | int.from_bytes(os.urandom(7), "big")
        self.size = size
        self.made = time.monotonic()
        self._fd = fd
        self._pid = os.getpid()
        super().__init__()
        sharing.live[self.number] = self

    def pass_to(self, link: Any) -> None:
        """Give it to a worker, unless that has it. OSError if that cannot be now."""
        self.pass_over(link, self._descriptor())

    def _descriptor(self) -> int:
        if self._fd < 0:  # perhaps another thread was about to free it
            raise RuntimeError(RELEASED)
        return self._fd

    def close(self) -> None:
        """Close the descriptor, in this process alone. Idempotent."""
        fd, self._fd = self._fd, -1
        self._value.clear()
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:  # OBJECT-2
        self.close()
        if os.getpid() == self._pid:
            self.unshare()


class Received(Loadable):
    """The memory of a shared object, in a worker."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _descriptor(self) -> int:
        end = endpoint.this_end
        fd = -1 if end is None else end.take_shared(self.number)
        if fd < 0:
            raise RuntimeError(RELEASED)
        return fd

    def close(self) -> None:
        """Close the descriptor, if it has come."""
        if endpoint.this_end is not None:
            endpoint.this_end.drop_shared(self.number)

    def pass_to(self, link: Any) -> None:
        """Give it to a worker of a pool of this worker (OBJECT-5)."""
        self.pass_over(link, self._descriptor())


#: In a worker: the memories that it has got, until they are released.
_received: dict[int, Received] = {}


def _renew_locks() -> None:
    """In a forked child: another thread of the parent may have held them."""
    for memory in (*sharing.live.values(), *_received.values()):
        memory._lock = threading.Lock()


def _take_all() -> None:
    """Before a worker forks (OBJECT-6)."""
    end = endpoint.this_end
    if end is not None:
        for number in list(_received):
            with contextlib.suppress(OSError):  # what it had no room for, its child has not either
                end.take_shared(number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_child=_renew_locks)


def drop(number: int) -> None:
    """In a worker: the parent has released a memory."""
    received = _received.pop(number, None) or Received(number)
    received.end()
    inherited = sharing.live.get(number)
    if inherited is not None:
        inherited.end()


class Shared(Generic[T]):
    """An object that `aiomultiprocess.share` has put into shared memory.

    Pass it to tasks, in their items and arguments, in `initargs`, or in a `functools.partial`: it
    travels as a few bytes. `value` is the object. `with` releases it at the end of its block: the
    memory is freed when the tasks that were submitted before have ended. In a worker, `with` and
    `release` change nothing: the process that shared the object decides (OBJECT-8).
    """

    __slots__ = ("__weakref__", "_memory", "_ref", "_reference", "_released")

    def __init__(self, memory: Memory | Received) -> None:
        self._memory: Memory | Received | None = memory
        self._ref: weakref.ref[Memory | Received] = weakref.ref(memory)
        self._released = 0  # the process that gave it up
        self._reference: int | None = memory.number  # for the codec; None once it is released

    @property
    def value(self) -> T:
        """The object. Each process loads it once; its buffers are read-only, and are not copied.

        What it consists of besides buffers is one for all tasks of a process: do not change it.

        Raises RuntimeError after the end of `with`, or if it was released where it was made.
        """
        value: T = self._open(None if self._released == os.getpid() else self._ref()).value
        return value

    def pickled(self) -> Memory | Received:
        """The memory, for a task that was submitted before the end of `with`."""
        return self._open(self._ref())

    def _open(self, memory: Memory | Received | None) -> Memory | Received:
        if memory is None:
            raise RuntimeError(
                "this shared object was released at the end of its `with` block: use it within"
            )
        return memory

    def __enter__(self) -> Shared[T]:
        self._open(self._memory)
        return self

    def __exit__(self, *args: object) -> None:
        self.release()

    def release(self) -> None:
        """Give up the object, as the end of `with` does; in a worker, do nothing. Idempotent."""
        if endpoint.this_end is not None or sharing.in_inline_worker.get():  # OBJECT-8
            return
        memory = self._memory
        if isinstance(memory, Memory):
            for engine in list(sharing.engines):
                engine.hold(memory)  # first: what is pickled meanwhile finds the memory
        self._memory = self._reference = None
        self._released = os.getpid()  # a worker that is forked later may start with it

    def __repr__(self) -> str:
        memory = self._memory
        if memory is None:
            return "<Shared, released>"
        size = f" of {memory.size} bytes" if isinstance(memory, Memory) else ""
        return f"<Shared {memory.number - FIRST:x}{size}>"

    def __copy__(self) -> Shared[T]:
        return self

    def __deepcopy__(self, memo: object) -> Shared[T]:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if not sharing.is_permitted():  # SHARING-1
            raise RuntimeError(
                "an object of aiomultiprocess.share() can be pickled by a Pool alone: pass it to "
                "tasks, in initargs or in a functools.partial"
            )
        return reduce(self)


def reduce(shared: Shared[Any]) -> tuple[Any, ...]:
    """What the codec of a pool makes of it."""
    memory = shared.pickled()
    if sharing.has_engines():  # else this is a worker, and a result
        sharing.collect(memory)
    return receive, (memory.number,)


def note(objects: list[Shared[Any]]) -> None:
    """The codec of a pool has encoded these by their numbers."""
    if sharing.has_engines():  # as in `reduce`
        sharing.collect(*[shared._memory or shared.pickled() for shared in objects])


def receive(number: int) -> Shared[Any]:
    """What it is decoded by: in a worker, perhaps before its link is open, or in its parent."""
    end = endpoint.this_end
    memory = _received.get(number) or sharing.live.get(number)
    if memory is None:
        memory = Received(number)
        if end is not None or not sharing.has_engines():
            _received[number] = memory  # else the parent of the worker that returned it
        new = True
    else:
        new = end is not None and number in end.lacking  # it was passed again (LARGE-3)
    if new and end is not None:
        # now, whether or not a task asks for the value: the socket holds only so many
        with contextlib.suppress(OSError):
            end.take_shared(number)
    return Shared(memory)


_accel.register(Shared, reduce)
_accel.register_references(Shared, note)
_accel.receive_references(receive)
sharing.constants.add(Shared)


# -- the memory ------------------------------------------------------------------------------------


def make(pickled: bytes, buffers: list[pickle.PickleBuffer]) -> Shared[Any]:
    """Put a pickle, and what it has out of band, into memory. OSError if there is none for it."""
    if not hasattr(socket, "send_fds"):
        raise RuntimeError("aiomultiprocess.share() needs Unix sockets, which pass descriptors")
    views = [buffer.raw() for buffer in buffers]
    places, end = _layout(len(pickled), [len(view) for view in views])
    fields = [
        number for place, view in zip(places, views, strict=True) for number in (place, len(view))
    ]
    head = _HEAD.pack(len(pickled), len(views)) + pack(f"<{len(fields)}Q", *fields)
    fd = _anonymous_file()
    try:
        os.ftruncate(fd, end)
        _write(fd, memoryview(head), 0)
        _write(fd, memoryview(pickled), len(head))
        for place, view in zip(places, views, strict=True):
            _write(fd, view, place)
        _seal(fd)
        return Shared(Memory(fd, end))
    except BaseException:
        os.close(fd)
        raise


def store(content: memoryview) -> int:
    """The descriptor of a memory with the content of another, on another machine.

    OSError if there is no memory for it.
    """
    fd = _anonymous_file()
    try:
        os.ftruncate(fd, len(content))
        _write(fd, content, 0)
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _layout(pickled: int, sizes: list[int]) -> tuple[list[int], int]:
    """The place of each buffer, and the end of the last."""
    places, end = [], _HEAD.size + 16 * len(sizes) + pickled
    for size in sizes:
        place = -(-end // ALIGNMENT) * ALIGNMENT
        places.append(place)
        end = place + size
    return places, end


def load(fd: int) -> Any:
    """Map the memory, and unpickle what is in it (OBJECT-3)."""
    view = mapped(fd)
    pickled, count = _HEAD.unpack_from(view)
    fields = unpack_from(f"<{2 * count}Q", view, _HEAD.size)
    begin = _HEAD.size + 16 * count
    buffers = [
        view[place : place + size] for place, size in zip(fields[::2], fields[1::2], strict=True)
    ]
    try:
        return pickle.loads(view[begin : begin + pickled], buffers=buffers)
    except (AttributeError, ImportError) as error:
        from .._wire.serializing import not_importable  # here: SERIAL-1

        raise not_importable(error) from error


def mapped(fd: int) -> memoryview:
    """The content of a memory, read-only.

    Up to Linux 6.6 a sealed file cannot be mapped with MAP_SHARED, not even to be read: EPERM. A
    private mapping that cannot be written has the same pages; nothing can change them (OBJECT-1).
    """
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, **_ONE_DESCRIPTOR)
    except OSError as error:
        raise _explained(error, os.fstat(fd).st_size) from error
    return memoryview(private)


def _explained(error: OSError, size: int) -> Exception:
    """What to raise where a memory of this size cannot be mapped."""
    if error.errno == errno.EMFILE:  # Python's mmap takes one more, before 3.13
        return OSError(errno.EMFILE, endpoint.NO_DESCRIPTOR)
    if error.errno == errno.ENOMEM:
        return MemoryError(
            f"a shared object of {size} bytes does not fit into this process: its address space is "
            "limited, or full"
        )
    return error


def _anonymous_file() -> int:
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        for more in (_NOEXEC_SEAL, 0):
            with contextlib.suppress(OSError):  # an old kernel, or a sandbox that refuses it
                return os.memfd_create("aiomultiprocess-shared", flags | more)
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _write(fd: int, view: memoryview, at: int) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    while len(view):
        written = os.pwrite(fd, view[:_MOST], at)
        view, at = view[written:], at + written


def _seal(fd: int) -> None:
    """OBJECT-1."""
    if sys.platform == "linux":
        import fcntl

        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):  # no memfd, or a sandbox refuses it
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
