"""What the tests of segments share: buffers, a channel whose ends keep what they get, its state."""

from __future__ import annotations

import array
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiomultiprocess._transport import segments
from aiomultiprocess._transport.link import Backend, Limits, Link
from aiomultiprocess._wire import frames
from aiomultiprocess._wire.frames import Kind
from transport_support import Pair, Receiver

SIZE = 300_000


def buffer(size: int = SIZE, fill: int = 1) -> array.array[int]:
    """Something whose memory pickle gives out of band."""
    return array.array("B", bytes([fill]) * size)


def view_of(data: Any, *, readonly: bool = False) -> memoryview:
    """A segment of a payload, as the codec makes it of a buffer of a pickle."""
    view = pickle.PickleBuffer(data).raw()
    return view.toreadonly() if readonly else view


def send(link: Link, *views: Any, chunk_id: int = 1) -> None:
    link.send(Kind.CHUNK, chunk_id=chunk_id, payload=[b"head", *views])
    link.flush()


class Keeper:
    """Keeps the segments of each payload that one end receives, without its head."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.got: list[Any] = []
        receiver.take = self._take

    def _take(self, *frame: Any) -> None:
        payload = frame[-1]
        self.got += payload.segments[1:] if isinstance(payload, frames.PayloadParts) else [None]

    async def next(self) -> Any:
        """Take the oldest that was not taken."""
        await self.receiver.until(lambda: self.got)
        return self.got.pop(0)


class Channel(Pair):
    """Both ends in this process: the parent sends, the worker keeps."""

    def __init__(self, made: Backend, limits: Limits | None = None) -> None:
        if limits is not None:
            made.limits = limits
        super().__init__(made)
        self.listen()
        self.keeper = Keeper(self.worker)

    async def pass_on(self, *views: Any) -> Any:
        """What arrives of one payload; a list of several."""
        send(self.parent.link, *views)
        got = [await self.keeper.next() for _ in views]
        return got[0] if len(got) == 1 else got

    @property
    def lender(self) -> segments.Lender:
        return lender_of(self.parent.link)

    @property
    def borrower(self) -> segments.Borrower:
        borrower = self.worker.link._large._borrower  # type: ignore[attr-defined]
        assert isinstance(borrower, segments.Borrower)
        return borrower


def lender_of(link: Any) -> segments.Lender:
    lender = link._large._lender
    assert isinstance(lender, segments.Lender)
    return lender


def is_lent(got: Any) -> bool:
    """Whether a segment that arrived lies in shared memory."""
    return type(got) is memoryview


def mapped(pid: int | str = "self") -> int:
    """How many mappings of segments a process has."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:aiomultiprocess-segment")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_a_fork(check: Callable[[], bool]) -> Callable[[], bool]:
    """Fork; the result waits for the child, and says what `check` said in it when it was called."""
    gate, open_gate = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(open_gate)
        os.read(gate, 1)
        os._exit(0 if check() else 1)
    os.close(gate)

    def ask() -> bool:
        os.write(open_gate, b"x")
        os.close(open_gate)
        return os.waitpid(pid, 0)[1] == 0

    return ask
