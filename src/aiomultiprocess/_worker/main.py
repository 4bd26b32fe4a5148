"""The entry point of a worker: its start-up message, and what happens around the engine.

The parent makes a `WorkerSpec`, and starts a process that calls `main` with it (_parent/worker.py).
`main` prepares the process, runs the engine (engine.py) until the parent closes or terminates it,
and then exits as multiprocessing expects.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _accel
from .._processes import copies, loops
from .._processes.descriptors import Handover
from .._processes.freed_memory import WORKER_KEEPS, keep_freed_memory
from .._processes.start_arguments import StartArguments
from .._processes.startup import accept_interrupts, collect_garbage, ignore_interrupts
from .._transport.link import ChildEnd, Link
from .._wire import exceptions
from . import leaving, watchdog

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import Protocol

    from .._processes.context_variables import NamedVariable
    from .engine import WorkerEngine

    class StartChoice(Protocol):
        """How the parent pickles what pickle refuses (_parent/serializers.py)."""

        def seal(self, value: Any, error: BaseException) -> Any:
            """A value that was refused, as pickle takes it, or None."""

        def for_start(self, value: Any) -> Any:
            """A start argument as it is pickled."""


class WorkerSpec:
    """The start-up message: all that the parent passes to a worker.

    The user's objects in it travel as `StartArguments`; `load` unpickles them in the worker.
    """

    def __init__(
        self,
        *,
        end: ChildEnd,
        concurrency: int,
        threads: int,
        parent_pid: int,
        parent_fd: Handover | None,  # the parent's own pidfd, None where there is none
        loop: loops.LoopSpec,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        exception_handler: Callable[[BaseException], object] | None,
        grace: float,  # seconds for the `finally` blocks of cancelled items, and for an exit
        index: int,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None,
        contextvars: tuple[NamedVariable, ...],
        memory_limit: int,  # in bytes, 0: none
        serializer: Any = None,  # what takes that which pickle refuses; None: the default
        choice: StartChoice | None = None,  # the same in the parent
        pickled_by: Callable[[Callable[[], bytes]], bytes] | None = None,  # in the parent
        logs: tuple[int, dict[str, int], int] | None = None,  # as LogSender takes it
    ) -> None:
        self.serializer = serializer
        self._choice = choice
        self._pickled_by = pickled_by
        self.logs = logs
        self.end = end
        self.concurrency = concurrency
        self.threads = threads
        self.parent_pid = parent_pid
        self.parent_fd = parent_fd
        self.loop = loop
        self.initializer = initializer
        self.initargs = initargs
        self.exception_handler = exception_handler
        self.grace = grace
        self.index = index
        self.lifespan = lifespan
        self.contextvars = contextvars
        self.memory_limit = memory_limit

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        choice, pickled_by = state.pop("_choice"), state.pop("_pickled_by")
        names = ["loop", "initializer", "initargs", "exception_handler", "lifespan", "serializer"]
        if self.contextvars:
            names.append("contextvars")
        parts = {name: state.pop(name) for name in names}
        if choice is not None:
            parts = {name: choice.for_start(value) for name, value in parts.items()}
        parts["loop_initializer"] = parts.pop("loop")
        state["arguments"] = StartArguments("a worker", parts, choice and choice.seal, pickled_by)
        return state

    def load(self) -> bytes | None:
        """Unpickle the user's objects; returns the error, as the parent gets it, or None."""
        received = vars(self).pop("arguments", None)
        if received is None:  # this process was forked
            return None
        try:
            vars(self).update(received.load())
            self.loop = vars(self).pop("loop_initializer")
        except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
            self.loop = self.initializer = self.exception_handler = self.lifespan = None
            self.serializer = None
            self.initargs = self.contextvars = ()
            return exceptions.dump_exception(error, _accel.dumps)
        return None


class ThisWorker:
    """What `current_worker` needs (current.py)."""

    def __init__(self, index: int, engine: WorkerEngine) -> None:
        self.index = index
        self.pid = os.getpid()
        self.engine = engine


#: None in a process that is no worker.
this_worker: ThisWorker | None = None


def load_engine() -> type[WorkerEngine]:
    """The class of the engine; a parent imports it only if it forks, so that its copies have it."""
    from .engine import WorkerEngine

    return WorkerEngine


def main(spec: WorkerSpec) -> None:
    """Run one worker until its parent closes it, terminates it, or dies."""
    load_engine()
    ignore_interrupts()
    # before `load`, which runs code of the user's for as long as that likes
    parent_fd = None if spec.parent_fd is None else spec.parent_fd.take()[0]
    native = _accel.native_watchdog()
    watch_in = watchdog.start(parent_fd, spec.parent_pid, spec.grace, native=native)
    watch_again = partial(watch_parent, parent_fd, spec.grace)
    failure = spec.load()
    use_serializer(spec.serializer)
    _accel.contain_interrupts()
    accept_interrupts()  # else they would stay blocked in programs that an item starts
    collect_garbage()  # and exempt what is here now, which stays, from later collections
    keep_freed_memory(WORKER_KEEPS)
    link = spec.end.open()
    copies.protect(link, watch_again)
    loop, no_loop = make_loop(spec.loop)
    failure = failure or no_loop
    if copies.is_copy():
        copies.end()
    if watch_in is not None:
        watch_in(loop)
    engine = make_engine(load_engine(), spec, loop, link)
    finish_logs = send_logs(spec, loop, link, engine)
    copies.protect(engine, watch_again, loop)
    set_this_worker(spec.index, engine)
    try:
        engine.run(spec.initializer, spec.initargs, failure, spec.lifespan)
    finally:
        engine.close()
        leaving.ignore_sigterm(loop)
        threads = leaving.announce_exit(link)
        # may end items, if the loop failed: what they return is still sent
        loops.close_loop(loop, finish_logs)
        if threads:  # some were of the loop's executor, which has ended
            leaving.announce_exit(link)
        if finish_logs is not None:  # again, as the loop may have been closed before
            finish_logs()
        engine.close_link()
        if copies.is_copy():
            copies.end()
    if engine.cut_off:
        leaving.exit_by_signal(signal.SIGTERM)
    if engine.broken:
        sys.exit(1)
    if engine.terminated:
        # As a forked process does: run hooks, and skip the interpreter's finalization, which takes
        # milliseconds, and tens of them with large libraries.
        current_process().ends_at_once = True  # type: ignore[attr-defined]


def use_serializer(serializer: Any) -> None:
    """Let this serializer take what pickle refuses; None: the default."""
    if serializer is not None:
        from .._wire import serializing  # here: few pools need it (SERIAL-1)

        serializing.chosen = serializer


def features_of(spec: WorkerSpec) -> tuple[list[type[WorkerEngine]], dict[str, Any]]:
    """The base classes of an engine, and the attributes that these need."""
    features: list[type[WorkerEngine]] = []
    attributes: dict[str, Any] = {}
    if spec.memory_limit:
        from .memory import LimitedWorkerEngine  # here, as below: other workers do not need it

        features.append(LimitedWorkerEngine)
        attributes["memory_limit"] = spec.memory_limit
    if spec.contextvars:
        from .context_variables import ContextWorkerEngine

        features.append(ContextWorkerEngine)
        attributes["variables"] = tuple(named.variable for named in spec.contextvars)
    return features, attributes


EngineT = TypeVar("EngineT", bound="WorkerEngine")


def make_engine(
    base: type[EngineT], spec: WorkerSpec, loop: asyncio.AbstractEventLoop, link: Link
) -> EngineT:
    """An engine of this class with the features that the pool uses."""
    features, attributes = features_of(spec)
    kind: Any = type("FullWorkerEngine", (*features, base), attributes) if features else base
    engine: EngineT = kind(
        loop, link, spec.concurrency, spec.exception_handler, spec.grace, spec.threads
    )
    return engine


def set_this_worker(index: int, engine: WorkerEngine) -> None:
    """Let code of this process find its worker, from the initializer on."""
    global this_worker
    this_worker = ThisWorker(index, engine)


def send_logs(
    spec: WorkerSpec, loop: asyncio.AbstractEventLoop, link: Link, engine: WorkerEngine
) -> Callable[[], object] | None:
    """Send log records to the parent, if it wants them; call what this returns at the end.

    It runs the loop, so it is called before that is closed.
    """
    if spec.logs is None:
        return None
    from .logs import LogSender  # here: few pools need it

    level, levels, disabled = spec.logs
    sender = LogSender(loop, link, spec.grace, level)
    sender.install(levels, disabled)
    sender.attach(engine)
    return sender.finish


def watch_parent(parent_fd: int | None, grace: float) -> None:
    """In a copy of this worker: end with the parent, as the worker does (copies.py, COPY-3)."""
    watchdog.start(parent_fd, os.getppid(), grace, native=_accel.native_watchdog())


def make_loop(spec: loops.LoopSpec) -> tuple[asyncio.AbstractEventLoop, bytes | None]:
    """The worker's event loop, and None; or, if it fails, a default loop and the error to send."""
    try:
        return loops.new_loop(loops.for_worker(spec)), None
    except BaseException as error:  # noqa: BLE001 - a loop_initializer of the user's raised it
        failure = exceptions.dump_exception(error, _accel.dumps)
        return loops.new_loop(loops.for_worker(None)), failure
