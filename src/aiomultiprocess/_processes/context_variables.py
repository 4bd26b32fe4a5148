"""Context variables that travel to other processes: by the name of a module and of a global there.

Both engines use this module in pools that have `contextvars`.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable


class NamedVariable:
    """A context variable, with the place at which another process finds it."""

    def __init__(self, variable: ContextVar[Any], module: str, name: str) -> None:
        self.variable = variable
        self._place = module, name

    def __reduce__(self) -> tuple[Any, ...]:
        return find, self._place


def find(module: str, name: str) -> NamedVariable:
    """The variable that is the global `name` of a module, which is imported if need be."""
    variable = getattr(import_module(module), name)
    if not isinstance(variable, ContextVar):
        raise TypeError(f"{module}.{name} is {variable!r} here, and not a ContextVar")
    return NamedVariable(variable, module, name)


def named(variables: object) -> tuple[NamedVariable, ...]:
    """The argument `contextvars` of a pool, checked. TypeError, or ValueError, if it cannot be."""
    values = _listed(variables)
    found: dict[ContextVar[Any], NamedVariable] = {}  # one that is named twice travels once
    for value in values:
        if not isinstance(value, ContextVar):
            raise TypeError(f"contextvars must be ContextVar objects, and {value!r} is none")
        found[value] = NamedVariable(value, *_place_of(value))
    return tuple(found.values())


def _listed(variables: object) -> list[Any]:
    if isinstance(variables, ContextVar):
        raise TypeError(f"contextvars must be a sequence: pass ({variables!r},)")
    try:
        return list(cast("Iterable[Any]", variables))
    except TypeError:
        raise TypeError(
            f"contextvars must be a sequence of ContextVar objects, not {variables!r}"
        ) from None


def _place_of(variable: ContextVar[Any]) -> tuple[str, str]:
    """The module that has a variable as a global, and its name there; `__main__` comes last."""
    modules = sorted(sys.modules.copy().items(), key=lambda item: item[0] in MAIN)
    for module_name, module in modules:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return module_name, name
    raise ValueError(
        f"contextvars: no module has {variable!r} as a global, by which a worker could find it: "
        "assign it to a name at the top level of a module"
    )


#: Names of the main module; another module in which a variable stands is found anywhere.
MAIN = frozenset({"__main__", "__mp_main__"})
