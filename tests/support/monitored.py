"""A program with monitored pools, and terminals to watch it from."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import Script, pool_script

PATIENCE = 20.0  # seconds until what a terminal shows counts as missing

#: Two pools, each with tasks that wait for the end of the program.
TWO_POOLS = pool_script("""
async with Pool(2, monitor=True) as first, Pool(1, monitor=True) as second:
    await first.map(workload.double, range(40))
    calls = [pool.apply(asyncio.sleep, (1000,)) for pool in (first, second)]
    print("pid", os.getpid(), flush=True)
    await asyncio.gather(*calls)
""")

BLOCKED = pool_script("""
async with Pool(1, monitor=True) as pool:
    await pool.apply(workload.two)
    print("pid", os.getpid(), flush=True)
    time.sleep(1000)
""")


async def pid_of(program: Script) -> int:
    """The process of a program, once its pools run."""
    (pid,) = await program.line("pid")
    return int(pid)


def open_sockets() -> list[int]:
    """The inodes of the sockets that this process has open (Linux)."""
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(100) if _is_open(fd)]
    return [int(link[8:-1]) for link in links if link.startswith("socket:[")]


def _is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


class Terminal:
    """A command of the package in a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self._received = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aiomultiprocess", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=Path(__file__).parent,  # the root holds a folder amp_ext
            env={**os.environ, "TERM": "xterm", "COLUMNS": "110", "LINES": "40", **environment},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        self._theirs = theirs  # kept open, so that its settings can be looked at after the end

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self._theirs)

    @property
    def shown(self) -> str:
        """What was written by now, without the codes for colours and places."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)

    @property
    def raw(self) -> str:
        """What was written by now."""
        return self._received.decode(errors="replace")

    def until(self, text: str) -> None:
        """Read until a text was shown."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(text, self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 0.1)[0]:
                self._received += os.read(self._fd, 1 << 16)

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

    def finish(self) -> int:
        """Read until it has ended; its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            self._drain(0.05)
        self._drain(0.0)
        return self.process.returncode

    def _drain(self, seconds: float) -> None:
        while select.select([self._fd], [], [], seconds)[0]:
            self._received += os.read(self._fd, 1 << 16)

    def settings(self) -> Any:
        """Those of the terminal, such as its echo."""
        import termios

        return termios.tcgetattr(self._theirs)


def _take_terminal() -> None:
    """Let Ctrl-C in the terminal reach the command."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def without_rich(folder: Path) -> Iterator[str]:
    """A path for PYTHONPATH by which rich cannot be imported."""
    (folder / "rich.py").write_text("raise ImportError('not installed')\n")
    yield str(folder)
