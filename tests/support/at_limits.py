"""Functions of tasks for workers that are at a limit of the system."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import Any

import numpy as np


def first_of(shared: Any, value: int) -> int:
    return int(shared.value[0]) + value


async def first_of_soon(shared: Any) -> int:
    await asyncio.sleep(0)
    return int(shared.value[0])


def limit_address_space(extra: int) -> int:
    """From now on this process gets so many bytes more; returns its pid."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return os.getpid()


def size_of(array: Any) -> int:
    return int(array.nbytes)


def array_of(size: int) -> Any:
    return np.zeros(size, "u1")


def fail_without_descriptors(text: str) -> None:
    """Raise an error in a process that can open no file."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        raise ValueError(text) from None
