"""`Pool.stats()`: what a pool does, and what it has done."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Any

import pytest

import memory_hogs
import mishaps
import overtime
import workload
from aiomultiprocess import Pool, PoolStats, RoundRobin, TaskTimeoutError, WorkerLostError
from support import Meeting, outcomes

pytestmark = pytest.mark.usefixtures("backend")


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


async def test_stats_say_what_runs_and_waits_and_is_done() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        results = pool.map(workload.meet, [meeting.port] * 10)
        arrivals = await meeting.first(2)
        stats = pool.stats()
        assert (stats.running, stats.waiting, stats.done) == (2, 8, 0)
        assert [worker.index for worker in stats.workers] == [0, 1]
        assert {worker.pid for worker in stats.workers} == {arrival.pid for arrival in arrivals}
        assert all(worker.running == 1 for worker in stats.workers)
        assert all(worker.uptime > 0 for worker in stats.workers)
        assert all(worker.rss is None or worker.rss > 1 << 20 for worker in stats.workers)
        for arrival in arrivals:
            arrival.release()
        await meeting.release_all(8)
        await results
        stats = pool.stats()
        assert (stats.running, stats.waiting, stats.done) == (0, 0, 10)
        assert sum(worker.done for worker in stats.workers) == 10
        assert stats.restarts == {}


async def test_stats_count_failures_and_cancellations() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2)
        await outcomes(pool.starmap(mishaps.fail_at, [(3, i) for i in range(10)]))
        await outcomes(pool.map(workload.double, [1, lambda: 0, 2]))
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        call.cancel()
        await asyncio.wait([call])
        await arrival.gone
        with pytest.raises(Exception, match="Cancelled"):
            await pool.apply(mishaps.cancel_oneself)
        stats = pool.stats()
        assert (stats.done, stats.failed, stats.cancelled) == (11, 2, 2)
        await finish(pool)
        assert pool.stats().done == 11


async def test_stats_count_time_outs_whether_the_task_was_cancelled_or_killed() -> None:
    pool = Pool(1, grace=0.2)
    found = await outcomes(pool.map(overtime.nap, [0, 1000, 0], task_timeout=0.2))
    assert [type(each) is TaskTimeoutError for each in found] == [False, True, False]
    stats = pool.stats()
    assert (stats.done, stats.timed_out, stats.failed, stats.cancelled) == (2, 1, 0, 0)
    with pytest.raises(TaskTimeoutError) as caught:
        await pool.apply(overtime.block, (1000,), task_timeout=0.1)
    assert caught.value.killed
    stats = pool.stats()
    assert (stats.done, stats.timed_out, stats.failed, stats.lost) == (2, 2, 0, 0)
    await finish(pool)
    assert pool.stats().timed_out == 2


async def test_a_time_out_that_a_task_raises_itself_counts_as_failed() -> None:
    pool = Pool(1)
    with pytest.raises(Exception, match="of its own"):
        await pool.apply(mishaps.time_out_by_itself)
    assert (pool.stats().failed, pool.stats().timed_out) == (1, 0)
    await finish(pool)


@pytest.mark.row("H98")
async def test_calls_that_are_cancelled_before_they_are_sent_are_counted() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=1)
        first = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        calls = [asyncio.ensure_future(pool.apply(workload.two)) for _ in range(5)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        arrival.release()
        await first
        await finish(pool)
        stats = pool.stats()
        assert (stats.done, stats.cancelled, stats.waiting, stats.running) == (1, 5, 0, 0)


async def test_stats_count_lost_and_retried_tasks_and_restarts() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)
        with pytest.raises(WorkerLostError):
            await pool.apply(mishaps.die, ("SIGKILL",))
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,), retries=1))
        os.kill((await meeting.next()).pid, signal.SIGKILL)
        (await meeting.next()).release()
        await call
        stats = pool.stats()
        assert (stats.lost, stats.retried, stats.done, stats.restarts) == (1, 1, 1, {"died": 2})
        await finish(pool)


async def test_restarts_are_counted_by_cause() -> None:
    pool = Pool(1, maxtasksperchild=2)
    assert await pool.map(workload.double, range(6)) == [0, 2, 4, 6, 8, 10]
    assert pool.stats().restarts["maxtasksperchild"] >= 2
    assert pool.stats().done == 6
    await finish(pool)
    grown = Pool(1, maxmemoryperchild=100 << 20)
    for value in range(3):
        await grown.apply(memory_hogs.grow_and_tell, (150 << 20, value))
    assert grown.stats().restarts["memory"] >= 2
    assert grown.stats().done == 3
    await finish(grown)


async def test_tasks_that_end_with_their_pool_count_as_cancelled() -> None:
    async with Meeting() as meeting:
        async with Pool(1, childconcurrency=1) as pool:
            results = pool.map(workload.meet, [meeting.port] * 10)
            await meeting.next()
        assert len(await outcomes(results)) == 10
        stats = pool.stats()
        assert (stats.cancelled, stats.waiting, stats.running, stats.workers) == (10, 0, 0, ())


async def test_stats_of_a_pool_with_a_scheduler_of_its_own() -> None:
    async with Meeting() as meeting:
        own = type("Own", (RoundRobin,), {})()
        async with Pool(2, queuecount=2, childconcurrency=1, scheduler=own) as pool:
            results = pool.map(workload.meet, [meeting.port] * 10)
            arrivals = await meeting.first(2)
            stats = pool.stats()
            assert (stats.running, stats.waiting) == (2, 8)
            assert [worker.queue for worker in stats.workers] == [0, 1]
            for arrival in arrivals:
                arrival.release()
            await meeting.release_all(8)
            await results
            assert pool.stats().done == 10


def test_a_pool_that_has_not_started_has_stats() -> None:
    assert Pool(2).stats() == PoolStats(0, 0, 0, 0, 0, 0, 0, 0, {}, ())


async def test_stats_are_refused_in_another_thread() -> None:
    async with Pool(1) as pool:
        with pytest.raises(RuntimeError, match=r"stats\(\) was called outside the pool's"):
            await asyncio.to_thread(pool.stats)


# -- Prometheus ------------------------------------------------------------------------------------


async def test_a_collector_exports_the_stats_from_any_thread() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from aiomultiprocess.prometheus import PoolCollector

    registry = CollectorRegistry()
    async with Pool(2) as pool:
        registry.register(PoolCollector(pool, name="images"))
        await outcomes(pool.starmap(mishaps.fail_at, [(3, i) for i in range(10)]))
        here = generate_latest(registry).decode()
        there = (await asyncio.to_thread(generate_latest, registry)).decode()
    for text in (here, there):
        assert 'aiomultiprocess_tasks_total{outcome="done",pool="images"} 9.0' in text
        assert 'aiomultiprocess_tasks_total{outcome="failed",pool="images"} 1.0' in text
        assert 'aiomultiprocess_workers{pool="images"} 2.0' in text
        assert 'aiomultiprocess_worker_running{index="1",pool="images"} 0.0' in text


def pools_of(registry: Any, metric: str) -> dict[str, float]:
    """A metric's value of each pool; each metric stands once in what the registry exports."""
    from prometheus_client import generate_latest
    from prometheus_client.openmetrics import exposition, parser

    lines = generate_latest(registry).decode().splitlines()
    for kind in ("# HELP ", "# TYPE "):
        names = [line.split()[2] for line in lines if line.startswith(kind)]
        assert len(names) == len(set(names))
    exported = exposition.generate_latest(registry).decode()
    families = parser.text_string_to_metric_families(exported)  # refuses a metric that comes twice
    samples = [sample for family in families for sample in family.samples]
    return {each.labels["pool"]: each.value for each in samples if each.name == metric}


async def test_a_collector_exports_several_pools_as_one_set_of_metrics() -> None:
    from prometheus_client import CollectorRegistry

    from aiomultiprocess.prometheus import PoolCollector

    registry = CollectorRegistry()
    async with Pool(1) as first, Pool(2) as second:
        collector = PoolCollector(first, name="a").add(second, name="b")
        registry.register(collector)
        assert pools_of(registry, "aiomultiprocess_workers") == {"a": 1, "b": 2}
        there = await asyncio.to_thread(pools_of, registry, "aiomultiprocess_worker_running")
        assert there == {"a": 0, "b": 0}
        only = registry.restricted_registry(["aiomultiprocess_workers"])
        assert pools_of(only, "aiomultiprocess_workers") == {"a": 1, "b": 2}
        collector.remove("a")
        assert pools_of(registry, "aiomultiprocess_workers") == {"b": 2}
        registry.unregister(collector)
        assert pools_of(registry, "aiomultiprocess_workers") == {}


def test_a_collector_may_be_registered_before_there_are_pools() -> None:
    from prometheus_client import CollectorRegistry

    from aiomultiprocess.prometheus import PoolCollector

    registry = CollectorRegistry()
    collector = PoolCollector()
    registry.register(collector)
    assert list(registry.collect()) == []
    pool: Any = Pool(1)
    collector.add(pool, name="late")
    assert pools_of(registry, "aiomultiprocess_workers") == {"late": 0}


def test_a_registry_takes_one_collector() -> None:
    from prometheus_client import CollectorRegistry

    from aiomultiprocess.prometheus import PoolCollector

    registry = CollectorRegistry()
    registry.register(PoolCollector(name="a"))
    with pytest.raises(ValueError, match="Duplicated timeseries in CollectorRegistry"):
        registry.register(PoolCollector(name="b"))


def test_pools_of_a_collector_have_names_of_their_own() -> None:
    from aiomultiprocess.prometheus import PoolCollector

    first: Any = Pool(1)
    second: Any = Pool(1)
    collector = PoolCollector(first, name="a")
    with pytest.raises(ValueError, match=r"name='a' belongs to a pool .* or call remove\('a'\)"):
        collector.add(second, name="a")
    collector.remove("a")
    collector.remove("a")  # without effect
    collector.add(second, name="a")
    del second
    gc.collect()
    collector.add(first, name="a")  # free again, since the pool is gone


def test_a_collector_does_not_keep_its_pool() -> None:
    from aiomultiprocess.prometheus import PoolCollector

    pool: Any = Pool(1)
    collector = PoolCollector(pool)
    assert list(collector.collect())
    del pool
    gc.collect()
    assert list(collector.collect()) == []


async def test_a_terminated_pool_counts_each_cancelled_call_once() -> None:
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=1)
        first = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,), priority=1))
        await meeting.next()
        calls = [asyncio.ensure_future(pool.apply(workload.two, priority=1)) for _ in range(10)]
        await asyncio.sleep(0)
        for call in calls[:9]:
            call.cancel()
        await asyncio.wait(calls[:9])
        pool.terminate()
        await pool.join()
        await asyncio.gather(first, calls[9], return_exceptions=True)
        assert pool.stats().cancelled == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "name must be a string, not None"),
        ({"pool": "pool"}, "pool must be a Pool, not 'pool'"),
        ({"timeout": "5"}, "timeout must be a positive number of seconds, got '5'"),
    ],
)
def test_a_collector_refuses_bad_arguments_by_name(arguments: Any, message: str) -> None:
    from aiomultiprocess.prometheus import PoolCollector

    with pytest.raises(TypeError, match=message):
        PoolCollector(**{"pool": Pool(1), **arguments})
