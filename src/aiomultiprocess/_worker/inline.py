"""A worker without a process: its engine runs in the process and loop of the pool that uses it.

    begin() -> initializer -> lifespan entered -> READY -> items -> on_exit(exitcode)

`_parent/inline.py` calls `begin` in a callback of the loop, in a context of the worker's own. The
engine is that of a worker process. What would end a process calls `on_exit` here, with the exit
code that the process would have, and `halt` leaves nothing of the worker but code of the user's.

INLINE-1  All callbacks of the engine run in the worker's context, or in copies of it. It is empty
    at first, as in a process that was spawned: so items see no context variables of the caller,
    `current_worker` finds the worker that calls it, and nothing that they set is left to others.
INLINE-2  Items run in callbacks of the loop, never within a task of the program, and each is a task
    of its own: to the program they are what other tasks of its loop are.
INLINE-3  Code of this process cannot be killed. `halt` cancels the items that run, and drops the
    results and the errors with which they end.
INLINE-4  A KeyboardInterrupt of an item is its outcome, as in a process; it then also passes
    through the loop, as one of any task does, because it means this process. So does one that
    strikes other code of the user's, such as the initializer, or the pickling of a result.
INLINE-5  A KeyboardInterrupt or SystemExit that strikes the engine passes through the loop at once:
    signal handlers of the program raise them. As an item may have lost its answer, the worker ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from .. import _accel
from .._pure import tasks
from .._wire import exceptions, serializing, sharing
from .current import inline_worker
from .engine import WorkerEngine
from .lifespan import Lifespan
from .main import ThisWorker, WorkerSpec, make_engine
from .received_chunk import ReceivedChunk

log = logging.getLogger(__name__)


class InlineWorkerEngine(WorkerEngine):
    """A worker engine in the loop of its parent."""

    on_exit: Callable[[int], object]
    _context: Context
    ended = False

    def begin(self, spec: WorkerSpec, failure: bytes | None) -> None:
        """Run the initializer, then serve items; `failure` as in `run`, which does not return."""
        self._context = copy_context()
        if failure is None:
            failure = self._initialize(spec.initializer, spec.initargs, spec.lifespan)
        if self.ended:  # by the initializer
            return
        if failure is None and self._lifespan is not None:
            self._lifespan.settled.add_done_callback(lambda _: self._on_lifespan_settled())
        else:
            self._serve(failure)

    def terminate(self) -> None:
        """What SIGTERM does to a worker process; call it in the worker's context."""
        if not self.ended:
            self._terminate()

    def halt(self) -> None:
        """The worker has ended, of itself or by a kill (INLINE-3)."""
        self.ended = self._refuses = self._closing = True
        self._chunks.clear()
        self._link.close()
        for timer in self._timers:
            timer.cancel()
        if self._lifespan is not None and not self._loop.is_closed():
            self._lifespan.kill()
        if not self._in_burst:
            self._release()

    def _release(self) -> None:
        """Cancel what runs, and release what only running items need."""
        for task in self._running:
            if self._loop.is_closed():  # it cannot end any more, which is no error of the program
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            else:
                task.cancel()
        self.close()
        self._results.close()
        self._functions.clear()
        if self._threads is not None:
            self._threads.abandon()

    # -- what a process does in another way ----------------------------------------------------

    def _handle_sigterm(self) -> None:
        """No signal is for this worker: see `terminate`."""

    def _await_lifespan(self, lifespan: Lifespan) -> None:
        """The loop runs already: `begin` goes on when the lifespan is entered."""

    def _on_lifespan_settled(self) -> None:
        if self._lifespan is None:
            return
        failure = None
        try:
            self._lifespan.check()
        except BaseException as error:  # noqa: BLE001 - as in `_initialize`
            self._pass_on(error)
            failure = exceptions.dump_exception(error, _accel.dumps)
        if not self.ended:
            self._serve(failure)

    def _on_lifespan_left(self) -> None:
        assert self._lifespan is not None
        self._pass_on(self._lifespan.error_at_end)
        super()._on_lifespan_left()

    def _stop(self) -> None:
        self.on_exit(-signal.SIGTERM if self.cut_off else int(self.broken))

    def _exit_by_sigterm(self) -> None:
        running = sum(place is not None for place in self._running.values())
        log.warning(
            "%s of an inline pool did not end within %g s after it was terminated: the pool ends "
            "without, because code of this process cannot be killed",
            f"{running} tasks" if running else "the lifespan",
            self._grace,
        )
        self.on_exit(-signal.SIGTERM)

    def _exit_after(self, what: str, error: BaseException) -> None:
        if not self.ended:  # else this error has ended it, on its way
            log.critical(what, exc_info=error)
            self.on_exit(70)
        if issubclass(type(error), (KeyboardInterrupt, SystemExit)):  # INLINE-5
            try:
                raise error
            finally:
                del error  # its traceback and this frame would keep each other alive

    # -- turns and tasks -----------------------------------------------------------------------

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled and not self.ended:
            self._turn_scheduled = True
            # a thread of the worker calls this, too (INLINE-1)
            self._loop.call_soon(self._scheduled_turn, context=self._context.copy())

    def _turn(self) -> None:
        if self.ended:
            return
        super()._turn()
        if self.ended and not self._in_burst:  # an item has killed its worker
            self._release()

    def _fail(
        self, chunk: ReceivedChunk, offset: int, func: Callable[..., Any], error: BaseException
    ) -> None:
        super()._fail(chunk, offset, func, error)
        self._pass_on(error)

    def _end_task(self, task: asyncio.Task[Any], chunk_id: int, offset: int) -> None:
        super()._end_task(task, chunk_id, offset)
        self._pass_on(tasks.outcome(task)[1])

    def _pass_on(self, error: BaseException | None) -> None:
        if self._results.interrupted or issubclass(type(error), KeyboardInterrupt):  # INLINE-4
            self._results.interrupted = False
            if not self.ended:
                self._results.publish()
            self._loop.call_soon(_interrupt)

    def _on_value(self, value: object) -> None:
        if not self.ended:
            super()._on_value(value)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        if not self.ended:
            super()._on_task_done(task)
            return
        self._running.pop(task, None)
        tasks.outcome(task)  # or asyncio would report that nothing has asked for it


def begin(
    spec: WorkerSpec, loop: asyncio.AbstractEventLoop, on_exit: Callable[[int], object]
) -> InlineWorkerEngine:
    """Make the engine of a worker in the running loop; `begin` it in the same context.

    `on_exit` gets the exit code when the worker has ended.
    """
    engine = make_engine(InlineWorkerEngine, spec, loop, spec.end.open())
    engine.on_exit = on_exit
    serializing.chosen_inline.set(spec.serializer)
    sharing.in_inline_worker.set(True)
    inline_worker.set(ThisWorker(spec.index, engine))
    return engine


def _interrupt() -> None:
    raise KeyboardInterrupt
