"""A shared object that was released is held for the tasks that may have it, and for no others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sandbox
import shared_targets as targets
import streams
import workload
from aiomultiprocess import Pool, RoundRobin, Shared, WorkerLostError, share
from support import Arrival, Meeting, run_script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

NOTHING = (0, 0)


async def settle() -> None:
    """Let the loop send what was scheduled."""
    for _ in range(3):
        await asyncio.sleep(0)


async def is_freed(pool: Pool) -> None:
    """The parent and the only worker of a pool have no memory of a shared object."""
    await settle()
    assert await pool.apply(targets.held) == NOTHING
    gc.collect()
    assert targets.memories() == NOTHING


@pytest.mark.row("H189")
@pytest.mark.skipif(not sandbox.SUPPORTED, reason="seccomp, on machines in the table")
def test_up_to_linux_6_6_a_sealed_memory_can_be_read(backend: str, tmp_path: Path) -> None:
    """mmap refuses MAP_SHARED of a file that is sealed against writing, even if only to read."""
    source = f"""
        import errno, sandbox
        sandbox.refuse("mmap", errno.EPERM, {{2: 1, 3: sandbox.MAP_SHARED}})  # 1: PROT_READ alone
        import asyncio
        import shared_targets as targets
        from aiomultiprocess import Pool, share

        async def main():
            with share(targets.table()) as shared:
                assert not shared.value.flags.writeable
                async with Pool(1, backend={backend!r}) as pool:
                    print(shared.value[2], await pool.apply(targets.at, (shared, 3)))

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, source)
    assert (script.out, script.err) == ("2.0 3.0\n", "")


async def read_one(results: Any) -> None:
    async for _ in results:
        return


def an_endless_map(pool: Pool, port: int) -> Any:
    """It waits for its reader, and is not at its end."""
    return pool.map(workload.double, itertools.count())


def a_stream(pool: Pool, port: int) -> Any:
    return pool.stream(streams.count_up, (1_000_000,))


def a_long_call(pool: Pool, port: int) -> Any:
    return pool.submit(workload.meet, port)


def a_map_of_a_list(pool: Pool, port: int) -> Any:
    return pool.map(workload.meet, [port] * 8)


@pytest.mark.row("H214")
@pytest.mark.parametrize("start", [an_endless_map, a_stream, a_long_call, a_map_of_a_list])
async def test_what_runs_beside_holds_no_memory_that_it_does_not_have(
    start: Callable[[Pool, int], Any],
) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        other = start(pool, meeting.port)
        if start in (an_endless_map, a_stream):
            await read_one(other)
        else:
            await meeting.next()
        for at in range(3):
            with share(targets.table()) as shared:
                assert await pool.apply(targets.at, (shared, at)) == at
            del shared
            await is_freed(pool)
        pool.terminate()


@contextlib.asynccontextmanager
async def calls_that_wait() -> AsyncIterator[tuple[Pool, Arrival, list[Any]]]:
    """Four calls with an object that was released, behind one that has arrived at a meeting."""
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, 0)))
        arrival = await meeting.next()
        with share(targets.table()) as shared:
            calls = [pool.submit(targets.at, shared, at) for at in range(4)]
        del shared
        await settle()
        yield pool, arrival, calls
        await first


@pytest.mark.row("H214")
async def test_calls_that_wait_have_it_though_the_last_of_them_is_cancelled() -> None:
    async with calls_that_wait() as (pool, arrival, calls):
        calls[-1].cancel()
        await settle()
        calls[-2].cancel()
        await settle()
        arrival.release()
        assert [await calls[0], await calls[1]] == [0, 1]
        calls.clear()
        await is_freed(pool)


@pytest.mark.row("H214")
async def test_calls_that_wait_and_are_all_cancelled_hold_it_no_longer() -> None:
    async with calls_that_wait() as (_, arrival, calls):
        for call in calls:
            call.cancel()
        await settle()
        gc.collect()
        assert targets.memories() == NOTHING
        arrival.release()


def shared_one_by_one(count: int) -> Iterator[tuple[Any, int]]:
    """Each is released when the next is read."""
    for at in range(count):
        with share(targets.table()) as shared:
            yield shared, at


async def shared_one_by_one_later(count: int) -> AsyncIterator[tuple[Any, int]]:
    for item in shared_one_by_one(count):
        yield item
        await asyncio.sleep(0)


@pytest.mark.row("H214")
@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("items", [shared_one_by_one, shared_one_by_one_later])
async def test_items_that_were_read_have_what_their_iterator_has_released(
    items: Callable[[int], Any], queues: int
) -> None:
    async with Pool(queues, queuecount=queues, scheduler=RoundRobin()) as pool:
        assert await pool.starmap(targets.at, items(40)) == [*range(40)]
        await settle()
        gc.collect()
        assert targets.memories() == NOTHING
        assert await pool.map(targets.held, range(queues)) == [NOTHING] * queues


@pytest.mark.row("H214")
@pytest.mark.parametrize("queues", [1, 2])
async def test_a_map_that_was_submitted_in_the_block_has_it_to_its_last_item(queues: int) -> None:
    async with Pool(queues, queuecount=queues, scheduler=RoundRobin()) as pool:
        with share(targets.table()) as shared:
            listed = pool.starmap(targets.at, [(shared, at) for at in range(300)])
            lazy = pool.starmap(targets.at, zip(itertools.repeat(shared), range(300)))
        del shared
        assert await listed == [*range(300)]
        assert await lazy == [*range(300)]
        del listed, lazy
        await settle()
        gc.collect()
        assert targets.memories() == NOTHING


@pytest.mark.row("H214")
async def test_tasks_of_a_dead_worker_have_it_when_they_run_again(tmp_path: Path) -> None:
    """Those that it had started, and those that go back to their source."""
    path = str(tmp_path / "died")
    async with Pool(1, childconcurrency=1) as pool:
        with share(targets.table()) as shared:
            items = [(path, shared, at) for at in range(20)]
            result = pool.starmap(targets.at_or_die, items, retries=1)
        del shared, items
        assert await result == [*range(20)]
        del result
        await is_freed(pool)


@pytest.mark.row("H214")
async def test_items_that_a_dead_worker_had_not_started_have_it_in_the_next() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        with share(targets.table()) as shared:
            for _ in range(3):  # from then on it is known to be quick, and travels in large chunks
                await pool.starmap(targets.at_or_meet, [(shared, 0)] * 3000)
        with share(targets.table()) as shared:
            items = [(None, meeting.port), *[(shared, 0)] * 9]
            result = pool.starmap(targets.at_or_meet, items, return_exceptions=True)
            arrival = await meeting.next()
            (worker,) = pool.processes
            assert [len(chunk.handles) for chunk in worker.chunks.values()] == [10]
        del shared, items
        await settle()
        os.kill(arrival.pid, signal.SIGKILL)
        lost, *others = await result
        assert isinstance(lost, WorkerLostError)
        assert others == [0] * 9
        del result
        await is_freed(pool)


@pytest.mark.row("H214")
async def test_one_that_a_map_holds_to_its_end_keeps_no_other() -> None:
    goes_on = asyncio.Event()

    async def items() -> AsyncIterator[tuple[Any, int]]:
        async for item in shared_one_by_one_later(40):
            yield item
        await goes_on.wait()

    async with Pool(1) as pool:
        with share(targets.table()) as first:
            results = aiter(pool.starmap(targets.at, items()))
            assert await anext(results) == 0
        del first
        assert [await anext(results) for _ in range(39)] == [*range(1, 40)]
        await settle()
        gc.collect()
        assert targets.memories()[0] == 1
        goes_on.set()
        with pytest.raises(StopAsyncIteration):
            await anext(results)


@pytest.mark.row("H214")
@pytest.mark.spawned
async def test_a_worker_that_died_unnoticed_costs_no_task_its_object() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.two) == 2
        (worker,) = pool.processes
        os.kill(worker.pid or 0, signal.SIGKILL)
        until_exit(worker.pid or 0)  # the loop, which would notice, does not run
        with share(targets.table()) as shared:
            calls = [pool.submit(targets.at, shared, at) for at in range(3)]
            assert await asyncio.gather(*calls) == [0, 1, 2]


def until_exit(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def read_by_a_closure(pool: Pool, shared: Shared[Any]) -> None:
    def at(index: int) -> float:
        return float(shared.value[index])

    assert await pool.map(at, range(3)) == [0, 1, 2]
    assert await pool.map(at, range(3)) == [0, 1, 2]  # it is pickled again, and known


@pytest.mark.row("H215")
async def test_a_function_by_value_holds_it_until_it_is_collected() -> None:
    async with Pool(1, serializer="cloudpickle") as pool:
        with share(targets.table()) as shared:
            await read_by_a_closure(pool, shared)
        del shared
        gc.collect()
        await settle()
        gc.collect()
        assert targets.memories() == NOTHING


@pytest.mark.row("H215")
async def test_a_function_by_value_that_was_collected_still_blocks_the_worker_that_runs_it() -> (
    None
):
    """Calls of other functions go to the other worker."""
    async with Meeting() as meeting, Pool(2, serializer="cloudpickle") as pool:
        port = meeting.port
        blocked = pool.submit(lambda: workload.meet_blocking(port))
        arrival = await meeting.next()
        await settle()  # the function was collected, and is retired
        quick = [await pool.apply(workload.where) for _ in range(20)]
        quick += await asyncio.gather(*[pool.apply(workload.where) for _ in range(40)])
        assert arrival.pid not in quick
        arrival.release()
        await blocked


@pytest.mark.row("H199")
async def test_start_arguments_that_cannot_be_pickled_leave_nothing_behind() -> None:
    with share(targets.table()) as shared, pytest.raises(Exception, match="pickle"):
        await Pool(1, targets.keep, (shared, threading.Lock())).apply(workload.two)
    del shared
    gc.collect()
    assert targets.memories() == NOTHING
