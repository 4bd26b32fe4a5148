"""What the workers run: a task notes that it was executed, then does what its fields say."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import faulthandler
import fcntl
import os
import pickle
import resource
import signal
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from aiomultiprocess import current_worker

RECORD = struct.Struct("=Q")
EXIT_CODE = 7  # of a worker that a task ends by os._exit
SHOW_STACKS = signal.SIGUSR1
PAUSES = {"turn": 0.0, "wait": 0.05, "long": 60.0, "overtime": 60.0}  # seconds of a coroutine
GROWTH = 100 << 20  # bytes that "grow" adds to its worker (CHAOS-11)
LIMIT = 0.3  # seconds: the time limit of tasks that may be over it (CHAOS-9)
AMPLE = 60.0  # seconds: of those that may not

Task = tuple[int, str, Any]  # its number, what it does, and a value that it returns

MARK: contextvars.ContextVar[int] = contextvars.ContextVar("MARK", default=-1)  # CHAOS-13
WRONG = 99  # the exit code of a worker that finds what must not be (CHAOS-12)


class Block:
    """A value whose memory pickle gives out of band, as an array does: it lies in segments."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Block, (pickle.PickleBuffer(self._data),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and memoryview(self._data) == memoryview(other._data)

    __hash__ = None  # type: ignore[assignment]


_journal = -1
_alive = False  # the lifespan is entered
_kept: list[bytes] = []


def prepare(journal: str) -> None:
    """The initializer of each worker."""
    global _journal
    _journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(SHOW_STACKS, all_threads=True)


class Living:
    """The lifespan of each worker (CHAOS-12)."""

    def __init__(self, folder: str, *, locks: bool = True) -> None:
        self.folder = folder
        self.locks = locks  # whether no two processes can have the same index (CHAOS-15)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        global _alive
        lock = os.open(Path(self.folder, f"index {current_worker().index}"), os.O_CREAT | os.O_RDWR)
        try:
            if self.locks:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(WRONG)
        await asyncio.sleep(0)
        _alive = True
        try:
            yield
        finally:
            _alive = False
            await asyncio.sleep(0)
            os.close(lock)


def note(number: int) -> None:
    if not _alive:
        os._exit(WRONG)
    os.write(_journal, RECORD.pack(number))  # CHAOS-2


def behave(number: int, what: str, value: Any) -> Any:
    if what == "raise":
        raise ValueError(number, value)
    if what == "stay":
        return lambda: number
    if what == "context":
        return number, MARK.get()
    if what == "segfault":
        ctypes.string_at(0)
    if what == "block":
        while True:  # a signal, which is to end the worker, interrupts it
            ctypes.PyDLL(None).sleep(60)  # with the GIL
    if what == "grow":
        _kept.append(b"\1" * GROWTH)
    if what == "exit":
        os._exit(EXIT_CODE)
    return number, value


def star_sync(number: int, what: str, value: Any) -> Any:
    note(number)
    return behave(number, what, value)


async def star_async(number: int, what: str, value: Any) -> Any:
    note(number)
    if what in PAUSES:
        await asyncio.sleep(PAUSES[what])
    if what == "just":
        await asyncio.sleep(value)
    if what == "linger":
        await _linger()
    return behave(number, what, value)


async def _linger() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def values(number: int, count: int, pauses: dict[int, float]) -> AsyncIterator[Any]:
    """A stream; before some of its values it waits."""
    note(number)
    for at in range(count):
        if at in pauses:
            await asyncio.sleep(pauses[at])
        yield number, at


def plain_values(number: int, count: int, pauses: dict[int, float]) -> Iterator[Any]:
    """The same as a plain generator."""
    note(number)
    for at in range(count):
        if at in pauses:
            time.sleep(pauses[at])
        yield number, at


def run_sync(task: Task) -> Any:
    return star_sync(*task)


async def run_async(task: Task) -> Any:
    return await star_async(*task)
