"""Starting processes, without a process that we did not ask for.

Under "spawn", multiprocessing starts a resource tracker beside the first child. It would have
nothing to do: what we share has no name and cannot leak. So our children are launched here, with
multiprocessing's own parts, and are told of a tracker only if the program has one running.

L1  A launch that fails leaves no process and no descriptor.
L2  A launch does not wait for the child: what does not fit into a pipe is written by a thread.
L3  SIGINT is held back in the child until `accept_interrupts`, so that Ctrl-C during its start-up
    does not print a traceback of half-imported modules.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import context, process, reduction
from multiprocessing.context import BaseContext
from typing import Any

PIPE_CAPACITY = 16 << 10  # what every system's empty pipe takes at once


def process_class(ctx: BaseContext) -> Callable[..., process.BaseProcess]:
    """The class of processes for the start method of `ctx`."""
    if sys.platform != "win32" and isinstance(ctx, context.SpawnContext):
        return SpawnProcess
    cls: Callable[..., process.BaseProcess] = ctx.Process  # type: ignore[attr-defined]
    return cls


def accept_interrupts() -> None:
    """In a child that has settled what SIGINT does: let it come (L3)."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if sys.platform != "win32":
    from multiprocessing import popen_spawn_posix, spawn, util

    class SpawnProcess(context.SpawnProcess):
        """A process of the "spawn" start method that comes without a resource tracker."""

        @staticmethod
        def _Popen(process_obj: process.BaseProcess) -> Popen:  # noqa: N802
            return Popen(process_obj)

    class Popen(popen_spawn_posix.Popen):
        """What multiprocessing holds of a child: its pid, and the parent's ends of two pipes."""

        _fds: list[int]  # what the pickled message refers to by DupFd

        def _launch(self, process_obj: process.BaseProcess) -> None:
            message = self._message(process_obj)  # fails on what cannot be pickled: L1
            ours: list[int] = []
            theirs: list[int] = []
            self.finalizer = util.Finalize(self, _close_all, [ours])
            try:
                self._start(ours, theirs)
                _close_all(theirs)
                _send(ours[1], message)
            except BaseException:  # even KeyboardInterrupt: L1
                self._undo()
                raise
            finally:
                _close_all(theirs)

        def _message(self, process_obj: process.BaseProcess) -> memoryview:
            """What the child reads first. RuntimeError in a child whose main has no guard."""
            buffer = io.BytesIO()
            preparation = spawn.get_preparation_data(process_obj.name)
            context.set_spawning_popen(self)
            try:
                reduction.dump(preparation, buffer)
                reduction.dump(process_obj, buffer)
            finally:
                context.set_spawning_popen(None)
            return buffer.getbuffer()

        def _start(self, ours: list[int], theirs: list[int]) -> None:
            # the child's death closes the one pipe, and ours, which it may wait for, the other
            self.sentinel, alive = os.pipe()
            ours.append(self.sentinel)
            theirs.append(alive)
            start, feed = os.pipe()
            ours.append(feed)
            theirs.append(start)
            tracker = _running_tracker()
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=start)
            inherited = {*self._fds, *theirs} | (set() if tracker is None else {tracker})
            self.pid = _run(command, sorted(inherited))

        def _undo(self) -> None:
            if getattr(self, "pid", None) is not None:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
            self.finalizer()


def _run(command: Sequence[Any], inherited: Sequence[int]) -> int:
    """Start a program that has SIGINT blocked (L3), and return its pid."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, inherited)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _running_tracker() -> int | None:
    """The descriptor of the resource tracker that this program started or was given, if any."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def _send(fd: int, message: memoryview) -> None:
    if len(message) <= PIPE_CAPACITY:
        _write(fd, message)
    else:
        args = (os.dup(fd), message)
        threading.Thread(target=_write_and_close, args=args, daemon=True).start()


def _write_and_close(fd: int, message: memoryview) -> None:
    with open(fd, "wb", buffering=0) as file:
        _write(file.fileno(), message)


def _write(fd: int, message: memoryview) -> None:
    try:
        while message:
            message = message[os.write(fd, message) :]
    except BrokenPipeError:
        return  # it died on its way up, and its exit code will tell


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
