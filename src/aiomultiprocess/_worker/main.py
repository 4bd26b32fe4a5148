"""A worker's start: its start-up message, and the function that its process runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import current_process
from typing import Any

from .. import _accel
from .._processes import copies, loops
from .._processes.descriptors import Handover
from .._processes.start_arguments import StartArguments
from .._processes.startup import accept_interrupts, collect_garbage
from .._transport.link import ChildEnd
from .._wire import exceptions
from . import leaving, watchdog
from .engine import GRACE as GRACE  # the parent's worker.py reads it here
from .engine import WorkerEngine, exit_by_signal, watch_parent

KEPT_MEMORY = 32 << 20  # freed bytes that a worker may keep for its next items


class WorkerSpec:
    """The start-up message: all that a worker is told by its parent.

    What is the user's in it is pickled as `StartArguments`, and there after `load`.
    """

    def __init__(
        self,
        *,
        end: ChildEnd,
        concurrency: int,
        parent_pid: int,
        parent_fd: Handover | None,  # the parent's own pidfd, None where there is none
        loop: loops.LoopSpec,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        exception_handler: Callable[[BaseException], object] | None,
    ) -> None:
        self.end = end
        self.concurrency = concurrency
        self.parent_pid = parent_pid
        self.parent_fd = parent_fd
        self.loop = loop
        self.initializer = initializer
        self.initargs = initargs
        self.exception_handler = exception_handler

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        names = ("loop", "initializer", "initargs", "exception_handler")
        parts = {name: state.pop(name) for name in names}
        parts["loop_initializer"] = parts.pop("loop")
        state["arguments"] = StartArguments("a worker", parts)
        return state

    def load(self) -> bytes | None:
        """Take what is the user's; or say what the parent is told of why that cannot be."""
        received = vars(self).pop("arguments", None)
        if received is None:  # this process was forked
            return None
        try:
            vars(self).update(received.load())
            self.loop = vars(self).pop("loop_initializer")
        except Exception as error:  # noqa: BLE001 - of importing what is the user's: told
            self.loop = self.initializer = self.exception_handler = None
            self.initargs = ()
            return exceptions.dump_exception(error, _accel.dumps)
        return None


def main(spec: WorkerSpec) -> None:
    """Run one worker until its parent closes it, terminates it, or is gone."""
    # Ctrl-C reaches the whole process group; it is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    failure = spec.load()
    accept_interrupts()  # or they would stay blocked in programs that a task starts
    collect_garbage()  # what is here by now stays, and is not to be looked at again
    keep_freed_memory()
    parent_fd = None if spec.parent_fd is None else spec.parent_fd.take()[0]
    native = _accel.native_watchdog()
    watch_in = watchdog.start(parent_fd, spec.parent_pid, GRACE, native=native)
    link = spec.end.open()
    copies.protect(link, partial(watch_parent, parent_fd))
    loop, no_loop = make_loop(spec.loop)
    failure = failure or no_loop
    if copies.is_copy():
        copies.end()
    if watch_in is not None:
        watch_in(loop)
    engine = WorkerEngine(loop, link, spec.concurrency, spec.exception_handler)
    copies.protect(engine, partial(watch_parent, parent_fd), loop)
    try:
        engine.run(spec.initializer, spec.initargs, failure)
    finally:
        engine.close()
        leaving.ignore_sigterm(loop)
        threads = engine.announce_exit()
        loops.close_loop(loop)  # may end items, which are still answered
        if threads:  # the loop's executor has ended meanwhile
            engine.announce_exit()
        engine.close_link()
        if copies.is_copy():
            copies.end()
    if engine.cut_off:
        exit_by_signal(signal.SIGTERM)
    if engine.broken:
        sys.exit(1)
    if engine.terminated:
        # as a forked process does: hooks run, and the interpreter is left as it is. To take it
        # apart costs milliseconds, and tens of them with large libraries
        current_process().ends_at_once = True  # type: ignore[attr-defined]


def make_loop(spec: loops.LoopSpec) -> tuple[asyncio.AbstractEventLoop, bytes | None]:
    """The worker's event loop; or another, and what the parent is told of why it cannot be had."""
    try:
        return loops.new_loop(loops.for_worker(spec)), None
    except BaseException as error:  # noqa: BLE001 - a loop_initializer of the user's raised it
        failure = exceptions.dump_exception(error, _accel.dumps)
        return loops.new_loop(loops.for_worker(None)), failure


def keep_freed_memory() -> None:
    """Let memory of a large item serve the next one.

    glibc gives large blocks back to the kernel at once, and a fresh one costs a page fault for each
    4 KiB, until it has seen that a program frees such blocks: then it keeps up to twice their size.
    This shows it one, which takes no memory, as nothing touches it.
    """
    bytes(KEPT_MEMORY // 2)
