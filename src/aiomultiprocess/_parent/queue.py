"""A queue of a pool: a line of feeds, the workers that serve it, and the chunks between them.

    feed --take()--> chunk --send--> worker --results, errors--> feed
      ^                |
      +---put_back()---+--lose()--> suspects --alone--> worker
        (the worker died before it started a task, or after)

Work waits here, in the parent, and becomes a *chunk* (one frame, tasks of one feed) only when a
worker has credit for it (credit.py). The engine owns the queues; a user's scheduler knows them by
number.

Q1  Exactly once. A task is in its feed, or in one chunk of one worker, or settled. A chunk
    (chunks.py) marks each offset that was reported; the death of its worker settles or returns the
    others.
Q2  A task is returned to its feed only if its worker had not marked it started (child.py, W1). One
    that was started has failed, unless its caller said that it may run again (suspects.py). The
    mark is in memory that a worker can damage: of one that broke its link, all count as started.
Q3  Feeds are served in turn, a chunk each, so that an `apply` does not wait behind a `map`; and
    while a worker has no room for the feed whose turn it is, calls may pass (credit.py, K4, K6).
Q4  Tasks are not returned for ever. If `DEATHS_BEFORE_START` workers in a row die with a chunk that
    they had not begun, receiving it is what kills them, and its tasks are lost as if started.
Q6  Even spread. Whether an item waits or computes is not known before it runs, so free slots say
    nothing of how fast a worker will be done. A worker is therefore filled no higher than all
    workers together can be filled with the tasks that are left, counting what each holds: of n
    tasks over k idle workers each gets at most ceil(n / k), and a worker that holds nothing is
    never refused one. Where more than enough is left this limits nothing. Of an input of unknown
    length as many items are looked for as that takes, at most `LOOK_AHEAD`, and no more than
    arrive within a few milliseconds (sources.py); beyond them it counts as more than enough.
Q5  What a dead worker had finished is not lost: its journal is heard after its link. What was
    reported before is skipped, and a journal that makes no sense is heard no further.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from .. import _accel, _legacy
from .._wire import exceptions, journal
from .._wire.frames import CorruptHeaderError, Kind, Mode
from .calls import Calls
from .chunk import Chunk, settle_each
from .credit import BURST, MOST_BYTES, PRESSED
from .errors import INTERRUPTS, explain_each, explain_item, explain_loss, explain_star, load_error
from .feed import Feed, Slots
from .functions import Function
from .retry import Suspect, Suspects

if TYPE_CHECKING:
    from .worker import PoolWorker

decode_items, encode_items = _accel.decode_items, _accel.encode_items

CHUNK_BYTES = 64 << 10  # about how much one CHUNK frame carries: one record of a ring (shm.py, S1)
DEATHS_BEFORE_START = 3
LOOK_AHEAD = 8192  # items of an input of unknown length that are looked for at the most (Q6)
PRESSED_FOR = 0.05  # seconds for which one call that had to wait tells of more (K6)
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
        self.calls: dict[int, Calls] = {}  # the `apply` of each function, by its id
        self.suspects = Suspects()
        self._feeds: deque[Feed] = deque()
        self._loop = loop
        self._hurried: deque[Calls] = deque()  # calls that may pass, if they still wait
        self._pressed_until = 0.0
        self._kicked = False
        self._over = False
        self._deaths = 0  # of workers that had work and had begun none of it, in a row

    if not TYPE_CHECKING:  # or every attribute would be known to type checkers

        def __getattr__(self, name: str) -> NoReturn:
            _legacy.refuse_attribute(self, name, _legacy.QUEUE)

    # -- from feeds to workers -----------------------------------------------------------------

    def call(self, calls: Calls, future: asyncio.Future[Any], item: Any) -> None:
        """Give one `apply` to the workers, directly if nothing waits and one of them is idle.

        An idle worker has room for one task of any function (credit.py, K1), unless it leaves.
        """
        calls.expect(future)
        if not self._feeds and not self.suspects.unsettled:
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
        if not (self._kicked and calls.queued and calls.hurried):  # else it has been offered
            self.offer(calls)

    def offer(self, feed: Feed) -> None:
        """Put a feed into the line and let workers have it.

        At once if one of them is idle. Otherwise in the next turn of the loop, so that calls made
        together travel together.
        """
        if not feed.queued:
            feed.queued = True
            self._feeds.append(feed)
        if not self._kicked:
            for worker in self.workers:
                if not worker.chunks:
                    self.serve(worker)
                    break
            if not self._feeds:
                return
            self._kick_soon()
        if isinstance(feed, Calls) and not feed.hurried:
            feed.hurried = True
            self._hurried.append(feed)

    def _line_up(self, feed: Feed) -> None:
        """Put a feed in front of the line, where it may stand already; it is served soon."""
        if feed not in self._feeds:
            feed.queued = True
            self._feeds.appendleft(feed)
        self._kick_soon()

    def _kick_soon(self) -> None:
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self.kick)

    def kick(self) -> None:
        """Offer what waits to every worker, those with least to do first."""
        self._kicked = False
        for worker in sorted(self.workers, key=lambda worker: worker.credit.in_flight):
            if not self._feeds and not self.suspects.line:
                break
            self.serve(worker)

    def serve(self, worker: PoolWorker) -> None:
        """Send one worker as much as it has credit for."""
        if self.suspects.unsettled and self._serve_suspect(worker):
            return
        if self._feeds and not worker.leaving:
            for _ in range(len(self._feeds)):  # each once: others have a share in it too
                if not self._feeds or not self._serve_next(worker):
                    break
            if self._hurried:
                self._let_calls_pass(worker)
            if worker.credit.spent:
                worker.leave()
        worker.link.flush()

    def _let_calls_pass(self, worker: PoolWorker) -> None:
        """Q3: send calls to a worker that has no room for those whose turn it is."""
        hurried = self._hurried
        while hurried and not hurried[0].left:
            hurried.popleft().hurried = False
        if not hurried or worker.link.congested:
            return
        self._pressed_until = monotonic() + PRESSED_FOR
        calls = hurried[0]
        room = worker.credit.passing(worker.link.started, calls.function.id)
        slots, items = calls.take(room)
        if slots:
            self._send_chunk(worker, calls, slots, items)
            worker.credit.have_passed()
            hurried.rotate(-1)

    def clear(self) -> None:
        """The pool is over: nothing waits any more, and no answer is expected.

        Nor does anything lead back to the engine, which goes with the last that refers to it.
        """
        self._over = True
        self._feeds.clear()
        self.calls.clear()
        self.suspects.clear()
        self._hurried.clear()
        for worker in self.workers:
            worker.chunks.clear()

    def forget(self, feed: object, function: Function) -> None:
        """A feed of this function has ended; a function with state ends with its feed."""
        if self.calls.get(function.id) is feed:
            del self.calls[function.id]
        if function.permanent:
            return
        for worker in self.workers:
            worker.credit.forget(function.id)
            if function.id in worker.functions:
                worker.functions.discard(function.id)
                worker.link.send(Kind.FORGET, function=function.id)
                worker.link.flush()  # it may get nothing else for long, and that state may be large

    def _serve_suspect(self, worker: PoolWorker) -> bool:
        """Send the next suspect, if it is this worker's; True if the worker gets nothing else."""
        while (suspect := self.suspects.next_for(worker)) is not None:
            self._send_chunk(worker, suspect, [suspect.slot], [suspect.item])
            self._kick_soon()  # no other worker has to fall idle for it now (A3)
        if worker.credit.spent:
            worker.leave()
        worker.link.flush()
        return self.suspects.claim(worker, self.workers)

    def _serve_next(self, worker: PoolWorker) -> bool:
        """Q3: send what the first feed in line may have, and let it go to the end of the line.

        False if it may have nothing now: it keeps its place, and those behind it wait.
        """
        feed, link, credit = self._feeds[0], worker.link, worker.credit
        left = feed.left
        plenty = None if left is None else left > 2 * len(self.workers) * credit.slots
        pressed = feed.mode is not Mode.APPLY and self._pressed_until > monotonic()
        room = credit.room(link.started, feed.function.id, plenty=plenty, pressed=pressed)
        if room <= 0 or link.congested:
            return False
        self._feeds.popleft()  # before an input is asked, whose code may lead back here
        slots: Slots = ()
        refused = False
        try:
            room = self._fair_share(worker, feed, room)
            refused = room <= 0
            while room > 0 and not link.congested:
                slots, items = feed.take(room)
                if not slots:
                    break
                room -= self._send_chunk(worker, feed, slots, items)
                if credit.bytes >= MOST_BYTES:  # K5: no backlog, so nothing is pressed
                    room = min(room, credit.room(link.started, feed.function.id, plenty=plenty))
        except INTERRUPTS:
            self._line_up(feed)
            raise
        if refused and not self._over:
            self._feeds.appendleft(feed)
            return False
        feed.queued = feed.left != 0 and bool(slots)
        if feed.queued:  # else it comes back when it has more
            self._feeds.append(feed)
        return True

    def _fair_share(self, worker: PoolWorker, feed: Feed, room: int) -> int:
        """Q6: how many of the next `room` tasks of a feed this worker may have now."""
        top, left = worker.credit.in_flight + room, feed.left
        if left is not None and left >= top * len(self.workers):
            return room
        if len(self.workers) == 1:
            return room
        held = [fellow.credit.in_flight for fellow in self.workers if not fellow.leaving]
        lacking = sum(top - count for count in held if count < top)
        if left is None:
            left = feed.at_hand(min(lacking, LOOK_AHEAD))
            if left >= LOOK_AHEAD:
                return room
        if left >= lacking or not left:  # none at hand: the feed says whether more will come
            return room
        return min(room, level_of(held, left) - worker.credit.in_flight)

    def _send_chunk(
        self, worker: PoolWorker, feed: Feed | Suspect, slots: Slots, items: list[Any]
    ) -> int:
        """Send as many of these as one frame carries and put back the rest; returns how many went.

        One that cannot be sent fails and does not count: its answer will not bring the next turn.
        A KeyboardInterrupt of the program's, while an item was pickled, is raised: all are back.
        """
        function, credit = feed.function, worker.credit
        try:
            payload, count, error = encode_items(items, 0, len(items), CHUNK_BYTES)
            if count and function.id not in worker.functions:
                self._send_function(worker, function)
        except KeyboardInterrupt:
            feed.put_back(slots, items)
            raise
        except MemoryError as refusal:
            return self._send_alone(worker, feed, slots, items, refusal)
        rest, whole = None, (slots, items)
        if count != len(items):
            rest = slots[count:], items[count:]
            slots, items = slots[:count], items[:count]
        if count:
            ident = credit.sent  # unique for this worker, and it counts in order
            size = len(payload[0]) if len(payload) == 1 else sum(map(len, payload))
            worker.chunks[ident] = chunk = Chunk(feed, slots, items, ident, size)
            if isinstance(feed, (Calls, Suspect)):
                feed.note_chunk(slots, chunk)
            now = monotonic()
            credit.send(count, function.id, now, size)
            try:
                worker.link.send(
                    CHUNK,
                    flags=feed.mode,
                    count=count,
                    ident=ident,
                    offset=BURST // PRESSED if self._pressed_until > now else BURST,
                    function=function.id,
                    payload=payload,
                )
            except MemoryError as refusal:  # nothing of it is under way
                del worker.chunks[ident]
                credit.take_back(count, function.id, size)
                return self._send_alone(worker, feed, *whole, refusal)
        if rest is not None:
            self._keep(feed, *rest, error)
        return count

    def _send_alone(
        self,
        worker: PoolWorker,
        feed: Feed | Suspect,
        slots: Slots,
        items: list[Any],
        refusal: MemoryError,
    ) -> int:
        """Go on with the first of what was together too much for memory; alone it fails."""
        if len(items) == 1:
            self._keep(feed, slots, items, refusal)
            return 0
        feed.put_back(slots[1:], items[1:])
        return self._send_chunk(worker, feed, slots[:1], items[:1])

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
        feed: Feed | Suspect,
        slots: Slots,
        items: list[Any],
        error: BaseException | None,
    ) -> None:
        """Put back what a frame had no room for; the first of it failed, if there is an error."""
        if error is not None:
            feed.fail(slots[0], explain_item(error, feed, slots[0], items[0]))
            slots, items = slots[1:], items[1:]
        if slots:
            feed.put_back(slots, items)

    def _return(self, feed: Feed | Suspect, slots: Slots, items: list[Any]) -> None:
        feed.put_back(slots, items)
        if not isinstance(feed, Suspect) and not feed.queued:
            feed.queued = True
            self._feeds.appendleft(feed)

    # -- from workers to feeds -----------------------------------------------------------------

    def on_frame(
        self,
        worker: PoolWorker,
        on_notice: OnNotice,
        kind: int,
        flags: int,
        count: int,
        ident: int,
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
        chunk = worker.chunks.get(ident)
        if chunk is None:
            if self._over:  # ended by user code, while a value was unpickled
                return
            raise CorruptHeaderError(f"an answer to chunk {ident}, which this worker does not hold")
        feed, slots, size = chunk.feed, chunk.slots, chunk.size
        if count != len(slots) or offset or chunk.left != count:  # not all of it at once
            chunk.report(offset, count)
            slots = slots[offset : offset + count]
            if chunk.left:
                size = 0
            else:
                del worker.chunks[ident]
        else:
            del worker.chunks[ident]
        worker.credit.report(count, feed.function.id, size)
        if errors is None:
            feed.deliver(slots, values, len(payload))
        else:
            explained = explain_each(kind, errors, feed, slots)
            explain_star(chunk, offset, explained)
            settle_each(feed, slots, values, explained, len(payload) // count)

    def on_drained(self, worker: PoolWorker) -> None:
        """A batch of answers was heard: adapt the worker's credit and send what it allows."""
        worker.credit.settle(worker.link.counter.started, monotonic())
        if self._feeds or self.suspects.unsettled:
            self.serve(worker)
        else:
            worker.link.flush()

    def on_death(self, worker: PoolWorker) -> None:
        """Q1, Q2: what the dead worker had started is lost, the rest returns to the feeds."""
        self.workers.remove(worker)
        if worker.trusted:
            self._hear_journal(worker)
        chunks, worker.chunks = list(worker.chunks.values()), {}
        if self._over:  # ended by user code, to which a result in the journal has led
            return
        doomed = self._is_poisonous(worker, chunks)
        lost: list[tuple[Chunk, int]] = []
        for chunk in reversed(chunks):  # reversed: what is returned goes to the front
            begun = min(max(worker.link.started - chunk.first, 0), len(chunk.slots))
            if not worker.trusted or (doomed and chunk is chunks[0]):
                begun = len(chunk.slots)
            lost[:0] = [(chunk, at) for at in chunk.unreported(0, begun)]
            rest = chunk.unreported(begun, len(chunk.slots))
            if rest:
                slots = [chunk.slots[at] for at in rest]
                self._return(chunk.feed, slots, [chunk.items[at] for at in rest])
        for chunk, at in lost:
            slot = chunk.slots[at]
            error = explain_loss(worker, chunk.feed, slot)
            self.suspects.lose(chunk.feed, slot, chunk.items[at], error)

    def _hear_journal(self, worker: PoolWorker) -> None:
        """Q5."""
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
        ident: int,
        offset: int,
        count: int,
        payload: memoryview,
    ) -> None:
        chunk = worker.chunks.get(ident)
        if chunk is None:  # all of it was reported
            return
        end = offset + count
        if not count or end > len(chunk.slots) or chunk.first + end > worker.link.started:
            raise CorruptHeaderError(f"answers to tasks {offset} to {end} of chunk {ident}")
        if not chunk.unreported(offset, end):
            return
        if kind in (ERROR, REFUSED) and count != 1:
            raise CorruptHeaderError(f"one error of {count} tasks")
        self.on_frame(worker, refuse_entry, kind, 0, count, ident, offset, 0, payload)

    def _is_poisonous(self, worker: PoolWorker, chunks: list[Chunk]) -> bool:
        """Q4: whether it must be the first of these chunks that kills workers."""
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
