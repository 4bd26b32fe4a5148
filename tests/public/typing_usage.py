"""What typical user code is inferred to be. mypy --strict reads this; it is never run."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Any, assert_type

from aiomultiprocess import (
    Call,
    Pool,
    PoolExecutor,
    PoolResult,
    PoolStats,
    PoolTerminatedError,
    Process,
    Progress,
    ProxyException,
    QueueID,
    RoundRobin,
    Scheduler,
    Shared,
    Stream,
    TaskID,
    TaskTimeoutError,
    Worker,
    WorkerInfo,
    WorkerLostError,
    WorkerStats,
    current_worker,
    set_context,
    set_start_method,
    share,
)


async def spell(number: int) -> str:
    return str(number)


async def power(base: int, exponent: float) -> float:
    return math.pow(base, exponent)


def halve(number: int) -> float:
    return number / 2


async def numbers() -> AsyncIterator[int]:
    yield 1


def letters(word: str) -> Iterator[str]:
    yield from word


@asynccontextmanager
async def connection() -> AsyncIterator[int]:
    yield 1


def prepare(level: int) -> None:
    set_start_method("spawn")
    set_context(None)


def report(error: BaseException) -> None:
    print(error)


def show(progress: Progress) -> None:
    print(progress.done, progress.failed)


class First(Scheduler):
    """A user's scheduler, written against 0.9.1."""

    def register_queue(self, tx: Any) -> QueueID:
        return QueueID(0)

    def register_process(self, qid: QueueID) -> None:
        pass

    def schedule_task(
        self,
        task_id: TaskID,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> QueueID:
        return QueueID(0)

    def complete_task(self, task_id: TaskID) -> None:
        pass


async def maps() -> None:
    async with Pool() as pool:
        assert_type(pool, Pool)
        results = pool.map(spell, [1, 2])
        assert_type(await assert_type(results, PoolResult[str]), list[str])
        assert_type(await pool.map(spell, range(3)), list[str])
        assert_type(await pool.map(spell, numbers()), list[str])
        assert_type(await pool.map(halve, (1, 2)), list[float])
        assert_type(await pool.map(math.sqrt, [1.0, 2.0]), list[float])
        assert_type(await pool.starmap(power, [(2, 0.5), (3, 1.5)]), list[float])
        assert_type(await pool.starmap(power, zip([1], [2.0], strict=True)), list[float])
        assert_type(await pool.map(spell, [1, 2], retries=2), list[str])
        assert_type(await pool.map(halve, numbers(), retries=2), list[float])
        assert_type(await pool.starmap(power, [(2, 0.5)], retries=2), list[float])
        async for word in pool.map(spell, [1, 2]):
            assert_type(word, str)
        assert_type(len(results), int)
        assert_type(results.progress, Progress)
        assert_type(results.progress.total, int | None)
        assert_type(results.done(), bool)
        assert_type(results.cancel(), bool)
        completed = results.as_completed()
        async for word in completed:
            assert_type(word, str)
        assert_type(completed.index, int | None)
        async for pair in pool.map(halve, [1, 2]).as_completed(with_index=True):
            assert_type(pair, tuple[int, float])
        excepted = pool.map(spell, [1, 2], return_exceptions=True)
        assert_type(await excepted, list[str | BaseException])
        assert_type(await pool.map(halve, [1], return_exceptions=True), list[float | BaseException])
        powers = pool.starmap(power, [(2, 0.5)], return_exceptions=True, progress=True)
        assert_type(await powers, list[float | BaseException])
        assert_type(await pool.map(spell, [1], return_exceptions=False), list[str])
        assert_type(await pool.starmap(power, [(2, 0.5)], progress=show), list[float])
        gathered = await asyncio.gather(pool.apply(spell, (1,)), pool.apply(halve, (2,)))
        assert_type(gathered, tuple[str, float])


async def applies() -> None:
    pool = Pool(2, prepare, (1,), 100, 8, 2, RoundRobin(), exception_handler=report, backend="pipe")
    try:
        assert_type(await pool.apply(spell, (1,)), str)
        assert_type(await pool.apply(power, args=[2], kwds={"exponent": 2.0}), float)
        assert_type(await pool.apply(halve, (1,)), float)
        assert_type(await pool.apply(spell, (1,), retries=3), str)
        assert_type(await pool.apply(halve, (1,), retries=3), float)
        assert_type(await pool.apply(spell, (1,), priority=-1), str)
        assert_type(await asyncio.create_task(pool.apply(spell, (1,))), str)
        assert_type(await asyncio.wait_for(pool.apply(halve, (1,)), 1), float)
        async with asyncio.TaskGroup() as group:
            task = assert_type(group.create_task(pool.apply(spell, (1,))), asyncio.Task[str])
        print(await task)
        loop = asyncio.get_running_loop()
        assert_type(asyncio.run_coroutine_threadsafe(pool.apply(halve, (1,)), loop).result(), float)
        future: asyncio.Future[str] = pool.apply(spell, (1,))
        coroutine: Coroutine[Any, Any, float] = pool.apply(power, (1, 2.0))
        waiting: list[Call[float]] = [pool.apply(halve, (1,)), pool.submit(halve, 1)]
        print(await future, await coroutine, await asyncio.gather(*waiting))
    except WorkerLostError as lost:
        assert_type(lost, WorkerLostError)
    except (PoolTerminatedError, ProxyException) as error:
        print(error)
    finally:
        pool.close()
        assert_type(await pool.join(timeout=1.5), None)
        assert_type(await pool.shutdown(), int)
        assert_type(await pool.shutdown(timeout=1), int)
    assert_type(pool.backend, str)
    Pool(scheduler=First(), queuecount=1).terminate()


async def submits() -> None:
    pool = Pool()
    assert_type(await assert_type(pool.submit(spell, 1), Call[str]), str)
    assert_type(await pool.submit(halve, 1), float)
    assert_type(await pool.submit(power, 1, exponent=2.0), float)
    gathered = await asyncio.gather(pool.submit(spell, 1), pool.submit(halve, 2))
    assert_type(gathered, tuple[str, float])
    pool.submit(spell, "1")  # type: ignore[call-overload]
    pool.submit(power, 1)  # type: ignore[call-overload]


async def streams() -> None:
    pool = Pool()
    stream = assert_type(pool.stream(letters, ("word",), ahead=8), Stream[str])
    async for letter in stream:
        assert_type(letter, str)
    async with aclosing(pool.stream(numbers, task_timeout=1.5)) as values:
        assert_type(await anext(values), int)
    pool.stream(spell, (1,))  # type: ignore[arg-type]


async def lives_of_workers() -> None:
    pool = Pool(lifespan=connection, maxmemoryperchild=1 << 30, threads=4, logs="INFO", grace=1.5)
    try:
        assert_type(await pool.apply(halve, (1,), task_timeout=0.5), float)
        assert_type(await pool.map(spell, [1], task_timeout=0.5, priority=2), list[str])
    except TaskTimeoutError as error:
        assert_type(error.killed, bool)
    stats = assert_type(pool.stats(), PoolStats)
    assert_type(stats.workers, tuple[WorkerStats, ...])
    assert_type(stats.workers[0].rss, int | None)
    assert_type(await pool.resize(4), None)
    worker = assert_type(current_worker(), WorkerInfo)
    assert_type(worker.index, int)


async def processes() -> None:
    process = Process(target=spell, args=(1,), name="one")
    process.start()
    await process.join(timeout=1)
    assert_type(process.exitcode, int | None)
    worker = Worker(target=spell, args=(1,))
    word: str = await worker
    print(word)


def without_a_loop() -> None:
    with PoolExecutor(2, childconcurrency=4) as executor:
        assert_type(executor.submit(spell, 1), Future[str])
        assert_type(executor.submit(halve, number=1), Future[float])
        for word in executor.map(spell, range(3), timeout=1.5, buffersize=2):
            assert_type(word, str)
        assert_type(list(executor.map(halve, [1], chunksize=2)), list[float])
        executor.shutdown(wait=False, cancel_futures=True)


def look_up(shared: Shared[dict[str, int]], key: str) -> int:
    return shared.value[key]


async def shared_objects() -> None:
    with share({"a": 1}) as shared:
        assert_type(shared, Shared[dict[str, int]])
        assert_type(shared.value["a"], int)
        async with Pool(sharedmemory=1 << 30) as pool:
            assert_type(await pool.submit(look_up, shared, "a"), int)
