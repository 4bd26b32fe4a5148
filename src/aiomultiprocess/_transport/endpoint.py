"""What the links of both transports do alike; the contract is in link.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._wire.frames import Handler
from .link import Callback, StartedCounter, WorkerMemory


def watch_fd(
    loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[..., object], *args: object
) -> None:
    """`loop.add_reader`, with an error that tells what to do where a loop has none."""
    try:
        loop.add_reader(fd, callback, *args)
    except NotImplementedError:
        raise RuntimeError(
            f"{type(loop).__name__} cannot watch descriptors: run aiomultiprocess on a selector "
            "event loop (on Windows: asyncio.SelectorEventLoop) or on uvloop"
        ) from None


class Endpoint:
    """What the links of both transports do alike: LINK-4, LINK-6, LINK-7 and LINK-8.

    A transport defines `_stop_listening` (stop listening), `_release` (give everything back; called
    once, and not while a callback runs), and `_drain_all`, and lets the loop call `_turn`.
    """

    def __init__(self, memory: WorkerMemory, links: Links | None = None) -> None:
        """`links` holds the parent's endpoints while they are open."""
        self.counter: StartedCounter = memory
        self._memory = memory
        self._final_started: int | None = None  # once closed
        self._links = Links() if links is None else links
        self._links.add(self)
        self.congested = False
        self._closed = False
        self._released = False
        self._broken = False
        self._busy = False
        self._continued = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handler: Handler = _unstarted
        self._on_room: Callback = _unstarted
        self._on_broken: Callable[[BaseException], None] = _unstarted
        self._on_drained: Callback | None = None

    @property
    def started(self) -> int:
        """What the worker marked as started."""
        final = self._final_started
        return self._memory.started if final is None else final

    @property
    def journal(self) -> memoryview:
        """A new view of the worker's journal."""
        return self._memory.journal

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        on_room: Callback,
        on_broken: Callable[[BaseException], None],
        on_drained: Callback | None = None,
    ) -> None:
        """Begin to receive in `loop`."""
        if self._loop is not None or self._closed:
            raise RuntimeError("a link is started once, before it is closed")
        self._loop = loop
        self._handler = handler
        self._on_room = on_room
        self._on_broken = on_broken
        self._on_drained = on_drained
        self._listen(loop)

    def _turn(self, work: Callable[[], bool]) -> None:
        """One callback of the loop: `work`, and again soon if it says that there is more
        (LINK-4)."""
        if self._closed or self._broken or self._continued:
            return
        again = True  # also when KeyboardInterrupt cuts `work` short (LINK-7)
        self._busy = True
        try:
            again = work()
        except Exception as error:  # noqa: BLE001 - whatever it is, a frame was lost: LINK-7
            again = False
            self._break(error)
        finally:
            self._busy = False
            if self._closed:
                self._end()
            elif again and not self._broken:
                self._continue(work)

    def _continue(self, work: Callable[[], bool]) -> None:
        assert self._loop is not None
        if not self._continued:
            self._continued = True
            self._loop.call_soon(self._continuation, work)

    def _continuation(self, work: Callable[[], bool]) -> None:
        self._continued = False
        self._turn(work)

    def _break(self, error: BaseException) -> None:
        if not self._closed and not self._broken:
            self._broken = True
            self._stop_listening()
            self._on_broken(error)

    def drain_dead(self) -> None:
        """Hand over all that the dead worker had published (LINK-9)."""
        if self._closed or self._broken:
            return
        if self._busy:
            raise RuntimeError("drain_dead() was called from a callback of the same link")
        self._busy = True
        try:
            self._drain_all()
        except Exception as error:  # noqa: BLE001 - LINK-7
            self._break(error)
        finally:
            self._busy = False
            if self._closed:
                self._end()

    def close(self) -> None:
        """Give everything back, at once or as soon as the running callback is over (LINK-8)."""
        if self._closed:
            return
        self._closed = True
        self.congested = False
        self._stop_listening()
        if not self._busy:
            self._end()

    def abandon(self) -> None:
        """Give everything back in a forked copy of this process, but leave its loop alone.

        A forked child shares the epoll instance: to remove a descriptor there would make the
        process that it was forked from deaf.
        """
        if not self._closed:
            self._closed = True
            self._loop = None
            self._end()

    def _end(self) -> None:
        if not self._released:  # in a copy that was forked by a callback of ours
            self._released = True
            self._links.discard(self)
            self._final_started = self._memory.started
            self._release()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        raise NotImplementedError

    def _stop_listening(self) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _drain_all(self) -> None:
        raise NotImplementedError


class Links(set["Endpoint"]):
    """The parent's links of one backend that are not closed; each adds and removes itself."""

    def close(self) -> None:
        """Close them all."""
        for link in list(self):
            link.close()

    def abandon(self) -> None:
        """Abandon them all, see `Endpoint.abandon`."""
        for link in list(self):
            link.abandon()


def _unstarted(*args: object) -> None:
    raise RuntimeError("a link must be started before it can hand over anything")
