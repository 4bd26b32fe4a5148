"""Detect the exit of a child process by a descriptor or a thread, without polling.

    process.start() -> Exit(process) -> check() at any time, watch() or wait() in an event loop

`Process`, `Worker` and each worker of a pool have one `Exit`.

EXIT-1  Where the system has pidfds, the process's pidfd shows its exit. Otherwise multiprocessing's
    sentinel does: a pipe that stays open while any process that the child forked is alive.
EXIT-2  The exit code is correct or None, "not known". Other code may reap our child
    (`waitpid(-1)`), so the code is read through the pidfd before the child is reaped. A pidfd,
    unlike a pid, never refers to another process.
EXIT-3  Once the exit is known, multiprocessing's process object is updated, so that it can be
    joined and closed. For an unknown exit code it gets 255, as in asyncio.
EXIT-4  Each watch has its own duplicate of the descriptor, so several loops may wait for one
    process, and any thread may check.
EXIT-5  A system may provide a pidfd and refuse to wait for it: waitid(P_PIDFD) is younger than
    pidfd_open, and a sandbox may refuse either call, waitid as a whole, or the loop's registration
    of a pidfd. Then waitpid collects the exit code. If a thread is refused as well, a timer of the
    loop checks for the exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from .descriptors import Descriptor

UNKNOWN = 255  # EXIT-3
LOOK_AGAIN = 0.02  # seconds between checks where the system refuses every way to wait


class Exit:
    """The exit of one process, and its exit code.

    Args:
        process: a started process. Make the Exit at once, before the pid can be reused.
    """

    def __init__(self, process: BaseProcess) -> None:
        self.ended = False
        self.exitcode: int | None = None
        self._process = process
        self._popen: Any = process._popen  # type: ignore[attr-defined]
        self._by_server = self._popen.method == "forkserver"  # it is the server's child, not ours
        self._parent = os.getpid()
        self._pidfd = _pidfd_of(self._popen.pid)
        self._lock = threading.RLock()
        self._checking = False  # a signal handler or a finalizer may call `check` inside `check`

    def check(self) -> bool:
        """Whether the process has ended. If so, `exitcode` is set, to None if it is not known."""
        if not self.ended and os.getpid() == self._parent:
            with self._lock:
                if not self._checking:
                    self._checking = True
                    try:
                        self._collect()
                    finally:
                        self._checking = False
        return self.ended

    def duplicates(self) -> list[Descriptor]:
        """New descriptors that become readable at the exit, the best first (EXIT-4).

        The list is empty if the exit is known, or if the system has no descriptor left: a thread
        can wait without one.
        """
        with self._lock:
            if self.ended:
                return []
            try:
                return [Descriptor(os.dup(fd)) for fd in self._descriptors()]
            except OSError:
                return []

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> Watch:
        """Call `callback()` once in `loop` when the process has ended.

        RuntimeError in a forked copy of this process, which is not the parent of that process.
        """
        if os.getpid() != self._parent:
            raise RuntimeError(
                f"process {self._popen.pid} is a child of process {self._parent}, this is a forked "
                f"copy in process {os.getpid()}: only the parent can wait for it"
            )
        return Watch(self, loop, callback)

    async def wait(self) -> None:
        """Wait until the process has ended."""
        if self.check():
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        watch = self.watch(loop, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            watch.close()

    def block(self) -> None:
        """Block until the process has ended."""
        while not self.check():
            self.sleep()

    def sleep(self) -> None:
        """Block until the process has probably ended, and do not reap it. For any thread."""
        if sys.platform == "win32":
            from multiprocessing.connection import wait

            with contextlib.suppress(ValueError, OSError):  # another thread closed it
                wait([self._process.sentinel])
        elif self._by_server:
            self._sleep_by(self.duplicates())
        elif not _waited(self._popen.pid):  # EXIT-5
            self._sleep_by([] if self._pidfd is None else self.duplicates())

    def _sleep_by(self, descriptors: list[Descriptor]) -> None:
        for descriptor in descriptors:
            _is_readable(descriptor.fileno(), timeout=None)
        if not (descriptors or self.ended):  # there is no descriptor left
            self._process.join()

    def close(self) -> None:
        """Close the descriptor; `ended` and `exitcode` stay."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            pidfd.close()

    def _descriptors(self) -> Iterator[int]:
        """The descriptors that become readable at the exit, the best first (EXIT-1)."""
        if self._pidfd is not None:
            yield self._pidfd.fileno()
        if sys.platform != "win32" and (self._pidfd is None or self._by_server):
            yield self._process.sentinel

    def _collect(self) -> None:
        if self.ended:  # another thread collected it
            return
        if self._popen.returncode is not None:  # multiprocessing collected it
            self._end(self._popen.returncode)
        elif sys.platform == "win32":
            self._popen.poll()
            if self._popen.returncode is not None:
                self._end(self._popen.returncode)
        elif self._by_server:
            self._collect_from_server()
        elif self._pidfd is not None:
            self._collect_by_pidfd(self._pidfd.fileno())
        else:
            self._collect_by_pid()

    def _collect_by_pidfd(self, pidfd: int) -> None:
        if sys.platform == "linux":
            try:
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                status = os.waitid(os.P_PIDFD, pidfd, options)
            except ChildProcessError:  # reaped (EXIT-2), perhaps by multiprocessing just now
                self._end(self._popen.returncode)
                return
            except OSError:
                self._collect_by_pid()  # EXIT-5
                return
            if status is not None:
                exited = status.si_code == os.CLD_EXITED
                self._popen.poll()  # reaps
                self._end(status.si_status if exited else -status.si_status)

    def _collect_by_pid(self) -> None:
        if sys.platform == "win32":
            raise NotImplementedError
        try:
            pid, status = os.waitpid(self._popen.pid, os.WNOHANG)
        except ChildProcessError:
            self._end(self._popen.returncode)
            return
        if pid:
            self._end(os.waitstatus_to_exitcode(status))

    def _collect_from_server(self) -> None:
        """The fork server writes the exit code into the sentinel, unless it dies before that."""
        from multiprocessing import forkserver

        if not all(map(_is_readable, self._descriptors())):
            return
        try:
            self._end(forkserver.read_signed(self._process.sentinel))
        except (EOFError, OSError):
            self._end(None)

    def _end(self, exitcode: int | None) -> None:
        self.ended = True
        self.exitcode = exitcode
        if self._popen.returncode is None:
            self._popen.returncode = UNKNOWN if exitcode is None else exitcode
        self._process.join(0)  # EXIT-3: removes it from the active children
        self.close()


class Watch:
    """Waits in one loop for the exit of one process. It closes itself before it calls back."""

    def __init__(
        self, exit_: Exit, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]
    ) -> None:
        self.exit = exit_
        self._loop = loop
        self._callback = callback
        self._parent = os.getpid()
        self._closed = False
        self._soon: asyncio.Handle | None = None
        self._descriptor: Descriptor | None = None
        self._descriptors_left = [] if exit_.check() else exit_.duplicates()
        if exit_.ended:
            self._soon = loop.call_soon(self._fire)
        else:
            self._listen()

    @property
    def exitcode(self) -> int | None:
        """The exit code, None before the exit and if it is not known."""
        return self.exit.exitcode

    def close(self) -> None:
        """Do not call back any more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._descriptors_left = []
        self._stop_listening()
        if self._soon is not None:
            self._soon.cancel()

    def _listen(self) -> None:
        while self._descriptors_left:
            self._descriptor = self._descriptors_left.pop(0)
            try:
                self._loop.add_reader(self._descriptor.fileno(), self._on_readable)
            except OSError:  # EXIT-5: the loop cannot wait for it
                self._descriptor.close()
                self._descriptor = None
            else:
                return
        try:
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
        except RuntimeError:  # a sandbox or a limit refuses a thread too
            self._soon = self._loop.call_later(LOOK_AGAIN, self._on_readable)

    def _stop_listening(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # a forked copy shares the parent's selector and must leave it alone
            if not self._loop.is_closed() and os.getpid() == self._parent:
                self._loop.remove_reader(descriptor.fileno())
            descriptor.close()

    def _on_readable(self) -> None:
        if self.exit.check():
            self._fire()
        elif not self._closed:  # not reapable: it is traced, or has closed its sentinel itself
            self._stop_listening()
            self._listen()

    def _wait_in_thread(self) -> None:
        self.exit.sleep()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_readable)

    def _fire(self) -> None:
        if not self._closed:
            try:
                self.close()
            finally:  # Ctrl-C may strike here, and nothing would notice this exit again
                self._callback()


def _pidfd_of(pid: int) -> Descriptor | None:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        # fails with an old kernel, in a sandbox, without a descriptor, and if the child is reaped
        with contextlib.suppress(OSError):
            return Descriptor(os.pidfd_open(pid))
    return None


def _waited(pid: int) -> bool:
    """Block until the child has ended, without reaping it. False if the system refuses that."""
    if sys.platform == "win32" or not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # reaped
        return True
    except OSError:
        return False
    return True


def _is_readable(fd: int, timeout: int | None = 0) -> bool:
    if sys.platform == "win32":
        raise NotImplementedError
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout))
