"""Streams: the values of a generator that runs in a worker.

    reader                    parent                        worker
    anext() --- 1st --------> CHUNK of mode STREAM -------> the generator is made, and runs
            <-- values ------ VALUES <--------------------- as long as it is less than `ahead`
            --- read -------> PULL ------------------------> values before the reader
    aclose() ---------------> CANCEL ----------------------> its `finally` runs
                              RESULTS or ERROR <------------ it has ended

A `Stream` (stream.py) is what the user reads. Its `StreamSource` is the task source (feed.py) of
one task: the queue sends it as it sends a call, and passes it the values that come before its end.
The worker's side is _worker/streams.py.

STREAM-1  The reader gets each value once, in the order of the generator, then its error or end. The
    answer of the task says how many values there were; if some were lost with the worker, the end
    is a WorkerLostError.
STREAM-2  At most `ahead` values are on their way or wait here. The worker may produce `ahead`
    values, and one more for each that the reader has taken: PULL frames say how many.
STREAM-3  A source does not refer to its `Stream`, so that one which is dropped can be collected;
    then its generator is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .._arguments import TaskOptions
from .._wire.exceptions import original_of
from .._wire.frames import CorruptHeaderError, Kind, Mode
from ..types import WorkerLostError
from .counts import EndCounts
from .feed import Handles
from .functions import Function

if TYPE_CHECKING:
    from .chunk import Chunk
    from .worker import PoolWorker


class StreamSource:
    """The task source of one stream: one task, and the values that have arrived."""

    mode = Mode.STREAM

    def __init__(
        self,
        function: Function,
        item: tuple[Any, ...],
        options: TaskOptions,
        cancel: Callable[[Chunk], object],
        on_done: Callable[[StreamSource], None],
        *,
        loop: asyncio.AbstractEventLoop,
        ends: EndCounts | None = None,
    ) -> None:
        self.function = function
        self.options = options
        self.queued = False
        self.done = False
        self.error: BaseException | None = None  # until the reader has it
        self.values: deque[Any] = deque()
        self._item: tuple[Any, ...] | None = item  # None: it was taken, or given up
        self._cancel = cancel
        self._on_done = on_done
        self._chunk: Chunk | None = None  # once it was sent
        self._worker: PoolWorker | None = None  # once it has sent values
        self._ahead: int = item[-1]
        self._allowed = self._ahead  # values that the worker may have sent in all (STREAM-2)
        self._received = 0
        self._read = 0  # values that the reader has taken since the last PULL
        self._dropped = False  # the reader has gone
        self._failed = False
        self._loop = loop
        self._ends = EndCounts() if ends is None else ends
        self._waiters: set[asyncio.Future[None]] = set()

    # -- the queue's side ----------------------------------------------------------------------

    @property
    def left(self) -> int:
        return 0 if self._item is None else 1

    @property
    def origin(self) -> StreamSource:
        return self

    @property
    def unsettled(self) -> int:
        """How many of its tasks have not ended."""
        return 0 if self.done else 1

    pending = unsettled

    def gave_up(self, handle: object) -> bool:
        return self._dropped

    def at_hand(self, n: int) -> int:
        return self.left

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        item, self._item = self._item, None
        return ((), []) if item is None else ([self], [item])

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        self._chunk = None
        if self._dropped:
            self._ends.cancelled += 1
            self._finish(None)
        else:
            [self._item] = items

    def last_unsent(self, made: float) -> StreamSource | None:
        """Itself while it waits, as sharing.py asks for it."""
        return None if self._item is None else self

    def unsent_until(self, last: StreamSource) -> StreamSource | None:
        """The same."""
        return self.last_unsent(0)

    def note_chunk(self, handles: Handles, chunk: Chunk) -> None:
        """Record the chunk in which the task travels."""
        self._chunk = chunk
        if self._dropped:  # while its arguments were pickled; its frame is sent in this turn
            self._loop.call_soon(self._cancel, chunk)

    def retries_of(self, handle: object) -> int:
        return 0  # the values that were read cannot be taken back

    def lacks(self, before: int) -> bool:
        """Whether values that come after `before` others are the next (JOURNAL-6)."""
        return self._received == before

    def receive(
        self, worker: PoolWorker, values: list[Any], errors: Mapping[int, BaseException]
    ) -> None:
        """Take values that have arrived; one of `errors`, by offset, ends the stream."""
        self._worker = worker
        self._received += len(values)
        if self._received > self._allowed:
            raise CorruptHeaderError(f"{self._received} values of a stream, {self._allowed} asked")
        if self._dropped or self._failed:
            return
        if errors:
            first = min(errors)
            self._set_error(errors[first])
            del values[first:]
        self.values.extend(values)
        if errors and self._chunk is not None:
            self._cancel(self._chunk)
        self._wake()

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        if self._dropped:
            self._ends.late(1)
        if values == [self._received]:
            self._finish(None)
        else:  # STREAM-1
            if not self._dropped:
                self._ends.done -= 1
                self._ends.lost += 1
            pid = None if self._worker is None else self._worker.pid
            exitcode = None if self._worker is None else self._worker.exitcode
            self._finish(WorkerLostError(self.function.label, pid, exitcode))

    def fail(self, handle: object, error: BaseException, size: int = 0) -> None:
        cancelled = issubclass(type(original_of(error)), asyncio.CancelledError)
        if cancelled and self._failed and not self._dropped:  # by us, as it had failed here
            self._ends.cancelled -= 1
            self._ends.failed += 1
        self._finish(None if cancelled and self._dropped else error)

    def fail_all(self, error: BaseException) -> None:
        self._finish(error)

    def pool_closes(self) -> None:
        """Nothing: the pool waits for its reader."""

    def _finish(self, error: BaseException | None) -> None:
        if self.done:
            return
        self.done = True
        self._item = None
        if error is not None and not self._failed:
            self._set_error(error)
        self._wake()
        self._on_done(self)

    def _set_error(self, error: BaseException) -> None:
        self._failed = True
        self.error = error

    # -- the reader's side ---------------------------------------------------------------------

    def next_value(self) -> Any:
        """The next of `values`; asks the worker for more when half of them were read (STREAM-2)."""
        value = self.values.popleft()
        self._read += 1
        if 2 * self._read >= self._ahead and not self.done:
            assert self._worker is not None
            assert self._chunk is not None
            self._allowed += self._read
            self._worker.link.send(Kind.PULL, chunk_id=self._chunk.first, count=self._read)
            self._worker.link.flush()
            self._read = 0
        return value

    def take_error(self) -> BaseException | None:
        """What ended the stream; None if nothing did yet, or a reader has taken it."""
        error, self.error = self.error, None
        return error

    def drop_soon(self) -> None:
        """`drop`, called by any thread: the `Stream` was collected (STREAM-3)."""
        if not self.done and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.drop)

    def drop(self) -> None:
        """Close the generator, wherever it is: there is no reader any more. Idempotent."""
        if self._dropped or self.done:
            return
        self._dropped = True
        self.values.clear()
        if self._item is not None:  # it waits in its queue
            self._ends.cancelled += 1
            self._finish(None)  # a reader beside sees the end
        elif self._chunk is not None:
            self._cancel(self._chunk)

    async def wait(self) -> None:
        """Wait until a value has arrived, or the end."""
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
