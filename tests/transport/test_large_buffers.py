"""What a link has beside its channel (`LargeBuffers`): in several threads, and without descriptors.

Segments by themselves: test_segments.py; shared objects in a pool: test_shared_objects.py.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from aiomultiprocess._transport import endpoint
from aiomultiprocess._transport.descriptor_socket import DescriptorSocket
from aiomultiprocess._transport.endpoint import FIRST_SHARED, LargeBuffers
from aiomultiprocess._transport.inline import LocalMemory
from aiomultiprocess._transport.link import Limits
from aiomultiprocess._wire.frames import LENT_MIN

LATE = [f"aiomultiprocess._transport.{name}" for name in ("segments", "descriptor_socket")]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no descriptors are passed there")


class Ends(NamedTuple):
    """What the two ends of one link have."""

    parent: LargeBuffers
    worker: LargeBuffers


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    parent = LargeBuffers(ours.detach(), Limits())
    worker = endpoint.open_this_end(theirs.detach(), Limits())
    yield Ends(parent, worker)
    worker.close()
    parent.close()


@pytest.mark.row("H190")
def test_a_segment_that_a_thread_finds_before_its_shared_object_is_the_loops(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = FIRST_SHARED + 5
    ends.parent.share([(1, 0), (number, 0)])
    receive = DescriptorSocket.receive
    has_segment = threading.Event()

    def receive_slowly(self: DescriptorSocket) -> tuple[int, int] | None:
        received = receive(self)
        if received is not None and received[0] == 1:
            has_segment.set()
            time.sleep(0.2)  # for as long, the segment is in the hands of the thread alone
        return received

    monkeypatch.setattr(DescriptorSocket, "receive", receive_slowly)
    with ThreadPoolExecutor(1) as threads:
        taken = threads.submit(ends.worker.take_shared, number)
        assert has_segment.wait(20)
        segment = ends.worker._receive()
        assert taken.result() >= 0
    assert segment is not None
    assert segment[0] == 1
    os.close(segment[1])


@pytest.mark.row("H191")
def test_what_cannot_import_what_it_needs_passes_nothing_and_can_later(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, link = FIRST_SHARED + 5, endpoint.Endpoint(LocalMemory(1), None, ends.parent)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, LATE[1], None)
        link.share(number, 0)
        with pytest.raises(OSError, match=r"\[Errno 24\]"):
            link.pass_shared()
        assert not link.shared
        with pytest.raises(OSError, match=r"\[Errno 24\]"):
            ends.worker.take_shared(number)
    link.share(number, 0)
    link.pass_shared()
    assert ends.worker.take_shared(number) >= 0


@pytest.mark.row("H191")
@pytest.mark.parametrize("late", LATE)
def test_what_cannot_import_what_it_needs_neither_lends_nor_borrows_and_raises_nothing(
    ends: Ends, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, late, None)
    assert ends.parent.lend([memoryview(bytearray(LENT_MIN))]) is None
    assert ends.worker.borrow(struct.pack("<3Q", 1, 1, LENT_MIN), writable=True) == LENT_MIN
