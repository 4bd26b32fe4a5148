"""A pool's lifespan: entered before the first task of a worker, left after its last."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lifespans
import workload
from aiomultiprocess import Pool
from aiomultiprocess.types import PoolTerminatedError
from support import Meeting, lines, pool_script, run_script

pytestmark = pytest.mark.usefixtures("backend")


async def finish(pool: Pool) -> None:
    pool.close()
    await pool.join()


async def test_a_lifespan_is_entered_after_the_initializer_and_left_after_the_last_task(
    start_method: str, tmp_path: Path
) -> None:
    path = tmp_path / "noted"
    lifespan = partial(lifespans.noting, str(path))
    pool = Pool(1, initializer=lifespans.initialize, lifespan=lifespan)
    pid, state, resource, context, others = await pool.apply(lifespans.what_an_item_sees)
    assert lines(path) == [f"entered {pid} 1"]
    assert state == f"state of {pid}"
    assert (resource, context) == ("a resource", "set by the initializer")
    assert others == ["aiomultiprocess-lifespan"]
    await finish(pool)
    assert lines(path)[1:] == [f"left {pid} True 1"]


async def test_a_pool_that_is_terminated_leaves_its_lifespans(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Pool(2, lifespan=partial(lifespans.noting, str(path))) as pool:
        await pool.map(lifespans.what_an_item_sees, range(8))
    noted = [line.split() for line in lines(path)]
    entered = {pid for what, pid, *_ in noted if what == "entered"}
    assert entered == {pid for what, pid, *_ in noted if what == "left"} != set()


async def test_a_worker_that_is_recycled_leaves_its_lifespan(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    lifespan = partial(lifespans.noting, str(path))
    pool = Pool(1, maxtasksperchild=1, lifespan=lifespan)
    pids = await pool.map(workload.where, range(3))
    await finish(pool)
    noted = [line.split()[:2] for line in lines(path)]
    expected = [[what, str(pid)] for pid in pids for what in ("entered", "left")]
    assert noted[:6] == expected


async def test_a_worker_that_a_smaller_pool_dismisses_leaves_its_lifespan() -> None:
    async with Meeting() as meeting:
        pool = Pool(2, lifespan=partial(lifespans.meeting_while_leaving, meeting.port))
        pids = {worker.index: worker.pid for worker in pool.processes}
        await pool.resize(1)
        leaving = await meeting.next()
        assert (leaving.pid, leaving.token) == (pids[1], "leaving 1")
        leaving.release()
        pool.close()
        (await meeting.next()).release()
        await pool.join()


async def test_a_terminated_task_ends_before_the_lifespan_is_left(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting:
        async with Pool(1, lifespan=partial(lifespans.noting, str(path))) as pool:
            call = asyncio.ensure_future(pool.apply(workload.clean_up, (str(path), meeting.port)))
            (await meeting.next()).release()
        with pytest.raises(PoolTerminatedError):
            await call
    what = [line.split()[0] for line in lines(path)]
    assert what == ["entered", "cleaned", "left"]


async def test_a_lifespan_is_left_though_a_terminated_task_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting:
        async with Pool(1, lifespan=partial(lifespans.noting, str(path))) as pool:
            args = (meeting.port, str(path))
            call = asyncio.ensure_future(pool.apply(lifespans.ignore_cancellation, args))
            (await meeting.next()).release()
        with pytest.raises(PoolTerminatedError):
            await call
    assert [line.split()[0] for line in lines(path)] == ["entered", "cancelled", "left"]


@pytest.mark.parametrize(
    ("lifespan", "kind", "message"),
    [
        (lifespans.failing_to_enter, LookupError, "no database"),
        (lifespans.cancelled_entering, RuntimeError, "was cancelled while it was entered"),
        (lifespans.no_context_manager, TypeError, "must return an async context manager, not int"),
    ],
)
async def test_a_lifespan_that_cannot_be_entered_breaks_the_pool_with_its_error(
    lifespan: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    async with Pool(2, lifespan=lifespan) as pool:
        for _ in range(2):
            with pytest.raises(kind, match=message):
                await pool.apply(workload.two)


async def test_a_lifespan_that_exits_while_it_is_entered_breaks_the_pool() -> None:
    async with Pool(1, lifespan=lifespans.exiting_entering) as pool:
        with pytest.raises(Exception, match="SystemExit"):
            await pool.apply(workload.two)


async def test_a_lifespan_that_cannot_be_sent_is_named() -> None:
    @asynccontextmanager
    async def local() -> Any:
        yield

    with pytest.raises(Exception, match="lifespan cannot be sent to a worker"):
        Pool(1, lifespan=local)


def test_a_lifespan_that_fails_while_it_is_left_is_logged(tmp_path: Path) -> None:
    body = """
    async with Pool(1, lifespan=lifespans.failing_to_leave) as pool:
        print(await pool.apply(workload.two))
    """
    script = run_script(tmp_path, pool_script(body, setup="import lifespans"))
    assert script.out == "2\n"
    assert "the lifespan of this worker failed while it was left" in script.err
    assert "LookupError: cannot disconnect" in script.err


@pytest.mark.row("H209")
@pytest.mark.parametrize(
    ("lifespan", "end", "reason"),
    [
        (lifespans.plain, lifespans.cancel_all_other_tasks, ""),
        (lifespans.with_task_group, lifespans.end_the_lifespan, "LookupError: the connection is"),
    ],
)
async def test_a_lifespan_that_ends_by_itself_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
    lifespan: Callable[[], Any],
    end: Callable[[], Any],
    reason: str,
) -> None:
    async with Pool(1, lifespan=lifespan, logs=True) as pool:
        first = await pool.apply(end)
        async with asyncio.timeout(20):
            while await pool.apply(workload.where) == first:
                pass
        assert pool.stats().restarts == {"lifespan": 1}
    assert caplog.text.count("the lifespan of this worker") == 1
    assert "has ended by itself; the worker is replaced" in caplog.text
    assert reason in caplog.text
    assert ("Traceback" in caplog.text) == bool(reason)


async def test_a_worker_that_is_terminated_while_it_enters_its_lifespan_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting:
        lifespan = partial(lifespans.meeting_while_entering, meeting.port, str(path))
        async with Pool(1, lifespan=lifespan):
            await meeting.next()
    assert lines(path) == ["cancelled"]


async def test_a_worker_that_gets_sigterm_while_it_enters_its_lifespan_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting:
        lifespan = partial(lifespans.meeting_while_entering, meeting.port, str(path))
        async with Pool(1, lifespan=lifespan) as pool:
            call = asyncio.ensure_future(pool.apply(workload.where))
            first = await meeting.next()
            os.kill(first.pid, signal.SIGTERM)
            second = await meeting.next()
            second.release()
            assert await call == second.pid != first.pid
    assert lines(path) == ["cancelled", "left"]


async def test_a_pool_that_is_closed_while_lifespans_are_entered_leaves_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting:
        pool = Pool(1, lifespan=partial(lifespans.meeting_while_entering, meeting.port, str(path)))
        arrival = await meeting.next()
        pool.close()
        arrival.release()
        await pool.join()
    assert lines(path) == ["left"]


async def test_a_lifespan_that_cannot_be_left_is_ended_after_a_while_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool(1, lifespan=lifespans.hanging_while_left)
    assert await pool.apply(workload.two) == 2
    with caplog.at_level(logging.WARNING):
        await finish(pool)
    assert "did not exit within 3 s: its lifespan did not end" in caplog.text


async def test_a_worker_is_not_replaced_before_its_lifespan_was_left() -> None:
    async with Meeting() as meeting:
        lifespan = partial(lifespans.meeting_while_leaving, meeting.port)
        pool = Pool(1, maxtasksperchild=1, lifespan=lifespan)
        first = await pool.apply(workload.where)
        next_call = asyncio.ensure_future(pool.apply(workload.where))
        leaving = await meeting.next()
        assert (leaving.pid, leaving.token) == (first, "leaving 0")
        # longer than a worker whose lifespan is over may linger before it is replaced
        done, _ = await asyncio.wait([next_call], timeout=0.8)
        assert not done
        assert len(pool.processes) == 1
        leaving.release()
        assert await next_call != first
        releasing = asyncio.ensure_future(meeting.release_all(10))
        await finish(pool)
        releasing.cancel()


async def test_the_exit_of_a_context_manager_may_return_true(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    pool = Pool(1, lifespan=partial(lifespans.Swallowing, str(path)))
    assert await pool.apply(workload.two) == 2
    await finish(pool)
    assert lines(path) == ["left with None"]


async def test_a_lifespan_may_hold_a_cancel_scope_of_anyio(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    pool = Pool(1, lifespan=partial(lifespans.with_anyio, str(path)))
    assert await pool.map(workload.use_anyio, range(3)) == [(i, True) for i in range(3)]
    await finish(pool)
    assert lines(path) == ["the group has ended"]


async def async_function() -> None:
    """Makes no context manager."""


async def async_generator() -> Any:
    yield


@contextmanager
def sync_manager() -> Any:
    yield


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [
        (5, "lifespan must be a callable that returns an async context manager, or None, not 5"),
        (lifespans.plain(), "pass the function itself, not what it returns"),
        (async_function, "async_function does not: .* contextlib.asynccontextmanager"),
        (async_generator, "async_generator does not: .* contextlib.asynccontextmanager"),
        (lifespans.with_an_argument, r"with_an_argument needs some \(.*'app'\)"),
    ],
)
async def test_what_is_no_lifespan_is_refused_by_name(lifespan: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Pool(1, lifespan=lifespan)


async def test_a_synchronous_context_manager_is_no_lifespan() -> None:
    async with Pool(1, lifespan=sync_manager) as pool:
        with pytest.raises(TypeError, match="lifespan must return an async context manager, not"):
            await pool.apply(workload.two)
