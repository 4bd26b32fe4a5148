"""Functions that fail in workers, whose frames a test looks for in what is printed."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn


def inner(key: str) -> Any:
    return {}[key]


def look_up_plainly(key: str) -> Any:
    return inner(key)


async def look_up(key: str) -> Any:
    return inner(key)


async def look_up_later(key: str) -> Any:
    await asyncio.sleep(0)
    return inner(key)


async def look_up_within_a_timeout(key: str) -> Any:
    return await asyncio.wait_for(look_up_later(key), 30)


async def fail_from() -> NoReturn:
    try:
        inner("missing")
    except KeyError as error:
        raise ValueError("outer") from error


async def fail_during() -> NoReturn:
    try:
        inner("missing")
    except KeyError:
        raise ValueError("outer")  # noqa: B904 - so that it has a context


async def fail_with_notes() -> NoReturn:
    error = ValueError("noted")
    error.add_note("the first")
    error.add_note("the second")
    raise error


async def compile_badly() -> None:
    compile("1 +\n", "<badly>", "exec")


def recurse(depth: int) -> None:
    import sys

    sys.setrecursionlimit(max(sys.getrecursionlimit(), depth + 1000))
    _deeper(depth)


def _deeper(depth: int) -> None:
    if not depth:
        raise ValueError("the bottom")
    _deeper(depth - 1)


async def fail_together() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(look_up("one"))
        group.create_task(look_up("two"))
