"""What 0.9.1 showed in its own test suite, in our words: programs written for it keep running."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest

import aiomultiprocess as amp
import mishaps
import workload
from aiomultiprocess.core import get_context
from aiomultiprocess.pool import ProxyException
from support import run_script


@pytest.fixture(autouse=True)
def _default_context() -> Iterator[None]:
    yield
    amp.set_start_method()


async def nap(seconds: float = 0.1) -> None:
    await asyncio.sleep(seconds)


# -- names -----------------------------------------------------------------------------------------


def test_every_import_path_of_programs_in_the_wild_is_there() -> None:
    from aiomultiprocess.pool import CHILD_CONCURRENCY, MAX_TASKS_PER_CHILD
    from aiomultiprocess.types import ProxyException as FromTypes

    assert FromTypes is ProxyException
    assert issubclass(ProxyException, Exception)
    assert (CHILD_CONCURRENCY, MAX_TASKS_PER_CHILD) == (16, 0)


def test_submodules_are_attributes_after_a_plain_import(tmp_path: Path) -> None:
    program = """
import aiomultiprocess as amp
amp.core.get_context, amp.pool.PoolResult, amp.types.ProxyException, amp.scheduler.RoundRobin
"""
    script = run_script(tmp_path, program)
    assert (script.process.returncode, script.err) == (0, "")


METHODS = [amp.Pool.map, amp.Pool.starmap, amp.Pool.apply, amp.Pool.stream]


@pytest.mark.parametrize("method", METHODS)
def test_hints_of_types_resolve_where_a_pool_is_made(method: Callable[..., Any]) -> None:
    assert "return" in typing.get_type_hints(method)


async def test_hints_of_statistics_resolve_once_a_pool_has_started() -> None:
    async with amp.Pool(1):
        assert typing.get_type_hints(amp.Pool.stats)["return"] is amp.PoolStats


async def test_a_pool_starts_where_its_statistics_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a process that has no descriptor left once the workers have started."""
    monkeypatch.setitem(sys.modules, "aiomultiprocess._parent.stats", None)
    async with amp.Pool(1) as pool:
        assert await pool.apply(nap, (0,)) is None
        with pytest.raises(ImportError):
            pool.stats()


def test_a_name_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """POOL-2: else Python would take the AttributeError to mean that the name does not exist."""

    def failing(name: str, package: str) -> NoReturn:
        raise AttributeError("of a patched program")

    monkeypatch.delitem(vars(amp.pool), "Process")
    assert amp.pool.Process is amp.Process  # as in a worker
    monkeypatch.setattr(amp.pool, "import_module", failing)
    with pytest.raises(ImportError, match=r"pool\.Process .* AttributeError: of a patched program"):
        _ = amp.pool.Process


def test_importing_starts_no_process_and_get_manager_starts_one_when_called(
    tmp_path: Path,
) -> None:
    program = """
import multiprocessing, aiomultiprocess.core as core
if __name__ == "__main__":
    assert not multiprocessing.active_children()
    manager = core.get_manager()
    assert manager is core.get_manager()
    assert len(multiprocessing.active_children()) == 1
    assert manager.Namespace() is not None
    manager.shutdown()
"""
    script = run_script(tmp_path, program)
    assert (script.process.returncode, script.err) == (0, "")


# -- Process and Worker ----------------------------------------------------------------------------


async def test_a_process_has_a_name_and_a_pid_and_lives_until_it_is_joined() -> None:
    process = amp.Process(target=nap, name="test_process")
    process.start()
    assert process.name == "test_process"
    assert process.pid
    assert process.is_alive()
    await process.join()
    assert not process.is_alive()
    assert process.exitcode == 0


async def test_awaiting_a_process_starts_and_joins_it() -> None:
    process = amp.Process(target=nap)
    await process
    assert process.exitcode == 0

    process = amp.Process(target=nap)
    process.start()
    await process
    assert process.exitcode == 0


async def test_a_process_must_be_started_before_it_is_joined() -> None:
    process = amp.Process(target=nap)
    with pytest.raises(ValueError, match="must start process"):
        await process.join()
    await process


def test_a_process_can_be_made_a_daemon_until_it_starts() -> None:
    process = amp.Process(daemon=False)
    assert process.daemon is False
    process.daemon = True
    assert process.daemon is True
    assert amp.Process(daemon=True).daemon is True


async def test_a_terminated_process_ends_before_its_target() -> None:
    process = amp.Process(target=asyncio.sleep, args=(30,))
    began = time.monotonic()
    process.start()
    process.terminate()
    await process.join()
    assert process.exitcode is not None
    assert process.exitcode < 0
    assert time.monotonic() - began < 10


async def test_a_killed_process_has_the_signal_as_its_exit_code() -> None:
    process = amp.Process(target=nap, args=(30,))
    process.start()
    process.kill()
    await process.join()
    assert process.exitcode == -9


async def test_a_process_is_closed_only_after_its_end() -> None:
    process = amp.Process(target=nap)
    process.start()
    assert process.exitcode is None
    with pytest.raises(ValueError, match="running"):
        process.close()
    await process.join()
    process.close()
    with pytest.raises(ValueError, match="closed"):
        _ = process.exitcode


async def test_join_times_out_and_may_be_called_again() -> None:
    process = amp.Process(target=nap)
    process.start()
    with pytest.raises(asyncio.TimeoutError):
        await process.join(timeout=0.01)
    await process.join()


async def test_a_worker_has_no_result_before_its_end() -> None:
    worker = amp.Worker(target=workload.where_after_a_turn)
    worker.start()
    with pytest.raises(ValueError, match="coroutine not completed"):
        _ = worker.result
    await worker.join()
    assert not worker.is_alive()
    assert worker.result == worker.pid


async def test_join_and_await_give_the_result_of_a_worker() -> None:
    worker = amp.Worker(target=workload.where)
    worker.start()
    assert await worker.join() == worker.pid

    worker = amp.Worker(target=workload.where)
    assert await worker == worker.pid


async def test_a_worker_returns_what_its_target_raised() -> None:
    result = await amp.Worker(target=mishaps.fail_at_once, args=("raising",))
    assert isinstance(result, RuntimeError)
    assert "raising" in str(result)


async def test_spawn_is_the_default_and_refuses_inline_functions() -> None:
    assert amp.core.get_context().get_start_method() == "spawn"

    async def inline(value: int) -> int:
        return value

    with pytest.raises(Exception, match=r"(?i)can't (pickle|get) local object|importable"):
        await amp.Worker(target=inline, args=(1,))
    assert await amp.Worker(target=workload.two) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
async def test_fork_runs_inline_functions() -> None:
    with pytest.raises(ValueError, match="foo"):
        amp.set_start_method("foo")
    amp.set_start_method("fork")

    async def inline(value: int) -> int:
        return value

    assert await amp.Worker(target=inline, args=(17,)) == 17


def test_none_means_the_default_start_method_of_the_platform() -> None:
    amp.set_start_method(None)
    expected = multiprocessing.get_context(None).get_start_method()
    assert amp.core.get_context().get_start_method() == expected


def test_set_context_is_set_start_method_with_another_default() -> None:
    with patch("aiomultiprocess.core.set_start_method") as mock:
        amp.set_context()
        mock.assert_called_with(None)
        amp.set_context("foo")
        mock.assert_called_with("foo")


async def test_the_initializer_of_a_worker_runs_before_its_target() -> None:
    worker = amp.Worker(
        target=workload.get_greeting, initializer=workload.set_greeting, initargs=(10,)
    )
    assert await worker == (worker.pid, 10)


def test_async_initializers_and_sync_targets_of_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="initializer must be synchronous function"):
        amp.Process(target=nap, initializer=workload.initialize_async)
    with pytest.raises(ValueError, match="loop_initializer must be synchronous function"):
        amp.Process(target=nap, loop_initializer=workload.initialize_async)
    with pytest.raises(ValueError, match="target must be coroutine function"):
        amp.Process(target=workload.double_sync)


async def test_a_process_without_a_target_is_not_implemented() -> None:
    with pytest.raises(NotImplementedError):
        await amp.core.not_implemented()


# -- Scheduler -------------------------------------------------------------------------------------


def test_round_robin_has_only_one_queue_to_give() -> None:
    scheduler = amp.RoundRobin()
    queue = scheduler.register_queue(object())
    scheduler.register_process(queue)
    assert [scheduler.schedule_task(i, object, (), {}) for i in range(5)] == [queue] * 5


def test_round_robin_gives_queues_in_turn_weighted_by_their_processes() -> None:
    scheduler = amp.RoundRobin()
    first, second = scheduler.register_queue(object()), scheduler.register_queue(object())
    for queue in (first, second, first):
        scheduler.register_process(queue)
    given = [scheduler.schedule_task(i, object, (), {}) for i in range(6)]
    assert given == [first, second, first] * 2
    assert scheduler.complete_task(0) is None


# -- Pool ------------------------------------------------------------------------------------------


async def test_apply_map_and_starmap_work_while_workers_are_recycled(backend: str) -> None:
    values = list(range(10))
    doubled = [2 * value for value in values]
    async with amp.Pool(2, maxtasksperchild=5) as pool:
        assert pool.process_count == 2
        assert len(pool.processes) == 2
        assert await pool.apply(workload.double, (values[0],)) == doubled[0]
        assert await pool.map(workload.double, values) == doubled
        halves = await pool.starmap(workload.double_all, [values[:4], values[4:]])
        assert halves == [doubled[:4], doubled[4:]]


async def test_results_of_map_are_awaited_or_iterated(backend: str) -> None:
    values = list(range(0, 20, 2))
    expected = [2 * value for value in values]
    async with amp.Pool(2) as pool:
        results = pool.map(workload.double, values)
        assert isinstance(results, amp.PoolResult)
        assert await results == expected
        assert [value async for value in pool.map(workload.double, values)] == expected


async def test_results_of_starmap_are_awaited_or_iterated(backend: str) -> None:
    values = list(range(0, 20, 2))
    expected = [2 * value for value in values]
    async with amp.Pool(2) as pool:
        results = pool.starmap(workload.double_all, [values] * 5)
        assert isinstance(results, amp.PoolResult)
        assert await results == [expected] * 5
        again = pool.starmap(workload.double_all, [values] * 5)
        assert [value async for value in again] == [expected] * 5


async def test_an_error_of_a_task_is_a_proxy_exception(backend: str) -> None:
    async with amp.Pool(2) as pool:
        with pytest.raises(ProxyException, match="RuntimeError: raising"):
            await pool.apply(mishaps.fail_at_once, args=("raising",))


async def test_a_bound_method_of_a_queue_is_an_exception_handler(backend: str) -> None:
    queue = get_context().Queue()
    try:
        async with amp.Pool(2, exception_handler=queue.put) as pool:
            with pytest.raises(ProxyException):
                await pool.apply(mishaps.fail_at_once, args=("raising",))
            error = await asyncio.to_thread(queue.get, timeout=10)
            assert isinstance(error, RuntimeError)
            assert error.args == ("raising",)
    finally:
        queue.close()
        queue.join_thread()


async def test_a_closed_pool_takes_no_tasks(backend: str) -> None:
    pool = amp.Pool(2)
    pool.close()
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.apply(workload.two)
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.map(workload.double, [1, 2, 3])
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.starmap(workload.double_all, [[1, 2, 3], [1, 2, 3]])
    pool.terminate()
    await pool.join()


async def test_an_open_pool_cannot_be_joined(backend: str) -> None:
    async with amp.Pool(2) as pool:
        with pytest.raises(RuntimeError, match="pool is still open"):
            await pool.join()


async def test_maxtasksperchild_zero_and_queuecount_none_are_the_defaults(backend: str) -> None:
    async with amp.Pool(2, maxtasksperchild=0, queuecount=None) as pool:
        assert pool.maxtasksperchild == 0
        assert pool.queue_count == 1
        assert pool.childconcurrency == 16
        assert await pool.map(workload.double, range(5)) == [0, 2, 4, 6, 8]
