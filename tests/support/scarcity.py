"""Memory and descriptors that run out: by the kernel's limit, or by a count."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import workload

MIB = 1 << 20
#: After so many refusals that nothing minded, there are no allocations left.
IN_PEACE = 50


def address_space() -> int:
    """Bytes of address space that this process has mapped.

    The least of several looks: when a thread first allocates, glibc maps 128 MiB for it, and
    unmaps half of that and more at once.
    """
    import resource  # which Windows has not

    looks = [int(Path("/proc/self/statm").read_text().split()[0]) for _ in range(20)]
    return min(looks) * resource.getpagesize()


def give_back_freed() -> None:
    """Have glibc unmap the free end of its heap: a process keeps much there (freed_memory.py)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextlib.contextmanager
def limited(room: int) -> Iterator[None]:
    """Let this process map `room` bytes more, and no more than that.

    What it has freed below memory that is still in use may serve it too.
    """
    import resource  # which Windows has not

    give_back_freed()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_worker(room: int) -> None:
    """An initializer: `limited` for as long as the worker lives."""
    import resource  # which Windows has not

    give_back_freed()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))


def attempt(call: Callable[[], Any], start: int, stop: int) -> Any:
    """What `call` returns while allocations `start` to `stop` (0: all from there on) are refused.

    The MemoryError, if it raises one.
    """
    import _testcapi

    _testcapi.set_nomemory(start, stop)
    try:
        return call()
    except MemoryError as error:
        return error
    finally:
        _testcapi.remove_mem_hooks()


def each_refusal(call: Callable[[], Any], check: Callable[[Any], None], forever: bool) -> int:
    """Refuse one allocation of `call` after the other, and `forever`: with all that follow, too.

    Each outcome is given to `check`. Returns how many were refused. CPython itself cannot go on
    without any memory: what is written in Python is only refused one at a time.
    """
    at = in_peace = 0
    while in_peace < IN_PEACE:
        outcome = attempt(call, at, at + 1)
        check(outcome)
        if forever:
            outcome = attempt(call, at, 0)
            check(outcome)
        in_peace = in_peace + 1 if settled(outcome) else 0
        at += 1
    return at - IN_PEACE


def settled(outcome: Any) -> bool:
    """Whether nothing of an outcome failed: a codec returns its failures."""
    if isinstance(outcome, MemoryError):
        return False
    return not (isinstance(outcome, tuple) and outcome[-1])


# -- descriptors -----------------------------------------------------------------------------------

opened: list[int] = []


def use_up_descriptors(_: object = None) -> None:
    """Leave this process no descriptor, until `free_descriptors`."""
    import resource  # which Windows has not

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))


def free_descriptors() -> None:
    while opened:
        os.close(opened.pop())


async def use_none_and_meet(port: int) -> str:
    """Meet, and then leave no descriptor until the meeting is over."""
    reader, writer = await asyncio.open_connection(workload.HOST, port)
    use_up_descriptors()
    writer.write(f"{os.getpid()} 0\n".encode())
    await reader.readline()
    free_descriptors()
    writer.close()
    return "freed"


def first_of(shared: Any) -> Any:
    return shared.value[0]


# -- what runs in workers, and is too large for some process ---------------------------------------


class Holder:
    """Is pickled, with all that it holds."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Changeable:
    """Is pickled with a buffer that can change, as an array is."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Changeable, (pickle.PickleBuffer(self.data),)


def make(kind: str, size: int) -> Any:
    """A value of about `size` bytes, for each of the ways by which values travel."""
    if kind == "bytes":  # a segment
        return bytes(size)
    if kind == "text":  # a part of the block
        return "x" * size
    if kind == "buffer":
        return Changeable(bytearray(size))
    if kind == "pickle":
        return Holder("x" * size)
    if kind == "numbers":
        return [0.5] * (size // 8)
    assert kind == "many parts"
    return [bytes(MIB) for _ in range(size // MIB)]


def kind_of(value: Any) -> str:
    return type(value).__name__


def kind_of_second(_: Any, value: Any) -> str:
    return type(value).__name__


def large_or_small(kind: str) -> Any:
    return kind if kind == "small" else make(kind, 128 * MIB)


def most_of_memory(kind: str) -> Any:
    """What leaves too little of what `limit_worker` has left for a copy."""
    return kind if kind == "small" else make(kind, 80 * MIB)


def texts() -> Iterator[Any]:
    yield "small"
    yield [make("text", 80 * MIB)]


def raise_large(size: int) -> int:
    if size:
        raise ValueError("x" * size)
    return size
