"""Event loops of child processes: which one, how it begins, how it ends.

A child uses the loop implementation that its parent runs, unless a `loop_initializer` says
otherwise. The choice travels as a `LoopSpec`, which pickles.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import signal
import sys
from importlib import import_module
from typing import TypeAlias

from ..types import LoopInitializer

# A module that has `new_event_loop`, by name, or a callable that makes a loop; None: asyncio's own
LoopSpec: TypeAlias = str | LoopInitializer | None

# Others are not copied: a loop that is tied to a GUI, for one, cannot just be made once more.
_DROP_IN = frozenset({"uvloop", "winloop", "rloop"})


def spec_of(
    loop: asyncio.AbstractEventLoop | None, loop_initializer: LoopInitializer | None = None
) -> LoopSpec:
    """What makes a child's loop be of the same implementation as `loop`, the running one."""
    if loop_initializer is not None:
        return loop_initializer
    package = type(loop).__module__.partition(".")[0]
    if package in _DROP_IN:
        return package
    if sys.platform == "win32" and isinstance(loop, asyncio.SelectorEventLoop):
        return asyncio.SelectorEventLoop  # chosen on purpose: the default there is the proactor
    return None


def for_worker(spec: LoopSpec) -> LoopSpec:
    """`spec`, for a worker of a pool, unless somebody chose its loop.

    Its link wants a loop that watches sockets, which asyncio's own choice on Windows does not; and
    one with epoll shall not wake up late.
    """
    if spec is not None:
        return spec
    if sys.platform == "linux" and hasattr(selectors, "EpollSelector"):
        return _exact_loop
    return asyncio.SelectorEventLoop if sys.platform == "win32" else None


if sys.platform == "linux" and hasattr(selectors, "EpollSelector"):  # gevent takes it away

    class ExactSelector(selectors.EpollSelector):
        """Wakes its loop when a timer is due, and not at the next whole millisecond after that.

        epoll counts in milliseconds, and asyncio's selector rounds up, again each time that its
        loop goes to wait. So tasks that sleep wake late, by half a millisecond on average, in a
        worker that is given its next tasks meanwhile. select() counts in microseconds, and can
        wait for an epoll as for any other file.
        """

        LONGEST = 0.1  # seconds: of a longer wait, a millisecond is not worth a system call more
        DESCRIPTORS = 1024  # FD_SETSIZE: what select() cannot wait for begins here

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
            return super().select(timeout)

    def _exact_loop() -> asyncio.AbstractEventLoop:
        """A loop by the policy, which may be the main module's; exact if it is asyncio's own."""
        loop = asyncio.new_event_loop()
        selector = getattr(loop, "_selector", None)
        if type(loop) is asyncio.SelectorEventLoop and type(selector) is ExactSelector.__base__:
            selector.__class__ = ExactSelector
        return loop


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def new_loop(spec: LoopSpec) -> asyncio.AbstractEventLoop:
    """Make the loop of a child process, and make it current."""
    if isinstance(spec, str):
        loop: asyncio.AbstractEventLoop = import_module(spec).new_event_loop()
    else:
        loop = (spec or asyncio.new_event_loop)()
    if not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop_initializer must return an event loop, not {loop!r}")
    asyncio.set_event_loop(loop)
    return loop


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop as `asyncio.run` does: cancel what is left, close generators and the executor.

    In the main thread. A signal for the loop that arrives while it is closed is lost.
    """
    if loop.is_closed():
        return
    try:
        _cancel_all_tasks(loop)
        loop.set_task_factory(None)  # a user's may refuse the coroutines of the loop itself
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        # asyncio closes the pipe that signals are written to before it puts their handlers away:
        # one in between, such as the SIGTERM of terminate(), would be an OSError on stderr
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
