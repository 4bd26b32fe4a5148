"""What the tests of `PoolExecutor` run in workers, beside `workload`: calls that wait in FIFOs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any


class Gate:
    """Where a call waits: the test sees it running, and decides when it goes on."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        import os

        self.entered = folder / f"{name}.entered"
        self.released = folder / f"{name}.released"
        os.mkfifo(self.entered)
        os.mkfifo(self.released)

    def pass_through(self, value: Any = None) -> Any:
        """In the worker: say that this runs, wait, and return `value`."""
        self.entered.write_text("entered")  # opening a FIFO waits for the other side
        self.released.read_text()
        return value

    def wait(self) -> None:
        """In the test: until the call runs."""
        self.entered.read_text()

    def release(self) -> None:
        """In the test: let it go on."""
        self.released.write_text("go")


def fail_to_start() -> None:
    raise LookupError("no way to start")


class OwnStop(StopIteration):
    """A StopIteration that asyncio does not know by its class."""


def raise_one(kind: type[BaseException]) -> None:
    raise kind("of its own")


async def cancel_itself() -> None:
    raise asyncio.CancelledError("of its own")


async def both_meet(mine: str, other: str) -> str:
    """Returns if the other runs at the same time, in the same worker."""
    _events.setdefault(mine, asyncio.Event()).set()
    await _events.setdefault(other, asyncio.Event()).wait()
    return mine


_events: dict[str, asyncio.Event] = {}
