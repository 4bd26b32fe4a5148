"""Items, initializers and lifespans of pools whose workers are simulated in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from aiomultiprocess import current_worker

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")
started = asyncio.Event()  # an item runs
go_on = asyncio.Event()
thread_started = threading.Event()
thread_may_end = threading.Event()
events: list[Any] = []


def reset() -> None:
    """For a new test, in its loop."""
    global started, go_on
    started, go_on = asyncio.Event(), asyncio.Event()
    events.clear()


class Changeable:
    def __init__(self) -> None:
        self.values: list[int] = []


def change(thing: Changeable, value: int) -> Changeable:
    thing.values.append(value)
    return thing


def thread_and_process() -> tuple[int, int]:
    return threading.get_ident(), os.getpid()


async def set_variable(value: str) -> str:
    before = VARIABLE.get()
    VARIABLE.set(value)
    await asyncio.sleep(0)
    return f"{before}, then {VARIABLE.get()}"


def set_in_worker(value: str) -> None:
    VARIABLE.set(value)


async def task_and_callers(_: object = None) -> tuple[bool, str, bool]:
    """Whether this is a task of its own, before and after it was suspended."""
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    return task is asyncio.current_task(), task.get_name(), task in asyncio.all_tasks()


def index_of_worker(_: object = None) -> int:
    return current_worker().index


async def note_index(_: object = None) -> int:
    await asyncio.sleep(0)
    return current_worker().index


async def wait_to_go_on(value: Any = None) -> Any:
    started.set()
    await go_on.wait()
    return value


async def ignore_cancellation(value: Any = None) -> Any:
    started.set()
    while not go_on.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await go_on.wait()
        events.append("cancelled")
    return value


async def clean_up(_: object = None) -> None:
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        events.append("cleaned up")


def exit_program(_: object = None) -> None:
    sys.exit("enough")


def interrupt(_: object = None) -> None:
    raise KeyboardInterrupt


async def interrupt_later(_: object = None) -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


class InterruptedOnce:
    """Ctrl-C strikes its pickling, the first time after `events` got "armed"."""

    def __reduce__(self) -> Any:
        if "armed" in events:
            events.remove("armed")
            raise KeyboardInterrupt
        return int, ()


def make_interrupted() -> InterruptedOnce:
    events.append("armed")
    return InterruptedOnce()


async def make_interrupted_later() -> InterruptedOnce:
    await asyncio.sleep(0)
    return make_interrupted()


async def yield_interrupted() -> AsyncIterator[InterruptedOnce]:
    yield make_interrupted()


class LocalInterrupted:
    """Only a fallback of pickle could take it, and Ctrl-C strikes that."""

    def __reduce__(self) -> Any:
        if "armed" in events:
            events.remove("armed")
            raise LookupError("not by pickle")
        raise KeyboardInterrupt


def make_local_interrupted() -> LocalInterrupted:
    events.append("armed")
    return LocalInterrupted()


@contextlib.asynccontextmanager
async def interrupted_at_start() -> AsyncIterator[None]:
    raise KeyboardInterrupt
    yield


@contextlib.asynccontextmanager
async def interrupted_at_end() -> AsyncIterator[None]:
    yield
    raise KeyboardInterrupt


@contextlib.asynccontextmanager
async def noted() -> AsyncIterator[str]:
    index = current_worker().index
    await asyncio.sleep(0)
    events.append(f"entered {index}")
    try:
        yield f"state of {index}"
    finally:
        await asyncio.sleep(0)
        events.append(f"left {index}")


@contextlib.asynccontextmanager
async def noted_group() -> AsyncIterator[asyncio.TaskGroup]:
    events.append("entered")
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    finally:
        events.append("left")


async def _fail() -> None:
    raise LookupError("not there")


async def fail_in_lifespan() -> None:
    current_worker().state.create_task(_fail())


@contextlib.asynccontextmanager
async def never_entered() -> AsyncIterator[None]:
    started.set()
    await asyncio.Event().wait()
    yield


@contextlib.asynccontextmanager
async def refuses() -> AsyncIterator[None]:
    await asyncio.sleep(0)
    raise LookupError("no such resource")
    yield


@contextlib.asynccontextmanager
async def never_left() -> AsyncIterator[None]:
    yield
    started.set()
    await asyncio.Event().wait()


def state_of_worker(_: object = None) -> Any:
    return current_worker().state


def keep(thing: Any) -> None:
    """An initializer: keep what a process would get."""
    events.append(thing)


def kill_own_worker(_: object = None) -> None:
    events[0]()
    events.append("went on")


def refuse_to_start() -> None:
    raise LookupError("not today")


def log_warning(text: str) -> None:
    logging.getLogger("of.an.item").warning(text)


def block(seconds: float) -> str:
    time.sleep(seconds)
    return "blocked"


def make_local() -> object:
    return lambda: None


def wait_in_a_thread() -> bool:
    thread_started.set()
    return thread_may_end.wait(60)
