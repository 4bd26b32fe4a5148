"""A main module without a guard: the parent's error says so, and no child prints a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support import Script, run_script

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.skipif(sys.platform == "win32", reason="start methods and programs of POSIX"),
]

METHODS = pytest.mark.parametrize("method", ["spawn", "forkserver"])
GUARD = 'must be below `if __name__ == "__main__":`)'


def unguarded(folder: Path, method: str, body: str, before: str = "") -> Script:
    """Run a program whose coroutine `main` has this body, and which has no guard."""
    program = f"""
import asyncio, logging
import core_targets
from aiomultiprocess import Pool, Process, Worker, set_start_method

set_start_method("{method}")
{before}

async def main():
    {body}

asyncio.run(main())
"""
    return run_script(folder, program, within=20)


CALLS = {
    "pool": "async with Pool(3) as pool: print(await pool.map(abs, range(10)))",
    "pool without a block": "pool = Pool(2); await pool.apply(abs, (1,))",
    "group": "async with asyncio.TaskGroup() as group: group.create_task(Pool(1).apply(abs, (1,)))",
    "worker": "print(await Worker(target=core_targets.get_pid))",
    "logged": "\n".join(
        [
            "try:",
            "        await Worker(target=core_targets.get_pid)",
            "    except Exception:",
            "        logging.exception('mine')",
            "        raise",
        ]
    ),
}


@pytest.mark.row("G70", "E41")
@METHODS
@pytest.mark.parametrize("call", CALLS)
def test_a_forgotten_guard_is_named_by_the_parents_error_alone(
    tmp_path: Path, method: str, call: str
) -> None:
    script = unguarded(tmp_path, method, CALLS[call])
    assert script.process.returncode == 1
    assert script.out == ""
    assert GUARD in script.err.splitlines()[-2 if call == "group" else -1]
    tracebacks = 2 if call == "logged" else 1  # of the parent
    assert script.err.count("Traceback (most recent call last)") == tracebacks, script.err
    assert "RuntimeError" not in script.err
    assert "bootstrapping" not in script.err


@pytest.mark.row("G70", "E41")
@METHODS
def test_a_process_whose_main_module_has_no_guard_prints_one_line(
    tmp_path: Path, method: str
) -> None:
    body = "process = Process(target=core_targets.get_pid); process.start(); await process.join()"
    script = unguarded(tmp_path, method, body + "; print(process.exitcode)")
    assert script.out == "1\n"
    (line,) = script.err.splitlines()
    assert "the main module starts a process when it is imported" in line
    assert '`if __name__ == "__main__":`' in line


@pytest.mark.row("G70")
@METHODS
def test_the_name_of_a_process_is_its_own_again_once_it_has_started(
    tmp_path: Path, method: str
) -> None:
    program = f"""
        import asyncio
        import core_targets
        from aiomultiprocess import Worker, set_start_method

        set_start_method("{method}")

        async def main():
            worker = Worker(target=core_targets.process_name, name="mine")
            print(await worker, worker.name)

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert (script.out, script.err) == ("mine mine\n", "")


@pytest.mark.row("G70")
def test_a_child_of_another_library_gets_multiprocessings_own_error(tmp_path: Path) -> None:
    program = """
        import asyncio
        import multiprocessing
        import core_targets
        from aiomultiprocess import Worker

        async def main():
            await Worker(target=core_targets.get_pid)

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=print)
            process.start()
            process.join()
        else:
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert "bootstrapping" in script.err
