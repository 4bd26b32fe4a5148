"""Items that stop the event loop of their worker, or let what ends programs pass through it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from typing import Any

from aiomultiprocess import current_worker
from aiomultiprocess._worker import main
from workload import meet

_kept: list[asyncio.Task[None]] = []


async def leave(how: type[BaseException] = SystemExit) -> None:
    await asyncio.sleep(0)
    raise how(2)


async def in_a_gather() -> None:
    await asyncio.gather(leave(), asyncio.sleep(0))


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())


async def by_an_interrupt() -> None:
    await asyncio.gather(leave(KeyboardInterrupt))


def _in_background(task: asyncio.Task[None]) -> None:
    task.add_done_callback(asyncio.Task.exception)  # or asyncio would report it
    _kept.append(task)


async def in_the_background() -> str:
    _in_background(asyncio.create_task(leave()))
    await asyncio.sleep(0.01)
    return "went on"


async def in_a_callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 2)
    await asyncio.sleep(0.01)
    return "went on"


async def by_stop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "went on"


def by_stop_at_once() -> str:
    asyncio.get_running_loop().stop()
    return "went on"


async def in_the_lifespan() -> str:
    current_worker().state.create_task(leave())
    await asyncio.sleep(0.01)
    return "went on"


#: Each with the words of its error, or None.
WAYS: dict[Callable[[], Any], str | None] = {
    in_a_gather: "SystemExit: 2",
    in_a_group: "SystemExit: 2",
    by_an_interrupt: "KeyboardInterrupt: 2",
    in_the_background: None,
    in_a_callback: None,
    by_stop: None,
    by_stop_at_once: None,
    in_the_lifespan: None,
}


@contextlib.asynccontextmanager
async def group_around() -> AsyncIterator[asyncio.TaskGroup]:
    """A lifespan whose state is a TaskGroup."""
    async with asyncio.TaskGroup() as group:
        yield group


async def break_the_loop(port: int) -> None:
    """End the loop by an error of its own, as a loop that has a bug, or no descriptor, does."""
    await meet(port, "break")
    loop: Any = asyncio.get_running_loop()
    run_once = loop._run_once

    def fail() -> None:
        loop._run_once = run_once
        raise OSError("the loop cannot poll")

    loop._run_once = fail
    await asyncio.Event().wait()


async def return_when_cancelled(port: int) -> str:
    try:
        return await meet(port)
    except asyncio.CancelledError:
        return "went on"


def note_exit(path: str) -> None:
    """An initializer: `path` is made when the worker exits with its hooks."""
    atexit.register(Path(path).touch)


async def leave_while_results_are_sent(turns: int) -> None:
    """SIGTERM strikes the engine, in a turn of its own or in the last step of an item."""
    await leave_on_sigterm()
    current: Any = main.this_worker
    results = current.engine._results
    publish = results.publish

    def strike() -> None:
        publish()
        # a worker that runs items ends by the signal itself, without hooks: WORKER-9
        if all(place is None for place in current.engine._running.values()):
            results.publish = publish
            signal.raise_signal(signal.SIGTERM)

    results.publish = strike
    for _ in range(turns):
        await asyncio.sleep(0.01)


async def leave_within_a_burst() -> None:
    """SIGTERM strikes while the starter unregisters the task that it keeps for the next item."""
    await leave_on_sigterm()

    def strike(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename.endswith("_weakrefset.py"):
            sys.settrace(None)
            signal.raise_signal(signal.SIGTERM)

    sys.settrace(strike)


async def be_interrupted_in(function: str, module: str) -> None:
    """Restore Python's SIGINT, and let one strike the next call of a function of ours."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def strike(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name != function or frame.f_globals["__name__"] != module:
            return None
        if event == "line":
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return strike

    sys.settrace(strike)


async def leave_on_sigterm() -> None:
    """As programs do that end by their `finally` blocks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
