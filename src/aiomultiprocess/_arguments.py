"""Check what a user passes; each error names the argument and its value.

`pool.py`, `core.py` and `_parent` use this module.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeGuard, TypeVar


class TaskOptions(NamedTuple):
    """What a caller decides about the tasks of one `map` or `apply`."""

    retries: int = 0  # how often a task may run again after its worker died
    timeout: float | None = None  # seconds that a task may run; None: no limit
    priority: int = 0  # of the tasks that wait in one queue, the higher go first
    context: bytes | None = None  # the caller's values of context variables, pickled


F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OPTIONS: Final = TaskOptions()


def task_options(retries: int, task_timeout: float | None, priority: int) -> TaskOptions:
    """The options of a call, each checked."""
    if type(retries) is type(priority) is int:
        if not retries and not priority and task_timeout is None:
            return DEFAULT_OPTIONS
        if type(task_timeout) not in _NUMBERS:
            return _checked_options(retries, task_timeout, priority)
        return _known_options(retries, task_timeout, priority)
    return _checked_options(retries, task_timeout, priority)


def _checked_options(retries: int, task_timeout: float | None, priority: int) -> TaskOptions:
    return TaskOptions(
        natural("retries", retries),
        limit("task_timeout", task_timeout),
        whole("priority", priority),
    )


#: The same for values that were checked before: a program repeats few of them, at each `apply`.
_known_options = functools.lru_cache(maxsize=64)(_checked_options)
_NUMBERS: Final = frozenset({int, float, type(None)})  # their equal values mean the same


def limit(name: str, value: float | None) -> float | None:
    """A positive, finite number of seconds, or None for no limit."""
    number = seconds(name, value)
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds or None, got {value!r}")
    return number


def duration(name: str, value: float) -> float:
    """A positive, finite number of seconds."""
    number = seconds(name, value) if _is_number(value) else None
    if number is None:
        raise TypeError(f"{name} must be a positive number of seconds, got {value!r}")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    return number


def count(name: str, value: int | None) -> int:
    """A whole number that is not negative; None counts as 0."""
    return 0 if value is None else natural(name, value)


def queue_count(value: int | None, processes: int) -> int:
    """The number of queues of a pool: None and 0 mean one; no queue may be without a worker."""
    number = count("queuecount", value) or 1
    if number > processes:
        raise ValueError(
            f"queue count must be <= process count, got queuecount={number} "
            f"and processes={processes}"
        )
    return number


def natural(name: str, value: int) -> int:
    """A whole number that is not negative."""
    number = whole(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return number


def positive(name: str, value: int) -> int:
    """A whole number that is at least 1."""
    number = whole(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return number


def seconds(name: str, value: float | None) -> float | None:
    """A number of seconds, or None for no limit."""
    if value is None:
        return None
    if not _is_number(value):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a number of seconds: {value!r}") from None
    except (TypeError, ValueError):  # an array of several numbers
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}") from None


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and hasattr(type(value), "__float__")


def any_seconds(name: str, value: float | None) -> float | None:
    """As `seconds`, also negative or infinite, and no NaN."""
    number = seconds(name, value)
    if number is not None and math.isnan(number):
        raise ValueError(f"{name} must be a number of seconds or None, got {value!r}")
    return number


def patience(name: str, value: float | None) -> float | None:
    """How many seconds to wait, not negative; None for no limit."""
    number = seconds(name, value)
    if number is not None and not number >= 0:
        raise ValueError(f"{name} must be a number of seconds from 0 on, or None, got {value!r}")
    return number


def memory_limit(name: str, value: int | None) -> int | None:
    """A positive number of bytes, or None for no limit; RuntimeError if it cannot be held."""
    if value is None:
        return None
    number = whole(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be a positive number of bytes or None, got {value!r}")
    _check_statm(f"{name}={value!r}")
    return number


def shared_memory(name: str, value: int | None) -> int | None:
    """A number of bytes, 0 for none, or None for the default."""
    number = None if value is None else whole(name, value)
    if number is not None and number < 0:
        raise ValueError(
            f"{name} must be a number of bytes, 0 for no shared memory, or None, got {value!r}"
        )
    return number


def _check_statm(what: str) -> None:
    try:
        with open("/proc/self/statm", "rb") as statm:
            statm.read()
    except OSError as error:
        raise RuntimeError(
            f"{what} is not possible here: it needs /proc/self/statm, as Linux has it ({error})"
        ) from None


def refuse_inline(**arguments: object) -> None:
    """Refuse what the backend "inline" cannot do; each that is not None was passed to the pool."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f'{name}={value!r} is not possible with the backend "inline": {_NOT_INLINE[name]}'
            )


_NOT_INLINE: Final = {
    "loop_initializer": "tasks run on the event loop of this process, which runs already",
    "maxmemoryperchild": "tasks run in this process, whose memory is not that of a worker",
}


def whole(name: str, value: int) -> int:
    """The value as an int; its type may be any with `__index__`, such as NumPy's, but no bool."""
    try:
        if isinstance(value, bool):  # which is an int, and no number that anyone means
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def check_flag(name: str, value: object) -> None:
    """Raise TypeError for a value that is neither True nor False."""
    if type(value) is not bool:
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_monitor(monitor: bool) -> bool:
    """The value, a bool; RuntimeError on a system without unix sockets."""
    check_flag("monitor", monitor)
    if monitor and sys.platform == "win32":
        raise RuntimeError(
            "monitor=True is not possible on Windows: it needs a unix socket that only its owner "
            "can open. Use pool.stats() in the program"
        )
    return monitor


def check_progress(progress: object) -> None:
    """Refuse a value of `progress=` that is neither a bool nor a synchronous callable."""
    if type(progress) is bool:
        return
    if is_coroutine_function(progress):
        raise ValueError(f"progress must be True or a synchronous function, not {progress!r}")
    if not callable(progress):
        raise TypeError(
            "progress must be True for a bar, False, or a function that takes a Progress, "
            f"got {progress!r}"
        )


def check_callable(func: object, *, generator: bool = False, name: str = "func") -> None:
    """Raise TypeError, where the user passes it, for a value that no worker can run.

    `generator`: whether it is for a stream, which alone can run a generator function.
    """
    if not callable(func):
        raise TypeError(f"{name} must be callable, got {type(func).__name__}: {func!r}")
    if generator and is_coroutine_function(func):
        raise TypeError(
            f"{label_of(func)} is a coroutine function and has a single result: use `apply`, or "
            "pass a generator function or an async generator function"
        )
    if not generator and is_async_generator_function(func):
        raise TypeError(
            f"{label_of(func)} is an async generator function and has no single result: use "
            "`stream`, or pass a coroutine function or a plain function"
        )


def is_coroutine_function(target: object) -> bool:
    """Whether calling `target` makes a coroutine, as far as can be seen before the call."""
    target = _without_partial(target)
    if inspect.iscoroutinefunction(target):
        return True
    marker = getattr(asyncio.coroutines, "_is_coroutine", None)  # Cython sets it, up to 3.13
    if marker is not None and getattr(target, "_is_coroutine", None) is marker:
        return True
    return callable(target) and inspect.iscoroutinefunction(type(target).__call__)


def is_async_generator_function(target: object) -> bool:
    """Whether calling `target` makes an async generator, as far as can be seen before the call."""
    target = _without_partial(target)
    return inspect.isasyncgenfunction(target) or (
        callable(target) and inspect.isasyncgenfunction(type(target).__call__)
    )


def _without_partial(target: object) -> object:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def mark_coroutine_function(function: F) -> F:
    """Let `iscoroutinefunction` be true for a function whose result passes for a coroutine."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        vars(function)["_is_coroutine"] = vars(asyncio.coroutines)["_is_coroutine"]
    return function


def check_synchronous(name: str, function: object) -> None:
    """Refuse a value that cannot be called, or whose call makes a coroutine: nothing awaits it."""
    if function is None:
        return
    if is_coroutine_function(function):
        raise ValueError(f"{name} must be synchronous function, not {function!r}")
    if not callable(function):
        raise TypeError(f"{name} must be a function or None, not {function!r}")


def check_hooks(
    initializer: object, loop_initializer: object, handler: object, lifespan: object
) -> None:
    """Refuse what a worker cannot call, of the functions that it calls around tasks."""
    check_synchronous("initializer", initializer)
    check_synchronous("loop_initializer", loop_initializer)
    check_synchronous("exception_handler", handler)
    check_lifespan(lifespan)


def check_lifespan(lifespan: object) -> None:
    """Refuse a value that cannot be called without arguments, or returns no context manager."""
    if lifespan is None:
        return
    is_manager = hasattr(type(lifespan), "__aenter__")  # contextlib's are callable, as decorators
    if is_manager or not callable(lifespan):
        raise TypeError(
            "lifespan must be a callable that returns an async context manager, or None, not "
            f"{lifespan!r}: pass the function itself, not what it returns"
        )
    generator = inspect.isasyncgenfunction(lifespan) or inspect.isgeneratorfunction(lifespan)
    if generator or is_coroutine_function(lifespan):
        raise TypeError(
            f"lifespan must return an async context manager, and {label_of(lifespan)} does not: "
            "make it an async generator function that yields once, decorated with "
            "contextlib.asynccontextmanager"
        )
    try:
        inspect.signature(lifespan).bind()
    except ValueError:  # it has no signature to be seen
        return
    except TypeError as error:
        raise TypeError(
            f"lifespan is called without arguments, and {label_of(lifespan)} needs some "
            f"({error}): bind them by functools.partial"
        ) from None


def label_of(func: object) -> str:
    """The name of a callable in messages."""
    if isinstance(func, functools.partial):  # its repr includes the repr of every argument
        return f"functools.partial({label_of(func.func)})"
    module = getattr(func, "__module__", None)
    name = getattr(func, "__qualname__", None)
    if module and name:
        return f"{module}.{name}"
    return f"an object of {type(func).__module__}.{type(func).__qualname__}"


def checked_sequence(name: str, values: object) -> tuple[Any, ...]:
    """The positional arguments of a function, as a tuple; None means no arguments."""
    if values is None:
        return ()
    if not is_iterable(values):
        shown = reprlib.repr(values)
        raise TypeError(
            f"{name} must be a sequence of arguments, not {shown}: pass ({shown},) for one argument"
        )
    return tuple(values)


def checked_keywords(name: str, values: object) -> dict[str, Any]:
    """The keyword arguments of a function, as a dict; None means none."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of keyword arguments, got {values!r}")
    return dict(values)


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether `iter(value)` gives an iterator; a class that has `__getitem__` alone counts too."""
    return isinstance(value, Iterable) or hasattr(type(value), "__getitem__")


def refuse_star(label: str, index: int, item: object) -> TypeError:
    """The error of a starmap item that is not a sequence of arguments."""
    shown = reprlib.repr(item)
    return TypeError(
        f"item {index} of the starmap of {label} is {shown}, not a sequence of arguments: "
        f"pass ({shown},) for one argument, or use map"
    )
