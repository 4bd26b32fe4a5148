"""Ends a worker whose parent is gone; the worker engine starts it before any user code runs.

The parent's death shows at a descriptor: the parent's own pidfd where there are pidfds, else the
pipe that multiprocessing keeps open between parent and child (which another forked child may keep
open too, for as long as it lives). A thread blocks on it, without any time limit. When the parent
is gone it sends this process SIGTERM, so that running items get their `finally` blocks, and ends it
when the grace period is over.

The native thread of `amp_ext.watchdog` does so even while a C function holds the GIL for ever. The
thread in here, for where the extension is not, has to wait for the GIL. Where the system refuses a
thread, the event loop of the worker watches, which has to wait until no item holds the loop. On
Windows there is no grace: SIGTERM is no signal there, but the end of a process.
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

#: Arguments: the descriptor, the parent's pid, the grace period in seconds.
Native: TypeAlias = Callable[[int, int, float], None]


def start(
    parent_pidfd: int | None, parent_pid: int, grace: float = 3.0, *, native: Native | None = None
) -> Callable[[asyncio.AbstractEventLoop], None] | None:
    """Watch the parent from now on; `parent_pidfd` is taken over.

    Returns None, or, where no thread can be had, what has to be called with the worker's loop for
    that to watch. Raises RuntimeError if there is nothing to watch the parent by: no pidfd, and no
    parent process that multiprocessing knows.
    """
    fd = _sentinel() if parent_pidfd is None else parent_pidfd
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
    """What multiprocessing gave this child to see its parent's end by."""
    parent = parent_process()
    if parent is None:
        raise RuntimeError(f"process {os.getpid()} was not started by multiprocessing: no parent")
    return parent.sentinel


def _watch(fd: int, grace: float) -> None:
    _wait(fd)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)


def _wait(fd: int) -> None:
    """Block until the parent is gone."""
    if sys.platform != "win32":
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
    else:  # the sentinel is a handle
        from multiprocessing.connection import wait

        wait([fd])
