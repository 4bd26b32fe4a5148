"""`PoolResult`: what `map` and `starmap` return, and what reads the results of their job (job.py).

A worker imports this module if the user's main module imports `Pool`. So it imports only what it
must.
"""

from __future__ import annotations

import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Coroutine,
    Generator,
)
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol

from .. import _legacy
from ..types import R
from .callers import prepare_for_caller

if TYPE_CHECKING:
    from .engine import Engine
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


class PoolResult(Awaitable[list[R]], AsyncIterable[R], Generic[R]):
    """The results of one `map` or `starmap`.

    Awaiting it gives the list of all results in the order of the input, or raises the first error.
    `async for` gives each result as soon as it and all before it are ready. It raises the error of
    an item at the item's place; the same iterator can then go on with the next item. Several tasks
    may do both, any number of times. (If the input is an iterator, results that were read are
    dropped after a while; see `Pool.map`.)
    """

    def __init__(self, pool: ResultPool, job: Job) -> None:
        if not hasattr(job, "await_all"):
            raise TypeError(f"a PoolResult is made by map and starmap, not from {job!r}")
        self.pool = pool
        self._job = job
        weakref.finalize(self, pool._bind().drop_unread, job).atexit = False

    if not TYPE_CHECKING:  # or type checkers would accept any attribute

        def __getattr__(self, name: str) -> NoReturn:
            _legacy.refuse_attribute(self, name, _legacy.RESULT)

    def __await__(self) -> Generator[Any, None, list[R]]:
        self.pool._check_loop()
        return _keep(self.pool, self._job.await_all()).__await__()

    async def results(self) -> list[R]:
        """Wait for all results and return them in the order of the input."""
        return await self

    def __aiter__(self) -> AsyncGenerator[R, None]:
        """A new iterator with the methods of an async generator; `aclose` ends it.

        Unlike a generator, it goes on after the error of an item.
        """
        return self.pool._bind().read(self._job, keep=self)

    def results_generator(self) -> AsyncGenerator[R, None]:
        """The same as `aiter(result)`, for `contextlib.aclosing` and programs of 0.9.1."""
        return self.__aiter__()
