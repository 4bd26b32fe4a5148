"""Code of a session (a notebook, `python -c`, stdin) or of a package's `__main__`: one hint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import TEST_PATH

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="start methods and programs of POSIX"),
]

#: What a session defines, and its attempts to use it; prints one line for each.
SESSION = """
import asyncio, sys
import core_targets, workload
from aiomultiprocess import Pool, Process, Worker, set_start_method

class Point:
    pass

class Result(Exception):
    pass

async def mine(value=0):
    return value

def begin(*args):
    pass

async def attempts():
    async def apply(*args, **options):
        async with Pool(1, **options) as pool:
            await pool.apply(*args)
    async def items():
        async with Pool(1) as pool:
            await pool.map(workload.identity, [Point()])
    yield "function", apply(mine, (1,))
    yield "item", items()
    yield "argument", apply(workload.identity, (Point(),))
    yield "exception class", apply(workload.identity, (Result,))
    yield "initializer", apply(workload.two, initializer=begin)
    yield "initargs", apply(workload.two, initializer=workload.set_greeting, initargs=(Point(),))
    yield "exception_handler", apply(workload.two, exception_handler=begin)
    yield "worker", Worker(target=mine).join_started()
    yield "worker args", Worker(target=core_targets.echo, args=(Point(),)).join_started()

async def main():
    async with Pool(1) as pool:
        print("imported:", await pool.map(workload.double, range(3)))
    async for name, attempt in attempts():
        try:
            await attempt
        except Exception as error:
            print(name + ":", str(error).splitlines()[-1])
        else:
            print(name + ": works")
    process = Process(target=mine)
    process.start()
    await process.join()
    print("process:", process.exitcode)

async def join_started(self):
    self.start()
    return await self.join()

Worker.join_started = join_started
"""

START = """
for method in sys.argv[1:]:
    set_start_method(method)
    print("method", method)
    asyncio.run(main())
"""

NAMES = (
    "function",
    "item",
    "argument",
    "exception class",
    "initializer",
    "initargs",
    "exception_handler",
    "worker",
    "worker args",
)


def run(folder: Path, *command: str, source: str = "") -> tuple[str, str]:
    """Run Python and give it `source` on stdin; what it has printed on both streams."""
    done = subprocess.run(
        [sys.executable, "-Wignore", *command],
        input=source,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": TEST_PATH, "PYTHON_BASIC_REPL": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,  # helpers of multiprocessing outlive it for a moment
    )
    return done.stdout, done.stderr


def assert_hinted(out: str, err: str, module: str = "__main__") -> None:
    """One hint, whatever it was that was not found, and no traceback but that of the Process."""
    said = dict(re.findall(r"^(?:>>> |\.\.\. )*([a-z_ ]+): (.*)$", out, re.MULTILINE))
    assert said.get("imported") == "[0, 2, 4]", out + err
    for name in NAMES:
        assert "must be importable in a worker" in said[name], (name, out, err)
        assert "in a session (a notebook" in said[name]
        assert "`python -m package`" in said[name]
        assert "AttributeError: " in said[name]
    assert f"{module}.mine" in said["function"]
    assert "item 0 of a call of workload.identity" in said["item"]
    assert said["process"] == "1"
    assert err.count("Traceback") <= 1
    assert "must be importable in a worker" in err.splitlines()[-1]


@pytest.mark.row("G63")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_program_of_dash_c_gets_a_hint_what_workers_cannot_import(
    tmp_path: Path, method: str
) -> None:
    assert_hinted(*run(tmp_path, "-c", SESSION + START, method))


@pytest.mark.row("G63")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_program_from_stdin_runs_and_gets_a_hint_what_workers_cannot_import(
    tmp_path: Path, method: str
) -> None:
    assert_hinted(*run(tmp_path, "-", method, source=SESSION + START))


@pytest.mark.row("G63")
def test_an_interactive_session_gets_a_hint_what_workers_cannot_import(tmp_path: Path) -> None:
    session = SESSION.replace("\n\n", "\n") + "\nasyncio.run(main())\n"
    session = re.sub(
        r"\n(?=(class|async def|def|Worker\.|import|from|asyncio\.) ?)", "\n\n", session
    )
    out, err = run(tmp_path, "-q", "-i", source=session)
    assert_hinted(out, "\n".join(line for line in err.splitlines() if not line.startswith(">>>")))


@pytest.mark.row("G63")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_package_gets_a_hint_that_workers_do_not_import_its_main_module(
    tmp_path: Path, method: str
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    guard = "if __name__ == '__main__':"
    (package / "__main__.py").write_text(SESSION + guard + START.replace("\n", "\n    "))
    assert_hinted(*run(tmp_path, "-m", "package", method))


@pytest.mark.row("G63")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_code_below_the_guard_gets_the_same_hint(tmp_path: Path, method: str) -> None:
    guard = "if __name__ == '__main__':"
    (tmp_path / "program.py").write_text(guard + (SESSION + START).replace("\n", "\n    "))
    assert_hinted(*run(tmp_path, "program.py", method))


@pytest.mark.row("G63")
def test_under_fork_the_code_of_a_session_runs(tmp_path: Path) -> None:
    out, err = run(tmp_path, "-c", SESSION + START, "fork")
    for name in NAMES:
        assert f"{name}: works" in out, out + err
    assert "process: 0" in out


@pytest.mark.row("G63")
def test_a_program_from_stdin_keeps_its_file_name(tmp_path: Path) -> None:
    source = SESSION + "\nasyncio.run(Worker(target=core_targets.echo).join_started())\n"
    out, err = run(tmp_path, "-", source=source + "print(globals().get('__file__'))\n")
    expected, _ = run(tmp_path, "-", source="print(globals().get('__file__'))\n")
    assert (out, err) == (expected, "")
