"""A job: one `map` or `starmap`, from its input to its results.

On one side a job is a *task source* (feed.py): queues take tasks from it and report their results
to it. On the other side callers wait for results, either for all of them (`await_all`) or for one
after another (`Reader`, reader.py, one for each `async for`; `CompletionReader`, completions.py,
one for each `as_completed`). The engine opens a job, and learns from it when it has more tasks
(`on_more`), when its caller has cancelled it (`on_cancelled`), and when its last task is settled
(`on_done`).

The input is a `Source` (sources.py). An input is *bounded* if its length is known (a sequence); an
iterator or async iterable is not.

JOB-1  A list of results is complete: the values of a bounded input are never dropped.
JOB-2  An unbounded input is pulled only as far ahead of its fastest reader as `LOOK_AHEAD_ITEMS`
    and `LOOK_AHEAD_BYTES` allow, unless a caller awaits all results. Results that all readers
    have had are dropped, all but about the last `HISTORY_ITEMS` or `HISTORY_BYTES`. A slow reader
    does not hold up the others, as it may be one of them that it waits for: what they have read is
    kept for it, as by `itertools.tee`.
JOB-3  The end of an unbounded input is known only by asking it for an item. If no task of the job
    is under way, it is asked soon, even if no worker has room. So the caller does not wait for room
    for an item that does not exist.
JOB-4  About as many tasks are taken at once as their size allows (step.py).
JOB-5  Each `await` gives a list of its own. Copying a million results blocks the loop, so the last
    possible caller receives the list itself rather than a copy.
JOB-6  A job may be given up while code of the user's runs: while its input yields items, or an item
    is pickled. Tasks that were being taken or put back then have failed with all others, and are
    neither handed out nor queued again.
JOB-7  A cancelled job is `done` for its callers at once: results that were there stay, all others
    are a CancelledError, and what a worker reports later is dropped, as for a cancelled Future. For
    the engine it is settled (`on_done`) when the last of its tasks that were handed out is reported
    or put back.
JOB-8  An error stands at the place of the result that it replaces. `return_exceptions` makes it
    that result. An error that has no place is raised all the same: that of the input, and, for an
    unbounded input that was not read to its end, what ended the job. So is a cancellation.
JOB-9  A job is *marked* when an `await` of it, or a step of a reader, is cancelled, or a reader is
    closed by its user. A marked job is cancelled once no caller can wait for it: no `await` and no
    reader is left, and its PoolResult is gone.
JOB-10  To give up a job takes neither memory nor time for the items that were never taken: an input
    may be a `range` of any length. They have no places in the list of results; `_rest` stands for
    each of them.
JOB-11  Nothing that lives on, and no running job, refers to a PoolResult, by whatever path: else it
    is never collected. An error that was raised refers to the frames that it went through, and by
    these to the PoolResult. So a job raises twins of its errors; and finalizers, which `weakref`
    keeps, refer to the job weakly. (The error of the input is raised itself: its job ends soon.)
"""

from __future__ import annotations

import asyncio
import gc
import math
import types
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, NoReturn, Protocol, TypeVar

from .._arguments import DEFAULT_OPTIONS, TaskOptions
from .._wire.exceptions import twin_of
from .._wire.frames import Mode
from .._wire.tracebacks import without_our_frames
from ..types import Progress
from .callers import ANOTHER_LOOP
from .chunk import Chunk
from .completions import CompletionLog, CompletionReader
from .counts import EndCounts
from .errors import INTERRUPTS
from .feed import Handles
from .functions import Function
from .places import DROPPED, FAILED, PENDING
from .progress import Reporter
from .reader import Reader
from .sources import SequenceSource, Source
from .step import Step

LOOK_AHEAD_ITEMS = 8192  # unread results that an iterator may run ahead of its reader
LOOK_AHEAD_BYTES = 64 << 20  # ... and about how many bytes of results
CANCELLED = "the map was cancelled"
HISTORY_ITEMS = 65536  # read results that stay readable a second time, if the input was an iterator
HISTORY_BYTES = 16 << 20  # ... and about how many bytes of them: fewer of large results

AnyReader = TypeVar("AnyReader", "Reader", CompletionReader)


class Routing(Protocol):
    """What gives the tasks of a job to the queues that a user's scheduler chooses (routing.py)."""

    def route(self, n: int) -> None:
        """Let queues take more tasks.

        The first call routes `n` at once; later ones offer the shares again, in the next turn of
        the loop.
        """

    def waits_before(self, index: float) -> bool:
        """Whether a task before this index was given to a queue and not sent."""

    def complete_all(self) -> None:
        """Report to the scheduler that all tasks have ended."""

    def drop_waiting(self) -> None:
        """Put back into a cancelled job what was given to a queue and not sent."""


class Job:
    """One `map` or `starmap`: a cursor into the input, and the results so far.

    `on_more` is called when there may be tasks again after `take` returned none; `on_done` once,
    when the last task is settled; `on_cancelled` before it, if the caller cancels the job.
    `reporter` shows the job's progress.
    """

    router: Routing | None = None  # None: every task goes to the pool's only queue
    queued = False
    done = False
    cancelled = False
    length: int | None = None  # how many items a bounded input had
    wanted_all = False
    _dropped = 0  # results below this index were dropped, but for those that are unread (READER-2)
    _rest: Any = PENDING  # JOB-10; PENDING: the job was not given up
    _looks_for_end = False  # soon (JOB-3)
    _input_ended = False  # before the job was given up
    _opened = 0.0  # when, by the monotonic clock
    _raised: weakref.WeakSet[BaseException] | None = None  # before it was done (JOB-11)

    def __init__(
        self,
        func: Callable[..., Any],
        function: Function,
        mode: Mode,
        on_more: Callable[[Job], None],
        on_done: Callable[[Job], None],
        options: TaskOptions = DEFAULT_OPTIONS,
        *,
        loop: asyncio.AbstractEventLoop,
        on_cancelled: Callable[[Job], object] = lambda _: None,
        return_exceptions: bool = False,
        reporter: Reporter | None = None,
        ends: EndCounts | None = None,
    ) -> None:
        self.func = func
        self.function = function
        self.mode = mode
        self.options = options
        self.source: Source = SequenceSource(())
        self._on_more = on_more
        self._on_done = on_done
        self._on_cancelled = on_cancelled
        self._return_exceptions = return_exceptions  # JOB-8
        self._reporter = reporter
        self._ends = EndCounts() if ends is None else ends
        self._log: CompletionLog | None = None  # from the first `as_completed` on
        self._returned: deque[tuple[int, Any]] = deque()  # put back: handed out first (FEED-2)
        self._step = Step(bounded=True)  # JOB-4
        self._taken = 0  # tasks taken from the source: the index of the next
        self._settled = 0
        self._failed = 0  # of those that are settled
        self._late = 0  # tasks of a cancelled job that are not reported yet (JOB-7)
        self._bytes = 0  # size of all results so far
        self._values: list[Any] = []  # results from index _base on
        self._base = 0
        self._errors: dict[int, BaseException] = {}
        self._error_of_the_rest: BaseException | None = None  # set when the job is given up
        self._origin: types.TracebackType | None = None  # where the input failed
        self._was_read = False
        self._awaiting = 0  # callers that await all results now
        self._unreferenced = False  # no other caller can begin to read
        self._marked = False  # JOB-9
        self._lost: int | None = None  # the first result that was dropped
        self._pool_closes = False
        self._loop = loop
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}  # for results, by index
        self._waiters_for_all: dict[asyncio.Future[None], None] = {}
        self._readers: weakref.WeakSet[Reader | CompletionReader] = weakref.WeakSet()

    # -- the queues' side ---------------------------------------------------------------------

    def open(self, source: Source) -> None:
        """Set the input; a job whose input is empty is done at once."""
        self.source = source
        self._opened = monotonic()
        self.length = source.left
        if self._reporter is not None:
            self._reporter.begin(self.progress)
        if not self._is_bounded:
            self._step = Step(bounded=False)
        if source.exhausted:
            self.end_of_input()
        elif not self._is_bounded:
            self._look_for_end_soon()

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """Learn from a chunk how large items are (JOB-4)."""
        self._step.note_chunk(len(handles), chunk.size)

    @property
    def left(self) -> int | None:
        left = self.source.left
        return None if left is None else left + len(self._returned)

    @property
    def unsettled(self) -> int:
        """How many tasks are not settled; of an input of unknown length, those that were taken."""
        if self.cancelled:
            return 0
        return self._taken - self._settled + (self.source.left or 0)

    @property
    def pending(self) -> int:
        """As `unsettled`; of a cancelled job, those that workers have not reported (COUNTS-2)."""
        return self._late if self.cancelled else self.unsettled

    def gave_up(self, handle: int) -> bool:
        return self.cancelled

    @property
    def is_given_up(self) -> bool:
        """Whether it was cancelled, or ended with its pool: its tasks are not to be sent."""
        return self._error_of_the_rest is not None

    def at_hand(self, n: int) -> int:
        returned = len(self._returned)
        if n <= returned:
            return returned
        n = min(n - returned, self._step.items, self._look_ahead())
        return returned + self.source.at_hand(n)

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        if self._returned:
            count = min(n, self._step.items, len(self._returned))
            pairs = [self._returned.popleft() for _ in range(count)]
            self._step.given = len(pairs)
            return [index for index, _ in pairs], [item for _, item in pairs]
        try:
            items = self.source.take(min(n, self._step.items, self._look_ahead()))
        except INTERRUPTS:
            if self.source.exhausted:  # the interrupt ended the input: no later `take` would notice
                self.end_of_input()
            raise
        self._step.given = len(items)
        if self._error_of_the_rest is not None:  # JOB-6
            return (), []
        first = self._taken
        self._taken += len(items)
        self._values += [PENDING] * len(items)
        if self.source.exhausted:
            self.end_of_input()
        return range(first, self._taken), items  # FEED-3

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        if self._error_of_the_rest is not None:  # JOB-6
            if self.cancelled:
                self._ends.cancelled += len(handles)
                self._count_late(len(handles))
            return
        self._step.note_rest(len(handles))
        if type(handles) is range and handles.stop == self._taken and self.source.unread(items):
            self._taken = handles.start
            del self._values[handles.start - self._base :]
            return
        self._returned.extendleft(reversed(list(zip(handles, items, strict=True))))

    def last_unsent(self, made: float) -> float | None:
        """The end of the tasks that sharing.py asks for: an index, or infinity."""
        if made <= self._opened:
            return self.unsent_until(math.inf)
        if self._is_bounded:  # it was copied before
            return None
        return self.unsent_until(self._taken + self.source.at_hand(0))

    def unsent_until(self, last: float) -> float | None:
        """`last` while tasks before this index are in the input, or here, or wait in queues."""
        if self.is_given_up:
            return None
        waits = self._taken < last and not self.source.exhausted
        waits = waits or (bool(self._returned) and self._returned[0][0] < last)
        waits = waits or (self.router is not None and self.router.waits_before(last))
        return last if waits else None

    def retries_of(self, handle: int) -> int:
        return 0 if self.cancelled else self.options.retries

    @property
    def origin(self) -> Job:
        """Itself: feed.py, `TaskOwner`."""
        return self

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        if self.cancelled:  # JOB-7
            self._ends.late(len(values))
            self._count_late(len(values))
            return
        base = self._base
        if type(handles) is range:
            self._values[handles.start - base : handles.stop - base] = values
        else:
            for index, value in zip(handles, values, strict=True):
                self._values[index - base] = value
        self._settled += len(values)
        self._bytes += size
        if self._log is not None:
            self._log.add(handles)
        self._after_change(handles)

    def fail(self, handle: int, error: BaseException, size: int = 0) -> None:
        if self.cancelled:  # JOB-7
            self._count_late(1)
            return
        if self._return_exceptions:  # JOB-8
            without_our_frames(error)
            self._values[handle - self._base] = error
        else:
            self._values[handle - self._base] = FAILED
            self._errors[handle] = error
        self._settled += 1
        self._failed += 1
        self._bytes += size
        if self._log is not None:
            self._log.add((handle,))
        self._after_change((handle,))

    def refuse(self, handle: int, error: BaseException) -> None:
        """Settle one task that cannot be given to a queue."""
        if self.cancelled:
            self._ends.cancelled += 1
        else:
            self._ends.failed += 1
        self.fail(handle, error)

    def fail_all(self, error: BaseException) -> None:
        if not self.cancelled:
            settled = self._settled
            self._fail_rest(error, error if self._return_exceptions else FAILED)
            self._settled = self._taken
            self._failed += self._settled - settled
        if self.router is not None:
            self.router.complete_all()
        self._finish()

    def cancel(self) -> bool:
        """Give up what is not settled (JOB-7); False if nothing is left of it."""
        if self.done or self.cancelled:  # the second: the input's end ran code of the user's
            return False
        # one more, so that `on_done` is not called before the end of this method
        self._late = self._taken - self._settled - len(self._returned) + 1
        self._ends.cancelled += len(self._returned) + (self.source.left or 0)
        self.cancelled = True
        self._fail_rest(asyncio.CancelledError(CANCELLED), FAILED)
        self._end_for_callers()
        if self.router is not None:
            self.router.drop_waiting()
        self._on_cancelled(self)
        self._count_late(1)
        return True

    def _fail_rest(self, error: BaseException, stand_in: Any) -> None:
        """Stop the input, and let all that is not settled fail: `stand_in` takes the places."""
        self._returned.clear()
        left = self.source.left or 0
        self._input_ended = self.source.exhausted
        self.source.stop()
        waiting = [at for at, value in enumerate(self._values) if value is PENDING]
        for at in waiting:
            self._values[at] = stand_in
        self._rest = stand_in
        self._taken += left
        self._error_of_the_rest = error
        if self._log is not None:
            self._log.add([self._base + at for at in waiting])
            self._log.add_rest(range(self._taken - left, self._taken))
        if not self._is_bounded and not self._input_ended:  # what was never pulled fails as one
            self._fail_input(error)

    def _count_late(self, count: int) -> None:
        """JOB-7: so many tasks of a cancelled job are reported, put back or dropped."""
        self._late -= count
        if not self._late:
            self._on_done(self)

    def watch_result(self, result: object) -> None:
        """No reader can begin any more once this PoolResult is gone."""
        self._when_collected(result, Job.result_gone)

    def watch_reader(self, reader: object) -> Callable[[], object]:
        """What to call when a reader ends; it is also called when the reader is collected."""
        return self._when_collected(reader, Job.reader_gone_soon)

    def _when_collected(
        self, caller: object, method: Callable[[Job], None]
    ) -> weakref.finalize[..., object]:
        finalizer = weakref.finalize(caller, _call, weakref.ref(self), method)  # JOB-11
        finalizer.atexit = False
        return finalizer

    def result_gone(self) -> None:
        """In any thread. A job that is done must not wait for the loop: with it go its results."""
        self._unreferenced = True
        if not self.done and (self._marked or not self.wanted_all) and self._loop.is_running():
            self._loop.call_soon_threadsafe(self.drop_unread)

    def reader_gone_soon(self) -> None:
        """In any thread."""
        if not self.done and self._loop.is_running():
            self._loop.call_soon_threadsafe(self.reader_gone)

    def drop_unread(self) -> None:
        """End the job without its readers.

        A job that was never read runs to its end, as `map` promises. An unbounded input that was
        read in part is pulled no further: an endless one would keep the pool from closing.
        """
        if self.done or self._cancel_if_marked():
            return
        if not self._was_read:
            self.want_all()
        elif not self._is_bounded and not self.wanted_all and not self.source.exhausted:
            self.source.stop()
            self._fail_input(
                RuntimeError(
                    "the input was pulled no further: the pool was closed and its reader had left"
                )
            )
            self._after_change((self._taken,))

    def pool_closes(self) -> None:
        """Depend on no reader from now on: the pool waits for this job before it closes."""
        self._pool_closes = True
        returned = self._values if self._return_exceptions else ()
        for error in (*self._errors.values(), *(self._raised or ()), *returned):
            if issubclass(type(error), BaseException):
                # the traceback of one that was raised refers to the `async for`, and would keep
                # its reader alive
                self._without_frames(error)
        self.reader_gone()
        if self._marked and not (self.done or self._awaiting or self._readers):
            # JOB-9: the traceback of the cancellation may still refer to the PoolResult, in a cycle
            # that an idle program would never collect, and an endless map would never end
            gc.collect()

    def reader_gone(self) -> None:
        """End the job if the pool closes and its last `async for` has ended early."""
        if self._cancel_if_marked():
            return
        if self._pool_closes and not self._readers:
            self.drop_unread()

    # -- the reader's side ---------------------------------------------------------------------

    def want_all(self) -> None:
        """Pull the input to its end, as a caller awaits all results."""
        self._require_all_kept()
        if not self.wanted_all:
            self.wanted_all = True
            if not self.queued and not self.source.exhausted:
                self._on_more(self)

    def await_all(self) -> Coroutine[Any, Any, list[Any]]:
        """The results in input order; raises the first error as soon as one is known."""
        self.want_all()
        # counted now, not when the coroutine starts: another await may end before that (JOB-5)
        self._awaiting += 1
        return self._all_results()

    async def _all_results(self) -> list[Any]:
        try:
            while not self.done and not self._errors:
                await self._wait(None)
        except asyncio.CancelledError:
            self._marked = True
            raise
        finally:
            self._awaiting -= 1
            # not at once: a coroutine may also be closed in another thread, or after its loop
            if self._marked and not self.done and self._loop.is_running():
                self._loop.call_soon_threadsafe(self._cancel_if_marked)
        if self._errors and not self.cancelled:
            raise self._raisable(self._errors[min(self._errors)])
        rest = self._error_of_the_rest
        if rest is not None and (self.cancelled or not self._return_exceptions):  # JOB-8
            raise self._raisable(rest)
        self._values += [self._rest] * (self._taken - self._base - len(self._values))  # JOB-10
        last = self._unreferenced and not self._awaiting  # JOB-5
        return self._values if last else self._values.copy()

    def _cancel_if_marked(self) -> bool:
        """JOB-9: cancel a marked job if no caller can wait for it; returns whether it is."""
        last = self._unreferenced and not self._awaiting and not self._readers
        return self._marked and last and self.cancel()

    async def wait_for(self, index: int) -> None:
        """Wait until the outcome of one task is there."""
        while not self.is_ready(index):
            await self._wait(index)

    def outcome(self, index: int) -> Any:
        """The result of one task that is ready; StopAsyncIteration past the last one."""
        if index in self._errors:
            raise self._raisable(self._errors[index])
        if index >= self._taken:
            raise StopAsyncIteration
        self._require_kept(index)
        value = self.value_at(index)
        if value is DROPPED:
            self._require_all_kept()
        if value is FAILED:
            assert self._error_of_the_rest is not None
            raise self._raisable(self._error_of_the_rest)
        return value

    def value_at(self, index: int) -> Any:
        """The result of one task, or PENDING or FAILED if there is none (yet, or any more)."""
        at = index - self._base
        if 0 <= at < len(self._values):
            return self._values[at]
        return self._rest if at >= 0 and index < self._taken else PENDING

    def add_reader(self) -> Reader:
        """A new position for an `async for`, at the first task."""
        return self._added(Reader(self))

    def add_completion_reader(self) -> CompletionReader:
        """A new position for an `as_completed`, at the first task that was ready."""
        log = self._log
        if log is None:  # results that are there come in the order of indices (COMPLETION-1)
            log = CompletionLog(self._loop)
            log.add([at for at, value in enumerate(self._values) if value is not PENDING])
            log.add_rest(range(len(self._values), self._taken))
            if self.done:
                self._log_error_of_input(log)
        reader = self._added(CompletionReader(self, log))
        self._log = log
        return reader

    def _added(self, reader: AnyReader) -> AnyReader:
        self._require_all_kept()
        self._readers.add(reader)
        self._was_read = True
        return reader

    def drop_reader(self, reader: Reader | CompletionReader) -> None:
        """Remove a reader: look-ahead and kept results then depend on the others alone."""
        self._readers.discard(reader)

    def mark(self) -> None:
        """JOB-9: a caller has given up."""
        self._marked = True

    def is_ready(self, index: int) -> bool:
        """Whether the outcome of one task is there, or none will ever be."""
        if index < self._taken:
            return index < self._base or self.value_at(index) is not PENDING
        return self.done or index in self._errors

    def progress(self) -> Progress:
        """How many tasks have ended, and of how many."""
        total = self.length
        whole = self._error_of_the_rest is None or self._input_ended
        if total is None and self.source.exhausted and whole:
            total = self._taken
        return Progress(self._settled, self._failed, total)

    def has_moved(self, reader: Reader | CompletionReader) -> None:
        """Pull more of an unbounded input, and drop old results, as a reader has moved (JOB-2)."""
        if self._is_bounded or self.wanted_all:  # JOB-1
            return
        if not self.queued and not self.source.exhausted and self._look_ahead() > 0:
            self._on_more(self)
        kept = reader.index - (self._dropped if self._log is None else self._log.base)
        if kept > 2 * HISTORY_ITEMS or self._bytes_of(kept) > HISTORY_BYTES:
            self._drop_read((kept + 1) // 2)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _is_bounded(self) -> bool:
        return self.source.left is not None

    def _look_ahead(self) -> int:
        """How many more items may be pulled before a reader moves (JOB-2)."""
        if self._is_bounded or self.wanted_all:
            return LOOK_AHEAD_ITEMS
        read = max((reader.index for reader in self._readers), default=0)
        unread = self._taken - read
        limit = LOOK_AHEAD_ITEMS
        if self._bytes:  # 64 even of large results: a few for each worker
            limit = min(limit, max(64, LOOK_AHEAD_BYTES * self._settled // self._bytes))
        return max(0, limit - unread)

    def _bytes_of(self, results: int) -> float:
        return self._bytes / max(1, self._settled) * results

    def _drop_read(self, count: int) -> None:
        if self._log is not None:
            if any(isinstance(reader, CompletionReader) for reader in self._readers):
                self._drop_logged(self._log, count)
                return
            if self._log.is_awaited:
                return
            self._log = None  # no other reader can begin: results are dropped
        # the last step of a closed reader may call this when no reader is left: nothing is dropped
        begin = self._dropped
        slowest = min((reader.index for reader in self._readers), default=begin)
        end = min(begin + count, slowest, self._taken)  # the error of the input has no place
        if end <= begin:
            return
        unread = self._unread()
        first = max(min(unread, default=end), self._base)
        first = min(first, end)
        for index in range(max(first, begin), end):  # their places stay, as an older one does
            if index not in unread:
                self._values[index - self._base] = DROPPED
                self._errors.pop(index, None)
                self._note_lost(index)
        if first > begin:
            self._note_lost(begin)
        self._dropped = end
        self._drop_first(first - self._base)
        for index in [index for index in self._errors if index < first]:
            del self._errors[index]

    def _note_lost(self, index: int) -> None:
        self._lost = index if self._lost is None else min(index, self._lost)

    def _unread(self) -> set[int]:
        """READER-2; of readers that were closed, too, as far as their steps still wait."""
        ordered = [reader for reader in self._readers if isinstance(reader, Reader)]
        return set(self._waiters).union(*[reader.unread for reader in ordered])

    def _drop_logged(self, log: CompletionLog, count: int) -> None:
        """COMPLETION-3: drop those of the first `count` results of a log that all have read.

        The place of a result stays as long as that of an older one, which may run for ever.
        """
        ends = [reader.index for reader in self._readers if isinstance(reader, CompletionReader)]
        slowest = [reader.index for reader in self._readers if isinstance(reader, Reader)]
        slowest += self._unread()
        read = log.drop(min(count, min(ends) - log.base), min(slowest, default=None))
        if not read:
            return
        self._note_lost(min(read))
        for index in read:
            if index < self._taken:
                self._values[index - self._base] = DROPPED
            self._errors.pop(index, None)
        values = self._values
        kept = (at for at, value in enumerate(values) if value is not DROPPED)
        self._drop_first(next(kept, len(values)))

    def _drop_first(self, count: int) -> None:
        del self._values[:count]
        self._base += count
        self._dropped = max(self._dropped, self._base)

    def _require_all_kept(self) -> None:
        if self._lost is not None:
            self._refuse_dropped(self._lost)

    def _require_kept(self, index: int) -> None:
        if index < self._base:
            self._refuse_dropped(index)

    def _refuse_dropped(self, index: int) -> NoReturn:
        raise RuntimeError(
            f"result {index} was dropped after it had been read: results of an iterator are kept "
            f"for about {HISTORY_ITEMS} items or {HISTORY_BYTES >> 20} MiB; pass a list to read "
            "them again"
        )

    async def _wait(self, index: int | None) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the future would be set from another thread
            raise RuntimeError(ANOTHER_LOOP)
        future: asyncio.Future[None] = loop.create_future()
        if index is None:
            self._waiters_for_all[future] = None
        else:
            self._waiters.setdefault(index, []).append(future)
        try:
            await future
        finally:  # a cancelled waiter would stay here until its result is ready
            self._waiters_for_all.pop(future, None)
            if index is not None and future in self._waiters.get(index, ()):
                self._waiters[index].remove(future)
                if not self._waiters[index]:
                    del self._waiters[index]

    def _raisable(self, error: BaseException) -> BaseException:
        """What to raise for an error of this job (JOB-11)."""
        if type(error) is asyncio.CancelledError:  # each awaiter's task may change its own
            return asyncio.CancelledError(*error.args)
        twin = error if error is self.source.error else twin_of(error)
        if twin is error:
            self._without_frames(error)
        elif not self.done:
            if self._raised is None:
                self._raised = weakref.WeakSet()
            with suppress(TypeError):  # its class cannot be referred to weakly
                self._raised.add(twin)
        return twin

    def _without_frames(self, error: BaseException) -> None:
        """Take away the traceback that earlier raises of an error have added."""
        origin = self._origin if error is self.source.error else None
        BaseException.with_traceback(error, origin)

    def end_of_input(self) -> None:
        """The source has no more items."""
        error = self.source.error
        if error is not None:
            self._fail_input(error)
        self._after_change((self._taken,))

    def _look_for_end_soon(self) -> None:
        if not self._looks_for_end:
            self._looks_for_end = True
            self._loop.call_soon(self._look_for_end)

    def _look_for_end(self) -> None:
        """JOB-3: pull one item, unless a worker had room for some, or the reader is far behind."""
        self._looks_for_end = False
        if self.done or self._settled != self._taken or self._look_ahead() <= 0:
            return
        try:
            self.source.at_hand(1)
        finally:
            if self.source.exhausted and not self.is_given_up:
                self.end_of_input()

    def _fail_input(self, error: BaseException) -> None:
        """What the input raised, or why it was read no further, follows the last result."""
        if self._taken in self._errors:
            return
        self._errors[self._taken] = error
        if error is self.source.error:
            self._origin = error.__traceback__

    def _after_change(self, settled: Handles) -> None:
        """Tasks of these indices, or what follows the last of all, have an outcome now."""
        if self.source.exhausted and self._settled == self._taken and not self.done:
            if self.source.error is not None:  # an async iterable failed after the last take
                self._fail_input(self.source.error)
            self._finish()
            return
        if self._settled == self._taken and not self._is_bounded:
            self._look_for_end_soon()
        if self._waiters or self._waiters_for_all:
            self._wake(settled)
        if self._reporter is not None:
            self._reporter.note_change()

    def _finish(self) -> None:
        if not self.done:
            self._end_for_callers()
            self._on_done(self)

    def _end_for_callers(self) -> None:
        self.done = True
        if self._reporter is not None:
            self._reporter.end()
            self._reporter = None
        if self._log is not None:
            self._log_error_of_input(self._log)
            self._log.wake()
        self._wake(list(self._waiters))

    def _log_error_of_input(self, log: CompletionLog) -> None:
        """COMPLETION-1: it follows the last result."""
        if self._taken in self._errors:
            log.add((self._taken,))

    def _wake(self, settled: Handles) -> None:
        ready: list[asyncio.Future[None]] = []
        if self.done or self._errors:
            ready, self._waiters_for_all = list(self._waiters_for_all), {}
        few = settled if len(settled) < len(self._waiters) else list(self._waiters)
        for index in few:
            if index in self._waiters and self.is_ready(index):
                ready += self._waiters.pop(index)
        for future in ready:
            if not future.done():
                future.set_result(None)


def _call(job: weakref.ref[Job], method: Callable[[Job], None]) -> None:
    alive = job()
    if alive is not None:
        method(alive)
