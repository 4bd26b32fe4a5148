"""Take one exception apart, and put it together again in another process (EXC-2).

exceptions.py uses this module for each exception that travels, and to combine a proxy's two types.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .tracebacks import field

_HEAPTYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class is not statically allocated in C
#: The attribute in which a proxy keeps its text and its original; it is no part of the exception.
REMOTE: Final = "_aiomultiprocess_remote"


class ExceptionParts(NamedTuple):
    """What an exception consists of, besides its type (EXC-2)."""

    args: tuple[Any, ...] | None  # None: those that the builtin base class sets
    base_args: tuple[Any, ...]  # arguments for the builtin base class
    base_state: dict[str, Any]  # other fields of the builtin base class
    attributes: dict[str, Any]
    slots: dict[int, Any]  # by their order, see `_slots`


def take_apart(exc: BaseException) -> ExceptionParts:
    """The parts of an exception. Raises what the user's attributes raise."""
    if isinstance(exc, BaseExceptionGroup):
        fields = map(group_field, ("message", "exceptions"))
        base_args: tuple[Any, ...] = tuple(one.__get__(exc) for one in fields)
        state: dict[str, Any] = {}
    else:
        _, base_args, *rest = _static_base(type(exc)).__reduce__(exc)
        state = rest[0] if rest and isinstance(rest[0], dict) else {}
    attributes = {k: v for k, v in vars(exc).items() if k != REMOTE}
    return ExceptionParts(
        args=field("args").__get__(exc),
        base_args=base_args,
        base_state={k: v for k, v in state.items() if k not in vars(exc)},
        attributes=attributes,
        slots=dict(_filled_slots(exc)),
    )


def put_together(cls: type[Any], parts: ExceptionParts) -> Any:
    """Make an exception of type `cls` from the parts of one of its type, or of a base of it."""
    base = _static_base(cls)
    exc = base.__new__(cls, *parts.base_args)
    if not issubclass(cls, BaseExceptionGroup):
        base.__init__(exc, *parts.base_args)
    if parts.args is not None:
        field("args").__set__(exc, parts.args)
    for name, value in parts.base_state.items():
        getattr(base, name).__set__(exc, value)
    vars(exc).update(parts.attributes)
    slots = list(_slots(cls))
    for index, value in parts.slots.items():
        slots[index].__set__(exc, value)
    return exc


def _static_base(cls: Any) -> Any:
    """The base class written in C, which keeps its fields outside of `__dict__`."""
    while cls.__flags__ & _HEAPTYPE:
        cls = cls.__base__
    return cls


def _slots(cls: type[Any]) -> Iterator[types.MemberDescriptorType]:
    for klass in reversed(cls.__mro__):  # from the root: a combined class has the same order
        if "__slots__" in vars(klass):
            for value in vars(klass).values():
                if isinstance(value, types.MemberDescriptorType):
                    yield value


def _filled_slots(exc: BaseException) -> Iterator[tuple[int, Any]]:
    for index, slot in enumerate(_slots(type(exc))):
        try:
            yield index, slot.__get__(exc)
        except AttributeError:
            continue


def group_field(name: str) -> Any:
    """The descriptor of a field of BaseExceptionGroup."""
    return vars(BaseExceptionGroup)[name]


def pickles_itself(cls: type[Any]) -> bool:
    """Whether a class defines how its instances are pickled, in copyreg or by `__reduce__`."""
    if cls in reducers():
        return True
    owners = (
        next(klass for klass in cls.__mro__ if name in vars(klass))
        for name in ("__reduce__", "__reduce_ex__")
    )
    return any(owner.__flags__ & _HEAPTYPE for owner in owners)


def reducers() -> dict[type, Any]:
    """What copyreg has, but for a reducer of all exceptions, which is no class's own (EXC-6)."""
    table = copyreg.dispatch_table
    general = table.get(BaseException)
    if general is None:
        return table
    known = list(table.items())  # at once: other threads may import what registers more
    return {cls: reducer for cls, reducer in known if reducer is not general}
