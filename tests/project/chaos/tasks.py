"""What the workers run: a task notes that it was executed, then does what its fields say."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import resource
import signal
import struct
from typing import Any

RECORD = struct.Struct("=Q")
EXIT_CODE = 7  # of a worker that a task ends by os._exit
SHOW_STACKS = signal.SIGUSR1
PAUSES = {"turn": 0.0, "wait": 0.05, "long": 60.0}  # seconds that a coroutine awaits

Task = tuple[int, str, Any]  # its number, what it does, and a value that it returns

_journal = -1


def prepare(journal: str) -> None:
    """The initializer of each worker."""
    global _journal
    _journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(SHOW_STACKS, all_threads=True)


def note(number: int) -> None:
    os.write(_journal, RECORD.pack(number))  # CHAOS-2


def behave(number: int, what: str, value: Any) -> Any:
    if what == "raise":
        raise ValueError(number, value)
    if what == "stay":
        return lambda: number
    if what == "segfault":
        ctypes.string_at(0)
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
    return behave(number, what, value)


def run_sync(task: Task) -> Any:
    return star_sync(*task)


async def run_async(task: Task) -> Any:
    return await star_async(*task)
