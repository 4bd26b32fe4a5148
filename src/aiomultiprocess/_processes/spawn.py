"""Start processes without a resource tracker, and without the parent's signal handlers.

Under "spawn", multiprocessing starts a second process, the resource tracker, beside the first
child. It would have nothing to do for us: what we share has no name and cannot leak. So this module
launches our children itself, with multiprocessing's own parts, and passes a tracker on only if the
program runs one already.

Under "fork", a child begins with the signal handlers of the parent's event loop and with that
loop's self-pipe, which both then share: a SIGTERM for the child would be handled in the parent.

SPAWN-1  A launch that fails leaves no process and no descriptor.
SPAWN-2  A spawn does not wait for the child: a thread writes what does not fit into a pipe.
SPAWN-3  Until the child is up (startup.py), SIGINT is blocked in it if it was spawned or forked,
    and garbage collection is held back if it was spawned.
SPAWN-4  A forked child handles no signal before it has removed the handlers of the parent's loop.
SPAWN-5  A child whose main module has no guard, and so starts a process while it is imported, ends
    at once. It prints one line, or nothing if its parent reports how it ended.
SPAWN-6  A child imports its main module only if that is a file: code from stdin is not.
SPAWN-7  A fork server that dies while it imports the main module (as it does from 3.14 on) is
    started again without that module. Its children then import the module themselves, and end by
    SPAWN-5.
SPAWN-8  When the code of the main module has ended, CPython deletes the path of that module, while
    threads go on and may start children, which need it. So it is kept from the import of this
    module, and is in place during such a launch. In a program whose main module has lost its path
    otherwise, it stays so.
SPAWN-9  Several threads may launch at once. The path of the main module and the environment belong
    to all of them: one launch at a time changes these, or reads them, and changes nothing that is
    as it needs it. No code of the program runs meanwhile, such as pickling calls: it may wait for a
    thread that launches.
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

#: The suffix of a child's name while it imports its main module (SPAWN-5).
STARTING = " (starting)"
STARTING_REPORTED = " (starting, reported by its parent)"

#: A variable in the environment of a fork server that one of our processes needs (SPAWN-7).
SERVER_REPORTED = "_AIOMULTIPROCESS_FORK_SERVER_REPORTED"

NO_GUARD = (
    "the main module starts a process when it is imported, as a new process does: put its code "
    'below `if __name__ == "__main__":`'
)

#: SPAWN-9. Reentrant: a signal handler may start a process within a launch.
_lock = threading.RLock()

#: The path of the main module, as it was seen last (SPAWN-8).
_main_path: str | None = getattr(sys.modules["__main__"], "__file__", None)

#: Whether a fork server that starts imports the main module (SPAWN-7).
_server_imports_main = True

#: One that dies by the main module, another that was started before that was known, one without it.
SERVER_ATTEMPTS = 3
SERVER_PATIENCE = 5  # seconds to wait for the end of a fork server that drops a connection
PIPE_CAPACITY = 16 << 10  # bytes that an empty pipe of every system takes at once


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
        """A process of the "spawn" start method, without a resource tracker."""

        _name: str

        #: In the child: exit after the atexit hooks, without finalizing the interpreter.
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
        """A process of the "forkserver" start method that obeys SPAWN-5, SPAWN-6 and SPAWN-7."""

        _name: str

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            _check_guard()
            return _through_server(process_obj)

        def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
            os.environ.pop(SERVER_REPORTED, None)
            self._name = self._name.removesuffix(STARTING).removesuffix(STARTING_REPORTED)
            code: int = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
            return code

    def _command(**descriptors: int | None) -> list[Any]:
        """The command line of a child. That of a frozen program cannot run our code (SPAWN-3)."""
        command = spawn.get_command_line(**descriptors)
        options = command[1:]  # not the program, which is bytes: `-bb` refuses to compare those
        if "-c" in options:
            at = options.index("-c") + 2
            command[at] = HOLD_GARBAGE + command[at]
        return command

    def _run(command: Sequence[Any], inherited: Sequence[int]) -> int:
        """Start a program that inherits these descriptors; return its pid."""
        return util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, inherited)

    class Popen(popen_spawn_posix.Popen):
        """What multiprocessing keeps of a child: its pid, and the parent's ends of two pipes."""

        _fds: list[int]  # what the pickled message refers to by DupFd

        def _launch(self, process_obj: process.BaseProcess) -> None:
            message = self._message(process_obj)  # first, as pickling may fail: SPAWN-1
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
            """The child's start-up message. RuntimeError in a child whose main has no guard."""
            if spawn.is_forking(sys.argv):  # a frozen program, which runs again as each child
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
            # the child's death closes the first pipe, and ours, for which it may wait, the second
            self.sentinel, alive = os.pipe()
            ours.append(self.sentinel)
            theirs.append(alive)
            start, message_end = os.pipe()
            ours.append(message_end)
            theirs.append(start)
            tracker = _running_tracker()
            command = _command(tracker_fd=tracker, pipe_handle=start)
            inherited = {*self._fds, *theirs} | (set() if tracker is None else {tracker})
            with _blocked({signal.SIGINT}):  # SPAWN-3; here until the pid is known: SPAWN-1
                self.pid = _run(command, sorted(inherited))

        def _undo(self) -> None:
            if getattr(self, "pid", None) is not None:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
            self.finalizer()

    def _through_server(process_obj: Any) -> Any:
        """Have the fork server start a process; start the server first, if it does not run."""
        for _ in range(SERVER_ATTEMPTS):
            server = _running_server()
            try:
                return _server_popen()(process_obj)
            except (ConnectionError, EOFError) as error:
                refusal = error
                if not _server_has_ended(server):
                    raise
        raise refusal

    def _running_server() -> int:
        """The pid of the fork server, which is started if it does not run."""
        from multiprocessing import forkserver  # here: a spawned worker does not need it

        server: Any = forkserver._forkserver
        with _lock, _path_of_main(_path_to_import() if _server_imports_main else None):  # SPAWN-9
            try:
                os.environ[SERVER_REPORTED] = "1"
                forkserver.ensure_running()
            finally:
                os.environ.pop(SERVER_REPORTED, None)
            pid: int = server._forkserver_pid
        return pid

    def _server_has_ended(pid: int) -> bool:
        """Whether a fork server has ended, or ends soon; the next one does not import main."""
        global _server_imports_main
        server: Any = sys.modules["multiprocessing.forkserver"]._forkserver
        with _lock:
            if server._forkserver_pid == pid:  # else another thread has found it ended
                poller = select.poll()
                poller.register(server._forkserver_alive_fd, select.POLLERR)
                if not poller.poll(1000 * SERVER_PATIENCE):
                    return False
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            _server_imports_main = False  # SPAWN-7
        return True

    @functools.cache
    def _server_popen() -> Callable[[Any], Any]:
        from multiprocessing import popen_forkserver  # here: it imports the server

        class ServerPopen(popen_forkserver.Popen):
            """What multiprocessing keeps of a child of the fork server."""

            def _launch(self, process_obj: Any) -> None:
                with contextlib.ExitStack() as main:
                    main.enter_context(_importable_main())
                    super()._launch(_ServedProcess(process_obj, main.close))  # type: ignore[misc]

        return ServerPopen

    class _ServedProcess:
        """Stands for a process in its launch, and is pickled as that process.

        multiprocessing first reads `_name` and what a child needs to know of the main module, then
        pickles the process. `on_pickled` is called between the two (SPAWN-9).
        """

        def __init__(self, process_obj: process.BaseProcess, on_pickled: Callable[[], None]):
            self._name = _starting(process_obj)
            self._process = process_obj
            self._on_pickled = on_pickled

        def __reduce__(self) -> tuple[Any, ...]:
            self._on_pickled()
            return _same, (self._process,)

    def _same(process_obj: Any) -> Any:
        return process_obj

    class ForkProcess(context.ForkProcess):
        """A process of the "fork" start method, without the signal handlers of its parent."""

        _mask: set[int]  # the signals that were blocked before the launch

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802
            popen: Any = None
            try:
                with _blocked(signal.valid_signals()) as process_obj._mask:  # SPAWN-4
                    popen = context.ForkProcess._Popen(process_obj)
            except BaseException:  # the handler of a signal that was blocked has raised: SPAWN-1
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
    """Mark a process, before its start, as one whose exit its parent reports (SPAWN-5)."""
    process_obj.parent_reports = True  # type: ignore[attr-defined]


def _starting(process_obj: process.BaseProcess) -> str:
    reported = getattr(process_obj, "parent_reports", False)
    return process_obj.name + (STARTING_REPORTED if reported else STARTING)


def _check_guard() -> None:
    """End this process if it is a child of ours that SPAWN-5 is about.

    Any other process goes on to the RuntimeError that multiprocessing raises.
    """
    this = process.current_process()
    if getattr(this, "_inheriting", False):  # multiprocessing is importing the main module
        in_server = this.name == "MainProcess" and SERVER_REPORTED in os.environ
        if in_server or this.name.endswith(STARTING_REPORTED):
            sys.exit(1)
        if this.name.endswith(STARTING):
            # a child of the fork server would not print the message of sys.exit
            print(f"process {os.getpid()} could not start: {NO_GUARD}", file=sys.stderr, flush=True)
            sys.exit(1)


@contextlib.contextmanager
def _importable_main() -> Iterator[None]:
    """Hide the path of the main module if it is not a file, as `<stdin>` is not (SPAWN-6).

    multiprocessing reads the path when it prepares what a child imports. One that CPython has
    deleted is put back (SPAWN-8).
    """
    with _lock, _path_of_main(_path_to_import()):  # SPAWN-9
        yield


def _path_to_import() -> str | None:
    global _main_path
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is not None:
        _main_path = path
    elif _main_path is not None and _main_has_ended():
        path = _main_path
    started_in = getattr(process, "ORIGINAL_DIR", None) or ""
    is_file = path is not None and os.path.isfile(os.path.join(started_in, path))
    return path if is_file else None


def _renew() -> None:
    """In a forked copy: another thread may have been within a launch (SPAWN-9)."""
    global _lock
    _lock = threading.RLock()
    os.environ.pop(SERVER_REPORTED, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _main_has_ended() -> bool:
    """Whether the main thread has run the code of the program to its end."""
    main = threading.main_thread()
    if getattr(threading, "_SHUTTING_DOWN", False) or not main.is_alive():
        return True
    return main.ident not in sys._current_frames()


@contextlib.contextmanager
def _path_of_main(path: str | None) -> Iterator[None]:
    names = vars(sys.modules["__main__"])
    before = names.get("__file__")
    if before == path:  # nor may a launch of multiprocessing's own miss it meanwhile
        yield
        return
    names.pop("__file__", None)
    if path is not None:
        names["__file__"] = path
    try:
        yield
    finally:
        names.pop("__file__", None)
        if before is not None:
            names["__file__"] = before


@contextlib.contextmanager
def _blocked(signals: Iterable[int]) -> Iterator[set[int]]:
    """Block these signals in this thread; yield the signals that were blocked before.

    A child that starts meanwhile inherits the mask, and has to unblock the signals itself.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield {int(signum) for signum in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def put_away_handlers(kept: Any = None) -> None:
    """In a forked child: replace the handlers of event loops, and ours, by the default ones.

    `kept`: one of ours that stays.
    """
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        handler = signal.getsignal(signum)
        if handler is not kept and _is_of_a_loop(handler):
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)


def _is_of_a_loop(handler: Any) -> bool:
    while isinstance(handler, functools.partial):  # as asyncio.Runner's SIGINT handler is
        handler = handler.func
    module = getattr(handler, "__module__", None) or ""
    return module.partition(".")[0] in {"asyncio", "uvloop", "aiomultiprocess"}


def _running_tracker() -> int | None:
    """The descriptor of the resource tracker that this program has, None if it has none."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def _send(fd: int, message: memoryview) -> None:
    """Write the start-up message, in a thread if it does not fit into the pipe (SPAWN-2)."""
    if len(message) <= PIPE_CAPACITY:
        _write(fd, message)
    else:
        from .descriptors import Descriptor  # here: a worker imports this module first

        args = (Descriptor(os.dup(fd)), message)  # closed by the thread, or if it cannot start
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
        return  # it died while it started; its exit code says how


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
