"""The event loops of child processes: which one, how it starts, how it ends.

A child uses the loop implementation of its parent, unless a `loop_initializer` chooses another. The
choice travels as a `LoopSpec`, which pickles.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from ..types import LoopInitializer

# The name of a module that has `new_event_loop`, or a callable that makes a loop; None: asyncio's
LoopSpec: TypeAlias = str | LoopInitializer | None

# Packages whose loop a child can make again. It cannot make one that is tied to a GUI, for example.
_DROP_IN = frozenset({"uvloop", "winloop", "rloop"})


def spec_of(
    loop: asyncio.AbstractEventLoop | None, loop_initializer: LoopInitializer | None = None
) -> LoopSpec:
    """The spec of a child's loop: `loop_initializer`, or the implementation of `loop`."""
    if loop_initializer is not None:
        return loop_initializer
    package = type(loop).__module__.partition(".")[0]
    if package in _DROP_IN:
        return package
    if sys.platform == "win32" and isinstance(loop, asyncio.SelectorEventLoop):
        return asyncio.SelectorEventLoop  # a choice: the default is the proactor
    return None


def for_worker(spec: LoopSpec) -> LoopSpec:
    """The spec for a worker of a pool: `spec`, or a default that suits a link.

    A link needs a loop that watches sockets, which asyncio's default on Windows does not do. A loop
    with epoll should not wake late.
    """
    if spec is not None:
        return spec
    if sys.platform == "linux" and hasattr(selectors, "EpollSelector"):
        return _exact_loop
    return asyncio.SelectorEventLoop if sys.platform == "win32" else None


if sys.platform == "linux" and hasattr(selectors, "EpollSelector"):  # gevent takes it away
    # not by super(), which takes 0.1 us before Python 3.12: an idle worker selects for each `apply`
    _select = selectors.EpollSelector.select

    class ExactSelector(selectors.EpollSelector):
        """Wakes its loop when a timer is due, and not at the next whole millisecond.

        epoll counts in milliseconds, and asyncio's selector rounds up whenever its loop waits. So
        tasks that sleep wake late, by half a millisecond on average, in a worker that receives its
        next tasks meanwhile. select() counts in microseconds, and can wait for an epoll descriptor.
        """

        LONGEST = 0.1  # seconds: in a longer wait a millisecond is not worth a system call
        DESCRIPTORS = 1024  # FD_SETSIZE: select() can wait for smaller descriptors

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """As in the base class."""
            if timeout is not None and 0 < timeout < self.LONGEST:
                epoll = self.fileno()
                if epoll < self.DESCRIPTORS:
                    try:
                        select.select((epoll,), (), (), timeout)
                    except OSError:  # a sandbox refuses it
                        ExactSelector.LONGEST = 0.0
                    else:
                        timeout = 0
            return _select(self, timeout)

    def _exact_loop() -> asyncio.AbstractEventLoop:
        """A loop of the current policy, with an ExactSelector if it is asyncio's own loop."""
        loop = asyncio.new_event_loop()
        selector = getattr(loop, "_selector", None)
        if type(loop) is asyncio.SelectorEventLoop and type(selector) is ExactSelector.__base__:
            selector.__class__ = ExactSelector
        return loop


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def new_loop(spec: LoopSpec) -> asyncio.AbstractEventLoop:
    """Make the loop of a child process, and make it current."""
    if isinstance(spec, str):
        loop: asyncio.AbstractEventLoop = import_module(spec).new_event_loop()
    else:
        loop = asyncio.new_event_loop() if spec is None else spec()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop_initializer must return an event loop, not {loop!r}")
    asyncio.set_event_loop(loop)
    return loop


def close_loop(loop: asyncio.AbstractEventLoop, last: Callable[[], object] | None = None) -> None:
    """Close a loop as `asyncio.run` does: cancel tasks, shut down generators and the executor.

    After all of these, and before the loop is closed, `last` is called, which may run the loop.
    Call this in the main thread. A signal for the loop that arrives meanwhile is lost.
    """
    if loop.is_closed():
        return
    try:
        _cancel_all_tasks(loop)
        loop.set_task_factory(None)  # a user's factory may refuse the loop's own coroutines
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        try:
            if last is not None:
                last()
        finally:
            _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(None)
    # asyncio closes the pipe for signals before it removes their handlers: a signal in between,
    # such as the SIGTERM of terminate(), would print an OSError
    signal.set_wakeup_fd(-1)
    loop.close()


def _cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception while the loop of a child process was closed",
                    "exception": task.exception(),
                    "task": task,
                }
            )
