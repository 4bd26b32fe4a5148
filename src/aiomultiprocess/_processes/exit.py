"""The end of a child process: noticed by a descriptor or a thread, and not by a timer.

    process.start() -> Exit(process) -> check() at any time, watch() or wait() in an event loop

EXIT-1  The process's pidfd tells of its end where there is one. multiprocessing's sentinel is
    second best: it is a pipe, which stays open as long as a process that the child forked lives on.
EXIT-2  The exit code is right or None, "not known": another part of the program may have reaped our
    child (`waitpid(-1)`). It is therefore read before it is reaped, by the pidfd, which cannot come
    to mean another process as a pid can.
EXIT-3  Once the end is known, multiprocessing's object knows it too, and lets itself be joined and
    closed; it is told 255 for an exit code that is not known, as asyncio does.
EXIT-4  A watch has a descriptor of its own, so that several loops may wait for one process, and any
    thread may ask.
EXIT-5  A system may give a pidfd and not wait for it: waitid(P_PIDFD) is younger than pidfd_open,
    and a sandbox refuses either, or waitid altogether, or a loop's interest in a pidfd. Then
    waitpid
    collects the end. Where a thread is refused as well, a timer of the loop looks for it.
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
LOOK_AGAIN = 0.02  # seconds, where the system leaves nothing to wait by


class Exit:
    """What is known of the end of one process that was started.

    Args:
        process: a started process; make the Exit at once, while its pid is surely its own.
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
        self._asked = False  # a signal handler or garbage collection may ask within a question

    def check(self) -> bool:
        """Whether the process has ended; then `exitcode` is set, to None if it cannot be known."""
        if not self.ended and os.getpid() == self._parent:
            with self._lock:
                if not self._asked:
                    self._asked = True
                    try:
                        self._collect()
                    finally:
                        self._asked = False
        return self.ended

    def duplicates(self) -> list[Descriptor]:
        """EXIT-4: what becomes readable at the end, in the order to be heard; none once it is
        known.

        None at all if there is no descriptor left: a thread can wait without.
        """
        with self._lock:
            if self.ended:
                return []
            try:
                return [Descriptor(os.dup(fd)) for fd in self._descriptors()]
            except OSError:
                return []

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> Watch:
        """Have `callback()` called once in `loop` when the process has ended.

        RuntimeError in a forked copy of this process: the other is no child of that.
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
        """Wait without a loop until the process has ended, for as long as that takes."""
        while not self.check():
            self.sleep()

    def sleep(self) -> None:
        """Sleep until the process has probably ended, and collect nothing; for any thread."""
        if sys.platform == "win32":
            from multiprocessing.connection import wait

            with contextlib.suppress(ValueError, OSError):  # closed: somebody saw the end before us
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
        """Give the descriptor back; what is known stays known."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            pidfd.close()

    def _descriptors(self) -> Iterator[int]:
        if self._pidfd is not None:
            yield self._pidfd.fileno()
        if sys.platform != "win32" and (self._pidfd is None or self._by_server):
            yield self._process.sentinel

    def _collect(self) -> None:
        if self.ended:  # another thread was first
            return
        if self._popen.returncode is not None:  # multiprocessing was first
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
            except (
                ChildProcessError
            ):  # reaped (EXIT-2); by multiprocessing, if it knows the code now
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
        """The fork server writes the exit code into the sentinel, or dies before it could."""
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
        self._process.join(0)  # EXIT-3: it is no active child any more
        self.close()


class Watch:
    """Waits in one loop for the end of one process; closes itself before it calls back."""

    def __init__(
        self, of: Exit, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]
    ) -> None:
        self.exit = of
        self._loop = loop
        self._callback = callback
        self._parent = os.getpid()
        self._closed = False
        self._soon: asyncio.Handle | None = None
        self._descriptor: Descriptor | None = None
        self._stages = [] if of.check() else of.duplicates()
        if of.ended:
            self._soon = loop.call_soon(self._fire)
        else:
            self._listen()

    @property
    def exitcode(self) -> int | None:
        """The exit code once the process has ended, None if it cannot be known."""
        return self.exit.exitcode

    def close(self) -> None:
        """Call back no more; any number of times."""
        if self._closed:
            return
        self._closed = True
        self._stages = []
        self._stop_listening()
        if self._soon is not None:
            self._soon.cancel()

    def _listen(self) -> None:
        while self._stages:
            self._descriptor = self._stages.pop(0)
            try:
                self._loop.add_reader(self._descriptor.fileno(), self._on_readable)
            except OSError:  # EXIT-5: the loop cannot wait for it, a thread may
                self._descriptor.close()
                self._descriptor = None
            else:
                return
        try:
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
        except RuntimeError:  # a sandbox or a limit refuses the thread too
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
        elif not self._closed:  # not to be reaped yet: it is traced, or closed its sentinel itself
            self._stop_listening()
            self._listen()

    def _wait_in_thread(self) -> None:
        self.exit.sleep()
        with contextlib.suppress(RuntimeError):  # the loop was closed, nobody waits any more
            self._loop.call_soon_threadsafe(self._on_readable)

    def _fire(self) -> None:
        if not self._closed:
            self.close()
            self._callback()


def _pidfd_of(pid: int) -> Descriptor | None:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        # an old kernel, a sandbox, no descriptor left, or a fork server's child that is gone
        with contextlib.suppress(OSError):
            return Descriptor(os.pidfd_open(pid))
    return None


def _waited(pid: int) -> bool:
    """Sleep until the child has ended, without reaping it; False where that cannot be done."""
    if sys.platform == "win32" or not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # reaped by now
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
