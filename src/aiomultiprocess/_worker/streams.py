"""Streams: an item that is a generator, and sends its values while it runs.

The parent's side, and what both owe each other, is in _parent/stream_source.py. The engine replaces
the function of a chunk of mode STREAM by a `StreamFunction` (functions.py). The item is then the
coroutine `run_stream`, which iterates over the generator; the values leave through a `Channel`. The
engine imports this module for its first stream.

STREAM-4  A value is encoded when the generator yields it, as a result is when its item returns.
    Values of one turn leave in one frame; so do those of `BURST_NS`, if the generator computes.
STREAM-5  A generator that finds its values unread waits; one that does not suspend lets other items
    run every `BURST_NS`. Neither is time of its limit (limits.py, LIMITS-3).
STREAM-6  Values outlive the process before the generator is asked for the next: they wait in a part
    of the journal, of one stream at a time, until they are sent (_wire/journal.py, JOURNAL-6). As
    with results, one that fits neither there nor into a congested link waits in this process.
STREAM-7  Values for whose frame there is no memory are lost. The stream then ends with that error,
    and sends no value that would come after them.
STREAM-8  A stream that has no reader any more is cancelled. If its generator suppresses that, it is
    closed at its next value, as a local one would be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, nullcontext
from typing import TYPE_CHECKING, Any

from .. import _accel
from .._pure import tasks
from .._wire import journal, serializing
from .._wire.frames import Kind, PayloadTooLargeError
from ..types import shown

if TYPE_CHECKING:
    from .._transport.link import Link
    from .limits import ValueClock

BATCH_BYTES = 16 << 10  # of values, where they cannot be shared any more
BURST_NS = 500_000  # nanoseconds (STREAM-4, STREAM-5)


class Batch:
    """The values of one stream at a time that are not sent yet (STREAM-6)."""

    def __init__(self, link: Link) -> None:
        self.owner: Channel | None = None
        self.append: Callable[[object], bool]
        self._link = link
        self._use(journal.parts_of(link.journal)[1])

    def _use(self, memory: memoryview) -> None:
        self._journal = _accel.Journal(memory)
        self.append = self._journal.append

    def begin(self, channel: Channel) -> None:
        """Take the values of a channel from now on; those of another are sent."""
        if self.owner is not None:
            self.owner.flush()
        self._journal.begin(channel.chunk_id, channel.count)
        self.owner = channel

    def send(self, channel: Channel) -> None:
        """Send the values of the owner."""
        self.owner = None
        chunk_id, _, count, payload = self._journal.take()
        try:
            if count:
                channel.count += count
                self._link.send(Kind.VALUES, count=count, chunk_id=chunk_id, payload=payload)
                self._link.flush()
        except (MemoryError, PayloadTooLargeError) as error:
            channel.error = error
        if not self._link.congested:  # JOURNAL-3
            self._journal.reset()

    def close(self) -> None:
        """Release the memory, which is the link's."""
        self.owner = None
        self._journal.close()

    def abandon(self) -> None:
        """In a copy of the worker, whose generator may go on for a while: share nothing."""
        self.close()
        self._use(memoryview(bytearray(BATCH_BYTES)))


class Channel:
    """The way of a stream's values to the parent."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Batch,
        chunk_id: int,
        ahead: int,
        clock: ValueClock | None,
    ) -> None:
        self.count = 0  # values that were sent
        self.error: Exception | None = None  # STREAM-7
        self.chunk_id = chunk_id
        self.clock = clock  # if it has a time limit
        self._loop = loop
        self._batch = batch
        self._room = ahead  # values that may be produced now
        self._waiter: asyncio.Future[None] | None = None
        self._given_up = False
        self._since = time.monotonic_ns()  # the generator has run, without others, since then

    def pull(self, count: int) -> None:
        """The reader has taken `count` values."""
        self._room += count
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def give_up(self) -> None:
        """There is no reader any more (STREAM-8)."""
        self._given_up = True

    async def put(self, value: object) -> None:
        """Send a value, and wait as long as too many are unread."""
        if self._given_up:
            raise asyncio.CancelledError
        self.check()
        if self._batch.owner is not self:
            self._batch.begin(self)
            self._loop.call_soon(self.flush)
        try:
            fits = self._append(value)
        except BaseException as error:
            raise tasks.unsendable(value, error) from error
        self._room -= 1
        if not fits:
            self.flush()
        if self._room <= 0 or time.monotonic_ns() - self._since > BURST_NS:
            self.flush()
            self.check()  # no reader would end the pause for values that were lost
            await self._pause()
        elif self.clock is not None:
            self.clock.renew()

    def _append(self, value: object) -> bool:
        try:
            return self._batch.append(value)
        except (KeyboardInterrupt, MemoryError):  # in an inline pool the first is the program's
            raise  # INLINE-4
        except BaseException:  # of pickling
            serializer = serializing.fallback()
            if serializer is None:
                raise
            return self._batch.append(serializer.seal(value))

    async def _pause(self) -> None:
        if self.clock is not None:
            self.clock.rest()
        try:
            await asyncio.sleep(0)
            while self._room <= 0:
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:  # if it is cancelled here, the generator is closed now, within the same limit
            if self.clock is not None:
                self.clock.renew()
        self._since = time.monotonic_ns()

    def check(self) -> None:
        """Raise the error by which values were lost (STREAM-7)."""
        if self.error is not None:
            raise self.error

    def flush(self) -> None:
        """Send the values that wait."""
        if self._batch.owner is self:
            self._batch.send(self)


async def run_stream(values: Any, channel: Channel, on_end: Callable[[], object]) -> int:
    """Send the values of a generator; returns how many there were (STREAM-1)."""
    try:
        if isinstance(values, AsyncIterator):
            async with _closed_by("aclose", aclosing, values):
                async for value in values:
                    await channel.put(value)
        elif isinstance(values, Iterator):
            with _closed_by("close", closing, values):
                for value in values:
                    await channel.put(value)
        else:
            raise TypeError(
                f"a stream needs a generator or an iterator, but its function returned "
                f"{shown(values)}: pass a generator function or an async generator function"
            )
    finally:
        channel.flush()
        on_end()
    channel.check()
    return channel.count


def _closed_by(method: str, closer: Callable[[Any], Any], values: object) -> Any:
    """A context that closes an iterator, if it has that method."""
    return closer(values) if hasattr(values, method) else nullcontext()
