"""What the workers of every peer run. Light, because workers import it.

Each task is a coroutine function and its synchronous twin, for peers that cannot run coroutines.
"""

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Function = Callable[..., Any]


class Task(NamedTuple):
    """The same work, as a coroutine function and as a plain one."""

    coroutine: Function
    twin: Function


async def echo(value: Any) -> Any:
    return value


def echo_sync(value: Any) -> Any:
    return value


async def add(a: int, b: int) -> int:
    return a + b


def add_sync(a: int, b: int) -> int:
    return a + b


async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def wait_sync(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def burn(seconds: float) -> float:
    return burn_sync(seconds)


def burn_sync(seconds: float) -> float:
    """Use so much CPU: not wall time, which would pass for work while others have the core."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


async def total(shared: Any) -> tuple[int, int]:
    return total_sync(shared)


def total_sync(shared: Any) -> tuple[int, int]:
    """This process, and the sum of a shared array: all of it is read."""
    return os.getpid(), int(getattr(shared, "value", shared).sum())


async def ignore(_: Any, number: int = 0) -> int:
    return number


def ignore_sync(_: Any, number: int = 0) -> int:
    return number


ECHO = Task(echo, echo_sync)
TOTAL = Task(total, total_sync)
IGNORE = Task(ignore, ignore_sync)
PLAIN_ECHO = Task(echo_sync, echo_sync)
ADD = Task(add, add_sync)
WAIT = Task(wait, wait_sync)
BURN = Task(burn, burn_sync)


def bells_of_worker(_: object) -> tuple[int, tuple[int, int]]:
    """The process, its doorbells rung and its frames published: what its link has counted.

    Nothing public leads to the link of a worker: the garbage collector knows it.
    """
    for link in gc.get_objects():
        if type(link).__name__ == "ShmLink":
            return os.getpid(), (link._producer.bells, link._producer.published)
    raise LookupError("this worker has no link on shared memory")


# Chunks, for peers that take one call after the other and leave it to the user to make them larger.


def each(function: Function, items: Iterable[Any]) -> list[Any]:
    return [function(item) for item in items]


def each_star(function: Function, items: Iterable[Sequence[Any]]) -> list[Any]:
    return [function(*item) for item in items]


async def each_coroutine(function: Function, items: Iterable[Any]) -> list[Any]:
    return [await function(item) for item in items]


async def each_coroutine_star(function: Function, items: Iterable[Sequence[Any]]) -> list[Any]:
    return [await function(*item) for item in items]


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
