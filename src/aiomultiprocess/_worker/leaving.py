"""The exit of a worker: by a signal, or after its loop has ended, in a limited time.

`main` and the engine call this module. A worker exits as a process of multiprocessing does
(engine.py, WORKER-9): it runs exit hooks, and waits for all threads that are no daemons, however
long they run. So the parent limits the time (worker.py, POOLWORKER-3). The LEAVING frame says when
that time begins, and which threads the worker waits for.

Each worker imports this module at its start, so it imports little itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

from .._processes import copies
from .._wire.frames import Kind

if TYPE_CHECKING:
    from .._transport.link import Link

#: Modules whose frames begin the stack of every thread, and do not say what it does.
_STARTING = frozenset({"threading", "concurrent.futures.thread", "aiomultiprocess._worker.threads"})
#: The functions in which a thread of an executor, or of this worker, waits for its next call.
_IDLE = frozenset(
    {"concurrent.futures.thread._worker", "aiomultiprocess._worker.threads.Threads._serve"}
)
#: How the names of a worker's threads for plain functions begin (threads.py).
THREAD_NAME = "aiomultiprocess-thread-"


def exit_by_signal(signum: int) -> None:
    """End as the default action of the signal does, so that the exit code says why."""
    copies.flush_streams()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def announce_lifespan_end(link: Link) -> None:
    """Tell the parent that no item runs any more, and the lifespan is left (WORKER-10)."""
    link.send(Kind.LEAVING, count=1)
    link.flush()


def announce_exit(link: Link) -> str:
    """Tell the parent that the exit begins (WORKER-9); returns the threads that may delay it."""
    threads = threads_left()
    link.send(Kind.LEAVING, payload=[threads.encode("utf-8", "replace")] if threads else ())
    link.flush()
    return threads


def announce_held(link: Link, streams: int) -> None:
    """Tell the parent that only streams, or else threads, delay the exit (WORKER-12)."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    payload = [] if streams else [_described(threads).encode("utf-8", "replace")]
    link.send(Kind.HELD, count=streams, payload=payload)
    link.flush()


def ignore_sigterm(loop: asyncio.AbstractEventLoop) -> None:
    """From now on SIGTERM does nothing: this process exits already, in a limited time.

    The parent may terminate a worker during its exit, and the exit hooks would not run. The
    handler is a function, because programs that a hook starts would inherit SIG_IGN.
    """
    if sys.platform == "win32":  # SIGTERM ends a process there, and is no signal
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, _do_nothing)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """A signal handler."""


def threads_left() -> str:
    """The threads that this process waits for before it ends, and what they run; "" if none.

    Idle threads of an executor are left out: they end as soon as the interpreter exits.
    """
    return _described([thread for thread in threading.enumerate() if _delays_exit(thread)])


def _described(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames() if threads else {}
    described = ((thread.name, _running_in(frames.get(thread.ident or 0))) for thread in threads)
    return ", ".join(f"{name!r} (in {where})" for name, where in described if where)


def _delays_exit(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()


def _running_in(frame: FrameType | None) -> str:
    """The outermost function that says what a thread does; "" if it does nothing.

    `frame` is the thread's innermost frame.
    """
    found = "" if frame is None else _name_of(frame)
    if found in _IDLE:
        return ""
    while frame is not None:
        if frame.f_globals.get("__name__") not in _STARTING:
            found = _name_of(frame)
        frame = frame.f_back
    return found


def _name_of(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
