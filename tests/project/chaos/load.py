"""The load: many small operations, a few large ones, of every kind that a pool offers."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from aiomultiprocess import Pool
from chaos.accounts import Accounts, Outcome
from chaos.tasks import Task, run_async, run_sync, star_async, star_sync

RATE = 20.0  # operations a second, at `load` 1
CROWD = 10.0  # times the usual load, while it begins
REST_EVERY = 60.0  # seconds between two moments without any operation
MOST_OPEN = 64  # operations at once, however slow the machine is
LARGE = (100_000, 10_000_000)  # bytes
RETRIES = 2  # of the operations that may be run again

#: What tasks do, and how often; the second table is for coroutines.
SYNC = {"value": 94, "raise": 3, "stay": 2, "unsent": 1}
ASYNC = SYNC | {"turn": 20, "wait": 10}

Operation = Callable[[random.Random], Coroutine[Any, Any, None]]

CAN_RETRY = "retries" in inspect.signature(Pool.apply).parameters


class Load:
    """Draws operations from a seed, and sees each of them to its end."""

    def __init__(
        self,
        pool: Pool,
        accounts: Accounts,
        rate: float,
        rng: random.Random,
        on_rest: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._accounts = accounts
        self._rate = rate
        self._rng = rng
        self._on_rest = on_rest
        self._open = asyncio.Semaphore(MOST_OPEN)
        self._operations: dict[Operation, int] = {
            self.batch: 25,
            self.stream: 15,
            self.endless: 2,
            self.calls: 30,
            self.large_call: 6,
            self.large_batch: 2,
            self.cancelled: 10,
            self.late_call: 6,
            self.late_batch: 4,
        }

    async def run(self, until: float, crowded: float) -> None:
        """Begin operations until that time of the loop; return when all have ended.

        Until `crowded`, as many as can be open: memory that an allocator cannot return, because
        little of it is still in use, has then been as much as it will be (CHAOS-7).
        """
        loop, rng = asyncio.get_running_loop(), self._rng
        rest_at = loop.time() + REST_EVERY
        async with asyncio.TaskGroup() as operations:
            while loop.time() < until:
                if loop.time() > rest_at:
                    await self._rest()
                    rest_at += REST_EVERY
                [operation] = rng.choices([*self._operations], [*self._operations.values()])
                await self._open.acquire()
                begun = operations.create_task(self._see(operation, rng.getrandbits(64)))
                begun.add_done_callback(lambda _: self._open.release())
                crowd = CROWD if loop.time() < crowded else 1.0
                await asyncio.sleep(rng.expovariate(crowd * self._rate))

        self._on_rest()

    async def _rest(self) -> None:
        """Begin nothing until all that was begun has ended."""
        for _ in range(MOST_OPEN):
            await self._open.acquire()
        self._on_rest()
        for _ in range(MOST_OPEN):
            self._open.release()

    async def _see(self, operation: Operation, seed: int) -> None:
        """One operation; what it raises by itself is a fault, of the pool or of this program."""
        try:
            await operation(random.Random(seed))  # CHAOS-8
        except Exception as error:  # noqa: BLE001 - it is reported with all else
            self._accounts.fault(f"{operation.__name__}: {error!r}")

    async def die(self, what: str) -> None:
        """One task that ends its worker."""
        await self._call(self._accounts.new(what, None))

    # -- operations --------------------------------------------------------------------------------

    async def batch(self, rng: random.Random) -> None:
        """A map or starmap over a list: awaited, then read one by one."""
        func, mix, retries = self._function(rng)
        tasks = [self._draw(rng, mix) for _ in range(_size(rng, 400))]
        result = self._submit(func, tasks, retries)
        if rng.random() < 0.5:
            await self._whole(result, tasks)
        await self._each(result, tasks, retries)

    async def stream(self, rng: random.Random) -> None:
        """A map over a generator, read to its end as results come."""
        func, mix, retries = self._function(rng)
        count = _size(rng, 400)
        asynchronous = rng.random() < 0.5
        tasks: list[Task] = []

        def generate() -> Iterator[Task]:
            for _ in range(count):
                tasks.append(self._draw(rng, mix))
                yield tasks[-1]

        items = _pausing(generate()) if asynchronous else generate()
        await self._each(self._submit(func, items, retries), tasks, retries, count)

    async def endless(self, rng: random.Random) -> None:
        """A map over an endless generator, of which some results are read."""
        count = _size(rng, 400)
        tasks: list[Task] = []

        def generate() -> Iterator[Task]:
            while True:
                task = self._draw(rng, SYNC)
                if len(tasks) < count:
                    tasks.append(task)
                else:  # pulled ahead of us, and we shall not read on
                    self._accounts.book(task, Outcome.DROPPED)
                yield task

        iterator = aiter(self._pool.map(run_async, generate()))
        for at in range(count):
            found = await _outcome(anext(iterator))
            self._accounts.judge(tasks[at], found)

    async def calls(self, rng: random.Random) -> None:
        """Some apply at once."""
        tasks = [self._draw(rng, ASYNC) for _ in range(_size(rng, 30))]
        await asyncio.gather(*(self._call(task, rng.random() < 0.2) for task in tasks))

    async def large_call(self, rng: random.Random) -> None:
        await self._call(self._accounts.new("value", _large(rng)))

    async def large_batch(self, rng: random.Random) -> None:
        value = _large(rng)
        tasks = [self._accounts.new("value", value) for _ in range(4)]
        await self._each(self._pool.map(run_sync, tasks), tasks)

    async def cancelled(self, rng: random.Random) -> None:
        """A call that is cancelled while it waits in the worker, or before it is sent."""
        task = self._accounts.new("long", None)
        call = asyncio.ensure_future(self._pool.apply(star_async, task))
        await asyncio.sleep(rng.expovariate(20))
        if not call.cancel():  # its worker is dead already
            self._accounts.judge(task, call.exception())
            return
        try:
            self._accounts.judge(task, await call)
        except asyncio.CancelledError:
            self._accounts.book(task, Outcome.CANCELLED)

    async def late_call(self, rng: random.Random) -> None:
        """A call that is given up by a timeout."""
        task = self._accounts.new("long", None)
        try:
            async with asyncio.timeout(rng.expovariate(10)):
                found = await _outcome(self._pool.apply(star_async, task))
        except TimeoutError:
            self._accounts.book(task, Outcome.CANCELLED)
        else:
            self._accounts.judge(task, found)

    async def late_batch(self, rng: random.Random) -> None:
        """A map that is given up by a timeout; it goes on without us."""
        tasks = [self._accounts.new("wait", None) for _ in range(_size(rng, 100))]
        result = self._pool.map(run_async, tasks)
        try:
            async with asyncio.timeout(rng.expovariate(20)):
                await _outcome(result)
        except TimeoutError:
            for task in tasks:
                self._accounts.book(task, Outcome.CANCELLED)
        else:
            await self._each(result, tasks)

    # -- parts of them -----------------------------------------------------------------------------

    def _function(self, rng: random.Random) -> tuple[Callable[..., Any], dict[str, int], int]:
        """What a map runs, what its tasks may do, and how often they may be run again."""
        func = rng.choice([run_sync, run_async, star_sync, star_async])
        retries = RETRIES if CAN_RETRY and rng.random() < 0.3 else 0
        return func, ASYNC if inspect.iscoroutinefunction(func) else SYNC, retries

    def _draw(self, rng: random.Random, mix: dict[str, int]) -> Task:
        [what] = rng.choices([*mix], [*mix.values()])
        if what == "unsent":
            return self._accounts.new(what, lambda: None)
        return self._accounts.new(what, rng.choice(VALUES))

    def _submit(self, func: Callable[..., Any], items: Any, retries: int = 0) -> Any:
        method: Any = self._pool.starmap if func in (star_sync, star_async) else self._pool.map
        return method(func, items, **({"retries": retries} if retries else {}))

    async def _call(self, task: Task, may_retry: bool = False) -> None:
        retries = RETRIES if CAN_RETRY and may_retry else 0
        more: Any = {"retries": retries} if retries else {}
        found = await _outcome(self._pool.apply(star_async, task, **more))
        self._accounts.judge(task, found, 1 + retries)

    async def _whole(self, result: Any, tasks: Sequence[Task]) -> None:
        """Await all results: as many as there are tasks, or the first error."""
        found = await _outcome(result)
        if not isinstance(found, Exception) and len(found) != len(tasks):
            self._accounts.fault(f"{len(found)} results of {len(tasks)} tasks")

    async def _each(
        self, result: Any, tasks: Sequence[Task], retries: int = 0, count: int | None = None
    ) -> None:
        """Read one result for each task, in order, and then no more."""
        iterator = aiter(result)
        for at in range(len(tasks) if count is None else count):
            found = await _outcome(anext(iterator))
            if isinstance(found, StopAsyncIteration):
                self._accounts.fault(f"a map ended after {at} results")
                return  # the rest was never resolved
            self._accounts.judge(tasks[at], found, 1 + retries)
        found = await _outcome(anext(iterator))
        if not isinstance(found, StopAsyncIteration):
            self._accounts.fault(f"one result more than tasks: {found!r:.100}")


VALUES: list[Any] = [
    None,
    7,
    2.5,
    "text",
    b"bytes" * 20,
    [1, [2, {"three": 4}]],
    {"id": 1, "name": "a record", "tags": ["x", "y"]},
    frozenset({1, 2}),
    1j,  # by pickle
    range(5),
]


async def _outcome(awaitable: Awaitable[Any]) -> Any:
    """What it gives, or the error that it raises; our own cancellation is neither."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - to be judged
        return error.with_traceback(None)  # which would keep frames, and they the values


async def _pausing(items: Iterator[Task]) -> AsyncIterator[Task]:
    for item in items:
        if item[0] % 8 == 0:
            await asyncio.sleep(0.001)
        yield item


def _size(rng: random.Random, mean: int) -> int:
    """Most are small, some are large."""
    return 1 + int(rng.expovariate(1 / mean))


def _large(rng: random.Random) -> bytes:
    least, most = LARGE
    size = int(least * (most / least) ** rng.random())
    return rng.randbytes(4096) * (size // 4096)
