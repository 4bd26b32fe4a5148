"""Ends a worker after its parent died; `main` starts it before it loads what the pool was given.

Of the user's code only the main module, which multiprocessing imports, may run before.

A descriptor becomes readable when the parent dies: the parent's own pidfd where there are pidfds,
else the pipe that multiprocessing keeps open between parent and child (which any other forked child
may keep open too, for as long as it lives). A thread blocks on that descriptor without a time
limit. After the death it sends this process SIGTERM, so that running items can run their `finally`
blocks, and ends the process after the grace period.

The native thread of `amp_ext.watchdog` does so even while a C function holds the GIL for ever. The
Python thread in this module, for where the extension is not built, needs the GIL. Where the system
refuses a thread, the worker's event loop watches the descriptor, which has to wait until no item
blocks the loop. On Windows there is no grace period: SIGTERM ends a process there at once.
"""

from __future__ import annotations

import asyncio
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import parent_process
from typing import TypeAlias

#: `amp_ext.watchdog.start`: the descriptor, the parent's pid, the grace period in seconds.
Native: TypeAlias = Callable[[int, int, float], None]

LONGEST = 1e8  # seconds, three years: a longer grace period is more than the system can sleep


def start(
    parent_pidfd: int | None, parent_pid: int, grace: float = 3.0, *, native: Native | None = None
) -> Callable[[asyncio.AbstractEventLoop], None] | None:
    """Watch the parent from now on; `parent_pidfd` belongs to the watchdog then.

    Returns None; or, where the system refuses a thread, a function that the caller must call with
    the worker's loop, which then watches. Raises RuntimeError if there is no descriptor to watch:
    no pidfd, and no parent process that multiprocessing knows.
    """
    fd = _sentinel() if parent_pidfd is None else parent_pidfd
    grace = min(grace, LONGEST)
    try:
        if native is not None:
            native(fd, parent_pid, grace)
        else:
            threading.Thread(
                target=_watch, args=(fd, grace), name="aiomultiprocess-watchdog", daemon=True
            ).start()
    except (OSError, RuntimeError):  # a sandbox or a limit refuses the thread
        return functools.partial(_watch_in, fd, grace)
    return None


def _watch_in(fd: int, grace: float, loop: asyncio.AbstractEventLoop) -> None:
    loop.add_reader(fd, _end, fd, grace, loop)


def _end(fd: int, grace: float, loop: asyncio.AbstractEventLoop) -> None:
    loop.remove_reader(fd)
    loop.call_later(grace, os._exit, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _sentinel() -> int:
    """The descriptor of multiprocessing that becomes readable when the parent dies."""
    parent = parent_process()
    if parent is None:
        raise RuntimeError(
            f"process {os.getpid()} has no parent to watch; start workers by multiprocessing"
        )
    return parent.sentinel


def _watch(fd: int, grace: float) -> None:
    _wait(fd)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)


def _wait(fd: int) -> None:
    """Block until the parent is dead."""
    if sys.platform != "win32":
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
    else:  # the sentinel is a handle
        from multiprocessing.connection import wait

        wait([fd])
