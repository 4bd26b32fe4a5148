"""The processes of a pool keep freed memory for the next items (_processes/freed_memory.py)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from aiomultiprocess import _accel
from aiomultiprocess._processes import freed_memory

#: What the environment says to malloc, which would decide in its place.
TUNED = ("MALLOC_", "GLIBC_TUNABLES", "PYTHONMALLOC")

FAULTS_OF_RESULTS = """
import asyncio, resource
from aiomultiprocess import Pool

def faults(pieces, size):
    # each piece is written, and all are freed
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [None] * pieces
    for at in range(pieces):
        made[at] = bytes([at]) * size
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

async def main():
    for pieces, size in ((200, 1 << 16), (12, 1 << 20)):
        shape = pieces, size
        if pieces == 200:
            faults(*shape)
            without = faults(*shape)
            pool = Pool(1)
        await pool.apply(faults, shape)
        worker = await pool.apply(faults, shape)
        faults(*shape)
        print(without, worker, faults(*shape))
    await pool.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""


def faults_of_results(folder: Path, **environment: str) -> list[list[int]]:
    """Page faults of 12.5 MB in pieces of 64 KiB, and of 12 MiB in pieces of 1 MiB.

    Of each: those of 64 KiB in a program without a pool, in a worker, in its parent.
    """
    program = folder / "faults.py"  # a file, from which a worker imports `faults`
    program.write_text(FAULTS_OF_RESULTS)
    command = [sys.executable, str(program)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(TUNED)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=clean | environment
    )
    return [[int(number) for number in line.split()] for line in done.stdout.splitlines()]


needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32, reason="what glibc does on 64 bits"
)

needs_extension = pytest.mark.skipif(_accel.EXTENSION_ERROR is not None, reason="needs amp_ext")


@needs_glibc
def test_results_take_the_memory_of_those_that_were_dropped(tmp_path: Path) -> None:
    for without, worker, parent in faults_of_results(tmp_path):
        assert 5 * worker < without
        assert 5 * parent < without


@needs_glibc
def test_thresholds_of_the_environment_have_precedence(tmp_path: Path) -> None:
    for without, worker, parent in faults_of_results(tmp_path, MALLOC_TRIM_THRESHOLD_="131072"):
        assert 2 * worker > without
        assert 2 * parent > without


FAULTS_OF_LARGE_MAP = """
import asyncio, ctypes, resource, sys
from aiomultiprocess import Pool

def faults():
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [bytes([at % 256]) * 65536 for at in range(1200)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

async def main():
    if sys.argv[1:]:
        assert ctypes.CDLL(None).mallopt(-1, int(sys.argv[1]))  # M_TRIM_THRESHOLD
    pool = Pool(1)
    faults()
    print(faults())
    await pool.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""


def faults_of_large_map(folder: Path, *trim_threshold: str) -> int:
    """Page faults of a parent for 75 MiB in pieces of 64 KiB."""
    program = folder / "faults.py"
    program.write_text(FAULTS_OF_LARGE_MAP)
    command = [sys.executable, str(program), *trim_threshold]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(TUNED)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=clean)
    return int(done.stdout)


@needs_glibc
@needs_extension
def test_the_parent_keeps_more_than_glibc_would_by_itself(tmp_path: Path) -> None:
    assert faults_of_large_map(tmp_path) < 1000  # of 19,200 pages


@needs_glibc
@needs_extension
def test_thresholds_of_the_program_have_precedence(tmp_path: Path) -> None:
    assert faults_of_large_map(tmp_path, "131072") > 10_000


def test_more_than_mallopt_can_say_is_not_asked_for() -> None:
    assert not _accel.keep_freed(1 << 31)


@pytest.mark.skipif(sys.maxsize < 2**32, reason="what is done on 64 bits")
@pytest.mark.parametrize("by_mallopt", [False, True])
def test_a_block_is_freed_once(monkeypatch: pytest.MonkeyPatch, by_mallopt: bool) -> None:
    sizes: list[int] = []
    kept: list[int] = []
    monkeypatch.setattr(freed_memory, "requested", 0)
    monkeypatch.setattr(freed_memory, "bytes", sizes.append, raising=False)

    def ask(most: int) -> bool:
        kept.append(most)
        return by_mallopt

    for most in (32 << 20, 32 << 20, 160 << 20, 160 << 20, 32 << 20):
        freed_memory.keep_freed_memory(most, ask)
    assert kept == [160 << 20]
    assert sizes == ([16 << 20] if by_mallopt else [16 << 20, 31 << 20])


def test_a_block_for_which_there_is_no_memory_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "requested", 0)
    freed_memory.keep_freed_memory(sys.maxsize)
