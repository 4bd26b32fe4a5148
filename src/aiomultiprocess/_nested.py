"""Items that run an event loop inside the one of their worker, which asyncio refuses.

An item runs on the event loop of its worker, so `asyncio.run()` and the like raise in it. Their
error gets a note that says what to do. The coroutine that they were given is closed, or Python
would write to stderr that it was never awaited.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Final

NOTE: Final = (
    "A pool runs this function on the event loop of a worker, within which no other can run. Make "
    "it a coroutine function (async def), and await there what asyncio.run() or the like gets now."
)

#: What asyncio, uvloop and anyio say.
_REFUSALS: Final = (
    "cannot be called from a running event loop",
    "event loop is already running",
    "while another loop is running",
    "Already running asyncio in this thread",
)
_RUNNERS: Final = frozenset({"asyncio", "uvloop"})  # packages that are given coroutines to run
_LONGEST: Final = 20  # errors of a chain that are looked at


def explain(error: BaseException) -> None:
    """Add `NOTE` to what refused to run a loop, in the chain of an item's error."""
    link: BaseException | None = error
    for _ in range(_LONGEST):
        if type(link) is RuntimeError and any(text in str(link) for text in _REFUSALS):
            link.add_note(NOTE)
            for coro in _refused(link.__traceback__):
                coro.close()
        if link is None:
            return
        link = _earlier(link)


def _earlier(error: BaseException) -> BaseException | None:
    """The error behind another one, whatever the attributes of its class do."""
    fields = vars(BaseException)
    cause: BaseException | None = fields["__cause__"].__get__(error)
    return fields["__context__"].__get__(error) if cause is None else cause


def _refused(trace: TracebackType | None) -> Iterator[Coroutine[Any, Any, Any]]:
    """The coroutines that a runner has got and has not started."""
    while trace is not None:
        frame = trace.tb_frame
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _RUNNERS:
            for value in list(frame.f_locals.values()):
                if inspect.iscoroutine(value) and _is_new(value):
                    yield value
        trace = trace.tb_next


def _is_new(coro: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
