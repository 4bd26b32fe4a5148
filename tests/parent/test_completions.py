"""The log of completions, and what a cancelled job counts (JOB-7). Without processes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from test_job import job_of

import workload
from aiomultiprocess import PoolTerminatedError, Progress, _accel
from aiomultiprocess._parent.completions import CompletionLog
from aiomultiprocess._parent.functions import FunctionTable
from aiomultiprocess._parent.job import Job
from aiomultiprocess._parent.sources import source_of
from aiomultiprocess._wire.frames import Mode


def job_with_events(items: Any) -> tuple[Job, list[str]]:
    events: list[str] = []
    function = FunctionTable(_accel.dumps).of(workload.double)
    job = Job(
        workload.double,
        function,
        Mode.MAP,
        lambda _: events.append("more"),
        lambda _: events.append("done"),
        loop=asyncio.get_running_loop(),
        on_cancelled=lambda _: events.append("cancelled"),
    )
    job.open(source_of(items, lambda: None))
    return job, events


async def order(job: Job) -> list[int]:
    reader, found = job.add_completion_reader(), list[int]()
    while True:
        try:
            await reader.next()
        except StopAsyncIteration:
            return found
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - one of an item
            pass
        assert reader.last is not None
        found.append(reader.last)


async def test_the_log_has_each_place_once_whatever_ends_it() -> None:
    job = job_of(list(range(6)))
    handles, items = job.take(4)
    job.deliver([handles[2]], [items[2]], 0)
    reader = job.add_completion_reader()
    job.fail(handles[0], LookupError("no"))
    job.deliver([handles[3]], [items[3]], 0)
    job.fail_all(PoolTerminatedError("the pool was terminated"))
    assert await order(job) == [2, 0, 3, 1, 4, 5]
    assert reader.next_ready() == items[2]


async def test_a_job_without_as_completed_keeps_no_log() -> None:
    job = job_of(list(range(6)))
    job.take(6)
    job.cancel()
    assert job._log is None


async def test_a_cancelled_job_is_done_at_once_and_settled_with_its_last_task() -> None:
    job, events = job_with_events(list(range(10)))
    handles, items = job.take(6)
    job.deliver(handles[:1], items[:1], 0)
    job.put_back(list(handles[5:]), items[5:])
    assert job.cancel()
    assert not job.cancel()
    assert (job.done, events) == (True, ["cancelled"])
    assert job.take(10) == ((), [])
    job.deliver(handles[1:2], items[1:2], 0)
    job.fail(2, LookupError("late"))
    assert events == ["cancelled"]
    job.put_back(list(handles[3:5]), items[3:5])
    assert events == ["cancelled", "done"]
    assert job.left == 0
    assert job.progress() == Progress(1, 0, 10)
    with pytest.raises(asyncio.CancelledError):
        await job.await_all()


async def test_a_job_that_has_handed_out_nothing_is_settled_at_once() -> None:
    for items in (list(range(10)), range(10), iter(range(10))):
        job, events = job_with_events(items)
        job.cancel()
        assert events == ["cancelled", "done"]
        assert job.left in (0, None)


async def test_a_cancelled_job_stays_cancelled_when_the_pool_ends() -> None:
    job, events = job_with_events(list(range(10)))
    job.take(6)
    job.cancel()
    job.fail_all(PoolTerminatedError("the pool was terminated"))
    assert events == ["cancelled"]
    with pytest.raises(asyncio.CancelledError):
        await job.await_all()


async def test_what_is_added_wakes_as_many_steps_as_it_serves() -> None:
    job = job_of(list(range(6)))
    handles, items = job.take(6)
    one, other = job.add_completion_reader(), job.add_completion_reader()
    steps = [asyncio.ensure_future(one.next()) for _ in range(3)]
    beside = asyncio.ensure_future(other.next())
    await asyncio.sleep(0)
    assert one.is_waiting
    waiting = [step.get_coro().cr_await for step in steps]  # type: ignore[union-attr]
    assert all(waiting)
    job.deliver([handles[4]], [items[4]], 0)
    await asyncio.sleep(0)
    assert [step.done() for step in steps] == [True, False, False]
    assert await beside == items[4]
    job.deliver([handles[1], handles[2]], [items[1], items[2]], 0)
    steps[1].cancel()  # it was woken: the step behind it gets what it would have taken
    await asyncio.wait(steps)
    assert [step.cancelled() for step in steps] == [False, True, False]
    assert [steps[0].result(), steps[2].result(), await one.next()] == [4, 1, 2]
    assert not one.is_waiting
    job.cancel()


@pytest.mark.row("H188")
async def test_a_step_that_was_cancelled_keeps_no_reader_alive() -> None:
    job = job_of([0, 1])
    job.take(2)
    reader = job.add_completion_reader()
    gone = weakref.ref(reader)
    steps = [asyncio.ensure_future(reader.next()) for _ in range(3)]
    await asyncio.sleep(0)
    for step in steps:
        step.cancel()
    await asyncio.wait(steps)
    del reader, step, steps
    gc.collect()  # the tracebacks of the cancellations
    assert gone() is None


async def test_few_large_results_of_a_log_are_dropped_and_many_small_ones_together() -> None:
    log = CompletionLog(asyncio.get_running_loop())
    log.add(range(10))
    assert log.drop(5, None) == [0, 1, 2, 3, 4]
    log.add(range(10, 1000))
    assert log.drop(5, None) == []
    assert log.drop(0, None) == []
    assert len(log.drop(500, None)) == 500
    assert log[505] == 505
