"""Memory that runs out, for scripts and workers of tests: by a limit of the kernel, or by a count."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20
#: After so many refusals that nothing minded, there are no allocations left.
IN_PEACE = 50


def address_space() -> int:
    """Bytes of address space that this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@contextlib.contextmanager
def limited(room: int) -> Iterator[None]:
    """Let this process map `room` bytes more, and no more than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_worker(room: int) -> None:
    """An initializer: `limited` for as long as the worker lives."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, hard))


def attempt(call: Callable[[], Any], start: int, stop: int) -> Any:
    """What `call` returns while allocations `start` to `stop` (0: all from there on) are refused.

    The MemoryError, if it raises one.
    """
    import _testcapi

    _testcapi.set_nomemory(start, stop)
    try:
        return call()
    except MemoryError as error:
        return error
    finally:
        _testcapi.remove_mem_hooks()


def each_refusal(call: Callable[[], Any], check: Callable[[Any], None], forever: bool) -> int:
    """Refuse one allocation of `call` after the other, and `forever`: with all that follow, too.

    Each outcome is given to `check`. Returns how many were refused. CPython itself cannot go on
    without any memory: what is written in Python is only refused one at a time.
    """
    at = in_peace = 0
    while in_peace < IN_PEACE:
        outcome = attempt(call, at, at + 1)
        check(outcome)
        if forever:
            outcome = attempt(call, at, 0)
            check(outcome)
        in_peace = in_peace + 1 if settled(outcome) else 0
        at += 1
    return at - IN_PEACE


def settled(outcome: Any) -> bool:
    """Whether nothing of an outcome failed: a codec tells of failures in what it returns."""
    if isinstance(outcome, MemoryError):
        return False
    return not (isinstance(outcome, tuple) and outcome[-1])
