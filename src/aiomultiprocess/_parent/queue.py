"""A queue of a pool: task sources in line, the workers that serve it, and the chunks they hold.

    task source --take()--> chunk --send--> worker --results, errors--> task source
         ^                    |
         +-----put_back()-----+--lose()--> retry task --alone--> worker
           (its worker died before it started the task, or after)

Tasks wait here, in the parent. They become a *chunk* (one frame, tasks of one source) only when a
worker has *credit* for them (credit.py): room for more tasks than it holds. The engine owns the
queues and offers them task sources; the links of workers call them for each frame and batch, the
supervisor for each death. A user's scheduler knows a queue by its number.

QUEUE-1  Exactly once. A task is in its source, or in one chunk of one worker, or settled. A chunk
    (chunk.py) marks each offset that was reported; when its worker dies, the queue settles the
    others or puts them back (retry.py, RETRY-5).
QUEUE-3  Sources are served in turn. In its turn a source fills the room that one worker has for it,
    in one chunk or several; then it goes to the end of the line. So an `apply` does not wait behind
    a `map`. While a worker has no room for the source whose turn it is, calls may *overtake*: go to
    that worker ahead of tasks that waited longer (credit.py, CREDIT-4, CREDIT-6). Sources whose
    tasks need a thread of a worker that has none free (CREDIT-9) hold up no others there
    (threaded_queue.py).
QUEUE-6  Even spread. Whether an item waits or computes is not known before it runs, so free slots
    do not tell how soon a worker will be done. No worker is therefore filled above the level that
    is reached when the tasks that are left fill the workers in turn, those that hold the fewest
    first. Of n tasks over k idle workers each gets at most ceil(n / k); a worker that holds nothing
    is never refused one. If more tasks are left than all workers have room for, this limits
    nothing. An input of unknown length is looked at only as far as this takes: at most `LOOK_AHEAD`
    items, and only those that arrive within a few milliseconds (sources.py).
QUEUE-7  Sources of a higher priority are served first (line.py), and no call overtakes one; retry
    tasks go before all (RETRY-3). What a worker holds is not taken back. A source that has no task
    at hand leaves the line, so that those of a lower priority do not wait for it.
QUEUE-8  A worker that retires returns the tasks that it has not started (_worker/engine.py,
    WORKER-11): these count as reported in their chunk, and are served next elsewhere.
QUEUE-9  A result does not wait for a slow task that runs after its own in the same worker
    (recovery.py). A worker that holds one task has no such result and is not watched.
QUEUE-10  A worker that replaces another, or comes by a resize, takes tasks once it has started, as
    long as others of the queue take some. A start may take seconds, or never end, and what was sent
    to it would wait as long. While it starts, QUEUE-6 counts it as holding as many tasks as the
    worker that is being served. So a part of each map stays in the parent for it; that part shrinks
    as the others report, and is sent as soon as the new worker is ready. Until a first worker of
    the pool is ready, all take tasks from the beginning.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .. import _accel, _legacy
from .._arguments import DEFAULT_OPTIONS
from .._wire import exceptions
from .._wire.frames import TIMED, CorruptHeaderError, Kind, Mode, PayloadTooLargeError
from .._wire.sharing import collected
from .calls import CallQueue
from .chunk import CHUNK_BYTES, Chunk, settle_each
from .counts import TaskCounts
from .credit import BURST_US, CONTENDED_BURST_US, CONTENTION_PARTS, MOST_BYTES
from .errors import (
    INTERRUPTS,
    explain_each,
    explain_item,
    explain_loss,
    explain_star,
    explain_timeout,
    load_error,
)
from .feed import Handles, TaskOwner, TaskSource
from .functions import Function
from .recovery import count_taken, decode_rest, recover_results, take_results
from .retry import RetryQueue, RetryTask
from .serializers import PICKLE_ALONE
from .sharing import Holding, pass_collected, pass_to

if TYPE_CHECKING:
    from .line import Line, ThreadedLine
    from .stream_source import StreamSource
    from .worker import PoolWorker

decode_items, encode_items = _accel.decode_items, _accel.encode_items

LOOK_AHEAD = 8192  # items of an input of unknown length that are looked for at most (QUEUE-6)
CONTENTION_SECONDS = 0.05  # after a call had to wait, more calls are expected so long (CREDIT-6)
# after a call was sent, or another source was in line, no map is alone for so long (CREDIT-6)
ALONE_SECONDS = 1
# as plain numbers: comparing with an enum's member is slow
CHUNK, RESULTS = int(Kind.CHUNK), int(Kind.RESULTS)
ERROR, REFUSED, TIMED_OUT = int(Kind.ERROR), int(Kind.REFUSED), int(Kind.TIMED_OUT)
LEAVING, LOG, NEED_WORK = int(Kind.LEAVING), int(Kind.LOG), int(Kind.NEED_WORK)
RETURNED, VALUES = int(Kind.RETURNED), int(Kind.VALUES)
APPLY = Mode.APPLY

OnNotice: TypeAlias = Callable[["PoolWorker", int, int, Any], None]


@_legacy.without(_legacy.QUEUE)
class Queue:
    """The task sources that wait for one group of workers."""

    choice = PICKLE_ALONE
    """How to send what pickle refuses; the engine sets it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.workers: list[PoolWorker] = []
        self.calls: dict[Hashable, CallQueue] = {}  # by their `key`
        self.retry_queue = RetryQueue()
        self.counts = TaskCounts()
        self.holding = Holding()  # of the engine, which sets it
        self._sources: deque[TaskSource] | Line[TaskSource] | ThreadedLine[TaskSource] = deque()
        self._loop = loop
        # which may overtake
        self._call_backlog: deque[CallQueue] | Line[CallQueue] | ThreadedLine[CallQueue] = deque()
        self._contended_until = 0.0
        self._alone_from = 0.0
        self._ended_in_line = 0  # calls that ended in lines, since such were dropped there
        self._dispatch_scheduled = False
        self._over = False  # all is settled: what workers still send is ignored

    # -- from task sources to workers ----------------------------------------------------------

    def call(self, calls: CallQueue, future: asyncio.Future[Any], item: Any) -> None:
        """Take one `apply`; send it at once if nothing waits and a worker is idle.

        An idle worker that is not leaving has room for one task of any function (QUEUE-6,
        CREDIT-8).
        """
        calls.expect(future)
        if not self._sources and not self.retry_queue.unsettled:
            for worker in self.workers:
                if worker.chunks or worker.leaving or worker.link.congested:
                    continue
                if worker.takes_tasks or not self._any_takes_tasks():
                    try:
                        self._send_chunk(worker, calls, (future,), [item])
                    except KeyboardInterrupt:  # raised to the caller, who then awaits nothing
                        future.cancel()
                        self._line_up(calls)
                        raise
                    if worker.credit.spent:
                        worker.leave()
                    flush = worker.link.flush
                    flush()  # in two steps: see `send` in `_send_chunk`
                    return
        calls.wait((future, item))
        offered = self._dispatch_scheduled and calls.queued and calls.in_call_backlog
        if not offered:
            self.offer(calls)

    def offer(self, source: TaskSource) -> None:
        """Put a source into the line, and serve an idle worker at once.

        Without one, workers are served in the next turn of the loop: calls that are made together
        then travel together.
        """
        if not source.queued:
            source.queued = True
            if source.options.priority:
                self._respect_priorities()
            self._sources.append(source)
        if not self._dispatch_scheduled:
            for worker in self.workers:
                if not worker.chunks and (worker.takes_tasks or not self._any_takes_tasks()):
                    self.serve(worker)
                    break
            if not self._count_in_line():
                return
            self._dispatch_soon()
        if isinstance(source, CallQueue) and not source.in_call_backlog:
            source.in_call_backlog = True
            self._call_backlog.append(source)

    def _line_up(self, source: TaskSource) -> None:
        """Put a source that is not in line to the front; workers are served soon."""
        if source not in self._sources:
            self._put_first(source)
        self._dispatch_soon()

    def _put_first(self, source: TaskSource) -> None:
        source.queued = True
        if source.options.priority:
            self._respect_priorities()
        self._sources.appendleft(source)

    def _respect_priorities(self) -> None:
        """From now on, serve sources of a higher priority first (QUEUE-7)."""
        if isinstance(self._sources, deque) and isinstance(self._call_backlog, deque):
            from .line import Line  # here: few pools need it

            self._sources, self._call_backlog = Line(self._sources), Line(self._call_backlog)

    def _any_takes_tasks(self) -> bool:
        """Whether there is a worker that takes tasks and does not leave (QUEUE-10)."""
        return any(worker.takes_tasks and not worker.leaving for worker in self.workers)

    def on_ready(self, worker: PoolWorker) -> None:
        """A worker has started (QUEUE-10)."""
        if self._sources or self.retry_queue.unsettled:
            self.serve(worker)

    def _dispatch_soon(self) -> None:
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self._loop.call_soon(self.dispatch_all)

    def dispatch_all(self) -> None:
        """Serve all workers, those that hold the fewest tasks first."""
        self._dispatch_scheduled = False
        for worker in sorted(self.workers, key=lambda worker: worker.credit.in_flight):
            if not self._sources and not self.retry_queue.line:
                break
            self.serve(worker)

    def serve(self, worker: PoolWorker) -> None:
        """Send a worker as much as it has credit for."""
        starts = not worker.takes_tasks and self._any_takes_tasks()  # QUEUE-10
        if starts or (self.retry_queue.unsettled and self._serve_retry(worker)):
            if worker.chunks:
                worker.watch()  # QUEUE-9
            return
        if self._count_in_line() and not worker.leaving:
            self._serve_sources(worker)
            if self._call_backlog:
                self._let_calls_overtake(worker)
            if worker.credit.spent:
                worker.leave()
        worker.link.flush()
        if worker.chunks:
            worker.watch()  # QUEUE-9

    def _serve_sources(self, worker: PoolWorker) -> None:
        for _ in range(len(self._sources)):  # each once: other workers get a share too
            if not self._sources or not self._serve_next(worker):
                break

    def _let_calls_overtake(self, worker: PoolWorker) -> None:
        """QUEUE-3: send calls to a worker that has no room for the source whose turn it is."""
        backlog = self._call_backlog
        while backlog and not backlog[0].left:
            backlog.popleft().in_call_backlog = False
        if not backlog or worker.link.congested:
            return
        self._contended_until = monotonic() + CONTENTION_SECONDS
        calls = backlog[0]
        if self._sources and calls.options.priority < self._sources[0].options.priority:
            return
        room = worker.credit.overtake(worker.link.started, calls.function.id)
        handles, items = calls.take(room)
        if handles:
            self._send_chunk(worker, calls, handles, items)
            worker.credit.have_overtaken()
            if self.holding.sources:
                self.holding.drop_sent(calls)
            if self._call_backlog and self._call_backlog[0] is calls:
                self._call_backlog.rotate(-1)

    def clear(self) -> None:
        """Drop all tasks and chunks: the pool is over, and the engine settles every task.

        No reference to the engine remains here, so that it can be collected.
        """
        self._over = True
        self._sources.clear()
        self.calls.clear()
        self.retry_queue.clear()
        self._call_backlog.clear()
        for worker in self.workers:
            worker.chunks.clear()

    def drop(self, jobs: Collection[object]) -> None:
        """Drop what waits of cancelled jobs (JOB-7); chunks stay until they are reported."""
        sources = list(self._sources)
        self._sources.clear()
        for source in sources:
            source.queued = source.origin not in jobs
            if source.queued:
                self._sources.append(source)
        if self.retry_queue.drop_tasks_of(jobs):
            self._dispatch_soon()  # a worker may have been kept free for them

    def drop_function(self, source: object, function: Function) -> None:
        """Drop a source whose tasks are all settled, and its function if that has state.

        A function with state is pickled for one source; so no later source uses this one.
        """
        if isinstance(source, CallQueue) and self.calls.get(source.key) is source:
            del self.calls[source.key]
            if source.queued or source.in_call_backlog:
                self._drop_ended_calls()
        if function.permanent:
            return
        for worker in self.workers:
            worker.credit.drop_function(function.id)
            if function.id in worker.functions:
                worker.functions.discard(function.id)
                worker.link.send(Kind.FORGET, function=function.id)
                worker.link.flush()  # at once: the state may be large, and other work far off

    def _drop_ended_calls(self) -> None:
        """Take calls that have ended out of the lines, if they may be half of all: one more has.

        So that lines do not grow by calls that are given up while no worker has room for them.
        """
        self._ended_in_line += 1
        if 2 * self._ended_in_line < self._count_in_line():
            return
        self._ended_in_line = 0
        sources, backlog = list(self._sources), list(self._call_backlog)
        self._sources.clear()
        self._call_backlog.clear()
        for source in sources:
            source.queued = not isinstance(source, CallQueue) or source.left > 0
            if source.queued:
                self._sources.append(source)
        for calls in backlog:
            calls.in_call_backlog = calls.left > 0
            if calls.in_call_backlog:
                self._call_backlog.append(calls)

    def _serve_retry(self, worker: PoolWorker) -> bool:
        """Send retry tasks that this worker can run; True if it gets no other work (RETRY-3)."""
        while (retry_task := self.retry_queue.next_for(worker)) is not None:
            # first, in case of a KeyboardInterrupt: the worker kept free for it may get other work
            self._dispatch_soon()
            self._send_chunk(worker, retry_task, [retry_task.handle], [retry_task.item])
        if worker.credit.spent:
            worker.leave()
        worker.link.flush()
        return self.retry_queue.claim(worker, self.workers)

    def _serve_next(self, worker: PoolWorker) -> bool:
        """QUEUE-3: send tasks of the first source, and move it to the end of the line.

        False if the worker has no room for them: the source keeps its place.
        """
        source, link, credit = self._sources[0], worker.link, worker.credit
        left = source.left
        work_is_ample = (
            None if left is None else left > 2 * len(self.workers) * credit.concurrency_seen
        )
        if source.mode is not APPLY:
            scale = credit.scale = self._scale(worker, source, left)
        else:
            scale = 1
        room = credit.room(
            link.started, source.function.id, work_is_ample=work_is_ample, scale=scale
        )
        if room <= 0 or link.congested:
            return False
        self._sources.popleft()  # first: a source may run the user's code, which may call us
        handles: Handles = ()
        refused = False
        try:
            room = self._fair_share(worker, source, room)
            refused = room <= 0
            while room > 0 and not link.congested:
                handles, items = source.take(room)
                if not handles:
                    break
                room -= self._send_chunk(worker, source, handles, items) or 1  # it may never end
                if credit.bytes >= MOST_BYTES:  # CREDIT-5
                    room = min(
                        room,
                        credit.room(link.started, source.function.id, work_is_ample=work_is_ample),
                    )
        except INTERRUPTS:
            self._line_up(source)
            raise
        if refused and not self._over:
            self._put_first(source)
            return False
        self._after_turn(worker, source, took=bool(handles))
        return True

    def _after_turn(self, worker: PoolWorker, source: TaskSource, *, took: bool) -> None:
        """Put a source that was served to the end of the line, if it has more."""
        if self.holding.sources:
            self.holding.drop_sent(source.origin)
        source.queued = source.left != 0 and took
        if source.queued:  # a source that had nothing is offered again when it has more
            self._sources.append(source)
            if not worker.chunks:  # no report will come: nothing could be pickled
                self._dispatch_soon()

    def _scale(self, worker: PoolWorker, source: TaskSource, left: int | None) -> float:
        """CREDIT-6: by what backlog and bursts of a map are multiplied at this worker now."""
        now = monotonic()
        if self._count_in_line() > 1:
            self._alone_from = now + ALONE_SECONDS
        if self._contended_until > now:
            return 1 / CONTENTION_PARTS
        if left is None or self._alone_from > now:
            return 1
        times = worker.credit.alone_times
        most = times * worker.credit.backlog(source.function.id) * len(self.workers)
        return times if 0 < 2 * most < left else 1

    def _count_in_line(self) -> int:
        return len(self._sources)

    def _fair_share(self, worker: PoolWorker, source: TaskSource, room: int) -> int:
        """QUEUE-6: how many of the next `room` tasks of a source this worker gets now."""
        return self._share_among(self.workers, worker, source, room)

    def _share_among(
        self, workers: list[PoolWorker], worker: PoolWorker, source: TaskSource, room: int
    ) -> int:
        """How many of `room` tasks are the part of a worker, if these workers share them."""
        top, left = worker.credit.in_flight + room, source.left
        if left is not None and left >= top * len(workers):
            return room
        if len(workers) == 1:
            # not `room` of an iterator: to pull so many may take long, and blocks the loop
            return room if left is not None else min(room, source.at_hand(room) or room)
        own, some = worker.credit.in_flight, self._any_takes_tasks()
        held = [
            other.credit.in_flight if other.takes_tasks or not some else own  # QUEUE-10
            for other in workers
            if not other.leaving
        ]
        lacking = sum(top - count for count in held if count < top)
        if left is None:
            left = source.at_hand(min(lacking, LOOK_AHEAD))
            if left >= LOOK_AHEAD:
                return room
        if left >= lacking or not left:  # with none at hand, take() finds out whether more come
            return room
        return min(room, level_of(held, left) - own)

    def _send_chunk(
        self, worker: PoolWorker, owner: TaskOwner, handles: Handles, items: list[Any]
    ) -> int:
        """Send as many of these as one frame carries, and put back the rest; returns how many.

        An item that cannot be pickled fails and does not count: no worker will report it. If a
        KeyboardInterrupt strikes while an item is pickled, all are put back and it is raised.
        """
        credit, total, function_id = worker.credit, len(items), owner.function.id
        try:
            payload, count, error = encode_items(items, 0, total, CHUNK_BYTES)
            shared = pass_collected(worker.link) if collected else ()
            if function_id not in worker.functions and count:
                self._send_function(worker, owner.function)
        except KeyboardInterrupt:
            owner.put_back(handles, items)
            raise
        except (MemoryError, OSError, ImportError, RuntimeError, PayloadTooLargeError) as refusal:
            return self._send_alone(worker, owner, handles, items, refusal)
        rest = whole = None
        if count != total:
            whole, rest = (handles, items), (handles[count:], items[count:])
            handles, items = handles[:count], items[:count]
        if count:
            chunk_id = credit.sent  # unique for this worker, and the number of its first task
            size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
            worker.chunks[chunk_id] = chunk = Chunk(owner, handles, items, chunk_id, size, shared)
            owner.note_chunk(handles, chunk)
            timeout = None if owner.options is DEFAULT_OPTIONS else owner.options.timeout
            now = monotonic()
            credit.send(count, function_id, now, size)
            # in two steps: CPython 3.11 finds an attribute faster than it looks up a method
            send = worker.link.send
            try:
                send(
                    CHUNK,
                    flags=owner.mode if timeout is None else owner.mode | TIMED,
                    count=count,
                    chunk_id=chunk_id,
                    offset=self._burst(worker, owner, now),
                    function=function_id,
                    payload=payload,
                )
            except (MemoryError, PayloadTooLargeError) as refusal:  # nothing of it was sent
                del worker.chunks[chunk_id]
                credit.take_back(count, function_id, size)
                return self._send_alone(worker, owner, *(whole or (handles, items)), refusal)
            if timeout is not None:
                worker.limit(timeout)
        return count if rest is None else count + self._after_rest(worker, owner, *rest, error)

    def _burst(self, worker: PoolWorker, owner: TaskOwner, now: float) -> int:
        """CREDIT-6: how many microseconds the worker may run before it sends results."""
        if owner.mode is APPLY:
            self._alone_from = now + ALONE_SECONDS
            return CONTENDED_BURST_US if self._contended_until > now else BURST_US
        return int(BURST_US * worker.credit.scale)

    def _after_rest(
        self,
        worker: PoolWorker,
        owner: TaskOwner,
        handles: Handles,
        items: list[Any],
        error: BaseException | None,
    ) -> int:
        """Deal with what a frame did not take; returns how many items were sent nevertheless.

        If pickle refused the first, with `error`, another serializer may take it.
        """
        try:
            sealed = None if error is None else self.choice.seal(items[0], error)
        except KeyboardInterrupt:
            owner.put_back(handles, items)
            raise
        if sealed is None:
            self._put_back_rest(owner, handles, items, error)
            return 0
        if len(items) > 1:
            owner.put_back(handles[1:], items[1:])
        return self._send_chunk(worker, owner, handles[:1], [sealed])

    def _send_alone(
        self,
        worker: PoolWorker,
        owner: TaskOwner,
        handles: Handles,
        items: list[Any],
        refusal: Exception,
    ) -> int:
        """Send only the first item, after the system refused what all need; one alone fails."""
        if len(items) == 1:
            self._put_back_rest(owner, handles, items, refusal)
            return 0
        owner.put_back(handles[1:], items[1:])
        return self._send_chunk(worker, owner, handles[:1], items[:1])

    def _send_function(self, worker: PoolWorker, function: Function) -> None:
        if function.shared:
            pass_to(worker.link, function.shared)
        worker.link.send(
            Kind.FUNCTION,
            flags=function.flags,
            function=function.id,
            payload=[function.payload],
        )
        worker.functions.add(function.id)
        if function.blocking and not function.for_streams:
            self._note_function(worker, function)

    def _note_function(self, worker: PoolWorker, function: Function) -> None:
        """The worker gets a plain function."""
        worker.credit.note_blocking(function.id)

    def _put_back_rest(
        self,
        owner: TaskOwner,
        handles: Handles,
        items: list[Any],
        error: BaseException | None,
    ) -> None:
        """Put back what a frame has no room for; `error` is why its first item cannot be sent."""
        if error is not None:
            self.counts.add_unsent(given_up=owner.gave_up(handles[0]))
            hint = self.choice.hint
            owner.fail(handles[0], explain_item(error, owner, handles[0], items[0], hint))
            handles, items = handles[1:], items[1:]
        if handles:
            owner.put_back(handles, items)

    # -- from workers to task sources ----------------------------------------------------------

    def on_frame(
        self,
        worker: PoolWorker,
        on_notice: OnNotice,
        kind: int,
        flags: int,
        count: int,
        chunk_id: int,
        offset: int,
        function: int,
        payload: Any,
    ) -> None:
        """Deliver what a frame reports, or pass it on. In one piece: each `apply` comes here."""
        if self._over and kind not in (LEAVING, LOG):
            return
        errors: Mapping[int, BaseException | exceptions.Failure] | None = None
        if worker.taken and (skip := count_taken(worker, kind, count, chunk_id, offset)):
            if skip < 0:
                return
            count, offset, values, errors = decode_rest(payload, count, offset, skip)
        elif kind == RESULTS:
            values, errors = decode_items(payload, count)
        elif kind in (ERROR, REFUSED, TIMED_OUT):
            count, values, errors = 1, [None], {0: load_error(payload)}
        else:
            self._on_other(worker, on_notice, kind, count, chunk_id, offset, payload)
            return
        chunk = worker.chunks.get(chunk_id)
        if chunk is None:
            self._refuse(chunk_id)
            return
        owner, handles, size = chunk.owner, chunk.handles, chunk.size
        if count != len(handles) or offset or chunk.left != count:  # a part of it
            chunk.report(offset, count)
            handles = handles[offset : offset + count]
            if chunk.left:
                size = 0
            else:
                del worker.chunks[chunk_id]
        else:
            del worker.chunks[chunk_id]
        worker.credit.report(count, owner.function.id, size)
        if errors is None:
            owner.deliver(handles, values, len(payload))
        else:
            causes = explain_each(kind, errors, owner, handles)
            self.counts.add_errors(owner, handles, causes)
            settle_failed(chunk, offset, handles, values, causes, len(payload))

    def _refuse(self, chunk_id: int) -> None:
        """Refuse a report on a chunk that the worker does not hold."""
        if not self._over:  # else user code ended the pool, while a value was unpickled
            raise CorruptHeaderError(f"a report on chunk {chunk_id}: this worker does not hold it")

    def _on_values(self, worker: PoolWorker, chunk_id: int, count: int, payload: Any) -> None:
        """Pass on the values of a stream that has not ended."""
        chunk = worker.chunks.get(chunk_id)
        if chunk is None or chunk.owner.mode is not Mode.STREAM:
            raise CorruptHeaderError(f"values of chunk {chunk_id}, which is no stream here")
        values, errors = decode_items(payload, count)
        source = cast("StreamSource", chunk.owner)
        causes = explain_each(RESULTS, errors, source, [source] * count) if errors else {}
        source.receive(worker, values, causes)

    def _on_other(
        self,
        worker: PoolWorker,
        on_notice: OnNotice,
        kind: int,
        count: int,
        chunk_id: int,
        offset: int,
        payload: Any,
    ) -> None:
        """A frame that brings no results."""
        if kind == RETURNED:
            self._take_back(worker, chunk_id, offset, count)
        elif kind == VALUES:
            self._on_values(worker, chunk_id, count, payload)
        elif kind == NEED_WORK:
            worker.credit.need_work(count, offset, chunk_id)
        else:
            on_notice(worker, kind, count, payload)

    def _take_back(self, worker: PoolWorker, chunk_id: int, offset: int, count: int) -> None:
        """QUEUE-8: put back what a worker that retires has not started."""
        chunk = worker.chunks.get(chunk_id)
        if chunk is None:
            raise CorruptHeaderError(f"chunk {chunk_id} is returned: this worker does not hold it")
        chunk.report(offset, count)
        if not chunk.left:
            del worker.chunks[chunk_id]
        owner, end = chunk.owner, offset + count
        worker.credit.take_back(count, owner.function.id, 0 if chunk.left else chunk.size)
        owner.put_back(chunk.handles[offset:end], chunk.items[offset:end])
        self.holding.hold_again(chunk)
        self._line_up_first(owner)
        self._dispatch_soon()

    def on_drained(self, worker: PoolWorker) -> None:
        """Adapt a worker's credit after a batch of its frames, and send what it allows."""
        worker.credit.settle(worker.link.counter.started, monotonic())
        if self._sources or self.retry_queue.unsettled:
            self.serve(worker)
        else:
            flush = worker.link.flush
            flush()  # in two steps: see `send` in `_send_chunk`
            blocked = worker.blocked
            if worker.chunks or (blocked is not None and blocked.waits_longer):
                worker.watch()  # QUEUE-9

    def on_blocked(self, worker: PoolWorker) -> None:
        """QUEUE-9: take what a worker has finished and, blocked by an item, cannot send."""
        if worker.chunks and worker.link_intact and not self._over:
            take_results(worker, partial(self.on_frame, worker, refuse_notice))
            worker.credit.settle(worker.link.started, monotonic())

    def on_death(self, worker: PoolWorker) -> None:
        """Settle or put back what a dead worker held (retry.py, RETRY-5 to RETRY-7)."""
        self.workers.remove(worker)
        if worker.link_intact:
            recover_results(worker, partial(self.on_frame, worker, refuse_notice))
        self.counts.ended += worker.credit.reported
        chunks, worker.chunks = list(worker.chunks.values()), {}
        if self._over:  # user code ended the pool, while a result in the journal was unpickled
            return
        counted = list(zip(chunks, self.retry_queue.count_started(worker, chunks), strict=True))
        for chunk, started in reversed(counted):  # each goes to the front, the oldest last
            self._put_back_unstarted(chunk, started)
        deadlines = worker.deadlines
        for chunk, started in counted:
            for at in chunk.unreported(0, started):
                owner, handle = chunk.owner, chunk.handles[at]
                if deadlines is not None and deadlines.is_over(chunk.first + at + 1):
                    self.counts.add_killed(given_up=owner.gave_up(handle))
                    killed = bool(deadlines.why_killed)  # else a neighbour's death has ended it
                    owner.fail(handle, explain_timeout(owner, handle, killed=killed))  # DEADLINE-3
                    continue
                why = "" if deadlines is None else deadlines.why_killed
                error = explain_loss(owner, handle, worker, why)
                self.retry_queue.lose(owner, handle, chunk.items[at], error, chunk.shared)

    def _put_back_unstarted(self, chunk: Chunk, started: int) -> None:
        """Return what a dead worker had not started; its source is served next."""
        rest = chunk.unreported(started, len(chunk.handles))
        if not rest:
            return
        owner = chunk.owner
        owner.put_back([chunk.handles[at] for at in rest], [chunk.items[at] for at in rest])
        self.holding.hold_again(chunk)
        self._line_up_first(owner)

    def _line_up_first(self, owner: TaskOwner) -> None:
        """Serve an owner next that got tasks back."""
        if not isinstance(owner, RetryTask):  # which has put itself into a line of its own
            source = cast("TaskSource", owner)
            if not source.queued:
                self._put_first(source)


def settle_failed(
    chunk: Chunk,
    offset: int,
    handles: Handles,
    values: list[Any],
    causes: dict[int, BaseException],
    size: int,
) -> None:
    """Settle the tasks of a report in which those of `causes`, by offset, have failed."""
    explain_star(chunk, offset, causes)
    settle_each(chunk.owner, handles, values, causes, size // len(values))


class PreparingQueue(Queue):
    """A queue that looks at each item before it is pickled (serializers.py)."""

    def _send_chunk(
        self, worker: PoolWorker, owner: TaskOwner, handles: Handles, items: list[Any]
    ) -> int:
        try:
            prepared = list(map(self.choice.prepared, items))
        except BaseException:  # as in the base class; none but an interrupt is expected
            owner.put_back(handles, items)
            raise
        return super()._send_chunk(worker, owner, handles, prepared)


def preparing(kind: type[Queue]) -> type[Queue]:
    """A class of queues as `kind`, which also prepares items."""
    return type("PreparingQueue", (PreparingQueue, kind), {})


def level_of(held: list[int], tasks: int) -> int:
    """How high `tasks` more fill workers that hold `held`, the emptiest first (QUEUE-6)."""
    held.sort()
    total, level = tasks, 0
    for count, own in enumerate(held, 1):
        total += own
        level = -(-total // count)
        if count < len(held) and level <= held[count]:
            break
    return level


def refuse_notice(worker: PoolWorker, kind: int, count: int, payload: Any) -> None:
    """A journal holds results and errors, and nothing else."""
    raise CorruptHeaderError(f"an entry of kind {kind}")
