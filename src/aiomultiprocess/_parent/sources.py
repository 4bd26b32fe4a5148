"""Sources: where the items of a map come from.

A source wraps the input that a user passed, hands out its items in order, and says when it has no
more. A list is copied at the call, so that later changes have no effect; its length is known. An
iterator and an async iterable are pulled only as far as there is room for their items, so that an
endless one runs in bounded memory. A job (job.py) is the only user.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Protocol, TypeVar

from ..types import describe_error
from .errors import INTERRUPTS, as_exception

T = TypeVar("T")

PULL_SECONDS = 0.004  # how long one look ahead may pull an iterator, which blocks the loop

#: Words in the error of an input that was closed or changed after the user passed it.
STALE = ("closed", "during iteration")
READ_LATER = (
    "the input of a map is read as there is room for its items, later than the call: leave it open "
    "and unchanged until then, or pass list(...) of it"
)


def hint_at_late_reading(error: BaseException) -> None:
    """Add a note that an input is read later than the call, if that may be why it failed."""
    if any(text in describe_error(error) for text in STALE):
        with contextlib.suppress(Exception):  # its class may refuse attributes
            error.add_note(READ_LATER)


class Source(Protocol):
    """What a job needs of its input."""

    @property
    def exhausted(self) -> bool:
        """Whether the source has no more items, now and later."""

    @property
    def error(self) -> BaseException | None:
        """What the input raised instead of its next item."""

    @property
    def left(self) -> int | None:
        """How many items are left; None if that is unknown."""

    def at_hand(self, n: int) -> int:
        """How many items can be taken now; looks for no more than `n`."""

    def take(self, n: int) -> list[Any]:
        """Up to `n` next items; fewer if no more are left, or an async iterable has none yet."""

    def unread(self, items: list[Any]) -> bool:
        """Take back the items that were taken last; False if this source cannot."""

    def stop(self) -> None:
        """Give no more items, and release the input."""


class SequenceSource:
    """An immutable sequence, which is its own snapshot."""

    error = None

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._next = 0

    @property
    def left(self) -> int:
        return len(self._items) - self._next

    @property
    def exhausted(self) -> bool:
        return self._next >= len(self._items)

    def at_hand(self, n: int) -> int:
        return self.left

    def take(self, n: int) -> list[Any]:
        items = self._items[self._next : self._next + n]
        self._next += len(items)
        return items if type(items) is list else list(items)

    def unread(self, items: list[Any]) -> bool:
        self._next -= len(items)
        return True

    def stop(self) -> None:
        self._items = ()
        self._next = 0


class ListSource:
    """A copy of the caller's list.

    The copy is reversed and used up from its end, so that each item is freed with its task: freeing
    a million at once would block the loop.
    """

    error = None

    def __init__(self, snapshot: list[Any]) -> None:
        snapshot.reverse()
        self._snapshot = snapshot

    @property
    def left(self) -> int:
        return len(self._snapshot)

    @property
    def exhausted(self) -> bool:
        return not self._snapshot

    def at_hand(self, n: int) -> int:
        return self.left

    def take(self, n: int) -> list[Any]:
        begin = max(len(self._snapshot) - n, 0)
        items = self._snapshot[begin:]
        del self._snapshot[begin:]
        items.reverse()
        return items

    def unread(self, items: list[Any]) -> bool:
        self._snapshot.extend(reversed(items))
        return True

    def stop(self) -> None:
        self._snapshot.clear()


class IteratorSource:
    """An iterator or generator, pulled when a worker has room for its next item."""

    left = None

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator: Iterator[Any] = iterator
        self._ended = False
        self._pulled: list[Any] = []  # items that were pulled and not taken yet
        self.error: BaseException | None = None

    @property
    def exhausted(self) -> bool:
        return self._ended and not self._pulled

    def at_hand(self, n: int) -> int:
        """Pull ahead: one item, then twice as many each time, for at most `PULL_SECONDS`."""
        until, step = monotonic() + PULL_SECONDS, 1
        while len(self._pulled) < n and not self._ended:
            self._pull(min(n, len(self._pulled) + step))
            if monotonic() >= until:
                break
            step *= 2
        return len(self._pulled)

    def take(self, n: int) -> list[Any]:
        if len(self._pulled) < n and not self._ended:
            self._pull(n)
        items = self._pulled[:n]
        del self._pulled[:n]
        return items

    def _pull(self, n: int) -> None:
        """Pull until `n` items wait here; an interrupt loses none of those that came."""
        try:
            # extend() keeps the items that came before an exception
            self._pulled.extend(islice(self._iterator, n - len(self._pulled)))
            if len(self._pulled) < n:
                self._end()
        except INTERRUPTS as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                self._end(error)  # it struck in the input's code, which may be broken now
            raise
        except BaseException as error:  # noqa: BLE001 - the input failed: raised at the await
            self._end(error)

    def unread(self, items: list[Any]) -> bool:
        return False

    def stop(self) -> None:
        self._pulled = []
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        self._ended = True
        self._iterator = iter(())
        if error is not None:
            hint_at_late_reading(error)
            self.error = as_exception(error, "the iterable")


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Keep asyncio from logging an interrupt that the loop has raised already."""
    if not task.cancelled():
        task.exception()


def _nothing() -> None:
    """What a source calls that has ended."""


class AsyncSource:
    """An async iterable: a task of ours awaits its items, a bounded number ahead of need."""

    left = None
    AHEAD = 64  # the most items that wait here

    def __init__(self, iterable: AsyncIterable[Any], on_items: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._buffer: deque[Any] = deque()
        self._room = asyncio.Event()
        self._ended = False
        self._on_items = on_items
        self._task = asyncio.ensure_future(self._pull(iterable))
        self._task.add_done_callback(_retrieve_error)

    @property
    def exhausted(self) -> bool:
        return self._ended and not self._buffer

    async def _pull(self, iterable: AsyncIterable[Any]) -> None:
        try:
            iterator = aiter(iterable)
            try:
                async for item in iterator:
                    if self._ended:  # the iterator has suppressed the cancellation of stop()
                        break
                    await self._put(item)
            finally:
                close = getattr(iterator, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as error:
            # after stop(), a cancellation is the one that stop() has asked for
            if not (self._ended and isinstance(error, asyncio.CancelledError)):
                hint_at_late_reading(error)
                self.error = as_exception(error, "the async iterable")
            if isinstance(error, INTERRUPTS):
                raise
        finally:
            self._ended = True
            on_items = self._on_items
            self._on_items = _nothing  # it refers to the job, which refers to this
            on_items()

    async def _put(self, item: Any) -> None:
        self._buffer.append(item)
        self._on_items()
        while len(self._buffer) >= self.AHEAD:
            self._room.clear()
            await self._room.wait()

    def at_hand(self, n: int) -> int:
        return len(self._buffer)

    def take(self, n: int) -> list[Any]:
        buffer = self._buffer
        items = [buffer.popleft() for _ in range(min(n, len(buffer)))]
        self._room.set()
        return items

    def unread(self, items: list[Any]) -> bool:
        return False

    def stop(self) -> None:
        self._ended = True
        self._buffer.clear()
        self._on_items = _nothing
        self._task.cancel()


def _counted(sequence: Sequence[Any]) -> Sequence[Any]:
    """The same; ValueError if it has more items than can be counted."""
    try:
        len(sequence)
    except OverflowError:
        raise ValueError(
            f"the input {sequence!r} has more items than can be counted: pass iter() of it, and "
            "read the results by `async for`"
        ) from None
    return sequence


def source_of(iterable: Iterable[Any] | AsyncIterable[Any], on_items: Callable[[], None]) -> Source:
    """The source for what a user passed to `map` or `starmap`.

    Raises TypeError for a value that is neither iterable nor async iterable.
    """
    if isinstance(iterable, AsyncIterable):
        return AsyncSource(iterable, on_items)
    if isinstance(iterable, Iterator):
        return IteratorSource(iterable)
    if isinstance(iterable, (range, tuple)):
        return SequenceSource(_counted(iterable))
    if not isinstance(iterable, Iterable) and not hasattr(iterable, "__getitem__"):
        raise TypeError(f"the input must be iterable or async iterable, got {iterable!r}")
    return ListSource(list(iterable))
