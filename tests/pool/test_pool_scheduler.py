"""A user's own scheduler decides the queue of each task, and is notified of its end."""

from __future__ import annotations

import asyncio
import errno
import itertools
import operator
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import (
    Pool,
    PoolTerminatedError,
    ProxyException,
    Scheduler,
    WorkerLostError,
)
from aiomultiprocess._processes import spawn
from support import Meeting

pytestmark = pytest.mark.usefixtures("backend")


class ByParity(Scheduler):
    """Even numbers to one queue, odd ones to the other; remembers each call."""

    def __init__(self) -> None:
        self.queues: list[str] = []
        self.processes: list[str] = []
        self.scheduled: dict[int, tuple[Any, Any, Any]] = {}
        self.completed: list[int] = []

    def register_queue(self, tx: Any) -> Any:
        self.queues.append(("even", "odd")[len(self.queues)])
        return self.queues[-1]

    def register_process(self, qid: Any) -> None:
        self.processes.append(qid)

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        assert task_id not in self.scheduled
        self.scheduled[task_id] = (func, tuple(args), dict(kwargs))
        return ("even", "odd")[args[0] % 2]

    def complete_task(self, task_id: Any) -> None:
        self.completed.append(task_id)


async def test_a_users_scheduler_decides_the_queue_of_each_task() -> None:
    scheduler = ByParity()
    async with Pool(3, queuecount=2, scheduler=scheduler) as pool:
        assert scheduler.queues == ["even", "odd"]
        assert sorted(scheduler.processes) == ["even", "even", "odd"]
        ran = await pool.map(workload.where, range(40))
        pids = {
            queue: {process.pid for process, qid in pool.processes.items() if qid == queue}
            for queue in ("even", "odd")
        }
        assert set(ran[0::2]) <= pids["even"]
        assert set(ran[1::2]) == pids["odd"]


async def test_a_users_scheduler_is_notified_of_each_task_and_of_its_end() -> None:
    scheduler = ByParity()
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        await pool.map(workload.double, [3, 4])
        await pool.starmap(workload.describe, [(5, 6)])
        await pool.apply(workload.describe, (7,), {"key": 8})
        with pytest.raises(ProxyException):
            await pool.apply(mishaps.fail_at, (1, 1))
        assert list(scheduler.scheduled.values()) == [
            (workload.double, (3,), {}),
            (workload.double, (4,), {}),
            (workload.describe, (5, 6), {}),
            (workload.describe, (7,), {"key": 8}),
            (mishaps.fail_at, (1, 1), {}),
        ]
        assert sorted(scheduler.completed) == sorted(scheduler.scheduled)


async def test_a_users_scheduler_sees_generators_too() -> None:
    scheduler = ByParity()
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        assert await pool.map(workload.double, (i for i in range(30))) == list(range(0, 60, 2))
        assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
        assert len(scheduler.scheduled) == 30


async def test_a_task_of_starmap_may_be_an_iterator() -> None:
    """The scheduler sees its arguments, and so uses it up: the worker gets what that has seen."""
    scheduler = ByParity()
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        items = [iter((first, 10 * first)) for first in range(4)]
        assert await pool.starmap(operator.add, items) == [0, 11, 22, 33]
        assert [args for _, args, _ in scheduler.scheduled.values()] == [
            (0, 0),
            (1, 10),
            (2, 20),
            (3, 30),
        ]


@pytest.mark.spawned
def test_a_pool_whose_first_start_failed_says_so_at_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its scheduler knows queues that no worker serves, so it cannot be asked again."""
    run = spawn._run
    starts = itertools.count(1)

    def refused(*args: Any) -> int:
        if next(starts) == 3:
            raise OSError(errno.EMFILE, "no descriptor left")
        return run(*args)

    async def use(pool: Pool) -> None:
        with pytest.raises(OSError, match="no descriptor left"):
            await pool.apply(workload.two)
        for _ in range(3):
            with pytest.raises(RuntimeError, match=r"could not be started .*no descriptor left"):
                await pool.apply(workload.two)
        pool.close()
        await pool.join()

    scheduler = ByParity()
    pool = Pool(3, queuecount=2, scheduler=scheduler)  # its workers start when it is used
    monkeypatch.setattr(spawn, "_run", refused)
    asyncio.run(use(pool))
    assert scheduler.queues == ["even", "odd"]


class Wayward(ByParity):
    """Names a queue that does not exist."""

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        return "nowhere"


async def test_a_queue_that_does_not_exist_is_an_error_of_the_caller() -> None:
    async with Pool(2, queuecount=2, scheduler=Wayward()) as pool:
        with pytest.raises((KeyError, ValueError), match="nowhere"):
            await pool.apply(workload.double, (1,))
        with pytest.raises((KeyError, ValueError), match="nowhere"):
            await pool.map(workload.double, [1])


async def test_queues_without_a_scheduler_are_served_in_turn() -> None:
    async with Meeting() as meeting, Pool(2, queuecount=2, childconcurrency=1) as pool:
        items = [(meeting.port, i) for i in range(4)]
        results = pool.starmap(workload.meet_and_count, items)
        first, second = await meeting.release_together(2)
        assert first.pid != second.pid
        await meeting.release_all(2)
        ran = [pid for pid, _ in await results]
        assert ran[0] == ran[2] != ran[1] == ran[3]


@pytest.mark.row("H165")
@pytest.mark.parametrize("kind", [list, iter])
@pytest.mark.parametrize("raises", [False, True])
async def test_a_scheduler_that_ends_the_pool_is_asked_no_more(kind: Any, raises: bool) -> None:
    class Ending(ByParity):
        def schedule_task(self, task_id: Any, *call: Any) -> Any:
            if len(self.scheduled) == 3:
                pool.terminate()
                if raises:
                    raise ValueError("it has ended")
            return super().schedule_task(task_id, *call)

    scheduler = Ending()
    pool = Pool(2, queuecount=2, scheduler=scheduler)
    async with pool:
        results = pool.map(workload.double, kind(range(100)))
        with pytest.raises(PoolTerminatedError):
            await results
    assert len(scheduler.scheduled) == 4 - raises
    assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
    done, stats = results.progress.done, pool.stats()
    least = 100 if kind is list else 4  # of an iterator, those that were taken by then
    assert least <= done <= 100
    assert stats.done + stats.failed + stats.cancelled == done


@pytest.mark.row("H168")
@pytest.mark.parametrize("name", [None, 0, "", ()])
async def test_the_id_of_a_queue_may_be_anything(name: Any) -> None:
    class Plain(ByParity):
        def register_queue(self, tx: Any) -> Any:
            return name

        def schedule_task(self, *call: Any) -> Any:
            return name

    async with Pool(1, scheduler=Plain()) as pool:
        with pytest.raises(WorkerLostError):
            await pool.apply(mishaps.die, ("SIGKILL",))
        assert await pool.map(workload.double, range(10)) == [2 * n for n in range(10)]
        pool.terminate()
        await asyncio.wait_for(pool.join(), 20)


class RaisesOnce(ByParity):
    """Raises at the first end of a task; counts the others."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error

    def complete_task(self, task_id: Any) -> None:
        super().complete_task(task_id)
        error, self.error = self.error, None
        if error is not None:
            raise error


@pytest.mark.row("H235")
@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, KeyError])
async def test_what_a_scheduler_raises_at_an_end_stops_no_other(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = RaisesOnce(kind("not now"))
    async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
        assert await pool.map(workload.double, range(500)) == [2 * n for n in range(500)]
        assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
        assert "complete_task of the scheduler failed" in caplog.text
        scheduler.error = kind("again")
        given_up = pool.map(workload.wait_for_ever, range(500))
        await asyncio.sleep(0)
        assert given_up.cancel()
        scheduler.error = kind("at a death")
        lost = await pool.map(mishaps.exit_with, range(1, 5), return_exceptions=True)
        assert all(
            isinstance(error, RuntimeError) for error in lost
        )  # WorkerLostError, or inline's
    assert sorted(scheduler.completed) == sorted(scheduler.scheduled)


@pytest.mark.row("H235")
def test_an_interrupt_that_a_scheduler_raises_at_an_end_passes_the_loop_and_loses_no_end() -> None:
    scheduler = RaisesOnce(KeyboardInterrupt())

    async def use() -> list[int]:
        async with Pool(2, queuecount=2, scheduler=scheduler) as pool:
            return await pool.map(workload.double, range(500))

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(use())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        assert loop.run_until_complete(task) == [2 * n for n in range(500)]  # a program may go on
    assert sorted(scheduler.completed) == sorted(scheduler.scheduled)


async def test_a_queue_that_cannot_be_one_is_named() -> None:
    class Lists(ByParity):
        def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
            return ["even"]

    async with Pool(2, queuecount=2, scheduler=Lists()) as pool:
        with pytest.raises(ValueError, match=r"the scheduler chose queue \['even'\]"):
            await pool.apply(workload.double, (1,))
