"""Explains why an item cannot run an event loop: it runs in that of its worker.

`asyncio.run()` and the like raise RuntimeError in an item. `ResultSender.fail` calls `explain` with
the error of each item, which adds a note that names the way out. It also closes the coroutine that
`asyncio.run()` got, or Python would warn on stderr that it was never awaited.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Iterator
from types import CoroutineType, TracebackType
from typing import Any, Final

NOTE: Final = (
    "A pool runs this function on the event loop of a worker, within which no other can run. Make "
    "it a coroutine function (async def), and await there what asyncio.run() or the like gets now. "
    "Or give the pool threads=, for plain functions: they run in threads of a worker then."
)

#: Messages of asyncio, uvloop and anyio.
_REFUSALS: Final = (
    "cannot be called from a running event loop",
    "event loop is already running",
    "while another loop is running",
    "Already running asyncio in this thread",
)
_RUNNERS: Final = frozenset({"asyncio", "uvloop"})  # packages with functions that run a coroutine
_MOST: Final = 20  # errors that `explain` checks for one item


def explain(error: BaseException) -> None:
    """Add `NOTE` to each refusal to run a loop among `error`, its causes, contexts and members."""
    errors: list[BaseException] = [error]
    for found in errors:  # the list grows meanwhile
        if _is_refusal(found) and not _is_noted(found):
            found.add_note(NOTE)
            for coro in _refused(found.__traceback__):
                coro.close()
        known = set(map(id, errors))
        new = [other for other in _related(found) if id(other) not in known]
        errors += new[: max(0, _MOST - len(errors))]


def _is_refusal(error: BaseException) -> bool:
    if type(error) is not RuntimeError or len(error.args) != 1 or type(error.args[0]) is not str:
        return False
    return any(text in error.args[0] for text in _REFUSALS)


def _is_noted(error: BaseException) -> bool:
    notes = getattr(error, "__notes__", [])
    return type(notes) is not list or any(note is NOTE for note in notes)


def _related(error: BaseException) -> Iterator[BaseException]:
    """Cause, context and members, read without code of the error's class."""
    fields = vars(BaseException)
    for other in (fields["__cause__"].__get__(error), fields["__context__"].__get__(error)):
        if other is not None:
            yield other
    if issubclass(type(error), BaseExceptionGroup):  # isinstance() runs code of the error's class
        yield from vars(BaseExceptionGroup)["exceptions"].__get__(error)


def _refused(trace: TracebackType | None) -> Iterator[Coroutine[Any, Any, Any]]:
    """The coroutines that a runner received and did not start."""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        if type(module) is str and module.partition(".")[0] in _RUNNERS:
            for value in list(trace.tb_frame.f_locals.values()):
                if type(value) is CoroutineType and _is_new(value):
                    yield value
        trace = trace.tb_next


def _is_new(coro: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
