"""`Stream`: what `Pool.stream` returns. It reads the values of its source (stream_source.py)."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ..types import PoolTerminatedError
from .callers import prepare_for_caller, refuse_to_pickle

if TYPE_CHECKING:
    from .stream_source import StreamSource

Value = TypeVar("Value")


class Stream(AsyncIterator[Value]):
    """The values of a generator function that runs in a worker, as they come; see `Pool.stream`.

    Close it, by `aclose()` or `contextlib.aclosing`, to end the generator early. A loop that ends
    by `break` leaves that to the collection of this object.
    """

    def __init__(self, pool: object, start: Callable[[], StreamSource]) -> None:
        self._pool = pool  # which ends if the program has no reference to it
        self._start: Callable[[], StreamSource] | None = start
        self._source: StreamSource | None = None  # from the first step to the end

    def __reduce__(self) -> NoReturn:
        refuse_to_pickle(self)

    def __aiter__(self) -> Stream[Value]:
        return self

    async def __anext__(self) -> Value:
        """The next value.

        Raises what the generator raised, once and after its values; WorkerLostError if its worker
        died; PoolTerminatedError; StopAsyncIteration at the end.
        """
        source = self._source or self._first_step()
        while not source.values:
            error = source.take_error()
            if error is not None:
                self._source = None
                prepare_for_caller(error)
                raise error
            if source.done:
                self._source = None
                raise StopAsyncIteration
            await source.wait()
        value: Value = source.next_value()
        return value

    def _first_step(self) -> StreamSource:
        start, self._start = self._start, None
        if start is None:
            raise StopAsyncIteration
        self._source = source = start()
        weakref.finalize(self, _drop, weakref.ref(source)).atexit = False  # JOB-11
        return source

    async def aclose(self) -> None:
        """Close the generator in its worker, and wait until its `finally` has run.

        Raises what the generator raises meanwhile.
        """
        source, self._source, self._start = self._source, None, None
        if source is None or source.done:
            return
        source.drop()
        while not source.done:
            await source.wait()
        error = source.take_error()
        if issubclass(type(error), Exception) and type(error) is not PoolTerminatedError:
            prepare_for_caller(error)
            raise error


def _drop(source: weakref.ref[StreamSource]) -> None:
    alive = source()
    if alive is not None:
        alive.drop_soon()
