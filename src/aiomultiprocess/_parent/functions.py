"""The functions of a pool: each is pickled once, and later frames name it by its number.

A plain function or class travels by reference, so one pickle serves the whole life of the pool (and
one more if it is used for streams, which need no thread). Any other callable (a partial, a bound
method, an object with `__call__`) has state that its owner may change: it is pickled anew for each
call of `map`, `starmap` or `apply`, and dropped with that call. So is a class method of a builtin
type, such as `date.fromisoformat`: each access makes a new object, so the table would never find it
again. In the worker, each item gets its own copy of such state, as of its arguments, unless that
state cannot change.

A plain function that pickle refuses travels *by value* (serializers.py). It is pickled anew for
each call, because code may have changed its globals or its closure; workers get it again only if
its bytes differ.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

from .._arguments import check_callable, is_coroutine_function, label_of
from .._wire import sharing
from .._wire.frames import BLOCKING, STATEFUL
from .._wire.tracebacks import without_our_frames
from ..types import describe_error
from .serializers import PICKLE_ALONE, Choice

ATOMS = {type(None), bool, int, float, complex, str, bytes}


class Function:
    """A callable as a worker gets it: a number and, the first time, its pickle."""

    __slots__ = (
        "__weakref__",
        "blocking",
        "flags",
        "for_streams",
        "id",
        "label",
        "payload",
        "permanent",
        "shared",
        "uses",
    )

    def __init__(self, number: int, func: Callable[..., Any], payload: bytes) -> None:
        self.id = number
        self.label = label_of(func)
        self.payload = payload
        self.permanent = is_plain(func) and not is_fleeting(func)
        #: Memories of shared objects that it holds (sharing.py).
        self.shared: tuple[Any, ...] = sharing.take() if sharing.collected else ()
        self.uses = 0  # task sources that are not settled
        self.for_streams = False  # whether its tasks are streams, which need no thread
        self.flags = 0 if is_immutable(func) else STATEFUL
        self.blocking = not is_coroutine_function(func)
        if self.blocking:
            self.flags |= BLOCKING


class FunctionTable:
    """Finds the `Function` for what a user passed, and refuses what cannot be pickled."""

    def __init__(
        self,
        dumps: Callable[[object], bytes],
        choice: Choice = PICKLE_ALONE,
        retire: Callable[[Function], object] = lambda function: None,
        on_dead: Callable[[], object] = lambda: None,
    ) -> None:
        """`retire` is called for a function by value that no later call can name.

        `on_dead` is called, in any thread, when one was collected; it has `retire_dead` called.
        """
        self._dumps = dumps
        self._choice = choice
        self._retire = retire
        self._on_dead = on_dead
        self._by_value: dict[int, tuple[weakref.ref[Any], Function]] = {}
        # of functions that were collected, in any thread; with their keys in `_by_value`
        self._dead: list[tuple[int, Function]] = []
        self._ids = itertools.count(1)
        # by the address of a plain function, or its complement for streams, while the function
        # lives: a WeakKeyDictionary would take several times as long, at every `apply`
        self._known: dict[int, tuple[weakref.ref[Any], Function]] = {}

    def of(self, func: Callable[..., Any], *, generator: bool = False) -> Function:
        """The number and pickle of `func`, which may be a generator function for a stream alone.

        Raises TypeError for something that is not callable or is an async generator function, and
        pickle.PicklingError for a callable that a worker could not import.
        """
        known = self._known.get(~id(func) if generator else id(func))
        if known is not None and known[0]() is func:
            return known[1]
        check_callable(func, generator=generator)
        try:
            payload, by_value = self._pickle(func)
        except BaseException:
            sharing.take()  # shared objects that it holds: it goes to no worker
            raise
        if by_value and is_plain(func):
            return self._function_by_value(func, payload, generator)
        function = Function(next(self._ids), func, payload)
        function.for_streams = generator
        if function.permanent:
            self._remember(func, function)
        return function

    def _remember(self, func: Callable[..., Any], function: Function) -> None:
        key, known = ~id(func) if function.for_streams else id(func), self._known

        def drop(ref: weakref.ref[Any]) -> None:
            if known.get(key, (None,))[0] is ref:  # else another has its address by now
                del known[key]

        known[key] = weakref.ref(func, drop), function

    def retire_dead(self) -> None:
        """Retire the functions by value that were collected: their state may be large."""
        while self._dead:
            key, dead_function = self._dead.pop()
            self._retire(dead_function)
            if self._by_value.get(key, (None, None))[1] is dead_function:
                del self._by_value[key]

    def _function_by_value(
        self, func: Callable[..., Any], payload: bytes, generator: bool
    ) -> Function:
        self.retire_dead()
        key = ~id(func) if generator else id(func)
        ref, known = self._by_value.get(key, (None, None))
        if known is not None:
            if ref is not None and ref() is func and known.payload == payload:
                sharing.take()  # it holds the same
                return known
            self._retire(known)
        function = Function(next(self._ids), func, payload)
        function.for_streams = generator
        dead, on_dead = self._dead.append, self._on_dead

        def die(_: object) -> None:
            dead((key, function))
            on_dead()

        self._by_value[key] = weakref.ref(func, die), function
        return function

    def _pickle(self, func: Callable[..., Any]) -> tuple[bytes, bool]:
        """The pickle of a function, and whether it has the function by value."""
        choice = self._choice
        try:
            if choice.always:
                return self._dumps(choice.seal(func, Exception())), True
            payload = self._dumps(func)
            if choice.main_by_value and b"__main__" in payload:
                return self._sealed(func, payload)
        except Exception as error:  # noqa: BLE001 - a __reduce__ of the user's may raise anything
            return self._sealed(func, error)
        return payload, False

    def _sealed(self, func: Callable[..., Any], otherwise: bytes | Exception) -> tuple[bytes, bool]:
        """A function by value; `otherwise` is its pickle, or why it has none."""
        refused = otherwise if isinstance(otherwise, Exception) else Exception()
        try:
            sealed = None if self._choice.always else self._choice.seal(func, refused)
            if sealed is not None:
                return self._dumps(sealed), True
        except Exception as error:  # noqa: BLE001 - as above
            refused = error
        if isinstance(otherwise, bytes):
            return otherwise, False
        raise self._refusal(func, refused) from refused

    def _refusal(self, func: Callable[..., Any], error: Exception) -> Exception:
        without_our_frames(error)
        holds = "" if is_plain(func) else "what it holds must be picklable, and "
        return pickle.PicklingError(
            f"{label_of(func)} cannot be sent to a worker ({describe_error(error)}); {holds}"
            "it must be importable there: define it at the top level of a module, "
            f"not as a lambda or inside another function{self._choice.hint}"
        )


def is_plain(func: object) -> bool:
    """Whether `func` travels by reference and so has no state of its own.

    A method of a builtin object, such as `[].append`, is a builtin function too, but has state.
    """
    if isinstance(func, types.BuiltinFunctionType):
        return func.__self__ is None or isinstance(func.__self__, types.ModuleType | type)
    return isinstance(func, types.FunctionType | type)


def is_fleeting(func: object) -> bool:
    """Whether each access to `func` makes a new object: it is a builtin class method."""
    return isinstance(func, types.BuiltinFunctionType) and isinstance(func.__self__, type)


def is_immutable(value: object) -> bool:
    """Whether items may share one copy of `value`, because they cannot change it."""
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
        return type(value) is functools.partial and all(map(is_immutable, parts))
    if type(value) is tuple:
        return all(map(is_immutable, value))
    return is_plain(value) or type(value) in ATOMS or type(value) in sharing.constants
