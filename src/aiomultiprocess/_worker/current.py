"""`current_worker`: what user code in a worker can learn of its worker."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any

from . import main

#: The worker in whose context code runs, if it shares its process with others (inline.py).
inline_worker: ContextVar[main.ThisWorker | None] = ContextVar("aiomultiprocess-worker")


class WorkerInfo:
    """The worker that runs this code, as `current_worker()` returns it.

    Attributes:
        index: 0 to `processes` - 1. No two workers of a pool that run an initializer, a lifespan or
            tasks have the same at any time; the worker that replaces another has its index. If that
            one still has open streams, or cancelled calls in threads, it keeps the index, and the
            replacement has a higher one, from `processes` on.
        pid: the id of the worker's process.
        state: what the pool's lifespan has yielded; None without one, and before it is entered.
        started: how many tasks the worker had started at the call, the one that calls included.
    """

    __slots__ = ("index", "pid", "started", "state")

    def __init__(self, index: int, pid: int, state: Any, started: int) -> None:
        self.index = index
        self.pid = pid
        self.state = state
        self.started = started

    def __repr__(self) -> str:
        return f"<WorkerInfo index={self.index} pid={self.pid} started={self.started}>"


def running_worker() -> main.ThisWorker | None:
    """The worker that runs this code; None outside of one, and in a process that a task starts."""
    this = inline_worker.get(main.this_worker)
    return this if this is not None and this.pid == os.getpid() else None


def current_worker() -> WorkerInfo:
    """The worker of a `Pool` that runs this code: in an initializer, a lifespan, or a task.

    Raises RuntimeError elsewhere: in the process that made the pool (but for the code that a pool
    with the backend "inline" runs there), and in processes that a task starts.
    """
    this = running_worker()
    if this is None:
        raise RuntimeError(
            "current_worker() was called outside of a worker of a Pool: call it in a task, an "
            "initializer or a lifespan"
        )
    return WorkerInfo(this.index, this.pid, this.engine.state, this.engine.started)
