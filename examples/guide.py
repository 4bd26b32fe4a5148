"""One function for each section of the how-to pages in docs/how-to, which show them."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from importlib.util import find_spec

from aiomultiprocess import (
    Pool,
    PoolExecutor,
    PoolTerminatedError,
    Progress,
    TaskTimeoutError,
    WorkerLostError,
    current_worker,
)


async def fetch(number: int, seconds: float = 0.01) -> str:
    """Stands for the work of your program: it waits, and there is no page below 0."""
    await asyncio.sleep(seconds)
    if number < 0:
        raise ValueError(f"no page {number}")
    return f"page {number}"


async def as_they_come(pool: Pool) -> None:
    slow_first = [(7, 0.2), (8, 0.01), (9, 0.01)]
    results = pool.starmap(fetch, slow_first)
    async for index, page in results.as_completed(with_index=True):  # page 7 comes last
        assert page == f"page {slow_first[index][0]}"

    pages = {page async for page in results.as_completed()}  # once more, without the indices
    assert pages == {"page 7", "page 8", "page 9"}
    assert await results == ["page 7", "page 8", "page 9"]


async def errors_in_place(pool: Pool) -> None:
    numbers = [1, -2, 3]
    failed = []
    results = await pool.map(fetch, numbers, return_exceptions=True)
    for number, page in zip(numbers, results, strict=True):
        if isinstance(page, BaseException):
            failed.append(number)
    assert failed == [-2]


def report(progress: Progress) -> None:
    print(f"{progress.done} of {progress.total} pages, {progress.failed} failed")


async def with_progress(pool: Pool) -> None:
    results = pool.map(fetch, range(100), progress=report)
    assert len(results) == 100
    await results
    assert results.progress == Progress(done=100, failed=0, total=100)


async def cancelling(pool: Pool) -> None:
    results = pool.map(fetch, itertools.count())  # endless
    async for page in results:
        if page == "page 9":
            break
    assert results.cancel()
    assert results.done()

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await pool.map(fetch, range(1_000_000))  # cancelled, as nothing else waits for it


async def leaving_early(pool: Pool) -> None:
    async with contextlib.aclosing(pool.map(fetch, range(1_000_000))) as results:
        async for page in results:
            if page == "page 9":
                break
    assert results.done()  # what had not ended is cancelled


async def time_limits(pool: Pool) -> None:
    try:
        await pool.apply(fetch, (1, 60), task_timeout=0.1)
    except TaskTimeoutError as error:  # a TimeoutError
        assert str(error).endswith("ran longer than its time limit of 0.1 s")
        assert not error.killed

    calls = [(1, 0.01), (2, 60)]
    results = await pool.starmap(fetch, calls, task_timeout=1, return_exceptions=True)
    assert results[0] == "page 1"
    assert isinstance(results[1], TaskTimeoutError)


async def fragile(number: int) -> int:
    if number == 13:
        os._exit(7)  # stands for a crash in C code, or for the out-of-memory killer
    return number


async def poison(pool: Pool) -> None:
    results = await pool.map(fragile, range(20), retries=2, return_exceptions=True)
    lost = [n for n, result in enumerate(results) if isinstance(result, WorkerLostError)]
    assert lost == [13]  # its neighbours have run again, each alone in a worker


async def priorities(pool: Pool) -> None:
    report = pool.map(fetch, range(200), priority=-1)  # when there is nothing else to do
    assert await pool.apply(fetch, (7,), priority=10) == "page 7"
    assert len(await report) == 200


async def one_call(pool: Pool) -> None:
    call = pool.submit(fetch, 1, seconds=0.02)  # arguments as in a call; it is under way now
    assert await call == "page 1"

    calls = [pool.apply(fetch, (number,), retries=1) for number in range(3)]
    assert await asyncio.gather(*calls) == ["page 0", "page 1", "page 2"]

    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.apply(fetch, (5,)))
    assert task.result() == "page 5"


def read_lines(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield line.rstrip()


async def streams(pool: Pool) -> None:
    async with contextlib.aclosing(pool.stream(read_lines, (__file__,))) as lines:
        async for line in lines:
            if line == "import asyncio":
                break  # the worker closes the file now


async def shutting_down() -> None:
    pool = Pool(2)
    call = pool.submit(fetch, 1, seconds=60)
    cut_off = await pool.shutdown(timeout=0.1)
    assert cut_off == 1
    with contextlib.suppress(PoolTerminatedError):
        await call


async def ending_at_sigterm() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    async with Pool(2) as pool:
        pages = pool.map(fetch, range(100))
        loop.call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)  # stands for `docker stop`
        await stopped.wait()
        await pool.shutdown(timeout=5)
    assert pages.done()
    loop.remove_signal_handler(signal.SIGTERM)


def blocking_fetch(number: int) -> str:
    time.sleep(0.01)  # stands for requests, boto3, psycopg2
    return f"page {number}"


async def blocking_libraries() -> None:
    async with Pool(2, threads=16) as pool:  # 32 of them wait at once
        assert len(await pool.map(blocking_fetch, range(64))) == 64


@contextlib.asynccontextmanager
async def database() -> AsyncIterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


async def square(number: int) -> int:
    (result,) = current_worker().state.execute("select ? * ?", (number, number)).fetchone()
    return int(result)


async def lifespans() -> None:
    async with Pool(2, lifespan=database) as pool:
        assert await pool.map(square, [1, 2, 3]) == [1, 4, 9]


REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="none")


async def request_id() -> str:
    return REQUEST_ID.get()


async def context_variables() -> None:
    async with Pool(2, contextvars=[REQUEST_ID]) as pool:
        REQUEST_ID.set("request 7")
        assert await pool.apply(request_id) == "request 7"


async def memory_limits() -> None:
    async with Pool(2, maxmemoryperchild=1 << 30) as pool:  # 1 GiB
        await pool.map(fetch, range(100))
        assert pool.stats().restarts.get("memory", 0) == 0


async def sizes(pool: Pool) -> None:
    await pool.resize(3)
    await pool.map(fetch, range(100))
    await pool.resize(2)
    assert pool.process_count == 2


async def statistics(pool: Pool) -> None:
    before = pool.stats().done
    await pool.map(fetch, range(100))
    stats = pool.stats()
    assert stats.done - before == 100
    for worker in stats.workers:
        print(f"worker {worker.index}: {worker.done} tasks, {worker.rss or 0:,} bytes")


async def monitored() -> None:
    async with Pool(2, monitor=True) as pool:
        await pool.map(fetch, range(100))


async def prometheus(pool: Pool) -> None:
    from prometheus_client import REGISTRY

    from aiomultiprocess.prometheus import PoolCollector

    collector = PoolCollector(pool, name="pages")
    REGISTRY.register(collector)
    assert REGISTRY.get_sample_value("aiomultiprocess_workers", {"pool": "pages"})
    async with Pool(1) as thumbnails:
        collector.add(thumbnails, name="thumbnails")
        await thumbnails.map(fetch, range(10))
        assert REGISTRY.get_sample_value("aiomultiprocess_workers", {"pool": "thumbnails"})
    collector.remove("thumbnails")


async def what_pickle_refuses() -> None:
    offset = 7
    async with Pool(2) as pool:
        assert await pool.map(lambda number: number + offset, [1, 2]) == [8, 9]


async def debugging() -> None:
    async with Pool(backend="inline") as pool:
        assert await pool.apply(os.getpid) == os.getpid()  # the task runs in this process


async def noted(number: int) -> int:
    logging.getLogger("pages").info("page %d", number)
    return number


async def logs() -> None:
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s: %(message)s")
    async with Pool(2, logs=True) as pool:
        await pool.map(noted, range(3))


def without_an_event_loop() -> None:
    with PoolExecutor(2, childconcurrency=32) as executor:
        future = executor.submit(fetch, 1, seconds=0.02)
        assert list(executor.map(fetch, range(3))) == ["page 0", "page 1", "page 2"]
        assert future.result() == "page 1"


async def main() -> None:
    async with Pool(2) as pool:
        for section in (
            as_they_come,
            errors_in_place,
            with_progress,
            cancelling,
            leaving_early,
            time_limits,
        ):
            await section(pool)
        for section in (poison, priorities, one_call, streams, statistics, sizes):
            await section(pool)
        if find_spec("prometheus_client"):
            await prometheus(pool)
    await shutting_down()
    if sys.platform != "win32":
        await ending_at_sigterm()
    await blocking_libraries()
    await lifespans()
    await context_variables()
    if sys.platform == "linux":
        await memory_limits()
    if sys.platform != "win32":
        await monitored()
    if find_spec("cloudpickle"):
        await what_pickle_refuses()
    await debugging()
    await logs()


if __name__ == "__main__":
    asyncio.run(main())
    without_an_event_loop()
