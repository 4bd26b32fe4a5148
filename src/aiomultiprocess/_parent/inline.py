"""Workers without a process: `Pool(backend="inline")`, for breakpoints and debuggers.

An `InlineWorker` has in place of a process an `InlineProcess`, which runs the worker's engine
(_worker/inline.py) in the pool's own loop. All that the parent does stays as it is: queue, credit,
jobs, retries and supervisor see a worker that gets ready, reports, and exits.

SIMULATED-1  What a process does by itself after its launch, its start, its end, the handling of a
    signal, happens in a later callback of the loop, never within the call that asks for it.
SIMULATED-2  Start arguments travel as they would to a process: pickled, unless processes would be
    forked.
SIMULATED-3  A task that is over its time limit is cancelled, and its worker is never killed for it.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from multiprocessing import context, reduction
from typing import TYPE_CHECKING, Any, Final

from .._transport.link import ChildEnd
from .._worker import inline, main
from .deadlines import Deadlines
from .worker import PoolWorker

if TYPE_CHECKING:
    from .worker import WorkerOptions

KILLED: Final = -int(getattr(signal, "SIGKILL", signal.SIGTERM))  # exit codes
TERMINATED: Final = -int(signal.SIGTERM)


class InlineWorker(PoolWorker):
    """A worker whose process is simulated in this one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.credit.alone_times = 1  # a longer burst would hold the caller's own loop

    def _make_process(self, options: WorkerOptions, end: ChildEnd) -> InlineProcess:
        spec = self._spec_of(options, end, None)
        return InlineProcess(spec, pickles=options.context.get_start_method() != "fork")

    def _make_exit(self) -> Any:
        return self.aio_process

    def limit(self, seconds: float) -> None:
        if self.deadlines is None:
            self.deadlines = Deadlines(self, self._loop, math.inf)  # SIMULATED-3
        self.deadlines.sent(seconds)


class InlineProcess:
    """Stands for the process of a worker, and for its `Exit`."""

    def __init__(self, spec: main.WorkerSpec, *, pickles: bool) -> None:
        self.name = f"{InlineWorker.__name__}-{spec.index}"
        self.daemon = True
        self.pid: int | None = None
        self.ended = False
        self.exitcode: int | None = None
        self._spec: main.WorkerSpec | None = spec
        self._pickles = pickles
        self._engine: inline.InlineWorkerEngine | None = None
        self._context = Context()
        self._watches: set[InlineWatch] = set()

    # -- as a process --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run the worker in a moment; raises what pickling `initargs` and so on raises."""
        assert self._spec is not None
        spec = as_received(self._spec) if self._pickles else self._spec
        self._spec = None
        self._loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._loop.call_soon(self._begin, spec, context=self._context)

    def _begin(self, spec: main.WorkerSpec) -> None:
        if self.ended:  # it was killed before
            return
        failure = spec.load()
        self._engine = inline.begin(spec, self._loop, self._end)
        self._engine.begin(spec, failure)

    def terminate(self) -> None:
        """As by SIGTERM: cancel what runs, and exit after it, or after the grace period."""
        if self._engine is None:
            self._end(TERMINATED)
        else:  # SIMULATED-1
            self._loop.call_soon(self._engine.terminate, context=self._context.copy())

    def kill(self) -> None:
        """As by SIGKILL, but for the tasks that run: they are cancelled."""
        self._end(KILLED)

    def close(self) -> None:
        """Release what a process object has: nothing."""

    def _end(self, exitcode: int) -> None:
        if not self.ended:
            self.ended, self.exitcode = True, exitcode
            if self._engine is not None:
                self._engine.halt()
                self._engine = None
            for watch in self._watches:
                watch.fire()

    # -- as its exit ---------------------------------------------------------------------------

    def check(self) -> bool:
        """Whether it has ended."""
        return self.ended

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> InlineWatch:
        """Call `callback()` once in `loop` after the end."""
        watch = InlineWatch(loop, callback, self._watches.discard)
        self._watches.add(watch)
        if self.ended:
            watch.fire()
        return watch

    async def wait(self) -> None:
        """Wait until it has ended."""
        if self.ended:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        watch = self.watch(loop, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            watch.close()

    def block(self) -> None:
        """Block until it has ended; it was killed, so it has."""
        assert self.ended


class InlineWatch:
    """Waits for the end of one `InlineProcess`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[], object],
        on_close: Callable[[InlineWatch], object],
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._on_close = on_close
        self._context = copy_context()
        self._soon: asyncio.Handle | None = None

    def fire(self) -> None:
        """Call back soon (SIMULATED-1)."""
        if self._soon is None and not self._loop.is_closed():
            self._soon = self._loop.call_soon(self._callback, context=self._context)

    def close(self) -> None:
        """Do not call back any more. Idempotent."""
        self._on_close(self)
        if self._soon is not None:
            self._soon.cancel()


class InlinePopen:
    """What pickling start arguments asks of the process that starts: to pass on a descriptor."""

    def duplicate_for_child(self, fd: int) -> int:
        duplicate: Any = vars(reduction)["duplicate"] if sys.platform == "win32" else os.dup
        return duplicate(fd)  # type: ignore[no-any-return]

    class DupFd:
        """A descriptor on its way."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def detach(self) -> int:
            return self._fd


def as_received(spec: main.WorkerSpec) -> main.WorkerSpec:
    """The start-up message as a worker gets it: what is the user's was pickled (SIMULATED-2)."""
    spec.loop = None  # the loop of this process is used
    state = spec.__getstate__()
    popen: Any = InlinePopen()
    context.set_spawning_popen(popen)
    try:
        state["arguments"] = pickle.loads(pickle.dumps(state["arguments"]))
    finally:
        context.set_spawning_popen(None)
    received = main.WorkerSpec.__new__(main.WorkerSpec)
    vars(received).update(state)
    return received
