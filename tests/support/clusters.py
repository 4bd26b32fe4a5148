"""A dask cluster on this machine, as programs of its own: a scheduler, and workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import leaks
from networks import Network
from support import TEST_PATH

PATIENCE = 30.0  # seconds until a part of a cluster that has not started counts as broken


class Dask:
    """A scheduler, and workers that come and go.

    Use it as `with Dask(folder) as dask`. A part is a program of dask's, in a session of its own.
    """

    def __init__(
        self, folder: Path, *options: str, nanny: bool = False, behind: Network | None = None
    ) -> None:
        """`behind`: a network of which only the scheduler is reached from here."""
        self.folder = folder
        self.behind = behind
        self.options = options  # of the scheduler, and of each worker
        self.nanny = nanny
        self.scheduler: Any = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.file = folder / "scheduler.json"

    def __enter__(self) -> Self:
        self.scheduler = self._run(
            "scheduler",
            *("--port", "0", "--scheduler-file", str(self.file), "--no-show"),
            *(["--host", self.behind.address] if self.behind else []),
            before=self.behind.command if self.behind else [],
        )
        self.until(self.file.exists)
        self.until(lambda: bool(self.file.read_text()))
        self.address = str(json.loads(self.file.read_text())["address"])
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.workers):
            self.stop(name)
        stop(self.scheduler)

    def add(
        self, *names: str, threads: int = 1, network: Network | None = None, preload: str = ""
    ) -> Self:
        """Start workers with these names, and wait until the scheduler knows them."""
        network = network or self.behind
        address = "127.0.0.1" if self.behind else network.address if network else ""
        for name in names:
            self.workers[name] = self._run(
                "worker",
                *("--scheduler-file", str(self.file)),
                *("--name", name, "--nthreads", str(threads), "--memory-limit", "0"),
                *("--local-directory", str(self.folder)),
                "--nanny" if self.nanny else "--no-nanny",
                *(["--host", address] if address else []),
                *(["--preload", preload] if preload else []),
                label=name,
                before=network.command if network else [],
            )
        for name in names:
            self.until(lambda name=name: "Registered to" in self.said(name))  # type: ignore[misc]
        return self

    def said(self, label: str) -> str:
        """What a part has written by now."""
        return (self.folder / f"{label}.log").read_text()

    def stop(self, name: str, signum: int = signal.SIGTERM) -> None:
        """End a worker, and wait for it."""
        stop(self.workers.pop(name), signum)

    def signal(self, name: str, signum: int) -> None:
        """Send a signal to a worker, or below a nanny to that alone."""
        self.workers[name].send_signal(signum)

    def until(self, reached: Any) -> None:
        """Wait for the programs, which tell nothing but by their files."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline, {
                path.name: path.read_text() for path in self.folder.glob("*.log")
            }
            time.sleep(0.02)

    def _run(
        self, part: str, *options: str, label: str = "", before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        module = f"distributed.cli.dask_{part}"
        path = os.pathsep.join([TEST_PATH, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        # -P: not from the current folder, whose amp_ext has no modules if it is the project's root
        with (self.folder / f"{label or part}.log").open("ab") as log:
            process = subprocess.Popen(
                [*before, sys.executable, "-Pm", module, *options, "--no-dashboard", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__COMM__RETRY__COUNT": "0"},
                start_new_session=True,
            )
        leaks.SHARED.add(process.pid)
        return process


def stop(process: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> None:
    """End a program, by force if it does not go."""
    process.send_signal(signum)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
