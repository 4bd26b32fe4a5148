"""The cost of an idle pool: a process for each worker, no wake-ups, few descriptors.

The numbers are those of /proc on Linux.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

import workload
from aiomultiprocess import Pool
from support import Script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.spawned,  # processes are counted
    pytest.mark.skipif(sys.platform != "linux", reason="counts come from /proc"),
]

IDLE = 2.0  # seconds over which an idle pool is watched
PARENT_DESCRIPTORS = 7  # for each worker: those of its link, and two to notice its exit
WORKER_DESCRIPTORS = 15  # in each worker, its event loop and stdio included


def switches(pid: int) -> int:
    """How often the threads of a process were given a CPU: it cannot run without that."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


async def settled(pids: list[int]) -> dict[int, int]:
    """The switches of processes that have come to rest, within a bounded time."""
    before: dict[int, int] = {}
    for _ in range(50):
        now = {pid: switches(pid) for pid in pids}
        if now == before:
            return now
        before = now
        await asyncio.sleep(0.1)
    raise AssertionError(f"these processes never rest: {before}")


# -- processes -------------------------------------------------------------------------------------


async def test_a_pool_of_two_has_two_processes() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    async with Pool(2) as pool:
        assert await pool.map(workload.double, range(100)) == [2 * i for i in range(100)]
        after = {child.pid for child in psutil.Process().children(recursive=True)}
        assert after - before == {process.pid for process in pool.processes}
        assert len(after - before) == 2


async def test_a_program_with_a_pool_of_two_has_two_processes(tmp_path: Path) -> None:
    source = """
        import asyncio
        import workload
        from aiomultiprocess import Pool

        async def main():
            async with Pool(2) as pool:
                await pool.map(workload.double, range(100))
                print("ready", flush=True)
                await asyncio.Event().wait()

        if __name__ == "__main__":
            asyncio.run(main())
    """
    with Script(tmp_path, source) as script:
        await script.line("ready")
        assert len(psutil.Process(script.process.pid).children(recursive=True)) == 2


# -- wake-ups --------------------------------------------------------------------------------------


async def test_idle_workers_are_never_woken() -> None:
    async with Pool(2) as pool:
        await pool.map(workload.double_after_a_turn, range(1000))
        pids = [process.pid or 0 for process in pool.processes]
        before = await settled(pids)
        await asyncio.sleep(IDLE)  # what is measured is that time passes without an event
        assert {pid: switches(pid) for pid in pids} == before
        assert await pool.apply(workload.two) == 2


async def test_the_parent_of_an_idle_pool_is_never_woken(tmp_path: Path) -> None:
    source = """
        import asyncio
        import workload
        from aiomultiprocess import Pool

        async def main():
            async with Pool(2) as pool:
                await pool.map(workload.double_after_a_turn, range(1000))
                print("idle", flush=True)
                await asyncio.Event().wait()

        if __name__ == "__main__":
            asyncio.run(main())
    """
    with Script(tmp_path, source) as script:
        await script.line("idle")
        parent = psutil.Process(script.process.pid)
        pids = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
        before = await settled(pids)
        await asyncio.sleep(IDLE)  # what is measured is that time passes without an event
        assert {pid: switches(pid) for pid in pids} == before


async def test_a_task_that_waits_wakes_nobody() -> None:
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        waiting = asyncio.ensure_future(pool.apply(workload.wait_for_ever))
        pids = [process.pid or 0 for process in pool.processes]
        before = await settled(pids)
        await asyncio.sleep(IDLE / 2)  # what is measured is that time passes without an event
        assert {pid: switches(pid) for pid in pids} == before
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


# -- descriptors -----------------------------------------------------------------------------------


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.spawned
async def test_each_worker_costs_the_parent_a_few_descriptors() -> None:
    without = count_descriptors()
    async with Pool(1) as pool:
        await pool.apply(workload.two)
        one = count_descriptors() - without
    async with Pool(4) as pool:
        await pool.apply(workload.two)
        four = count_descriptors() - without
    assert (four - one) / 3 <= PARENT_DESCRIPTORS
    assert one <= PARENT_DESCRIPTORS + 2
    assert count_descriptors() == without


async def test_a_worker_holds_a_few_descriptors_however_many_workers_there_are(
    start_method: str,
) -> None:
    async with Pool(4, childconcurrency=1) as pool:
        inherited = count_descriptors() if start_method == "fork" else 0
        held = [len(names) for _, names in await pool.map(workload.descriptors, range(40))]
        assert max(held) <= WORKER_DESCRIPTORS + inherited
        assert max(held) - min(held) <= inherited


async def test_recycling_workers_leaves_no_descriptors() -> None:
    async with Pool(1, maxtasksperchild=1) as pool:
        await pool.apply(workload.two)
        before = count_descriptors()
        await pool.map(workload.double, range(10))
        await asyncio.sleep(0)
        assert count_descriptors() <= before + PARENT_DESCRIPTORS  # one on its way out
