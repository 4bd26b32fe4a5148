"""How an exception from another process is shown: the text of its traceback, without our frames.

Both processes use this module: a worker before it sends an exception (exceptions.py), and the
parent, `Process` and `Worker` before they raise one of their own calls.

TRACEBACK-1  The text shows the user's frames: those of this package, and of asyncio where it runs
    the user's code for this package, are left out.
"""

from __future__ import annotations

import asyncio
import os
import traceback
import types
from collections.abc import Iterator
from typing import Any, Final

from ..types import TracebackStr

_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_COMPILED: Final = (
    f"amp_ext{os.sep}"  # Cython gives its sources a path below the root of the project
)
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep


class RemoteTraceback(Exception):  # noqa: N818 - it is shown in a chain, and is no error itself
    """Ends the chain of an exception from a worker; its text is the traceback from there."""

    def __init__(self, text: TracebackStr) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}\n"""'


def described(exc: BaseException) -> tuple[TracebackStr, list[str]]:
    """The traceback as Python prints it (TRACEBACK-1), and the notes that it prints after it."""
    try:
        shown = traceback.TracebackException(
            type(exc), exc, exc.__traceback__, lookup_lines=False, compact=True
        )
        _leave_out_our_frames(shown)
        notes = list(map(str, notes_of(exc)))
        if notes:
            shown.__notes__ = None
        return "".join(shown.format()).rstrip("\n"), notes
    except BaseException as error:  # noqa: BLE001 - it runs methods of the exception; EXC-1
        name = type(exc).__qualname__
        return f"{name} (its traceback cannot be shown: {type(error).__name__})", []


def notes_of(exc: BaseException) -> list[Any]:
    """The notes of an exception, where they are what `add_note` makes."""
    notes = field("__dict__").__get__(exc).get("__notes__")
    return notes if type(notes) is list else []


def without_our_frames(exc: BaseException) -> None:
    """Remove the frames of this package at which the traceback of `exc` begins (TRACEBACK-1).

    A bare `raise` in the outermost of them then leads on from the frame of the user's that awaits.
    """
    trace = field("__traceback__").__get__(exc)
    files = [step.tb_frame.f_code.co_filename for step in _steps(trace)]
    for _ in range(_first_of_user(files)):
        trace = trace.tb_next
    BaseException.with_traceback(exc, trace)


def _steps(trace: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _leave_out_our_frames(shown: traceback.TracebackException) -> None:
    """TRACEBACK-1, for an exception and all that is printed with it."""
    left = [shown]
    while left:
        one = left.pop()
        one.stack[:] = _users_frames(one.stack)
        left += filter(None, (one.__cause__, one.__context__, *(one.exceptions or ())))


def _users_frames(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    begin = _first_of_user([frame.filename for frame in frames])
    return [frame for frame in frames[begin:] if not _is_ours(frame.filename)]


def _first_of_user(files: list[str]) -> int:
    """Where the user's frames begin: after the last of ours, with asyncio's before it.

    asyncio's frames after that one, and those below frames of the user's, are the user's calls.
    """
    begin = 0
    for at, file in enumerate(files):
        if _is_ours(file):
            begin = at + 1
        elif not file.startswith(_ASYNCIO):
            break
    return begin


def _is_ours(filename: str) -> bool:
    return filename.startswith((_PACKAGE, _COMPILED))


def field(name: str) -> Any:
    """A field of BaseException, whatever the attribute methods do: frozen dataclasses refuse."""
    return vars(BaseException)[name]
