"""The worker engine: receives items, starts each, and sends its result.

    chunk arrives -> items wait -> item is started -> finishes at once -----------> result
                                                  \\-> suspends: a task -> done -/

`main` makes one engine in each process of a pool and runs it. The engine is a set of callbacks on
the worker's event loop, not a task on it, so that `asyncio.all_tasks()` shows a user nothing but
items.

A *turn* is one callback of the loop that starts waiting items and then sends the results that are
there. Within a turn, a *burst* is one call of `Starter.run`: it runs items that finish at once one
after another, until one suspends or raises, or the time of the burst is over. ResultSender
(results.py) journals and sends the results; ReceivedChunk (received_chunk.py) holds waiting items.

WORKER-1  Items start in the order in which they arrived, over all chunks. The number of items
    started is stored where the parent can read it before the function of the next one is called. So
    the parent knows which items may have had effects, whatever happens to the worker.
WORKER-2  At most `concurrency` items run at once.
WORKER-3  Each item that arrives gets exactly one answer, in a RESULTS, ERROR, REFUSED or TIMED_OUT
    frame, or is returned (WORKER-11), except those that the process takes with it when it dies.
WORKER-4  A turn runs bursts for as long as the parent allows, and for `BURST_NS` at most while
    other items are suspended: the loop serves their timers and sockets between two turns. Results
    are published once at the end of a turn, earlier if the journal is full or by RESULTS-3.
WORKER-5  No item starts while the link is congested, so results that cannot leave stay bounded.
WORKER-6  Results outlive the process: each is in the journal (journal.py) or published before code
    of another item runs. There are two exceptions. A result that fits neither, for lack of room in
    a congested link, waits in this process. And the error of an item that was suspended is
    journaled by its task's callback, before which others may run.
WORKER-9  A worker that runs no item when it is closed or terminated exits as a process of
    multiprocessing does: `atexit` hooks run under spawn, under fork and forkserver where CPython
    runs them there, and finalizers of `multiprocessing.util` run everywhere. A worker that gets
    SIGTERM while items run ends by that signal once their `finally` blocks have run. Either may
    take the pool's grace period. A LEAVING frame tells the parent when the exit begins, and names
    the threads that the exit will wait for.
WORKER-10  A lifespan (lifespan.py) is entered after the initializer and before READY is sent, and
    left after the last item. While it is left, in at most the grace period, no item runs; a LEAVING
    frame tells the parent. A worker that gets SIGTERM gives its items two thirds of that time, and
    then leaves its lifespan whatever still runs. SIGTERM that arrives before its entry has finished
    ends the worker.
WORKER-11  A worker retires if its memory is over a limit, or its lifespan has ended by itself. It
    starts nothing more, and returns each item that it has not started, by RETURNED frames instead
    of answers; also items that arrive later. It runs the others to their end. The parent closes it.
WORKER-12  A worker that is to exit may be held for any time by streams, which their readers read
    as they like, and by items that were given up and do not end: calls in threads (threads.py,
    THREAD-2), and coroutines that suppress their cancellation. If nothing else keeps it, a HELD
    frame tells the parent so, and another one each time that changes.
WORKER-13  Nothing of the user's stops the loop: neither `loop.stop()`, nor a SystemExit or
    KeyboardInterrupt of a task that is no item, or of a callback, which asyncio lets pass through
    the loop. An item that waits for that task gets the exception; all others go on. If the loop
    ends by an error of its own, the process does, too, and the parent settles what is cancelled
    then as it does at any death: no CancelledError is sent.

`main` imports this module at the start of each worker: what it imports adds to that start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import _accel
from .._processes import copies, loops
from .._processes.initializer import call_initializer
from .._pure import tasks
from .._transport.link import Link
from .._wire import exceptions
from .._wire.frames import (
    BLOCKING,
    MAX_COUNT,
    TIMED,
    CorruptHeaderError,
    Kind,
    Mode,
    Payload,
    as_bytes,
)
from . import leaving
from .functions import StreamFunction, Unloadable, load_function, unwrapped
from .received_chunk import GivenUp, ReceivedChunk, stage_of
from .results import ResultSender

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .lifespan import Lifespan
    from .limits import TimeLimits
    from .streams import Batch, Channel
    from .threads import Threads

BURST_NS = 500_000  # nanoseconds that a turn may start items (WORKER-4)
CHUNK = int(Kind.CHUNK)  # an int: to compare with a member of an enum takes longer
MODES = len(Mode)
MAP, STREAM = int(Mode.MAP), int(Mode.STREAM)

DONE, RAISED, SUSPENDED, FULL = _accel.DONE, _accel.RAISED, _accel.SUSPENDED, _accel.FULL
WAITS = {_accel.TurnClock.__module__, loops.__name__}  # modules in which the loop waits
decode_items = _accel.decode_items

log = logging.getLogger(__name__)

Place: TypeAlias = tuple[int, int]  # of an item: its chunk, and its offset there


def receive_shared(number: int) -> Any:
    """What makes the first shared object that reaches this process (CODEC-12)."""
    from .._transport import shared_objects  # here: most workers do without

    _accel.receive_references(shared_objects.receive)
    return shared_objects.receive(number)


def drop_shared(number: int) -> None:
    """The parent has released a shared object."""
    try:
        from .._transport import shared_objects  # as above
    except (ImportError, OSError):  # no descriptor is left to import it: no task got the object
        from .._transport import endpoint  # which the link has imported

        if endpoint.this_end is not None:
            endpoint.this_end.drop_shared(number)
    else:
        shared_objects.drop(number)


class WorkerEngine:
    """Starts the items that arrive, and gives their results to a `ResultSender`."""

    # values of the class until they change, which is rare: as in Endpoint (endpoint.py)
    cut_off = False
    """Whether it was terminated while an item ran (WORKER-9)."""
    broken = False
    """Whether it could not start, and serves no items."""
    _batch: Batch | None = None  # of values, from the first stream on
    _lifespan: Lifespan | None = None
    _leaving_lifespan = False
    _stopped = False
    """Whether its loop is to end: frames may still arrive while the loop is closed."""
    _sigterm_handler: object = None  # what calls `_terminate`; None: nothing yet
    _held_by: tuple[int, int] | None = None  # as the last HELD frame says (WORKER-12)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        concurrency: int,
        exception_handler: Callable[[BaseException], object] | None,
        grace: float,
        threads: int = 0,
    ) -> None:
        self.terminated = False
        self.serving = False  # the link is started
        self._retiring = False  # WORKER-11
        # takes no more items: it is terminated, broken or retiring, or its loop has failed
        self._refuses = False
        self._loop = loop
        self._link = link
        self._results = ResultSender(link, exception_handler)
        self._concurrency = concurrency
        self._threads: Threads | None = None
        if threads:
            from .threads import Threads

            self._threads = Threads(loop, threads, self._schedule_turn)
        self._grace = grace  # seconds
        self._starter: _accel.Starter | None = None  # made after the initializer has run
        _accel.receive_references(receive_shared)
        self._functions: dict[int, Callable[..., Any]] = {}
        #: Chunks with items that are not started, in the order in which they arrived.
        self._chunks: deque[ReceivedChunk] = deque()
        #: Tasks of suspended items. None: the result is journaled, the task is not done yet.
        self._running: dict[asyncio.Task[Any], Place | None] = {}
        self._places: dict[Place, asyncio.Task[Any]] = {}  # the reverse, of those without a result
        self._streams: dict[int, Channel] = {}  # of those that run, by chunk
        self._given_up: set[asyncio.Task[Any]] = set()  # cancelled because their callers were
        self._turns: _accel.TurnClock | None = None
        self._limits: TimeLimits | None = None  # from the first chunk with a time limit on
        self._burst_ns = BURST_NS  # as the parent allows
        self._in_burst = False
        self._ended: list[asyncio.Task[Any]] = []  # tasks that ended during a burst (RESULTS-1)
        self._turn_scheduled = False
        # free slots, as the last NEED_WORK since the last chunk says, and free threads, as the last
        # since the last chunk that needs some
        self._advertised_free = self._advertised_threads = 0
        self._closing = False
        self._copied = False  # this is a copy of the worker (copies.py)
        self._timers: list[asyncio.TimerHandle] = []  # of the end that begins with SIGTERM

    @property
    def state(self) -> Any:
        """What the lifespan has yielded; None if there is none, or it is not entered yet."""
        return None if self._lifespan is None else self._lifespan.state

    @property
    def started(self) -> int:
        """How many items were started."""
        return self._link.started

    # -- life ----------------------------------------------------------------------------------

    def run(
        self,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        failure: bytes | None,
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
    ) -> None:
        """Run the initializer, then serve items until the parent closes or terminates this worker.

        `failure` is the error, as the parent gets it, of a start that has failed already: it is
        sent, and no item is served. `lifespan` makes a context manager around all items.
        """
        if failure is None:
            failure = self._initialize(initializer, initargs, lifespan)
        self._serve(failure)
        self._watch_turns()
        try:
            self._run_loop()
        finally:
            if not self._stopped:  # WORKER-13
                self._stopped = self.terminated = self._refuses = self._closing = True
                self._chunks.clear()
        if self._turns is not None:
            self._turns.stop(idle=not self._copied)

    def _run_loop(self) -> None:
        """Run the loop until `_stop` (WORKER-13), or until a copy of the worker is to end."""
        while self._goes_on():
            try:
                self._loop.run_forever()
                if self._goes_on():
                    log.error("a task has stopped the event loop of this worker; it goes on")
            except (SystemExit, KeyboardInterrupt) as error:
                if self._copied:
                    raise
                self._on_passed(error)

    def _goes_on(self) -> bool:
        return not (self._stopped or self._copied)

    def _on_passed(self, error: BaseException) -> None:
        """A SystemExit or KeyboardInterrupt has passed through the loop."""
        if _from_engine(error, self._loop):  # a signal handler of the user's has raised it there
            self._give_up(error)
        _without_loop(error, self._loop)
        if self._leaves_by(error):
            self._terminate()
            return
        name = type(error).__name__
        log.error("%s of a task has passed through the loop of this worker", name, exc_info=error)

    def _leaves_by(self, error: BaseException) -> bool:
        """Whether an item has set a handler of SIGTERM that raises this, as many programs do."""
        ends = issubclass(type(error), (SystemExit, KeyboardInterrupt))
        return ends and self._sigterm_handler not in (None, signal.getsignal(signal.SIGTERM))

    def _serve(self, failure: bytes | None) -> None:
        """Begin to receive, and report to the parent that this worker is ready, or the failure."""
        # after the initializer, which may run the loop: no item may start before it has ended
        self._link.start(
            self._loop,
            self._on_frame,
            on_room=self._turn,
            on_broken=self._on_broken,
            on_drained=self._turn,
        )
        self.serving = True
        if self.terminated:  # while the lifespan was entered
            self._loop.call_soon(self._turn)
        elif failure is None:
            self._handle_sigterm()
            self._results.publish()  # log records of the lifespan
            self._link.send(Kind.READY)
        else:
            self.broken = self._refuses = self._closing = True
            self._results.publish()  # log records; the parent ends this worker when it gets BROKEN
            self._link.send(Kind.BROKEN, payload=[failure])
            self._loop.call_soon(self._turn)
        self._link.flush()

    def _watch_turns(self) -> None:
        """Let the parent see how busy the loop is (turns.py), if it is one of asyncio's."""
        selector: Any = getattr(self._loop, "_selector", None)
        if hasattr(selector, "__dict__") and hasattr(selector, "select"):
            self._turns = _accel.TurnClock(self._link.counter, selector.select)
            selector.select = self._turns.wait

    def _handle_sigterm(self) -> None:
        if sys.platform != "win32":  # where terminate() is not a signal
            self._loop.add_signal_handler(signal.SIGTERM, self._terminate)
            self._sigterm_handler = signal.getsignal(signal.SIGTERM)

    def _initialize(
        self,
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None,
    ) -> bytes | None:
        """Run the initializer, enter the lifespan; returns the error for the parent, or None."""
        try:
            if initializer is not None:
                call_initializer(initializer, initargs)
            if self._copied:
                copies.end()
            # after the initializer, so that items see the context variables that it set
            if lifespan is None:
                self._make_starter()
            else:
                self._enter(lifespan)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: the parent reports it
            if self._copied:
                copies.end()
            self._pass_on(error)
            return exceptions.dump_exception(error, _accel.dumps)
        return None

    def _pass_on(self, error: BaseException | None) -> None:
        """Hook of inline workers: let a KeyboardInterrupt of user code pass the loop (INLINE-4)."""

    def _make_starter(self) -> None:
        self._starter = _accel.Starter(self._loop, self._link.counter, self._on_value)

    def _enter(self, lifespan: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        """WORKER-10: enter the lifespan, and make the starter in its context."""
        from .lifespan import Lifespan  # here: workers without one do not need it

        self._lifespan = Lifespan(self._loop, lifespan, self._on_lifespan_left)
        self._handle_sigterm()
        self._lifespan.enter(self._make_starter)
        self._await_lifespan(self._lifespan)

    def _await_lifespan(self, lifespan: Lifespan) -> None:
        """Run the loop until the lifespan is entered; raises its error."""
        self._loop.run_until_complete(lifespan.settled)
        lifespan.check()

    def close(self) -> None:
        """Release what only running items need. Closing the loop cancels those that still run."""
        self._given_up.update(self._running)
        if self._starter is not None:
            self._starter.close()

    def abandon(self) -> None:
        """In a copy of the worker: give up link, journal and items (copies.py, COPY-1)."""
        self._copied = True
        if self._turns is not None:
            self._turns.stop(idle=False)
        self._results.close()
        if self._batch is not None:
            self._batch.abandon()
        self._link.abandon()
        for task in self._running:
            item_coro = tasks.item_coroutine_of(task)
            if item_coro is not None:
                item_coro.inner = copies.Halted(item_coro.inner)

    def before_publishing(self, send: Callable[[], object]) -> None:
        """Let `send` add frames to those that are published with results."""
        publish = self._results.publish

        def publish_all() -> None:
            send()
            publish()

        self._results.publish = publish_all  # type: ignore[method-assign]

    def close_link(self) -> None:
        """Close the link, and before it the journal, which uses its memory."""
        self._results.close()
        if self._batch is not None:
            self._batch.close()
        self._link.close()

    def _terminate(self) -> None:
        """SIGTERM: cancel what runs, and exit when it has ended, or after the grace period."""
        if self.terminated:
            return
        self.terminated = self._refuses = self._closing = True
        running = any(place is not None for place in self._running.values())
        self.cut_off = running or self._in_burst
        self._end_lifespan_early()
        self._chunks.clear()
        for task in self._running:
            task.cancel()
        # not by closing the loop, which would wait for an item that ignores its cancellation
        self._timers.append(self._loop.call_later(self._grace, self._exit_by_sigterm))
        self._schedule_turn()

    def _exit_by_sigterm(self) -> None:
        leaving.exit_by_signal(signal.SIGTERM)

    def _end_lifespan_early(self) -> None:
        """WORKER-10, for a worker that gets SIGTERM."""
        lifespan = self._lifespan
        if lifespan is None:
            return
        if self._starter is None:
            self.cut_off = True
            lifespan.cancel()
        self._timers.append(self._loop.call_later(self._grace * 2 / 3, lifespan.leave))

    def _finish(self) -> None:
        """Nothing is left to start: when all has ended, leave the lifespan and stop the loop."""
        if self._running:
            self._report_what_holds()
            return
        lifespan = self._lifespan
        if lifespan is None or lifespan.done:
            self._stop()
        elif not self._leaving_lifespan:
            self._leaving_lifespan = True
            leaving.announce_lifespan_end(self._link)
            lifespan.leave()

    def _stop(self) -> None:
        if not self._stopped:  # else the loop runs what closes it, to its end
            self._stopped = True
            self._loop.stop()

    def _report_what_holds(self) -> None:
        """WORKER-12: tell the parent if nothing that ends by itself keeps this worker."""
        if self.terminated or not (self._streams or self._given_up):
            return
        streams = 0
        for task, place in self._running.items():
            if task in self._given_up:
                continue
            if place is None or place[0] not in self._streams:
                return
            streams += 1
        held_by = streams, len(self._running) - streams
        if held_by != self._held_by:
            self._held_by = held_by
            leaving.announce_held(self._link, streams, self._running)

    def _on_lifespan_left(self) -> None:
        if not self._closing:
            self._retire("lifespan")
        self._schedule_turn()

    def _retire(self, why: str) -> None:
        """WORKER-11: return what is not started, the newest first; the parent closes this worker.

        If an item runs the loop inside its call, the other items of its chunk still run after it.
        """
        if self._refuses:
            return
        self._retiring = self._refuses = True
        self._link.send(Kind.RETIRING, payload=[why.encode()])
        while len(self._chunks) > self._in_burst:
            chunk = self._chunks.pop()
            self._return(chunk.chunk_id, chunk.next, len(chunk.items) - chunk.next)
        self._link.flush()

    def _return(self, chunk_id: int, offset: int, count: int) -> None:
        self._link.send(Kind.RETURNED, chunk_id=chunk_id, offset=offset, count=count)

    def _on_broken(self, error: BaseException) -> None:
        """The link cannot be used again: exit, so that the parent retries or fails our items."""
        self._exit_after("the link to the parent process is broken", error)

    def _give_up(self, error: BaseException) -> None:
        """End this worker because an item may have lost its answer (WORKER-3).

        Its caller would wait for ever. Not related to `_given_up`.
        """
        if self._leaves_by(error):
            self._terminate()  # the exit settles the item, too, and runs the hooks of WORKER-9
            self._forget_itemless_tasks()
            return
        self._exit_after("this worker cannot go on", error)

    def _forget_itemless_tasks(self) -> None:
        """Unregister what a burst that was cut short has left: closing the loop would wait for it.

        That is a reusable task, which waits at a gate that only its starter opens (starter.py).
        """
        for task in asyncio.all_tasks(self._loop) - self._running.keys():
            item_coro = tasks.item_coroutine_of(task)
            if item_coro is not None and getattr(item_coro.inner, "cr_frame", None) is None:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                tasks.unregister(task)

    def _exit_after(self, what: str, error: BaseException) -> None:
        if self._copied:
            copies.end()
        log.critical(what, exc_info=error)
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
            self._on_notice(kind, flags, count, chunk_id, offset, function, payload)
            return
        if self._refuses:
            if self._retiring and not self.terminated:
                self._return(chunk_id, 0, count)
            return
        mode, timed = flags, False
        if flags >= STREAM:  # the common modes are below it, and cost no call
            mode, timed = self._mode_of(flags)
        items, failures = decode_items(payload, count)
        func = self._functions[function]
        if mode == STREAM:
            func = unwrapped(func)  # a generator runs on the loop
            mode, func = MAP, StreamFunction(func, partial(self._send_values, chunk_id, timed))
        self._chunks.append(ReceivedChunk(chunk_id, mode, func, items, failures or {}, timed))
        self._advertised_free = 0
        if self._threads is not None and (self._threads.serves(func) or type(func) is Unloadable):
            self._advertised_threads = 0  # the parent has counted it
        self._burst_ns = 1000 * offset  # in a CHUNK, the field carries microseconds

    def _mode_of(self, flags: int) -> tuple[int, bool]:
        """The mode of a chunk, and whether its items have a time limit."""
        timed = flags >= TIMED
        mode = flags - TIMED if timed else flags
        if mode >= MODES:
            raise CorruptHeaderError(f"a chunk of mode {flags}")
        if timed and self._limits is None:
            self._limits = self._make_limits()
        return mode, timed

    def _on_notice(
        self,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: memoryview,
    ) -> None:
        """A frame that brings no items."""
        if kind == Kind.FUNCTION:
            self._functions[function] = self._loaded(payload, flags)
        elif kind == Kind.FORGET:
            del self._functions[function]
        elif kind == Kind.CANCEL:
            if count:
                self._on_cancel_range(chunk_id, range(offset, offset + count))
            else:
                self._on_cancel(chunk_id, offset, payload if flags & TIMED else None)
        elif kind == Kind.PULL:
            if chunk_id in self._streams:  # else it has ended
                self._streams[chunk_id].pull(count)
        elif kind == Kind.CLOSE:
            self._closing = True
        elif kind == Kind.UNSHARE:
            drop_shared(chunk_id)
        else:
            raise CorruptHeaderError(f"frame of kind {kind} from the parent")

    def _loaded(self, payload: memoryview, flags: int) -> Callable[..., Any]:
        func = load_function(payload, flags)
        if self._threads is None or not flags & BLOCKING or type(func) is Unloadable:
            return func
        from .threads import ThreadedFunction

        return ThreadedFunction(func, self._threads)

    def _send_values(
        self, chunk_id: int, timed: bool, values: Any, ahead: int
    ) -> Coroutine[Any, Any, int]:
        """The coroutine of an item that is a generator."""
        from .streams import Batch, Channel, run_stream

        clock = self._limits.clock() if timed and self._limits is not None else None
        if self._batch is None:
            self._batch = Batch(self._link)
        channel = Channel(self._loop, self._batch, chunk_id, ahead, clock)
        self._streams[chunk_id] = channel
        return run_stream(values, channel, partial(self._streams.pop, chunk_id, None))

    def _make_limits(self) -> TimeLimits:
        from .limits import TimeLimits  # not above: most workers do without

        return TimeLimits(self._link.counter)

    def _on_cancel(self, chunk_id: int, offset: int, timed_out: Payload | None) -> None:
        """Cancel an item: its caller gave up, or it is over its limit, as `timed_out` says."""
        task = self._places.get((chunk_id, offset))
        if timed_out is not None:
            if task is not None and self._limits is not None:  # LIMITS-2: else it has ended
                self._limits.cancel(task, _accel.loads(as_bytes(timed_out)))
        elif task is not None:
            self._given_up.add(task)
            if chunk_id in self._streams:
                self._streams[chunk_id].give_up()
            task.cancel()
        elif (chunk := self._waiting_chunk(chunk_id)) is not None:
            chunk.refuse(offset, GivenUp())

    def _on_cancel_range(self, chunk_id: int, offsets: range) -> None:
        """Cancel what runs of these items, and start no more of them."""
        if len(offsets) > len(self._running):  # look at the fewer
            places = [place for place in self._places if place[0] == chunk_id]
            running = [self._places[place] for place in places if place[1] in offsets]
        else:
            found = (self._places.get((chunk_id, offset)) for offset in offsets)
            running = [task for task in found if task is not None]
        self._given_up.update(running)
        for task in running:
            task.cancel()
        if (chunk := self._waiting_chunk(chunk_id)) is not None:
            chunk.skip(offsets)

    def _waiting_chunk(self, chunk_id: int) -> ReceivedChunk | None:
        """The chunk of this id, if it has items that are not started.

        The id is the number of the first item, so the ids of the chunks that wait ascend.
        """
        from bisect import bisect_left  # here: a start does not need it

        chunks = self._chunks
        at = bisect_left(chunks, chunk_id, key=attrgetter("chunk_id"))
        return chunks[at] if at < len(chunks) and chunks[at].chunk_id == chunk_id else None

    # -- running -------------------------------------------------------------------------------

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._turn_scheduled = False
        try:
            self._turn()
        except BaseException as error:  # noqa: BLE001 - the loop would go on after any (WORKER-3)
            self._give_up(error)

    def _turn(self) -> None:
        """Start items, as many as may run, then send the results that are there."""
        if self._in_burst:  # an item runs the loop inside its call; its own turn goes on after it
            return
        chunks, link = self._chunks, self._link
        begun = time.monotonic_ns()
        deadline = begun + self._burst_ns
        # WORKER-2, WORKER-5
        while chunks and len(self._running) < self._concurrency and not link.congested:
            if self._running:
                deadline = min(deadline, begun + BURST_NS)
            chunk = chunks[0]
            if (chunk.timed or self._threads is not None) and self._must_wait(chunk):
                break
            if not self._advance(chunk, deadline):
                self._schedule_turn()  # WORKER-4
                break
            # `chunks` is empty if an item ran the loop inside its call, and SIGTERM arrived there
            if chunk.next >= len(chunk.items) and chunks:
                chunks.popleft()
        if self._running:
            self._ask_for_more()
        self._results.publish()
        if self._closing and not chunks and not link.congested:
            self._finish()

    def _must_wait(self, chunk: ReceivedChunk) -> bool:
        """Whether nothing of a chunk can start until another item has ended."""
        if chunk.next in chunk.failures:  # it needs neither thread nor entry (THREAD-1)
            return False
        if chunk.timed and self._limits is not None and self._limits.full:
            return True
        return self._threads is not None and self._threads.must_wait(chunk.func)  # THREAD-1

    def _advance(self, chunk: ReceivedChunk, deadline: int) -> bool:
        """Run one burst: start items up to the first that suspends or fails; False: out of time."""
        at, mode, func, items = chunk.next, chunk.mode, chunk.func, chunk.items
        stop = len(items)
        if chunk.failures:
            mode, func, stop = chunk.next_run()
        assert self._starter is not None  # chunks arrive after the start
        entry = self._results.begin_burst(chunk.chunk_id, at)
        self._in_burst = True
        try:
            end, status, outcome = self._starter.run(
                mode, func, items, at, stop, entry, deadline, chunk.timed
            )
            if self._copied:
                copies.end()
        finally:
            self._in_burst = False
            self._results.end_entry()
            if self._ended:
                self._finish_ended()
        chunk.next = end
        if status == RAISED:
            chunk.next = end + 1
            self._fail(chunk, end, func, outcome)
        elif status == SUSPENDED:
            chunk.next = end + 1
            self._on_suspended(outcome, (chunk.chunk_id, end), timed=chunk.timed)
        elif status == FULL:
            self._results.publish()
        if chunk.timed and self._limits is not None:
            self._limits.end_first_step()  # LIMITS-1: all that has ended is in the journal
        del outcome  # an exception and this frame would keep each other alive
        return bool(status != DONE or end >= stop)

    def _fail(
        self, chunk: ReceivedChunk, offset: int, func: Callable[..., Any], error: BaseException
    ) -> None:
        """Answer an item by the error that `func` raised, the user's function or a stand-in."""
        refused = chunk.lacked_memory(offset, error)
        stage = None if refused else stage_of(func, error)
        given_up = type(error) is GivenUp
        chunk_id, fail = chunk.chunk_id, self._results.fail
        try:
            fail(chunk_id, offset, error, stage, refused=refused, given_up=given_up)
        except BaseException as failure:  # noqa: BLE001 - as in `_scheduled_turn`; the link calls, too
            self._give_up(failure)

    def _on_suspended(self, task: asyncio.Task[Any], place: Place, *, timed: bool) -> None:
        if task.done():  # a task factory started it eagerly; others may run next (WORKER-6)
            self._end_task(task, *place)
            return
        self._running[task] = place
        self._places[place] = task
        if timed and self._limits is not None:
            channel = self._streams.get(place[0])
            self._limits.suspend(task, None if channel is None else channel.clock)
        tasks.call_when_done(task, self._on_task_done)

    def _on_value(self, value: object) -> None:
        """Journal what a suspended item returns, before code of others can run (WORKER-6).

        The starter calls this in the item's last step. `_on_task_done` takes what cannot be
        journaled yet: the task may still end otherwise, by a cancellation.
        """
        if self._copied:
            copies.end()
        task = asyncio.current_task(self._loop)
        place = None if task is None else self._running.get(task)
        if task is None or place is None or self._in_burst or getattr(task, "_must_cancel", False):
            return
        try:
            self._results.add(*place, value)
        except BaseException as error:  # noqa: BLE001 - not picklable: `_on_task_done` reports that
            self._results.note(error)
            return
        self._running[task] = None
        del self._places[place]
        if self._limits is not None:
            self._limits.journaled(task)
        try:
            self._results.publish_unless_just_now()
        except BaseException as error:  # noqa: BLE001 - as in `_scheduled_turn`
            self._give_up(error)

    def _finish_ended(self) -> None:
        """Finish tasks that ended because an item of the burst ran the loop (RESULTS-1)."""
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
            except BaseException as error:  # noqa: BLE001 - as in `_scheduled_turn`
                self._give_up(error)
        if self._given_up:
            self._given_up.discard(task)
        if self._limits is not None:
            self._limits.journaled(task)
        self._schedule_turn()

    def _end_task(self, task: asyncio.Task[Any], chunk_id: int, offset: int) -> None:
        value, error = tasks.outcome(task)
        try:
            if error is None:
                self._results.add(chunk_id, offset, value)
        except BaseException as failure:  # noqa: BLE001 - pickling runs the user's code
            error = tasks.unsendable(value, failure)
        # issubclass(): isinstance() would run code of the error's class
        cancelled = issubclass(type(error), asyncio.CancelledError)
        if error is not None and not (self.terminated and cancelled):
            given_up = cancelled and task in self._given_up
            timeout = None if self._limits is None else self._limits.error_of(task, error)
            if timeout is None or given_up:
                self._results.fail(chunk_id, offset, error, given_up=given_up)
            else:
                self._results.fail(chunk_id, offset, timeout, timed_out=True)
            del timeout
        del error  # as in `_advance`

    def _ask_for_more(self) -> None:
        """Send NEED_WORK if items are suspended and none waits: more could run beside them.

        Once for each number of free slots that is higher than the one sent since the last chunk.
        """
        if self._closing:
            return
        if self._threads is not None:
            self._offer_threads(self._threads)
        elif not self._chunks:
            free = self._free_slots()
            if free > self._advertised_free:
                self._advertised_free = free
                self._link.send(Kind.NEED_WORK, count=free)

    def _offer_threads(self, threads: Threads) -> None:
        """The same for a worker with threads, which sends it for these, too (CREDIT-9).

        A thread may be free while items wait: for a slot, and they need no thread.
        """
        chunks = self._chunks
        slots, free, received = 0, min(threads.free, MAX_COUNT), self.started
        if not chunks:
            slots = self._free_slots()
        elif free > self._advertised_threads:
            received = chunks[-1].chunk_id + len(chunks[-1].items)
            free -= sum(
                len(chunk.items) - chunk.next for chunk in chunks if threads.serves(chunk.func)
            )
        if slots > self._advertised_free or free > self._advertised_threads:
            self._advertised_free = max(slots, self._advertised_free)
            self._advertised_threads = max(free, 0)
            self._link.send(Kind.NEED_WORK, count=slots, offset=max(free, 0), chunk_id=received)

    def _free_slots(self) -> int:
        return min(self._concurrency - len(self._running), MAX_COUNT)


def _modules(trace: types.TracebackType | None) -> Iterator[tuple[Any, str]]:
    """The steps of a traceback, each with the name of its module."""
    while trace is not None:
        yield trace, str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next


def _is_of_loop(module: str, loop: asyncio.AbstractEventLoop) -> bool:
    package = module.partition(".")[0]
    return package == "asyncio" or package == type(loop).__module__.partition(".")[0]


def _from_engine(error: BaseException, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether an exception that left the loop comes from a callback of the engine or its link.

    What other code raises may show our frames, too, but after its own: such code has called us, or
    has raised the error of an item.
    """
    _, *modules = (module for _, module in _modules(tasks.traceback_of(error)))  # `_run_loop`
    below = [module for module in modules if not (_is_of_loop(module, loop) or module in WAITS)]
    return __name__ in below or "".join(below[:1]).startswith(("aiomultiprocess.", "amp_ext."))


def _without_loop(error: BaseException, loop: asyncio.AbstractEventLoop) -> None:
    """Remove the frames of the loop, which an item that waits for the task would show."""
    steps = _modules(tasks.traceback_of(error))
    users = (trace for trace, name in steps if name != __name__ and not _is_of_loop(name, loop))
    BaseException.with_traceback(error, next(users, None))
