"""The starter of items, compiled; `aiomultiprocess._pure.starter` is the same in Python."""

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Protocol

DONE: Final = 0
FULL: Final = 3
RAISED: Final = 1
SUSPENDED: Final = 2

def share(tasks: ModuleType) -> None: ...

class _Counter(Protocol):
    def mark_started(self, n: int, /) -> object: ...
    def mark_time(self, first: int, since: int, /) -> object: ...

class _Sink(Protocol):
    def append(self, value: Any, /) -> bool | None: ...

class _Turns(Protocol):
    def begin_turn(self, origin: int, /) -> object: ...
    def end_turn(self, busy: int, /) -> object: ...

class TurnClock:
    def __init__(self, memory: _Turns, select: Callable[..., Any]) -> None: ...
    def wait(self, timeout: float | None = None) -> Any: ...
    def stop(self, *, idle: bool) -> None: ...

class Starter:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counter: _Counter,
        on_value: Callable[[Any], object] | None = None,
        started: int = 0,
    ) -> None: ...
    def run(
        self,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        start: int,
        stop: int,
        out: _Sink,
        deadline_ns: int,
        timed: bool = False,
    ) -> tuple[int, int, Any]: ...
    def close(self) -> None: ...
