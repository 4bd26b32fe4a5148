"""The exit of a worker: by a signal, or after its loop has ended, in a limited time.

`main` and the engine call this module. A worker exits as a process of multiprocessing does
(engine.py, WORKER-9): it runs exit hooks, and waits for all threads and child processes that are no
daemons, however long they run. So the parent limits the time (worker.py, POOLWORKER-3). The LEAVING
frame says when that time begins, and which of these the worker waits for.

Each worker imports this module at its start, so it imports little itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import Collection
from multiprocessing import active_children
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING, Any

from .._processes import copies
from .._pure.tasks import item_coroutine_of
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
MOST_NAMED = 8  # tasks of calls that were given up
_PACKAGE = "aiomultiprocess."
#: How the attributes of a type begin; others may run code of the user's when they are read.
_PREFIXES: dict[type, str] = {CoroutineType: "cr", GeneratorType: "gi", AsyncGeneratorType: "ag"}


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
    """Tell the parent that the exit begins (WORKER-9); returns what may delay it."""
    held_by = " and ".join(filter(None, (threads_left(), children_left())))
    link.send(Kind.LEAVING, payload=[held_by.encode("utf-8", "replace")] if held_by else ())
    link.flush()
    return held_by


def announce_held(link: Link, streams: int, tasks: Collection[asyncio.Task[Any]]) -> None:
    """Tell the parent that only streams, or else calls that were given up, delay the exit.

    `tasks` are all that run (WORKER-12).
    """
    payload = [] if streams else [_given_up(tasks).encode("utf-8", "replace")]
    link.send(Kind.HELD, count=streams, payload=payload)
    link.flush()


def _given_up(tasks: Collection[asyncio.Task[Any]]) -> str:
    """The threads and tasks of calls, and what they run."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    first = list(itertools.islice(tasks, MOST_NAMED))
    frames = [_users_frame(_coroutine_of(task)) for task in first]
    on_loop = [
        f"{task.get_name()!r} (in {_name_of(frame)})"
        for task, frame in zip(first, frames, strict=True)
        if frame is not None
    ]
    if len(tasks) > MOST_NAMED:
        on_loop.append("and more")
    named = f"its tasks {', '.join(on_loop)}" if on_loop else ""
    return " and ".join(filter(None, [_described(threads), named]))


def _coroutine_of(task: asyncio.Task[Any]) -> Any:
    item_coro = item_coroutine_of(task)
    return task.get_coro() if item_coro is None else item_coro.inner


def _users_frame(runs: Any) -> FrameType | None:
    """The frame of the user's function in an item; None if it waits for a thread, or hides it."""
    prefix = _PREFIXES.get(type(runs))
    frame: FrameType | None = None if prefix is None else getattr(runs, f"{prefix}_frame")
    if frame is None or not str(frame.f_globals.get("__name__")).startswith(_PACKAGE):
        return frame
    # "values" is the generator of a stream (streams.py)
    return _users_frame(frame.f_locals.get("values", getattr(runs, "cr_await", None)))


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


def children_left() -> str:
    """The processes of multiprocessing that this process waits for before it ends; "" if none."""
    children = [child for child in active_children() if not child.daemon]
    named = ", ".join(f"{child.name!r} (pid {child.pid})" for child in children)
    return f"its child processes {named}" if named else ""


def _described(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames() if threads else {}
    described = ((thread.name, _running_in(frames.get(thread.ident or 0))) for thread in threads)
    named = ", ".join(f"{name!r} (in {where})" for name, where in described if where)
    return f"its threads {named}" if named else ""


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
