"""The life of a task, as the feeds see it: what the queues take tasks from, and report them to.

    waiting --take()--> sent --deliver()--> done
       ^                 |  \\---fail()----> failed
       |                 |
       +---put_back()----+     (its worker died before it started the task)

A task whose worker died after that has failed, or is sent again as a suspect (suspects.py) until it
is done or has failed.

`Job` (jobs.py) is the feed of one `map` or `starmap`. Here are the contract and the others:
`Calls`, all waiting `apply` of one function, and `Share`, what a user's scheduler gave of a job to
one queue.

J1  Every task is settled exactly once: `deliver` or `fail` is called for its slot, never both,
    never twice. (chunks.py keeps the other half of this: a chunk marks what was reported.)
J2  A feed hands out tasks in the order of the input; those put back come first.
J3  Nothing is kept per task of a map but its result: slots are numbers of a range, not objects.
J4  A call knows its chunk, so that cancelling n calls takes time in proportion to n, and not to n
    times the number of calls under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .._wire.frames import Mode
from .functions import Function

Slots = Sequence[Any]


class Feed(Protocol):
    """Tasks of one function, for the workers of one queue."""

    function: Function
    mode: Mode
    queued: bool
    """Whether the feed stands in its queue's line; owned by the engine."""

    @property
    def left(self) -> int | None:
        """How many tasks wait, None when nobody can know."""

    def at_hand(self, n: int) -> int:
        """How many tasks wait, or are there to be taken; looks for no more than `n` (Q6)."""

    def take(self, n: int) -> tuple[Slots, list[Any]]:
        """Up to `n` tasks: their slots and what their function is called with."""

    def put_back(self, slots: Slots, items: list[Any]) -> None:
        """These were taken and never started."""

    def retries_of(self, slot: Any) -> int:
        """How often a task may run again after its worker died; 0 if nobody waits for it."""

    def deliver(self, slots: Slots, values: list[Any], size: int) -> None:
        """Results, `size` bytes of them as they travelled."""

    def fail(self, slot: Any, error: BaseException) -> None:
        """The error that ends one task."""

    def fail_all(self, error: BaseException) -> None:
        """The pool gave up: settle all that are not settled."""
