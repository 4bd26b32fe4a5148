"""What pickle refuses, pickled by another serializer and sealed into what it takes.

    value -> Sealed -> pickle: (loads, bytes of the other serializer) -> pickle -> value

A `Sealed` value travels wherever a pickle does, and unpickles as the value itself: the codec and
the formats of frames know nothing of serializers. The parent seals functions, arguments
and start arguments (_parent/serializers.py); a worker seals results and exceptions, here.

SERIAL-1  In a worker nothing of this is imported before pickle has refused a value, unless the pool
    was made with `serializer=`.
SERIAL-2  cloudpickle is found where it is needed first: if it is not installed, what was refused
    fails as it does by pickle alone.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from ..types import describe_error, import_hint
from .sharing import permitted

ENVIRONMENT: Final = "AIOMULTIPROCESS_SERIALIZER"

#: The end of a message about what pickle has refused, where cloudpickle would take it.
INSTALL: Final = '. To send it by value, install "aiomultiprocess[cloudpickle]"'


class Serializer:
    """`dumps` of another serializer, and the function that undoes it in another process."""

    def __init__(self, dumps: Callable[..., bytes], loads: Callable[[bytes], Any]) -> None:
        self.dumps = dumps
        self.loads = loads

    def seal(self, value: object) -> Sealed:
        """The value as something that pickle takes, if this serializer takes it."""
        return Sealed(value, self)


class Sealed:
    """A value that this serializer pickles; it unpickles as the value."""

    __slots__ = ("_serializer", "value")

    def __init__(self, value: object, serializer: Serializer) -> None:
        self.value = value
        self._serializer = serializer

    def __reduce__(self) -> tuple[Any, ...]:
        with permitted():  # sharing.py, SHARING-1: only pools seal values
            return self._serializer.loads, (self._serializer.dumps(self.value),)


def opened(value: Any) -> Any:
    """The value that is sealed, or `value` if it is not."""
    return value.value if type(value) is Sealed else value


def cloudpickle() -> Serializer | None:
    """The serializer that pickles functions and classes by value; None where it is missing.

    None also if no descriptor is left to import it: the next value finds it, if there is one then.
    """
    try:
        return imported_cloudpickle()
    except (ImportError, OSError):
        return None


def imported_cloudpickle() -> Serializer:
    """The same; raises what the import raises."""
    from cloudpickle import dumps

    return Serializer(dumps, pickle.loads)


def is_installed() -> bool:
    """Whether cloudpickle is there; importing it takes some time."""
    from importlib.util import find_spec

    try:
        return find_spec("cloudpickle") is not None
    except OSError:  # no descriptor is left to look for it
        return True


def not_importable(error: Exception) -> pickle.UnpicklingError:
    """The error of a shared object that names what cannot be imported here."""
    by_value = "" if is_installed() else INSTALL
    return pickle.UnpicklingError(
        f"a shared object could not be unpickled ({describe_error(error)}){import_hint(error)}"
        f"{by_value}"
    )


#: In a worker: what its pool was made with; None for the default.
chosen: str | Serializer | None = None
#: The same in the context of a worker that shares its process with others (_worker/inline.py).
chosen_inline: ContextVar[str | Serializer | None] = ContextVar("aiomultiprocess-serializer")


def fallback() -> Serializer | None:
    """In a worker: what takes values that pickle has refused (SERIAL-2)."""
    choice = chosen_inline.get(chosen) or os.environ.get(ENVIRONMENT)
    if isinstance(choice, Serializer):
        return choice
    return None if choice == "pickle" else cloudpickle()
