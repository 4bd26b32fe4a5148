"""What a fresh worker loads and holds back before its first item. Names, no times."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from support import run_script

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="multiprocessing's own serves")

# What is loaded anyway: multiprocessing's part of a spawn, and asyncio.
GIVEN = "import sys, asyncio, multiprocessing.spawn, multiprocessing.resource_tracker"

MODULES = f"""
import asyncio, subprocess, sys
{{named}}

def modules():
    return set(sys.modules)

async def main():
    from aiomultiprocess import Pool
    async with Pool(1) as pool:
        loaded = await pool.apply(modules)
    command = [sys.executable, "-c", "{GIVEN}; print(*sys.modules)"]
    print(*sorted(loaded - set(subprocess.check_output(command, text=True).split())))

if __name__ == "__main__":
    asyncio.run(main())
"""

#: What a worker imports beside, if its main module imports this class (POOL-2).
NAMED = {
    "": (),
    "Pool": ("_arguments", "pool", "scheduler"),
    "PoolExecutor": ("_arguments", "executor", "pool", "scheduler"),
}
PARENTS_OWN = (
    "_cli",
    "_parent",
    "_processes.child",
    "_processes.cpus",
    "_processes.exit",
    "_processes.result",
    "_transport.select",
    "core",
)
# the class of the process object (_processes/spawn.py) needs these two of multiprocessing
ALLOWED = {
    "__future__",
    "gc",
    "mmap",
    "pkgutil",
    "multiprocessing.popen_fork",
    "multiprocessing.popen_spawn_posix",
    "cython_runtime",
    "typing",  # which asyncio loads too, up to 3.13
    "_typing",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_fresh_worker_loads_nothing_that_its_first_item_does_not_need(
    tmp_path: Path, backend: str, name: str
) -> None:
    """POOL-2"""
    named = f"from aiomultiprocess import {name}" if name else ""
    script = run_script(tmp_path, MODULES.format(named=named))
    assert script.process.returncode == 0, script.err
    loaded = set(script.out.split())
    assert "aiomultiprocess._worker.engine" in loaded
    not_needed = {*PARENTS_OWN, *NAMED["PoolExecutor"]} - set(NAMED[name])
    owned = tuple(f"aiomultiprocess.{name}" for name in not_needed)
    assert not [name for name in loaded if name.startswith(owned)]
    theirs = {name for name in loaded if not name.startswith(OURS)}
    assert theirs <= ALLOWED


OURS = ("aiomultiprocess", "amp_ext", "_cython")

GARBAGE = """
import asyncio, gc
from aiomultiprocess import Pool, Worker
from aiomultiprocess._processes.startup import HELD

AT_IMPORT = gc.get_threshold()[0], gc.get_freeze_count()
CHOICE
at_initializer = []

def initialize():
    at_initializer.append(gc.get_threshold()[0])

async def seen():
    held, frozen = AT_IMPORT[0] >= HELD, gc.get_freeze_count() > AT_IMPORT[1]
    return held, frozen, gc.isenabled(), gc.get_threshold()[0], at_initializer

async def main():
    usual = gc.get_threshold()[0]
    async with Pool(1, initialize) as pool:
        print([*await pool.apply(seen), usual])
    print([*await Worker(target=seen), usual])

if __name__ == "__main__":
    asyncio.run(main())
"""


def observed(folder: Path, choice: str) -> list[str]:
    """What the workers of a pool, and a Worker, saw, where `choice` stands in the main module."""
    script = run_script(folder, GARBAGE.replace("CHOICE", choice))
    assert script.process.returncode == 0, script.err
    return script.out.splitlines()


def test_garbage_is_collected_from_the_initializer_on_and_not_before(tmp_path: Path) -> None:
    (usual, *_) = gc.get_threshold()
    pool, worker = observed(tmp_path, "")
    assert pool == f"[True, True, True, {usual}, [{usual}], {usual}]"
    assert worker == f"[True, True, True, {usual}, [], {usual}]"


@pytest.mark.row("H161")
def test_a_module_that_chooses_how_garbage_is_collected_is_heeded_in_workers(
    tmp_path: Path,
) -> None:
    (usual, *_) = gc.get_threshold()
    for line in observed(tmp_path, "gc.disable()"):
        assert line.startswith(f"[True, True, False, {usual}, ")
    for factor in (2, 10):
        choice = f"gc.set_threshold({factor} * gc.get_threshold()[0])"
        for line in observed(tmp_path, choice):
            assert line.startswith(f"[True, True, True, {factor * usual}, ")
    for line in observed(tmp_path, "gc.set_threshold(321)"):
        assert line.startswith("[True, False, True, 321, ")
