"""The transport contract: nothing polls, no wake-up is needless, and none is lost.

Every backend passes these tests, regardless of how it works inside. LINK-1 ... LINK-10 are the
rules of _transport/link.py.
"""

from __future__ import annotations

import asyncio

import pytest

import conftest
import transport_peers as peers
import transport_support
from aiomultiprocess._transport import shm
from aiomultiprocess._transport.link import BATCH_FRAMES, Backend
from aiomultiprocess._wire.frames import Kind
from transport_support import (
    CountingSelector,
    Pair,
    Receiver,
    finished,
    flood,
    pattern,
    run_counted,
    say,
    send,
    start,
)

made = transport_support.made
pair = transport_support.pair
no_process_outlives_its_test = transport_support.no_process_outlives_its_test


def test_an_idle_pair_makes_no_wake_up(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        pair = Pair(made).listen()
        say(pair.parent.link, 1, payload=pattern(5000))
        say(pair.worker.link, 2, payload=pattern(500_000))
        await pair.worker.receives(1)
        await pair.parent.receives(1)
        for _ in range(5):  # what the traffic left to do, sleep() at the end of a turn, is done
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.3)  # nothing is to happen, for which there is no event
        assert selector.wakeups - before <= 2  # to fall asleep, and to wake from it
        pair.close()

    run_counted(scenario)


def test_a_congested_pair_whose_peer_sleeps_makes_no_wake_up(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        pair = Pair(made)
        pair.parent.listen()
        flood(pair.parent.link)
        for _ in range(20):
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.2)  # as above
        assert selector.wakeups - before <= 2
        pair.close()

    run_counted(scenario)


@pytest.mark.row("C33")
@conftest.FORK_WARNING
async def test_a_ping_pong_of_sleepers_loses_no_wake_up(made: Backend) -> None:
    link, end = made.create()
    receiver = Receiver(link).listen()
    process = start("fork", peers.echo, end)
    for done in range(1000):
        say(link, done)
        await receiver.receives(done + 1)
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)


@conftest.FORK_WARNING
def test_a_stream_wakes_its_reader_less_than_once_in_twenty_frames(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        link, end = made.create()
        receiver = Receiver(link).listen()
        process = start("fork", peers.stream, end, 8000, 50)
        await receiver.receives(1)
        before = selector.wakeups
        await receiver.receives(8000)
        assert (selector.wakeups - before) * 20 < 8000
        assert receiver.chunk_ids == list(range(8000))
        say(link, 0)
        await finished(process)
        link.close()

    run_counted(scenario)


async def test_room_that_is_announced_while_a_turn_is_continued_is_used(pair: Pair) -> None:
    """The bell finds a turn under way and is left to it (shm.py, SHM-5): that turn must also
    write."""
    pair.listen()
    await asyncio.sleep(0)
    parent, worker = pair.parent.link, pair.worker.link
    sent = 0

    def make_room() -> None:
        assert isinstance(worker, shm.ShmLink)
        assert worker._inlet is not None
        while worker._inlet.drain():  # and ring, once
            pass

    def fill_up(payload: memoryview) -> None:
        nonlocal sent
        if len(pair.parent.frames) == BATCH_FRAMES:  # the turn ends with this one, to be continued
            sent = flood(parent)
            if isinstance(parent, shm.ShmLink):  # a socket reports room as long as there is any
                loop = asyncio.get_running_loop()
                loop.call_soon(make_room)
                loop.call_soon(parent._listener._rung)  # before the continuation

    pair.parent.act = fill_up
    say(worker, *range(2 * BATCH_FRAMES))
    await pair.worker.until(lambda: sent and len(pair.worker.frames) == sent)
    await pair.parent.receives(2 * BATCH_FRAMES)


async def test_frames_of_one_flush_arrive_in_one_batch(pair: Pair) -> None:
    pair.listen()
    for chunk_id in range(50):
        send(pair.parent.link, chunk_id, pattern(100))
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.worker.frames == []
    pair.parent.link.flush()
    await pair.worker.receives(50)
    await asyncio.sleep(0)
    assert pair.worker.batches == [50]


async def test_a_batch_rings_the_bell_once(pair: Pair) -> None:
    pair.listen()
    await asyncio.sleep(0)  # shm: both ends go to sleep
    if isinstance(pair.parent.link, shm.ShmLink):
        for done in (1, 2, 3):
            say(pair.parent.link, *range(20))
            say(pair.parent.link, *range(20))  # no reader sleeps, so no bell is rung
            assert pair.parent.link._producer.bells == done
            await pair.worker.receives(40 * done)
            await asyncio.sleep(0)
