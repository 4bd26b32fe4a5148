"""A saturated stream of small frames over one link: the transport alone, no pool and no items.

One process sends, publishes each frame by itself, and pauses for nothing but a full channel;
another takes what comes. Light: the receiver imports it.
"""

import asyncio
import multiprocessing
from time import perf_counter
from typing import Any

from aiomultiprocess._processes.spawn import process_class
from aiomultiprocess._transport import select
from aiomultiprocess._transport.link import ChildEnd, Link
from aiomultiprocess._wire.frames import Kind

PAYLOAD = bytes(64)


async def stream(name: str, count: int) -> dict[str, float]:
    """Send `count` frames through the backend `name`.

    Returns the seconds until the last was taken, and where the backend counts them the doorbells
    that were rung and the frames that were published.
    """
    loop = asyncio.get_running_loop()
    channels = select.select(name).make()
    link, end = channels.create()
    started, taken, room = loop.create_future(), loop.create_future(), asyncio.Event()

    def answered(kind: int, _flags: int, count: int, *_: Any) -> None:
        (started if kind == Kind.READY else taken).set_result(count)

    link.start(loop, answered, on_room=room.set, on_broken=taken.set_exception)
    process = process_class(multiprocessing.get_context("spawn"))(target=receive, args=(end,))
    try:
        process.start()
        end.release()
        await started
        before, begin = counted(link), perf_counter()
        await _send(link, count, room)
        received = await taken
        seconds = perf_counter() - begin
        if received != count:
            raise ValueError(f"{received} of {count} frames arrived")
        found = {name: n - before[name] for name, n in counted(link).items()}
        return found | {"seconds": seconds}
    finally:
        process.join()
        link.close()
        channels.close()


async def _send(link: Link, count: int, room: asyncio.Event) -> None:
    for _ in range(count):
        while link.congested:
            room.clear()
            await room.wait()
        link.send(Kind.CHUNK, payload=(PAYLOAD,))
        link.flush()
    link.send(Kind.CLOSE)
    link.flush()


def counted(link: Any) -> dict[str, float]:
    """What a link on shared memory counts of what it sends; the pipe counts nothing."""
    producer = getattr(link, "_producer", None)
    return {} if producer is None else {"bells": producer.bells, "frames": producer.published}


def receive(end: ChildEnd) -> None:
    """In the other process: take frames until one says CLOSE, and send back how many there were."""
    loop = asyncio.new_event_loop()
    link, seen = end.open(), 0

    def handler(kind: int, *_: Any) -> None:
        nonlocal seen
        if kind == Kind.CHUNK:
            seen += 1
        else:
            link.send(Kind.RESULTS, count=seen)
            link.flush()
            loop.call_soon(loop.stop)

    link.start(loop, handler, on_room=link.flush, on_broken=broken)
    link.send(Kind.READY)
    link.flush()
    loop.run_forever()
    link.close()
    loop.close()


def broken(error: BaseException) -> None:
    raise error
