"""Starting processes, without a process that we did not ask for, or the parent's signal handlers.

Under "spawn", multiprocessing starts a resource tracker beside the first child. It would have
nothing to do: what we share has no name and cannot leak. So our children are launched here, with
multiprocessing's own parts, and are told of a tracker only if the program has one running.

Under "fork", a child begins with the signal handlers of the parent's event loop and with its
self-pipe, which the two share: a SIGTERM for the child would be handled in the parent.

SPAWN-1  A launch that fails leaves no process and no descriptor.
SPAWN-2  A spawn does not wait for the child: what does not fit into a pipe is written by a thread.
SPAWN-3  SIGINT is held back in a spawned or forked child, and garbage collection in a spawned one,
    until the child is up (startup.py).
SPAWN-4  No signal is handled in a forked child before it has put the handlers of the parent's loop
    away.
SPAWN-5  A child that starts a process while it imports its main module, which so has no guard, ends
    at once. It prints nothing if its parent reports how it ended, and else one line.
SPAWN-6  A child imports its main module only if that is a file: one that is read from stdin is not.
SPAWN-7  A fork server that dies while it imports the main module (from 3.14 on, it does) is started
    again without it. Its children then import the module themselves, and end by SPAWN-5.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import context, process, reduction
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from .startup import HOLD_GARBAGE

if TYPE_CHECKING:
    from .descriptors import Descriptor

#: What the name of a child ends with while it imports its main module (SPAWN-5).
STARTING = " (starting)"
STARTING_REPORTED = " (starting, reported by its parent)"

#: In the environment of a fork server that is started for one of our processes (SPAWN-7).
SERVER_REPORTED = "_AIOMULTIPROCESS_FORK_SERVER_REPORTED"

NO_GUARD = (
    "the main module starts a process when it is imported, as a new process does: put its code "
    'below `if __name__ == "__main__":`'
)

SERVER_PATIENCE = 5  # seconds that a fork server which drops a connection may take to end
PIPE_CAPACITY = 16 << 10  # what every system's empty pipe takes at once


def process_class(ctx: BaseContext) -> Callable[..., process.BaseProcess]:
    """The class of processes for the start method of `ctx`."""
    if sys.platform != "win32":
        if isinstance(ctx, context.SpawnContext):
            return SpawnProcess
        if isinstance(ctx, context.ForkContext):
            return ForkProcess
        if isinstance(ctx, context.ForkServerContext):
            return ForkServerProcess
    cls: Callable[..., process.BaseProcess] = ctx.Process  # type: ignore[attr-defined]
    return cls


if sys.platform != "win32":
    from multiprocessing import popen_spawn_posix, spawn, util

    class SpawnProcess(context.SpawnProcess):
        """A process of the "spawn" start method that comes without a resource tracker."""

        _name: str

        #: In the child: end after the hooks, without taking the interpreter apart.
        ends_at_once = False

        @staticmethod
        def _Popen(process_obj: process.BaseProcess) -> Popen:  # noqa: N802
            _check_guard()
            return Popen(process_obj)

        def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
            self._name = self._name.removesuffix(STARTING).removesuffix(STARTING_REPORTED)
            code: int = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
            if self.ends_at_once:
                atexit._run_exitfuncs()
                util._flush_std_streams()  # type: ignore[attr-defined]
                os._exit(code)
            return code

    class ForkServerProcess(context.ForkServerProcess):
        """A process of the "forkserver" start method that keeps SPAWN-5, SPAWN-6 and SPAWN-7."""

        _name: str

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            _check_guard()
            name = process_obj._name
            process_obj._name = _starting(process_obj)
            try:
                with _importable_main():
                    return _through_server(process_obj)
            finally:
                process_obj._name = name

        def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
            os.environ.pop(SERVER_REPORTED, None)
            self._name = self._name.removesuffix(STARTING).removesuffix(STARTING_REPORTED)
            code: int = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
            return code

    def _command(**descriptors: int | None) -> list[Any]:
        """What starts a child; a frozen program has no place for code of ours (SPAWN-3)."""
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
            message = self._message(process_obj)  # fails on what cannot be pickled: SPAWN-1
            ours: list[int] = []
            theirs: list[int] = []
            self.finalizer = util.Finalize(self, _close_all, [ours])
            try:
                self._start(ours, theirs)
                _close_all(theirs)
                _send(ours[1], message)
            except BaseException:  # even KeyboardInterrupt: SPAWN-1
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
            with _importable_main():
                preparation = spawn.get_preparation_data(_starting(process_obj))
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
            with _held_back({signal.SIGINT}):  # SPAWN-3; and until the pid is known: SPAWN-1
                self.pid = _run(command, sorted(inherited))

        def _undo(self) -> None:
            if getattr(self, "pid", None) is not None:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
            self.finalizer()

    def _through_server(process_obj: Any) -> Any:
        """Have the fork server start a process; it is started first, if it does not run."""
        from multiprocessing import forkserver  # not above: a spawned worker begins here

        try:
            os.environ[SERVER_REPORTED] = "1"
            forkserver.ensure_running()
        finally:
            del os.environ[SERVER_REPORTED]
        try:
            return context.ForkServerProcess._Popen(process_obj)
        except (ConnectionError, EOFError):
            if not _server_has_ended():
                raise
        with _hidden_main():  # SPAWN-7
            forkserver.ensure_running()
        return context.ForkServerProcess._Popen(process_obj)

    def _server_has_ended() -> bool:
        """Whether the fork server is gone or on its way out: then nobody reads its pipe."""
        server: Any = sys.modules["multiprocessing.forkserver"]._forkserver
        poller = select.poll()
        poller.register(server._forkserver_alive_fd, select.POLLERR)
        ended = bool(poller.poll(1000 * SERVER_PATIENCE))
        if ended:
            os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOWAIT)
        return ended

    class ForkProcess(context.ForkProcess):
        """A process of the "fork" start method that does not act on signals as its parent does."""

        _mask: set[int]  # the signals that were held back before the launch

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            popen: Any = None
            try:
                with _held_back(signal.valid_signals()) as process_obj._mask:  # SPAWN-4
                    popen = context.ForkProcess._Popen(process_obj)
            except BaseException:  # a signal that was held back has raised: SPAWN-1
                if popen is not None:
                    popen.kill()
                    popen.wait()
                    popen.close()
                raise
            return popen

        def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
            put_away_handlers()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask | {signal.SIGINT})  # SPAWN-3
            code: int = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
            return code


def report_exit(process_obj: process.BaseProcess) -> None:
    """Let this process, which is to be started, leave to its parent what to print (SPAWN-5)."""
    process_obj.parent_reports = True  # type: ignore[attr-defined]


def _starting(process_obj: process.BaseProcess) -> str:
    reported = getattr(process_obj, "parent_reports", False)
    return process_obj.name + (STARTING_REPORTED if reported else STARTING)


def _check_guard() -> None:
    """SPAWN-5; a process that is not one of ours goes on to the RuntimeError of multiprocessing."""
    this = process.current_process()
    if getattr(this, "_inheriting", False):  # multiprocessing is importing the main module
        in_server = this.name == "MainProcess" and SERVER_REPORTED in os.environ
        if in_server or this.name.endswith(STARTING_REPORTED):
            sys.exit(1)
        if this.name.endswith(STARTING):
            # not by sys.exit: a child of the fork server leaves without printing that
            print(f"process {os.getpid()} could not start: {NO_GUARD}", file=sys.stderr, flush=True)
            sys.exit(1)


@contextlib.contextmanager
def _importable_main() -> Iterator[None]:
    """SPAWN-6: for as long as a child is told what to import, the main module has no path but a
    file's.

    The path of a program from stdin is `<stdin>`.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    begun_in = getattr(process, "ORIGINAL_DIR", None) or ""
    if path is None or os.path.isfile(os.path.join(begun_in, path)):
        yield
        return
    with _hidden_main():
        yield


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    names = vars(sys.modules["__main__"])
    path = names.pop("__file__", None)
    try:
        yield
    finally:
        if path is not None:
            names["__file__"] = path


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


def put_away_handlers() -> None:
    """In a forked child: handlers of event loops, and of ours, become the default ones."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if _is_of_a_loop(signal.getsignal(signum)):
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)


def _is_of_a_loop(handler: Any) -> bool:
    while isinstance(handler, functools.partial):  # asyncio.Runner's SIGINT handler is one
        handler = handler.func
    module = getattr(handler, "__module__", None) or ""
    return module.partition(".")[0] in {"asyncio", "uvloop", "aiomultiprocess"}


def _running_tracker() -> int | None:
    """The descriptor of the resource tracker that this program started or was given, if any."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def _send(fd: int, message: memoryview) -> None:
    if len(message) <= PIPE_CAPACITY:
        _write(fd, message)
    else:
        from .descriptors import Descriptor  # not above: a worker begins with this module

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
