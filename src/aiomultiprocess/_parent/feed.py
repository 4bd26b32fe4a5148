"""The life of a task as its source sees it: the contract between task sources and queues.

    waiting --take()--> sent --deliver()--> done
       ^                 |  \\---fail()----> failed
       |                 |
       +---put_back()----+     (its worker died before it started the task)

A queue (queue.py) takes tasks from a *task source*, and reports their results to it: a `Job`, one
`map` or `starmap` (job.py); a `CallQueue`, all waiting calls of one function (calls.py), or
`OutsideCalls`, those of an executor (outside.py); a `StreamSource`, one stream (stream_source.py);
or `RoutedTasks`, the tasks of a job that the scheduler gave to one queue (routing.py). A started
task whose worker died may run again as a retry task (retry.py), which then stands between the chunk
and the task's source.

A *handle* is the place of one task's result: an index of a job, or the future of a call.

FEED-1  Every task is settled exactly once: either `deliver` or `fail` is called for its handle, and
    only once. (A chunk marks what was reported, so that no report counts twice: chunk.py.)
FEED-2  A source hands out tasks in the order of its input; those that were put back come first.
FEED-3  Of each task of a map only the result is kept: its handle is an index, not an object.
FEED-4  A call knows its chunk, so that cancelling n calls takes time in proportion to n, and not to
    n times the number of calls under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .._arguments import TaskOptions
from .._wire.frames import Mode
from .functions import Function

Handles = Sequence[Any]


class TaskOwner(Protocol):
    """What a chunk reports to: a task source, or a retry task (retry.py)."""

    function: Function
    mode: Mode
    options: TaskOptions

    @property
    def origin(self) -> object:
        """The task source that the caller made: a job, a stream or a `CallQueue`."""

    def note_chunk(self, handles: Handles, chunk: Any) -> None:
        """Record the `Chunk` in which tasks travel, before it is sent (FEED-4)."""

    def gave_up(self, handle: Any) -> bool:
        """Whether the caller of a task that is not settled does not wait any more (COUNTS-1)."""

    def put_back(self, handles: Handles, items: list[Any]) -> None:
        """Take back tasks that no worker has started; they are handed out first (FEED-2)."""

    def retries_of(self, handle: Any) -> int:
        """How often a task may run again after its worker died; 0 if its caller gave up."""

    def deliver(self, handles: Handles, values: list[Any], size: int) -> None:
        """Settle tasks with their results, which travelled in `size` bytes."""

    def fail(self, handle: Any, error: BaseException, size: int = 0) -> None:
        """Settle one task with its error, which travelled in `size` bytes, if it did."""


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
        """Settle every task that is not settled: the pool gave up."""
