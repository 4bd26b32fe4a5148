"""Shared objects reach each host once, and go when they are released."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shared_targets
import workload
from aiomultiprocess import Pool, share
from clusters import Dask

NAME = "aiomultiprocess-shared"


def memories_of(dask: Dask) -> list[int]:
    """How many shared objects each host holds, by what its descriptors refer to."""
    found = []
    for worker in dask.workers.values():
        fds = Path(f"/proc/{worker.pid}/fd").iterdir()
        found.append(sum(NAME in str(fd.readlink()) for fd in fds if fd.is_symlink()))
    return found


async def until_memories_are(dask: Dask, expected: list[int]) -> None:
    while memories_of(dask) != expected:  # noqa: ASYNC110 - hosts do not report it
        await asyncio.sleep(0.01)


@pytest.fixture
def own_dask(tmp_path: Path) -> Any:
    with Dask(tmp_path) as running:
        yield running.add("left", "right", threads=2)


async def test_a_shared_object_is_sent_to_each_host_once_and_dropped_when_released(
    own_dask: Dask,
) -> None:
    with share(shared_targets.table()) as table:
        async with Pool(backend="dask", address=own_dask.address) as pool:
            at = partial(shared_targets.at, table)
            assert await pool.map(at, range(200)) == [float(n) for n in range(200)]
            assert memories_of(own_dask) == [1, 1]
            assert await pool.apply(shared_targets.at, (table, 7)) == 7.0
            table.release()
            del at
            assert await pool.apply(workload.two) == 2
            await until_memories_are(own_dask, [0, 0])


async def test_workers_on_hosts_may_start_with_a_shared_object(own_dask: Dask) -> None:
    with share(shared_targets.table()) as table:
        async with Pool(
            2,
            shared_targets.keep,
            (table,),
            backend="dask",
            address=own_dask.address,
            maxtasksperchild=5,
        ) as pool:
            found = await pool.map(shared_targets.kept_at, range(60))
            assert found == [float(n) for n in range(60)]


async def test_what_a_task_over_hosts_returns_is_the_shared_object_itself(own_dask: Dask) -> None:
    with share([1, 2, 3]) as numbers:
        async with Pool(backend="dask", address=own_dask.address) as pool:
            returned = await pool.apply(shared_targets.give_back, (numbers,))
            assert returned.value is numbers.value


@pytest.mark.row("H154")
async def test_a_shared_object_that_a_host_cannot_hold_fails_who_asks_for_it_alone(
    tmp_path: Path,
) -> None:
    with Dask(tmp_path) as dask:
        dask.add("cramped", preload="cramped_worker")
        with share(shared_targets.table()) as table:
            async with Pool(1, backend="dask", address=dask.address) as pool:
                with pytest.raises(RuntimeError, match="its host had no room for it"):
                    await pool.apply(shared_targets.at, (table, 7))
                assert await pool.apply(workload.two) == 2
                assert pool.stats().lost == 0
        assert "cannot be used here (OSError: [Errno 28]" in dask.said("cramped")


@pytest.mark.row("H192")
async def test_a_process_of_a_host_that_had_no_descriptor_free_gets_an_object_later(
    own_dask: Dask,
) -> None:
    with share(shared_targets.table()) as kept, share(shared_targets.table()) as table:
        keep = shared_targets.keep
        async with Pool(1, keep, (kept,), backend="dask", address=own_dask.address) as pool:
            await pool.apply(shared_targets.allow_descriptors, (False,))
            with pytest.raises(Exception, match="no descriptor was left"):
                await pool.apply(shared_targets.at, (table, 7))
            await pool.apply(shared_targets.allow_descriptors, (True,))
            assert await pool.apply(shared_targets.at, (table, 7)) == 7.0
