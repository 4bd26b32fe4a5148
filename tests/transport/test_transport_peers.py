"""The transport contract between processes, alive and dead.

Every backend passes these tests, regardless of how it works inside. LINK-1 ... LINK-10 are the
rules of _transport/link.py.
"""

from __future__ import annotations

import asyncio
import pickle
import signal

import pytest

import transport_peers as peers
import transport_support
from aiomultiprocess._transport.link import Backend
from aiomultiprocess._transport.windows import SharedChildEnd
from aiomultiprocess._wire.frames import Kind
from transport_support import (
    METHODS,
    CountingSelector,
    Receiver,
    finished,
    pattern,
    run_counted,
    say,
    send,
    start,
)

made = transport_support.made
no_process_outlives_its_test = transport_support.no_process_outlives_its_test


@pytest.mark.parametrize("method", METHODS)
async def test_every_start_method_hands_over_the_child_end(made: Backend, method: str) -> None:
    link, end = made.create()
    receiver = Receiver(link).listen()
    sizes = [0, 10, 5_000, 3_000_000, 1]
    for chunk_id, size in enumerate(sizes):  # before the process exists
        send(link, chunk_id, pattern(size, chunk_id))
    link.flush()
    process = start(method, peers.echo, end)
    await receiver.receives(len(sizes))
    assert receiver.payloads == [pattern(size, chunk_id) for chunk_id, size in enumerate(sizes)]
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)


@pytest.mark.parametrize("method", METHODS)
async def test_siblings_talk_at_the_same_time(made: Backend, method: str) -> None:
    receivers, processes = [], []
    for _ in range(2):
        link, end = made.create()
        receivers.append(Receiver(link).listen())
        processes.append(start(method, peers.echo, end))
    for receiver in receivers:
        say(receiver.link, *range(300), payload=pattern(3000))
    for receiver in receivers:
        await receiver.receives(300)
        assert receiver.chunk_ids == list(range(300))
    receivers[0].link.send(Kind.CLOSE)
    receivers[0].link.flush()
    await finished(processes[0])
    receivers[0].link.close()
    say(receivers[1].link, 300)
    await receivers[1].receives(301)  # the end of one worker does not affect the other
    receivers[1].link.send(Kind.CLOSE)
    receivers[1].link.flush()
    await finished(processes[1])


@pytest.mark.parametrize("method", METHODS)
async def test_a_worker_keeps_few_descriptors_and_passes_none_on(
    made: Backend, method: str
) -> None:
    others = [made.create() for _ in range(3)]
    link, end = made.create()
    receiver = Receiver(link).listen()
    process = start(method, peers.count_descriptors, end)
    say(link, 1)
    await receiver.receives(1)
    before, after, passed_on = map(int, receiver.payloads[0].split())
    if method == "fork":
        assert after < before  # what it had inherited of four links is gone, even of its siblings
    else:
        # they came with the process; the memory's descriptor is closed, mmap has one of its own
        assert after <= before + isinstance(end, SharedChildEnd)  # whose page comes by name
    assert passed_on == 0
    link.send(Kind.CLOSE)
    link.flush()
    await finished(process)
    for _, other in others:
        other.release()


def test_a_child_end_is_pickled_only_for_a_process(made: Backend) -> None:
    _, end = made.create()
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(end)
    end.release()


def test_the_started_counter_is_readable_after_sigkill(made: Backend) -> None:
    link, end = made.create()
    assert link.started == 0
    process = start("spawn", peers.mark_and_die, end, 1234)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert link.started == 1234
    link.close()
    assert link.started == 1234
    process.close()


def test_the_journal_is_readable_after_sigkill(made: Backend) -> None:
    link, end = made.create()
    process = start("spawn", peers.write_and_die, end, b"finished")
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    with link.journal as memory:
        assert len(memory) >= 1 << 16
        assert bytes(memory[:9]) == b"finished\0"
    link.close()
    process.close()


@pytest.mark.row("B15", "C32")
def test_a_dead_peer_is_drained_to_its_last_whole_frame(made: Backend) -> None:
    loop = asyncio.new_event_loop()
    link, end = made.create()
    receiver = Receiver(link).listen(loop)
    process = start("spawn", peers.publish_and_die, end, 200)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    link.drain_dead()  # all at once: the loop has not run at all
    assert receiver.payloads == [b"x" * chunk_id for chunk_id in range(200)]
    assert receiver.broken == []
    say(link, *range(5000), payload=pattern(1000))  # to no reader
    loop.run_until_complete(asyncio.sleep(0))
    link.close()
    loop.close()
    process.close()


def test_a_dead_peer_causes_no_busy_loop(made: Backend) -> None:
    async def scenario(selector: CountingSelector) -> None:
        link, end = made.create()
        receiver = Receiver(link).listen()
        process = start("spawn", peers.publish_and_die, end, 10)
        await receiver.receives(10)
        await asyncio.to_thread(process.join, 20)
        for _ in range(50):
            await asyncio.sleep(0)
        before = selector.wakeups
        await asyncio.sleep(0.1)  # nothing is to happen
        assert selector.wakeups - before <= 2
        assert receiver.broken == []
        link.close()
        process.close()

    run_counted(scenario)
