"""Starting processes, without a process that we did not ask for, or the parent's signal handlers.

Under "spawn", multiprocessing starts a resource tracker beside the first child. It would have
nothing to do: what we share has no name and cannot leak. So our children are launched here, with
multiprocessing's own parts, and are told of a tracker only if the program has one running.

Under "fork", a child begins with the signal handlers of the parent's event loop and with its
self-pipe, which the two share: a SIGTERM for the child would be handled in the parent.

L1  A launch that fails leaves no process and no descriptor.
L2  A spawn does not wait for the child: what does not fit into a pipe is written by a thread.
L3  SIGINT is held back in a spawned or forked child, and garbage collection in a spawned one,
    until the child is up (_startup.py).
L4  No signal is handled in a forked child before it has put the handlers of the parent's loop away.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import context, process, reduction
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from ._startup import HOLD_GARBAGE

if TYPE_CHECKING:
    from ._exits import Descriptor

PIPE_CAPACITY = 16 << 10  # what every system's empty pipe takes at once


def process_class(ctx: BaseContext) -> Callable[..., process.BaseProcess]:
    """The class of processes for the start method of `ctx`."""
    if sys.platform != "win32":
        if isinstance(ctx, context.SpawnContext):
            return SpawnProcess
        if isinstance(ctx, context.ForkContext):
            return ForkProcess
    cls: Callable[..., process.BaseProcess] = ctx.Process  # type: ignore[attr-defined]
    return cls


if sys.platform != "win32":
    from multiprocessing import popen_spawn_posix, spawn, util

    class SpawnProcess(context.SpawnProcess):
        """A process of the "spawn" start method that comes without a resource tracker."""

        @staticmethod
        def _Popen(process_obj: process.BaseProcess) -> Popen:  # noqa: N802
            return Popen(process_obj)

    def _command(**descriptors: int | None) -> list[Any]:
        """What starts a child; a frozen program has no place for code of ours (L3)."""
        command = spawn.get_command_line(**descriptors)
        options = command[1:]  # not the program: it is bytes, and `-bb` refuses to compare those
        if "-c" in options:
            at = options.index("-c") + 2
            command[at] = HOLD_GARBAGE + command[at]
        return command

    def _run(command: Sequence[Any], inherited: Sequence[int]) -> int:
        """Start a program and return its pid."""
        return util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, inherited)

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
            if spawn.is_forking(sys.argv):  # a frozen program, which runs anew for each child
                raise RuntimeError(
                    "this process was to be a child of a frozen program, and began as the program "
                    "does: call multiprocessing.freeze_support() first thing in its main module, "
                    "below `if __name__ == '__main__':`"
                )
            buffer = io.BytesIO()
            preparation = spawn.get_preparation_data(process_obj.name)
            context.set_spawning_popen(self)
            try:
                reduction.dump(preparation, buffer)
                reduction.dump(process_obj, buffer)
            finally:
                context.set_spawning_popen(None)
            # no copy; a view of the buffer itself is not safe in a traceback (cpython#111049)
            return memoryview(buffer.getvalue())

        def _start(self, ours: list[int], theirs: list[int]) -> None:
            # the child's death closes the one pipe, and ours, which it may wait for, the other
            self.sentinel, alive = os.pipe()
            ours.append(self.sentinel)
            theirs.append(alive)
            start, feed = os.pipe()
            ours.append(feed)
            theirs.append(start)
            tracker = _running_tracker()
            command = _command(tracker_fd=tracker, pipe_handle=start)
            inherited = {*self._fds, *theirs} | (set() if tracker is None else {tracker})
            with _held_back({signal.SIGINT}):  # L3; and until the pid is known: L1
                self.pid = _run(command, sorted(inherited))

        def _undo(self) -> None:
            if getattr(self, "pid", None) is not None:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
            self.finalizer()

    class ForkProcess(context.ForkProcess):
        """A process of the "fork" start method that does not act on signals as its parent does."""

        _mask: set[int]  # the signals that were held back before the launch

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            popen: Any = None
            try:
                with _held_back(signal.valid_signals()) as process_obj._mask:  # L4
                    popen = context.ForkProcess._Popen(process_obj)
            except BaseException:  # a signal that was held back has raised: L1
                if popen is not None:
                    popen.kill()
                    popen.wait()
                    popen.close()
                raise
            return popen

        def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
            _put_away_handlers()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGINT})  # L3
            code: int = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
            return code


@contextlib.contextmanager
def _held_back(signals: Iterable[int]) -> Iterator[set[int]]:
    """Let these signals wait, also in a child that is started meanwhile; yields who waited before.

    The child inherits what is held back, and nothing ends that there but itself.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield {int(signum) for signum in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _put_away_handlers() -> None:
    """In a forked child: handlers of event loops become the default ones."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if _is_of_a_loop(signal.getsignal(signum)):
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)


def _is_of_a_loop(handler: Any) -> bool:
    while isinstance(handler, functools.partial):  # asyncio.Runner's SIGINT handler is one
        handler = handler.func
    module = getattr(handler, "__module__", None) or ""
    return module.partition(".")[0] in {"asyncio", "uvloop"}


def _running_tracker() -> int | None:
    """The descriptor of the resource tracker that this program started or was given, if any."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def _send(fd: int, message: memoryview) -> None:
    if len(message) <= PIPE_CAPACITY:
        _write(fd, message)
    else:
        from ._exits import Descriptor  # not above: a worker begins with this module

        args = (Descriptor(os.dup(fd)), message)  # closed with the thread, or if there is none
        threading.Thread(target=_write_and_close, args=args, daemon=True).start()


def _write_and_close(descriptor: Descriptor, message: memoryview) -> None:
    try:
        _write(descriptor.fileno(), message)
    finally:
        descriptor.close()


def _write(fd: int, message: memoryview) -> None:
    try:
        while message:
            message = message[os.write(fd, message) :]
    except BrokenPipeError:
        return  # it died on its way up, and its exit code will tell


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
