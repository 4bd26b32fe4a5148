"""How the workers of tests start: those over `shm` by spawn, those over `pipe` by a fork server.

Most tests ask for a backend and say nothing of a start method. Each of them runs over both backends
and by both methods, in two runs and not four. It also takes less time: a spawned worker imports
asyncio and the package, 0.12 s of CPU time; one of a fork server that has imported them starts in
0.02 s. Tests of start methods ask for `start_method`; tests
whose workers must be children of this process, or inherit its environment or stderr, ask for
`capfd` or are marked `spawned`. AIOMULTIPROCESS_TEST_START=spawn (or forkserver) is the method
over both backends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

SPAWN, FORK_SERVER = "spawn", "forkserver"
_OF_BACKENDS = {"shm": SPAWN, "pipe": FORK_SERVER}
_shared_pid: int | None = None
_FOR_ALL = os.environ.get("AIOMULTIPROCESS_TEST_START")


def method_over(backend: str) -> str:
    """The start method of a test that asks for this backend and for no method."""
    if FORK_SERVER not in multiprocessing.get_all_start_methods():
        return SPAWN
    return _FOR_ALL or _OF_BACKENDS[backend]


def provide_fork_server(*, shared: bool) -> None:
    """Have the fork server of all tests run, or none: tests of start methods start their own.

    The shared one starts within a test, whose stderr is captured. It would look for modules in its
    folder first, and the folder amp_ext of a checkout has no extension.
    """
    global _shared_pid
    if FORK_SERVER not in multiprocessing.get_all_start_methods():
        return
    if not shared and _shared_pid is not None:
        _stop_fork_server()
        _shared_pid = None
    elif shared and _shared_pid is None:
        multiprocessing.set_forkserver_preload(["aiomultiprocess._worker.main"])
        with contextlib.chdir(Path(__file__).parent):
            forkserver.ensure_running()
        multiprocessing.set_forkserver_preload(["__main__"])  # which is CPython's own choice
        _shared_pid = pid_of_fork_server()


def end_fork_server_of_test() -> None:
    """End the fork server that a test has started."""
    if pid_of_fork_server() != _shared_pid:
        _stop_fork_server()


def _stop_fork_server() -> None:
    forkserver._forkserver._stop()  # as CPython's own test suite does: there is no public way


def pid_of_fork_server() -> int | None:
    """The one that runs."""
    pid: int | None = forkserver._forkserver._forkserver_pid
    return pid
