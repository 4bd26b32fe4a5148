"""The life of a task, as the feeds see it: what the queues take tasks from, and report them to.

    waiting --take()--> sent --deliver()--> done
       ^                 |  \\---fail()----> failed
       |                 |
       +---put_back()----+     (its worker died before it started the task)

A task whose worker died after that has failed, or is sent again as a suspect (retry.py) until it
is done or has failed.

`Job` (job.py) is the feed of one `map` or `starmap`. Here are the contract and the others:
`CallQueue`, all waiting `apply` of one function, and `RoutedTasks`, what a user's scheduler gave of
a job to one queue.

FEED-1  Every task is settled exactly once: `deliver` or `fail` is called for its slot, never both,
    never twice. (chunk.py keeps the other half of this: a chunk marks what was reported.)
FEED-2  A feed hands out tasks in the order of the input; those put back come first.
FEED-3  Nothing is kept per task of a map but its result: slots are numbers of a range, not objects.
FEED-4  A call knows its chunk, so that cancelling n calls takes time in proportion to n, and not to
    n times the number of calls under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .._wire.frames import Mode
from .functions import Function

Handles = Sequence[Any]


class TaskOwner(Protocol):
    """Who a chunk reports to: a task source, or one task that runs again (retry.py)."""

    function: Function
    mode: Mode

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        """These were taken and never started."""

    def retries_of(self, handle: Any) -> int:
        """How often a task may run again after its worker died; 0 if nobody waits for it."""

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        """Results, `size` bytes of them as they travelled."""

    def fail(self, handle: Any, error: BaseException) -> None:
        """The error that ends one task."""


class TaskSource(TaskOwner, Protocol):
    """Tasks of one function, for the workers of one queue."""

    queued: bool
    """Whether the source is in its queue's line; the queue sets it."""

    @property
    def left(self) -> int | None:
        """How many tasks wait; None if that is unknown."""

    def at_hand(self, n: int) -> int:
        """How many tasks wait, or can be taken at once; looks for no more than `n` (QUEUE-6)."""

    def take(self, n: int) -> tuple[Handles, list[Any]]:
        """Up to `n` tasks: their handles, and what their function is called with."""

    def fail_all(self, error: BaseException) -> None:
        """The pool gave up: settle all that are not settled."""
