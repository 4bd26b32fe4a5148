"""Copies of a worker: the processes that its items fork.

    item: os.fork() --> the engine abandons link and journal --> code of the item --> end
                                                                    (back in the engine)

A forked process is a copy of the whole worker. The item decides what happens in it: it may run
another program, call `os._exit`, or be a process of multiprocessing. But where the item returns,
raises or awaits in the copy, the worker's engine would go on there: it would send results in the
worker's name, run the other items a second time, and share the worker's epoll instance.

COPY-1  A copy abandons the link and the journal before any code of the item runs in it, so that no
    code reaches the memory and the descriptors that the worker and its parent share (but shared
    objects, which are read-only: shared_objects.py, OBJECT-6). It also replaces the epoll instance:
    a loop that is polled in the copy would read from sockets of the worker's items, and a
    descriptor removed there would be removed in the worker.
COPY-2  A copy ends, without clean-up, when the code that forked it returns: to the engine, or to
    the loop, which calls `end` before any other callback.
COPY-3  A copy ends with the worker's parent, as the worker does (watchdog.py), unless it is another
    program by then. Processes of multiprocessing have their own rules.
COPY-4  A signal for a copy does not reach the worker. Both share the descriptor through which
    asyncio learns of signals, so a copy starts without the handlers of loops; signals stay blocked
    until the handlers are removed.
COPY-5  Ctrl-C does nothing in a copy, as in the worker (startup.py, STARTUP-3), and has its default
    effect in a process of multiprocessing and in another program.

One engine is protected at a time, that of this process. A copy that becomes a worker itself, in a
process of multiprocessing, protects its own.
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
from .startup import on_interrupt

#: The most frames between `os.fork` and multiprocessing, of code that has patched `os.fork`.
_WRAPPERS = 3

log = logging.getLogger(__name__)


class SharedWithParent(Protocol):
    """What the worker shares with its parent, and a copy must not use."""

    def abandon(self) -> None:
        """Release it in the copy, without an effect on the worker."""


class _Process:
    """The state of this process."""

    shared: SharedWithParent | None = None  # None: it is no worker, or a copy that abandoned it
    loop: asyncio.AbstractEventLoop | None = None
    watch_parent: Callable[[], object] | None = None
    main_thread = 0
    copied = False
    hooked = False  # a copy inherits the hooks
    masks: ClassVar[dict[int, set[int]]] = {}  # by thread: the signals blocked before it forks


_this = _Process()


def protect(
    shared: SharedWithParent,
    watch_parent: Callable[[], object],
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Make copies of this process abandon `shared` and call `watch_parent` (COPY-1, COPY-3)."""
    _this.shared = shared
    _this.loop = loop
    _this.watch_parent = watch_parent
    _this.main_thread = threading.get_ident()
    _this.copied = False
    if not _this.hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals)
        os.register_at_fork(after_in_child=_begin)
        _this.hooked = True


def is_copy() -> bool:
    """Whether this process is a copy, in which only the item's code may run."""
    return _this.copied


def end() -> NoReturn:
    """End this copy, in which control came back to the engine (COPY-2)."""
    log.error(
        "process %s is a copy of a worker, forked by a task that went on in it: it ends here. "
        "Leave a forked process by os._exit(), or use multiprocessing or subprocess",
        os.getpid(),
    )
    flush_streams()
    os._exit(1)


def flush_streams() -> None:
    """Write what was printed, before an exit that does not flush."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # its reader is gone, or it is None
            stream.flush()


class Halted:
    """Replaces an item's coroutine in a copy: its next step ends the copy (COPY-2)."""

    def __init__(self, coro: Any) -> None:
        self._coro = coro  # kept, as its `finally` blocks would run if it were dropped

    def __next__(self) -> NoReturn:
        end()

    def send(self, value: object) -> NoReturn:
        end()

    def throw(self, *error: object) -> NoReturn:
        end()

    def close(self) -> None:
        """Close nothing: the coroutine is the worker's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)


def _block_signals() -> None:
    """Before this thread forks (COPY-4)."""
    if sys.platform != "win32":
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _this.masks[threading.get_ident()] = {int(signum) for signum in blocked}


def _unblock_signals() -> None:
    mask = _this.masks.pop(threading.get_ident(), None)
    if mask is not None and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin() -> None:
    """In a new copy, before `os.fork` returns in it."""
    try:
        _begin_blocked(sys._getframe(1))
    finally:
        _unblock_signals()


def _begin_blocked(forking: FrameType | None) -> None:
    of_multiprocessing = _is_of_multiprocessing(forking)
    by_thread = threading.get_ident() != _this.main_thread
    _this.main_thread = threading.get_ident()
    _this.copied = not of_multiprocessing
    shared, _this.shared = _this.shared, None
    if shared is not None:
        kept = None if of_multiprocessing else on_interrupt
        spawn.put_away_handlers(kept)  # COPY-4, COPY-5
        shared.abandon()  # COPY-1
        if _this.loop is not None:
            _leave_epoll(_this.loop)
    if of_multiprocessing:
        _this.watch_parent = None
        return
    if _this.watch_parent is not None:
        with contextlib.suppress(OSError, RuntimeError):  # it cannot start a thread
            _this.watch_parent()  # COPY-3
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
    """Replace the epoll instance that the worker's loop polls by an empty one (COPY-1)."""
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
    """Have the loop, or the thread of its executor, end the copy when control returns (COPY-2)."""
    if loop.is_closed():
        return
    if by_thread:  # the loop does not run here: the thread would hand its result over
        vars(loop)["call_soon_threadsafe"] = _end_of_thread
    ready = getattr(loop, "_ready", None)
    if isinstance(ready, deque):  # asyncio's own
        ready.appendleft(asyncio.Handle(end, (), loop))
    else:
        loop.call_soon(end)


def _end_of_thread(*args: object, **more: object) -> NoReturn:
    end()
