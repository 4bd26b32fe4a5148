"""The ring between two processes: wake-ups, a peer that is killed, a peer that writes rubbish.

The rules: RING-1 to RING-10 of amp_ext/ring.h.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("amp_ext.ring", reason="the ring is part of the extension")

import ring_peers
import ring_support
from amp_ext.ring import (
    BEGIN,
    END,
    Consumer,
    Doorbell,
    RingCorruptError,
)
from ring_support import (
    MakeMapping,
    read_all,
)

make = ring_support.make
lane = ring_support.lane


@contextmanager
def peer(role: str, *fds: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that plays `role` of ring_peers.py; killed at the end if it still lives."""
    command = [sys.executable, ring_peers.__file__, role, *map(str, fds)]
    with subprocess.Popen(command, pass_fds=fds) as process:
        try:
            yield process
        finally:
            process.kill()


def numbered(n: int) -> bytes:
    """A record that says which it is; no more than an eighth of 256, so that it is never cut."""
    return n.to_bytes(4, "little") * (n % 8 + 1)


@pytest.mark.row("C33")
def test_no_wake_up_is_lost_between_two_processes(make: MakeMapping) -> None:
    """RING-9, RING-10: neither peer has a time limit, and both rings are full at once most of the
    time."""
    mapping = make(256)
    producer, consumer = mapping.down_producer(), mapping.up_consumer()
    mine, theirs = Doorbell(), Doorbell()
    dice = random.Random(0)
    sent = got = 0
    with peer("echo", mapping.fd, *mine.fds, *theirs.fds) as process:
        while got < 20000:
            for _ in range(dice.randrange(1, 40)):
                sent += producer.write((numbered(sent),))
            if producer.publish():
                theirs.ring()
            for _, record in ring_peers.receive(consumer, theirs, mine):
                assert record == numbered(got)
                got += 1
        while got < sent:
            got += len(ring_peers.receive(consumer, theirs, mine))
        assert producer.write((b"",))
        if producer.publish():
            theirs.ring()
        assert process.wait(30) == 0
    mine.close()
    theirs.close()


@pytest.mark.row("C32")
@pytest.mark.parametrize("moment", range(12))
def test_a_writer_killed_at_any_moment_leaves_whole_frames(make: MakeMapping, moment: int) -> None:
    """What it marked as published is there, and everything before the first gap."""
    mapping = make(1024)
    consumer = mapping.up_consumer()
    frames: list[bytes] = []
    records: list[tuple[int, bytes]] = []
    with peer("flood", mapping.fd):
        while len(records) < moment**3:
            records += read_all(consumer)
            consumer.release()
    records += read_all(consumer)
    for flags, record in records:
        frames.append(record) if flags & BEGIN else frames.append(frames.pop() + record)
    if records and not records[-1][0] & END:
        frames.pop()
    assert frames == [ring_peers.payload(n) for n in range(len(frames))]
    assert len(frames) in (mapping.started, mapping.started + 1)


def read_for_ever(consumer: Consumer) -> None:
    while True:
        for _, record in read_all(consumer):
            assert len(record) <= 1024
        consumer.release()


@pytest.mark.row("C31")
@pytest.mark.parametrize("attempt", range(3))
def test_a_peer_that_writes_rubbish_while_we_read_poisons_the_ring(
    make: MakeMapping, attempt: int
) -> None:
    mapping = make(1024)
    consumer = mapping.up_consumer()
    producer = mapping.down_producer()
    with peer("flip", mapping.fd), pytest.raises(RingCorruptError):
        read_for_ever(consumer)
    with pytest.raises(RingCorruptError):
        consumer.read()
    assert producer.write((b"the other ring is sound",))
