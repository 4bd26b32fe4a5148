"""Plain functions that block, for tests of pools with threads."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from pathlib import Path
from typing import Any

_barriers: dict[int, threading.Barrier] = {}
_lock = threading.Lock()

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


def meet(count: int) -> str:
    """Return once `count` calls have come here in one worker; the name of the thread."""
    with _lock:
        barrier = _barriers.setdefault(count, threading.Barrier(count))
    barrier.wait(60)
    return threading.current_thread().name


def thread_name() -> str:
    return threading.current_thread().name


async def loop_thread_name() -> str:
    return threading.current_thread().name


def returns_coroutine() -> Any:
    async def inner() -> tuple[str, str]:
        await asyncio.sleep(0)
        return here, threading.current_thread().name

    here = threading.current_thread().name
    return inner()


def waits_for_ever() -> Any:
    """Returns an awaitable that is never done: its thread is free, its slot is not."""
    return _for_ever()


async def _for_ever() -> None:
    await asyncio.Event().wait()


def run_a_loop(value: int) -> int:
    async def inner() -> int:
        await asyncio.sleep(0)
        return value

    return asyncio.run(inner())


def fail(value: int) -> None:
    raise LookupError(f"no {value}")


def leave() -> None:
    raise SystemExit(3)


def wait_for_file(path: str) -> int:
    Path(path + ".begun").touch()
    while not Path(path).exists():
        time.sleep(0.005)
    return os.getpid()


async def suspend_until_file(path: str) -> None:
    """Until the file with the pid of the worker in its name exists."""
    while not Path(f"{path}{os.getpid()}").exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)


def iterator_or_count(*args: object) -> Any:
    """A plain function for streams, which pass no argument here, and for maps."""
    return len(args) if args else iter((1, 2))


def set_user(name: str) -> str:
    before = user.get()
    user.set(name)
    return before


def fork_and_return() -> int:
    """The copy returns too, and must do no harm."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return os.getpid()


class Callable:
    def __call__(self, value: int) -> str:
        return threading.current_thread().name


class AsyncCallable:
    async def __call__(self, value: int) -> str:
        return threading.current_thread().name


def plain_tasks() -> asyncio.AbstractEventLoop:
    """A loop_initializer whose loop has a task factory: a task's first step comes a turn later."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
    return loop


def count_threads(seconds: float) -> int:
    time.sleep(seconds)
    return threading.active_count()


def touch_file(path: str) -> None:
    Path(path).touch()


def late(what: object) -> Any:
    """End half a second later: return a value or an awaitable, or raise."""
    time.sleep(0.5)
    if isinstance(what, Exception):
        raise what
    return _for_ever() if what == "awaitable" else what


def never() -> None:
    """A call that does not return."""
    threading.Event().wait()


_of_thread = threading.local()


def rows_of_thread(size_and_number: tuple[int, int]) -> bytearray:
    """The buffer of this thread, full of a number."""
    size, number = size_and_number
    if len(getattr(_of_thread, "rows", ())) != size:
        _of_thread.rows = bytearray(size)
    _of_thread.rows[:] = bytes([number % 256]) * size
    rows: bytearray = _of_thread.rows
    return rows


def next_of_nothing() -> object:
    return next(iter(()))
