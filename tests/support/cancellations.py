"""What the tests of cancelled maps run in workers, and pass to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
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


async def go_on_for_ever(path: str) -> None:
    """Swallow each cancellation; the file says that it runs."""
    Path(path).touch()  # noqa: ASYNC240
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def await_for_ever(path: str) -> Any:
    """The same, in an awaitable that a thread returns."""
    return go_on_for_ever(path)


async def yield_once_and_go_on(path: str) -> AsyncIterator[int]:
    """The same, as a stream that is asked for a second value."""
    yield 0
    await go_on_for_ever(path)


async def clean_up_until(path: str, end: str) -> None:
    """Its clean-up, once it was cancelled, takes until the file `end` is there."""
    try:
        Path(path).touch()  # noqa: ASYNC240
        await asyncio.Event().wait()
    finally:
        while not Path(end).exists():  # noqa: ASYNC110, ASYNC240 - the test makes it
            await asyncio.sleep(0.005)
        note(end, "cleaned up")


class CallsWhenPickled:
    """An item that runs code in the parent while it is pickled."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        self.call()
        return int, ()
