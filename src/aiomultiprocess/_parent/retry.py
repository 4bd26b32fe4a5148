"""Tasks that lost their worker and may run again: one at a time in a worker, with no neighbours.

    sent --its worker died--> in line --next_for()--> alone at a worker --> settled
                                ^------- died again ----------'

A worker that dies takes all the tasks with it that it had under way, and nobody can tell which of
them was the cause. Those that may run more than once (`retries=`) are *suspects*. Were they sent
together again, the one that kills workers would use up the attempts of the others; so each runs
alone. A task that loses its worker there was the cause, or at least its worker's only task. A queue
(queues.py) has one line of them. It tells of losses, and asks what a worker may have.

A1  A task that lost its worker runs again only if its caller allowed it and still waits for it, and
    `retries` times at most. Otherwise the error of that loss ends it.
A2  A worker that holds a suspect holds nothing else.
A3  Suspects go first. A worker without work gets the next in line before anything else; as long as
    no worker runs one, the worker with the least to do gets no more. So suspects wait for what that
    worker holds to end, and for nothing else, and the others go on with other work.
A4  A suspect is known from its first loss until it is settled. Nothing is kept for other tasks, and
    a queue without suspects asks no more than whether `unsettled` is empty.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._wire.frames import Mode
from .calls import Calls
from .feed import Feed, Slots

if TYPE_CHECKING:
    from .chunk import Chunk
    from .worker import PoolWorker


class Suspect:
    """One task that lost its worker. Its chunk reports to it as to a feed, and it to its feed."""

    __slots__ = ("_feed", "_losses", "_suspects", "function", "item", "mode", "slot")

    def __init__(self, suspects: Suspects, feed: Feed, slot: Any, item: Any) -> None:
        self.function = feed.function
        self.mode = feed.mode
        self.slot = slot
        self.item = item
        self._feed = feed
        self._losses = 0
        self._suspects = suspects

    def retries_of(self, slot: Any) -> int:
        """How many more workers it may lose (A1)."""
        return self._feed.retries_of(slot) - self._losses

    def lose(self) -> None:
        """Its worker died after it was started: it goes to the end of the line."""
        self._losses += 1
        self._suspects.line[self] = None

    def note_chunk(self, slots: Slots, chunk: Chunk) -> None:
        """It travels in that chunk: a call is cancelled there (feeds.py, J4)."""
        if isinstance(self._feed, Calls):
            self._feed.note_chunk(slots, chunk)

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        """Its worker died before it was started: that is no loss."""
        if self._feed.retries_of(self.slot) > 0:
            self._suspects.line[self] = None
            self._suspects.line.move_to_end(self, last=False)
        else:  # its caller gave up while it was on its way (A1)
            self.fail(self.slot, asyncio.CancelledError())

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        self._suspects.settle(self)
        self._feed.deliver(slots, values, size)

    def fail(self, slot: Any, error: BaseException) -> None:
        self._suspects.settle(self)
        self._feed.fail(slot, error)


class Suspects:
    """The suspects of one queue, and which worker is theirs."""

    def __init__(self) -> None:
        self.unsettled: set[Suspect] = set()
        self.line: OrderedDict[Suspect, None] = OrderedDict()  # those that wait for a worker
        self._calls: dict[Any, Suspect] = {}  # those of `unsettled` that are calls, by slot

    def lose(self, origin: Feed | Suspect, slot: Any, item: Any, error: BaseException) -> None:
        """A task lost its worker: it waits for another, or `error` is its end (A1)."""
        if origin.retries_of(slot) <= 0:
            origin.fail(slot, error)
            return
        suspect = origin if isinstance(origin, Suspect) else Suspect(self, origin, slot, item)
        self.unsettled.add(suspect)
        if suspect.mode is Mode.APPLY:
            self._calls[slot] = suspect
        suspect.lose()

    def next_for(self, worker: PoolWorker) -> Suspect | None:
        """The suspect that a worker runs now, if it can run one alone (A2)."""
        if not self.line or worker.chunks or worker.leaving or worker.link.congested:
            return None
        return self.line.popitem(last=False)[0]

    def claim(self, worker: PoolWorker, workers: Sequence[PoolWorker]) -> bool:
        """A2, A3: whether `worker`, one of the queue's `workers`, may have no other work now."""
        if runs_suspect(worker):
            return True
        if not self.line or worker.leaving or any(map(runs_suspect, workers)):
            return False
        staying = [other for other in workers if not other.leaving]
        return worker is min(staying, key=lambda other: other.credit.in_flight)

    def drop(self, slot: Any) -> bool:
        """Whether the call of `slot` was in line; its caller has given up, so it is no longer."""
        suspect = self._calls.get(slot)
        if suspect is None or suspect not in self.line:
            return False
        del self.line[suspect]
        suspect.fail(slot, asyncio.CancelledError())
        return True

    def settle(self, suspect: Suspect) -> None:
        """Nothing is known of a task any more once it is settled (A4)."""
        self.unsettled.discard(suspect)
        self._calls.pop(suspect.slot, None)

    def clear(self) -> None:
        """The pool gave up: their feeds settle them."""
        self.unsettled.clear()
        self._calls.clear()
        self.line.clear()


def runs_suspect(worker: PoolWorker) -> bool:
    """Whether a worker holds a suspect, and so nothing else (A2)."""
    return any(isinstance(chunk.feed, Suspect) for chunk in worker.chunks.values())
