"""The transport contract: how links are started, where they run, and how they are closed.

Every backend passes these tests, regardless of how it works inside. LINK-1 ... LINK-10 are the
rules of _transport/link.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

import transport_support
from aiomultiprocess._transport.link import Backend
from aiomultiprocess._transport.windows import WindowsPipeBackend
from transport_support import (
    Pair,
    flood,
    say,
)

made = transport_support.made
pair = transport_support.pair

# -- LINK-8: close ---------------------------------------------------------------------------------


async def test_close_is_idempotent_and_everything_after_it_does_nothing(pair: Pair) -> None:
    pair.listen()
    pair.worker.link.counter.mark_started(3)
    flood(pair.parent.link)
    for receiver in (pair.parent, pair.worker):
        for _ in range(2):
            receiver.link.close()
    for receiver in (pair.parent, pair.worker):
        say(receiver.link, 1)
        receiver.link.drain_dead()
        assert not receiver.link.congested
    assert pair.parent.link.started == 3
    await asyncio.sleep(0)
    assert pair.worker.frames == []
    assert pair.parent.rooms == 0


async def test_closing_a_backend_closes_its_links(made: Backend) -> None:
    pairs = [Pair(made).listen() for _ in range(3)]
    for pair in pairs:
        say(pair.parent.link, 1)
    made.close()
    made.close()
    for pair in pairs:
        say(pair.parent.link, 2)
        pair.close()


def test_a_link_whose_loop_is_closed_can_be_closed(made: Backend) -> None:
    loop = asyncio.new_event_loop()
    pair = Pair(made)
    pair.parent.listen(loop)
    pair.worker.listen(loop)
    loop.close()
    pair.close()


async def test_a_link_that_was_never_started_can_be_closed(pair: Pair) -> None:
    pair.close()


def test_descriptors_for_a_worker_are_few_and_constant(made: Backend) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    constant = {"shm": 2, "pipe": 3}[made.name] - isinstance(made, WindowsPipeBackend)
    before = descriptors()
    links = []
    for _ in range(5):
        link, end = made.create()
        end.release()
        end.release()
        links.append(link)
    assert descriptors() == before + 5 * constant
    for link in links:
        link.close()
    assert descriptors() == before


# -- where links run -------------------------------------------------------------------------------


async def test_links_are_started_once(pair: Pair) -> None:
    pair.listen()
    with pytest.raises(RuntimeError, match="started once"):
        pair.parent.listen()


async def test_a_loop_that_cannot_watch_descriptors_is_refused_by_name(pair: Pair) -> None:
    class ProactorEventLoop(asyncio.BaseEventLoop):
        pass

    loop = ProactorEventLoop()
    with pytest.raises(RuntimeError, match="ProactorEventLoop cannot watch descriptors"):
        pair.parent.listen(loop)
    loop.close()


@pytest.fixture(scope="session")
def new_uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    uvloop = pytest.importorskip("uvloop", reason="an optional dependency")
    uvloop.new_event_loop().close()  # libuv keeps two descriptors for the process from now on
    return uvloop.new_event_loop  # type: ignore[no-any-return]


def test_links_run_on_uvloop_too(
    new_uvloop: Callable[[], asyncio.AbstractEventLoop], made: Backend
) -> None:
    async def scenario() -> None:
        pair = Pair(made).listen()
        down = flood(pair.parent.link)
        up = flood(pair.worker.link, 300_000)
        await pair.worker.receives(down)
        await pair.parent.receives(up)
        assert pair.worker.chunk_ids == list(range(down))
        assert pair.parent.chunk_ids == list(range(up))
        pair.close()

    with asyncio.Runner(loop_factory=new_uvloop) as runner:
        runner.run(scenario())
