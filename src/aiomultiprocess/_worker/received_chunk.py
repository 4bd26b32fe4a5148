"""The items of one CHUNK frame, as the worker engine holds them until each is started.

Some items cannot be run: their arguments or their function did not unpickle, or their caller has
cancelled them, alone or with all others. The engine alone uses this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from .._wire.exceptions import Stage
from .._wire.frames import Mode
from .functions import Stateful, Unloadable, raise_error, unwrapped

MAP = int(Mode.MAP)

#: How to run items: the mode, the function, and the offset behind the last of them.
Run: TypeAlias = tuple[int, Callable[..., Any], int]


class GivenUp(asyncio.CancelledError):
    """The error of an item that is not started, because its caller waits no more."""


SKIPPED = GivenUp("with the whole map")  # in `failures`, for an item that gets any result


def skip_item(_: object) -> None:
    """Stands in for the function of an item that is skipped: many are answered in one frame."""


class ReceivedChunk:
    """Items of one frame; those from `next` on are not started yet."""

    __slots__ = ("_next_failure", "chunk_id", "failures", "func", "items", "mode", "next", "timed")

    def __init__(
        self,
        chunk_id: int,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        failures: dict[int, BaseException],
        timed: bool = False,  # not by keyword: that would slow each `apply`
    ) -> None:
        self.chunk_id = chunk_id
        self.mode = mode
        self.func = func
        self.items = items
        self.failures = failures  # the errors of items that cannot be run, by offset
        self.timed = timed  # the items have a time limit
        self.next = 0
        self._next_failure = -1  # less than `next`: not known

    def refuse(self, offset: int, error: BaseException) -> None:
        """Let an item that is not started yet fail with `error` in its turn."""
        self.failures[offset] = error
        if self.next <= offset < self._next_failure:
            self._next_failure = offset

    def skip(self, offsets: range) -> None:
        """Do not run those of these items that are not started; any result will do for them."""
        rest = range(max(offsets.start, self.next), min(offsets.stop, len(self.items)))
        self.failures.update(dict.fromkeys(rest, SKIPPED))
        if rest and rest.start < self._next_failure:
            self._next_failure = rest.start

    def next_run(self) -> Run:
        """How to run what comes next, with `failures`: the items before the next failure, or that.

        An item that cannot be run gets a function that raises its error, and stays in `failures`:
        there may be no time left to start it in this turn.
        """
        failure = self._first_failure()
        if failure > self.next:
            return self.mode, self.func, failure
        if self.failures[failure] is SKIPPED:
            rest = range(failure, len(self.items))
            return MAP, skip_item, next((at for at in rest if not self._is_skipped(at)), rest.stop)
        self.items[failure] = self.failures[failure]
        return MAP, raise_error, failure + 1

    def _is_skipped(self, offset: int) -> bool:
        return self.failures.get(offset) is SKIPPED

    def _first_failure(self) -> int:
        """The offset of the next item that cannot be run; the number of items if there is none.

        Looks at each offset once in all, however many items suspend in between.
        """
        if self._next_failure < self.next:
            rest = range(self.next, len(self.items))
            self._next_failure = next(filter(self.failures.__contains__, rest), len(self.items))
        return self._next_failure

    def lacked_memory(self, offset: int, error: BaseException) -> bool:
        """Whether `error` arose because there was no memory to receive the item or its function."""
        return issubclass(type(error), MemoryError) and (  # isinstance() would run code of its own
            self.failures.get(offset) is error
            or (isinstance(self.func, Unloadable) and self.func.error is error)
        )


def stage_of(func: Callable[..., Any], error: BaseException) -> int | None:
    """What failed, if a stand-in for the user's function raised `error`; else None."""
    if func is raise_error:
        return None if type(error) is GivenUp else Stage.ARGUMENT
    func = unwrapped(func)
    if type(func) is Unloadable or (type(func) is Stateful and func.loading):
        return Stage.FUNCTION
    return None
