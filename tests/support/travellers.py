"""Values and functions that do not travel, each for a reason of its own; used by name."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from aiomultiprocess._worker import main


class OwnError(Exception):
    """What no pickler raises by itself."""


class No:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise OwnError("no")


def raise_lookup() -> None:
    raise LookupError("not there")


class Stuck:
    """Can be pickled and not be unpickled."""

    def __reduce__(self) -> Any:
        return raise_lookup, ()

    async def call(self) -> None: ...


class StuckError(Exception):
    """Can be pickled, and rebuilt only where it was made."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)

    def __reduce__(self) -> Any:
        return rebuilt_in, (self.args[0],)


def rebuilt_in(pid: int) -> StuckError:
    if os.getpid() != pid:
        raise_lookup()
    return StuckError(pid)


async def fail_unloadably() -> None:
    raise StuckError(os.getpid())


def homeless() -> Any:
    """An instance of a class that is in this module in this process only."""
    cls: Any = type("Nowhere", (), {"__module__": __name__})
    globals()["Nowhere"] = cls
    return cls()


def homeless_function(*, plain: bool = False) -> Any:
    """A function that is in this module in this process only."""

    async def coroutine() -> None: ...

    def function(*args: Any) -> None: ...

    nowhere: Any = function if plain else coroutine
    nowhere.__qualname__ = nowhere.__name__ = "nowhere"
    globals()["nowhere"] = nowhere
    return nowhere


def local() -> Any:
    async def inside() -> None: ...

    return inside


async def lock_or(value: str) -> Any:
    return threading.Lock() if value == "lock" else value


async def lock_later_or(value: str) -> Any:
    await asyncio.sleep(0)
    return await lock_or(value)


async def stuck_or(value: str) -> Any:
    return Stuck() if value == "stuck" else value


async def exit_or(value: str) -> str:
    if value == "exit":
        os._exit(7)
    return value


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(5)


async def exit_when_pickled() -> ExitsWhenPickled:
    return ExitsWhenPickled()


#: What ends programs, tasks or generators, rather than an error.
ENDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
}


class EndsWhenPickled:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        raise ENDS[self.kind]("at once")


def make_ending(kind: str) -> EndsWhenPickled:
    return EndsWhenPickled(kind)


async def make_ending_later(kind: str) -> EndsWhenPickled:
    await asyncio.sleep(0)
    return EndsWhenPickled(kind)


async def yield_ending(kind: str) -> AsyncIterator[Any]:
    yield 1
    yield EndsWhenPickled(kind)


async def fail_unanswered(kind: str, turns: int) -> None:
    """Fail, when the worker cannot send errors any more."""

    def fail(*_: Any, **__: Any) -> None:
        raise ENDS[kind]("unsent")

    current: Any = main.this_worker
    current.engine._results.fail = fail
    for _ in range(turns):
        await asyncio.sleep(0)
    raise LookupError("never answered")


class Unprintable:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        raise SystemExit(1)


async def unprintable() -> Unprintable:
    return Unprintable()


async def are_one(first: object, other: object) -> bool:
    return first is other


def print_error(error: BaseException) -> None:
    print(f"{type(error).__name__}: {error}", flush=True)
