"""What the tests of the ring share; a module takes the fixtures by `make = ring_support.make`."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator

import pytest

from amp_ext.ring import Consumer, Mapping, Producer

LINUX = sys.platform == "linux"
PAGE = 4096

# Where things are in the mapping; ring.h asserts these offsets at compile time.
MAGIC, VERSION, CAPACITY, ENTRIES = 0, 8, 16, 32
DOWN_TAIL, DOWN_HEAD = 256, 384
UP_TAIL = 768

PADDING, DATA = 0x50, 0x40

CURSORS = (0, 2**32 - 24, 2**64 - 40)
"""Where cursors start: fresh, and shortly before 32 and 64 bits are full."""


class Words:
    """The mapping's bytes as any peer may write them, 64 bits at a time."""

    def __init__(self, mapping: Mapping) -> None:
        self._memory = mmap.mmap(mapping.fd, PAGE + 2 * mapping.capacity)

    def __enter__(self) -> Words:
        return self

    def __exit__(self, *exception: object) -> None:
        self._memory.close()

    def __setitem__(self, offset: int, value: int) -> None:
        self._memory[offset : offset + 8] = (value % 2**64).to_bytes(8, "little")

    def __getitem__(self, offset: int) -> int:
        return int.from_bytes(self._memory[offset : offset + 8], "little")

    def header(self, position: int, length: int, type_: int) -> None:
        """Write the header of a record of the down ring."""
        self[PAGE + position] = type_ << 32 | length

    def fill(self, content: bytes) -> None:
        """Write the whole mapping."""
        self._memory[:] = content


MakeMapping = Callable[..., Mapping]
MakeLane = Callable[..., tuple[Producer, Consumer]]


@pytest.fixture
def make() -> Iterator[MakeMapping]:
    """Makes mappings, whose cursors all start at `start`, and closes them."""
    made: list[Mapping] = []

    def create(capacity: int = 256, start: int = 0) -> Mapping:
        mapping = Mapping.create(capacity)
        made.append(mapping)
        if start:
            with Words(mapping) as words:
                for offset in (DOWN_TAIL, DOWN_HEAD, UP_TAIL, UP_TAIL + 128):
                    words[offset] = start
        return mapping

    yield create
    for mapping in made:
        mapping.close()


@pytest.fixture
def lane(make: MakeMapping) -> MakeLane:
    """Makes both ends of a down ring."""

    def create(capacity: int = 256, start: int = 0) -> tuple[Producer, Consumer]:
        mapping = make(capacity, start)
        return mapping.down_producer(), mapping.down_consumer()

    return create


def read_all(consumer: Consumer) -> list[tuple[int, bytes]]:
    """All published records; the last view is gone when this returns."""
    records = []
    while (record := consumer.read()) is not None:
        records.append((record[0], bytes(record[1])))
    return records


def fill_up(producer: Producer, size: int = 8) -> int:
    """Write records until there is no room, and publish them; how many there are."""
    count = 0
    while producer.write((bytes(size),)):
        count += 1
    producer.publish()
    return count
