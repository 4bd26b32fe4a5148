"""Context variables that travel to workers, and tasks that read them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import workload

REQUEST: contextvars.ContextVar[object] = contextvars.ContextVar("REQUEST")
TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT", default="nobody's")


async def read(_: object = None) -> tuple[object, str, bool]:
    return REQUEST.get("unset"), TENANT.get(), TENANT in contextvars.copy_context()


def read_sync(_: object = None) -> tuple[object, str, bool]:
    return REQUEST.get("unset"), TENANT.get(), TENANT in contextvars.copy_context()


async def read_later(_: object = None) -> object:
    await asyncio.sleep(0)
    return REQUEST.get("unset")


async def set_and_read(value: object) -> tuple[object, object]:
    before = REQUEST.get("unset")
    REQUEST.set(value)
    await asyncio.sleep(0)
    return before, REQUEST.get()


async def read_and_name(_: object = None) -> tuple[object, str]:
    task = asyncio.current_task()
    assert task is not None
    return REQUEST.get("unset"), task.get_name()


def initialize() -> None:
    REQUEST.set("the worker's")


class OnlyHere:
    """An object that pickles, and that no other process can unpickle."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, (self.home,)


def refuse(home: int) -> None:
    raise LookupError(f"only in {home}")


async def meet_and_read(port: int) -> object:
    await workload.meet(port)
    return REQUEST.get("unset")


async def values_seen(count: int) -> AsyncIterator[object]:
    """A generator: the value of REQUEST, again and again."""
    for _ in range(count):
        await asyncio.sleep(0)
        yield REQUEST.get("unset")
