"""What a user passes to a new process: target and arguments, initializer, and the like.

These objects travel in the start-up message, which multiprocessing pickles and unpickles as a
whole. `StartArguments` pickles them one after another within that message, and the new process
unpickles them only when it calls `load`. So an error names the object that cannot be pickled or
unpickled, and the new process can send that error to its parent.

One pickler takes all objects, so an object that two of them share stays one object. Every child
imports this module, so it stays light.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from ..types import describe_error, import_hint

#: The errors that pickle raises. A subclass may need other arguments, and is not raised again.
KINDS: Final = (pickle.PicklingError, AttributeError, TypeError)
_MARK: Final = "_of_a_start_argument"


class StartArguments:
    """Objects of the user, by the names of the arguments.

    Args:
        where: the process in error messages, such as "a worker".
        values: the objects by name.
        seal: makes of a value that pickle refused, and of its error, one that pickle takes, or
            None.
        pickled_by: called with what pickles all, and returns the bytes; None: that alone.
        there: objects that the new process has, each with how it gets its own, as `__reduce__`
            would return it.
    """

    def __init__(
        self,
        where: str,
        values: Mapping[str, Any],
        seal: Callable[[Any, BaseException], Any] | None = None,
        pickled_by: Callable[[Callable[[], bytes]], bytes] | None = None,
        there: Sequence[tuple[Any, tuple[Any, ...]]] = (),
    ) -> None:
        self._seal = seal
        self._pickled_by = pickled_by
        self._where = where
        self._values = values
        self._there = there

    def __reduce__(self) -> tuple[Any, ...]:
        pickled = self._pickled() if self._pickled_by is None else self._pickled_by(self._pickled)
        return StartArgumentsReceived, (self._where, list(self._values), pickled)

    def _pickled(self) -> bytes:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._there) if self._there else ForkingPickler(buffer)
        for name, value in self._values.items():
            try:
                pickler.dump(value)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - a __reduce__ of the user may raise anything
                self._seal_one(name, value, error)
                return self._pickled()  # from the first again: this pickler is of no use now
        return buffer.getvalue()

    def _seal_one(self, name: str, value: Any, error: Exception) -> None:
        """Replace a value that pickle refused; raise what names it if nothing else takes it."""
        sealed = None if self._seal is None else self._seal(value, error)
        if sealed is None:
            raise _named(error, name, self._where) from error
        self._values = {**self._values, name: sealed}


class _Pickler(ForkingPickler):
    """A pickler that does not send what the new process has."""

    def __init__(self, buffer: io.BytesIO, there: Sequence[tuple[Any, tuple[Any, ...]]]) -> None:
        super().__init__(buffer)
        self._there = there

    def reducer_override(self, obj: Any) -> Any:
        for own, reduced in self._there:
            if obj is own:
                return reduced
        return NotImplemented


class StartArgumentsReceived:
    """`StartArguments` in the new process, not yet unpickled."""

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
            from .._wire.tracebacks import without_our_frames  # here: only errors need it

            without_our_frames(error)
            raise pickle.UnpicklingError(
                f"{name} cannot be unpickled in {self._where} ({describe_error(error)})"
                f"{import_hint(error)}"
            ) from error


def _named(error: Exception, name: str, where: str) -> Exception:
    """An error of the same kind that names the argument and the way out."""
    kind = next((kind for kind in KINDS if issubclass(type(error), kind)), None)
    reason = describe_error(error) if kind is None else error
    refusal = (kind or pickle.PicklingError)(
        f"{reason}: {name} cannot be sent to {where}; functions must be importable there, "
        'from the top level of a module, unless set_start_method("fork") is used'
    )
    vars(refusal)[_MARK] = True
    return refusal


def at_its_caller(error: BaseException) -> BaseException:
    """`error`, without the frames and notes of the pickling if `StartArguments` raised it.

    Python 3.14 adds a note for each object that contains the one that failed; most are ours.
    """
    if vars(error).pop(_MARK, False):
        vars(error).pop("__notes__", None)
        return error.with_traceback(None)
    return error
