"""Objects whose truth is false, or cannot be asked for, and types that raise when they are read."""

from __future__ import annotations

import asyncio
import os
from typing import Any


class EmptyError(LookupError):
    """An error that is a container of errors, and has none."""

    def __len__(self) -> int:
        return 0


class UndecidedError(LookupError):
    """An error that says, as a NumPy array does, that it has no truth value."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class UndecidedGroup(ExceptionGroup[ValueError]):
    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class UndecidedNotes(list[str]):
    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class Reserved(type):
    """A metaclass that hides the names of its classes."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise RuntimeError(f"no {name} here")
        return super().__getattribute__(name)


class Final(type):
    """A metaclass whose classes have no subclasses."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any
    ) -> Any:
        if any(isinstance(base, Final) for base in bases):
            raise asyncio.CancelledError("final")
        return super().__new__(cls, name, bases, namespace, **more)


class FinalError(Exception, metaclass=Final):
    pass


class ReservedError(Exception, metaclass=Reserved):
    pass


def noted() -> ValueError:
    error = ValueError("noted")
    error.__notes__ = UndecidedNotes(["a note"])
    return error


ERRORS: dict[str, Any] = {
    "empty": lambda: EmptyError("why"),
    "undecided": lambda: UndecidedError("why"),
    "group": lambda: UndecidedGroup("why", [ValueError("in it")]),
    "notes": noted,
    "final": lambda: FinalError("why"),
    "reserved": lambda: ReservedError("why"),
}


def fail(kind: str) -> None:
    raise ERRORS[kind]()


class MakeLoop:
    """Makes loops, and is false until it has."""

    made = 0

    def __len__(self) -> int:
        return self.made

    def __call__(self) -> asyncio.AbstractEventLoop:
        self.made += 1
        os.environ["TRUTHLESS_LOOP"] = "made"
        return asyncio.new_event_loop()


async def loop_made() -> str | None:
    return os.environ.get("TRUTHLESS_LOOP")


class Target:
    """A coroutine function that is false."""

    def __len__(self) -> int:
        return 0

    async def __call__(self, number: int) -> int:
        return number


def stop() -> None:
    raise KeyboardInterrupt


class Interrupts:
    """Unpickling it raises KeyboardInterrupt, which no one has pressed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return stop, ()


async def _initialize() -> None:
    raise AssertionError("nothing awaits this")


def initialize_late() -> Any:
    """A plain function, as far as can be seen before the call."""
    return _initialize()
