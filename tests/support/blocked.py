"""Functions that block the loop of their worker until a file exists."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any


def block(value: Any) -> Any:
    """Return a value at once, or the name of a file when it exists."""
    while isinstance(value, Path) and not value.exists():
        time.sleep(0.005)
    return value


async def block_in_a_coroutine(value: Any) -> Any:
    return block(value)


def block_and_enlarge(value: Any) -> Any:
    """As `block`; the name of a file comes with as many bytes as it has after its dot."""
    found = block(value)
    return (found, bytes(int(found.suffix[1:]))) if isinstance(found, Path) else found


def block_or_raise(value: Any) -> Any:
    if isinstance(value, int) and value % 2:
        raise ValueError(value)
    return block(value)


def block_or_die(value: Any) -> Any:
    """As `block`; the process dies when the file exists."""
    if isinstance(block(value), Path):
        os._exit(3)
    return value


def now_and_then(value: int) -> int:
    """Block for a moment, at some of the values."""
    if value % 97 == 0:
        time.sleep(0.004)
    return value


class Unsendable:
    """What pickle refuses."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


def block_or_refuse(value: Any) -> Any:
    return Unsendable() if value == 1 else block(value)


def block_in_a_dict(value: Any) -> dict[str, Any]:
    """As `block`; the key of the result depends on the value."""
    return {"file" if isinstance(block(value), Path) else f"key {value % 3}": value, "all": [value]}


class Counted:
    """A value that counts how often it is unpickled in this process."""

    unpickled = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.unpickled += 1
        vars(self).update(state)


def block_and_count(value: Any) -> Any:
    return value if isinstance(block(value), Path) else Counted(value)


async def wait_and_block(value: Any) -> Any:
    """Wait a moment, beside others that end in the same turn of the loop, and then `block`."""
    await asyncio.sleep(0.05)
    return block(value)


def now_and_then_a_dict(value: int) -> dict[str, int]:
    return {f"key {value % 300}": now_and_then(value)}
