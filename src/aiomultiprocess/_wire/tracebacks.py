"""The traceback of an exception, without the frames of this package.

A worker makes the text of an exception here before it sends it (exceptions.py). Public functions
remove our frames here from an error that they raise to the user.

TRACEBACK-1  A traceback shows the user's frames. It leaves out the frames of this package, and
    those of asyncio through which this package calls the user's code.
"""

from __future__ import annotations

import asyncio
import os
import traceback
import types
from collections.abc import Iterator
from typing import Any, Final

from ..types import TracebackStr, describe_error, type_name

NOT_SHOWN: Final = "its traceback cannot be shown: {}"
_PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_COMPILED: Final = f"amp_ext{os.sep}"  # Cython gives its sources a path below the project's root
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep


class RemoteTraceback(Exception):  # noqa: N818 - a link of a printed chain, no error
    """The end of the chain of an exception from a worker; its text is the remote traceback."""

    def __init__(self, text: TracebackStr) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}\n"""'


def describe(exc: BaseException) -> tuple[TracebackStr, list[str]]:
    """The traceback as Python prints it (TRACEBACK-1), and the notes that follow it there."""
    try:
        shown = traceback.TracebackException(
            type(exc), exc, exc.__traceback__, lookup_lines=False, compact=True
        )
        _leave_out_our_frames(shown)
        notes = ["".join([str(note)]) for note in notes_of(exc)]  # of plain str
        if notes:
            shown.__notes__ = None
        return "".join(shown.format()).rstrip("\n"), notes
    except OSError as error:  # no descriptor is left to read the source, or to import what reads it
        return f"{describe_error(exc)} ({NOT_SHOWN.format(type_name(error))})", []
    except BaseException as error:  # noqa: BLE001 - it runs methods of the exception (EXC-1)
        return f"{type_name(exc)} ({NOT_SHOWN.format(type_name(error))})", []


def notes_of(exc: BaseException) -> list[Any]:
    """A copy of the notes of an exception, if they are a list, as `add_note` makes it."""
    notes: Any = attributes_of(exc).get("__notes__")
    return list.copy(notes) if issubclass(type(notes), list) else []


def attributes_of(exc: BaseException) -> dict[str, Any]:
    """What `vars()` gives of an exception whose class defines no `__dict__` of its own."""
    attributes: dict[str, Any] = field("__dict__").__get__(exc)
    return attributes


def without_our_frames(exc: BaseException) -> None:
    """Remove the frames of this package with which the traceback of `exc` begins (TRACEBACK-1).

    After a bare `raise` in our outermost function, the user's frame that awaits comes first.
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
    """Apply TRACEBACK-1 to an exception and to all that is printed with it."""
    left = [shown]
    while left:
        one = left.pop()
        one.stack[:] = _users_frames(one.stack)
        left += filter(None, (one.__cause__, one.__context__, *(one.exceptions or ())))


def _users_frames(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    begin = _first_of_user([frame.filename for frame in frames])
    return [frame for frame in frames[begin:] if not _is_ours(frame.filename)]


def _first_of_user(files: list[str]) -> int:
    """The index of the user's first frame: after the last of ours, and asyncio's before that one.

    The user's code called asyncio's frames that come later.
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
    """The descriptor of a field, for classes that refuse attributes, as frozen dataclasses do."""
    return vars(BaseException)[name]
