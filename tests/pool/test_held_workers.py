"""Workers that are to leave, and are held by streams or by calls in threads that were given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import blocking
import cancellations
import forking
import lifespans
import memory_hogs
import streams
import workload
from aiomultiprocess import Pool, RoundRobin, WorkerLostError
from aiomultiprocess._parent.credit import Credit
from aiomultiprocess._worker import leaving
from support import Meeting, lines, until_exists, wait_for_exit

pytestmark = pytest.mark.usefixtures("backend")

MB = 1 << 20


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


def indices(pool: Pool) -> list[int]:
    return sorted(worker.index for worker in pool.processes)


async def workers(pool: Pool, count: int) -> None:
    """Until the pool has so many workers."""
    while len(pool.processes) != count:  # noqa: ASYNC110 - a pool has no event for that
        await asyncio.sleep(0.01)


async def limit_above(extra: int) -> int:
    """What a fresh worker has, and `extra` bytes more."""
    async with Pool(1) as pool:
        return int(await pool.apply(memory_hogs.own_memory_of_worker)) + extra


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.row("H99")
async def test_calls_within_the_loop_over_a_stream_run_though_its_worker_is_to_be_replaced(
    start_method: str,
) -> None:
    async with Pool(1, maxtasksperchild=2) as pool:
        found = [
            await pool.apply(workload.double, (n,))
            async for n in pool.stream(streams.count_up, (10,), ahead=2)
        ]
        assert found == [2 * n for n in range(10)]
        assert pool.stats().restarts["maxtasksperchild"] >= 4


@pytest.mark.row("H99")
async def test_a_stream_holds_up_no_map_of_a_worker_with_one_task() -> None:
    async with Pool(1, maxtasksperchild=1) as pool:
        stream = pool.stream(streams.count_up, (3,), ahead=1)
        assert await anext(stream) == 0
        assert await pool.map(workload.double, range(5)) == [0, 2, 4, 6, 8]
        assert [n async for n in stream] == [1, 2]


@pytest.mark.row("H99")
async def test_a_worker_over_its_memory_limit_is_replaced_while_its_stream_is_open() -> None:
    async with Pool(1, maxmemoryperchild=await limit_above(40 * MB)) as pool:
        stream = pool.stream(streams.count_up, (50,), ahead=1)
        assert await anext(stream) == 0
        _, first = await pool.apply(memory_hogs.grow_and_tell, (80 * MB, 0))
        assert await pool.apply(workload.where) != first
        assert [n async for n in stream] == list(range(1, 50))


@pytest.mark.row("H99")
async def test_a_pool_grows_again_within_the_loop_over_a_stream_of_a_dismissed_worker() -> None:
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        first = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        stream = pool.stream(streams.count_up, (9,), ahead=1)
        assert await anext(stream) == 0
        arrival.release()
        await first
        await pool.resize(1)
        await pool.resize(2)
        assert indices(pool) == [0, 1, 2]
        assert [n async for n in stream] == list(range(1, 9))
        await workers(pool, 2)
        assert indices(pool) == [0, 2]


async def test_the_replacement_has_an_index_of_its_own_until_the_streams_have_ended(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "note")
    pool = Pool(1, maxtasksperchild=2, lifespan=_noting_index(path))
    stream = pool.stream(lifespans.stream_with_index, (5,), ahead=1)
    assert await anext(stream) == (0, 0)
    await pool.apply(workload.two)  # the last task of the first worker
    assert (await pool.apply(lifespans.index_and_started))[0] == 1
    assert indices(pool) == [0, 1]
    assert "left 0" not in lines(tmp_path / "note")
    assert [index async for _, index in stream] == [0] * 4
    await workers(pool, 1)
    await pool.apply(workload.two)  # the last of the second
    assert (await pool.apply(lifespans.index_and_started))[0] == 0
    await finish(pool)
    assert lines(tmp_path / "note")[:3] == ["entered 0", "entered 1", "left 0"]


class _NotingIndex:
    """A lifespan that notes the index of its worker."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> Any:
        return self.live()

    @contextlib.asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        index = lifespans.current_worker().index
        workload.note(self.path, f"entered {index}")
        yield
        workload.note(self.path, f"left {index}")


_noting_index = _NotingIndex


async def test_streams_keep_their_slots_so_workers_do_not_multiply() -> None:
    async with Pool(1, childconcurrency=2, maxtasksperchild=1) as pool:
        open_streams = [pool.stream(streams.count_up, (3,), ahead=1) for _ in range(5)]
        firsts = [asyncio.ensure_future(anext(stream)) for stream in open_streams]
        await asyncio.wait(firsts[:2])
        await asyncio.wait(firsts[2:], timeout=0.2)
        assert [first.done() for first in firsts] == [True, True, False, False, False]
        assert len(pool.processes) == 2
        for stream, first in zip(open_streams, firsts, strict=True):
            assert await first == 0
            assert [n async for n in stream] == [1, 2]
            assert len(pool.processes) <= 3


async def test_a_held_worker_that_dies_is_lost_to_its_streams_and_replaced_once() -> None:
    async with Pool(1, maxtasksperchild=1) as pool:
        stream = pool.stream(streams.count_up, (9,), ahead=1)
        assert await anext(stream) == 0
        [held] = [worker.pid for worker in pool.processes if worker.index == 0]
        await workers(pool, 2)
        assert held is not None
        os.kill(held, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            [n async for n in stream]
        await workers(pool, 1)
        assert await pool.apply(workload.two) == 2
        assert pool.stats().restarts["maxtasksperchild"] >= 1
        assert "died" not in pool.stats().restarts


async def test_a_pool_that_closes_waits_for_the_streams_of_a_held_worker() -> None:
    pool = Pool(1, maxtasksperchild=1)
    stream = pool.stream(streams.count_up, (9,), ahead=1)
    assert await anext(stream) == 0
    await workers(pool, 2)
    pool.close()
    with pytest.raises(TimeoutError):
        await pool.join(0.1)
    assert [n async for n in stream] == list(range(1, 9))
    await pool.join()
    assert pool.processes == {}


@pytest.mark.parametrize("how", ["terminate", "shutdown"])
async def test_a_pool_that_ends_ends_its_held_workers(how: str) -> None:
    pool = Pool(1, maxtasksperchild=1)
    stream = pool.stream(streams.count_up, (9,), ahead=1)
    assert await anext(stream) == 0
    await workers(pool, 2)
    if how == "terminate":
        pool.terminate()
        await pool.join()
    else:
        assert await pool.shutdown(0) == 1
    with pytest.raises(RuntimeError, match="terminated"):
        [n async for n in stream]


async def test_held_workers_serve_the_queue_that_a_scheduler_gave_them() -> None:
    own = type("Own", (RoundRobin,), {})()
    async with Pool(2, queuecount=2, maxtasksperchild=1, scheduler=own) as pool:
        first, second = (pool.stream(streams.count_up, (5,), ahead=1) for _ in range(2))
        assert [await anext(first), await anext(second)] == [0, 0]
        await workers(pool, 4)
        assert sorted(pool.processes.values()) == [0, 0, 1, 1]
        assert indices(pool) == [0, 1, 2, 3]
        assert await pool.map(workload.double, range(4)) == [0, 2, 4, 6]
        for stream in (first, second):
            assert [n async for n in stream] == [1, 2, 3, 4]
        await workers(pool, 2)


async def test_other_tasks_of_a_held_worker_end_before_it_is_replaced() -> None:
    async with Meeting() as meeting, Pool(1, maxtasksperchild=2) as pool:
        stream = pool.stream(streams.count_up, (5,), ahead=1)
        assert await anext(stream) == 0
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        after = asyncio.ensure_future(pool.apply(workload.where))
        await asyncio.wait([after], timeout=0.1)
        assert len(pool.processes) == 1
        arrival.release()
        await call
        assert await after != arrival.pid
        assert [n async for n in stream] == [1, 2, 3, 4]


# -- calls in threads ------------------------------------------------------------------------------


async def give_up(call: Any) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.row("H100")
async def test_a_call_in_a_thread_that_was_given_up_does_not_hold_up_the_replacement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "never")
    pool = Pool(1, childconcurrency=1, maxtasksperchild=1, threads=1, grace=1.0)
    call = pool.submit(blocking.wait_for_file, path)
    await until_exists(path + ".begun")
    await give_up(call)
    assert (await pool.apply(blocking.thread_name)).startswith("aiomultiprocess-thread-")
    while "was killed" not in caplog.text:  # noqa: ASYNC110 - a log has no event
        await asyncio.sleep(0.01)
    assert "'aiomultiprocess-thread-1' (in blocking.wait_for_file)" in caplog.text
    assert "did not return from calls that were given up" in caplog.text
    await finish(pool)
    stats = pool.stats()
    assert (stats.done, stats.cancelled, stats.lost) == (1, 1, 0)


@pytest.mark.row("H223")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_the_warning_of_a_worker_that_does_not_exit_names_its_child_processes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(1, maxtasksperchild=1, grace=1.0)
    pid = await pool.apply(forking.leave_a_process)
    assert pid is not None
    while "was killed" not in caplog.text:  # noqa: ASYNC110 - a log has no event
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    await wait_for_exit([pid])
    await finish(pool)
    assert re.search(rf"its child processes 'ForkProcess-\S+' \(pid {pid}\) did not", caplog.text)


async def test_a_thread_that_returns_in_time_lets_its_worker_exit_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "go")
    pool = Pool(1, maxtasksperchild=1, threads=1, lifespan=_noting_index(str(tmp_path / "note")))
    call = pool.submit(blocking.wait_for_file, path)
    await until_exists(path + ".begun")
    await give_up(call)
    await workers(pool, 2)
    assert indices(pool) == [0, 1]
    Path(path).touch()  # noqa: ASYNC240
    await workers(pool, 1)
    assert lines(tmp_path / "note")[-1] == "left 0"
    assert caplog.text == ""
    await finish(pool)


async def test_a_call_in_a_thread_that_is_awaited_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, maxtasksperchild=1, threads=1, grace=0.1) as pool:
        call = pool.submit(blocking.wait_for_file, path)
        await until_exists(path + ".begun")
        await asyncio.wait([call], timeout=0.8)
        assert not call.done()
        assert len(pool.processes) == 1
        Path(path).touch()  # noqa: ASYNC240
        assert await call > 0


@pytest.mark.row("H101")
@pytest.mark.parametrize("whole_map", [False, True])
async def test_a_call_that_was_given_up_before_a_thread_was_free_holds_up_nothing(
    tmp_path: Path, whole_map: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "go")
    async with Pool(1, threads=1) as pool:
        call = pool.submit(blocking.wait_for_file, path)
        await until_exists(path + ".begun")
        with monkeypatch.context() as patch:
            # as if the first call were of a quick function: more is sent than there are threads
            patch.setattr(Credit, "room", lambda *args, **options: 2)
            if whole_map:
                results = pool.map(blocking.touch_file, [path + ".run"] * 2)
                await _held_by_worker(pool, 3)
            else:
                waiting = pool.submit(blocking.touch_file, path + ".run")
                await _held_by_worker(pool, 2)
        if whole_map:
            results.cancel()
        else:
            await give_up(waiting)
        assert await pool.apply(blocking.loop_thread_name) == threading.main_thread().name
        assert pool.stats().workers[0].waiting == 0
        Path(path).touch()  # noqa: ASYNC240
        await call
        assert not Path(path + ".run").exists()  # noqa: ASYNC240


async def _held_by_worker(pool: Pool, count: int) -> None:
    """Until the worker was sent so many tasks."""
    while sum((each.running + each.waiting) for each in pool.stats().workers) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


# -- coroutines that suppress their cancellation ---------------------------------------------------


async def until_killed(caplog: pytest.LogCaptureFixture) -> str:
    """What the log says of the worker that was killed."""
    while "was killed" not in caplog.text:  # noqa: ASYNC110 - a log has no event
        await asyncio.sleep(0.01)
    return caplog.text


@pytest.mark.row("H205")
@pytest.mark.parametrize(
    ("func", "threads"),
    [
        (cancellations.go_on_for_ever, None),
        (cancellations.go_on_for_ever, 1),
        (cancellations.await_for_ever, 1),
    ],
)
async def test_a_coroutine_that_goes_on_when_it_is_cancelled_does_not_hold_up_the_replacement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, func: Any, threads: int | None
) -> None:
    path = str(tmp_path / "begun")
    pool = Pool(1, childconcurrency=1, maxtasksperchild=1, threads=threads, grace=1.0)
    call = pool.submit(func, path)
    await until_exists(path)
    await give_up(call)
    async with asyncio.timeout(20):
        assert await pool.apply(workload.two) == 2
        said = await until_killed(caplog)
    assert "(in cancellations.go_on_for_ever) did not return from calls" in said
    await finish(pool)
    stats = pool.stats()
    assert (stats.done, stats.cancelled, stats.lost) == (1, 1, 0)
    assert "died" not in stats.restarts


@pytest.mark.row("H205")
async def test_a_closed_stream_that_goes_on_does_not_hold_up_the_replacement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "begun")
    pool = Pool(1, childconcurrency=1, maxtasksperchild=1, grace=1.0)
    stream = pool.stream(cancellations.yield_once_and_go_on, (path,))
    assert await anext(stream) == 0
    await until_exists(path)
    async with asyncio.timeout(20):
        closing = asyncio.ensure_future(stream.aclose())
        assert await pool.apply(workload.two) == 2
        assert "(in cancellations.yield_once_and_go_on) did" in await until_killed(caplog)
        with pytest.raises(WorkerLostError):  # its `finally` blocks have not run
            await closing
    await finish(pool)


@pytest.mark.row("H205")
async def test_many_coroutines_that_go_on_are_not_all_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(1, childconcurrency=20, maxtasksperchild=20, grace=1.0)
    paths = [str(tmp_path / str(n)) for n in range(20)]
    results = pool.map(cancellations.go_on_for_ever, paths)
    for path in paths:
        await until_exists(path)
    results.cancel()
    async with asyncio.timeout(20):
        assert await pool.apply(workload.two) == 2
        said = await until_killed(caplog)
    assert said.count("go_on_for_ever") == leaving.MOST_NAMED
    assert ", and more did not return" in said
    await finish(pool)


async def test_a_coroutine_that_cleans_up_in_time_lets_its_worker_exit_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, end = str(tmp_path / "begun"), str(tmp_path / "end")
    pool = Pool(1, maxtasksperchild=1, grace=20.0)
    call = pool.submit(cancellations.clean_up_until, path, end)
    await until_exists(path)
    await give_up(call)
    await workers(pool, 2)
    assert indices(pool) == [0, 1]
    Path(end).touch()  # noqa: ASYNC240
    await workers(pool, 1)
    assert "cleaned up" in Path(end).read_text()  # noqa: ASYNC240
    assert caplog.text == ""
    await finish(pool)


async def test_a_call_beside_a_coroutine_that_goes_on_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "begun")
    async with Meeting() as meeting, Pool(1, maxtasksperchild=2, grace=0.1) as pool:
        call = pool.submit(cancellations.go_on_for_ever, path)
        await until_exists(path)
        beside = pool.submit(workload.meet, meeting.port)
        arrival = await meeting.next()
        await give_up(call)
        await asyncio.wait([beside], timeout=0.8)
        assert len(pool.processes) == 1
        arrival.release("here")
        assert await beside == "here"
