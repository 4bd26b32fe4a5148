"""`task_timeout=`: what a task gets whose time is over, and what happens to all others.

The rules are those of deadlines.py (DEADLINE-1 to DEADLINE-4) and of limits.py in _worker.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_pool_scheduler import ByParity

import mishaps
import overtime
import workload
from aiomultiprocess import (
    Pool,
    PoolTerminatedError,
    ProxyException,
    TaskTimeoutError,
    WorkerLostError,
)
from aiomultiprocess._parent.calls import MOST_KEPT
from support import PATIENCE, Meeting, block_until_dead, lines, outcomes

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="deaths of POSIX processes"),
]

SHORT = 0.05  # seconds: the limit of tasks that shall be over it
GRACE = 0.2
AMPLE = 100.0  # the limit of tasks that shall not be


# -- a task that ends when it is cancelled ---------------------------------------------------------


async def test_a_call_that_runs_too_long_is_cancelled_and_says_so() -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(workload.where)
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(overtime.nap, (1000,), task_timeout=SHORT)
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert (error.task, error.timeout, error.killed) == ("overtime.nap", SHORT, False)
        assert str(error) == "overtime.nap ran longer than its time limit of 0.05 s"
        assert isinstance(error.__cause__, ProxyException)
        assert "in nap" in str(error.__cause__)
        assert await pool.apply(workload.where) == pid


@pytest.mark.usefixtures("start_method")
async def test_only_the_item_that_runs_too_long_fails() -> None:
    async with Pool(2) as pool:
        items = [0, 1000, 0.01, 1000, 0]
        found = await outcomes(pool.map(overtime.nap, items, task_timeout=1.0))
        assert found[::2] == [0, 0.01, 0]
        for at in (1, 3):
            assert isinstance(found[at], TaskTimeoutError)
            assert found[at].task == f"item {at} of a call of overtime.nap"
            assert not found[at].killed
        with pytest.raises(TaskTimeoutError):
            await pool.starmap(overtime.nap, [(0,), (1000,)], task_timeout=SHORT)


async def test_the_time_of_a_task_runs_from_its_start_and_not_from_the_call() -> None:
    async with Pool(1, childconcurrency=1) as pool:
        assert await pool.map(overtime.nap, [0.1] * 12, task_timeout=1.0) == [0.1] * 12
        calls = [pool.apply(overtime.nap, (0.1,), task_timeout=1.0) for _ in range(12)]
        assert await asyncio.gather(*calls) == [0.1] * 12


async def test_a_value_or_another_exception_stands_after_the_cancellation() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(overtime.return_when_cancelled, (7,), task_timeout=SHORT) == 7
        with pytest.raises(LookupError, match="seven"):
            await pool.apply(overtime.raise_when_cancelled, ("seven",), task_timeout=SHORT)


async def test_a_cancellation_of_the_task_itself_is_no_timeout() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ProxyException) as caught:
            await pool.apply(overtime.cancel_itself, task_timeout=AMPLE)
        assert not isinstance(caught.value, TaskTimeoutError)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_task_has_the_grace_period_to_clean_up(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Pool(1, grace=AMPLE) as pool:
        arguments = (str(path), 0.3)
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(overtime.clean_up_for_a_while, arguments, task_timeout=SHORT)
        assert not caught.value.killed
        assert lines(path) == ["cleaned"]


async def test_tasks_without_a_limit_beside_those_with_one_run_on() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        without = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        with pytest.raises(TaskTimeoutError):
            await pool.apply(workload.wait_for_ever, task_timeout=SHORT)
        with pytest.raises(TaskTimeoutError):
            await pool.apply(workload.meet, (meeting.port,), task_timeout=SHORT)
        arrival.release("still here")
        assert await without == "still here"


async def test_the_exception_handler_gets_the_error_of_a_task_that_was_cancelled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "noted"
    async with Pool(1, exception_handler=_Noting(str(path))) as pool:
        with pytest.raises(TaskTimeoutError):
            await pool.map(overtime.nap, [1000], task_timeout=SHORT)
        (line,) = lines(path)
        assert line == (
            "TaskTimeoutError item 0 of a call of overtime.nap ran longer than its time limit of "
            "0.05 s, because of CancelledError"
        )


class _Noting:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, error: BaseException) -> None:
        cause = type(error.__cause__).__name__
        workload.note(self.path, f"{type(error).__name__} {error}, because of {cause}")


async def test_a_caller_that_gives_up_first_frees_the_task_as_before() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,), task_timeout=AMPLE))
        await meeting.next()
        call.cancel()
        assert await pool.apply(workload.two) == 2
        assert call.cancelled()


async def test_calls_with_limits_of_their_own_each_keep_their_own() -> None:
    async with Pool(1) as pool:
        limits: list[float | None] = [SHORT, AMPLE, None, SHORT]
        calls = [pool.apply(overtime.nap, (0.5,), task_timeout=limit) for limit in limits]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(value) for value in found] == [
            TaskTimeoutError,
            float,
            float,
            TaskTimeoutError,
        ]


async def test_more_tasks_than_ever_ran_at_once_are_each_judged() -> None:
    async with Pool(1, childconcurrency=300, grace=3 * PATIENCE) as pool:
        items = [1000 if i % 3 == 0 else 0.01 for i in range(900)]
        found = await outcomes(pool.map(overtime.nap, items, task_timeout=PATIENCE))
        assert Counter(type(value) for value in found) == {TaskTimeoutError: 300, float: 600}


async def test_a_users_scheduler_changes_nothing() -> None:
    async with Pool(2, queuecount=2, scheduler=ByParity(), grace=GRACE) as pool:
        found = await outcomes(pool.map(overtime.nap, [0, 1000, 0, 1000], task_timeout=0.6))
        assert [type(value) for value in found] == [int, TaskTimeoutError, int, TaskTimeoutError]
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(overtime.block, (1000,), task_timeout=SHORT)
        assert caught.value.killed


# -- a task that does not end ----------------------------------------------------------------------

NEVER_ENDING = [
    (overtime.block, (1000,)),
    (overtime.block_the_loop, (1000,)),
    (overtime.hold_the_gil, ()),
    (overtime.ignore_cancellation, ()),
]


@pytest.mark.parametrize(("func", "args"), NEVER_ENDING, ids=lambda value: str(value))
async def test_a_task_that_does_not_end_is_killed_and_its_worker_replaced(
    func: Any, args: tuple[Any, ...]
) -> None:
    async with Pool(1, grace=GRACE) as pool:
        pid = await pool.apply(workload.where)
        with pytest.raises(TaskTimeoutError, match="and its worker was killed") as caught:
            await pool.apply(func, args, task_timeout=SHORT)
        assert caught.value.killed
        assert caught.value.__cause__ is None
        assert await pool.apply(workload.where) != pid


async def test_a_map_goes_on_when_items_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Pool(2, childconcurrency=1, grace=GRACE) as pool:
        items = [(str(path), i, 3) for i in range(10)]
        found = await outcomes(pool.starmap(overtime.note_and_block, items, task_timeout=0.3))
        error = found.pop(3)
        assert isinstance(error, TaskTimeoutError)
        assert error.killed
        assert found == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert Counter(lines(path)) == Counter(map(str, range(10)))  # each started once


@pytest.mark.row("H90")
async def test_a_killed_task_is_never_retried_and_its_neighbours_are(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting, Pool(1, grace=GRACE) as pool:
        neighbour = asyncio.ensure_future(
            pool.apply(workload.meet, (meeting.port, "neighbour"), retries=1)
        )
        lost = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, "lost")))
        await meeting.first(2)
        with pytest.raises(TaskTimeoutError):
            await pool.apply(
                overtime.note_and_block, (str(path), 1, 1), retries=5, task_timeout=SHORT
            )
        assert lines(path) == ["1"]
        with pytest.raises(WorkerLostError) as caught:
            await lost
        assert "overtime.note_and_block still ran 0.2 s after it was cancelled" in "".join(
            caught.value.__notes__
        )
        (await meeting.next()).release("again")
        assert await neighbour == "again"


@pytest.mark.row("H90")
async def test_tasks_behind_one_that_blocks_have_not_started_and_run_elsewhere() -> None:
    async with Pool(1, childconcurrency=1, grace=GRACE) as pool:
        blocked = asyncio.ensure_future(pool.apply(overtime.block, (1000,), task_timeout=0.5))
        await asyncio.sleep(0)
        rest = pool.map(workload.double, range(100))
        assert await rest == [2 * i for i in range(100)]
        with pytest.raises(TaskTimeoutError):
            await blocked


async def test_a_task_that_was_cancelled_and_dies_with_its_worker_has_timed_out() -> None:
    """DEADLINE-3: both are over their limits when a third one blocks the worker."""
    async with Meeting() as meeting, Pool(1, grace=GRACE) as pool:
        items = [(meeting.port, token) for token in ("waits", "blocks", "returns")]
        found = await outcomes(pool.starmap(overtime.wait_or_block, items, task_timeout=SHORT))
        assert [type(value) for value in found] == [TaskTimeoutError] * 3


async def test_deaths_by_time_limits_do_not_delay_replacements() -> None:
    """SUPERVISOR-2: a worker that began a task has not died early."""
    async with Pool(1, grace=0.01) as pool:
        for _ in range(6):
            with pytest.raises(TaskTimeoutError):
                await pool.apply(overtime.block, (1000,), task_timeout=0.01)
        assert await pool.apply(workload.two) == 2


async def test_what_the_journal_holds_wins_over_the_kill() -> None:
    """DEADLINE-2: results of a burst are not sent before it ends, which it does not."""
    async with Pool(1, grace=GRACE) as pool:
        await pool.map(overtime.block, [0] * 100)  # so that many travel in one frame
        items = [0.0] * 50 + [1000.0]
        found = await outcomes(pool.map(overtime.block, items, task_timeout=0.6))
        assert found[:-1] == [0.0] * 50
        assert isinstance(found[-1], TaskTimeoutError)


async def test_a_task_with_a_limit_whose_worker_dies_otherwise_is_lost_or_retried(
    tmp_path: Path,
) -> None:
    async with Pool(1) as pool:
        with pytest.raises(WorkerLostError):
            await pool.apply(mishaps.die, ("SIGKILL",), task_timeout=AMPLE)
        with pytest.raises(WorkerLostError):
            await pool.apply(mishaps.die, ("SIGKILL",), task_timeout=AMPLE, retries=2)
        assert await pool.apply(workload.two, retries=1, task_timeout=AMPLE) == 2


async def test_a_retry_has_a_limit_of_its_own() -> None:
    async with Meeting() as meeting, Pool(1, grace=GRACE) as pool:
        call = asyncio.ensure_future(
            pool.apply(workload.meet_blocking, (meeting.port,), retries=1, task_timeout=1.0)
        )
        arrival = await meeting.next()
        os.kill(arrival.pid, signal.SIGKILL)
        (await meeting.next()).release("again")
        assert await call == "again"


# -- the parent ------------------------------------------------------------------------------------


@pytest.mark.row("H89")
async def test_a_parent_that_was_blocked_times_out_nothing_that_ended_meanwhile() -> None:
    """DEADLINE-2."""
    async with Pool(2, grace=0.01) as pool:
        await pool.map(workload.double, range(100))
        calls = [
            asyncio.ensure_future(pool.apply(overtime.nap, (0.05,), task_timeout=0.6))
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        overtime.block(1.0)
        assert await asyncio.gather(*calls) == [0.05] * 20


@pytest.mark.spawned
async def test_a_task_whose_worker_died_in_time_has_not_timed_out() -> None:
    """DEADLINE-2: the parent is blocked until the time would be over."""
    async with Pool(1, grace=0.01) as pool:
        pid = await pool.apply(workload.where)
        call = asyncio.ensure_future(pool.apply(mishaps.die, ("SIGKILL",), task_timeout=SHORT))
        await asyncio.sleep(0)
        block_until_dead(pid)
        overtime.block(2 * SHORT)
        with pytest.raises(WorkerLostError):
            await call


async def test_a_pool_that_is_terminated_ends_tasks_with_limits_as_all_others() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,), task_timeout=AMPLE))
        await meeting.next()
        pool.terminate()
        with pytest.raises(PoolTerminatedError):
            await call


async def test_limits_hold_while_the_pool_closes() -> None:
    async with Pool(1, grace=GRACE) as pool:
        gentle = asyncio.ensure_future(pool.apply(overtime.nap, (1000,), task_timeout=0.3))
        blocked = asyncio.ensure_future(pool.apply(overtime.block, (1000,), task_timeout=0.3))
        await asyncio.sleep(0)
        pool.close()
        await pool.join()
        found = await asyncio.gather(gentle, blocked, return_exceptions=True)
        assert [type(value) for value in found] == [TaskTimeoutError] * 2


async def test_a_worker_that_has_had_all_its_tasks_is_limited_too() -> None:
    async with Pool(1, maxtasksperchild=1, grace=GRACE) as pool:
        items = [0.0, 1000.0, 0.0]
        found = await outcomes(pool.map(overtime.block, items, task_timeout=2))
        assert [type(value) for value in found] == [float, TaskTimeoutError, float]


# -- the grace period ------------------------------------------------------------------------------


async def test_terminate_waits_for_tasks_as_long_as_the_grace_period(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    async with Meeting() as meeting, Pool(1, grace=AMPLE) as pool:
        call = asyncio.ensure_future(
            pool.starmap(workload.clean_up, [(str(path), meeting.port)]).results()
        )
        (await meeting.next()).release()
        pool.terminate()
        await pool.join()
        assert lines(path) == ["cleaned "]
        with pytest.raises(PoolTerminatedError):
            await call


async def test_terminate_kills_what_ignores_its_cancellation_after_the_grace_period() -> None:
    pool = Pool(1, grace=0.05)
    async with pool:
        await pool.apply(workload.two)
        call = asyncio.ensure_future(pool.apply(overtime.ignore_cancellation))
        await asyncio.sleep(0)
        (worker,) = pool.processes
    with pytest.raises(PoolTerminatedError):
        await call
    assert worker.exitcode in (-signal.SIGTERM, -signal.SIGKILL)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
async def test_a_limit_that_is_no_positive_number_is_refused(value: float) -> None:
    message = f"must be a positive number of seconds or None, got {value}"
    async with Pool(1) as pool:
        with pytest.raises(ValueError, match=f"task_timeout {message}"):
            await pool.apply(workload.two, task_timeout=value)
        with pytest.raises(ValueError, match=f"task_timeout {message}"):
            pool.map(workload.double, [1], task_timeout=value)
    with pytest.raises(ValueError, match="grace must be a positive number"):
        Pool(1, grace=value)


@pytest.mark.parametrize("value", [None, "3"])
def test_a_grace_period_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="grace must be a positive number of seconds, got"):
        Pool(1, grace=value)


def test_the_error_survives_pickling() -> None:
    for error in (TaskTimeoutError("f", 1.5, killed=True), TaskTimeoutError()):
        copied = pickle.loads(pickle.dumps(error))
        assert type(copied) is TaskTimeoutError
        assert (copied.task, copied.timeout, copied.killed) == (
            error.task,
            error.timeout,
            error.killed,
        )
        assert str(copied) == str(error)
        assert copied.errno is None


async def test_an_error_of_a_pool_within_a_task_is_an_exception_of_that_task() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TaskTimeoutError) as caught:
            await pool.apply(_raise_timeout, task_timeout=AMPLE)
        assert isinstance(caught.value, ProxyException)


def _raise_timeout() -> None:
    raise TaskTimeoutError("another", 1.0)


async def test_calls_with_ever_new_limits_keep_a_bounded_number_of_queues(backend: str) -> None:
    async with Pool(1, backend=backend) as pool:
        for at in range(2 * MOST_KEPT):
            assert await pool.apply(workload.double, (at,), task_timeout=60 + at) == 2 * at
        assert pool._engine is not None
        (queue,) = pool._engine.queues.values()
        assert len(queue.calls) == MOST_KEPT
