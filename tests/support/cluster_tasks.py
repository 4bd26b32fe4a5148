"""What the tasks of tests of clusters do."""

from __future__ import annotations

import asyncio
import os
import struct
from typing import Any

RECORD = struct.Struct("=Q")

_file, _path = -1, ""


def open_record(path: str) -> None:
    """The initializer: tasks record in this file that they run."""
    global _file, _path
    _path = path
    _file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)


async def record(number: int) -> int:
    """Record the number, in one write, and return it."""
    os.write(_file, RECORD.pack(number))
    return number


async def record_or_stay(number: int) -> int:
    """The same; a task with a negative number never ends."""
    if number < 0:
        await asyncio.Event().wait()
    return await record(number)


async def record_and_wait(number: int) -> int:
    """The same, for a task that takes some time."""
    os.write(_file, RECORD.pack(number))
    await asyncio.sleep(0.02)
    return number


async def record_and_stay(number: int) -> int:
    """The same, until there is a file "go" beside the record."""
    os.write(_file, RECORD.pack(number))
    go = os.path.join(os.path.dirname(_path), "go")
    while not os.path.exists(go):  # noqa: ASYNC110, ASYNC240 - a file has no events
        await asyncio.sleep(0.01)
    return number


def recorded(path: Any) -> list[int]:
    """The numbers in a file, in the order in which tasks recorded them."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [number for (number,) in RECORD.iter_unpack(data[: len(data) // 8 * 8])]


def set_patience(seconds: float) -> None:
    """Let hosts in this dask worker look so soon whether an item blocks a process."""
    from aiomultiprocess._parent import blocked

    blocked.PATIENCE = seconds


async def has_extension() -> bool:
    """Whether this process has amp_ext."""
    from aiomultiprocess import _accel

    return _accel.EXTENSION_ERROR is None
