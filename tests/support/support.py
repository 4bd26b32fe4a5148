"""What tests share in the parent: meetings with items, scripts, waiting for processes to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterable, Iterable
from pathlib import Path
from typing import Any, Self

import psutil

import leaks
from workload import HOST

#: How many times as long a script may take, on an emulated machine.
PATIENCE = float(os.environ.get("AIOMULTIPROCESS_TEST_PATIENCE", "1"))

TESTS = Path(__file__).resolve().parents[1]

#: Where scripts and their workers find the functions that tests give them.
TEST_PATH = os.pathsep.join(
    str(folder) for folder in sorted(TESTS.iterdir()) if folder.is_dir() and folder.name[0] != "_"
)


async def outcomes(results: AsyncIterable[Any]) -> list[Any]:
    """Every item's result, or its error, in order."""
    found: list[Any] = []
    iterator = aiter(results)
    while True:
        try:
            found.append(await anext(iterator))
        except StopAsyncIteration:
            return found
        except Exception as error:  # noqa: BLE001 - the item's own
            found.append(error)


def lines(path: Path) -> list[str]:
    """What workers noted in a file (`workload.note`), by now."""
    return path.read_text().splitlines() if path.exists() else []


# -- meetings ------------------------------------------------------------------------------------


class Arrival(asyncio.Protocol):
    """One item that called in: who it is, and the means to let it go."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        self._received = b""
        self._transport: Any = None
        self.pid = 0
        self.token = ""
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._meeting.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\n"):
            pid, _, token = self._received.decode().strip().partition(" ")
            self.pid, self.token = int(pid), token
            self._meeting.arrivals.put_nowait(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def release(self, answer: str = "go") -> None:
        """Let the item go on; `answer` is what its call returns."""
        self._transport.write(f"{answer}\n".encode())


class Meeting:
    """Where items call in (`workload.meet`) and wait: a test sees them running, and decides."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self.transports: list[asyncio.BaseTransport] = []
        self.port = 0
        self._server: Any = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Arrival(self), HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for transport in self.transports:
            transport.close()
        await asyncio.sleep(0)  # transports are closed in the next turn of the loop

    async def next(self) -> Arrival:
        """The next item to call in."""
        return await self.arrivals.get()

    async def first(self, count: int) -> list[Arrival]:
        """The next `count` items to call in, all of them running now."""
        return [await self.next() for _ in range(count)]

    async def release_all(self, count: int) -> None:
        """Let the next `count` items go, each as it calls in."""
        for _ in range(count):
            (await self.next()).release()

    async def release_together(self, count: int) -> list[Arrival]:
        """Let the next `count` items go once all of them have called in."""
        arrivals = await self.first(count)
        for arrival in arrivals:
            arrival.release()
        return arrivals


# -- processes -----------------------------------------------------------------------------------


async def wait_for_exit(pids: Iterable[int], within: float = 5.0) -> None:
    """Until none of `pids`, children of this process or orphans that it adopted, is left.

    The process table has no events for orphans, so this looks again and again, for a bounded time.
    """
    left = set(pids)
    deadline = time.monotonic() + within
    while True:
        left = {pid for pid in left if not has_ended(pid)}
        if not left:
            return
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes {sorted(left)} did not end within {within} s")
        await asyncio.sleep(0.01)


async def until_exists(path: str) -> None:
    """Wait for a file that a worker makes; the limit of the test ends it."""
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)


def has_ended(pid: int) -> bool:
    """Whether a process is over; an adopted one is reaped, as init would."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        if process.ppid() == os.getpid():  # while a thread of it ends, it cannot be reaped
            return os.waitpid(pid, os.WNOHANG)[0] == pid
    except (psutil.NoSuchProcess, ChildProcessError):
        return True
    return True


def block_until_dead(pid: int) -> None:
    """Hold this whole process, its event loop too, until a child and all its threads are dead.

    It is not reaped. A process counts as a zombie before that, as soon as its first thread is.
    """
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    process = psutil.Process(pid)  # macOS, before CPython 3.13
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)


# -- scripts -------------------------------------------------------------------------------------


class Script:
    """A program of its own, in a session of its own, with its output in files."""

    def __init__(self, folder: Path, source: str, *options: str, name: str = "program.py") -> None:
        self.path = folder / name
        self.path.write_text(textwrap.dedent(source))
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        path = os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *options, str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self.process.poll() is None:
            self.kill_group()
            self.process.wait()
        if kind is None:
            assert not leaks.COMPLAINTS.search(self.err), self.err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def kill_group(self, signum: int | None = None) -> None:
        """What a terminal does on Ctrl-C: the signal reaches the script and its workers.

        SIGKILL, if none is given.
        """
        os.killpg(self.process.pid, signal.SIGKILL if signum is None else signum)

    def finish(self, within: float = 20.0) -> Self:
        """Wait until it has ended by itself."""
        try:
            self.process.wait(within * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_group()
            self.process.wait()
            raise AssertionError(
                f"the script did not end within {within} s\n{self.out}\n{self.err}"
            ) from None
        return self

    async def line(self, start: str, within: float = 20.0) -> list[str]:
        """Until it has printed a line that begins with `start`: the words after it."""
        deadline = time.monotonic() + within
        while True:
            for line in self.out.splitlines(keepends=True):
                if line.startswith(start) and line.endswith("\n"):
                    return line[len(start) :].split()
            assert self.process.poll() is None, f"ended early\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"never said {start!r}\n{self.out}\n{self.err}"
            await asyncio.sleep(0.01)  # a file has no events


def pool_script(body: str, *, setup: str = "", call: str = "asyncio.run(main())") -> str:
    """A script whose coroutine `main` has this body."""
    lines = ["import asyncio, os, signal, sys, time, gc", "import mishaps, workload"]
    lines += ["from aiomultiprocess import Pool, set_start_method", setup]
    lines += ["async def main():", *("    " + line for line in body.strip("\n").splitlines())]
    lines += ['if __name__ == "__main__":', *("    " + line for line in call.splitlines())]
    return "\n".join(lines) + "\n"


def run_script(folder: Path, source: str, *options: str, within: float = 20.0) -> Script:
    """Run a program to its end."""
    with Script(folder, source, *options) as script:
        return script.finish(within)
