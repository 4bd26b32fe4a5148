"""A process dies at any step of the life of a segment: nothing is left, and what arrived stays.

The rows of the table in _transport/segments.py. The worker is killed; that the parent dies is the
same for its worker, which watches it and ends (test_watchdog.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

import conftest
import segment_peers as peers
import segment_support as support
import transport_support
from aiomultiprocess._transport import segments, select
from aiomultiprocess._transport.link import Backend, Limits
from segment_support import SIZE, Keeper, buffer, is_lent, view_of
from transport_support import Receiver, say, start

pytestmark = pytest.mark.skipif(not segments.works(), reason="segments need memfd and amp_ext")

no_process_outlives_its_test = transport_support.no_process_outlives_its_test


@pytest.fixture(params=conftest.BACKENDS)
def made(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = select.select(request.param).make()
    yield made
    made.close()


async def dead(process: object) -> None:
    await asyncio.to_thread(process.join, 20)  # type: ignore[attr-defined]
    assert process.exitcode == -signal.SIGKILL  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", peers.OWNER_STEPS)
@pytest.mark.row("H106")
async def test_an_owner_that_dies_leaves_what_it_has_published_and_nothing_else(
    made: Backend, step: str
) -> None:
    link, end = made.create()
    keeper = Keeper(Receiver(link).listen())
    await dead(start("spawn", peers.own_and_die, end, step))
    link.drain_dead()
    got = list(keeper.got)
    keeper.got.clear()
    assert list(map(is_lent, got)) == [True] * peers.OWNER_STEPS[step][1]
    link.close()
    assert support.mapped() == len(got)
    for one in got:
        one[0] = 9
        assert bytes(one) == b"\x09" + bytes([1]) * (SIZE - 1)
    got.clear()
    if peers.OWNER_STEPS[step][1]:
        del one
    assert support.mapped() == 0


@pytest.mark.row("H108")
async def test_a_frame_that_is_published_in_part_is_dropped_with_its_segment(
    made: Backend,
) -> None:
    link, end = made.create()
    keeper = Keeper(Receiver(link).listen())
    process = start("spawn", peers.own_and_die_in_a_frame, end)
    process.join(20)  # this loop stands still, or it might read the whole frame
    await dead(process)
    link.drain_dead()
    assert [bytes(one[:2]) for one in keeper.got] == [b"\1\1"]
    keeper.got.clear()
    link.close()
    assert support.mapped() == 0


async def test_an_object_lives_on_when_the_owner_of_its_segment_dies(made: Backend) -> None:
    link, end = made.create()
    keeper = Keeper(Receiver(link).listen())
    process = start("spawn", peers.own_until_closed, end)
    say(link, 1)
    held = await keeper.next()
    os.kill(process.pid or 0, signal.SIGKILL)
    await dead(process)
    link.drain_dead()
    link.close()
    held[5] = 3
    assert (held[4], held[5], len(held)) == (1, 3, SIZE)
    assert support.mapped() == 1
    del held
    assert support.mapped() == 0


@pytest.mark.parametrize("seen", [False, True])
async def test_an_owner_dies_after_the_object_is_gone(made: Backend, seen: bool) -> None:
    link, end = made.create()
    keeper = Keeper(Receiver(link).listen())
    process = start("spawn", peers.own_until_closed, end)
    for chunk_id in (1, 2)[: 1 + seen]:  # with the second it finds the answer to the first
        say(link, chunk_id)
        await keeper.next()
    assert support.mapped() == 1
    os.kill(process.pid or 0, signal.SIGKILL)
    await dead(process)
    link.drain_dead()
    link.close()
    assert support.mapped() == 0


async def test_an_owner_dies_before_it_has_told_what_it_has_forgotten(made: Backend) -> None:
    made.limits = Limits(total=4 << 20)
    link, end = made.create()
    keeper = Keeper(Receiver(link).listen())
    process = start("spawn", peers.own_until_closed, end)
    say(link, 1)
    await keeper.next()
    say(link, 3)
    await dead(process)
    link.drain_dead()
    assert not keeper.got
    assert support.mapped() == 1
    link.close()
    assert support.mapped() == 0


@pytest.mark.parametrize("step", peers.BORROWER_STEPS)
@pytest.mark.row("H106")
async def test_a_borrower_that_dies_leaves_nothing(made: Backend, step: str) -> None:
    link, end = made.create()
    Receiver(link).listen()
    support.send(link, view_of(buffer()), view_of(buffer()))
    assert support.mapped() == 2
    await dead(start("spawn", peers.borrow_and_die, end, step))
    link.drain_dead()
    support.send(link, view_of(buffer()))  # the parent may not know yet that it is dead
    link.close()
    assert support.mapped() == 0
