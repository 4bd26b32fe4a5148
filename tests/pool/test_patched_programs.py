"""Programs that change the standard library before or after they import the package."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import aiomultiprocess
from support import Script, run_script

NAMES = [
    name
    for name in aiomultiprocess.__all__
    if not name.startswith("__") and aiomultiprocess._HOMES[name] in ("core", "pool")
]


# -- an import that fails --------------------------------------------------------------------------


def said_without_a_name(statement: str) -> str:
    """What `statement` prints where multiprocessing lacks a name that our import uses."""
    source = f"import multiprocessing.context as context\ndel context.SpawnProcess\n{statement}\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.row("G75")
@pytest.mark.parametrize("name", [*NAMES, "core", "pool"])
def test_the_reason_of_a_failed_import_is_shown_as_its_cause(name: str) -> None:
    for statement in (
        f"from aiomultiprocess import {name}",
        f"import aiomultiprocess; aiomultiprocess.{name}",
    ):
        said = said_without_a_name(statement)
        *_, last = said.splitlines()
        missing = "module 'multiprocessing.context' has no attribute 'SpawnProcess'"
        assert last == (
            f"ImportError: aiomultiprocess.{name} cannot be imported, because of an "
            f"AttributeError: {missing}"
        )
        cause, direct, _ = said.partition("The above exception was the direct cause")
        assert direct
        assert f"AttributeError: {missing}" in cause
        assert "spawn.py" in cause  # the line that looks it up


@pytest.mark.row("G75")
def test_a_name_that_does_not_exist_is_still_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pond'"):
        aiomultiprocess.Pond  # noqa: B018
    assert not hasattr(aiomultiprocess, "Pond")


# -- an import that works --------------------------------------------------------------------------

PROGRAM = """
{before}
import asyncio, sandboxed
from aiomultiprocess import Pool, Process, Worker, set_start_method
{after}

async def size(data):
    return len(data), bytes(data)

async def main():
    print(await sandboxed.use_all({backend!r}))
    assert await Worker(target=size, args=(bytes(3 << 20),)) == (3 << 20, bytes(3 << 20))
    async with Pool(2, initializer=len, initargs=(bytes(1 << 20),)) as pool:
        items = [bytes([at]) * 1000 for at in range(200)]
        assert await pool.map(size, items) == [(1000, item) for item in items]
        sleeping = asyncio.ensure_future(pool.apply(asyncio.sleep, (60,)))
        assert await pool.apply(size, (b"a",)) == (1, b"a")
        sleeping.cancel()
        [error] = await asyncio.gather(sleeping, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError)
        assert await asyncio.to_thread(len, b"abc") == 3

if __name__ == "__main__":
    set_start_method({method!r})
    {guarded}
    asyncio.run(main())
    print("done")
"""
NO_EPOLL = """
import select, selectors
del select.epoll, selectors.EpollSelector
selectors.DefaultSelector = selectors.PollSelector
"""
GEVENT = "from gevent import monkey; monkey.patch_all()"
EXIT_CODES = "3 4 -15"
#: Each of the codes may be taken, as gevent is faster or not.
TAKEN = [
    " ".join(codes) for codes in itertools.product(*((code, "None") for code in EXIT_CODES.split()))
]


def run_patched(
    folder: Path, backend: str, method: str, before: str = "", after: str = "", guarded: str = ""
) -> Script:
    source = PROGRAM.format(
        backend=backend, method=method, before=before, after=after, guarded=guarded
    )
    return run_script(folder, source, "-Wignore", within=60)


def said(folder: Path, backend: str, method: str, **patch: str) -> list[str]:
    script = run_patched(folder, backend, method, **patch)
    assert (script.process.returncode, script.err) == (0, ""), script.err
    return script.out.splitlines()


@pytest.mark.row("G75")
@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
@pytest.mark.parametrize("when", ["before", "after"])
def test_without_epoll_pools_run(
    when: str, backend: str, start_method: str, tmp_path: Path
) -> None:
    found = said(tmp_path, backend, start_method, **{when: NO_EPOLL})
    assert found == [f"{backend} {EXIT_CODES}", "done"]


@pytest.mark.row("G75")
@pytest.mark.skipif(sys.platform == "win32", reason="a selector loop of gevent's")
@pytest.mark.parametrize("when", ["before", "after", "guarded"])
def test_after_the_patches_of_gevent_pools_run(
    when: str, backend: str, start_method: str, tmp_path: Path
) -> None:
    if start_method == "forkserver" and sys.version_info >= (3, 14):
        hint = run_patched(tmp_path, backend, start_method, **{when: GEVENT}).err
        assert hint.endswith('Use the start method "spawn".\n')
        return
    codes, done = said(tmp_path, backend, start_method, **{when: GEVENT})
    # gevent reaps what is forked after its patches, and keeps the exit codes (README, Hazards)
    known = [EXIT_CODES] if start_method != "fork" else TAKEN
    assert codes.removeprefix(f"{backend} ") in known
    assert done == "done"
