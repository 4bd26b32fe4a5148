"""Functions that run longer than their time limit, each in a way of its own; used by name."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from workload import meet, meet_blocking, note


async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def block(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def block_the_loop(seconds: float) -> float:
    await asyncio.sleep(0)
    return block(seconds)


async def hold_the_gil(_: object = None) -> None:
    """C code that does not give the GIL to other threads, and would take years."""
    await asyncio.sleep(0)
    re.fullmatch("(a+)+", "a" * 60 + "b")


async def ignore_cancellation(_: object = None) -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def return_when_cancelled(value: Any) -> Any:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return value


async def raise_when_cancelled(value: Any) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise LookupError(value) from None


async def clean_up_for_a_while(path: str, seconds: float) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(seconds)
        note(path, "cleaned")


async def cancel_itself(_: object = None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def wait_or_block(port: int, token: str) -> str:
    """Waits for ever as "waits", blocks its worker as "blocks", else calls in and returns."""
    if token == "waits":
        await asyncio.Event().wait()
    if token == "blocks":
        meet_blocking(port, token)
    return await meet(port, token)


async def note_and_block(path: str, value: int, bad: int) -> int:
    """One item blocks its worker for ever; each notes that it was started."""
    note(path, value)
    await asyncio.sleep(0)
    if value == bad:
        block(1000)
    return value
