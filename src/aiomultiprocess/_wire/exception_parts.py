"""One exception taken apart, and put together again in another process.

exceptions.py uses it for each exception that travels, and for those that it combines (EXC-2).
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .tracebacks import field

_HEAPTYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class is not statically allocated in C
#: The attribute in which an error that was rebuilt keeps what it was made from; it does not travel.
REMOTE: Final = "_aiomultiprocess_remote"


class ExceptionParts(NamedTuple):
    """What an exception consists of, besides its type (EXC-2)."""

    args: tuple[Any, ...] | None  # None: those that the builtin base class makes
    base_args: tuple[Any, ...]  # what the builtin base class is created from
    base_state: dict[str, Any]  # what the builtin base class keeps besides
    attributes: dict[str, Any]
    slots: dict[int, Any]


def take_apart(exc: BaseException) -> ExceptionParts:
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
    """An exception of type `cls` from the parts of one of the same type, or of a base (EXC-2)."""
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
    """The class written in C that decides the layout: what it keeps is not in `__dict__`."""
    while cls.__flags__ & _HEAPTYPE:
        cls = cls.__base__
    return cls


def _slots(cls: type[Any]) -> Iterator[types.MemberDescriptorType]:
    for klass in reversed(cls.__mro__):  # from the bottom: a combined class has the same indices
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
    return vars(BaseExceptionGroup)[name]


def pickles_itself(cls: type[Any]) -> bool:
    if cls in copyreg.dispatch_table:
        return True
    owners = (
        next(klass for klass in cls.__mro__ if name in vars(klass))
        for name in ("__reduce__", "__reduce_ex__")
    )
    return any(owner.__flags__ & _HEAPTYPE for owner in owners)
