"""A worker whose parent is gone ends, whatever it is doing."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import pytest

import watchdog_peers
import workload
from aiomultiprocess import Pool
from aiomultiprocess._worker import watchdog

BUILT = find_spec("amp_ext") is not None and find_spec("amp_ext.watchdog") is not None
needs_extension = pytest.mark.skipif(not BUILT, reason="the extension is not built")
NATIVE = pytest.param("native", marks=needs_extension)
SOURCES = ["pidfd", "sentinel"] if hasattr(os, "pidfd_open") else ["sentinel"]
LIMIT = 5.0  # seconds


@contextmanager
def family(mode: str, native: str, source: str, method: str) -> Iterator[subprocess.Popen[bytes]]:
    """A parent with one watching child; the child's output, and its end, show in stdout."""
    command = [sys.executable, watchdog_peers.__file__, mode, native, source, method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert os.read(process.stdout.fileno(), 5) == b"ready"
            yield process
        finally:
            with suppress(ProcessLookupError):  # all gone, as it should be
                os.killpg(process.pid, signal.SIGKILL)


def orphan(mode: str, native: str, source: str, method: str) -> tuple[bytes, float]:
    """Kill the parent; what the child printed, and after how many seconds it was gone."""
    with family(mode, native, source, method) as process:
        began = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        said = process.stdout.read()  # to its end: no process holds the other end any more
        return said, time.monotonic() - began


@pytest.mark.row("B23")
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("native", [NATIVE, "python"])
def test_an_idle_orphan_ends_at_once(native: str, source: str, method: str) -> None:
    said, seconds = orphan("idle", native, source, method)
    assert said == b""
    assert seconds < LIMIT


@pytest.mark.row("B23")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("native", [NATIVE, "python"])
def test_an_orphan_that_handles_sigterm_ends_after_the_grace_period(
    native: str, source: str
) -> None:
    said, seconds = orphan("handles SIGTERM", native, source, "spawn")
    assert said == b" term"
    assert watchdog_peers.GRACE <= seconds < LIMIT


@pytest.mark.row("B23")
@pytest.mark.parametrize("native", [NATIVE])
@pytest.mark.parametrize("source", SOURCES)
def test_an_orphan_that_holds_the_gil_for_ever_ends(native: str, source: str) -> None:
    said, seconds = orphan("holds the GIL", native, source, "spawn")
    assert said == b""
    assert seconds < LIMIT


def test_without_pidfd_and_multiprocessing_there_is_nothing_to_watch() -> None:
    with pytest.raises(RuntimeError, match="no parent"):
        watchdog.start(None, os.getppid())


@pytest.mark.row("H220")
@pytest.mark.parametrize("grace", [1e9, 1e300])
def test_a_very_long_grace_period_is_shortened_to_what_the_system_can_sleep(
    grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    graces = queue.SimpleQueue[float]()
    monkeypatch.setattr(watchdog, "_watch", lambda fd, grace: graces.put(grace))
    for native in (None, lambda fd, pid, grace: graces.put(grace)):
        watchdog.start(0, os.getppid(), grace, native=native)
        assert graces.get() == watchdog.LONGEST < 1e9


@pytest.mark.row("H220")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_pool_with_a_very_long_grace_period_works(loop: str, backend: str) -> None:
    make = None if loop == "asyncio" else pytest.importorskip(loop).new_event_loop
    async with Pool(1, grace=1e300, loop_initializer=make) as pool:
        assert await pool.map(workload.double, range(3), task_timeout=60) == [0, 2, 4]


@needs_extension
def test_the_native_thread_refuses_arguments_that_make_no_sense() -> None:
    native = watchdog_peers.native_start()
    with pytest.raises(ValueError, match="descriptor"):
        native(-1, os.getppid(), 1.0)
    for grace in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="grace"):
            native(0, os.getppid(), grace)
