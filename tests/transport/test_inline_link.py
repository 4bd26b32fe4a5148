"""The contract of links holds inline: the tests of other modules, over the backend "inline".

A link within a loop takes whatever it is sent: it is never congested, and copies nothing of a frame
after `send`. `LEFT_OUT` names the tests of a full channel, of memory, and of descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import test_running_items
import test_transport
import test_transport_callbacks
import test_transport_ends

import transport_support
from aiomultiprocess._transport.inline import InlineBackend, LocalMemory

MODULES = (test_running_items, test_transport, test_transport_callbacks, test_transport_ends)

LEFT_OUT = """
    test_a_closed_memory_refuses_its_table
    test_a_damaged_head_breaks_the_link_that_writes_but_not_inside_send
    test_a_damaged_ring_breaks_the_link_that_reads_it
    test_a_frame_that_is_sent_from_on_room_keeps_its_place
    test_a_full_channel_is_congested_until_its_outbox_is_empty
    test_a_loop_that_cannot_watch_descriptors_is_refused_by_name
    test_a_payload_that_is_too_much_for_memory_arrives_without_it
    test_a_peer_that_answers_everything_at_once_does_not_deadlock
    test_an_entry_that_changes_while_it_is_read_does_not_count
    test_close_is_idempotent_and_everything_after_it_does_nothing
    test_descriptors_for_a_worker_are_few_and_constant
    test_links_run_on_uvloop_too
    test_of_a_frame_that_is_too_much_for_memory_nothing_is_sent
    test_the_loop_runs_other_callbacks_while_a_large_payload_arrives
    test_two_full_directions_do_not_wait_for_each_other
"""

pair = transport_support.pair


@pytest.fixture
def made() -> Iterator[InlineBackend]:
    made = InlineBackend()
    yield made
    made.close()


@pytest.fixture
def memories() -> tuple[LocalMemory, LocalMemory]:
    memory = LocalMemory(3)
    return memory, memory


async def test_a_link_that_was_closed_takes_nothing_and_may_be_closed_again(
    pair: transport_support.Pair,
) -> None:
    pair.listen()
    for _ in range(2):
        pair.worker.link.close()
        transport_support.say(pair.parent.link, 1)
        transport_support.say(pair.worker.link, 2)
    assert (pair.parent.frames, pair.worker.frames) == ([], [])


def collect() -> dict[str, Any]:
    """The tests of all modules, by their names."""
    found = {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith("test_") and getattr(value, "__module__", "") == module.__name__
    }
    for name in LEFT_OUT.split():
        del found[name]
    return found


globals().update(collect())
