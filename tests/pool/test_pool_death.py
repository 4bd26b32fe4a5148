"""Workers that die, and pools that end: nothing hangs, nothing is left, no task runs twice.

A number such as B13 is that of the row in the catalogue of failures.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blocking
import mishaps
import workload
from aiomultiprocess import Pool, ProxyException, WorkerLostError
from aiomultiprocess._parent import engine, supervisor
from aiomultiprocess._transport.link import BATCH_FRAMES
from aiomultiprocess._wire.frames import CorruptHeaderError
from support import Meeting, block_until_dead, lines, outcomes, wait_for_exit

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="deaths of POSIX processes"),
]

EXITS = {"SIGKILL": -9, "SIGSEGV": -11, "SIGTERM": -15, "exit 7": 7}


def assert_lost(error: Any, way: str, pid: int | None = None) -> None:
    """`error` says that a worker died, and how."""
    assert isinstance(error, WorkerLostError)
    assert error.exitcode == EXITS[way]
    assert error.signal == (getattr(signal, way) if way.startswith("SIG") else None)
    assert error.pid == pid if pid is not None else error.pid
    assert error.task
    assert str(error.pid) in str(error)
    assert way.removeprefix("exit ") in str(error)


# -- B13 to B16: workers that die ------------------------------------------------------------------


@pytest.mark.row("B13")
@pytest.mark.parametrize("way", mishaps.WAYS_TO_DIE)
async def test_one_task_of_a_hundred_kills_its_worker_and_99_succeed(way: str) -> None:
    """The killer awaits first: results that were not sent yet would die with the worker."""
    async with Pool(2, childconcurrency=1) as pool:
        items = [(50, way, i) for i in range(100)]
        found = await outcomes(pool.starmap(mishaps.die_at, items))
        assert [*found[:50], *found[51:]] == [*range(50), *range(51, 100)]
        assert_lost(found[50], way)
        assert len(pool.processes) == 2


@pytest.mark.row("B13")
@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM"])
async def test_a_worker_killed_from_outside_is_noticed(way: str) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        os.kill(arrival.pid, getattr(signal, way))
        with pytest.raises(WorkerLostError) as caught:
            await task
        assert_lost(caught.value, way, arrival.pid)
        assert "meet" in caught.value.task
        assert await pool.apply(workload.two) == 2


@pytest.mark.spawned
@pytest.mark.row("B13")
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="elsewhere a thread waits for it")
async def test_a_death_is_reported_at_once_and_not_by_a_timer() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        arrival = await meeting.next()
        os.kill(arrival.pid, signal.SIGKILL)
        block_until_dead(arrival.pid)
        await in_a_few_turns(task)
        assert isinstance(task.exception(), WorkerLostError)


async def in_a_few_turns(task: asyncio.Future[Any]) -> None:
    """Turns of the loop are enough to see an event, however short they are."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert task.done()


@pytest.mark.row("B13", "B14")
async def test_a_death_under_any_start_method_fails_what_ran_and_moves_the_rest(
    start_method: str,
) -> None:
    """Under fork, the other worker has inherited the descriptors of the dead one."""
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        first, second = pool.processes
        meet = [asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,))) for _ in range(2)]
        waiting = asyncio.ensure_future(pool.map(workload.double, range(10)))
        arrivals = {arrival.pid: arrival for arrival in await meeting.first(2)}
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        await asyncio.wait(meet, return_when=asyncio.FIRST_COMPLETED)
        [lost] = [call for call in meet if call.done()]
        assert_lost(lost.exception(), "SIGKILL", first.pid)
        arrivals[second.pid or 0].release("unharmed")
        meet.remove(lost)
        assert await meet[0] == "unharmed"
        assert await waiting == [2 * i for i in range(10)]


@pytest.mark.row("B13")
async def test_an_idle_worker_that_is_killed_is_replaced() -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(workload.where)
        os.kill(pid, signal.SIGKILL)
        await until_noticed(pool, pid)
        assert await pool.apply(workload.where) != pid


async def kill_until_none_is_started(pool: Pool) -> set[int | None]:
    """Kill each worker as soon as it is ready, until the pool waits; the pids of all."""
    pids: set[int | None] = set()
    while pool._engine is None or not pool._engine.supervisor._pending:
        for process in pool.processes:
            if process.ready:
                pids.add(process.pid)
                process.kill()
        await asyncio.sleep(0.005)
    return pids


@pytest.mark.row("B19")
async def test_workers_that_die_once_they_are_ready_are_not_replaced_without_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is broken, so the pool goes on; but it does not start one after the other."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 3600.0)
    async with Pool(1) as pool:
        pids = await kill_until_none_is_started(pool)
        assert len(pids) == 1 + supervisor.START_ATTEMPTS
        assert not pool.processes
        waiting = asyncio.ensure_future(pool.apply(workload.two))
        await asyncio.sleep(0)
        assert pool._engine is not None
        pool._engine.supervisor._start_pending()  # as the timer does
        assert await waiting == 2


@pytest.mark.row("E42")
async def test_a_forgotten_pool_starts_no_worker_later() -> None:
    async def drop_pool() -> engine.Engine:
        pool = Pool(1)
        await kill_until_none_is_started(pool)
        assert pool._engine is not None
        return pool._engine

    async def forget_and_collect() -> engine.Engine:
        forgotten = await drop_pool()
        gc.collect()
        return forgotten

    with pytest.warns(ResourceWarning, match="never closed"):
        forgotten = await forget_and_collect()
    assert forgotten.supervisor._next_try is None
    assert forgotten.state is engine.State.TERMINATED


async def until_noticed(pool: Pool, pid: int) -> None:
    """Until the pool itself knows that a worker is gone."""
    while pid in {process.pid for process in pool.processes}:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)


@pytest.mark.row("B14")
async def test_a_death_fails_exactly_the_started_tasks_and_moves_the_others() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=16) as pool:
        items = [(meeting.port, i) for i in range(20)]
        reading = asyncio.ensure_future(outcomes(pool.starmap(mishaps.meet_or_die, items)))
        started = await meeting.first(16)
        started[7].release("die")
        moved = await meeting.first(4)
        assert {arrival.pid for arrival in moved}.isdisjoint({started[0].pid})
        assert {int(arrival.token) for arrival in moved} == {16, 17, 18, 19}
        for arrival in moved:
            arrival.release()
        found = await reading
        for error in found[:16]:
            assert_lost(error, "SIGSEGV", started[0].pid)
        assert found[16:] == [16, 17, 18, 19]


@pytest.mark.spawned
@pytest.mark.row("B15")
async def test_a_result_published_before_the_death_is_delivered() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(mishaps.publish_then_die, (meeting.port,)))
        arrival = await meeting.next()
        arrival.release()
        block_until_dead(arrival.pid)  # this loop sees the result and the death at once
        assert await task == "published"
        assert await pool.apply(workload.two) == 2


@pytest.mark.spawned
@pytest.mark.row("B15")
async def test_many_results_published_before_the_death_are_all_delivered() -> None:
    """More than the link hands over in one turn of the loop, and each in a batch of its own."""
    count = 4 * BATCH_FRAMES
    async with Meeting() as meeting, Pool(1, childconcurrency=count) as pool:
        items = [(meeting.port, i, count - 1) for i in range(count)]
        calls = [asyncio.ensure_future(pool.apply(mishaps.end_in_turn, item)) for item in items]
        arrival = await meeting.next()
        arrival.release()
        block_until_dead(arrival.pid)
        assert await asyncio.gather(*calls) == [*range(count)]


@pytest.mark.row("B16")
@pytest.mark.parametrize("func", [workload.note_and_meet, workload.note_and_meet_blocking])
async def test_tasks_that_waited_at_a_dead_worker_run_once_elsewhere(
    tmp_path: Path, func: Any
) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        items = [(str(path), meeting.port, i) for i in range(10)]
        reading = asyncio.ensure_future(outcomes(pool.starmap(func, items)))
        first = await meeting.next()
        os.kill(first.pid, signal.SIGKILL)
        await meeting.release_all(9)
        found = await reading
        assert_lost(found[0], "SIGKILL", first.pid)
        assert found[1:] == list(range(1, 10))
        assert sorted(lines(path)) == [str(i) for i in range(10)]


@pytest.mark.row("B16")
async def test_no_task_runs_twice_however_often_workers_die(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    deadly = range(40, 400, 40)
    async with Pool(2, childconcurrency=4) as pool:
        items = [(str(path), list(deadly), i) for i in range(400)]
        found = await outcomes(pool.starmap(mishaps.note_and_die_at_some, items))
        ran = Counter(map(int, lines(path)))
        assert ran == Counter(range(400))
        for i, value in enumerate(found):
            assert value == i or isinstance(value, WorkerLostError)
        lost = {i for i, value in enumerate(found) if isinstance(value, WorkerLostError)}
        assert lost >= set(deadly)


@pytest.mark.row("B16")
async def test_applies_survive_the_death_of_a_worker_that_had_not_started_them() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        lost = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        others = [asyncio.ensure_future(pool.apply(workload.double, (i,))) for i in range(20)]
        os.kill((await meeting.next()).pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await lost
        assert await asyncio.gather(*others) == [2 * i for i in range(20)]


async def test_sigterm_lets_finally_blocks_run_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cleaned"
    async with Meeting() as meeting, Pool(1) as pool:
        items = [(str(path), meeting.port, i) for i in range(3)]
        reading = asyncio.ensure_future(outcomes(pool.starmap(workload.clean_up, items)))
        started = await meeting.first(3)
        os.kill(started[0].pid, signal.SIGTERM)
        for error in await reading:
            assert_lost(error, "SIGTERM", started[0].pid)
        assert sorted(lines(path)) == ["cleaned 0", "cleaned 1", "cleaned 2"]
        assert await pool.apply(workload.where) != started[0].pid


@pytest.mark.row("B16")
async def test_a_worker_killed_while_it_starts_is_replaced_and_its_tasks_run(
    tmp_path: Path,
) -> None:
    go_on = tmp_path / "go on"
    async with Pool(4, initializer=blocking.wait_for_file, initargs=(str(go_on),)) as pool:
        work = asyncio.ensure_future(pool.map(workload.double, range(100)))
        await asyncio.sleep(0)
        for victim in list(pool.processes):  # all, so that none was ever ready
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
        go_on.touch()  # for those that replace them
        assert await work == [2 * i for i in range(100)]


@pytest.mark.row("B16", "B19")
async def test_workers_killed_while_they_start_do_not_harm_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    paths = str(tmp_path / "first"), str(tmp_path / "others")
    pool = Pool(2, initializer=mishaps.initialize_one, initargs=paths)
    async with Meeting() as meeting, pool:
        call = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        others = [asyncio.ensure_future(pool.apply(workload.double, (i,))) for i in range(20)]
        while not (healthy := {worker.pid for worker in pool.processes if worker.ready}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for _ in range(supervisor.START_ATTEMPTS + 2):
            [other] = {worker.pid for worker in pool.processes} - healthy
            assert other is not None
            os.kill(other, signal.SIGKILL)
            await until_noticed(pool, other)
            while len(pool.processes) == 1:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        arrival = await meeting.next()
        assert {arrival.pid} == healthy
        workload.note(paths[1])
        arrival.release("unharmed")
        assert await call == "unharmed"
        assert await asyncio.gather(*others) == [2 * i for i in range(20)]
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
    assert "a worker could not be started" in caplog.text


# -- B17, B18 --------------------------------------------------------------------------------------


@pytest.mark.row("B17")
@pytest.mark.parametrize("count", [1, 2, 5, 13])
async def test_workers_that_kill_each_other_leave_no_task_unresolved(count: int) -> None:
    async with Meeting() as meeting, Pool(count, childconcurrency=1) as pool:
        items = [(meeting.port, i) for i in range(count)]
        reading = asyncio.ensure_future(outcomes(pool.starmap(mishaps.meet_and_kill, items)))
        arrivals = await meeting.first(count)
        for arrival, victim in zip(arrivals, [*arrivals[1:], arrivals[0]], strict=True):
            arrival.release(str(victim.pid))
        again = asyncio.ensure_future(meeting.next())
        await asyncio.wait({reading, again}, return_when=asyncio.FIRST_COMPLETED)
        assert again.cancel(), "a task was run twice"
        found = await reading
        assert len(found) == count
        assert all(isinstance(value, int | WorkerLostError) for value in found)
        assert any(isinstance(value, WorkerLostError) for value in found)
        assert await pool.apply(workload.two) == 2


@pytest.mark.spawned
@pytest.mark.row("B18")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_death_is_noticed_though_a_forked_process_lives_on() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        task = asyncio.ensure_future(pool.apply(mishaps.leave_a_child, (meeting.port,)))
        both = {arrival.token: arrival for arrival in await meeting.first(2)}
        both["worker"].release()
        block_until_dead(both["worker"].pid)
        if hasattr(os, "pidfd_open"):
            await in_a_few_turns(task)
        with pytest.raises(WorkerLostError) as caught:
            await task
        assert_lost(caught.value, "exit 7", both["worker"].pid)
        both["survivor"].release()  # only now: it held all descriptors of the worker
        await wait_for_exit([both["survivor"].pid])
        assert await pool.apply(workload.two) == 2


# -- B19, B20, B21: starting and replacing workers -------------------------------------------------


@pytest.mark.row("B19")
@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("RuntimeError", "no database"),
        ("SystemExit", "SystemExit"),
        ("exit 7", "exited with code 7 during its start"),
        ("SIGSEGV", "SIGSEGV during its start"),
        ("SIGKILL", "SIGKILL during its start"),
    ],
)
async def test_an_initializer_that_fails_breaks_the_pool_with_its_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str, message: str
) -> None:
    path = tmp_path / "started"
    # nothing is tried again later, however long the last of the workers takes to start
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 1000.0)
    pool = Pool(4, initializer=mishaps.initialize_and_fail, initargs=(str(path), way))
    expected = WorkerLostError if way in mishaps.WAYS_TO_DIE else ProxyException
    for _ in range(2):
        with pytest.raises(expected, match=message):
            await pool.map(workload.double, range(10))
        with pytest.raises(expected, match=message):
            await pool.apply(workload.two)
    pool.terminate()
    await pool.join()
    assert 1 <= len(lines(path)) <= 4 + supervisor.START_ATTEMPTS  # no storm of new workers


@pytest.mark.row("B19")
@pytest.mark.parametrize(
    ("maker", "match"),
    [(int, "must return an event loop, not 0"), (mishaps.no_loop, "no loop today")],
)
async def test_a_loop_initializer_that_fails_breaks_the_pool_with_its_error(
    backend: str, maker: Callable[[], Any], match: str
) -> None:
    async with Pool(1, loop_initializer=maker) as pool:
        with pytest.raises((TypeError, LookupError), match=match) as caught:
            await pool.apply(workload.two)
        assert isinstance(caught.value, ProxyException)


@pytest.mark.row("B19")
@pytest.mark.parametrize(
    ("way", "message", "starts"),
    [
        ("RuntimeError", "once only", 1),
        ("exit 7", "exited with code 7 during its start", supervisor.START_ATTEMPTS),
        ("SIGSEGV", "SIGSEGV during its start", supervisor.START_ATTEMPTS),
    ],
)
async def test_an_initializer_that_fails_later_does_not_lead_to_a_storm(
    tmp_path: Path, way: str, message: str, starts: int
) -> None:
    path = tmp_path / "started"
    expected = WorkerLostError if way in mishaps.WAYS_TO_DIE else ProxyException
    async with Pool(1, initializer=mishaps.initialize_once, initargs=(str(path), way)) as pool:
        pid = await pool.apply(workload.where)
        os.kill(pid, signal.SIGKILL)
        await until_noticed(pool, pid)
        for _ in range(2):
            with pytest.raises(expected, match=message):
                await pool.apply(workload.where)
        assert len(lines(path)) == 1 + starts


@pytest.mark.row("B21")
async def test_a_backlog_is_finished_by_workers_of_one_task_each() -> None:
    pool = Pool(2, maxtasksperchild=1)
    results = pool.map(workload.where, range(8))
    pool.close()
    assert len(set(await results)) == 8
    await pool.join()


@pytest.mark.row("B21")
async def test_a_backlog_of_a_pool_that_was_dropped_is_finished_too() -> None:
    calls = [asyncio.ensure_future(call) for call in backlog_of_a_dropped_pool()]
    with pytest.warns(ResourceWarning, match="never closed"):
        assert len(set(await asyncio.gather(*calls))) == 6


def backlog_of_a_dropped_pool() -> list[Any]:
    pool = Pool(2, maxtasksperchild=1)
    return [pool.apply(workload.where) for _ in range(6)]


# -- C31: damage -----------------------------------------------------------------------------------


@pytest.mark.row("C31", "B16")
async def test_a_worker_that_damages_its_link_is_killed_and_its_tasks_run_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ran"
    async with Meeting() as meeting, Pool(2, childconcurrency=1) as pool:
        vandal = asyncio.ensure_future(pool.apply(mishaps.damage_the_link, (meeting.port,)))
        other = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port,)))
        held = {arrival.token: arrival for arrival in await meeting.first(2)}
        items = [(str(path), i) for i in range(100)]
        waiting = asyncio.ensure_future(outcomes(pool.starmap(workload.note, items)))
        held["about to"].release()
        with pytest.raises(WorkerLostError) as caught:
            await vandal
        assert_lost(caught.value, "SIGKILL", held["about to"].pid)
        assert "its link is broken" in caplog.text
        held[""].release("sound")
        assert await other == "sound"
        lost = [isinstance(value, WorkerLostError) for value in await waiting]
        ran = Counter(map(int, lines(path)))
        assert [ran[i] for i in range(100)] == [not value for value in lost]
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]


@pytest.mark.row("C31")
async def test_a_worker_whose_link_is_corrupt_gets_no_more_tasks() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.two) == 2
        [worker] = pool.processes
        worker.mark_corrupt(
            CorruptHeaderError("as this test says")
        )  # it is killed, and not gone yet
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
