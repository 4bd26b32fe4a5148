"""Lifespans for workers, and tasks that look at their worker. Workers import it, so it is light."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
from collections.abc import AsyncIterator
from typing import Any

import workload
from aiomultiprocess import current_worker

RESOURCE: contextvars.ContextVar[str] = contextvars.ContextVar("RESOURCE")

initialized: list[str] = []


def initialize() -> None:
    initialized.append("initializer")
    workload.CONTEXT.set("set by the initializer")


@contextlib.asynccontextmanager
async def noting(path: str) -> AsyncIterator[str]:
    """Notes when it is entered and left, and by which task."""
    task = asyncio.current_task()
    workload.note(path, f"entered {os.getpid()} {len(initialized)}")
    RESOURCE.set("a resource")
    try:
        yield f"state of {os.getpid()}"
    finally:
        await asyncio.sleep(0)
        same = task is asyncio.current_task()
        workload.note(path, f"left {os.getpid()} {same} {len(asyncio.all_tasks())}")


@contextlib.asynccontextmanager
async def plain() -> AsyncIterator[str]:
    yield "plain"


async def what_an_item_sees(_: object = None) -> tuple[int, Any, str, object, list[str]]:
    others = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    state = current_worker().state
    return os.getpid(), state, RESOURCE.get("unset"), workload.CONTEXT.get(), others


@contextlib.asynccontextmanager
async def failing_to_enter() -> AsyncIterator[None]:
    await asyncio.sleep(0)
    raise LookupError("no database")
    yield


@contextlib.asynccontextmanager
async def cancelled_entering() -> AsyncIterator[None]:
    raise asyncio.CancelledError
    yield


@contextlib.asynccontextmanager
async def exiting_entering() -> AsyncIterator[None]:
    raise SystemExit(3)
    yield


@contextlib.asynccontextmanager
async def failing_to_leave() -> AsyncIterator[None]:
    yield
    raise LookupError("cannot disconnect")


@contextlib.asynccontextmanager
async def meeting_while_entering(port: int, path: str) -> AsyncIterator[None]:
    """Calls in while it is entered, and notes whether that was cancelled."""
    try:
        await workload.meet(port, "entering")
    except asyncio.CancelledError:
        workload.note(path, "cancelled")
        raise
    try:
        yield
    finally:
        workload.note(path, "left")


@contextlib.asynccontextmanager
async def meeting_while_leaving(port: int) -> AsyncIterator[int]:
    yield os.getpid()
    await workload.meet(port, f"leaving {current_worker().index}")


@contextlib.asynccontextmanager
async def hanging_while_left() -> AsyncIterator[None]:
    yield
    await asyncio.Event().wait()


class Swallowing:
    """An async context manager whose `__aexit__` returns True, by hand."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def __aenter__(self) -> Swallowing:
        return self

    async def __aexit__(self, *error: object) -> bool:
        workload.note(self.path, f"left with {error[0]}")
        return True


@contextlib.asynccontextmanager
async def with_anyio(path: str) -> AsyncIterator[None]:
    import anyio

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        yield
        group.cancel_scope.cancel()
    workload.note(path, "the group has ended")


async def _fail_when_told(told: asyncio.Event) -> None:
    await told.wait()
    raise LookupError("the connection is gone")


@contextlib.asynccontextmanager
async def with_task_group() -> AsyncIterator[asyncio.Event]:
    """Its state is an event that lets a background task of it fail."""
    told = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_fail_when_told(told))
        yield told


async def end_the_lifespan(_: object = None) -> int:
    current_worker().state.set()
    return os.getpid()


async def cancel_all_other_tasks(_: object = None) -> int:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return os.getpid()


async def ignore_cancellation(port: int, path: str) -> None:
    """Runs on for ever, however often it is cancelled."""
    await workload.meet(port)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            workload.note(path, "cancelled")


def no_context_manager() -> int:
    return 5


def with_an_argument(app: object) -> object:
    return app


async def index_and_started(_: object = None) -> tuple[int, int, int]:
    worker = current_worker()
    return worker.index, worker.pid, worker.started


async def meet_with_index(port: int) -> int:
    index = current_worker().index
    await workload.meet(port, index)
    return index


index_at_start: list[int] = []


def note_index() -> None:
    """An initializer."""
    index_at_start.append(current_worker().index)


async def indices_seen(_: object = None) -> tuple[list[int], int]:
    return index_at_start, current_worker().index


def current_worker_in_a_fork(_: object = None) -> str:
    """What `current_worker` raises in a process that this task forks."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            text = repr(current_worker())
        except RuntimeError as error:
            text = str(error)
        os.write(sending, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(receiving, 1000).decode()
    os.close(receiving)
    os.close(sending)
    return text


async def state_and_repr(_: object = None) -> tuple[object, bool]:
    worker = current_worker()
    return worker.state, f"index=0 pid={os.getpid()} started=1" in repr(worker)


async def index_in_a_nested_pool(_: object = None) -> int:
    from aiomultiprocess import Pool

    async with Pool(1) as pool:
        return (await pool.apply(index_and_started))[0]


async def stream_with_index(stop: int) -> AsyncIterator[tuple[int, int]]:
    """Each value with the index of the worker."""
    for n in range(stop):
        yield n, current_worker().index
