"""What a user gives to a new process: target and arguments, initializer, and the like.

These objects travel in the start-up message, which multiprocessing pickles and unpickles as a
whole. `StartArguments` pickles them one after the other within it and unpickles them only when
asked, in a process that is up. So an object that cannot be pickled, or not be unpickled, has a
name in the error, and the new process can send that error to its parent.

One pickler takes them all: an object that two of them share stays one object. Light:
children import it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from ..types import describe_error, import_hint

#: What pickle raises by itself; a subclass may want other arguments.
KINDS: Final = (pickle.PicklingError, AttributeError, TypeError)
_MARK: Final = "_of_a_start_argument"


class StartArguments:
    """Objects of the user's, by the names of the arguments that they were passed as.

    Args:
        where: names the process in messages, such as "a worker".
        values: the objects by their names.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self._where = where
        self._values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return StartArgumentsReceived, (self._where, list(self._values), self._pickled())

    def _pickled(self) -> bytes:
        buffer = io.BytesIO()
        pickler = ForkingPickler(buffer)
        for name, value in self._values.items():
            try:
                pickler.dump(value)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # whatever a __reduce__ of the user's raises
                raise _explained(error, name, self._where) from error
        return buffer.getvalue()


class StartArgumentsReceived:
    """The same in the new process, not unpickled yet."""

    def __init__(self, where: str, names: list[str], payload: bytes) -> None:
        self._where = where
        self._names = names
        self._payload = payload

    def load(self) -> Mapping[str, Any]:
        """The objects. UnpicklingError names the one that cannot be unpickled here."""
        unpickler = pickle.Unpickler(io.BytesIO(self._payload))
        return {name: self._load_next(unpickler, name) for name in self._names}

    def _load_next(self, unpickler: pickle.Unpickler, name: str) -> Any:
        try:
            return unpickler.load()
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # importing a user's module may raise anything
            from .._wire.tracebacks import without_our_frames  # not above: only errors need it

            without_our_frames(error)
            why = f"({describe_error(error)}){import_hint(error)}"
            raise pickle.UnpicklingError(
                f"{name} cannot be unpickled in {self._where} {why}"
            ) from error


def _explained(error: Exception, name: str, where: str) -> Exception:
    """The same kind of error if it is one of pickle's, with a name and the way out."""
    kind = next((kind for kind in KINDS if issubclass(type(error), kind)), None)
    reason = describe_error(error) if kind is None else error
    refusal = (kind or pickle.PicklingError)(
        f"{reason}: {name} cannot be sent to {where}; functions must be importable there, "
        'from the top level of a module, unless set_start_method("fork") is used'
    )
    vars(refusal)[_MARK] = True
    return refusal


def at_its_caller(error: BaseException) -> BaseException:
    """`error`; one of `StartArguments` without frames and notes that lead through the pickling.

    Python 3.14 adds a note for each object that the pickler was in, and most of them are ours.
    """
    if vars(error).pop(_MARK, False):
        vars(error).pop("__notes__", None)
        return error.with_traceback(None)
    return error
