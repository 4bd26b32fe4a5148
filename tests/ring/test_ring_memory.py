"""The ring's memory, lifetimes and doorbells.

The rules: RING-1 to RING-10 of amp_ext/ring.h, MAPPING-1 and MAPPING-2 of amp_ext/ring.pyx.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("amp_ext.ring", reason="the ring is part of the extension")

import fcntl
import resource

import ring_support
from amp_ext.ring import (
    MAX_CAPACITY,
    MIN_CAPACITY,
    WHOLE,
    Consumer,
    Doorbell,
    Mapping,
    Producer,
    RingError,
)
from ring_support import (
    LINUX,
    PAGE,
    MakeLane,
    MakeMapping,
    read_all,
)

make = ring_support.make
lane = ring_support.lane


# -- memory and descriptors ------------------------------------------------------------------------


def test_two_sides_of_one_mapping_see_each_other(make: MakeMapping) -> None:
    parent = make(128)
    child = Mapping.attach(os.dup(parent.fd))
    assert child.fd == -1, "the descriptor is not needed once it is mapped"
    assert (child.capacity, child.generation) == (128, 0)
    down, up = parent.down_producer(), child.up_producer()
    down.write((b"down",))
    up.write((b"up",))
    down.publish()
    up.publish()
    child.mark_started(2**63)
    assert read_all(child.down_consumer()) == [(WHOLE, b"down")]
    assert read_all(parent.up_consumer()) == [(WHOLE, b"up")]
    assert parent.started == 2**63
    child.close()


def test_a_second_attachment_goes_on_where_the_first_published(make: MakeMapping) -> None:
    first = make(128)
    producer, consumer = first.down_producer(), first.down_consumer()
    for text in (b"read", b"unread"):
        producer.write((text,))
    producer.publish()
    consumer.read()
    consumer.release()
    second = Mapping.attach(os.dup(first.fd))
    assert read_all(second.down_consumer()) == [(WHOLE, b"unread")]
    assert second.down_producer().free()
    second.close()


@pytest.mark.parametrize("capacity", [0, 1, 63, 100, MIN_CAPACITY // 2, MAX_CAPACITY * 2, 2**63])
def test_a_capacity_that_is_no_power_of_two_in_range_is_refused(capacity: int) -> None:
    """RING-1."""
    with pytest.raises(ValueError, match=f"power of two .* not {capacity}"):
        Mapping.create(capacity)


def test_each_end_is_handed_out_once(make: MakeMapping) -> None:
    mapping = make(64)
    ends = (mapping.down_producer, mapping.down_consumer, mapping.up_producer, mapping.up_consumer)
    for take in ends:
        take()
    for take in ends:
        with pytest.raises(RingError, match="in use"):
            take()


def test_classes_that_come_from_a_mapping_are_not_built_by_hand() -> None:
    for cls in (Mapping, Producer, Consumer):
        with pytest.raises(TypeError):
            cls()
    bare = Mapping.__new__(Mapping)
    with pytest.raises(ValueError, match="closed"):
        bare.down_producer()


def test_a_closed_mapping_refuses_every_use_and_closes_again(make: MakeMapping) -> None:
    mapping = make(64)
    producer, consumer = mapping.down_producer(), mapping.down_consumer()
    mapping.close()
    mapping.close()
    uses: list[Callable[[], object]] = [
        lambda: mapping.started,
        lambda: mapping.generation,
        lambda: mapping.journal,
        lambda: mapping.mark_started(1),
        lambda: producer.write((b"x",)),
        lambda: producer.write_some((b"x",)),
        *(mapping.up_producer, mapping.up_consumer, producer.free, producer.publish),
        *(producer.want_room, consumer.read, consumer.release, consumer.sleep, consumer.awake),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    assert mapping.capacity == 64


@pytest.mark.parametrize("capacity", [64, 1 << 16])
def test_the_journal_is_shared_and_no_part_of_the_rings(make: MakeMapping, capacity: int) -> None:
    parent = make(capacity)
    child = Mapping.attach(os.dup(parent.fd))
    with child.journal as written, parent.journal as read:
        assert len(written) == len(read) == max(capacity // 16, 128) + max(capacity // 64, 128)
        written[:] = b"j" * len(written)
        child.close()  # MAPPING-1: the view keeps the memory
        written[:1] = b"J"
        assert bytes(read) == b"J" + b"j" * (len(read) - 1)
    assert read_all(parent.up_consumer()) == []
    producer, consumer = parent.down_producer(), parent.down_consumer()
    assert producer.write((b"x" * parent.max_payload,))
    producer.publish()
    assert read_all(consumer) == [(WHOLE, b"x" * parent.max_payload)]


def mapped() -> int:
    """How many mappings of rings this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:aiomultiprocess")


@pytest.mark.skipif(not LINUX, reason="looks at /proc")
def test_a_view_keeps_the_memory_until_it_is_released(make: MakeMapping) -> None:
    """MAPPING-1."""
    before = mapped()
    mapping = make(64)
    producer, consumer = mapping.down_producer(), mapping.down_consumer()
    producer.write((b"still here",))
    producer.publish()
    record = consumer.read()
    assert record is not None
    view = record[1]
    part = view[6:]
    mapping.close()
    view.release()
    assert bytes(part) == b"here"
    assert mapped() == before + 1
    part.release()
    assert mapped() == before


def test_a_view_is_read_only_and_flat(lane: MakeLane) -> None:
    producer, consumer = lane()
    with pytest.raises(BufferError, match="nothing was read"):
        memoryview(consumer)
    producer.write((b"abc",))
    producer.publish()
    record = consumer.read()
    assert record is not None
    with record[1] as view:
        assert (view.readonly, view.format, view.itemsize, view.shape) == (True, "B", 1, (3,))
        assert view.tolist() == [97, 98, 99]
        with pytest.raises(TypeError):
            view[0] = 1


@pytest.mark.row("D36")
@pytest.mark.skipif(not LINUX, reason="seals are Linux's")
def test_the_memory_can_neither_shrink_nor_grow(make: MakeMapping) -> None:
    mapping = make(64)
    for size in (0, PAGE, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(mapping.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(mapping.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(mapping.fd)


@pytest.mark.row("D36")
@pytest.mark.skipif(not LINUX, reason="seals are Linux's")
def test_memory_that_can_shrink_is_not_attached() -> None:
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, PAGE + 128)
    with pytest.raises(PermissionError):
        Mapping.attach(unsealed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unsealed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping.attach(-1)


@pytest.mark.row("D35")
@pytest.mark.parametrize("disposition", ["SIG_IGN", "SIG_DFL"])
def test_memory_that_the_system_refuses_is_an_oserror(disposition: str) -> None:
    """Never SIGBUS, when it is touched, nor SIGXFSZ."""
    script = f"""
        import resource, signal
        from amp_ext.ring import Mapping
        signal.signal(signal.SIGXFSZ, signal.{disposition})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        Mapping.create(1 << 12).close()
        try:
            Mapping.create(1 << 20)
        except OSError as error:
            print(error.errno)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(errno.EFBIG), "")


def test_descriptors_that_the_system_refuses_are_an_oserror() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        for make in (lambda: Mapping.create(64), Doorbell):
            with pytest.raises(OSError, match="Too many open files"):
                make()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- doorbells -------------------------------------------------------------------------------------


def is_rung(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_doorbell_is_readable_from_ring_to_clear() -> None:
    bell = Doorbell()
    other = Doorbell.attach([os.dup(fd) for fd in bell.fds])
    assert not is_rung(bell)
    other.ring()
    other.ring()
    assert is_rung(bell)
    bell.clear()
    bell.clear()
    assert not is_rung(bell)
    assert not any(map(os.get_inheritable, bell.fds))
    bell.close()
    other.close()


@pytest.mark.row("C34")
@pytest.mark.skipif(not LINUX, reason="an eventfd's counter")
def test_a_saturated_doorbell_does_not_block() -> None:
    bell = Doorbell()
    os.eventfd_write(bell.fileno(), 2**64 - 2)
    bell.ring()
    assert is_rung(bell)
    bell.clear()
    assert not is_rung(bell)
    bell.close()


def test_a_closed_doorbell_says_so() -> None:
    bell = Doorbell()
    bell.close()
    bell.close()
    assert bell.closed
    for use in (bell.ring, bell.clear, bell.fileno, lambda: bell.fds):
        with pytest.raises(ValueError, match="closed"):
            use()
