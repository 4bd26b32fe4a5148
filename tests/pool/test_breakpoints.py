"""A debugger at a terminal, in a task of an inline pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="needs terminals of POSIX")

PROGRAM = """
import asyncio
import sys
from aiomultiprocess import Pool

def stepped(value):
    breakpoint()
    half = value / 2
    return half

async def halved(value):
    half = value / 2
    breakpoint()
    await asyncio.sleep(0)
    return half

def failing(value):
    raise LookupError(value)

async def main():
    async with Pool(2, backend="inline") as pool:
        if sys.argv[1:]:
            print("got", await pool.apply(stepped, (42,)))
            return
        print("got", await pool.map(halved, [42, 5]))
        try:
            await pool.apply(failing, ("lost",))
        except Exception as error:
            print("failed:", error)

if __name__ == "__main__":
    asyncio.run(main())
"""


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        self._fd, theirs = pty.openpty()
        environ = {**os.environ, "TERM": "dumb", "PYTHON_COLORS": "0", "PYTHON_BASIC_REPL": "1"}
        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environ,
        )
        os.close(theirs)
        self._read = ""

    def expect(self, text: str) -> str:
        """Read until `text` comes; returns what came before it."""
        while text not in self._read:
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # the program has closed the terminal
                data = b""
            assert data, f"no {text!r} in {self._read!r}"
            self._read += data.decode(errors="replace")
        before, _, self._read = self._read.partition(text)
        return before

    def send(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    terminal = Terminal(sys.executable, "-P", str(program), *getattr(request, "param", ()))
    yield terminal
    terminal.close()


def test_a_breakpoint_in_a_task_is_a_session_at_the_terminal(terminal: Terminal) -> None:
    for half in ("21.0", "2.5"):
        terminal.expect("(Pdb) ")
        terminal.send("p half")
        terminal.expect(f"\n{half}")
        terminal.expect("(Pdb) ")
        terminal.send("c")
    terminal.expect("got [21.0, 2.5]")
    shown = terminal.expect("LookupError: lost")
    assert "failed: Traceback" in shown
    assert "in failing" in shown
    assert terminal.process.wait() == 0


@pytest.mark.parametrize("terminal", [["stepped"]], indirect=True)
def test_a_debugger_steps_through_a_task_and_changes_its_variables(terminal: Terminal) -> None:
    while "-> return half" not in terminal.expect("(Pdb) "):
        terminal.send("n")
    terminal.send("half = 8")
    terminal.expect("(Pdb) ")
    terminal.send("c")
    terminal.expect("got 8")
    assert terminal.process.wait() == 0


@pytest.mark.parametrize("terminal", [["stepped"]], indirect=True)
def test_to_quit_the_debugger_ends_the_program(terminal: Terminal) -> None:
    terminal.expect("(Pdb) ")
    terminal.send("q")
    if sys.version_info >= (3, 14):
        terminal.expect("[y/n]")
        terminal.send("y")
    terminal.expect("Traceback")
    assert terminal.process.wait() == 1
