"""What the tests run in workers: importable by name, under every start method.

A worker imports this module at its first task, so it stays light. Functions that must be caught
in the act call in at a `Meeting` (support.py) and stay there until the test lets them go.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

CONTEXT: contextvars.ContextVar[object] = contextvars.ContextVar("CONTEXT", default=None)
HOST = "127.0.0.1"

greeting: object = None
running = 0
peak = 0


# -- plain functions of every kind -------------------------------------------------------------


async def two() -> int:
    return 2


async def double(value: Any) -> Any:
    return value * 2


def double_sync(value: Any) -> Any:
    return value * 2


async def double_after_a_turn(value: Any) -> Any:
    await asyncio.sleep(0)
    return value * 2


async def double_all(*values: Any) -> list[Any]:
    return [value * 2 for value in values]


async def identity(value: Any) -> Any:
    return value


async def describe(*args: Any, **kwds: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwds


async def where(_: object = None) -> int:
    return os.getpid()


async def where_after_a_turn(_: object = None) -> int:
    await asyncio.sleep(0)
    return os.getpid()


def awaitable_of(value: Any) -> Any:
    """Not a coroutine function, but what it returns can be awaited."""
    return double(value)


async def counting(stop: int) -> AsyncIterator[int]:
    for value in range(stop):
        yield value


class Multiplier:
    """Callables with state: a bound method, an object, and one whose call is a coroutine."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.calls = 0

    async def times(self, value: int) -> int:
        return self.factor * value

    def times_sync(self, value: int) -> int:
        return self.factor * value

    async def __call__(self, value: int) -> int:
        return self.factor * value

    async def count(self, _: object) -> int:
        self.calls += 1
        return self.calls

    @classmethod
    async def of_class(cls, value: int) -> tuple[str, int]:
        return cls.__name__, value


class SyncCallable:
    def __call__(self, value: int) -> int:
        return -value


def counted(stop: int) -> Iterator[int]:
    yield from range(stop)


async def append_to(items: list[Any], value: Any) -> list[Any]:
    items.append(value)
    return items.copy()


_shared: list[Any] = []


async def shared_list(_: object = None) -> list[Any]:
    return _shared


async def append_one(items: list[Any]) -> list[Any]:
    items.append(1)
    return items.copy()


# -- initializers, loops, handlers -------------------------------------------------------------


def set_greeting(value: object) -> None:
    global greeting
    asyncio.get_event_loop()  # 0.9.1 had set the worker's loop before it called an initializer
    greeting = value


def initialize_nothing() -> None:
    """An initializer without arguments."""


def note_greeting(path: str, value: object) -> None:
    note(path, os.getpid())
    set_greeting(value)


async def get_greeting(_: object = None) -> tuple[int, object]:
    return os.getpid(), greeting


async def initialize_async() -> None:
    """An initializer that 0.9.1 refused."""


def note(path: str, text: object = "") -> None:
    """Add one line to a file in one write, so that it stays whole beside other writers."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def note_error(path: str, error: BaseException) -> None:
    """An exception_handler."""
    note(path, f"{os.getpid()} {type(error).__name__} {error}")


async def name_of_loop(_: object = None) -> str:
    loop = asyncio.get_running_loop()
    return f"{type(loop).__module__}.{type(loop).__qualname__}"


class OwnLoop(asyncio.SelectorEventLoop):
    """A loop that only a loop_initializer can have made."""


# -- what an item sees of asyncio ----------------------------------------------------------------


async def set_context_at_once(value: object) -> tuple[object, object]:
    before = CONTEXT.get()
    CONTEXT.set(value)
    return before, CONTEXT.get()


async def set_context_over_a_turn(value: object) -> tuple[object, object]:
    before = CONTEXT.get()
    CONTEXT.set(value)
    await asyncio.sleep(0)
    return before, CONTEXT.get()


def set_context_sync(value: object) -> tuple[object, object]:
    before = CONTEXT.get()
    CONTEXT.set(value)
    return before, CONTEXT.get()


async def own_task(port: int, token: object) -> tuple[bool, bool, int]:
    """Is current_task() a task, the same one over time, and which one?"""
    task = asyncio.current_task()
    await meet(port, token)
    return isinstance(task, asyncio.Task), task is asyncio.current_task(), id(task)


async def own_task_at_once(_: object = None) -> bool:
    task = asyncio.current_task()
    return isinstance(task, asyncio.Task) and not task.done() and task in asyncio.all_tasks()


async def tasks_alive(_: object = None) -> int:
    return len(asyncio.all_tasks())


async def wait_for_ever(_: object = None) -> None:
    await asyncio.Event().wait()


async def use_timeout(_: object = None) -> str:
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        return "timed out"
    return "went through"


async def use_task_group(value: int) -> int:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(value)) for _ in range(3)]
    return sum(task.result() for task in tasks)


async def use_anyio(value: int) -> tuple[int, bool]:
    import anyio

    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    return value, scope.cancelled_caught


async def use_a_pool(count: int) -> list[int]:
    from aiomultiprocess import Pool

    async with Pool(1) as pool:
        return await pool.map(double, range(count))


async def use_a_subprocess(code: int) -> tuple[int | None, bytes]:
    program = f"import sys; print('ready', end=''); sys.exit({code})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode, out


# -- meetings ------------------------------------------------------------------------------------


async def meet(port: int, token: object = "") -> str:
    """Call in at a Meeting, and stay until it answers."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"{os.getpid()} {token}\n".encode())
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()


def meet_blocking(port: int, token: object = "") -> str:
    """The same, with the worker's loop held up."""
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(f"{os.getpid()} {token}\n".encode())
        with connection.makefile() as lines:
            return lines.readline().strip()


async def meet_blocking_after_a_turn(port: int, token: object = "") -> str:
    await asyncio.sleep(0)
    return meet_blocking(port, token)


async def meet_and_count(port: int, token: object = "") -> tuple[int, int]:
    """Where it ran, and the most that ran at once in that worker so far."""
    global running, peak
    running += 1
    peak = max(peak, running)
    try:
        await meet(port, token)
        return os.getpid(), peak
    finally:
        running -= 1


async def note_and_meet(path: str, port: int, token: object = "") -> object:
    note(path, token)
    await meet(port, token)
    return token


async def note_and_meet_blocking(path: str, port: int, token: object = "") -> object:
    note(path, token)
    meet_blocking(port, token)
    return token


async def clean_up(path: str, port: int, token: object = "") -> None:
    """Has an async finally block to run when it is cancelled."""
    try:
        await meet(port, token)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        note(path, f"cleaned {token}")


async def meet_if_first(port: int, value: int) -> int:
    if value == 0:
        await meet(port, value)
    return value


async def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def descriptors(_: object = None) -> tuple[int, list[str]]:
    """This process, and what its descriptors are."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:  # the listing's own
            continue
    return os.getpid(), found


times_three = functools.partial(Multiplier.times, Multiplier(3))
