"""The life of a worker, as the parent sees it.

    launched --READY--> ready --leave(): CLOSE--> leaving --LEAVING--> exiting --> exited
        |                 |                  |       ^
        |                 |                  HELD, as long as it has streams (supervisor.py)
        |                 |                          |
        |                 +--- end(): SIGTERM, and SIGKILL after the grace period
        +--- exits before READY: a failed start (supervisor.py)

POOLWORKER-1  `on_exit` is called once for each launched worker, in its loop, unless `kill_now` came
    first.
POOLWORKER-2  A worker costs the parent a constant number of descriptors: those of its link, and the
    two by which its exit is noticed (its pidfd and multiprocessing's sentinel).
POOLWORKER-3  A worker that runs no more items exits within the grace period, or is killed: a thread
    that an item has left, or a hook, could hold it for ever. So is one that is to exit and has only
    calls that were given up, in threads or as coroutines. If its exit takes more than a moment,
    `on_linger` is called once, so that the supervisor can replace it.
POOLWORKER-4  A worker that was sent tasks with a time limit has one `Deadlines` (deadlines.py),
    which ends with its process. No other worker has one.
POOLWORKER-5  Only `_make_process` and `_make_exit` know what a worker runs in: here, a process of
    multiprocessing. A subclass for another backend (kinds.py) overrides them: it makes objects that
    have what is used of a process and of an `Exit` (_processes/exit.py).
POOLWORKER-6  Ctrl-C may strike within a launch: the launch has happened as a whole, or has left no
    process. It may strike when an exit is noticed: `on_exit` is called all the same.
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

from .. import _legacy
from .._processes import loops
from .._processes.descriptors import Descriptor, Handover
from .._processes.exit import Exit
from .._processes.spawn import process_class, report_exit
from .._processes.start_arguments import at_its_caller
from .._transport.link import ChildEnd, Link
from .._wire.frames import Kind
from .._wire.sharing import live
from .._worker import main
from ..core import Process
from .blocked import BlockedWatch
from .credit import Credit
from .serializers import PICKLE_ALONE, Choice
from .sharing import note_fork, pickle_for

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .._processes.context_variables import NamedVariable
    from .chunk import Chunk
    from .deadlines import Deadlines

KILL_MARGIN = 1.0  # seconds from the end of the grace period after SIGTERM to SIGKILL
MOMENT = 0.5  # seconds that an exit may take before the worker counts as lingering (POOLWORKER-3)

log = logging.getLogger(__name__)


class WorkerOptions:
    """What all workers of a pool have in common."""

    def __init__(
        self,
        *,
        context: BaseContext,
        concurrency: int,
        lifetime: int,  # tasks until a worker is replaced, 0: no limit
        threads: int,  # for plain functions, 0: these run on the loop
        loop: loops.LoopSpec,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        exception_handler: Callable[[BaseException], object] | None,
        grace: float,  # seconds: worker.py, POOLWORKER-3
        choice: Choice = PICKLE_ALONE,
        logs: bool | int | str | None = None,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        contextvars: tuple[NamedVariable, ...] = (),
        memory_limit: int = 0,  # bytes, 0: no limit
    ) -> None:
        self.logs = logs
        self.choice = choice
        self.context = context
        self.concurrency = concurrency
        self.lifetime = lifetime
        self.threads = threads
        self.loop = loop
        self.initializer = initializer
        self.initargs = initargs
        self.exception_handler = exception_handler
        self.grace = grace
        self.lifespan = lifespan
        self.contextvars = contextvars
        self.memory_limit = memory_limit
        self.shared: list[tuple[Any, ...]] = []  # held, because workers start with it (sharing.py)


@_legacy.without(_legacy.WORKER)
class PoolWorker(Process):
    """One worker process of a pool, with its link, its credit, and what it holds."""

    streams = 0
    """How many are open, if nothing else keeps it from its exit (SUPERVISOR-5)."""
    exiting = False
    """Whether its items and its lifespan have ended."""
    host: str | None = None  # the address of the dask worker where it runs; None: this machine
    why_ended = ""  # a sentence, if more is known than the exit code
    why_lost = ""  # the same of its host
    # as in Endpoint (endpoint.py): few workers change these
    retired = ""
    """Why it takes no more tasks, if that was its own decision."""
    replaced = False
    """Whether it was replaced before its exit."""
    dismissed = False
    """Whether it is to leave because fewer workers are wanted."""
    _held_by = ""  # the threads, tasks and child processes that its exit waits for
    _in_calls = False  # these run calls that were given up
    _leaves_lifespan = False
    _launched = False
    blocked: BlockedWatch | None = None  # this and the next one from the launch on
    _watch: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> PoolWorker:
        """TypeError for arguments of 0.9.1, which made workers from queues."""
        if not args or not isinstance(args[0], WorkerOptions):
            raise TypeError(
                f"a {cls.__name__} is made by its Pool alone, and takes no queues: use "
                "Pool(processes, initializer=..., maxtasksperchild=..., childconcurrency=...)"
            )
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """As for a Process, and for what 0.9.1 called in a worker."""
        super().__init_subclass__(**kwargs)
        _legacy.refuse_hooks(cls, _legacy.WORKER_HOOKS)

    def __init__(
        self, options: WorkerOptions, link: Link, end: ChildEnd, index: int, place: int
    ) -> None:
        self.index = index  # SUPERVISOR-4
        self.place = place  # SUPERVISOR-5
        self.link = link
        self.credit = Credit(options.concurrency, options.lifetime, options.threads)
        self.chunks: dict[int, Chunk] = {}  # in the order they were sent
        self.taken: dict[tuple[int, int], int] = {}  # by chunk and offset (RECOVERY-2)
        self.functions: set[int] = set()  # ids of those that were sent to the worker
        self.deadlines: Deadlines | None = None  # POOLWORKER-4
        self._grace = options.grace
        self.context: bytes | None = None  # the last that was sent (CAPTURE-2)
        self.ready = False
        self.takes_tasks = True  # before it is ready, too; the supervisor sets it (QUEUE-10)
        self.ready_since = 0.0  # in the loop's time
        self.link_intact = True
        self.leaving = False
        self._pid: int | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._end_by: float | None = None  # when it is killed at the latest, in the loop's time
        self._settled = False
        self._parent_fd: Descriptor | None = None
        self._shared = options.shared
        self._starts_by_user_code = not (options.initializer is None and options.lifespan is None)
        self.aio_process = self._make_process(options, end)

    def _make_process(self, options: WorkerOptions, end: ChildEnd) -> Any:
        """What the worker runs in, not started yet (POOLWORKER-5); it opens `end`.

        Used are: start, terminate, kill, close; pid, name, daemon.
        """
        self._parent_fd = _own_pidfd()
        parent_fd = None if self._parent_fd is None else _handover(self._parent_fd.fileno())
        spec = self._spec_of(options, end, parent_fd)
        if options.context.get_start_method() == "fork":
            main.load_engine()
        process = process_class(options.context)(target=main.main, args=(spec,))
        report_exit(process)
        return process

    def _make_exit(self) -> Any:
        """The exit of what was started (POOLWORKER-5).

        Used are: check, watch, wait, block; ended, exitcode.
        """
        return Exit(self.aio_process)

    def _spec_of(
        self, options: WorkerOptions, end: ChildEnd, parent_fd: Handover | None
    ) -> main.WorkerSpec:
        return main.WorkerSpec(
            end=end,
            concurrency=options.concurrency,
            threads=options.threads,
            parent_pid=os.getpid(),
            parent_fd=parent_fd,
            loop=options.loop,
            initializer=options.initializer,
            initargs=options.initargs,
            exception_handler=options.exception_handler,
            grace=options.grace,
            serializer=options.choice.for_worker,
            choice=options.choice,
            logs=_log_options(options.logs),
            index=self.index,
            lifespan=options.lifespan,
            contextvars=options.contextvars,
            memory_limit=options.memory_limit,
            pickled_by=pickle_for(self.link, options.shared),
        )

    def launch(
        self,
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[PoolWorker], None],
        on_blocked: Callable[[], object],
    ) -> None:
        """Start the process. OSError if the system refuses, a pickling error for bad `initargs`."""
        self._loop = loop
        try:
            self._start_process()
            self._launched = True
            self._pid = self.aio_process.pid
            if live and getattr(self.aio_process, "_start_method", "") == "fork":
                note_fork(self.link, self._shared, holds=self._starts_by_user_code)
            self.blocked = BlockedWatch(loop, self.link, self._holds_several, on_blocked)
            self._launched_at = loop.time()
            self._exit = self._make_exit()
            self._watch = self._exit.watch(loop, lambda: self._on_exit(on_exit))
        except BaseException:  # no thread or descriptor is left, or a Ctrl-C: no one would know
            self.undo_launch()
            raise

    def _start_process(self) -> None:
        try:
            self._launch()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise at_its_caller(error) from error.__cause__
        finally:
            if self._parent_fd is not None:
                self._parent_fd.close()

    def undo_launch(self) -> None:
        """End the process, if there is one, and report no exit (POOLWORKER-6)."""
        if self._parent_fd is not None:
            self._parent_fd.close()
        if self._settled or not (self._launched or self.aio_process.pid):
            return
        self._pid = self.aio_process.pid
        if self._exit is None:
            self._exit = self._make_exit()
        self.kill()
        self._exit_of_process().block()
        self._settle()

    def watch(self) -> None:
        """It was sent tasks, or has reported: notice if one blocks it (BLOCKED-1, BLOCKED-2)."""
        blocked = self.blocked
        assert blocked is not None
        if self.credit.in_flight > 1:
            if not blocked.is_armed:
                blocked.arm()
        elif blocked.waits_longer:
            blocked.stop()

    def _holds_several(self) -> bool:
        return self.credit.in_flight > 1

    def limit(self, seconds: float) -> None:
        """Enforce the time limit of tasks that were sent just now (POOLWORKER-4)."""
        if self.deadlines is None:
            from .deadlines import Deadlines  # here: few pools need it

            self.deadlines = Deadlines(self, self._loop, self._grace)
        self.deadlines.sent(seconds)

    def leave(self) -> None:
        """Ask the worker to finish what it has, and go."""
        if not self.leaving:
            self.leaving = True
            self.link.send(Kind.CLOSE)
            self.link.flush()

    def end(self, *, idle: bool) -> None:
        """Let the worker cancel what it runs and go; kill it after the grace period.

        On Windows, where no signal asks a process to end, one that is not `idle` is killed at once.
        """
        if self._end_by is None:
            self._end_by = self._loop.time() + self._grace + KILL_MARGIN
        if self._kill_timer is None and self.is_alive():
            if sys.platform == "win32" and self.ready and idle:
                self.leave()
            else:
                self.terminate()
            self.leaving = True
            self._kill_timer = self._loop.call_at(self._end_by, self.kill)

    def leave_lifespan(self) -> None:
        """The worker runs no more items and leaves its lifespan: limit the time that this takes.

        It is not replaced before its exit, because a lifespan may hold what only one worker of an
        index can hold, such as a port.
        """
        self._leaves_lifespan = True
        self._limit_exit()

    def begin_exit(self, held_by: str, on_linger: Callable[[], object]) -> None:
        """The worker runs no more items: limit the time until its exit (POOLWORKER-3).

        `held_by` names what the exit waits for. Called again, it changes only that.
        """
        self.exiting = True
        self._held_by = held_by
        self._leaves_lifespan = False
        if self._linger_timer is None or self._in_calls:
            self._in_calls = False
            self._limit_lingering(on_linger)

    def wait_for_calls(self, held_by: str, on_linger: Callable[[], object]) -> None:
        """The worker is to exit, and runs only calls that were given up (POOLWORKER-3).

        `held_by` names their threads and tasks.
        """
        self._held_by = held_by
        self._in_calls = True
        self._limit_lingering(on_linger)

    def _limit_lingering(self, on_linger: Callable[[], object]) -> None:
        if self._linger_timer is None and not self._settled:
            self._linger_timer = self._loop.call_later(MOMENT, on_linger)
        self._limit_exit()

    def _limit_exit(self) -> None:
        if self._settled:
            return
        self.leaving = True
        kill_at = self._loop.time() + self._grace
        if self._end_by is not None:
            kill_at = min(kill_at, self._end_by)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = self._loop.call_at(kill_at, self._kill_lingering)

    def _kill_lingering(self) -> None:
        if not self.is_alive():  # just now; its exit will be noticed
            return
        log.warning(
            "worker %s has finished its work, and was killed because it did not exit within "
            "%g s: %s",
            self.pid,
            self._grace,
            self._describe_holder(),
        )
        self.kill()

    def _describe_holder(self) -> str:
        """What has kept the worker from its exit, and the way out."""
        if self._leaves_lifespan:
            return "its lifespan did not end"
        if self._in_calls:
            return f"{self._held_by or 'its tasks'} did not return from calls that were given up"
        return (
            f"{self._held_by or 'an exit hook or finalizer'} did not end. End threads and child "
            "processes, or make them daemons, before their worker ends"
        )

    def mark_corrupt(self, error: BaseException) -> None:
        """The link holds what no worker of ours can have written: kill, and trust no more of it."""
        self.link_intact = False
        log.error("worker %s: its link is broken, it is killed", self.pid, exc_info=error)
        self._kill_broken()

    def mark_journal_corrupt(self, error: Exception) -> None:
        """The journal is not valid, while the worker lives: kill it. Its link still counts."""
        log.error("worker %s: its journal is broken, it is killed", self.pid, exc_info=error)
        self._kill_broken()

    def _kill_broken(self) -> None:
        self.leaving = True  # what it would be sent now, it would not get
        self.kill()

    def kill_now(self) -> None:
        """End the process without a loop, and give everything back."""
        self.kill()
        self._exit_of_process().block()
        self._settle()
        self.link.close()

    @property
    def uptime(self) -> float:
        """Seconds since the launch."""
        return self._loop.time() - self._launched_at

    @property
    def cause(self) -> str:
        """Why the worker has ended, or takes no more tasks, as PoolStats.restarts says it."""
        if not self.ready:
            return "start"
        if self.exitcode or not (self.retired or self.credit.spent):
            return "died"
        return self.retired or "maxtasksperchild"

    @property
    def pid(self) -> int | None:
        """The process id, also after the process was reaped."""
        return self._pid

    def _is_started(self) -> bool:
        return self._pid is not None

    def _on_exit(self, on_exit: Callable[[PoolWorker], None]) -> None:  # POOLWORKER-1
        if self._settled:  # by `kill_now`, or its launch was undone
            return
        try:
            self._settle()
        except BaseException:  # POOLWORKER-6
            self._settle()
            raise
        finally:
            on_exit(self)

    def _settle(self) -> None:
        """The process is gone: reap it and close what it cost (POOLWORKER-2)."""
        self._settled = True
        for timer in (self._kill_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        if self.deadlines is not None:
            self.deadlines.stop()
        if self.blocked is not None:
            self.blocked.stop()
        if self._watch is not None:
            self._watch.close()
        self.aio_process.close()


def _log_options(logs: bool | int | str | None) -> Any:
    """What a worker that starts now needs to send its log records; None if it sends none."""
    if logs is None or logs is False:
        return None
    from .logs import options_of, threshold_of

    return tuple(options_of(threshold_of(logs)))


def _own_pidfd() -> Descriptor | None:
    """The pidfd that a worker watches for the end of this process, where the system has one."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox that refuses it
            return Descriptor(os.pidfd_open(os.getpid()))
    return None


def _handover(fd: int) -> Handover:
    """`fd` for the worker, of which a forked one drops the inherited original."""
    return Handover([fd], lambda: os.close(fd))
