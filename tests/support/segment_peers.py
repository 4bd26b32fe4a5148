"""The worker's side of test_segment_deaths.py: it dies at a given step of a segment's life."""

from __future__ import annotations

import array
import asyncio
import pickle
from collections.abc import Callable
from typing import Any

from aiomultiprocess._transport import segments
from aiomultiprocess._transport.descriptor_socket import DescriptorSocket
from aiomultiprocess._transport.link import ChildEnd, Link
from aiomultiprocess._wire.frames import Kind
from transport_peers import HALF, die

SIZE = 300_000


def die_before(owner: Any, name: str, at: int = 1) -> None:
    """Die instead of the call of a method that is the `at`-th."""
    _die_around(owner, name, at, after=False)


def die_after(owner: Any, name: str, at: int = 1) -> None:
    """Die when that call returns."""
    _die_around(owner, name, at, after=True)


def _die_around(owner: Any, name: str, at: int, *, after: bool) -> None:
    method = getattr(owner, name)
    left = at

    def wrapped(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left or after:
            result = method(*args)
        if not left:
            die()
        return result

    setattr(owner, name, wrapped)


def send(link: Link, fill: int = 1, size: int = SIZE, tail: int = 0) -> None:
    view = pickle.PickleBuffer(array.array("B", bytes([fill]) * size)).raw()
    payload = [b"head", view, *([bytes(tail)] if tail else [])]
    link.send(Kind.RESULTS, chunk_id=fill, payload=payload)
    link.flush()


#: How an owner dies: what is patched before it sends, and whether the first frame is published.
OWNER_STEPS: dict[str, tuple[Callable[[], object], bool]] = {
    "made": (lambda: die_before(DescriptorSocket, "send"), False),
    "descriptor sent": (lambda: die_after(DescriptorSocket, "send"), False),
    "filled": (lambda: die_after(segments.Lender, "_lend"), False),
    "published": (lambda: die_before(segments.Lender, "_lend", 2), True),
    "second made": (lambda: die_before(DescriptorSocket, "send", 2), True),
    "second descriptor sent": (lambda: die_after(DescriptorSocket, "send", 2), True),
    "second filled": (lambda: die_after(segments.Lender, "_lend", 2), True),
}


def own_and_die(end: ChildEnd, step: str) -> None:
    """Send two buffers, and die at a step."""
    OWNER_STEPS[step][0]()
    link = _started(end)
    send(link, 1)
    send(link, 2)


def own_and_die_in_a_frame(end: ChildEnd) -> None:
    """Send a buffer, and die when half of a frame with another is published."""
    link = _started(end)
    send(link, 1)
    send(link, 2, tail=HALF)
    assert link.congested
    die()


def own_until_closed(end: ChildEnd) -> None:
    """Send a buffer for each frame that comes; die with the third, of another size."""
    link = end.open()
    loop = asyncio.new_event_loop()

    def take(_kind: int, _flags: int, _count: int, chunk_id: int, *_: object) -> None:
        if chunk_id == 3:
            die_after(segments.Lender, "_forget")
        send(link, chunk_id, SIZE if chunk_id < 3 else 2_000_000)

    link.start(loop, take, lambda: None, lambda error: die())
    loop.run_forever()


def _started(end: ChildEnd) -> Link:
    link = end.open()
    link.start(asyncio.new_event_loop(), lambda *_: None, lambda: None, lambda _: None)
    return link


#: How a borrower dies.
BORROWER_STEPS = ("unread", "received", "mapped", "held", "answered")


def borrow_and_die(end: ChildEnd, step: str) -> None:
    """Receive a buffer, and die at a step."""
    if step == "unread":
        die()
    if step == "received":
        die_after(DescriptorSocket, "receive")
    if step == "mapped":
        die_after(segments.Borrower, "_receive_all")
    link = end.open()
    loop = asyncio.new_event_loop()

    def take(*frame: Any) -> None:
        kept = list(frame[-1].segments)
        assert type(kept[1]) is memoryview
        if step == "answered":
            kept.clear()
            frame[-1].segments.clear()
        die()

    link.start(loop, take, lambda: None, lambda error: die())
    loop.run_forever()
