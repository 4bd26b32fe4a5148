"""`busy` and `lag` in `Pool.stats()`: what the loops of the workers do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, _accel
from aiomultiprocess._pure import turns
from aiomultiprocess._transport.shared_page import SharedPage
from support import Meeting

LOOPS = [None, *(["uvloop"] if find_spec("uvloop") else [])]
CLOCKS = {turns.TurnClock, _accel.TurnClock}


async def until(pool: Pool, holds: Callable[..., bool]) -> Any:
    """The record of the first worker, once something holds for it."""
    while not holds(worker := pool.stats().workers[0]):  # noqa: ASYNC110 - as a user would
        await asyncio.sleep(0.005)
    return worker


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


async def test_a_task_that_blocks_its_loop_shows_as_lag(backend: str) -> None:
    async with Meeting() as meeting, Pool(1, backend=backend) as pool:
        for func in (workload.meet_blocking, workload.meet_blocking_after_a_turn):
            call = pool.submit(func, meeting.port)
            arrival = await meeting.next()
            before = await until(pool, lambda worker: worker.lag > 0.05)
            after = await until(pool, lambda worker, lag=before.lag: worker.lag > lag)
            assert after.busy * after.uptime > before.busy * before.uptime
            arrival.release()
            await call
            idle = await until(pool, lambda worker: worker.lag == 0)
            assert 0 < idle.busy < 1


async def test_a_task_that_waits_is_neither_busy_nor_lag(backend: str) -> None:
    async with Meeting() as meeting, Pool(1, backend=backend) as pool:
        call = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.next()
        waits = await until(pool, lambda worker: worker.lag == 0)
        await asyncio.sleep(0.05)
        later = pool.stats().workers[0]
        assert later.running == 1
        assert later.busy * later.uptime == pytest.approx(waits.busy * waits.uptime)
        arrival.release()
        await call


async def test_the_code_of_tasks_is_what_a_worker_is_busy_with(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        await pool.apply(workload.two)
        before = pool.stats().workers[0]
        await pool.map(workload.busy, [0.01] * 30)
        after = await until(pool, lambda worker: worker.lag == 0)
        assert after.busy * after.uptime - before.busy * before.uptime >= 0.3


async def test_a_worker_that_starts_is_unknown(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        worker = pool.stats().workers[0]
        assert (worker.busy, worker.lag) == (None, None)


@pytest.mark.parametrize("loop", LOOPS)
async def test_only_loops_of_asyncio_can_be_watched(backend: str, loop: str | None) -> None:
    initializer = None if loop is None else new_uvloop
    async with Pool(1, loop_initializer=initializer, backend=backend) as pool:
        assert await pool.apply(workload.two) == 2
        worker = pool.stats().workers[0]
        assert (worker.busy is None) == (worker.lag is None) == (loop is not None)


async def test_a_collector_exports_both(backend: str) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from aiomultiprocess.prometheus import PoolCollector

    registry = CollectorRegistry()
    async with Pool(1, backend=backend) as pool:
        registry.register(PoolCollector(pool))
        await pool.apply(workload.two)
        await until(pool, lambda worker: worker.lag == 0)
        text = generate_latest(registry).decode()
    assert 'aiomultiprocess_worker_lag_seconds{index="0",pool="default"} 0.0' in text
    assert 'aiomultiprocess_worker_busy_ratio{index="0",pool="default"}' in text


def test_a_collector_exports_one_worker_for_each_index() -> None:
    """The younger, while one that has done its work is slow to exit."""
    from aiomultiprocess import prometheus
    from aiomultiprocess._parent.stats import PoolStats, WorkerStats

    more: Any = {"queue": 0, "waiting": 0, "done": 0, "busy": None, "lag": None, "rss": None}
    workers = [
        WorkerStats(index=index, pid=pid, uptime=uptime, running=pid, **more)
        for index, pid, uptime in ((0, 1, 9.0), (0, 2, 0.5), (1, 3, 9.0))
    ]
    stats = PoolStats(0, 0, 0, 0, 0, 0, 0, 0, {}, tuple(workers))
    metrics = {metric.name: metric for metric in prometheus._with_values({"pool": stats})}
    running = metrics["aiomultiprocess_worker_running"]
    assert [(each.labels["index"], each.value) for each in running.samples] == [("0", 2), ("1", 3)]


# -- the clock -------------------------------------------------------------------------------------


class Memory:
    """Notes what is stored."""

    def __init__(self) -> None:
        self.stores: list[tuple[str, int]] = []

    def begin_turn(self, origin: int) -> None:
        self.stores.append(("origin", origin))

    def end_turn(self, busy: int) -> None:
        self.stores.append(("busy", busy))


@pytest.mark.parametrize("clock_type", CLOCKS)
def test_a_turn_costs_two_stores_and_one_without_a_wait_one(clock_type: Any) -> None:
    """TURN-1."""
    memory, waits = Memory(), []
    clock = clock_type(memory, waits.append)
    for timeout in (None, 0.5, 0, -1, 2.0):
        clock.wait(timeout)
    assert waits == [None, 0.5, 0, -1, 2.0]
    names = ["origin", "busy", "origin", "busy", "origin", "busy", "busy", "busy", "origin"]
    assert [name for name, _ in memory.stores] == names
    origin = busy = 0
    in_turn = []
    for name, word in memory.stores:
        if name == "origin":
            origin = word
        else:
            busy = word
        in_turn.append(bool((origin ^ busy) & 1))
    assert in_turn == [True, False, True, False, True, True, True, False, True]
    clock.stop(idle=True)
    assert (origin ^ memory.stores[-1][1]) & 1 == 0
    clock.wait(0)
    clock.stop(idle=True)
    assert len(memory.stores) == len(names) + 1


@pytest.mark.parametrize("clock_type", CLOCKS)
def test_an_interrupted_wait_begins_a_turn_and_a_copy_stores_nothing(clock_type: Any) -> None:
    memory = Memory()

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    clock = clock_type(memory, interrupted)
    with pytest.raises(KeyboardInterrupt):
        clock.wait(1)
    assert [name for name, _ in memory.stores] == ["origin", "busy", "origin"]
    clock.stop(idle=False)
    assert len(memory.stores) == 3


def test_the_words_of_a_turn_reach_the_other_mapping() -> None:
    page = SharedPage.create()
    memories: list[Any] = [page]
    if _accel.ring is not None:
        memories.append(_accel.ring.Mapping.create(1 << 16))
    for memory in memories:
        assert memory.turn == (0, 0)
        memory.begin_turn(2**63 + 1)
        memory.end_turn(7)
        memory.mark_started(5)
        assert memory.turn == (2**63 + 1, 7)
        assert memory.started == 5
        memory.close()
