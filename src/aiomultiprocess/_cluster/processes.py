"""A process of a pool on a host: started for a client, and connected with it by its frames.

The host (host.py) runs no code of a user, and knows no task: it passes frames on. So the process is
the same as on one machine (_worker/main.py), with the best link that works on this machine.

HOSTED-1  A process may start children even if the dask worker is daemonic, as it is below a nanny.
    multiprocessing forbids that, because daemonic processes end without ending their children. Ours
    end with their parent by themselves (_worker/watchdog.py), so the prohibition is lifted while
    one is started.
HOSTED-2  The process does not import the main module of the dask worker, which is a program of
    dask: what a client's main module defines travels by value.
HOSTED-3  What a process has published, its journal, and how many items it has started reach the
    client before the news of its exit.
HOSTED-4  Segments arrive from a client as views, whatever they were. Their bytes are copied into
    the channel of the process: a view that was lent would not be the bytes that the codec expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import get_context, process
from typing import Any

from .._parent.blocked import BlockedWatch
from .._processes.descriptors import Descriptor, Handover
from .._processes.exit import Exit
from .._processes.spawn import process_class, report_exit
from .._transport.link import Backend, Link
from .._wire import journal
from .._wire.frames import Handler, Segment
from .._worker import main
from .messages import SIGKILL, SIGTERM

KILL_AFTER = 6.0  # seconds that a process has to end when its client is gone


class ShippedSpec(main.WorkerSpec):
    """A start-up message that a client has made, and completed here."""

    def __init__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # the user's objects in it stay pickled until the worker loads it

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def packed_spec(spec: main.WorkerSpec) -> bytes:
    """A start-up message as a client sends it."""
    return pickle.dumps(spec.__getstate__())


class HostedProcess:
    """One process of a pool, on this host."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channels: Backend,
        handler: Handler,
        on_drained: Callable[[], None],
        on_broken: Callable[[BaseException], None],
        on_blocked: Callable[[], None],
        on_exit: Callable[[HostedProcess], None],
    ) -> None:
        self._loop = loop
        self._channels = channels
        self._handler = handler
        self._on_drained = on_drained
        self._on_broken = on_broken
        self._on_blocked = on_blocked
        self._on_exit = on_exit
        self._kill_timer: asyncio.TimerHandle | None = None
        self._process: Any = None
        self.exitcode: int | None = None
        self.journal = b""
        self.intact = True  # the link
        self.lacks_frame = False  # one did not reach it: it is killed, and gets no other (HOST-2)
        self._held = 0  # items that are not answered
        self._busy_since = 0.0

    def start(self, payload: bytes, gifts: Iterable[Callable[[Link], object]] = ()) -> int:
        """Start the process that a start-up message describes; returns its pid.

        `gifts` give the link what the process finds when it begins.
        """
        spec = ShippedSpec(pickle.loads(payload))
        self.link, end = self._channels.create(spec.concurrency)
        self.link.lend_nothing()  # HOSTED-4
        spec.end = end
        spec.parent_pid = os.getpid()
        parent_fd = _own_pidfd()
        spec.parent_fd = (
            None if parent_fd is None else Handover([parent_fd.fileno()], parent_fd.close)
        )
        try:
            self.link.start(
                self._loop,
                self._handler,
                on_room=_nothing,
                on_broken=self._on_broken,
                on_drained=self._on_drained,
            )
            self._blocked = BlockedWatch(
                self._loop, self.link, self._holds_several, self._on_blocked
            )
            for give_to in gifts:
                give_to(self.link)
            with may_have_children():
                self._process = process_class(get_context("spawn"))(target=main.main, args=(spec,))
                report_exit(self._process)
                with without_main():  # HOSTED-2
                    self._process.start()
            # the host's interpreter ends it at its own exit
            self._process._config["daemon"] = True
            self._exit = Exit(self._process)
            self._watch = self._exit.watch(self._loop, self._on_end)
        except BaseException:
            self.link.close()
            if self._process is not None and self._process.pid is not None:
                self._process.kill()  # no descriptor is left to watch it
            raise
        finally:
            end.release()
            if parent_fd is not None:
                parent_fd.close()
        assert self._process.pid is not None
        return int(self._process.pid)

    def give_up(self) -> None:
        """Kill it, as a frame cannot be passed on to it (HOST-2)."""
        self.lacks_frame = True
        self.kill()

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        self.send_signal(SIGKILL)

    def received(self, items: int) -> None:
        """The process was sent so many items."""
        if not self._held:
            self._busy_since = time.monotonic()
        self._held += items
        self._watch_items()

    def answered(self, items: int) -> int:
        """The process has answered so many; how long it took, in microseconds (HOST-4)."""
        self._held -= items
        self._watch_items()
        return self.take_busy()

    def take_busy(self) -> int:
        """How long it was busy since the last call, in microseconds (HOST-4)."""
        now = time.monotonic()
        busy, self._busy_since = now - self._busy_since, now
        return int(1e6 * busy)

    def _watch_items(self) -> None:
        """As PoolWorker.watch."""
        if self._holds_several():
            if not self._blocked.is_armed:
                self._blocked.arm()
        elif self._blocked.waits_longer:
            self._blocked.stop()

    def _holds_several(self) -> bool:
        return self._held > 1

    def unsent_results(self) -> bytes | None:
        """What its journal has of results now (RECOVERY-1), None if there are none."""
        with self.link.journal as memory:
            results, values = journal.parts_of(memory)
            with results, values:
                return journal.snapshot(results)

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process, if it has not ended."""
        if not self._exit.check():
            self._process.kill() if signum == SIGKILL else self._process.terminate()

    def end(self) -> None:
        """The client is gone: let the process clean up and go, or kill it after a while."""
        if self._kill_timer is None:
            self.send_signal(SIGTERM)
            self._kill_timer = self._loop.call_later(KILL_AFTER, partial(self.send_signal, SIGKILL))

    def _on_end(self) -> None:  # HOSTED-3
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self.link.drain_dead()
        self._blocked.stop()
        with self.link.journal as memory:
            self.journal = journal.shortened(memory)  # JOURNAL-7
        self.exitcode = self._exit.exitcode
        self.link.close()
        self._process.close()
        self._on_exit(self)


def _nothing() -> None:
    """A link has room again: nothing here waits for that."""


@contextlib.contextmanager
def may_have_children() -> Iterator[None]:
    """Let this process start others even if it is daemonic (HOSTED-1)."""
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    daemon = config.get("daemon")
    config["daemon"] = False
    try:
        yield
    finally:
        if daemon is None:
            del config["daemon"]
        else:
            config["daemon"] = daemon


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module from what multiprocessing tells a new process (HOSTED-2)."""
    names = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: names[name] for name in ("__file__", "__spec__") if name in names}
    names.pop("__file__", None)
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(kept)


def _own_pidfd() -> Descriptor | None:
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox that refuses it
            return Descriptor(os.pidfd_open(os.getpid()))
    return None


def segments_to_send(segments: list[memoryview | int]) -> list[Segment]:
    """The segments of a frame for a process. MemoryError if one had no memory (FRAME-5)."""
    if int in map(type, segments):
        raise MemoryError("a part of this frame has not arrived")
    return segments  # type: ignore[return-value]
