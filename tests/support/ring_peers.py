"""The other process of test_ring.py: `python ring_peers.py ROLE FD...`.

It imports amp_ext.ring and nothing of the library, and waits on doorbells without any time limit: a
wake-up that is lost shows as a test that does not end.
"""

from __future__ import annotations

import random
import select
import sys

from amp_ext.ring import Consumer, Doorbell, Mapping, Producer


def payload(n: int) -> bytes:
    """What the n-th frame of a flood carries: its number, as often as its length asks for."""
    return n.to_bytes(8, "little") * (1 + n * 37 % 61)


def wait_for_bell(bell: Doorbell) -> None:
    """Sleep until the bell is rung."""
    poll = select.poll()
    poll.register(bell.fileno(), select.POLLIN)
    poll.poll()
    bell.clear()


def send(producer: Producer, frame: bytes, peer: Doorbell, mine: Doorbell) -> None:
    """Write a frame of any size, in fragments, sleeping while there is no room."""
    offset = 0
    while offset < len(frame):
        written = producer.write_some((frame,), offset)
        offset += written
        if not written:
            if producer.publish():
                peer.ring()
            if producer.want_room():
                wait_for_bell(mine)


def receive(consumer: Consumer, peer: Doorbell, mine: Doorbell) -> list[tuple[int, bytes]]:
    """All records there are, at least one: sleeps until there is."""
    records: list[tuple[int, bytes]] = []
    while True:
        while (record := consumer.read()) is not None:
            records.append((record[0], bytes(record[1])))
        if consumer.release():
            peer.ring()
        if records:
            return records
        if consumer.sleep():
            wait_for_bell(mine)
            consumer.awake()


def echo(memory: int, to_parent: int, to_me: int) -> None:
    """Send back every record, until an empty one comes."""
    mapping = Mapping.attach(memory)
    producer, consumer = mapping.up_producer(), mapping.down_consumer()
    peer, mine = Doorbell.attach((to_parent,)), Doorbell.attach((to_me,))
    dice = random.Random(1)
    while True:
        for _, record in receive(consumer, peer, mine):
            if not record:
                return
            send(producer, record, peer, mine)
            if dice.random() < 0.3 and producer.publish():
                peer.ring()
        if producer.publish():
            peer.ring()


def flood(memory: int) -> None:
    """Write numbered frames until killed, and mark how many are published."""
    mapping = Mapping.attach(memory)
    producer = mapping.up_producer()
    n = 0
    while True:
        frame, offset = payload(n), 0
        while offset < len(frame):
            offset += producer.write_some((frame,), offset)
            producer.publish()
        n += 1
        mapping.mark_started(n)


def flip(memory: int) -> None:
    """Write records until killed, and overwrite words of the mapping with rubbish as often."""
    import mmap

    dice = random.Random(2)
    with mmap.mmap(memory, 0) as everything:
        words = memoryview(everything).cast("Q")
        # the up ring's tail, and the ring itself with its headers; not our mapping's first words
        places = (768 // 8, *range(len(words) // 2, len(words)))
        while True:
            words[dice.choice(places)] = dice.choice(
                (0, 8, 64, 2**64 - 8, dice.getrandbits(64), (0x43 << 32) | dice.randrange(4096))
            )


if __name__ == "__main__":
    roles = {"echo": echo, "flood": flood, "flip": flip}
    roles[sys.argv[1]](*map(int, sys.argv[2:]))
