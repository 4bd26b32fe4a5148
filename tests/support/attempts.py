"""Functions that may run more than once, and note each time that they do.

Used by name, as `workload` is; the first argument is always the item's number.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, NoReturn

from mishaps import die
from workload import meet, meet_blocking, note

running = 0


def begin(value: int, path: str) -> int:
    """Note one more attempt at `value`, as "value pid"; which one is it?"""
    earlier = 0
    if os.path.exists(path):
        with open(path) as noted:
            earlier = sum(line.split()[0] == str(value) for line in noted)
    note(path, f"{value} {os.getpid()}")
    return earlier + 1


async def survive(value: int, path: str, deaths: int = 1) -> int:
    """Kills its worker so many times, and then returns."""
    if begin(value, path) <= deaths:
        die("SIGKILL")
    return value


async def meet_at_first(value: int, path: str, port: int, bad: tuple[int, ...] = ()) -> int:
    """The first attempt calls in, and dies if the test says so; later ones die if `bad`."""
    if begin(value, path) == 1:
        if await meet(port, value) == "die":
            die("SIGKILL")
    elif value in bad:
        die("SIGKILL")
    return value


async def meet_each_time(value: int, path: str, port: int) -> int:
    begin(value, path)
    await meet(port, value)
    return value


async def meet_holding_the_loop(value: int, path: str, port: int) -> int:
    begin(value, path)
    meet_blocking(port, value)
    return value


async def see_neighbours(value: int, path: str, port: int) -> list[int]:
    """The first attempt calls in; the next says how many ran in its worker, over some turns."""
    global running
    running += 1
    try:
        if begin(value, path) == 1:
            await meet(port, value)
        seen = [running]
        for _ in range(20):
            await asyncio.sleep(0)
            seen.append(running)
        return seen
    finally:
        running -= 1


async def be_a_neighbour(_: object = None) -> None:
    """Other work, of which `see_neighbours` takes notice."""
    global running
    running += 1
    await asyncio.sleep(0)
    running -= 1


async def fail(value: int, path: str) -> NoReturn:
    begin(value, path)
    raise LookupError("an error is a result")


def die_unless_in(pid: int) -> Any:
    """The unpickling of DeadlyToReceive."""
    if os.getpid() != pid:
        die("SIGKILL")
    return DeadlyToReceive()


class DeadlyToReceive:
    """Kills the worker that unpickles it."""

    def __reduce__(self) -> Any:
        return die_unless_in, (os.getpid(),)
