"""Each task is in exactly one number of `Pool.stats()`, at any time and whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import mishaps
import overtime
import streams
import workload
from aiomultiprocess import Pool, PoolExecutor, PoolStats, RoundRobin, WorkerLostError
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")

LIMIT = 0.2  # seconds


def total(stats: PoolStats) -> int:
    return stats.waiting + stats.running + ended(stats)


def ended(stats: PoolStats) -> int:
    return stats.done + stats.failed + stats.timed_out + stats.cancelled + stats.lost


async def settled(result: Any) -> None:
    """Until a map has ended for its callers, however it does."""
    while not result.done():  # noqa: ASYNC110 - an error ends each `await` before that
        await asyncio.sleep(0.005)


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


class Refusing(RoundRobin):
    """A scheduler that refuses one item."""

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwds: Any) -> Any:
        if args and args[0] == "refused":
            raise LookupError("not this one")
        return super().schedule_task(task_id, func, args, kwds)


class Mix:
    """Submits tasks of every kind, and knows how many."""

    def __init__(self, pool: Pool, rng: random.Random) -> None:
        self.pool = pool
        self.rng = rng
        self.submitted = 0
        self.operations: list[Callable[[], Awaitable[object]]] = [
            self.whole_map,
            self.cancelled_map,
            self.marked_map,
            self.cancelled_calls,
            self.limited,
            self.blocked,
            self.retried,
            self.unsent,
            self.stream,
            self.early_stream,
            self.bad_stream,
            self.kill,
            self.resize,
        ]

    def check(self) -> None:
        stats = self.pool.stats()
        assert total(stats) == self.submitted, stats
        assert min(vars(stats)[name] for name in ("waiting", "running", "done", "cancelled")) >= 0

    async def run(self) -> None:
        """Each kind three times, a few side by side."""
        operations = self.operations * 3
        self.rng.shuffle(operations)
        places = asyncio.Semaphore(8)

        async def one(operation: Callable[[], Awaitable[object]]) -> None:
            async with places:
                await operation()
                self.check()

        await asyncio.gather(*map(one, operations))

    def map(self, func: Callable[..., Any], items: list[Any], **options: Any) -> Any:
        result = self.pool.map(func, items, **options)
        self.submitted += len(items)
        return result

    async def whole_map(self) -> None:
        await settled(self.map(workload.double, list(range(self.rng.randrange(500)))))

    async def cancelled_map(self) -> None:
        naps = [self.rng.choice([0, 0, 0.01, 100]) for _ in range(self.rng.randrange(1, 300))]
        result = self.map(overtime.nap, naps, priority=self.rng.choice([0, 0, 1]))
        await asyncio.sleep(self.rng.choice([0, 0.01, 0.1]))
        result.cancel()
        self.check()
        await settled(result)

    async def marked_map(self) -> None:
        result = self.map(overtime.nap, [0.0, 100.0] * 5)
        with contextlib.suppress(TimeoutError, WorkerLostError):
            async with asyncio.timeout(0.05):
                await result

    async def cancelled_calls(self) -> None:
        naps = [self.rng.choice([0, 0.01, 100]) for _ in range(40)]
        calls = [self.pool.submit(overtime.nap, seconds) for seconds in naps]
        self.submitted += 40
        await asyncio.sleep(self.rng.choice([0, 0.02]))
        for call in calls:
            call.cancel()
        self.check()
        await asyncio.wait(calls)

    async def limited(self) -> None:
        naps = [self.rng.choice([0, 0.01, 100]) for _ in range(5)]
        result = self.map(overtime.nap, naps, task_timeout=LIMIT, retries=self.rng.choice([0, 2]))
        if self.rng.random() < 0.3:
            await asyncio.sleep(LIMIT)
            result.cancel()
        await settled(result)

    async def blocked(self) -> None:
        """Its worker is killed, with what it runs beside."""
        await settled(self.map(overtime.block, [100], task_timeout=LIMIT))

    async def retried(self) -> None:
        result = self.map(mishaps.die, ["SIGKILL"], retries=self.rng.choice([0, 1]))
        if self.rng.random() < 0.5:
            await asyncio.sleep(0.02)
            result.cancel()
        await settled(result)

    async def unsent(self) -> None:
        await settled(self.map(workload.double, [1, lambda: 0, 2, "refused"]))
        result = self.pool.starmap(workload.double, [(1,), 7])  # type: ignore[list-item]
        self.submitted += 2
        await settled(result)

    async def read(self, stream: AsyncIterator[Any], count: int = 1000) -> None:
        """Begin a stream, and read so many values or to its end."""
        if self.pool.running:
            self.submitted += 1
            with contextlib.suppress(Exception):
                for _ in range(count):
                    await anext(stream)

    async def stream(self) -> None:
        await self.read(self.pool.stream(streams.slow, (20,), ahead=4))

    async def early_stream(self) -> None:
        stream = self.pool.stream(streams.compute, ahead=self.rng.choice([1, 8]))
        first = asyncio.ensure_future(self.read(stream, 1))
        await asyncio.wait([first], timeout=self.rng.choice([0, 0.05]))
        self.check()
        with contextlib.suppress(WorkerLostError):  # it ran beside a task that was killed
            await stream.aclose()
        await first

    async def bad_stream(self) -> None:
        func = self.rng.choice([streams.unpicklable_third, streams.unloadable_third])
        await self.read(self.pool.stream(func))

    async def kill(self) -> None:
        await asyncio.sleep(self.rng.random() / 5)
        worker = self.rng.choice(list(self.pool.processes))
        if worker.ready and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)

    async def resize(self) -> None:
        await self.pool.resize(self.rng.randrange(2, 4))


async def watch(mix: Mix) -> None:
    while True:
        await asyncio.sleep(0.002)
        mix.check()


@pytest.mark.row("H102")
@pytest.mark.parametrize("scheduler", [None, Refusing])
@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_the_sum_of_all_states_is_what_was_submitted_at_any_time(
    scheduler: type[RoundRobin] | None, end: str
) -> None:
    own = None if scheduler is None else scheduler()
    pool = Pool(2, maxtasksperchild=150, childconcurrency=4, grace=0.3, scheduler=own, queuecount=2)
    mix = Mix(pool, random.Random(f"{scheduler} {end}"))
    watching = asyncio.ensure_future(watch(mix))
    if end == "close":
        await mix.run()
        pool.close()
    else:
        running = asyncio.ensure_future(mix.run())
        await asyncio.wait([running], timeout=1.5)
        pool.terminate()
        mix.check()
        running.cancel()
        await asyncio.wait([running])
    await pool.join()
    mix.check()
    assert ended(pool.stats()) == mix.submitted
    assert not watching.done()
    watching.cancel()


@pytest.mark.row("H102")
async def test_items_of_a_cancelled_map_count_as_cancelled_wherever_they_were() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2)
        result = pool.map(workload.meet, [meeting.port] * 1000)
        first, second = await meeting.first(2)
        first.release()
        third = await meeting.next()
        stats = pool.stats()
        assert (stats.done, stats.running, stats.waiting) == (1, 2, 997)
        result.cancel()
        await asyncio.gather(second.gone, third.gone)
        await finish(pool)
        stats = pool.stats()
        assert (stats.done, stats.cancelled, stats.lost, stats.waiting) == (1, 999, 0, 0)


@pytest.mark.row("H102")
async def test_items_that_a_worker_skips_or_takes_with_it_count_as_cancelled() -> None:
    pool = Pool(1, childconcurrency=1)
    await pool.map(workload.double, range(2000))  # a backlog for what follows
    for kill in (False, True):
        before = pool.stats()
        async with Meeting() as meeting:
            ports = [0] * 500 + [meeting.port] + [0] * 500
            result = pool.map(mishaps.double_or_meet_blocking, ports)
            arrival = await meeting.next()
            result.cancel()
            if kill:
                os.kill(arrival.pid, signal.SIGKILL)
            else:
                await asyncio.sleep(0.05)  # the worker blocks until it is released
                arrival.release()
            while (stats := pool.stats()).waiting + stats.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert stats.done + stats.cancelled == before.done + before.cancelled + 1001
        assert stats.cancelled - before.cancelled >= 501
        assert stats.lost == 0
    await finish(pool)


async def test_a_result_that_comes_after_its_call_was_cancelled_counts_as_cancelled() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        call = pool.submit(workload.meet_blocking, meeting.port)
        arrival = await meeting.next()
        call.cancel()
        arrival.release()
        await finish(pool)
        stats = pool.stats()
        assert (stats.done, stats.cancelled) == (0, 1)


def test_calls_of_an_executor_that_are_cancelled_before_they_are_sent_are_counted() -> None:
    with PoolExecutor(1, childconcurrency=1) as executor:
        futures = [executor.submit(overtime.nap, 0.3) for _ in range(5)]
        while not futures[0].running():
            pass
        cancelled = sum(future.cancel() for future in futures[1:])
        executor.shutdown()
        stats = executor._runner._pool.stats()
    assert cancelled
    assert (stats.done, stats.cancelled, total(stats)) == (5 - cancelled, cancelled, 5)


async def test_a_pool_that_is_forgotten_with_its_loop_still_adds_up() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=1)
        result = pool.map(workload.meet, [meeting.port] * 7)
        (await meeting.next()).release()
        await meeting.next()
        assert pool._engine is not None
        pool._engine._kill()
        stats = pool.stats()
        assert (stats.done, stats.cancelled, total(stats)) == (1, 6, 7)
        result.cancel()
