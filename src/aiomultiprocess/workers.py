"""The life of a worker, as the parent sees it.

    launched --READY--> ready --leave(): CLOSE--> leaving --> exited
        |                 |                          ^
        |                 +--- end(): SIGTERM, and SIGKILL after the grace period
        +--- exits before READY: a failed start; the engine decides what that means

V1  `on_exit` is called once for each launched worker, in its loop, unless `kill_now` came first.
V2  A worker costs the parent a constant number of descriptors: those of its link, and the two by
    which its exit is noticed (its pidfd and multiprocessing's sentinel).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from . import _loops, child
from ._exits import Descriptor, Exit
from ._spawn import process_class, report_exit
from ._startargs import at_its_caller
from .core import Process
from .credit import Credit
from .frames import Kind
from .transport import ChildEnd, Handover, Link

if TYPE_CHECKING:
    from .chunks import Chunk

KILL_AFTER = child.GRACE + 1.0  # seconds from SIGTERM to SIGKILL

log = logging.getLogger(__name__)


class WorkerOptions:
    """What all workers of a pool have in common."""

    def __init__(
        self,
        *,
        context: BaseContext,
        concurrency: int,
        lifetime: int,  # tasks until a worker is replaced, 0: no limit
        loop: _loops.LoopSpec,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        exception_handler: Callable[[BaseException], object] | None,
    ) -> None:
        self.context = context
        self.concurrency = concurrency
        self.lifetime = lifetime
        self.loop = loop
        self.initializer = initializer
        self.initargs = initargs
        self.exception_handler = exception_handler


class PoolWorker(Process):
    """One worker process of a pool, with its link, its credit, and what it holds."""

    def __init__(self, options: WorkerOptions, link: Link, end: ChildEnd) -> None:
        self.link = link
        self.credit = Credit(options.concurrency, options.lifetime)
        self.chunks: dict[int, Chunk] = {}  # in the order they were sent
        self.functions: set[int] = set()  # ids of those that the worker was told
        self.ready = False
        self.ready_since = 0.0  # in the loop's time
        self.trusted = True
        self.leaving = False
        self._pid: int | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._parent_fd = _own_pidfd()
        spec = child.WorkerSpec(
            end=end,
            concurrency=options.concurrency,
            parent_pid=os.getpid(),
            parent_fd=None if self._parent_fd is None else _handover(self._parent_fd.fileno()),
            loop=options.loop,
            initializer=options.initializer,
            initargs=options.initargs,
            exception_handler=options.exception_handler,
        )
        self.aio_process = process_class(options.context)(target=child.main, args=(spec,))
        report_exit(self.aio_process)

    def launch(
        self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[PoolWorker], None]
    ) -> None:
        """Start the process. OSError if the system refuses, a pickling error for bad `initargs`."""
        try:
            self.aio_process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise at_its_caller(error) from error.__cause__
        finally:
            if self._parent_fd is not None:
                self._parent_fd.close()
        self._pid = self.aio_process.pid
        self._loop = loop
        try:
            self._exit = Exit(self.aio_process)
            self._watch = self._exit.watch(loop, lambda: self._on_exit(on_exit))
        except BaseException:  # no thread or descriptor can be had, or a Ctrl-C: nobody would know
            self.kill()
            self._exit_of_process().block()
            self.close()
            raise

    def leave(self) -> None:
        """Ask the worker to finish what it has, and go."""
        if not self.leaving:
            self.leaving = True
            self.link.send(Kind.CLOSE)
            self.link.flush()

    def end(self) -> None:
        """Let the worker cancel what it runs and go; kill it after the grace period.

        On Windows it is killed at once: a process cannot be asked there.
        """
        if self._kill_timer is None and self.is_alive():
            self.leaving = True
            self.terminate()
            self._kill_timer = self._loop.call_later(KILL_AFTER, self.kill)

    def distrust(self, error: BaseException) -> None:
        """The link holds what no worker of ours can have written: kill, and trust no more of it."""
        log.error("worker %s: its link is broken, it is killed", self.pid, exc_info=error)
        self.trusted = False
        self.leaving = True  # what it would be sent now, it would not get
        self.kill()

    def kill_now(self) -> None:
        """End the process without a loop, and give everything back."""
        self.kill()
        self._exit_of_process().block()
        self._settle()
        self.link.close()

    @property
    def pid(self) -> int | None:
        """The process id, also after the process was reaped."""
        return self._pid

    def _is_started(self) -> bool:
        return self._pid is not None

    def _on_exit(self, on_exit: Callable[[PoolWorker], None]) -> None:
        self._settle()
        on_exit(self)

    def _settle(self) -> None:
        """The process is gone: reap it and close what it cost (V2)."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._watch.close()
        self.aio_process.close()


def _own_pidfd() -> Descriptor | None:
    """What becomes readable in a worker when this process has gone, where the system has it."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox that refuses it
            return Descriptor(os.pidfd_open(os.getpid()))
    return None


def _handover(fd: int) -> Handover:
    """`fd` for the worker, of which a forked one drops the inherited original."""
    return Handover([fd], lambda: os.close(fd))
