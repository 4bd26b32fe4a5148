"""The ring against a model: a deque of records, and arithmetic on two cursors for the room."""

from __future__ import annotations

import mmap
import os
from collections import deque

import pytest

pytest.importorskip("amp_ext.ring", reason="the ring is part of the extension")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from amp_ext.ring import BEGIN, END, Mapping

PAGE = 4096
DOWN_TAIL, DOWN_HEAD = 256, 384
STARTS = (0, 2**32 - 40, 2**64 - 72)


class RingMachine(RuleBasedStateMachine):
    """One lane of a ring and what it must do, by the rules at the top of ring.h.

    Cursors of the model start at `start` too but are Python's: they never wrap.
    """

    @initialize(capacity=st.sampled_from([64, 128, 512]), start=st.sampled_from(STARTS))
    def open(self, capacity: int, start: int) -> None:
        self.capacity = capacity
        self.mapping = Mapping.create(capacity)
        self.fd = os.dup(self.mapping.fd)
        with mmap.mmap(self.fd, PAGE + 2 * capacity) as memory:
            for offset in (DOWN_TAIL, DOWN_HEAD):
                memory[offset : offset + 8] = start.to_bytes(8, "little")
        self.producer, self.consumer = self.mapping.down_producer(), self.mapping.down_consumer()
        self.unpublished: deque[tuple[int, bytes, int]] = deque()  # flags, bytes, cursor after it
        self.published: deque[tuple[int, bytes, int]] = deque()
        self.tail = self.visible = self.read_to = self.head = start
        self.within = self.sleeping = self.waiting = False
        self.refused: int | None = None

    def teardown(self) -> None:
        if hasattr(self, "mapping"):
            self.mapping.close()
            os.close(self.fd)

    def record_end(self, length: int) -> int:
        """The tail after a record of this length, and after the padding that it may need."""
        size = (8 + length + 7) // 8 * 8
        to_end = self.capacity - self.tail % self.capacity
        return self.tail + size + (to_end if size > to_end else 0)

    def fits(self, length: int) -> bool:
        return self.record_end(length) - self.head <= self.capacity

    @rule(
        length=st.integers(0, 40) | st.integers(0, 300),
        ends=st.booleans(),
        fill=st.integers(0, 255),
        cuts=st.integers(0, 12),
    )
    def write(self, length: int, ends: bool, fill: int, cuts: int) -> None:
        payload = bytes((fill + i) % 256 for i in range(length))
        cut = max(1, length // (cuts + 1))
        parts = [payload[i : i + cut] for i in range(0, length, cut)]
        flags = (0 if self.within else BEGIN) | (END if ends else 0)
        if length > self.capacity // 2 - 8:
            with pytest.raises(ValueError, match="write_some"):
                self.producer.write(parts, flags)
            return
        fits = self.fits(length)
        assert self.producer.write(parts, flags) == fits
        if fits:
            self.tail = self.record_end(length)
            self.unpublished.append((flags, payload, self.tail))
            self.within = not ends
        else:
            self.refused = length

    @precondition(lambda self: not self.within)
    @rule(length=st.integers(1, 1000))
    def write_some(self, length: int) -> None:
        payload = (b"fragment" * (length // 8 + 1))[:length]
        written = self.producer.write_some((payload,))
        least = min(length, self.capacity // 8)
        assert bool(written) == self.fits(least)
        if not written:
            self.refused = least
            return
        assert written >= least
        self.tail = self.record_end(written)
        self.within = written < length
        flags = BEGIN | (0 if self.within else END)
        self.unpublished.append((flags, payload[:written], self.tail))

    @rule()
    def publish(self) -> None:
        expected = self.sleeping and bool(self.unpublished)
        assert self.producer.publish() == expected
        if self.unpublished:
            self.sleeping = False
        self.published += self.unpublished
        self.unpublished.clear()
        self.visible = self.tail

    @precondition(lambda self: self.refused is not None and not self.unpublished)
    @rule()
    def want_room(self) -> None:
        assert self.refused is not None
        self.waiting = not self.fits(self.refused)
        assert self.producer.want_room() == self.waiting

    @rule()
    def read(self) -> None:
        record = self.consumer.read()
        if not self.published:
            assert record is None
            return
        flags, payload, self.read_to = self.published.popleft()
        assert record is not None
        with record[1] as view:
            assert (record[0], bytes(view)) == (flags, payload)

    @rule()
    def release(self) -> None:
        room = self.capacity - (self.visible - self.read_to)
        must_ring = self.waiting and self.read_to != self.head and room >= self.capacity // 4
        rung = self.consumer.release()
        assert rung or not must_ring
        assert self.waiting or not rung
        self.waiting = self.waiting and not rung
        self.head = self.read_to

    @precondition(lambda self: self.read_to == self.head)
    @rule()
    def sleep(self) -> None:
        self.sleeping = not self.published
        assert self.consumer.sleep() == self.sleeping

    @rule()
    def awake(self) -> None:
        self.consumer.awake()
        self.sleeping = False

    @precondition(
        lambda self: not self.unpublished and self.read_to == self.head and not self.within
    )
    @precondition(lambda self: not self.published or self.published[0][0] & BEGIN)
    @rule()
    def reattach(self) -> None:
        """Both sides go, and others come: all that matters is in the mapping."""
        self.mapping.close()
        self.mapping = Mapping.attach(os.dup(self.fd))
        self.producer, self.consumer = self.mapping.down_producer(), self.mapping.down_consumer()
        self.refused = None

    @invariant()
    def free_is_the_largest_payload_that_fits(self) -> None:
        if not hasattr(self, "mapping"):
            return
        free = self.producer.free()
        assert free == 0 or self.fits(free)
        assert free == self.capacity // 2 - 8 or not self.fits(free + 1)


TestRingModel = pytest.mark.row("C26")(RingMachine.TestCase)
TestRingModel.settings = settings(max_examples=150, stateful_step_count=60)
