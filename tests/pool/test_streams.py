"""`Pool.stream`: the values of a generator in a worker, as they come."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import streams
import workload
from aiomultiprocess import (
    Pool,
    PoolTerminatedError,
    ProxyException,
    RoundRobin,
    TaskTimeoutError,
    WorkerLostError,
)
from support import lines


async def read(stream: Any) -> list[Any]:
    return [value async for value in stream]


async def read_into(found: list[Any], stream: Any) -> None:
    async for value in stream:
        found.append(value)  # noqa: PERF401 - those before an error count


@pytest.mark.parametrize("func", [streams.count_up, streams.count_plainly])
@pytest.mark.parametrize("stop", [0, 1, 2, 63, 64, 65, 1000])
async def test_values_come_in_order(backend: str, func: Callable[..., Any], stop: int) -> None:
    async with Pool(2, backend=backend) as pool:
        assert await read(pool.stream(func, (stop,))) == list(range(stop))
        assert await pool.apply(workload.two) == 2


async def test_arguments_by_name_reach_the_generator(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        assert await read(pool.stream(streams.count_up, (5,), {"start": 3})) == [3, 4]
        assert await read(pool.stream(streams.count_up, None, {"stop": 2})) == [0, 1]


async def test_a_stream_runs_under_each_start_method(start_method: str) -> None:
    async with Pool(1) as pool:
        assert await read(pool.stream(streams.count_up, (100,))) == list(range(100))


@pytest.mark.row("H162")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_stream_keeps_its_pool(backend: str) -> None:
    found = []
    async with (
        asyncio.timeout(20),
        aclosing(Pool(1, backend=backend).stream(streams.slow, (3,))) as stream,
    ):
        async for value in stream:
            gc.collect()
            found.append(value)
    assert found == [0, 1, 2]
    del stream
    gc.collect()
    if leaving := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(leaving, timeout=20)  # over hosts, whose pools are left in a task


async def test_many_streams_run_side_by_side_with_calls(backend: str) -> None:
    async with Pool(2, backend=backend) as pool:
        results = await asyncio.gather(
            *[read(pool.stream(streams.slow, (50,))) for _ in range(20)],
            *[pool.apply(workload.double, (n,)) for n in range(20)],
        )
    assert results == [list(range(50))] * 20 + [2 * n for n in range(20)]


@pytest.mark.parametrize("ahead", [1, 2, 3, 64])
@pytest.mark.parametrize("func", [streams.count_produced, streams.produce_plainly])
async def test_no_more_than_ahead_values_are_produced_before_the_reader(
    backend: str, func: Callable[..., Any], ahead: int, tmp_path: Path
) -> None:
    path = tmp_path / "produced"
    async with Pool(1, backend=backend) as pool:
        async with aclosing(pool.stream(func, (str(path),), ahead=ahead)) as values:
            for n in range(200):
                assert await anext(values) == n
                produced = path.read_bytes().count(b".")
                assert produced <= n + 1 + ahead + 1  # the one that waits was made
            assert b"x" not in path.read_bytes()
        assert path.read_bytes().endswith(b"x")  # its `finally` has run


async def test_a_stream_that_is_dropped_closes_its_generator(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "produced"

    async def break_early(pool: Pool) -> None:
        async for value in pool.stream(streams.count_produced, (str(path),)):
            if value == 10:
                break

    async with Pool(1, backend=backend) as pool:
        await break_early(pool)
        gc.collect()
        while not path.read_bytes().endswith(b"x"):  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.01)
        pool.close()
        await pool.join()


@pytest.mark.row("H204")
@pytest.mark.parametrize("task_timeout", [None, 60.0])
@pytest.mark.parametrize("ahead", [1, 4, 1000])
async def test_a_generator_that_suppresses_cancellations_is_closed_at_its_next_value(
    backend: str, tmp_path: Path, ahead: int, task_timeout: float | None
) -> None:
    path = tmp_path / "closed"
    async with Pool(1, childconcurrency=1, backend=backend) as pool:
        values = pool.stream(streams.poll, (str(path),), ahead=ahead, task_timeout=task_timeout)
        async with asyncio.timeout(10), aclosing(values):
            assert await anext(values) == 0
            assert await anext(values) == 1
        assert path.exists()
        assert await pool.apply(workload.two) == 2
        assert pool.stats().cancelled == 1


@pytest.mark.row("H204")
async def test_a_generator_may_end_by_itself_when_it_is_cancelled(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        async with asyncio.timeout(10), aclosing(pool.stream(streams.end_when_cancelled)) as values:
            assert await anext(values) == 0
        assert await pool.apply(workload.two) == 2


async def test_a_stream_that_was_never_read_starts_nothing(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "produced"
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.count_produced, (str(path),))
        assert await pool.apply(workload.two) == 2
        await stream.aclose()
        assert await read(stream) == []
        assert not path.exists()


async def test_an_error_comes_after_the_values_before_it_and_once(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.count_and_fail, (100,))
        found: list[int] = []
        with pytest.raises(LookupError, match="after 100") as caught:
            await read_into(found, stream)
        assert found == list(range(100))
        assert isinstance(caught.value, ProxyException)
        trace = str(caught.value)
        assert "in count_and_fail" in trace
        assert "_worker" not in trace
        assert "amp_ext" not in trace
        assert await read(stream) == []


@pytest.mark.row("H94")
async def test_a_dead_worker_is_an_error_after_the_values_that_it_sent(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        found: list[int] = []
        with pytest.raises(WorkerLostError, match=r"SIGKILL during .*count_and_die"):
            await read_into(found, pool.stream(streams.count_and_die, (100,), ahead=1000))
        assert found == list(range(100))
        assert await read(pool.stream(streams.count_up, (3,))) == [0, 1, 2]


@pytest.mark.row("H104")
@pytest.mark.parametrize("count", [1, 5, 3000])
@pytest.mark.parametrize(
    "func", [streams.count_and_die_at_once, streams.count_plainly_and_die_at_once]
)
async def test_no_value_is_lost_that_was_yielded_before_its_worker_died(
    backend: str, func: Callable[..., Any], count: int
) -> None:
    """STREAM-6"""
    async with Pool(1, backend=backend) as pool:
        found: list[int] = []
        with pytest.raises(WorkerLostError):
            await read_into(found, pool.stream(func, (count,), ahead=count + 1))
        assert found == list(range(count))


@pytest.mark.row("H104")
async def test_streams_side_by_side_lose_no_value_when_their_worker_is_killed(
    backend: str, tmp_path: Path
) -> None:
    async with Pool(1, backend=backend) as pool:
        found: list[list[int]] = [[] for _ in range(4)]
        paths = [str(tmp_path / str(n)) for n in range(4)]
        reading = [
            asyncio.ensure_future(
                read_into(values, pool.stream(streams.count_in_turns, (10**6, path), ahead=500))
            )
            for values, path in zip(found, paths, strict=True)
        ]
        while min(map(len, found)) < 2000:  # noqa: ASYNC110 - four readers have no event
            await asyncio.sleep(0.001)
        [worker] = pool.processes
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        ends = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(end, WorkerLostError) for end in ends)
        for values, path in zip(found, paths, strict=True):
            assert values == list(range(len(values)))
            assert len(values) >= len(lines(Path(path)))


async def test_a_copy_that_a_generator_forks_sends_nothing(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        assert await read(pool.stream(streams.fork_within)) == [0, 1, 2, 3]
        assert await read(pool.stream(streams.count_up, (3,))) == [0, 1, 2]


@pytest.mark.row("H94")
async def test_a_value_is_what_it_was_when_it_was_yielded(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        values = await read(pool.stream(streams.same_list, (5,)))
    assert values == [list(range(n + 1)) for n in range(5)]


async def test_a_value_that_cannot_be_pickled_ends_the_stream_at_its_place(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.unpicklable_third)
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(pickle.PicklingError, match=r"unpicklable_third"):
            await anext(stream)
        assert await read(stream) == []
        assert await pool.apply(workload.two) == 2


async def test_another_serializer_takes_values_that_pickle_refuses(backend: str) -> None:
    async with Pool(1, backend=backend, serializer="cloudpickle") as pool:
        one, two, three, four = await read(pool.stream(streams.unpicklable_third))
        assert (one, two, three(), four) == (1, 2, 3, 4)


async def test_a_value_that_cannot_be_unpickled_ends_the_stream_at_its_place(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.unloadable_third)
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(ProxyException, match="could not be unpickled"):
            await anext(stream)
        assert await read(stream) == []
        assert await pool.apply(workload.two) == 2


async def test_what_the_generator_raises_while_it_is_closed_is_raised(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.fail_while_closing)
        assert await anext(stream) == 1
        with pytest.raises(OSError, match="while closing"):
            await stream.aclose()
        await stream.aclose()  # once


async def test_a_pool_that_is_terminated_ends_its_streams(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.fail_while_closing)
        assert await anext(stream) == 1
        step = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await step


async def test_a_pool_that_closes_waits_for_a_stream_that_is_read(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.slow, (100,), ahead=4)
        assert await anext(stream) == 0
        pool.close()
        assert await read(stream) == list(range(1, 100))
        await pool.join()
        with pytest.raises(RuntimeError, match="closed"):
            await anext(pool.stream(streams.count_up, (1,)))


@pytest.mark.row("H94")
async def test_a_step_that_is_cancelled_loses_no_value(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.slow, (200,), ahead=8)
        found: list[int] = []
        while len(found) < 200:
            try:
                async with asyncio.timeout(0.0005):
                    found.append(await anext(stream))
            except TimeoutError:
                continue
        assert found == list(range(200))


async def test_large_values_travel(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        sizes = [len(value) async for value in pool.stream(streams.large, (5, 3 << 20), ahead=2)]
    assert sizes == [3 << 20] * 5


class Recorder(RoundRobin):
    """A user's scheduler that records what it hears of tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduled: list[int] = []
        self.completed: list[int] = []

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        self.scheduled.append(task_id)
        return super().schedule_task(task_id, func, args, kwargs)

    def complete_task(self, task_id: Any) -> None:
        self.completed.append(task_id)
        super().complete_task(task_id)


async def test_a_users_scheduler_chooses_the_queue_and_learns_of_the_end(backend: str) -> None:
    scheduler = Recorder()
    async with Pool(2, queuecount=2, scheduler=scheduler, backend=backend) as pool:
        assert await read(pool.stream(streams.count_up, (10,))) == list(range(10))
        with pytest.raises(LookupError):
            await read(pool.stream(streams.count_and_fail, (10,)))
        assert len(scheduler.scheduled) == 2
        assert scheduler.completed == scheduler.scheduled


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "func must be callable"),
        ((workload.double, (1,)), TypeError, "use `apply`"),
        ((streams.count_up, 3), TypeError, "args must be a sequence"),
        ((streams.count_up, (), [1]), TypeError, "kwds must be a mapping"),
    ],
)
async def test_what_no_stream_can_run_is_refused_at_the_call(
    arguments: Any, error: type[Exception], message: str
) -> None:
    async with Pool(1) as pool:
        with pytest.raises(error, match=message):
            pool.stream(*arguments)
        for ahead, refusal in ((0, ValueError), (-1, ValueError), ("x", TypeError)):
            with pytest.raises(refusal, match="ahead must be"):
                pool.stream(streams.count_up, (1,), ahead=ahead)  # type: ignore[call-overload]


async def test_a_function_that_returns_no_iterator_fails_with_its_name_and_the_way_out(
    backend: str,
) -> None:
    async with Pool(1, backend=backend) as pool:
        with pytest.raises(TypeError, match="pass a generator function"):
            await anext(pool.stream(streams.no_generator))
        with pytest.raises(pickle.PicklingError, match="lambda"):
            await anext(pool.stream(lambda: iter(())))
        with pytest.raises(pickle.PicklingError, match="an argument of a call of"):
            await anext(pool.stream(streams.count_up, (lambda: 1,)))


async def test_closing_a_stream_that_waits_in_its_queue_ends_it_at_once(
    backend: str, tmp_path: Path
) -> None:
    path = tmp_path / "produced"
    async with Pool(1, childconcurrency=1, backend=backend) as pool:
        async with aclosing(pool.stream(streams.slow, (10_000,))) as busy:
            assert await anext(busy) == 0
            waiting = pool.stream(streams.count_produced, (str(path),))
            step = asyncio.ensure_future(anext(waiting))
            await asyncio.sleep(0)
            await waiting.aclose()
            with pytest.raises(StopAsyncIteration):
                await step
        assert await pool.apply(workload.two) == 2
        assert not path.exists()


@pytest.mark.parametrize("func", [streams.compute, streams.compute_plainly])
async def test_a_generator_that_computes_lets_other_items_of_its_worker_run(
    backend: str, func: Callable[..., Any]
) -> None:
    """It never suspends; its values arrive while it computes, and a call beside it ends."""
    pool = Pool(1, backend=backend)
    async with pool, aclosing(pool.stream(func, ahead=1_000_000)) as values:
        assert await anext(values) == 0
        assert await pool.apply(workload.two) == 2


async def test_two_tasks_may_read_one_stream(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        stream = pool.stream(streams.slow, (300,), ahead=8)
        first, second = await asyncio.gather(read(stream), read(stream))
    assert sorted(first + second) == list(range(300))


# -- time limits (LIMITS-3) ------------------------------------------------------------------------


async def test_values_may_take_longer_in_sum_than_the_limit_of_each(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        naps = [0.1] * 15
        assert await read(pool.stream(streams.nap, (naps,), task_timeout=1.0)) == naps


async def test_a_value_that_takes_too_long_ends_its_stream(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "closed"
    async with Pool(1, backend=backend) as pool:
        pid = await pool.apply(workload.where)
        found: list[float] = []
        stream = pool.stream(streams.nap, ([0, 0.01, 1000], str(path)), task_timeout=0.3)
        with pytest.raises(TaskTimeoutError, match=r"streams\.nap ran longer") as caught:
            await read_into(found, stream)
        assert found == [0, 0.01]
        assert not caught.value.killed
        assert path.exists()
        assert await read(stream) == []
        assert await pool.apply(workload.where) == pid


@pytest.mark.row("H96")
@pytest.mark.parametrize("func", [streams.count_up, streams.count_plainly])
@pytest.mark.parametrize("ahead", [1, 4])
async def test_a_slow_reader_uses_nothing_of_the_limit(
    backend: str, func: Callable[..., Any], ahead: int
) -> None:
    async with Pool(1, backend=backend) as pool:
        found = []
        async for value in pool.stream(func, (3 * ahead,), ahead=ahead, task_timeout=0.5):
            found.append(value)
            if value % ahead == 0:
                await asyncio.sleep(0.8)
    assert found == list(range(3 * ahead))


@pytest.mark.parametrize("ahead", [1, 64])
@pytest.mark.parametrize("func", [streams.hold_the_gil_after, streams.block_after])
async def test_a_generator_that_blocks_its_worker_is_killed(
    backend: str, func: Callable[..., Any], ahead: int
) -> None:
    async with Pool(1, grace=0.2, backend=backend) as pool:
        found: list[int] = []
        with pytest.raises(TaskTimeoutError) as caught:
            await read_into(found, pool.stream(func, (3,), ahead=ahead, task_timeout=0.3))
        assert caught.value.killed
        assert found == [0, 1, 2]
        assert await pool.apply(workload.two) == 2


async def test_the_end_of_a_generator_has_the_same_limit(backend: str) -> None:
    """It waits for its reader, who closes it."""
    async with Pool(1, grace=0.2, backend=backend) as pool:
        stream = pool.stream(streams.block_while_closing, ahead=2, task_timeout=0.3)
        assert await anext(stream) == 0
        with pytest.raises(TaskTimeoutError):
            await stream.aclose()
        assert await pool.apply(workload.two) == 2


async def test_a_generator_that_goes_on_after_its_cancellation_is_killed(backend: str) -> None:
    async with Pool(1, grace=0.2, backend=backend) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await read(pool.stream(streams.go_on_when_cancelled, task_timeout=0.2))
        assert caught.value.killed


@pytest.mark.row("H97")
async def test_no_wait_for_a_reader_saves_a_generator_that_was_cancelled(backend: str) -> None:
    async with Pool(1, grace=0.2, backend=backend) as pool:
        stream = pool.stream(streams.go_on_when_cancelled, ahead=1, task_timeout=0.2)
        assert await anext(stream) == 0
        while not pool.stats().timed_out:  # noqa: ASYNC110 - until its worker is killed
            await asyncio.sleep(0.01)
        found: list[int] = []
        with pytest.raises(TaskTimeoutError) as caught:
            await read_into(found, stream)
        assert found == [1]
        assert caught.value.killed


async def test_a_stream_that_waits_in_its_queue_uses_nothing_of_its_limit(backend: str) -> None:
    async with Pool(1, childconcurrency=1, backend=backend) as pool:
        naps = [0.4] * 3
        each = [read(pool.stream(streams.nap, (naps,), task_timeout=1.0)) for _ in range(2)]
        assert await asyncio.gather(*each) == [naps, naps]


async def test_many_limited_streams_run_beside_calls_with_limits(backend: str) -> None:
    async with Pool(2, backend=backend) as pool:
        results = await asyncio.gather(
            *[read(pool.stream(streams.slow, (50,), task_timeout=30)) for _ in range(20)],
            *[pool.apply(workload.double, (n,), task_timeout=30) for n in range(20)],
        )
    assert results == [list(range(50))] * 20 + [2 * n for n in range(20)]


async def test_a_limit_of_a_stream_that_is_no_time_is_refused() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ValueError, match="task_timeout must be a positive number"):
            pool.stream(streams.count_up, (1,), task_timeout=0)


def test_a_stream_that_is_dropped_while_its_loop_stands_still_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "produced"

    async def begin() -> tuple[Pool, Any]:
        pool = Pool(1)
        stream = pool.stream(streams.count_produced, (str(path),))
        assert await anext(stream) == 0
        return pool, stream

    async def end(pool: Pool) -> None:
        pool.close()
        await pool.join(60)

    with asyncio.Runner() as runner:
        pool, stream = runner.run(begin())
        del stream
        runner.run(end(pool))
    assert path.read_bytes().endswith(b"x")


async def test_a_function_of_a_stream_is_refused_by_apply_all_the_same(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        assert await read(pool.stream(streams.count_up, (2,))) == [0, 1]
        with pytest.raises(TypeError, match="use `stream`"):
            await pool.apply(streams.count_up, (2,))
