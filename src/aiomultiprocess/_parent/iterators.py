"""One pass over the results of a map: `async for`, or `as_completed`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import CodeType
from typing import Any

from ..types import R
from .callers import prepare_for_caller
from .completions import CompletionReader
from .places import PENDING
from .reader import Reader


class ResultIterator(AsyncGenerator[R, None]):
    """One pass over a PoolResult, which it keeps alive until it ends or is closed.

    Where a step is cancelled, or `aclose` is called, the map is cancelled too, once nothing else
    can read it (job.py, JOB-9).

    0.9.1 had an async generator here. Unlike a generator, it goes on after the error of an item,
    and several tasks may each wait for a step; steps that wait when it is closed get their results.
    """

    __slots__ = ("__weakref__", "_reader", "_released", "_result")

    def __init__(
        self,
        result: object,
        reader: Reader | CompletionReader,
        released: Callable[[], object],
    ) -> None:
        self._result: object = result
        self._reader: Reader | CompletionReader | None = reader
        self._released = released

    async def __anext__(self) -> R:
        reader = self._reader
        if reader is None:
            raise StopAsyncIteration
        ready: R = reader.next_ready()
        if ready is not PENDING:
            return ready
        try:
            result: R = await reader.next()
        except StopAsyncIteration:
            self._close()
            raise
        except Exception as error:
            prepare_for_caller(error)
            raise
        return result

    async def asend(self, value: None, /) -> R:
        """The next result; `value` is ignored."""
        if value is not None and self._reader is not None and self._reader.index == 0:
            raise TypeError("can't send non-None value to a just-started async generator")
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        """Close the iterator and raise the exception; do nothing if the iterator has ended."""
        if self._reader is not None:
            await self.aclose()
            await super().athrow(typ, val, tb)

    async def aclose(self) -> None:
        """End the iterator; and the map, if no other iterator, `await` or variable has it."""
        if self._reader is not None:
            self._reader.give_up()
            self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = self._result = None
            self._released()

    @property
    def ag_running(self) -> bool:
        """Whether a step waits for its result."""
        return self._reader is not None and self._reader.is_waiting

    @property
    def ag_suspended(self) -> bool:
        """Whether the iterator has not ended, and no step waits."""
        return self._reader is not None and not self._reader.is_waiting

    @property
    def ag_await(self) -> None:
        """None; of a generator, this is what it awaits."""

    @property
    def ag_frame(self) -> None:
        """None: no frame stays from one step to the next."""

    @property
    def ag_code(self) -> CodeType:
        """The code of a step."""
        return type(self).__anext__.__code__


class CompletionIterator(ResultIterator[R]):
    """One `as_completed`: results in the order in which they are ready, or pairs with the index."""

    __slots__ = ("_last", "_with_index")

    def __init__(
        self,
        result: object,
        reader: CompletionReader,
        released: Callable[[], object],
        *,
        with_index: bool,
    ) -> None:
        super().__init__(result, reader, released)
        self._with_index = with_index
        self._last: int | None = None  # once it has ended: the reader would keep all results

    @property
    def index(self) -> int | None:
        """The index, in the input, of the result or error that came last; None before the first.

        The error of the input itself, which comes last, has the index after its last item.
        """
        reader = self._reader
        return reader.last if isinstance(reader, CompletionReader) else self._last

    def _close(self) -> None:
        self._last = self.index
        super()._close()

    async def __anext__(self) -> R:
        reader = self._reader
        try:
            result = await super().__anext__()
        except Exception as error:
            prepare_for_caller(error)  # else it refers to this frame, and by that to the map
            raise
        finally:
            if self._reader is None and isinstance(reader, CompletionReader):
                self._last = reader.last  # it was closed while this step waited
        if self._with_index:
            return self.index, result  # type: ignore[return-value]
        return result
