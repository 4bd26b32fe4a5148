"""The worker engine: what runs in each process of a pool.

    chunk arrives -> items wait -> item is started -> finished at once ---------> result
                                                  \\-> suspended: a Task -> done -/

A worker is a set of callbacks on its own event loop, not a task on it, so that
`asyncio.all_tasks()` shows a user nothing but the items.

WORKER-1  Items are started in the order in which they arrived, over all chunks; the number of the last
    one started is marked before its function is called. The parent can therefore tell, whatever
    happens, which items may have had effects.
WORKER-2  At most `concurrency` items run at once.
WORKER-3  Every item that arrived is answered by one RESULTS or ERROR frame, except those that the
    process takes with it when it dies.
WORKER-4  Items that finish at once are run in bursts, as long as the parent says, and no longer than
    `BURST_NS` while others are suspended: their timers and sockets are served in between. Results
    leave in one batch for each turn of the loop.
WORKER-5  Nothing is started while results cannot leave (a congested link): memory stays bounded.
WORKER-6  What has finished outlives the process: an answer is in the journal (journal.py), or it was
    published, before code of another item is run. An answer that fits neither, for lack of room in
    a congested link, waits in this process; and an exception of an item that was suspended is
    an answer from the callback of its task on.

WORKER-9  A worker that runs no item when it is closed or terminated exits as a process of
    multiprocessing does: `atexit` hooks run under spawn, under fork and forkserver where CPython
    runs them there, and finalizers of `multiprocessing.util` run everywhere. One that is cut off,
    by a SIGTERM while items run, ends by that signal once their `finally` blocks have run.
    Whatever holds the exit has `GRACE` seconds: LEAVING tells the parent when they begin, and names
    the threads that the exit will wait for.

What becomes of items is kept and sent by results.py (RESULTS-1, RESULTS-2).
This module is the first that a fresh worker imports: it must stay light.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .. import _accel
from .._processes import copies
from .._pure import tasks
from .._transport.link import Link
from .._wire import exceptions
from .._wire.exceptions import Stage
from .._wire.frames import MAX_COUNT, CorruptHeaderError, Kind, Mode
from . import leaving, watchdog
from .functions import Stateful, Unloadable, load_function, raise_error
from .results import ResultSender

BURST_NS = 500_000  # nanoseconds (WORKER-4)
CHUNK = int(Kind.CHUNK)  # to compare with an enum's member takes long
MAP = int(Mode.MAP)
MODES = len(Mode)
GRACE = 3.0  # seconds for the `finally` blocks of cancelled items, and for an exit (WORKER-9)

RAISED, SUSPENDED, FULL = _accel.RAISED, _accel.SUSPENDED, _accel.FULL

log = logging.getLogger(__name__)


def watch_parent(parent_fd: int | None) -> None:
    """In a copy of this worker: end with the parent, as the worker does (copies.py, COPY-3)."""
    watchdog.start(parent_fd, os.getppid(), GRACE, native=_accel.native_watchdog())


def exit_by_signal(signum: int) -> None:
    """End as the signal would have ended us, so that the parent sees why."""
    copies.flush_streams()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


Place: TypeAlias = tuple[int, int]  # of an item: its chunk, and its offset there


class ReceivedChunk:
    """Items of one frame, those from `next` on not started yet."""

    __slots__ = ("_failure", "chunk_id", "failures", "func", "items", "mode", "next")

    def __init__(
        self,
        chunk_id: int,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        failures: dict[int, BaseException],
    ) -> None:
        self.chunk_id = chunk_id
        self.mode = mode
        self.func = func
        self.items = items
        self.failures = failures  # items that cannot be run, by offset
        self.next = 0
        self._failure = -1  # of `failures` the first from `next` on, unless that has passed it

    def refuse(self, offset: int, error: BaseException) -> None:
        """One that is not started yet fails instead."""
        self.failures[offset] = error
        if self.next <= offset < self._failure:
            self._failure = offset

    def first_failure(self) -> int:
        """The offset of the next item that cannot be run; the number of items if there is none.

        Looks at each offset once in all, however many items suspend in between.
        """
        if self._failure < self.next:
            rest = range(self.next, len(self.items))
            self._failure = next(filter(self.failures.__contains__, rest), len(self.items))
        return self._failure


class GivenUp(asyncio.CancelledError):
    """The error of an item that is not started, because its caller waits no more."""


def did_not_arrive(chunk: ReceivedChunk, offset: int, error: BaseException) -> bool:
    """Whether an item has failed for want of memory before it could be run."""
    return isinstance(error, MemoryError) and (
        chunk.failures.get(offset) is error
        or (isinstance(chunk.func, Unloadable) and chunk.func.error is error)
    )


def _stage_of(func: Callable[..., Any], error: BaseException) -> Stage | None:
    """Where an error arose that the function of an item did not raise (_worker/functions.py)."""
    if func is raise_error:
        return None if type(error) is GivenUp else Stage.ARGUMENT
    unloadable = isinstance(func, Unloadable) or (isinstance(func, Stateful) and func.loading)
    return Stage.FUNCTION if unloadable else None


class WorkerEngine:
    """Starts the items that arrive, and tells `ResultSender` what becomes of them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        concurrency: int,
        exception_handler: Callable[[BaseException], object] | None,
    ) -> None:
        self.terminated = False
        self.cut_off = False  # terminated while an item ran (WORKER-9)
        self.broken = False
        self._loop = loop
        self._link = link
        self._results = ResultSender(link, exception_handler)
        self._concurrency = concurrency
        self._starter: _accel.Starter | None = None  # made after the initializer has run
        self._functions: dict[int, Callable[..., Any]] = {}
        self._chunks: OrderedDict[int, ReceivedChunk] = (
            OrderedDict()
        )  # those not all started, by id
        self._running: dict[asyncio.Task[Any], Place | None] = {}  # None: it is answered
        self._places: dict[Place, asyncio.Task[Any]] = {}  # the reverse, of those not answered
        self._given_up: set[asyncio.Task[Any]] = set()  # cancelled, as their callers were
        self._burst = BURST_NS
        self._in_burst = False
        self._ended: list[asyncio.Task[Any]] = []  # during a burst (RESULTS-1)
        self._turn_scheduled = False
        self._advertised_free = 0  # free slots that the parent was told of since the last chunk
        self._closing = False
        self._copied = False  # this is a copy of the worker (copies.py)

    # -- life ----------------------------------------------------------------------------------

    def run(
        self,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        failure: bytes | None,
    ) -> None:
        """Initialize, unless there is a `failure` already; then serve till closed or terminated."""
        if failure is None:
            failure = self._initialize(initializer, initargs)
        # only now: an initializer may run the loop, and no item may start before it has ended
        self._link.start(
            self._loop,
            self._on_frame,
            on_room=self._turn,
            on_broken=self._on_broken,
            on_drained=self._turn,
        )
        if failure is None:
            if sys.platform != "win32":  # where terminate() is not a signal
                self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
            self._link.send(Kind.READY)
        else:
            self.broken = self._closing = True
            self._link.send(Kind.BROKEN, payload=[failure])
            self._loop.call_soon(self._turn)
        self._link.flush()
        self._loop.run_forever()

    def _initialize(
        self, initializer: Callable[..., object] | None, initargs: Sequence[Any]
    ) -> bytes | None:
        """Run the initializer; returns what the parent is told if it fails."""
        try:
            if initializer is not None:
                initializer(*initargs)
            # now: items see the context variables that the initializer set
            if self._copied:
                copies.end()
            self._starter = _accel.Starter(self._loop, self._link.counter, self._on_value)
        except BaseException as error:  # noqa: BLE001 - even sys.exit: the parent must hear why
            if self._copied:
                copies.end()
            return exceptions.dump_exception(error, _accel.dumps)
        return None

    def close(self) -> None:
        """Give up what only running items need; what still runs is cancelled with the loop."""
        self._given_up.update(self._running)
        if self._starter is not None:
            self._starter.close()

    def announce_exit(self) -> str:
        """Tell the parent that the exit begins (WORKER-9); returns the threads that may hold it."""
        threads = leaving.threads_left()
        payload = [threads.encode("utf-8", "replace")] if threads else ()
        self._link.send(Kind.LEAVING, payload=payload)
        self._link.flush()
        return threads

    def abandon(self) -> None:
        """In a copy of the worker: give up link, journal and items (copies.py, COPY-1)."""
        self._copied = True
        self._results.close()
        self._link.abandon()
        for task in self._running:
            driver = tasks.driver_of(task)
            if driver is not None:
                driver.coro = copies.Halted(driver.coro)

    def close_link(self) -> None:
        """Give up the link, and first its memory that is used here."""
        self._results.close()
        self._link.close()

    def _terminate(self) -> None:
        """SIGTERM: cancel what runs, let `finally` blocks run for a while, then go."""
        if self.terminated:
            return
        self.terminated = self._closing = True
        running = any(place is not None for place in self._running.values())
        self.cut_off = running or self._in_burst
        self._chunks.clear()
        for task in self._running:
            task.cancel()
        # not by closing the loop, which would wait for an item that ignores its cancellation
        self._loop.call_later(GRACE, exit_by_signal, signal.SIGTERM)
        self._schedule_turn()

    def _on_broken(self, error: BaseException) -> None:
        """The ring is not to be trusted any more: end loudly, the parent fails what we hold."""
        if self._copied:
            copies.end()
        log.critical("the link to the parent process is broken", exc_info=error)
        os._exit(70)

    def _give_up(self, error: BaseException) -> None:
        """An item may have lost its answer: end loudly, or its caller would wait for ever."""
        if self._copied:
            copies.end()
        log.critical("this worker cannot go on", exc_info=error)
        os._exit(70)

    # -- frames --------------------------------------------------------------------------------

    def _on_frame(
        self,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: memoryview,
    ) -> None:
        if kind != CHUNK:
            self._on_notice(kind, flags, chunk_id, offset, function, payload)
            return
        if self.terminated or self.broken:
            return
        if flags >= MODES:
            raise CorruptHeaderError(f"a chunk of mode {flags}")
        items, failures = _accel.decode_items(payload, count)
        func = self._functions[function]
        self._chunks[chunk_id] = ReceivedChunk(chunk_id, flags, func, items, failures or {})
        self._advertised_free = 0
        self._burst = 1000 * offset

    def _on_notice(
        self,
        kind: int,
        flags: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: memoryview,
    ) -> None:
        """A frame that brings no items."""
        if kind == Kind.FUNCTION:
            self._functions[function] = load_function(payload, flags)
        elif kind == Kind.FORGET:
            del self._functions[function]
        elif kind == Kind.CANCEL:
            self._on_cancel(chunk_id, offset)
        elif kind == Kind.CLOSE:
            self._closing = True
        else:
            raise CorruptHeaderError(f"frame of kind {kind} from the parent")

    def _on_cancel(self, chunk_id: int, offset: int) -> None:
        task = self._places.get((chunk_id, offset))
        if task is not None:
            self._given_up.add(task)
            task.cancel()
        elif (chunk := self._chunks.get(chunk_id)) is not None:
            chunk.refuse(offset, GivenUp())

    # -- running -------------------------------------------------------------------------------

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - as where a link calls (link.py, LINK-7)
            self._give_up(error)

    def _turn(self) -> None:
        """Start what may be started, then send what there is to send."""
        if self._in_burst:  # an item runs the loop from inside: the turn it is in goes on after it
            return
        chunks, link = self._chunks, self._link
        begun = time.monotonic_ns()
        deadline = begun + self._burst
        while (
            chunks and len(self._running) < self._concurrency and not link.congested
        ):  # WORKER-2, WORKER-5
            if self._running:
                deadline = min(deadline, begun + BURST_NS)
            chunk = next(iter(chunks.values()))
            if not self._advance(chunk, deadline):
                self._schedule_turn()  # WORKER-4
                break
            # an item that runs the loop from inside may have let us be terminated
            if chunk.next >= len(chunk.items) and chunks:
                chunks.popitem(last=False)
        if self._running:
            self._ask_for_more()
        self._results.publish()
        if self._closing and not chunks and not self._running and not link.congested:
            self._loop.stop()

    def _advance(self, chunk: ReceivedChunk, deadline: int) -> bool:
        """Start items of a chunk up to the first that suspends or fails; False: out of time."""
        at, mode, func, items = chunk.next, chunk.mode, chunk.func, chunk.items
        stop = len(items)
        if chunk.failures:
            stop = chunk.first_failure()
            if stop == at:
                # it stays a failure: there may be no time left to start it in this turn
                mode, func, items[at] = MAP, raise_error, chunk.failures[at]
                stop = at + 1
        assert self._starter is not None  # there are no chunks before
        entry = self._results.begin_burst(chunk.chunk_id, at)
        self._in_burst = True
        try:
            end, status, what = self._starter.run(mode, func, items, at, stop, entry, deadline)
            if self._copied:
                copies.end()
        finally:
            self._in_burst = False
            self._results.end_entry()
            if self._ended:
                self._end_those_inside()
        chunk.next = end
        if status == RAISED:
            chunk.next = end + 1
            refused = did_not_arrive(chunk, end, what)
            stage = None if refused else _stage_of(func, what)
            given_up = type(what) is GivenUp
            self._results.fail(chunk.chunk_id, end, what, stage, refused=refused, given_up=given_up)
        elif status == SUSPENDED:
            chunk.next = end + 1
            self._on_suspended(what, (chunk.chunk_id, end))
        elif status == FULL:
            self._results.publish()
        del what  # an exception and this frame would keep each other
        return bool(status != _accel.DONE or end > at)

    def _on_suspended(self, task: asyncio.Task[Any], place: Place) -> None:
        if (
            task.done()
        ):  # a task factory has started it eagerly: answer before others run (WORKER-6)
            self._end_task(task, *place)
            return
        self._running[task] = place
        self._places[place] = task
        task.add_done_callback(self._on_task_done)

    def _on_value(self, value: object) -> None:
        """A suspended item returns: answer now, code of others may run before its callback (WORKER-6)."""
        if self._copied:
            copies.end()
        task = asyncio.current_task(self._loop)
        place = None if task is None else self._running.get(task)
        if task is None or place is None or self._in_burst or getattr(task, "_must_cancel", False):
            return  # it may end otherwise, the callback will know
        try:
            self._results.add(*place, value)
        except BaseException:  # noqa: BLE001 - it cannot be pickled, which the callback will report
            return
        self._running[task] = None
        del self._places[place]

    def _end_those_inside(self) -> None:
        """Tasks that ended while an item of the burst ran the loop from inside (RESULTS-1)."""
        ended, self._ended = self._ended, []
        for task in ended:
            self._on_task_done(task)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        if self._in_burst:
            self._ended.append(task)
            return
        place = self._running.pop(task)
        if place is not None:
            del self._places[place]
            try:
                self._end_task(task, *place)
            except Exception as error:  # noqa: BLE001 - as in _scheduled_turn
                self._give_up(error)
        if self._given_up:
            self._given_up.discard(task)
        self._schedule_turn()

    def _end_task(self, task: asyncio.Task[Any], chunk_id: int, offset: int) -> None:
        value, error = tasks.outcome(task)
        try:
            if error is None:
                self._results.add(chunk_id, offset, value)
        except BaseException as failure:  # noqa: BLE001 - user code was run to pickle it
            error = tasks.unsendable(value, failure)
        # not isinstance(), which would run code of the error's
        cancelled = issubclass(type(error), asyncio.CancelledError)
        if error is not None and not (self.terminated and cancelled):
            given_up = cancelled and task in self._given_up
            self._results.fail(chunk_id, offset, error, given_up=given_up)
        del error  # as in _advance

    def _ask_for_more(self) -> None:
        """Say once that items wait side by side here, and how many more could."""
        free = min(self._concurrency - len(self._running), MAX_COUNT)
        if not self._chunks and free > self._advertised_free and not self._closing:
            self._advertised_free = free
            self._link.send(Kind.NEED_WORK, count=free)
