"""Copies of a worker: the processes that its items fork.

    item: os.fork() --> the engine gives up link and journal --> code of the item's --> end
                                                                    (back in the engine)

A forked process is a copy of the whole worker. What the item does in it is the item's own affair:
run another program, `os._exit`, or be a process of multiprocessing. But where the item returns,
raises or awaits in the copy, the copy is where the worker's engine goes on: it would answer in the
worker's name, run the other items a second time, and share the worker's epoll instance.

FK1  A copy gives up the link and the journal before any code of the item's runs in it, so that
     nothing can reach the memory and the descriptors that the worker and its parent share. The same
     with the epoll instance: a loop that was polled in the copy would read from sockets of the
     worker's items, and a descriptor that was removed there would be removed in the worker.
FK2  A copy ends, without a clean-up, where control comes back from the code that has forked it:
     to the engine, or to the loop, which calls `end` before any other callback.
FK3  A copy ends with the worker's parent, as the worker does (watchdog.py), whatever it runs,
     unless it is another program by then. Processes of multiprocessing have their own rules.
FK4  A signal for a copy is not the worker's: the descriptor by which asyncio hears of signals is
     shared, so a copy begins without the handlers of loops; signals wait until they are gone.

One engine is protected at a time, the one of this process; a copy that starts as a worker itself,
in a process of multiprocessing, protects its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import selectors
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, NoReturn, Protocol

from . import spawn

#: Frames between `os.fork` and multiprocessing: whoever has patched it.
_WRAPPERS = 3

log = logging.getLogger(__name__)


class Shared(Protocol):
    """What a copy must not use."""

    def abandon(self) -> None:
        """Give it up in the copy, and leave it to the worker."""


class _Process:
    """What is known of this process."""

    shared: Shared | None = None  # None: it is no worker, or a copy that has given it up
    loop: asyncio.AbstractEventLoop | None = None
    watch_parent: Callable[[], object] | None = None
    main_thread = 0
    copied = False
    hooked = False  # a copy inherits the hooks
    masks: ClassVar[dict[int, set[int]]] = {}  # by thread: what it held back before it forks


_this = _Process()


def protect(
    shared: Shared,
    watch_parent: Callable[[], object],
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """From now on a copy of this process gives up `shared` and calls `watch_parent` (FK1, FK3)."""
    _this.shared = shared
    _this.loop = loop
    _this.watch_parent = watch_parent
    _this.main_thread = threading.get_ident()
    _this.copied = False
    if not _this.hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_come)
        os.register_at_fork(after_in_child=_begin)
        _this.hooked = True


def is_copy() -> bool:
    """Whether this is a copy, where an item's code should have stayed."""
    return _this.copied


def end() -> NoReturn:
    """FK2: end this copy, which is back in the engine."""
    log.error(
        "process %s is a copy of a worker, forked by a task that went on in it: it ends here. "
        "Leave a forked process by os._exit(), or use multiprocessing or subprocess",
        os.getpid(),
    )
    flush_streams()
    os._exit(1)


def flush_streams() -> None:
    """Write what was printed, before an end that does not."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # nobody reads it, or it is None: we end anyway
            stream.flush()


class Halted:
    """In place of an item's coroutine in a copy: its next step ends the copy (FK2)."""

    def __init__(self, coro: Any) -> None:
        self._coro = coro  # held, as its `finally` blocks would run if it were dropped

    def __next__(self) -> NoReturn:
        end()

    def send(self, value: object) -> NoReturn:
        end()

    def throw(self, *error: object) -> NoReturn:
        end()

    def close(self) -> None:
        """Nothing is closed in a copy."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)


def _hold_signals() -> None:
    """In a thread that is about to fork (FK4)."""
    if sys.platform != "win32":
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _this.masks[threading.get_ident()] = {int(signum) for signum in held}


def _let_signals_come() -> None:
    mask = _this.masks.pop(threading.get_ident(), None)
    if mask is not None and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin() -> None:
    """In a new copy, before `os.fork` returns in it."""
    try:
        _begin_held(sys._getframe(1))
    finally:
        _let_signals_come()


def _begin_held(forking: FrameType | None) -> None:
    of_multiprocessing = _is_of_multiprocessing(forking)
    by_thread = threading.get_ident() != _this.main_thread
    _this.main_thread = threading.get_ident()
    _this.copied = not of_multiprocessing
    shared, _this.shared = _this.shared, None
    if shared is not None:
        spawn.put_away_handlers()  # FK4
        shared.abandon()  # FK1
        if _this.loop is not None:
            _leave_epoll(_this.loop)
    if of_multiprocessing:
        _this.watch_parent = None
        return
    if _this.watch_parent is not None:
        with contextlib.suppress(OSError, RuntimeError):  # no thread can be had
            _this.watch_parent()  # FK3
    if shared is not None and _this.loop is not None:
        _end_in(_this.loop, by_thread)


def _is_of_multiprocessing(frame: FrameType | None) -> bool:
    """Whether `os.fork` was called by multiprocessing, for a process that has its own target."""
    for _ in range(_WRAPPERS):
        if frame is None:
            break
        if frame.f_globals.get("__name__") == "multiprocessing.popen_fork":
            return True
        frame = frame.f_back
    return False


def _leave_epoll(loop: asyncio.AbstractEventLoop) -> None:
    """FK1: put an empty epoll instance in the place of the one that the worker's loop polls."""
    if sys.platform != "linux" or loop.is_closed():
        return
    selector = getattr(loop, "_selector", None)
    if isinstance(selector, selectors.EpollSelector):
        descriptor = selector.fileno()
    elif hasattr(loop, "_get_backend_id"):  # uvloop
        descriptor = loop._get_backend_id()
    else:
        return
    with select.epoll() as empty:
        os.dup2(empty.fileno(), descriptor, inheritable=False)


def _end_in(loop: asyncio.AbstractEventLoop, by_thread: bool) -> None:
    """FK2: end when control comes back to the loop, or from its executor's thread."""
    if loop.is_closed():
        return
    if by_thread:  # where the loop does not run: the thread's result would be handed over so
        vars(loop)["call_soon_threadsafe"] = _end_of_thread
    ready = getattr(loop, "_ready", None)
    if isinstance(ready, deque):  # asyncio's own
        ready.appendleft(asyncio.Handle(end, (), loop))
    else:
        loop.call_soon(end)


def _end_of_thread(*args: object, **more: object) -> NoReturn:
    end()
