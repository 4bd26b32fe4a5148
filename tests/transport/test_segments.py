"""Segments: large buffers lie in shared memory at their receiver, and the memory is used again.

The rules are those of _transport/segments.py; both ends of a channel are in this process. What
happens when one dies: test_segment_deaths.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import conftest
import segment_support as support
from aiomultiprocess import _accel
from aiomultiprocess._transport import endpoint, segments, select
from aiomultiprocess._transport.link import Backend, Limits
from aiomultiprocess._wire.frames import LENT_MIN, MAX_PAYLOAD, CorruptHeaderError, Kind
from segment_support import SIZE, Channel, buffer, is_lent, view_of
from support import run_script

pytestmark = pytest.mark.skipif(not segments.works(), reason="segments need memfd and amp_ext")

LOAN = segments._LOAN


@pytest.fixture(params=conftest.BACKENDS)
def made(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = select.select(request.param).make()
    yield made
    made.close()


@pytest.fixture
async def channel(made: Backend) -> Any:
    channel = Channel(made)
    yield channel
    channel.keeper.got.clear()
    channel.worker.broken.clear()  # whose tracebacks have views
    channel.close()


# -- what arrives ----------------------------------------------------------------------------------


async def test_a_large_buffer_arrives_as_writable_memory_of_its_own(channel: Channel) -> None:
    data = buffer()
    got = await channel.pass_on(view_of(data))
    assert is_lent(got)
    assert (got.format, got.readonly, len(got)) == ("B", False, SIZE)
    got[0] = 9
    assert data[0] == 1
    data[1] = 8
    assert got[1] == 1


async def test_a_buffer_that_cannot_be_written_arrives_as_such(channel: Channel) -> None:
    got = await channel.pass_on(view_of(buffer(), readonly=True))
    assert is_lent(got)
    assert got.readonly
    with pytest.raises(TypeError):
        got[0] = 1
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(bytes(10)).readinto(got.obj)


@pytest.mark.parametrize(
    "data",
    [bytes(SIZE), bytearray(SIZE), buffer(LENT_MIN - 1)],
    ids=["bytes", "bytearray", "small"],
)
async def test_what_owns_its_memory_or_is_small_goes_through_the_channel(
    channel: Channel, data: Any
) -> None:
    first, second = await channel.pass_on(view_of(data), view_of(buffer()))
    assert type(first) in (bytes, bytearray)
    assert is_lent(second)


async def test_several_buffers_of_one_payload_lie_in_segments_of_their_own(
    channel: Channel,
) -> None:
    got = await channel.pass_on(*(view_of(buffer(fill=fill)) for fill in range(5)))
    assert [bytes(one) == bytes([fill]) * SIZE for fill, one in enumerate(got)] == [True] * 5
    assert support.mapped() == 10  # each at both ends


async def test_both_directions_have_segments_of_their_own(channel: Channel) -> None:
    keeper = support.Keeper(channel.parent)
    down = await channel.pass_on(view_of(buffer(fill=1)))
    support.send(channel.worker.link, view_of(down))
    up = await keeper.next()
    up[0] = 5
    assert (down[0], up[0], up[1]) == (1, 5, 1)


# -- segments are used again -----------------------------------------------------------------------


async def test_memory_is_mapped_once_and_used_again_when_its_object_is_gone(
    channel: Channel,
) -> None:
    before = support.descriptors()
    for fill in range(200):
        got = await channel.pass_on(view_of(buffer(SIZE + 10 * fill, fill % 251)))
        assert bytes(got) == bytes([fill % 251]) * (SIZE + 10 * fill)
        assert is_lent(got)
        del got
    assert support.mapped() == 2
    assert support.descriptors() == before


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_to_fill_memory_again_takes_no_more_faults_than_to_read_it() -> None:
    """SEGMENT-C5: the kernel maps pages for reading by several, and for writing one by one."""
    size = 16 << 20
    data = bytearray(size)
    fd = os.memfd_create("read")
    os.truncate(fd, os.write(fd, data))
    with mmap.mmap(fd, size) as memory:
        begin = page_faults()
        assert memory.find(b"x") == -1  # reads all of it
        reading = page_faults() - begin
    os.close(fd)
    made = _accel.segment_module().Segment.create(size, data)
    took = []
    for filled in (size // 4, size // 2, size, size):
        view = memoryview(data)[:filled]
        begin = page_faults()
        made.fill(view)
        took.append(page_faults() - begin)
    pages = size // mmap.PAGESIZE
    assert sum(took) < reading + pages // 64
    assert took[-1] < pages // 64  # all of it is mapped


async def test_an_object_keeps_its_segment_and_no_other(channel: Channel) -> None:
    kept = await channel.pass_on(view_of(buffer(fill=7)))
    part = kept[1000:2000]
    del kept
    for fill in range(50):
        await channel.pass_on(view_of(buffer(fill=fill)))
    assert bytes(part) == bytes([7]) * 1000
    assert support.mapped() == 4
    del part
    await channel.pass_on(view_of(buffer()), view_of(buffer()))
    assert support.mapped() == 4


@contextlib.contextmanager
def no_memory_to_send(link: Any) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patched:
        if hasattr(link, "_outbox") and hasattr(link._outbox, "mark"):
            patched.setattr(type(link._outbox), "add", refuse)
        else:
            patched.setattr(link, "_defer", refuse)
            patched.setattr(link, "_most", 0)
        with pytest.raises(MemoryError):
            yield


async def test_a_frame_that_is_not_sent_gives_its_segments_back(channel: Channel) -> None:
    await channel.pass_on(view_of(buffer()))
    with no_memory_to_send(channel.parent.link):
        support.send(channel.parent.link, view_of(buffer()))
    assert is_lent(await channel.pass_on(view_of(buffer(fill=3))))
    assert support.mapped() == 2


@pytest.mark.row("H185")
async def test_a_frame_that_is_not_sent_takes_back_no_segment_of_the_one_before(
    channel: Channel,
) -> None:
    held = await channel.pass_on(view_of(buffer(fill=1)))
    with no_memory_to_send(channel.parent.link):
        too_many = [bytes(200)] * 2000  # to be parts, of which some could be lent
        channel.parent.link.send(Kind.CHUNK, chunk_id=2, payload=too_many)
    other = await channel.pass_on(view_of(buffer(fill=2)))
    assert bytes(held) == bytes([1]) * SIZE
    assert bytes(other) == bytes([2]) * SIZE


@pytest.mark.row("H123")
async def test_what_a_frame_that_is_not_sent_would_tell_the_next_one_tells(made: Backend) -> None:
    channel = Channel(made, Limits(total=8 << 20, workers=2))
    got = await channel.pass_on(view_of(buffer(1 << 20)), view_of(buffer(1 << 20)))
    del got
    with no_memory_to_send(channel.parent.link):
        support.send(channel.parent.link, view_of(buffer(2 << 20)))
    assert is_lent(await channel.pass_on(view_of(buffer(2 << 20))))
    assert support.mapped() == 2  # not those that the first frame of 2 MiB has forgotten
    channel.close()


# -- the budget ------------------------------------------------------------------------------------


async def test_past_its_budget_a_buffer_goes_through_the_channel(made: Backend) -> None:
    channel = Channel(made, Limits(total=8 << 20, workers=2))  # 2 MiB for each direction
    got = [await channel.pass_on(view_of(buffer(1 << 20, fill))) for fill in range(4)]
    assert list(map(is_lent, got)) == [True, True, False, False]
    assert [bytes(one) == bytes([fill]) * (1 << 20) for fill, one in enumerate(got)] == [True] * 4
    got.clear()
    assert is_lent(await channel.pass_on(view_of(buffer(1 << 20))))
    channel.close()


async def test_idle_segments_of_another_size_make_room(made: Backend) -> None:
    channel = Channel(made, Limits(total=8 << 20, workers=2))
    got = await channel.pass_on(view_of(buffer(1 << 20)), view_of(buffer(1 << 20)))
    del got
    assert is_lent(await channel.pass_on(view_of(buffer(2 << 20))))
    assert support.mapped() == 2  # the borrower was told that the two others are forgotten
    assert not is_lent(await channel.pass_on(view_of(buffer((2 << 20) + 1))))
    channel.close()


@pytest.mark.parametrize("total", [0, 1000])
async def test_a_budget_of_nothing_means_no_segments(made: Backend, total: int) -> None:
    channel = Channel(made, Limits(total=total))
    assert not is_lent(await channel.pass_on(view_of(buffer())))
    assert not support.mapped()
    channel.close()


async def test_the_number_of_segments_is_bounded(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 5)
    got = [await channel.pass_on(view_of(buffer())) for _ in range(8)]
    assert list(map(is_lent, got)) == [True] * 5 + [False] * 3


async def test_a_segment_that_was_not_used_for_long_is_forgotten(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "STALE", 10)
    await channel.pass_on(view_of(buffer(4 << 20)))
    for _ in range(20):
        await channel.pass_on(view_of(buffer()))
    assert support.mapped() == 2


def test_the_default_budget_is_a_quarter_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(segments, "CGROUPS", ())
    machine = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    assert segments.limit_of(Limits()) == machine // 8
    for text, memory in (("max\n", machine), ("80000\n", 80000)):
        path = tmp_path / "memory.max"
        path.write_text(text)
        monkeypatch.setattr(segments, "CGROUPS", (str(path), "/nowhere"))
        assert segments.limit_of(Limits(workers=5)) == memory // 4 // 10


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EMFILE, errno.EPERM])
async def test_where_the_system_refuses_memory_a_buffer_goes_through_the_channel(
    channel: Channel, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no")

    with monkeypatch.context() as patched:
        patched.setattr(segments, "segment", type("module", (), {"Segment": None}))
        patched.setattr(segments.segment, "Segment", type("Segment", (), {"create": refuse}))
        assert not is_lent(await channel.pass_on(view_of(buffer())))
    assert is_lent(await channel.pass_on(view_of(buffer()))) is (code != errno.EPERM)


async def test_descriptors_that_the_other_end_does_not_take_are_not_waited_for(
    made: Backend,
) -> None:
    link, end = made.create()
    peer = end.open()
    end.release()
    for _ in range(500):
        link.send(1, payload=[b"head", view_of(buffer(LENT_MIN))])
    assert 0 < len(support.lender_of(link)._lent) < 500
    peer.close()
    link.close()
    assert not support.mapped()


# -- forks -----------------------------------------------------------------------------------------


@conftest.FORK_WARNING
@pytest.mark.row("H107")
async def test_a_copy_of_an_object_in_a_forked_process_never_changes(channel: Channel) -> None:
    kept = await channel.pass_on(view_of(buffer(fill=7)))
    held = [kept]
    ask = support.in_a_fork(lambda: bytes(held[0]) == bytes([7]) * SIZE)
    held.clear()
    del kept
    for fill in range(20, 40):
        await channel.pass_on(view_of(buffer(fill=fill)))
    assert ask()


@conftest.FORK_WARNING
async def test_segments_that_no_object_lay_in_are_used_again_after_a_fork(
    channel: Channel,
) -> None:
    await channel.pass_on(view_of(buffer()))
    assert support.in_a_fork(lambda: True)()
    await channel.pass_on(view_of(buffer()))
    assert channel.lender._made == 1


@conftest.FORK_WARNING
async def test_a_child_neither_maps_what_its_parent_owns_nor_answers_for_it(
    channel: Channel,
) -> None:
    kept = [await channel.pass_on(view_of(buffer(fill=fill))) for fill in range(3)]
    lender = channel.lender

    def check() -> bool:
        maps = support.mapped()  # of the borrower, which this process is too
        kept.clear()
        own = lender._lent[0].memory
        with pytest.raises(ValueError, match="belongs to the process"):
            own.fill(b"x")
        return maps == 3

    assert support.in_a_fork(check)()
    lender._collect()
    assert len(lender._lent) == 3
    assert [one[0] for one in kept] == [0, 1, 2]


#: A handler that was registered before those of segments runs after them: the fork is under way.
LENT_WHILE_FORKING = """
import ctypes, os
libc = ctypes.CDLL(None)

@ctypes.CFUNCTYPE(None)
def before_fork():
    global answer
    memoryview(borrowed.loan(7, 100, False)).release()
    answer = owned.answer

if hasattr(libc, "__register_atfork"):  # glibc
    assert libc.__register_atfork(before_fork, None, None, None) == 0
else:
    assert libc.pthread_atfork(before_fork, None, None) == 0
from amp_ext import segment
owned = segment.Segment.create(1 << 16, bytes(100))
borrowed = segment.Segment.attach(os.dup(owned.fd))
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
kept_while_forking = answer
memoryview(borrowed.loan(8, 100, False)).release()
print(kept_while_forking == 7 << 1 | segment.KEPT, owned.answer == 8 << 1)
"""


@pytest.mark.row("H242")
def test_a_loan_that_begins_and_ends_during_a_fork_is_kept(tmp_path: Path) -> None:
    script = run_script(tmp_path, LENT_WHILE_FORKING)
    assert (script.out.strip(), script.err) == ("True True", "")


# -- peers that are broken or hostile --------------------------------------------------------------


class Peer:
    """A borrower, and an owner that sends what it likes."""

    def __init__(self) -> None:
        self.inbox: list[tuple[int, int]] = []
        self.borrower = segments.Borrower(lambda: self.inbox.pop(0) if self.inbox else None)
        self.own: list[Any] = []

    def give(self, number: int, size: int = SIZE) -> Any:
        own = _accel.segment_module().Segment.create(size, b"x" * size)
        self.own.append(own)
        self.inbox.append((number, os.dup(own.fd)))
        return own

    def borrow(self, *fields: int, writable: bool = True) -> Any:
        return self.borrower.borrow(LOAN.pack(*fields), writable=writable)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    for _, fd in peer.inbox:
        os.close(fd)
    peer.own.clear()
    del peer.borrower


@pytest.mark.row("H105")
def test_a_segment_that_never_came_is_refused(peer: Peer) -> None:
    with pytest.raises(CorruptHeaderError, match="segment 5, whose descriptor never came"):
        peer.borrow(5, 1, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1, 1, SIZE + 1), f"loan 1 of {SIZE + 1} bytes in a segment of {SIZE}"),
        ((1, 0, 10), "loan 0 of segment 1 comes again"),
        ((1, 1 << 63, 10), "loan 9223372036854775808"),
        ((1, 1, MAX_PAYLOAD + 1), "a loan of"),
    ],
)
def test_a_loan_that_cannot_be_is_refused(
    peer: Peer, fields: tuple[int, int, int], message: str
) -> None:
    peer.give(1)
    with pytest.raises(CorruptHeaderError, match=message):
        peer.borrow(*fields)


@pytest.mark.row("H105")
def test_a_loan_of_what_is_held_or_was_lent_before_is_refused(peer: Peer) -> None:
    peer.give(1)
    got = peer.borrow(1, 1, 100)
    with pytest.raises(CorruptHeaderError, match="is lent already"):
        peer.borrow(1, 2, 100)
    del got
    peer.borrow(1, 3, 100)
    for loan in (2, 3):
        with pytest.raises(CorruptHeaderError, match=f"loan {loan} of segment 1 comes again"):
            peer.borrow(1, loan, 100)


@pytest.mark.parametrize("size", [0, 8, 23, 25, 31, 33])
def test_a_part_of_a_wrong_size_is_refused(peer: Peer, size: int) -> None:
    with pytest.raises(CorruptHeaderError, match=f"a loan in {size} bytes"):
        peer.borrower.borrow(bytes(size), writable=True)


def test_memory_whose_size_can_change_is_refused(peer: Peer) -> None:
    fd = os.memfd_create("aiomultiprocess-test")
    os.ftruncate(fd, 1 << 20)
    peer.inbox.append((1, fd))
    with pytest.raises(CorruptHeaderError, match="segment 1 is not sealed"):
        peer.borrow(1, 1, 100)


def test_the_owner_cannot_change_the_size_either(peer: Peer) -> None:
    own = peer.give(1)
    for size in (0, 100, 10 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(own.fd, size)


def test_a_second_descriptor_for_a_segment_is_refused(peer: Peer) -> None:
    peer.give(1)
    peer.borrow(1, 1, 10)
    peer.give(1)
    peer.give(2)
    with pytest.raises(CorruptHeaderError, match="segment 1 comes again"):
        peer.borrow(2, 1, 10)


@pytest.mark.row("H105")
def test_a_flood_of_segments_is_refused(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 3)
    for number in range(10):
        peer.give(number, 10)
    with pytest.raises(CorruptHeaderError, match="one too many"):
        peer.borrow(9, 1, 10)


def test_a_segment_that_cannot_be_mapped_fails_what_lies_in_it_alone(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.give(1)
    peer.inbox.append((2, -1))  # this process had no descriptor left
    with monkeypatch.context() as patched:
        patched.setattr(segments, "segment", type("module", (), {"Segment": None}))

        def refuse(fd: int) -> None:
            os.close(fd)
            raise OSError(errno.ENOMEM, "no")

        patched.setattr(segments.segment, "Segment", type("Segment", (), {"attach": refuse}))
        assert peer.borrow(1, 1, 100) == 100
    assert peer.borrow(1, 2, 70) == 70
    assert peer.borrow(2, 1, 80) == 80
    peer.give(3)
    assert len(peer.borrow(3, 1, 90)) == 90


def test_an_answer_that_no_one_gave_returns_no_segment(peer: Peer) -> None:
    own = peer.give(1)
    peer.borrow(1, 1, 10)
    assert own.answer == 2
    with mmap.mmap(own.fd, 0) as scribbled:
        scribbled[:8] = b"\xff" * 8
    limits = Limits(total=64 << 20)
    lender = segments.Lender(None, limits)  # type: ignore[arg-type]
    lender._lent = [segments.OwnSegment(1, own)]
    lender._lent[0].loan = 1
    lender._collect()
    assert lender._lent
    assert not any(lender._idle.values())


def test_a_loan_on_a_link_without_segments_is_refused() -> None:
    none = endpoint.LargeBuffers(-1, Limits())
    assert none.lend([view_of(buffer())]) is None
    with pytest.raises(CorruptHeaderError, match="a link that has none"):
        none.borrow(bytes(24), writable=True)
    none.close()


@pytest.mark.row("H105")
async def test_a_corrupt_loan_breaks_the_link_and_nothing_else(channel: Channel) -> None:
    kept = await channel.pass_on(view_of(buffer(fill=4)))
    channel.lender._lent[0].loan = 0  # the owner names it again while it is held
    channel.lender._collect()
    support.send(channel.parent.link, view_of(buffer(fill=5)))
    await channel.worker.until(lambda: channel.worker.broken)
    assert isinstance(channel.worker.broken[0], CorruptHeaderError)
    channel.worker.link.close()
    assert len(kept) == SIZE


# -- the end ---------------------------------------------------------------------------------------


async def test_an_object_outlives_both_ends_of_the_link(made: Backend) -> None:
    channel = Channel(made)
    kept = await channel.pass_on(view_of(buffer(fill=6)))
    channel.close()
    assert bytes(kept) == bytes([6]) * SIZE
    kept[0] = 1
    assert support.mapped() == 1
    del kept
    assert support.mapped() == 0


async def test_a_worker_that_shares_breaks_its_link_alone(channel: Channel) -> None:
    keeper = support.Keeper(channel.parent)
    reader, writer = os.pipe()
    channel.worker.link._large.share([(endpoint.FIRST_SHARED + 5, reader)])  # type: ignore[attr-defined]
    os.close(reader)
    support.send(channel.worker.link, view_of(buffer()))
    await channel.parent.until(lambda: channel.parent.broken)
    assert "the descriptor of shared object" in str(channel.parent.broken[0])
    assert not keeper.got
    channel.parent.broken.clear()
    with pytest.raises(BrokenPipeError):  # the descriptor that came was closed
        os.write(writer, b"x")
    os.close(writer)
