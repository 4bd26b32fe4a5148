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
from threading import get_ident
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

#: The memories of the shared objects that a thread has pickled, since it took them last.
collected: Final[dict[int, list[Any]]] = {}
#: All memories of this process, by their numbers.
live: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()
#: Engines, and the process of each, as a forked worker inherits those of its parent. `hold` keeps a
#: memory that its user has released, as long as tasks that are not settled may need it.
engines: Final[WeakKeyDictionary[Any, int]] = WeakKeyDictionary()
#: The types of shared objects, which items may share, as they cannot change them.
constants: Final[set[type]] = set()
_permitted: Final[set[int]] = set()


def collect(memory: object) -> None:
    """A shared object was pickled."""
    collected.setdefault(get_ident(), []).append(memory)


def take() -> tuple[Any, ...]:
    """The memories of what this thread has pickled since the last call, each once."""
    return tuple(dict.fromkeys(collected.pop(get_ident(), ())))


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
