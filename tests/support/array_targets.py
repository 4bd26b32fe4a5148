"""What workers run in test_large_arrays.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

import segment_support
import workload

kept: list[Any] = []


def make(fill: int, size: int = 1 << 20) -> Any:
    return np.full(size, fill, dtype="u1")


def is_lent(array: Any) -> bool:
    """Whether an array lies in shared memory."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return type(base) is memoryview and type(base.obj).__name__ == "Loan"


def add(array: Any, number: int) -> Any:
    """Change an argument in place, and return it."""
    array += number
    return array


def describe(array: Any) -> tuple[bool, int, int]:
    return is_lent(array), int(array[0]), int(array[-1])


def describe_buffer(buffer: Any) -> tuple[str, bool, int]:
    return type(buffer).__name__, buffer.readonly, len(buffer)


def keep(array: Any) -> int:
    kept.append(array)
    return len(kept)


def check_kept(_: object = None) -> list[int]:
    """The values of what this worker keeps; an array that was changed shows several."""
    return [int(value) for array in kept for value in np.unique(array)]


def drop_kept(_: object = None) -> None:
    kept.clear()


async def meet(port: int, array: Any) -> Any:
    await workload.meet(port, int(array[0]))
    return array


def die_once(path: str, array: Any) -> Any:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)
    return array


async def produce(count: int) -> AsyncIterator[Any]:
    for fill in range(count):
        yield make(fill)
        await asyncio.sleep(0)


def held(_: object = None) -> tuple[int, int]:
    """How many descriptors this process has, and how many mappings of segments."""
    gc.collect()
    return segment_support.descriptors(), segment_support.mapped()


def fork_and_compare(array: Any, gate: str) -> int:
    """Fork a copy that keeps the array; it writes later whether that is still what it was."""
    value = int(array[0])
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(gate):  # until the test has sent more arrays
            pass
        same = bool((array == value).all())
        with open(f"{gate}.answer", "w") as answer:
            answer.write(f"{same} {len(array)}")
    finally:
        os._exit(0)
