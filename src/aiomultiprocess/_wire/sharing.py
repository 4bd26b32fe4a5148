"""Which shared objects (`aiomultiprocess.share`) were pickled, so that they can be handed over.

A shared object is pickled as its number. The code that pickles for a worker takes from here the
memories of those that came along, passes them to that worker before the frame, and holds them until
what was pickled is settled (_parent/sharing.py). _transport/shared_objects.py has the memory
itself; this module imports nothing of it, because every pool imports this one, and few need both.

SHARING-1  A shared object is pickled for a pool alone: by the codec, which has a reducer for it
    (`register`), or within `permitted()`. What another pickler makes of it would be a number
    that no one hands anything over for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from os import getpid
from threading import get_ident
from typing import Any, Final
from weakref import WeakSet, WeakValueDictionary

#: The memories of the shared objects that a thread has pickled, since it took them last.
collected: Final[dict[int, list[Any]]] = {}
#: All memories of this process, by their numbers.
live: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()
#: Engines; a forked worker inherits those of its parent. Their `hold` keeps a memory that its user
#: has released, as long as tasks that are not settled may need it. The same of executors, for calls
#: that no engine has yet.
engines: Final[WeakSet[Any]] = WeakSet()
_processes: Final[set[int]] = set()  # those that have made engines: a forked one has them, too
#: The types of shared objects, which items may share, as they cannot change them.
constants: Final[set[type]] = set()
_permitted: Final[set[int]] = set()
#: Whether code runs in a worker that shares its process with its parent (_worker/inline.py).
in_inline_worker: Final = ContextVar("aiomultiprocess-inline", default=False)


def collect(*memories: object) -> None:
    """Shared objects were pickled."""
    collected.setdefault(get_ident(), []).extend(memories)


def take() -> tuple[Any, ...]:
    """The memories of what this thread has pickled since the last call, each once."""
    memories = collected.pop(get_ident(), ())
    return tuple(memories if len(memories) < 2 else dict.fromkeys(memories))


def has_engines() -> bool:
    """Whether this process has pools, which take what was collected."""
    return bool(engines) and getpid() in _processes


def add_engine(engine: object) -> None:
    """A pool was made."""
    engines.add(engine)
    _processes.add(getpid())


def is_permitted() -> bool:
    """Whether this thread pickles for a pool (SHARING-1)."""
    return get_ident() in _permitted


@contextmanager
def permitted() -> Iterator[None]:
    """In this block, this thread pickles for a pool."""
    thread = get_ident()
    outermost = thread not in _permitted
    _permitted.add(thread)
    try:
        yield
    finally:
        if outermost:
            _permitted.discard(thread)
