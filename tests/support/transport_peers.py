"""The worker's side of test_transport_*.py: light, because spawned processes import it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from aiomultiprocess._transport.link import ChildEnd, Link
from aiomultiprocess._wire.frames import Kind

#: Large enough to fill any channel, so that a half of it is under way when the writer dies.
HALF = 8_000_000


def serve(link: Link, answer: Callable[[int, bytes], None]) -> None:
    """Call `answer` with each frame's chunk_id and payload until CLOSE comes."""
    loop = asyncio.new_event_loop()
    done = loop.create_future()

    def handler(
        kind: int, _flags: int, _count: int, chunk_id: int, _offset: int, _function: int,
        payload: memoryview,
    ) -> None:  # fmt: skip
        if kind == Kind.CLOSE:
            done.set_result(None)
        else:
            answer(chunk_id, bytes(payload))

    link.start(loop, handler, lambda: None, done.set_exception, link.flush)
    loop.run_until_complete(done)
    link.close()
    loop.close()


def echo(end: ChildEnd) -> None:
    """Send every frame back."""
    link = end.open()
    serve(
        link,
        lambda chunk_id, payload: link.send(Kind.RESULTS, chunk_id=chunk_id, payload=[payload]),
    )


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def _own_descriptors(link: Any) -> list[int]:
    if hasattr(link, "_sock"):
        return [link._sock.fileno()]
    return [*link._bell.fds, *link._listener.bell.fds]


def count_descriptors(end: ChildEnd) -> None:
    """Answer every frame with three numbers of descriptors: before, after, and to be inherited."""
    before = _descriptors()
    link = end.open()
    after = _descriptors()
    passed_on = [fd for fd in _own_descriptors(link) if os.get_inheritable(fd)]
    answer = f"{before} {after} {len(passed_on)}".encode()
    serve(
        link,
        lambda chunk_id, _payload: link.send(Kind.RESULTS, chunk_id=chunk_id, payload=[answer]),
    )


def _started(end: ChildEnd) -> Link:
    link = end.open()
    link.start(asyncio.new_event_loop(), _ignore, lambda: None, _ignore)
    return link


def _ignore(*_args: object) -> None:
    pass


def die() -> None:
    """End this process where it stands."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(end: ChildEnd, text: bytes) -> None:
    """Leave something in the journal, and nothing in the channel."""
    link = end.open()
    link.journal[: len(text)] = text
    die()


def mark_and_die(end: ChildEnd, total: int) -> None:
    """Mark items as started, one by one, and die of the next instruction."""
    counter = _started(end).counter
    for n in range(1, total + 1):
        counter.mark_started(n)
    die()


def publish_and_die(end: ChildEnd, frames: int) -> None:
    """Publish some frames, leave a large one half written, and die."""
    link = _started(end)
    for chunk_id in range(frames):
        link.send(Kind.RESULTS, chunk_id=chunk_id, payload=[b"x" * chunk_id])
    link.flush()
    link.send(Kind.RESULTS, chunk_id=frames, payload=[b"head", bytes(HALF)])
    link.flush()
    assert link.congested
    die()


def stream(end: ChildEnd, frames: int, batch: int) -> None:
    """Send small frames as fast as room allows, a flush for each batch, then wait for CLOSE."""
    link = end.open()
    loop = asyncio.new_event_loop()
    done = loop.create_future()
    at = 0

    def more() -> None:
        nonlocal at
        while at < frames and not link.congested:
            link.send(Kind.RESULTS, chunk_id=at, payload=[b"some result"])
            at += 1
            if not at % batch:
                link.flush()
        link.flush()

    link.start(loop, lambda *_frame: done.set_result(None), more, done.set_exception)
    loop.call_soon(more)
    loop.run_until_complete(done)
    link.close()
    loop.close()
