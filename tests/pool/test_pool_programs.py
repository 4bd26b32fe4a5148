"""How programs with a pool are started: by options, from a session, frozen; and pools in workers.

A number such as E45 is that of the row in the catalogue of failures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import workload
from aiomultiprocess import Worker
from support import TEST_PATH, run_script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="start methods and programs of POSIX"),
]

# -- options (E45) ---------------------------------------------------------------------------------

PROGRAM = """
import asyncio
import sys

sys.path[:0] = {path!r}
from aiomultiprocess import Pool, set_start_method

async def double(value):
    return value * 2

async def main():
    for method in "spawn", "forkserver", "fork":
        set_start_method(method)
        async with Pool(1) as pool:
            print(await pool.map(double, range(3)))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.row("E45")
@pytest.mark.parametrize("options", [(), ("-I",), ("-m", "program")], ids=["script", "-I", "-m"])
def test_functions_of_the_main_module_run_in_workers(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    script = run_script(tmp_path, PROGRAM.format(path=sys.path), "-Wignore", *options)
    assert (script.out, script.err) == ("[0, 2, 4]\n" * 3, "")


# -- interactive sessions (E45) --------------------------------------------------------------------

CELL = """
import asyncio
import workload
from aiomultiprocess import Pool, ProxyException, set_start_method

async def of_the_session(value):
    return value * 2

async def main(function):
    async with Pool(1) as pool:
        return await pool.map(function, range(3))

print("imported:", asyncio.run(main(workload.double)))
try:
    asyncio.run(main(of_the_session))
except ProxyException as error:
    print("refused:", error)

set_start_method("fork")
print("forked:", asyncio.run(main(of_the_session)))
"""


@pytest.mark.row("E45")
def test_a_function_of_an_interactive_session_runs_under_fork_and_has_a_hint_elsewhere(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-i", "-q", "-Wignore"],
        input=CELL,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": TEST_PATH},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout
    assert "Error" not in done.stderr
    assert "imported: [0, 2, 4]" in said
    assert "refused: AttributeError: " in said
    assert "__main__.of_the_session could not be unpickled in a worker" in said
    assert "must be importable in a worker" in said
    assert "forked: [0, 2, 4]" in said


NOTEBOOK = """
import workload
from aiomultiprocess import Pool
pool = Pool(2)
print("cell:", await pool.map(workload.double, range(3)))
print("next cell:", await pool.apply(workload.double, ("again ",)))
pool.close()
await pool.join()
print("gone:", pool.processes)
"""


@pytest.mark.row("E45")
def test_cells_that_await_in_a_loop_that_runs_all_the_time_share_a_pool(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-q", "-m", "asyncio"],
        input=NOTEBOOK,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": TEST_PATH, "PYTHON_BASIC_REPL": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Error" not in done.stderr
    said = done.stdout
    assert "cell: [0, 2, 4]" in said
    assert "next cell: again again" in said
    assert "gone: {}" in said


# -- frozen programs (E45) -------------------------------------------------------------------------

FROZEN = """
    #!{python}
    import asyncio
    import multiprocessing
    import sys

    sys.frozen = True  # what makers of such programs set; the program is its own interpreter
    sys.path[:0] = {path!r}
    multiprocessing.set_executable(__file__)

    import workload
    from aiomultiprocess import Pool
    from multiprocessing.spawn import freeze_support

    async def main():
        async with Pool(2) as pool:
            print(await pool.map(workload.double, range(3)), flush=True)

    if __name__ == "__main__":
        {support}
        asyncio.run(main())
"""


def frozen(folder: Path, support: str) -> subprocess.CompletedProcess[str]:
    """Run a program that stands for a frozen one; its children begin as it does."""
    path = folder / "frozen"
    source = textwrap.dedent(FROZEN).lstrip()
    path.write_text(source.format(python=sys.executable, path=sys.path, support=support))
    path.chmod(0o755)
    return subprocess.run([str(path)], capture_output=True, text=True, timeout=60, cwd=folder)


@pytest.mark.row("E45")
def test_a_frozen_program_that_calls_freeze_support_works(tmp_path: Path) -> None:
    done = frozen(tmp_path, "freeze_support()")
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 2, 4]\n", "", 0)


@pytest.mark.row("E45")
def test_a_frozen_program_without_freeze_support_gets_an_error_and_does_not_multiply(
    tmp_path: Path,
) -> None:
    done = frozen(tmp_path, "pass")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "multiprocessing.freeze_support()" in done.stderr
    assert len(done.stderr) < 20_000  # no recursion


# -- pools in workers (E44) ------------------------------------------------------------------------


@pytest.mark.row("E44")
async def test_a_pool_in_a_worker_process_works(start_method: str) -> None:
    assert await Worker(target=workload.use_a_pool, args=(3,)) == [0, 2, 4]


@pytest.mark.row("E44")
async def test_a_pool_in_a_daemon_is_refused_with_the_reason(start_method: str) -> None:
    result = await Worker(target=workload.use_a_pool, args=(3,), daemon=True)
    assert "daemonic processes are not allowed to have children" in str(result)
