"""Launches that fail for lack of descriptors: an OSError at every number of them, and no crash.

The error's traceback holds the frames of the launch. Where it is part of a reference cycle, what
these hold is freed by the garbage collector, in an order that no code of ours chooses.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

import conftest
from support import run_script

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE, os.fork")

MOST = 30  # free descriptors; a pool of two needs fewer

#: Forks a copy of itself for each number of free descriptors, until one has enough.
PROGRAM = """
import asyncio, gc, os, resource, sys
import workload
from aiomultiprocess import Pool, Process, Worker

async def use_a_pool():
    limit()
    async with Pool(2) as pool:
        assert await pool.apply(workload.two) == 2

async def use_a_process(cls):
    limit()
    await cls(target=workload.two)

def limit():
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, HARD))

def use():
    asyncio.run(use_a_pool() if {what!r} == "Pool" else use_a_process(globals()[{what!r}]))

def keep_in_a_cycle():
    try:
        use()
    except (OSError, RuntimeError) as error:
        kept = [error]
        kept.append(kept)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))

def copy_ends():
    pid = os.fork()
    if pid == 0:
        return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

if __name__ == "__main__":
    SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
    # what is imported late would need a descriptor itself, and fail as itself
    free = SOFT - 100
    use()
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))
    for free in range({most}):
        code = copy_ends()
        if code is None:
            keep_in_a_cycle()
            gc.collect()
            use()
            os._exit(0)
        print(free, code, flush=True)
        if code == 0:
            break
"""


@pytest.mark.row("G54")
@pytest.mark.parametrize("what", ["Pool", "Process", "Worker"])
def test_an_uncaught_error_of_a_launch_ends_the_program_with_its_traceback(
    what: str, backend: str, tmp_path: Path
) -> None:
    """By spawn: the other start methods leave what the child reads to multiprocessing."""
    source = PROGRAM.format(what=what, most=MOST)
    script = run_script(tmp_path, source, "-Wignore", within=60)
    codes = [int(line.split()[1]) for line in script.out.splitlines()]
    assert codes == [1] * (len(codes) - 1) + [0], script.err
    assert len(codes) > 1
    assert script.err.count("Traceback (most recent call last)") >= len(codes) - 1
    own = [line for line in script.err.splitlines() if not line.startswith((" ", "Traceback"))]
    assert [line for line in own if "Too many open files" not in line] == []


#: The first large buffer and the first shared object of a pool, when no descriptor is free.
LATE_PROGRAM = """
import asyncio, os
import numpy as np
import shared_targets as targets
from aiomultiprocess import Pool, share

async def main():
    async with Pool(1) as pool:
        with share(targets.table(1000)) as shared:
            assert await pool.apply(targets.total, (np.zeros(3),)) == 0
            held = []
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            assert await pool.apply(targets.total, (np.ones(100_000),)) == 100_000
            assert await pool.apply(targets.at, (shared, 1)) == 1
            for fd in held:
                os.close(fd)
            assert await pool.apply(targets.total, (np.ones(100_000),)) == 100_000

if __name__ == "__main__":
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    asyncio.run(main())
    print("done")
"""


@pytest.mark.row("H191")
def test_a_parent_without_descriptors_sends_large_data_and_shares(
    backend: str, tmp_path: Path
) -> None:
    script = run_script(tmp_path, LATE_PROGRAM, "-Wignore", within=60)
    assert script.out == "done\n", script.err


@pytest.mark.row("G54")
@pytest.mark.skipif("shm" not in conftest.BACKENDS, reason="the ring's view")
def test_a_view_of_a_record_in_a_cycle_is_freed_in_any_order(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from amp_ext.ring import Mapping

    def keep_in_a_cycle(at: int) -> Mapping:
        mapping = Mapping.create(1 << 12)
        producer, consumer = mapping.down_producer(), mapping.down_consumer()
        producer.write((b"a record",))
        producer.publish()
        kept: list[object] = [consumer.read()]
        kept.insert(at, consumer)
        kept.append(kept)
        return mapping

    for at in (0, 1):
        mapping = keep_in_a_cycle(at)
        gc.collect()
        mapping.close()  # unmapped, as nothing is left that shows it
    assert capfd.readouterr() == ("", "")
