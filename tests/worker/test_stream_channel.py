"""The way of a stream's values to the parent, where the system refuses memory for their frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aiomultiprocess._wire.frames import Segment
from aiomultiprocess._worker.streams import Batch, Channel, run_stream

REFUSED = "there is no memory for 4 bytes"


class FullLink:
    """A link that can hold no frame but the first."""

    congested = False

    def __init__(self) -> None:
        self.journal = memoryview(bytearray(1 << 16))
        self.sent: list[int] = []  # how many values each frame had

    def send(self, kind: int, *, count: int, chunk_id: int, payload: Sequence[Segment]) -> None:
        if self.sent:
            raise MemoryError(REFUSED)
        self.sent.append(count)

    def flush(self) -> None:
        """Nothing waits."""


@pytest.mark.row("H167")
@pytest.mark.parametrize("more", [0, 1, 5])
async def test_a_stream_whose_values_were_lost_ends_with_the_reason(more: int) -> None:
    closed = []

    async def values() -> AsyncIterator[int]:
        try:
            for number in range(4):
                yield number
                await asyncio.sleep(0)  # what was yielded is sent meanwhile, or refused
                await asyncio.sleep(0)
                if number == more:
                    break
        finally:
            closed.append(number)

    link: Any = FullLink()
    batch = Batch(link)
    channel = Channel(asyncio.get_running_loop(), batch, 1, 64, None)
    if more == 0:  # one frame: nothing is refused
        assert await run_stream(values(), channel, lambda: None) == 1
    else:
        with pytest.raises(MemoryError, match=REFUSED):
            await run_stream(values(), channel, lambda: None)
    assert link.sent == [1]
    (last,) = closed
    assert last <= min(more, 2)  # the third value finds the error; after a long burst, the second
    batch.close()


@pytest.mark.row("H167")
@pytest.mark.parametrize(("count", "ahead"), [(2, 1), (100, 1), (65, 64), (1000, 64)])
async def test_a_stream_does_not_wait_for_a_reader_of_lost_values(count: int, ahead: int) -> None:
    link: Any = FullLink()
    link.sent.append(0)  # it holds no frame at all
    batch = Batch(link)
    channel = Channel(asyncio.get_running_loop(), batch, 1, ahead, None)
    async with asyncio.timeout(20):
        with pytest.raises(MemoryError, match=REFUSED):
            await run_stream(iter(range(count)), channel, lambda: None)
    batch.close()
