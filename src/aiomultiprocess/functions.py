"""The functions of a pool: pickled once, named by number afterwards.

A plain function or class travels by reference, so one pickle serves the whole life of the pool. Any
other callable (a partial, a bound method, an object with `__call__`) has state that its owner may
change: it is pickled anew for each call of `map`, `starmap` or `apply`, and forgotten with it; so
is a class method of a builtin type, such as `date.fromisoformat`, which would never be met again.
In the worker each item gets a copy of such state for itself, as it does of its arguments, unless
that state cannot change.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import pickle
import reprlib
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from .remote import without_our_frames
from .types import brief

ATOMS = {type(None), bool, int, float, complex, str, bytes}


class Function:
    """A callable as a worker gets it: a number and, the first time, its pickle."""

    __slots__ = ("__weakref__", "id", "label", "payload", "permanent", "stateful")

    def __init__(self, number: int, func: Callable[..., Any], payload: bytes) -> None:
        self.id = number
        self.label = label_of(func)
        self.payload = payload
        self.permanent = is_plain(func) and not is_fleeting(func)
        self.stateful = not is_immutable(func)


class FunctionTable:
    """Finds the `Function` for what a user passed, and refuses what cannot travel."""

    def __init__(self, dumps: Callable[[object], bytes]) -> None:
        self._dumps = dumps
        self._ids = itertools.count(1)
        # by the address of a plain function, as long as that lives: a WeakKeyDictionary takes
        # several times as long, at every `apply`
        self._known: dict[int, tuple[weakref.ref[Any], Function]] = {}

    def of(self, func: Callable[..., Any]) -> Function:
        """The number and pickle of `func`.

        Raises TypeError for something that is not callable or is an async generator function, and
        pickle.PicklingError for a callable that a worker could not import.
        """
        known = self._known.get(id(func))
        if known is not None and known[0]() is func:
            return known[1]
        check_callable(func)
        function = Function(next(self._ids), func, self._pickle(func))
        if function.permanent:
            self._remember(func, function)
        return function

    def _remember(self, func: Callable[..., Any], function: Function) -> None:
        key, known = id(func), self._known

        def forget(ref: weakref.ref[Any]) -> None:
            if known.get(key, (None,))[0] is ref:  # else another has its address by now
                del known[key]

        known[key] = weakref.ref(func, forget), function

    def _pickle(self, func: Callable[..., Any]) -> bytes:
        try:
            return self._dumps(func)
        except Exception as error:
            without_our_frames(error)
            holds = "" if is_plain(func) else "what it holds must be picklable, and "
            raise pickle.PicklingError(
                f"{label_of(func)} cannot be sent to a worker ({brief(error)}); {holds}"
                "it must be importable there: define it at the top level of a module, "
                "not as a lambda or inside another function"
            ) from error


def is_plain(func: object) -> bool:
    """Whether `func` travels by reference and so has no state of its own.

    A method of a builtin object, such as `[].append`, is a builtin function too, but has.
    """
    if isinstance(func, types.BuiltinFunctionType):
        return func.__self__ is None or isinstance(func.__self__, types.ModuleType | type)
    return isinstance(func, types.FunctionType | type)


def is_fleeting(func: object) -> bool:
    """Whether `func` is another object each time that it is asked for: a builtin class method."""
    return isinstance(func, types.BuiltinFunctionType) and isinstance(func.__self__, type)


def is_immutable(value: object) -> bool:
    """Whether items may share one copy of `value`: nothing they do to it can show."""
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
        return type(value) is functools.partial and all(map(is_immutable, parts))
    if type(value) is tuple:
        return all(map(is_immutable, value))
    return is_plain(value) or type(value) in ATOMS


def check_callable(func: object) -> None:
    """Refuse what no worker could run, where the user passed it."""
    if not callable(func):
        raise TypeError(f"func must be callable, got {type(func).__name__}: {func!r}")
    if inspect.isasyncgenfunction(func):
        raise TypeError(
            f"{label_of(func)} is an async generator function and has no single result; "
            "pass a coroutine function or a plain function"
        )


def is_coroutine_function(target: object) -> bool:
    """Whether calling `target` makes a coroutine, as far as can be told before."""
    if inspect.iscoroutinefunction(target):
        return True
    marker = getattr(asyncio.coroutines, "_is_coroutine", None)  # Cython sets it, up to 3.13
    if marker is not None and getattr(target, "_is_coroutine", None) is marker:
        return True
    return callable(target) and inspect.iscoroutinefunction(type(target).__call__)


def check_synchronous(name: str, function: object) -> None:
    """Refuse what cannot be called, or makes a coroutine that nobody would await."""
    if function is None:
        return
    if is_coroutine_function(function):
        raise ValueError(f"{name} must be synchronous function, not {function!r}")
    if not callable(function):
        raise TypeError(f"{name} must be a function or None, not {function!r}")


def label_of(func: object) -> str:
    """How messages name a callable."""
    if isinstance(func, functools.partial):  # its repr would show, and make, all that it holds
        return f"functools.partial({label_of(func.func)})"
    module = getattr(func, "__module__", None)
    name = getattr(func, "__qualname__", None)
    if module and name:
        return f"{module}.{name}"
    return f"an object of {type(func).__module__}.{type(func).__qualname__}"


def checked_sequence(name: str, values: object) -> tuple[Any, ...]:
    """What a function is to be called with, as a tuple; None is none."""
    if values is None:
        return ()
    if not is_iterable(values):
        shown = reprlib.repr(values)
        raise TypeError(
            f"{name} must be a sequence of arguments, not {shown}: pass ({shown},) for one argument"
        )
    return tuple(values)


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether `iter(value)` gives an iterator, also of a class that has `__getitem__` alone."""
    return isinstance(value, Iterable) or hasattr(type(value), "__getitem__")


def refuse_star(label: str, index: int, item: object) -> TypeError:
    """The error of an item of a starmap that is no sequence of arguments."""
    shown = reprlib.repr(item)
    return TypeError(
        f"item {index} of the starmap of {label} is {shown}, not a sequence of arguments: "
        f"pass ({shown},) for one argument, or use map"
    )
