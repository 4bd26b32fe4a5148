"""What tests of the end of workers run in them: hooks that leave a note, and what delays an exit.

Used by name, as `workload` is.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import AsyncIterator
from multiprocessing import util

from workload import meet, note


def hook(path: str) -> int:
    """Note in `path` that hooks have run; the pid of this process."""
    atexit.register(note, path, "atexit")
    util.Finalize(None, note, args=(path, "finalizer"), exitpriority=1)
    return os.getpid()


async def hook_and_meet(path: str, port: int) -> None:
    """Register hooks, and note when a cancellation has cleaned up."""
    hook(path)
    try:
        await meet(port, "hooked")
        await asyncio.Event().wait()
    finally:
        note(path, "finally")


def wait_in_a_hook(seconds: float) -> int:
    atexit.register(time.sleep, seconds)
    util.Finalize(None, time.sleep, args=(seconds,), exitpriority=1)
    return os.getpid()


# -- what delays an exit -----------------------------------------------------------------------


def wait_for_ever() -> None:
    threading.Event().wait()


class Connection(threading.Thread):
    """A library's connection that is never closed, with a thread that waits for work."""

    def run(self) -> None:
        wait_for_ever()


def leave_a_thread(value: object = None) -> object:
    Connection(name="connection").start()
    return value


def leave_a_finalizer(value: object = None) -> object:
    util.Finalize(None, wait_for_ever, exitpriority=1)
    return value


async def leave_a_call_in_the_executor(value: object = None) -> object:
    asyncio.get_running_loop().run_in_executor(None, wait_for_ever)
    return value


async def leave_a_generator(value: object = None) -> object:
    """Leave an asynchronous generator that never finishes closing."""

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.Event().wait()

    kept.append(numbers())
    await anext(kept[-1])
    return value


kept: list[AsyncIterator[int]] = []

HOLDERS = {
    "a thread": (leave_a_thread, "connection"),
    "a finalizer": (leave_a_finalizer, "finalizer"),
    "the executor": (leave_a_call_in_the_executor, "wait_for_ever"),
    "a generator": (leave_a_generator, "finalizer"),
}


async def use_the_executor(value: object) -> object:
    """Leave idle threads of an executor, which end when they are asked to."""
    return await asyncio.to_thread(lambda: value)
