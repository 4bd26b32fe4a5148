"""What the tests of cancelled maps run in workers, and pass to them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from workload import meet, note


async def return_when_cancelled(port: int, token: object = "") -> object:
    """Swallow the cancellation; the result comes too late."""
    try:
        await meet(port, token)
    except asyncio.CancelledError:
        await meet(port, f"late {token}")
    return token


async def die_when_cancelled(path: str, port: int, token: object = "") -> None:
    note(path, token)
    try:
        await meet(port, token)
        await asyncio.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


async def note_and_wait(path: str, port: int, token: object = "") -> None:
    """Note the start; call in; note the end, which only a cancellation brings."""
    note(path, f"start {token}")
    try:
        await meet(port, token)
        await asyncio.Event().wait()
    finally:
        note(path, f"end {token}")


class CallsWhenPickled:
    """An item that runs code in the parent while it is pickled."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        self.call()
        return int, ()
