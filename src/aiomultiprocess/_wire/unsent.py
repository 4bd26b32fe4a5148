"""Stand-ins for what an exception holds and pickle refuses.

exceptions.py imports this module when an exception cannot be pickled, or cannot be rebuilt.

UNSENT-1  What can travel does: only an object that cannot be pickled is replaced, wherever in the
    exception it is. If that cannot be rebuilt, the outermost objects that cannot be rebuilt are. An
    object with a finalizer, which would meet stand-ins, travels whole or is replaced.
UNSENT-2  A stand-in is of no use to a program, and says so when it is used: code that asks for a
    mapping and gets a text, or None, would go on with a wrong answer.
"""

from __future__ import annotations

import io
import pickle
import types
from typing import Any, Final

from ..types import shown
from .exception_parts import reducers

_BY_NAME: Final = (type, types.FunctionType, types.BuiltinFunctionType)  # pickled by their names
_NAMED: Final = 3  # stand-ins that a note names


class Unsent:
    """Stands in an exception for a value that has stayed in the worker (UNSENT-2)."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<not sent: {self._text}>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._text} has no {name} here: it cannot be pickled, so this stands in its place"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Unsent, (self._text,)


class _Pickler(pickle.Pickler):
    """Pickles stand-ins in place of what cannot be pickled (UNSENT-1).

    `rebuilt`: also in place of what cannot be rebuilt. Each object is a pickle of its own then.
    """

    def __init__(self, file: io.BytesIO, *, rebuilt: bool) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.dispatch_table = reducers()
        self.replaced: list[str] = []
        self._rebuilt = rebuilt

    def reducer_override(self, obj: Any) -> Any:
        try:
            if isinstance(obj, _BY_NAME):
                pickle.dumps(obj)
            elif self._rebuilt:
                return self._apart(obj)
            else:
                self._check(obj)
        except Exception:  # noqa: BLE001 - it runs the user's pickling
            text = shown(obj)
            self.replaced.append(text)
            return Unsent, (text,)
        return NotImplemented

    def _apart(self, obj: object) -> Any:
        pickled, replaced = _dumped(obj, rebuilt=False)
        pickle.loads(pickled)
        self.replaced += replaced
        return pickle.loads, (pickled,)

    def _check(self, obj: Any) -> None:
        """Raise if `obj` cannot be pickled, whatever is within it."""
        pickle.dumps(type(obj))
        reducer = self.dispatch_table.get(type(obj))
        reduced = reducer(obj) if reducer else obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if isinstance(reduced, str) or hasattr(type(obj), "__del__"):  # a str names a global
            pickle.dumps(obj)


def _dumped(obj: object, *, rebuilt: bool) -> tuple[bytes, list[str]]:
    file = io.BytesIO()
    pickler = _Pickler(file, rebuilt=rebuilt)
    pickler.dump(obj)
    return file.getvalue(), pickler.replaced


def dumps(recipe: object, *, rebuilt: bool) -> tuple[bytes, str]:
    """Pickle with stand-ins, and the note that says for what."""
    pickled, all_replaced = _dumped(recipe, rebuilt=rebuilt)
    replaced = list(dict.fromkeys(all_replaced))
    names = ", ".join(replaced[:_NAMED])
    more = f" and {len(replaced) - _NAMED} more" if len(replaced) > _NAMED else ""
    return pickled, f"Not all of it arrived: it held what cannot be pickled, {names}{more}."
