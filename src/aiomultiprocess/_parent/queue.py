"""A queue of a pool: a line of feeds, the workers that serve it, and the chunks between them.

    feed --take()--> chunk --send--> worker --results, errors--> feed
      ^                |
      +---put_back()---+--lose()--> suspects --alone--> worker
        (the worker died before it started a task, or after)

Work waits here, in the parent, and becomes a *chunk* (one frame, tasks of one feed) only when a
worker has credit for it (credit.py). The engine owns the queues; a user's scheduler knows them by
number.

QUEUE-1  Exactly once. A task is in its feed, or in one chunk of one worker, or settled. A chunk
    (chunk.py) marks each offset that was reported; the death of its worker settles or returns the
    others.
QUEUE-2  A task is returned to its feed only if its worker had not marked it started (_worker/engine.py, WORKER-1). One
    that was started has failed, unless its caller said that it may run again (retry.py). The
    mark is in memory that a worker can damage: of one that broke its link, all count as started.
QUEUE-3  Feeds are served in turn, a chunk each, so that an `apply` does not wait behind a `map`; and
    while a worker has no room for the feed whose turn it is, calls may pass (credit.py, CREDIT-4, CREDIT-6).
QUEUE-4  Tasks are not returned for ever. If `DEATHS_BEFORE_START` workers in a row die with a chunk that
    they had not begun, receiving it is what kills them, and its tasks are lost as if started.
QUEUE-6  Even spread. Whether an item waits or computes is not known before it runs, so free slots say
    nothing of how fast a worker will be done. A worker is therefore filled no higher than all
    workers together can be filled with the tasks that are left, counting what each holds: of n
    tasks over k idle workers each gets at most ceil(n / k), and a worker that holds nothing is
    never refused one. Where more than enough is left this limits nothing. Of an input of unknown
    length as many items are looked for as that takes, at most `LOOK_AHEAD`, and no more than
    arrive within a few milliseconds (sources.py); beyond them it counts as more than enough.
QUEUE-5  What a dead worker had finished is not lost: its journal is heard after its link. What was
    reported before is skipped, and a journal that makes no sense is heard no further.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from .. import _accel, _legacy
from .._wire import exceptions, journal
from .._wire.frames import CorruptHeaderError, Kind, Mode
from .calls import CallQueue
from .chunk import Chunk, settle_each
from .credit import BURST_US, CONTENTION_PARTS, MOST_BYTES
from .errors import INTERRUPTS, explain_each, explain_item, explain_loss, explain_star, load_error
from .feed import Handles, TaskOwner, TaskSource
from .functions import Function
from .retry import RetryQueue, RetryTask

if TYPE_CHECKING:
    from .worker import PoolWorker

decode_items, encode_items = _accel.decode_items, _accel.encode_items

CHUNK_BYTES = (
    64 << 10
)  # about how much one CHUNK frame carries: one record of a ring (shm.py, SHM-1)
DEATHS_BEFORE_START = 3
LOOK_AHEAD = 8192  # items of an input of unknown length that are looked for at the most (QUEUE-6)
CONTENTION_SECONDS = 0.05  # seconds for which one call that had to wait tells of more (CREDIT-6)
# as plain numbers: to compare with an enum's member takes long
CHUNK, RESULTS = int(Kind.CHUNK), int(Kind.RESULTS)
ERROR, REFUSED = int(Kind.ERROR), int(Kind.REFUSED)
LEAVING = int(Kind.LEAVING)

OnNotice: TypeAlias = Callable[["PoolWorker", int, int, Any], None]

log = logging.getLogger(__name__)


class Queue:
    """The feeds that wait for one group of workers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.workers: list[PoolWorker] = []
        self.calls: dict[int, CallQueue] = {}  # the `apply` of each function, by its id
        self.retry_queue = RetryQueue()
        self._sources: deque[TaskSource] = deque()
        self._loop = loop
        self._call_backlog: deque[CallQueue] = deque()  # calls that may pass, if they still wait
        self._contended_until = 0.0
        self._dispatch_scheduled = False
        self._over = False
        self._deaths = 0  # of workers that had work and had begun none of it, in a row

    if not TYPE_CHECKING:  # or every attribute would be known to type checkers

        def __getattr__(self, name: str) -> NoReturn:
            _legacy.refuse_attribute(self, name, _legacy.QUEUE)

    # -- from feeds to workers -----------------------------------------------------------------

    def call(self, calls: CallQueue, future: asyncio.Future[Any], item: Any) -> None:
        """Give one `apply` to the workers, directly if nothing waits and one of them is idle.

        An idle worker has room for one task of any function (credit.py, CREDIT-1), unless it leaves.
        """
        calls.expect(future)
        if not self._sources and not self.retry_queue.unsettled:
            for worker in self.workers:
                if not worker.chunks and not worker.leaving and not worker.link.congested:
                    try:
                        self._send_chunk(worker, calls, (future,), [item])
                    except KeyboardInterrupt:  # nobody will wait for it: see _send_chunk
                        future.cancel()
                        self._line_up(calls)
                        raise
                    if worker.credit.spent:
                        worker.leave()
                    worker.link.flush()
                    return
        calls.wait((future, item))
        if not (
            self._dispatch_scheduled and calls.queued and calls.in_call_backlog
        ):  # else it has been offered
            self.offer(calls)

    def offer(self, source: TaskSource) -> None:
        """Put a feed into the line and let workers have it.

        At once if one of them is idle. Otherwise in the next turn of the loop, so that calls made
        together travel together.
        """
        if not source.queued:
            source.queued = True
            self._sources.append(source)
        if not self._dispatch_scheduled:
            for worker in self.workers:
                if not worker.chunks:
                    self.serve(worker)
                    break
            if not self._sources:
                return
            self._dispatch_soon()
        if isinstance(source, CallQueue) and not source.in_call_backlog:
            source.in_call_backlog = True
            self._call_backlog.append(source)

    def _line_up(self, source: TaskSource) -> None:
        """Put a feed in front of the line, where it may stand already; it is served soon."""
        if source not in self._sources:
            source.queued = True
            self._sources.appendleft(source)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self._loop.call_soon(self.dispatch_all)

    def dispatch_all(self) -> None:
        """Offer what waits to every worker, those with least to do first."""
        self._dispatch_scheduled = False
        for worker in sorted(self.workers, key=lambda worker: worker.credit.in_flight):
            if not self._sources and not self.retry_queue.line:
                break
            self.serve(worker)

    def serve(self, worker: PoolWorker) -> None:
        """Send one worker as much as it has credit for."""
        if self.retry_queue.unsettled and self._serve_retry(worker):
            return
        if self._sources and not worker.leaving:
            for _ in range(len(self._sources)):  # each once: others have a share in it too
                if not self._sources or not self._serve_next(worker):
                    break
            if self._call_backlog:
                self._let_calls_overtake(worker)
            if worker.credit.spent:
                worker.leave()
        worker.link.flush()

    def _let_calls_overtake(self, worker: PoolWorker) -> None:
        """QUEUE-3: send calls to a worker that has no room for those whose turn it is."""
        in_call_backlog = self._call_backlog
        while in_call_backlog and not in_call_backlog[0].left:
            in_call_backlog.popleft().in_call_backlog = False
        if not in_call_backlog or worker.link.congested:
            return
        self._contended_until = monotonic() + CONTENTION_SECONDS
        calls = in_call_backlog[0]
        room = worker.credit.overtake(worker.link.started, calls.function.id)
        handles, items = calls.take(room)
        if handles:
            self._send_chunk(worker, calls, handles, items)
            worker.credit.have_overtaken()
            in_call_backlog.rotate(-1)

    def clear(self) -> None:
        """The pool is over: nothing waits any more, and no answer is expected.

        Nor does anything lead back to the engine, which goes with the last that refers to it.
        """
        self._over = True
        self._sources.clear()
        self.calls.clear()
        self.retry_queue.clear()
        self._call_backlog.clear()
        for worker in self.workers:
            worker.chunks.clear()

    def forget(self, source: object, function: Function) -> None:
        """A feed of this function has ended; a function with state ends with its feed."""
        if self.calls.get(function.id) is source:
            del self.calls[function.id]
        if function.permanent:
            return
        for worker in self.workers:
            worker.credit.forget(function.id)
            if function.id in worker.functions:
                worker.functions.discard(function.id)
                worker.link.send(Kind.FORGET, function=function.id)
                worker.link.flush()  # it may get nothing else for long, and that state may be large

    def _serve_retry(self, worker: PoolWorker) -> bool:
        """Send the next suspect, if it is this worker's; True if the worker gets nothing else."""
        while (retry_task := self.retry_queue.next_for(worker)) is not None:
            self._send_chunk(worker, retry_task, [retry_task.handle], [retry_task.item])
            self._dispatch_soon()  # no other worker has to fall idle for it now (RETRY-3)
        if worker.credit.spent:
            worker.leave()
        worker.link.flush()
        return self.retry_queue.claim(worker, self.workers)

    def _serve_next(self, worker: PoolWorker) -> bool:
        """QUEUE-3: send what the first feed in line may have, and let it go to the end of the line.

        False if it may have nothing now: it keeps its place, and those behind it wait.
        """
        source, link, credit = self._sources[0], worker.link, worker.credit
        left = source.left
        work_is_ample = (
            None if left is None else left > 2 * len(self.workers) * credit.concurrency_seen
        )
        contended = source.mode is not Mode.APPLY and self._contended_until > monotonic()
        room = credit.room(
            link.started, source.function.id, work_is_ample=work_is_ample, contended=contended
        )
        if room <= 0 or link.congested:
            return False
        self._sources.popleft()  # before an input is asked, whose code may lead back here
        handles: Handles = ()
        refused = False
        try:
            room = self._fair_share(worker, source, room)
            refused = room <= 0
            while room > 0 and not link.congested:
                handles, items = source.take(room)
                if not handles:
                    break
                room -= self._send_chunk(worker, source, handles, items)
                if credit.bytes >= MOST_BYTES:  # CREDIT-5: no backlog, so nothing is pressed
                    room = min(
                        room,
                        credit.room(link.started, source.function.id, work_is_ample=work_is_ample),
                    )
        except INTERRUPTS:
            self._line_up(source)
            raise
        if refused and not self._over:
            self._sources.appendleft(source)
            return False
        source.queued = source.left != 0 and bool(handles)
        if source.queued:  # else it comes back when it has more
            self._sources.append(source)
        return True

    def _fair_share(self, worker: PoolWorker, source: TaskSource, room: int) -> int:
        """QUEUE-6: how many of the next `room` tasks of a feed this worker may have now."""
        top, left = worker.credit.in_flight + room, source.left
        if left is not None and left >= top * len(self.workers):
            return room
        if len(self.workers) == 1:
            return room
        held = [fellow.credit.in_flight for fellow in self.workers if not fellow.leaving]
        lacking = sum(top - count for count in held if count < top)
        if left is None:
            left = source.at_hand(min(lacking, LOOK_AHEAD))
            if left >= LOOK_AHEAD:
                return room
        if left >= lacking or not left:  # none at hand: the feed says whether more will come
            return room
        return min(room, level_of(held, left) - worker.credit.in_flight)

    def _send_chunk(
        self, worker: PoolWorker, source: TaskOwner, handles: Handles, items: list[Any]
    ) -> int:
        """Send as many of these as one frame carries and put back the rest; returns how many went.

        One that cannot be sent fails and does not count: its answer will not bring the next turn.
        A KeyboardInterrupt of the program's, while an item was pickled, is raised: all are back.
        """
        function, credit = source.function, worker.credit
        try:
            payload, count, error = encode_items(items, 0, len(items), CHUNK_BYTES)
            if count and function.id not in worker.functions:
                self._send_function(worker, function)
        except KeyboardInterrupt:
            source.put_back(handles, items)
            raise
        except MemoryError as refusal:
            return self._send_alone(worker, source, handles, items, refusal)
        rest, whole = None, (handles, items)
        if count != len(items):
            rest = handles[count:], items[count:]
            handles, items = handles[:count], items[:count]
        if count:
            chunk_id = credit.sent  # unique for this worker, and it counts in order
            size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
            worker.chunks[chunk_id] = chunk = Chunk(source, handles, items, chunk_id, size)
            if isinstance(source, (CallQueue, RetryTask)):
                source.note_chunk(handles, chunk)
            now = monotonic()
            credit.send(count, function.id, now, size)
            try:
                worker.link.send(
                    CHUNK,
                    flags=source.mode,
                    count=count,
                    chunk_id=chunk_id,
                    offset=BURST_US // CONTENTION_PARTS
                    if self._contended_until > now
                    else BURST_US,
                    function=function.id,
                    payload=payload,
                )
            except MemoryError as refusal:  # nothing of it is under way
                del worker.chunks[chunk_id]
                credit.take_back(count, function.id, size)
                return self._send_alone(worker, source, *whole, refusal)
        if rest is not None:
            self._keep(source, *rest, error)
        return count

    def _send_alone(
        self,
        worker: PoolWorker,
        source: TaskOwner,
        handles: Handles,
        items: list[Any],
        refusal: MemoryError,
    ) -> int:
        """Go on with the first of what was together too much for memory; alone it fails."""
        if len(items) == 1:
            self._keep(source, handles, items, refusal)
            return 0
        source.put_back(handles[1:], items[1:])
        return self._send_chunk(worker, source, handles[:1], items[:1])

    def _send_function(self, worker: PoolWorker, function: Function) -> None:
        worker.link.send(
            Kind.FUNCTION,
            flags=function.stateful,
            function=function.id,
            payload=[function.payload],
        )
        worker.functions.add(function.id)

    def _keep(
        self,
        source: TaskOwner,
        handles: Handles,
        items: list[Any],
        error: BaseException | None,
    ) -> None:
        """Put back what a frame had no room for; the first of it failed, if there is an error."""
        if error is not None:
            source.fail(handles[0], explain_item(error, source, handles[0], items[0]))
            handles, items = handles[1:], items[1:]
        if handles:
            source.put_back(handles, items)

    def _return(self, source: TaskOwner, handles: Handles, items: list[Any]) -> None:
        source.put_back(handles, items)
        if not isinstance(source, RetryTask):
            source = cast("TaskSource", source)
            if not source.queued:
                source.queued = True
                self._sources.appendleft(source)

    # -- from workers to feeds -----------------------------------------------------------------

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
        """A frame from a worker: results, an error, or something for `on_notice`.

        One function, and not one for each step: every `apply` comes through here.
        """
        if self._over and kind != LEAVING:
            return  # everything is settled already
        errors: Mapping[int, BaseException | exceptions.Failure] | None = None
        if kind == RESULTS:
            values, errors = decode_items(payload, count)
        elif kind in (ERROR, REFUSED):
            count, values = 1, [None]
            errors = {0: load_error(payload)}
        else:
            on_notice(worker, kind, count, payload)
            return
        chunk = worker.chunks.get(chunk_id)
        if chunk is None:
            if self._over:  # ended by user code, while a value was unpickled
                return
            raise CorruptHeaderError(
                f"an answer to chunk {chunk_id}, which this worker does not hold"
            )
        source, handles, size = chunk.owner, chunk.handles, chunk.size
        if count != len(handles) or offset or chunk.left != count:  # not all of it at once
            chunk.report(offset, count)
            handles = handles[offset : offset + count]
            if chunk.left:
                size = 0
            else:
                del worker.chunks[chunk_id]
        else:
            del worker.chunks[chunk_id]
        worker.credit.report(count, source.function.id, size)
        if errors is None:
            source.deliver(handles, values, len(payload))
        else:
            name_unpicklable = explain_each(kind, errors, source, handles)
            explain_star(chunk, offset, name_unpicklable)
            settle_each(source, handles, values, name_unpicklable, len(payload) // count)

    def on_drained(self, worker: PoolWorker) -> None:
        """A batch of answers was heard: adapt the worker's credit and send what it allows."""
        worker.credit.settle(worker.link.counter.started, monotonic())
        if self._sources or self.retry_queue.unsettled:
            self.serve(worker)
        else:
            worker.link.flush()

    def on_death(self, worker: PoolWorker) -> None:
        """QUEUE-1, QUEUE-2: what the dead worker had started is lost, the rest returns to the feeds."""
        self.workers.remove(worker)
        if worker.link_intact:
            self._hear_journal(worker)
        chunks, worker.chunks = list(worker.chunks.values()), {}
        if self._over:  # ended by user code, to which a result in the journal has led
            return
        doomed = self._is_poisonous(worker, chunks)
        lost: list[tuple[Chunk, int]] = []
        for chunk in reversed(chunks):  # reversed: what is returned goes to the front
            begun = min(max(worker.link.started - chunk.first, 0), len(chunk.handles))
            if not worker.link_intact or (doomed and chunk is chunks[0]):
                begun = len(chunk.handles)
            lost[:0] = [(chunk, at) for at in chunk.unreported(0, begun)]
            rest = chunk.unreported(begun, len(chunk.handles))
            if rest:
                handles = [chunk.handles[at] for at in rest]
                self._return(chunk.owner, handles, [chunk.items[at] for at in rest])
        for chunk, at in lost:
            handle = chunk.handles[at]
            error = explain_loss(chunk.owner, handle, worker.pid, worker.exitcode)
            self.retry_queue.lose(chunk.owner, handle, chunk.items[at], error)

    def _hear_journal(self, worker: PoolWorker) -> None:
        """QUEUE-5."""
        try:
            with worker.link.journal as memory:
                left = bytes(memory)  # its last entry may end the pool, which closes the link
            for entry in journal.read(memoryview(left)):
                self._hear_entry(worker, *entry)
        except Exception as error:  # whatever it is, no more of it can be believed
            log.error("worker %s: its journal is broken", worker.pid, exc_info=error)

    def _hear_entry(
        self,
        worker: PoolWorker,
        kind: int,
        chunk_id: int,
        offset: int,
        count: int,
        payload: memoryview,
    ) -> None:
        chunk = worker.chunks.get(chunk_id)
        if chunk is None:  # all of it was reported
            return
        end = offset + count
        if not count or end > len(chunk.handles) or chunk.first + end > worker.link.started:
            raise CorruptHeaderError(f"answers to tasks {offset} to {end} of chunk {chunk_id}")
        if not chunk.unreported(offset, end):
            return
        if kind in (ERROR, REFUSED) and count != 1:
            raise CorruptHeaderError(f"one error of {count} tasks")
        self.on_frame(worker, refuse_entry, kind, 0, count, chunk_id, offset, 0, payload)

    def _is_poisonous(self, worker: PoolWorker, chunks: list[Chunk]) -> bool:
        """QUEUE-4: whether it must be the first of these chunks that kills workers."""
        if not chunks or not worker.ready:  # one that was not ready had received nothing
            return False
        begun = worker.link.started > chunks[0].first
        self._deaths = 0 if begun else self._deaths + 1
        if self._deaths < DEATHS_BEFORE_START:
            return False
        self._deaths = 0
        return True


def level_of(held: list[int], tasks: int) -> int:
    """How high workers that hold so many tasks each are filled, lowest first, by `tasks` more."""
    held.sort()
    total, level = tasks, 0
    for count, own in enumerate(held, 1):
        total += own
        level = -(-total // count)
        if count < len(held) and level <= held[count]:
            break
    return level


def refuse_entry(worker: PoolWorker, kind: int, count: int, payload: Any) -> None:
    """A journal holds answers and nothing else."""
    raise CorruptHeaderError(f"an entry of kind {kind}")
