"""Large data where memory or descriptors end, and shared objects that are released meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading

import numpy as np
import pytest

import at_limits
from aiomultiprocess import Pool, PoolExecutor, share

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")

MB = 1 << 20


@pytest.mark.row("H146")
def test_an_executor_keeps_what_is_released_for_the_calls_before(backend: str) -> None:
    with PoolExecutor(2) as executor:
        for number in range(40):
            with share(np.full(1000, number)) as shared:
                futures = [executor.submit(at_limits.first_of, shared, i) for i in range(20)]
            assert [each.result(60) for each in futures] == [number + i for i in range(20)]
            with pytest.raises(RuntimeError, match="was released"):
                assert shared.value is None


@pytest.mark.row("H147")
async def test_an_argument_that_a_worker_cannot_map_fails_alone() -> None:
    async with Pool(1, backend="shm") as pool:
        pid = await pool.apply(at_limits.limit_address_space, (64 * MB,))
        sizes = [MB, 800 * MB, 2 * MB]
        arrays = [np.zeros(size, "u1") for size in sizes]
        found = await pool.map(at_limits.size_of, arrays, return_exceptions=True)
        assert found[::2] == sizes[::2]
        assert isinstance(found[1], MemoryError)
        assert [worker for worker in pool.processes if worker.pid == pid]


@pytest.mark.row("H148")
async def test_an_error_is_reported_without_a_descriptor(backend: str) -> None:
    async with Pool(1) as pool:
        with pytest.raises(ValueError, match="this one"):
            await pool.apply(at_limits.fail_without_descriptors, ("this one",))


@pytest.mark.row("H149")
async def test_a_shared_object_is_released_in_a_thread_while_calls_come_and_go(
    backend: str,
) -> None:
    failures: list[BaseException] = []
    over = threading.Event()

    def release_many() -> None:
        try:
            while not over.is_set():
                share(b"x").release()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=release_many)
    interval = sys.getswitchinterval()
    async with Pool(1) as pool:
        with share(np.arange(5)) as shared:
            sys.setswitchinterval(1e-5)
            thread.start()
            try:
                for _ in range(20):
                    calls = [pool.apply(at_limits.first_of_soon, (shared,)) for _ in range(200)]
                    assert await asyncio.gather(*calls) == [0] * 200
            finally:
                over.set()
                thread.join()
                sys.setswitchinterval(interval)
    assert failures == []
