"""Functions that block the loop of their worker until a file exists."""

from __future__ import annotations

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
