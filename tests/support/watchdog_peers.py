"""The other processes of test_watchdog.py: `python watchdog_peers.py MODE NATIVE SOURCE`.

This process is the parent: it starts one child by multiprocessing and waits to be killed. The child
starts the watchdog, writes "ready" to stdout, and then does what MODE says.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from aiomultiprocess._worker import watchdog

GRACE = 0.3  # seconds


def say(text: str) -> None:
    """Write to stdout, which is the test's pipe, by one system call."""
    os.write(1, text.encode())


class Child:
    """What the child runs: watches the parent, and is idle, ignores signals or is busy."""

    def __init__(self, mode: str, native: bool, pidfd: int | None) -> None:
        self.mode = mode
        self.native = native
        self.pidfd: Any = pidfd
        self.parent_pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"pidfd": None if self.pidfd is None else reduction.DupFd(self.pidfd)}

    def __call__(self) -> None:
        if self.mode != "idle":
            signal.signal(signal.SIGTERM, lambda *_: say(" term"))
        native = native_start() if self.native else None
        pidfd = self.pidfd.detach() if hasattr(self.pidfd, "detach") else self.pidfd
        watchdog.start(pidfd, self.parent_pid, GRACE, native=native)
        if self.mode == "holds the GIL":
            hold_the_gil()
        woken, wake = os.pipe()  # a signal that comes before we wait is not missed
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake)
        say("ready")
        while True:
            os.read(woken, 1)


def hold_the_gil() -> None:
    """Say "ready" and never return to Python code, where a signal handler could run."""
    ready = map(os.write, (1,), (b"ready",))
    collections.deque(itertools.chain(ready, itertools.repeat(None)), maxlen=0)


def native_start() -> Callable[[int, int, float], None]:
    """The extension's part, without the rest of the extension."""
    from amp_ext.watchdog import start

    return start


def parent(mode: str, native: bool, source: str, method: str) -> None:
    """Start the child and wait to be killed."""
    context: Any = multiprocessing.get_context(method)
    pidfd = os.pidfd_open(os.getpid()) if source == "pidfd" else None
    process = context.Process(target=Child(mode, native, pidfd))
    process.start()
    process.join()


if __name__ == "__main__":
    parent(sys.argv[1], sys.argv[2] == "native", sys.argv[3], sys.argv[4])
