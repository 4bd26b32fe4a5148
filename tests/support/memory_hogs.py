"""Tasks that make their worker grow."""

from __future__ import annotations

import os

import workload

kept: list[bytearray] = []


def grow(size: int) -> None:
    kept.append(bytearray(b"\1") * size)


async def grow_and_tell(size: int, value: int) -> tuple[int, int]:
    """Keeps `size` bytes for ever."""
    grow(size)
    return value, os.getpid()


async def note_grow_and_meet(path: str, port: int, size: int, value: int) -> int:
    workload.note(path, value)
    await workload.meet(port, value)
    grow(size)
    return value


async def keep_received(data: bytes) -> int:
    kept.append(bytearray(data))
    return os.getpid()


def own_memory() -> int:
    from aiomultiprocess._worker import memory

    with open(memory.STATM, "rb") as statm:
        return memory.own_memory(statm.read(), os.sysconf("SC_PAGE_SIZE"))


async def own_memory_of_worker(_: object = None) -> int:
    return own_memory()
