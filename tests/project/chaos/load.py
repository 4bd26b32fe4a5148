"""The load: many small operations, a few large ones, of every kind that a pool offers."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from aiomultiprocess import Pool
from chaos.accounts import DEAF, Accounts, Outcome
from chaos.tasks import (
    AMPLE,
    LIMIT,
    MARK,
    Task,
    plain_values,
    run_async,
    run_sync,
    star_async,
    star_sync,
    values,
)

RATE = 20.0  # operations a second, at `load` 1
CROWD = 10.0  # times the usual load, while it begins
REST_EVERY = 60.0  # seconds between two moments without any operation
MOST_OPEN = 64  # operations at once, however slow the machine is
LARGE = (100_000, 10_000_000)  # bytes
RETRIES = 2  # of the operations that may be run again

#: What tasks do, and how often; the second table is for coroutines.
SYNC = {"value": 94, "raise": 3, "stay": 2, "unsent": 1}
ASYNC = SYNC | {"turn": 20, "wait": 10}
LIMITED = {"value": 60, "turn": 20, "wait": 10, "raise": 3, "just": 20, "overtime": 5}
NEAR = 0.05  # seconds around its limit in which a task ends just in time, or does not
PRIORITIES = (0, 0, 0, 0, 0, 0, -1, 1, 5)

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
            self.limited: 6,
            self.deaf: 1,
            self.cancelled_batch: 6,
            self.cancelled_endless: 2,
            self.completed: 5,
            self.values: 8,
            self.limited_values: 3,
            self.grown: 2,
            self.submitted: 10,
            self.contextual: 8,
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
        result = self._submit(func, tasks, retries, priority=rng.choice(PRIORITIES))
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

    async def limited(self, rng: random.Random) -> None:
        """Tasks with a time limit: most end long before it, some just in time, some too late."""
        tasks = [self._draw(rng, LIMITED) for _ in range(_size(rng, 20))]
        retries = RETRIES if rng.random() < 0.3 else 0
        func = rng.choice([run_async, star_async])
        result = self._submit(func, tasks, retries, task_timeout=LIMIT)
        await self._each(result, tasks, retries, time_limit=LIMIT)

    async def deaf(self, rng: random.Random) -> None:
        """A task that does not react when its time is over, beside others; with its worker it
        ends those that do.
        """
        tasks = [self._accounts.new(rng.choice(DEAF), None)]
        tasks += [self._accounts.new("overtime", None) for _ in range(rng.randrange(3))]
        rng.shuffle(tasks)
        result = self._pool.map(run_async, tasks, task_timeout=LIMIT)
        await self._each(result, tasks, time_limit=LIMIT)

    async def cancelled_batch(self, rng: random.Random) -> None:
        """A map that is cancelled; what is ready then stays readable."""
        func, mix, retries = self._function(rng)
        tasks = [self._draw(rng, mix) for _ in range(_size(rng, 400))]
        result = self._submit(func, tasks, retries, priority=rng.choice(PRIORITIES))
        await asyncio.sleep(rng.expovariate(20))
        result.cancel()
        await self._each(result, tasks, retries, cancelled=True)

    async def cancelled_endless(self, rng: random.Random) -> None:
        """A map over an endless generator, which is cancelled."""
        tasks: list[Task] = []

        def generate() -> Iterator[Task]:
            while True:
                tasks.append(self._draw(rng, ASYNC))
                yield tasks[-1]

        result = self._pool.map(run_async, generate())
        await asyncio.sleep(rng.expovariate(20))
        result.cancel()
        iterator, at = aiter(result), 0
        while not isinstance(found := await _ending(anext(iterator)), StopAsyncIteration):
            if at < len(tasks):
                self._judge_cancelled(tasks[at], found)
            elif at > len(tasks) or not isinstance(found, asyncio.CancelledError):
                self._accounts.fault(f"a cancelled map has one result more: {found!r:.100}")
                return
            at += 1  # what was never read is cancelled as one, after the last that was
        for task in tasks[at:]:
            self._accounts.book(task, Outcome.DROPPED)

    async def completed(self, rng: random.Random) -> None:
        """A map whose results are read as they are ready."""
        func, mix, retries = self._function(rng)
        tasks = [self._draw(rng, mix) for _ in range(_size(rng, 200))]
        result = self._submit(func, tasks, retries, task_timeout=AMPLE)
        iterator = result.as_completed()
        for _ in tasks:
            found = await _outcome(anext(iterator))
            if isinstance(found, StopAsyncIteration):
                self._accounts.fault("as_completed ended too early")
                return
            self._accounts.judge(tasks[iterator.index], found, 1 + retries)
        if not isinstance(await _outcome(anext(iterator)), StopAsyncIteration):
            self._accounts.fault("as_completed gives one result more than tasks")

    async def values(self, rng: random.Random) -> None:
        """A stream, read to its end, or closed or dropped early (CHAOS-10)."""
        count = _size(rng, 300)
        pauses = {rng.randrange(count): 0.02 for _ in range(3)}
        end = rng.choice([count, count, rng.randrange(count)])
        limit = rng.choice([None, AMPLE])
        task = self._accounts.new("stream", count)
        stream = self._stream(rng, task, pauses, limit)
        found = await self._read(stream, task, end, rng.random() < 0.3)
        if found is None:
            if rng.random() < 0.5:
                found = await _outcome(stream.aclose())
            del stream
        if found is None:
            self._accounts.book(task, Outcome.DROPPED)
        else:
            self._accounts.judge(task, found)

    async def limited_values(self, rng: random.Random) -> None:
        """A stream of which some values take about as long as they may, or too long."""
        count = _size(rng, 100)
        near = LIMIT + rng.uniform(-4 * NEAR, NEAR)
        pauses = {rng.randrange(count): pause for pause in (near, near, rng.choice([0, 60.0]))}
        task = self._accounts.new("stream", count)
        stream = self._stream(rng, task, pauses, LIMIT)
        found = await self._read(stream, task, count + 1, rng.random() < 0.3)
        self._accounts.judge(task, found, timeout=LIMIT)

    async def grown(self, rng: random.Random) -> None:
        """A task that leaves its worker larger (CHAOS-11)."""
        await self._call(self._accounts.new("grow", None), rng.random() < 0.2)

    async def submitted(self, rng: random.Random) -> None:
        """Futures of `submit`, of which some are cancelled."""
        func = rng.choice([star_sync, star_async])
        mix = ASYNC if func is star_async else SYNC
        tasks = [self._draw(rng, mix) for _ in range(_size(rng, 30))]
        calls = [self._pool.submit(func, *task) for task in tasks]
        await asyncio.sleep(rng.expovariate(50))
        for call in calls:
            if rng.random() < 0.2:
                call.cancel()
        for task, call in zip(tasks, calls, strict=True):
            self._judge_cancelled(task, await _ending(call))

    async def contextual(self, rng: random.Random) -> None:
        """Tasks that return the value of a context variable (CHAOS-13)."""
        mark = rng.getrandbits(32)
        MARK.set(mark)
        func = rng.choice([run_sync, run_async, star_sync, star_async])
        tasks = [self._accounts.new("context", mark) for _ in range(_size(rng, 100))]
        result = self._submit(func, tasks)
        MARK.set(-2)
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
        if what == "just":
            return self._accounts.new(what, LIMIT + rng.uniform(-NEAR, NEAR))
        return self._accounts.new(what, rng.choice(VALUES))

    def _submit(self, func: Callable[..., Any], items: Any, retries: int = 0, **more: Any) -> Any:
        method: Any = self._pool.starmap if func in (star_sync, star_async) else self._pool.map
        return method(func, items, **({"retries": retries} if retries else {}), **more)

    def _stream(
        self, rng: random.Random, task: Task, pauses: dict[int, float], limit: float | None
    ) -> Any:
        func = rng.choice([values, values, values, plain_values])
        if limit == LIMIT:  # a plain generator that sleeps does not react
            func = values
        ahead = rng.choice([1, 2, 16, 64])
        args = (task[0], task[2], pauses)
        return self._pool.stream(func, args, ahead=ahead, task_timeout=limit)

    async def _read(self, stream: Any, task: Task, end: int, slowly: bool) -> Any:
        """Read up to `end` values. None, or what ended the stream: its error, or its "result"."""
        for at in range(end + (end == task[2])):
            found = await _outcome(anext(stream))
            if isinstance(found, StopAsyncIteration):
                if at != task[2]:
                    self._accounts.fault(f"a stream of {task[2]} values ended after {at}")
                return task[0], task[2]
            if isinstance(found, BaseException):
                return found
            if found != (task[0], at):  # CHAOS-10
                self._accounts.fault(f"value {at} of stream {task[0]} is {found!r:.100}")
            if slowly and at % 64 == 0:
                await asyncio.sleep(0.1)
        return None

    def _judge_cancelled(self, task: Task, found: Any, limit: int = 1) -> None:
        if isinstance(found, asyncio.CancelledError):
            self._accounts.book(task, Outcome.CANCELLED, limit)
        else:
            self._accounts.judge(task, found, limit)

    async def _call(self, task: Task, may_retry: bool = False) -> None:
        retries = RETRIES if CAN_RETRY and may_retry else 0
        more: Any = {"retries": retries} if retries else {}
        more["priority"] = PRIORITIES[task[0] % len(PRIORITIES)]
        found = await _outcome(self._pool.apply(star_async, task, **more))
        self._accounts.judge(task, found, 1 + retries)

    async def _whole(self, result: Any, tasks: Sequence[Task]) -> None:
        """Await all results: as many as there are tasks, or the first error."""
        found = await _outcome(result)
        if not isinstance(found, Exception) and len(found) != len(tasks):
            self._accounts.fault(f"{len(found)} results of {len(tasks)} tasks")

    async def _each(
        self,
        result: Any,
        tasks: Sequence[Task],
        retries: int = 0,
        count: int | None = None,
        *,
        time_limit: float | None = None,
        cancelled: bool = False,
    ) -> None:
        """Read one result for each task, in order, and then no more."""
        iterator = aiter(result)
        for at in range(len(tasks) if count is None else count):
            found = await (_ending if cancelled else _outcome)(anext(iterator))
            if isinstance(found, StopAsyncIteration):
                self._accounts.fault(f"a map ended after {at} results")
                return  # the rest was never resolved
            if cancelled:
                self._judge_cancelled(tasks[at], found, 1 + retries)
            else:
                self._accounts.judge(tasks[at], found, 1 + retries, time_limit)
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


async def _ending(awaitable: Awaitable[Any]) -> Any:
    """As `_outcome`, of a cancelled map, whose CancelledError is not our own."""
    try:
        return await _outcome(awaitable)
    except asyncio.CancelledError as error:
        return error.with_traceback(None)


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
