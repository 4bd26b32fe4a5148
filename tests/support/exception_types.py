"""Exceptions of every awkward kind, importable by name."""
# ruff: noqa: N818 - their names say what is odd about them

from __future__ import annotations

import copyreg
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SeveralArguments(Exception):
    """Its constructor wants what is not in `args`."""

    def __init__(self, code: int, reason: str, *, retry: bool) -> None:
        super().__init__("told otherwise")
        self.code = code
        self.reason = reason
        self.retry = retry


class Counted(Exception):
    """Counts the calls of its constructor."""

    made = 0

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        Counted.made += 1


@dataclass(frozen=True)
class Frozen(Exception):
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    code: int
    reason: str


class Slotted(OSError):
    __slots__ = ("__private", "extra", "unset")

    def hide(self, value: object) -> None:
        self.__private = value

    def hidden(self) -> object:
        return self.__private


class OwnStr(Exception):
    def __str__(self) -> str:
        return "its own words"


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class VeryBadStr(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")

    __repr__ = __str__


class BadReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


class NoCause(Exception):
    """Can be inspected, but for one attribute."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__cause__":
            raise RuntimeError("not now")
        return super().__getattribute__(name)


class NoContext(Exception):
    @property
    def __suppress_context__(self) -> bool:  # type: ignore[override]
        raise RuntimeError("not now")


class NoClass(Exception):
    @property
    def __class__(self) -> Any:  # what isinstance() asks for
        raise RuntimeError("not now")


class NoAttributes(Exception):
    """Raises whenever it is inspected."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not now")


class VeryBadAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit("not now")


class VeryBadReduce(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class OwnReduce(Exception):
    """Has what does not pickle, and knows its way."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return type(self), (f"{self.args[0]} rebuilt",)


class ReducesToText(Exception):
    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class Registered(Exception):
    def __init__(self, lock: Any) -> None:
        self.lock = lock


def reduce_registered(error: Registered) -> Any:
    return Registered, ("registered",)


copyreg.pickle(Registered, reduce_registered)


class BadSetstate:
    """A part of an exception that can be pickled but not be unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise LookupError("not here")


class Group(ExceptionGroup[Exception]):
    """A group with a constructor and a field of its own."""

    code: int

    def __new__(cls, errors: Sequence[Exception], code: int) -> Group:
        self = super().__new__(cls, "a group", errors)
        self.code = code
        return self

    def __init__(self, errors: Sequence[Exception], code: int) -> None:
        super().__init__()

    def derive(self, excs: Sequence[Exception]) -> Group:
        return Group(excs, self.code)


class NoSubclasses(Exception):
    def __init_subclass__(cls, **kwargs: object) -> None:
        raise TypeError("no subclasses please")


class RefusingMeta(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if name != "Refusing":
            raise TypeError("no subclasses at all")
        return super().__new__(mcs, name, bases, body)


class Refusing(Exception, metaclass=RefusingMeta):
    pass


class Abstract(Exception, ABC):
    @abstractmethod
    def method(self) -> None: ...


class Concrete(Abstract):
    def method(self) -> None: ...


class WithType(Exception, Generic[T]):
    pass


class TwoBases(ValueError, OSError):
    pass


class ExitSubclass(SystemExit):
    pass


#: Errors that cannot be inspected, which pytest would do with parameters.
UNSEEN: list[type[BaseException]] = [
    NoCause,
    NoContext,
    NoClass,
    NoAttributes,
    VeryBadAttributes,
]


class ShownAsText:
    """A block whose failure pytest can show: one that cannot be inspected would end its run."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            raise AssertionError("".join(traceback.format_tb(trace))) from None
