"""What a process holds, so that conftest.py finds what a test has left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil

from start_methods import pid_of_fork_server

PATIENCE = 5.0  # seconds until something that is on its way out counts as left behind
COMPLAINTS = re.compile(r"leaked|Task was destroyed|never retrieved|never awaited")
#: Of a closed client of dask: `gen.with_timeout` of tornado runs out, and no one asks its future.
OF_TORNADO = re.compile(
    r"Future exception was never retrieved\s+"
    r"future: <Future finished exception=TimeoutError\('Timeout'\)"
)
OURS = re.compile(r"psm_|pym-|.*aiomultiprocess|.*amp_")
PR_SET_CHILD_SUBREAPER = 36

#: Processes that other tests use too: they live on when a test has hung.
SHARED: set[int] = set()

Holdings = dict[str, set[Any]]


def adopt_orphans() -> None:
    """Let orphans of our children become our children, so that none can hide (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def holdings() -> Holdings:
    """What this process holds now."""
    return {
        "processes": descendants(),
        "threads": set(threading.enumerate()),
        "descriptors": descriptors(),
        "mappings": mappings("self"),
        "shared memory": shared_memory(),
    }


def descendants() -> set[tuple[int, float]]:
    """The pids and start times of the processes below this one, which adopts their orphans."""
    try:
        if sys.platform == "linux":  # there are none below it if it has no child: most often so
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found = psutil.Process().children(recursive=True)
    kept = pid_of_fork_server()
    return {(process.pid, process.create_time()) for process in found if process.pid != kept}


def descriptors() -> set[tuple[str, str]]:
    """Open descriptors and what they refer to; on systems without /proc, nothing."""
    found = set()
    folder = Path("/proc/self/fd")
    for entry in os.listdir(folder) if folder.exists() else ():
        try:
            found.add((entry, os.readlink(folder / entry)))
        except FileNotFoundError:  # the listing's own
            continue
    return found


def mappings(pid: str) -> set[str]:
    """Shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # ended meanwhile, or no /proc
        return set()
    return {line for line in lines if "/memfd:" in line or "/dev/shm/" in line}


def shared_memory() -> set[str]:
    """Entries of /dev/shm that this package or multiprocessing can have made.

    The folder is the whole machine's: others come and go while a test runs. Semaphores do not
    count: this package makes none, and those of a program that was killed, as hosts of a cluster
    are in another suite at the same time, wait there until its resource tracker ends.
    """
    folder = Path("/dev/shm")
    names = os.listdir(folder) if folder.exists() else ()
    return {name for name in names if OURS.match(name)}


def left_behind(before: Holdings) -> Holdings:
    """What is held now and was not then, once what is on its way out is out."""
    deadline = time.monotonic() + PATIENCE
    collected = False
    while True:
        left = {kind: now - before[kind] for kind, now in holdings().items()}
        if {pid for pid, _ in left["processes"]} == {pid_of_tracker()}:
            stop_resource_tracker()
            continue
        left["shared memory"] -= {name for name in left["shared memory"] if is_mapped(name)}
        left = {kind: things for kind, things in left.items() if things}
        if not left or time.monotonic() > deadline:
            return left
        reap_orphans()
        if not collected:
            collected = True
            gc.collect()
        time.sleep(0.01)  # a bounded look at the process table, which has no events for this


def reap_orphans() -> None:
    """Do what init would have done for the children of a script that has ended.

    Scripts have a session of their own. A zombie of our session is a child that was not reaped.
    """
    for child in psutil.Process().children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE and os.getsid(child.pid) != os.getsid(0):
                os.waitpid(child.pid, 0)
        except (psutil.NoSuchProcess, ProcessLookupError, ChildProcessError):
            continue


def is_mapped(name: str) -> bool:
    """Whether some process uses an entry of /dev/shm, or none has it any more: it is not left then.

    By its inode: who makes a semaphore has mapped it under another name, which is gone.
    """
    try:
        inode = str(os.stat(f"/dev/shm/{name}").st_ino)
    except FileNotFoundError:
        return True
    return any(line.split()[4] == inode for pid in psutil.pids() for line in mappings(str(pid)))


def pid_of_tracker() -> int | None:
    """The process that multiprocessing keeps for later, as it keeps its fork server."""
    pid: int | None = resource_tracker._resource_tracker._pid
    return pid


def stop_resource_tracker() -> None:
    """End CPython's resource tracker, which is not ours; it waits for all processes that use it.

    `_stop` is what CPython's own test suite calls; there is no public way.
    """
    if pid_of_tracker() is not None:
        gc.collect()  # semaphores of queues are given back before their tracker goes
        resource_tracker._resource_tracker._stop()


def dump_stacks_of_descendants() -> None:
    """Let every process that descends from this one write the stacks of its threads, and end.

    SIGABRT does it where PYTHONFAULTHANDLER is set, even while C code holds the GIL; a forked
    process has pytest's own handler.
    """
    children = psutil.Process().children(recursive=True)
    for process in reversed(children):  # not the oldest first
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            if process.pid in {*SHARED, pid_of_fork_server()} or process.ppid() in SHARED:
                continue  # a host of tests, or its fork server or resource tracker
            process.send_signal(signal.SIGABRT)
            process.wait(1.0)  # one after the other, or their lines would mix


def clear_away(left: Holdings) -> None:
    """Spare the tests that follow."""
    for pid, created in left.get("processes", ()):
        if pid == pid_of_tracker():
            continue
        try:
            process = psutil.Process(pid)
            if process.create_time() == created:
                process.send_signal(signal.SIGKILL)
                process.wait(PATIENCE)
        except psutil.NoSuchProcess:
            continue
    stop_resource_tracker()


def leaves_no_future(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The test, which now fails if futures or tasks are pending at its end."""

    @functools.wraps(test)
    async def checked(*args: Any, **kwds: Any) -> None:
        try:
            await test(*args, **kwds)
        except asyncio.CancelledError:  # the time limit was hit: show where everything waits
            traceback.print_exc()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.print_stack()
            raise
        for _ in range(10):  # what was cancelled ends within a few turns of the loop
            if not pending_futures():
                return
            await asyncio.sleep(0)
        gc.collect()  # what only a cycle holds is not left
        left = pending_futures()
        assert not left, f"pending at the end of the test: {left}"

    return checked


def pending_futures() -> list[asyncio.Future[Any]]:
    """The futures of the running loop, tasks among them, that are still pending."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    return [
        found
        for found in gc.get_objects()
        if issubclass(type(found), asyncio.Future)  # isinstance asks the objects, whatever they are
        and found.get_loop() is loop
        and not found.done()
        and found is not this
        and not _is_of_tornado(found)
    ]


def complaint(said: str) -> str | None:
    """What asyncio or a resource tracker complains of in what was written, None if of nothing."""
    found = COMPLAINTS.search(OF_TORNADO.sub("", said))
    return None if found is None else found.group()


def _is_of_tornado(future: asyncio.Future[Any]) -> bool:
    """Whether tornado waits for a future: a closed client of dask leaves timers that run out."""
    callbacks = getattr(future, "_callbacks", None) or ()
    return any(
        (getattr(callback, "__module__", None) or "").startswith("tornado.")
        for callback, _ in callbacks
    )
