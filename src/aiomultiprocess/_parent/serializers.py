"""How a pool pickles what users give it: by pickle, and where that does not do, by value.

`choose` makes a `Choice` of the argument `serializer=`. The function table (functions.py), the
queues (queue.py) and the start of workers (worker.py) ask it; a worker seals its results and
exceptions by itself (_wire/serializing.py).

SERIALIZERS-1  Without a serializer, plain values and what pickle takes go as they always do. Only
    what pickle has refused is sealed; and, where workers cannot import the main module, what names
    that module.
SERIALIZERS-2  A serializer that the user chose takes all functions, and all arguments that are not
    made of plain values. Of results and exceptions it takes those that pickle refuses.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import process
from typing import Any, Final, NamedTuple, Protocol

from .. import _accel
from .._wire import sharing
from .._wire.serializing import (
    ENVIRONMENT,
    INSTALL,
    Sealed,
    Serializer,
    cloudpickle,
    imported_cloudpickle,
    is_installed,
)
from ..types import describe_error, shown

MAIN = b"__main__"
ATOMS = {type(None), bool, int, float, complex, str, bytes}
CONTAINERS = {tuple, list, set, frozenset}
DEEPEST = 5  # containers in each other that are looked into for plain values


class Serializing(Protocol):
    """What `Pool(serializer=...)` takes: an object, or a module, with these two functions."""

    def dumps(self, obj: Any, /) -> bytes:
        """The bytes for an object."""

    def loads(self, data: bytes, /) -> Any:
        """The object for bytes of `dumps`."""


class Choice(NamedTuple):
    """The serializer of a pool."""

    serializer: Serializer | None  # None: cloudpickle, if it is installed when it is needed
    always: bool = False  # SERIALIZERS-2
    never: bool = False  # pickle alone
    main_by_value: bool = False  # workers cannot import the main module

    def fallback(self) -> Serializer | None:
        """What takes a value that pickle has refused (SERIALIZERS-1)."""
        if self.serializer is not None or self.never:
            return self.serializer
        return cloudpickle()

    def seal(self, value: Any, error: BaseException) -> Sealed | None:
        """A value that pickle refused with `error`, sealed; None if nothing else can take it."""
        if type(value) is Sealed or issubclass(type(error), MemoryError):
            return None
        serializer = self.fallback()
        return None if serializer is None else serializer.seal(value)

    def prepared(self, item: Any) -> Any:
        """An item as it is sent, if not all that pickle takes goes by pickle."""
        if type(item) is Sealed or is_plain_data(item):
            return item
        if not self.always and not names_main(item):
            return item
        serializer = self.fallback()
        return item if serializer is None else serializer.seal(item)

    def for_start(self, value: Any) -> Any:
        """A start argument as it is pickled; that is tried first, as locks can only go this way."""
        serializer = self.fallback() if self.main_by_value and names_main(value) else None
        return value if serializer is None else serializer.seal(value)

    @property
    def prepares(self) -> bool:
        """Whether each item has to be looked at."""
        return self.always or self.main_by_value

    @property
    def for_worker(self) -> Any:
        """What a worker has to know; None for the default (SERIAL-1)."""
        return "pickle" if self.never else self.serializer

    @property
    def hint(self) -> str:
        """The end of a message about what no serializer took."""
        return "" if self.never or self.serializer is not None or is_installed() else INSTALL


PICKLE_ALONE: Final = Choice(None, never=True)


def choose(serializer: object, *, elsewhere: bool = False) -> Choice:
    """The choice that the argument `serializer` of `Pool` stands for.

    `elsewhere`: the workers are no children of this process, and cannot import its main module.
    """
    if serializer is None:
        if os.environ.get(ENVIRONMENT) == "pickle":
            return PICKLE_ALONE
        by_value = elsewhere or not main_is_importable()
        return Choice(None, main_by_value=by_value and is_installed())
    if serializer == "pickle":
        return PICKLE_ALONE
    chosen = _installed() if serializer == "cloudpickle" else _checked(serializer)
    return Choice(chosen, always=True)


def _installed() -> Serializer:
    try:
        return imported_cloudpickle()
    except ImportError:
        raise ValueError(
            'serializer="cloudpickle" needs a package that is not installed: '
            'install "aiomultiprocess[cloudpickle]"'
        ) from None


def _checked(serializer: Any) -> Serializer:
    dumps, loads = getattr(serializer, "dumps", None), getattr(serializer, "loads", None)
    if isinstance(serializer, str) or not callable(dumps) or not callable(loads):
        raise TypeError(
            'serializer must be "pickle", "cloudpickle", an object with the methods dumps and '
            f"loads, or None, got {serializer!r}"
        )
    try:
        _accel.dumps((dumps, loads))
    except Exception as error:
        raise TypeError(
            f"serializer must itself be importable in workers, got {serializer!r} ({error})"
        ) from error
    return Serializer(dumps, loads)


def main_is_importable() -> bool:
    """Whether a worker can import what the main module of this program defines."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return str(name).rpartition(".")[2] != "__main__"  # as multiprocessing.spawn does
    path = getattr(main, "__file__", None)
    started_in = getattr(process, "ORIGINAL_DIR", None) or ""
    return path is not None and os.path.isfile(os.path.join(started_in, path))


def dumps_apart(value: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A pickle that `pickle.loads` undoes in any process, by the default choice; and its buffers.

    pickle.PicklingError for what neither pickle nor cloudpickle takes.
    """
    choice = choose(None)
    try:
        plain = _apart(pickle.dumps, value)
    except Exception as error:  # noqa: BLE001 - a __reduce__ of the user's may raise anything
        return _apart_by_value(choice, value, error)
    if choice.main_by_value and MAIN in plain[0]:
        with suppress(Exception):  # else workers say what they cannot import
            return _apart_by_value(choice, value, Exception())
    return plain


def _apart_by_value(
    choice: Choice, value: object, refusal: Exception
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The same by another serializer; `refusal` is why pickle has not taken the value."""
    try:
        serializer = choice.fallback()
        if serializer is None or issubclass(type(refusal), MemoryError):
            raise refusal
        return _apart(serializer.dumps, value)
    except MemoryError:
        raise
    except Exception as error:
        raise pickle.PicklingError(
            f"{shown(value)} cannot be shared ({describe_error(error)}){choice.hint}"
        ) from error


def _apart(dumps: Callable[..., bytes], value: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """By pickle, or by cloudpickle, which makes a pickle too: no other is a default."""
    buffers: list[pickle.PickleBuffer] = []
    return dumps(value, protocol=5, buffer_callback=buffers.append), buffers


def names_main(value: object) -> bool:
    """Whether the pickle of a value refers to the main module; False if it cannot be pickled."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=lambda _: None)
    # a shared object refuses to be pickled here (SHARING-1), and never refers to the main module
    constants = dict.fromkeys(sharing.constants, _as_constant)
    pickler.dispatch_table = {**copyreg.dispatch_table, **constants}
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - the codec will find it, and deals with it
        return False
    return MAIN in file.getvalue()


def _as_constant(_: object) -> tuple[Any, ...]:
    return bool, ()


def is_plain_data(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value consists of exact builtin values, as far as that can be seen quickly."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if not depth:
        return False
    if kind is dict:
        return _are_plain(value, depth - 1) and _are_plain(value.values(), depth - 1)
    return kind in CONTAINERS and _are_plain(value, depth - 1)


def _are_plain(values: Iterable[Any], depth: int) -> bool:
    # first without a call for each: a map of 50,000 dicts from stdin does 785,000/s, and 441,000
    # without this (CPython 3.11, medians of three runs in turns)
    return ATOMS.issuperset(map(type, values)) or all(is_plain_data(one, depth) for one in values)
