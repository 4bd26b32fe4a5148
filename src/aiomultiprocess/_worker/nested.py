"""Items that run an event loop inside the one of their worker, which asyncio refuses.

An item runs on the event loop of its worker, so `asyncio.run()` and the like raise in it. Their
error gets a note that says what to do. The coroutine that they were given is closed, or Python
would write to stderr that it was never awaited.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Iterator
from types import CoroutineType, TracebackType
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
_MOST: Final = 20  # errors that are looked at, behind one


def explain(error: BaseException) -> None:
    """Add `NOTE` to what refused to run a loop: an item's error, or one behind or in it."""
    errors: list[BaseException] = [error]
    for link in errors:  # which grows
        if _is_refusal(link) and not _is_noted(link):
            link.add_note(NOTE)
            for coro in _refused(link.__traceback__):
                coro.close()
        known = set(map(id, errors))
        new = [other for other in _behind(link) if id(other) not in known]
        errors += new[: max(0, _MOST - len(errors))]


def _is_refusal(error: BaseException) -> bool:
    if type(error) is not RuntimeError or len(error.args) != 1 or type(error.args[0]) is not str:
        return False
    return any(text in error.args[0] for text in _REFUSALS)


def _is_noted(error: BaseException) -> bool:
    notes = getattr(error, "__notes__", [])
    return type(notes) is not list or any(note is NOTE for note in notes)


def _behind(error: BaseException) -> Iterator[BaseException]:
    """Cause, context and members, whatever the attributes of the error's class do."""
    fields = vars(BaseException)
    for other in (fields["__cause__"].__get__(error), fields["__context__"].__get__(error)):
        if other is not None:
            yield other
    if issubclass(type(error), BaseExceptionGroup):  # isinstance would run code of the error's
        yield from vars(BaseExceptionGroup)["exceptions"].__get__(error)


def _refused(trace: TracebackType | None) -> Iterator[Coroutine[Any, Any, Any]]:
    """The coroutines that a runner has got and has not started."""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        if type(module) is str and module.partition(".")[0] in _RUNNERS:
            for value in list(trace.tb_frame.f_locals.values()):
                if type(value) is CoroutineType and _is_new(value):
                    yield value
        trace = trace.tb_next


def _is_new(coro: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
