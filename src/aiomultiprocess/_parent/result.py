"""`PoolResult`: what `map` and `starmap` return. It reads the results of their job (job.py)."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Coroutine,
    Generator,
)
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, overload

from .. import _legacy
from .._arguments import check_flag
from ..types import Progress, R
from .callers import prepare_for_caller, refuse_to_pickle

if TYPE_CHECKING:
    from .engine import Engine
    from .iterators import CompletionIterator
    from .job import Job


class ResultPool(Protocol):
    """What a result needs of its pool."""

    def _bind(self) -> Engine:
        """The engine of the running loop; RuntimeError in another loop."""

    def _check_loop(self) -> None:
        """RuntimeError in another loop than the pool's."""


async def _keep(pool: ResultPool, results: Coroutine[Any, Any, list[R]]) -> list[R]:
    """The coroutine behind `await`: it refers to the pool, not to the `PoolResult` (JOB-5)."""
    try:
        return await results
    except Exception as error:
        prepare_for_caller(error)
        raise


@_legacy.without(_legacy.RESULT)
class PoolResult(Awaitable[list[R]], AsyncIterable[R], Generic[R]):
    """The results of one `map` or `starmap`.

    Awaiting it gives the list of all results in the order of the input, or raises the first error.
    `async for` gives each result as soon as it and all before it are ready. It raises the error of
    an item at the item's place; the same iterator can then go on with the next item.
    `as_completed` gives results in the order in which they are ready. Several tasks may do all of
    this, any number of times. (If the input is an iterator, results that were read are dropped
    after a while; see `Pool.map`.)

    `len(result)` is the number of items, for an input that has a length (TypeError for others), so
    that `async for value in tqdm(result)` shows a total, with the `tqdm` of `tqdm.asyncio` or
    `tqdm.auto`.

    To cancel an `await` or a step of an iterator, or to call `aclose` of an iterator, *marks* the
    map: it is cancelled, as by `cancel()`, once nothing can wait for it any more, which is when no
    other `await` and no iterator of it is left, and this object is gone. So a time-out of
    `await pool.map(...)` or around `async for ... in pool.map(...)` ends the map. One that was
    never awaited runs to its end, and so does one over a list or a range whose loop was left by
    `break` or by an error; the input of one over an iterator is read no further then. The block
    `async with contextlib.aclosing(pool.map(...)) as results` ends it in all these cases.

    An `async for` waits for no other: of an input that is an iterator, what a fast one has read is
    kept in memory until the slowest has read it too, however much that is. Close an iterator that
    is not read to its end, by its `aclose`.
    """

    def __init__(self, pool: ResultPool, job: Job) -> None:
        if not hasattr(job, "await_all"):
            raise TypeError(f"a PoolResult is made by map and starmap, not from {job!r}")
        self.pool = pool
        self._job = job
        job.watch_result(self)

    def __reduce__(self) -> NoReturn:
        refuse_to_pickle(self)

    def __await__(self) -> Generator[Any, None, list[R]]:
        self.pool._check_loop()
        return _keep(self.pool, self._job.await_all()).__await__()

    async def results(self) -> list[R]:
        """Wait for all results and return them in the order of the input."""
        try:
            return await self
        except Exception as error:
            prepare_for_caller(error)  # else it refers to this frame, and by that to the map
            raise

    def __aiter__(self) -> AsyncGenerator[R, None]:
        """A new iterator with the methods of an async generator; `aclose` ends it.

        Unlike a generator, it goes on after the error of an item.
        """
        return self.pool._bind().read(self._job, keep=self)

    @overload
    def as_completed(self, *, with_index: Literal[False] = False) -> CompletionIterator[R]: ...

    @overload
    def as_completed(self, *, with_index: Literal[True]) -> CompletionIterator[tuple[int, R]]: ...

    def as_completed(self, *, with_index: bool = False) -> CompletionIterator[Any]:
        """A new async iterator over the results, in the order in which they are ready.

        It gives results, where `asyncio.as_completed` gives awaitables. It raises the error of an
        item in its turn, and then goes on; `aclose` ends it. Its attribute `index` is the index in
        the input of what it gave or raised last. Results that are ready when a map's first
        `as_completed` is called come in the order of the input.

        Arguments:
            with_index: give pairs `(index, result)`.

        Raises:
            RuntimeError: results were read and dropped (the input is an iterator); or this is
                another loop than the pool's.
            asyncio.CancelledError: by the iterator, for each item that `cancel()` has cancelled.
        """
        check_flag("with_index", with_index)
        engine = self.pool._bind()
        return engine.read_completed(self._job, keep=self, with_index=with_index)

    def __len__(self) -> int:
        """The number of items; TypeError if the input has no length, as an iterator."""
        length = self._job.length
        if length is None:
            raise TypeError(
                "the input of this map has no length: it is an iterator or an async iterable, read "
                "as there is room for its items; pass list(...) of it, or use result.progress"
            )
        return length

    def __bool__(self) -> bool:
        """True, also for an input without items."""
        return True

    @property
    def progress(self) -> Progress:
        """How many items have ended, how many of them failed, and of how many in all."""
        return self._job.progress()

    def done(self) -> bool:
        """Whether each item has its result or error, or the map was cancelled."""
        return self._job.done

    def cancel(self) -> bool:
        """Give up all items that have no result yet; False if there are none.

        Items that were not started will not be, and the input is read no further. Those that run
        are cancelled in their workers; this does not wait for them, but `Pool.join` does. Results
        that are there can still be read by `async for` and `as_completed`, which raise
        CancelledError in the places of all others; `await` raises CancelledError. Results and
        errors that come later are dropped. RuntimeError in another loop than the pool's.
        """
        self.pool._check_loop()
        return self._job.cancel()

    async def aclose(self) -> None:
        """The same as `cancel()`, for `contextlib.aclosing`."""
        self.cancel()

    def results_generator(self) -> AsyncGenerator[R, None]:
        """The same as `aiter(result)`, for `contextlib.aclosing` and programs of 0.9.1."""
        return self.__aiter__()
