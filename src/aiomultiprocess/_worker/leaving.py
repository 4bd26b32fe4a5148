"""The exit of a worker whose loop has ended: what may hold it, and what does not cut it short.

A worker exits as a process of multiprocessing does (_worker/engine.py, WORKER-9): it runs hooks, and waits for the
threads that are no daemons, for ever if they do not end. So the parent limits the time (worker.py,
POOLWORKER-3); what is here lets it say what the worker waited for. Light: workers begin with this module.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from types import FrameType

#: Modules whose frames are at the start of any thread, and say nothing of what it does.
_STARTING = frozenset({"threading", "concurrent.futures.thread"})
#: Where a thread of an executor waits for its next call.
_IDLE = "concurrent.futures.thread._worker"


def ignore_sigterm(loop: asyncio.AbstractEventLoop) -> None:
    """From now on a SIGTERM changes nothing: this process exits anyway, in a limited time.

    The parent may terminate a worker that is on its way out already; hooks would not be run. The
    handler is a function, since programs that a hook starts would inherit SIG_IGN.
    """
    if sys.platform == "win32":  # SIGTERM is no signal there
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

    Idle threads of an executor are left out: they end when they are asked to.
    """
    left = [thread for thread in threading.enumerate() if _holds_exit(thread)]
    frames = sys._current_frames() if left else {}
    described = ((thread.name, _running_in(frames.get(thread.ident or 0))) for thread in left)
    return ", ".join(f"{name!r} (in {where})" for name, where in described if where)


def _holds_exit(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()


def _running_in(frame: FrameType | None) -> str:
    """The outermost function that says what a thread does, "" if nothing.

    `frame` is its innermost.
    """
    found = "" if frame is None else _name_of(frame)
    if found == _IDLE:
        return ""
    while frame is not None:
        if frame.f_globals.get("__name__") not in _STARTING:
            found = _name_of(frame)
        frame = frame.f_back
    return found


def _name_of(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
