"""What the tests of `Pool(logs=…)` run in workers."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

log = logging.getLogger("of.worker")


class Local:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("stays here")

    def __repr__(self) -> str:
        return "<local>"


def say(text: str, *args: Any, level: int = logging.WARNING, name: str = "of.worker") -> int:
    logging.getLogger(name).log(level, text, *args)
    return os.getpid()


@contextlib.asynccontextmanager
async def talkative() -> AsyncIterator[None]:
    """A lifespan that logs, and suspends, while it is entered."""
    log.warning("entering")
    await asyncio.sleep(0.01)
    log.warning("entered")
    yield


async def say_after_a_turn(number: int) -> int:
    await asyncio.sleep(0)
    log.warning("number %d", number)
    return number


def say_all(count: int) -> None:
    for number in range(count):
        log.warning("number %d", number)


def _revive(kind: type[BaseException], pid: int) -> Any:
    if os.getpid() != pid:
        raise kind("not here")


class Raising:
    """Can be unpickled in the process that has pickled it, and raises elsewhere."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _revive, (self.kind, os.getpid())


def say_three_of_which_one_raises(kind: type[BaseException]) -> None:
    log.warning("before")
    log.warning("never", extra={"attribute": Raising(kind)})
    log.warning("after")


def say_from_a_thread(text: str) -> None:
    thread = threading.Thread(target=log.warning, args=(text,), name="of its own")
    thread.start()
    thread.join()


def say_later_from_a_thread() -> None:
    threading.Timer(0.2, log.warning, args=("later",)).start()


def fail_and_say() -> None:
    try:
        raise LookupError("deep down")
    except LookupError:
        log.exception("it failed")


def say_with_extras() -> None:
    log.warning("with %s", Local(), extra={"number": 5, "local": Local()})


def say_far_too_much(size: int) -> None:
    log.warning("x" * size, extra={"number": 5, "large": bytes(size)})


def say_at_start(text: str) -> None:
    log.warning(text)
    if text == "fail":
        raise LookupError("no start")


def say_at_the_end(text: str) -> None:
    atexit.register(log.error, text)


def say_and_die() -> None:
    log.warning("last words")
    os.kill(os.getpid(), signal.SIGKILL)


_kept: list[asyncio.Task[None]] = []


async def say_when_the_loop_ends(count: int) -> None:
    """Leave a task that logs when the exit of the worker cancels it: 3 MB for 5000 records."""
    _kept.append(asyncio.create_task(_say_when_cancelled(count)))
    await asyncio.sleep(0)


async def _say_when_cancelled(count: int) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        for number in range(count):
            log.warning("%d %s", number, "x" * 200)


def handlers_of_root() -> list[str]:
    return [type(handler).__name__ for handler in logging.getLogger().handlers]


def level_of(name: str) -> int:
    return logging.getLogger(name).getEffectiveLevel()


def say_in_a_fork() -> int:
    pid = os.fork()
    if not pid:
        log.warning("of a copy")
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
