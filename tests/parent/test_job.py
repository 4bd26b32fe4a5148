"""What a job hands out, takes back and gives to its callers (_parent/job.py, JOB-4 to JOB-6).

Without processes: the test does what queues and workers would do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

import workload
from aiomultiprocess import PoolTerminatedError, _accel
from aiomultiprocess._parent.chunk import CHUNK_BYTES, Chunk
from aiomultiprocess._parent.feed import Handles, TaskSource
from aiomultiprocess._parent.functions import FunctionTable
from aiomultiprocess._parent.job import LOOK_AHEAD_ITEMS, Job
from aiomultiprocess._parent.routing import RoutedTasks, Router
from aiomultiprocess._parent.sources import source_of
from aiomultiprocess._parent.step import ALIKE, FIRST_STEP
from aiomultiprocess._processes import loops
from aiomultiprocess._wire.frames import Mode

KINDS: list[Callable[[Iterable[int]], Iterable[int]]] = [list, tuple, iter]


def ignore(*args: object) -> None:
    pass


def running() -> Any:
    """The loop in which the results are waited for, if they are."""
    return loops.running_loop()


def job_of(items: Any) -> Job:
    function = FunctionTable(_accel.dumps).of(workload.double)
    job = Job(workload.double, function, Mode.MAP, ignore, ignore, loop=running())
    job.open(source_of(items, ignore))
    return job


def chunk_of(owner: TaskSource, handles: Handles, items: list[Any], size: int) -> Chunk:
    """What they travel in, if each has `size` bytes."""
    return Chunk(owner, handles, items, 0, size * len(handles))


def part_of(job: Job) -> RoutedTasks:
    """Its part in the only queue of a user's scheduler."""
    router = Router(job, lambda router, item: (None, router.shares[0]), ignore)
    share = router.shares[0] = RoutedTasks(job, router, ignore)
    job.router = router
    return share


def run(job: Job) -> list[Any]:
    """Take all that there is, one frame of ten after the other; what was taken, in order."""
    ran: list[Any] = []
    while True:
        handles, items = job.take(30)
        if not handles:
            return ran
        if len(handles) > 10:
            job.put_back(handles[10:], items[10:])
        job.deliver(handles[:10], items[:10], 100)
        ran += items[:10]


# -- tasks that a frame had no room for ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_tasks_that_are_put_back_are_taken_next_and_once(kind: Callable[[Any], Any]) -> None:
    job = job_of(kind(range(105)))
    job.want_all()
    assert run(job) == list(range(105))
    assert await job.await_all() == list(range(105))


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_takes_back_what_a_frame_had_no_room_for(kind: Callable[[Any], Any]) -> None:
    job = job_of(kind(range(100)))
    handles, items = job.take(100)
    assert (job.left, len(job._values)) == (0, 100)
    job.put_back(handles[10:], items[10:])
    assert (job.left, len(job._values)) == (90, 10)
    assert not job._returned  # one by one that would cost more than all else
    assert not job.done


@pytest.mark.parametrize("kind", KINDS)
async def test_no_more_than_twice_what_a_frame_had_room_for_is_taken_next(
    kind: Callable[[Any], Any],
) -> None:
    """STEP-1."""
    job = job_of(kind(range(100_000)))
    job.want_all()
    for _ in range(6):  # the estimate of an iterator grows by and by
        handles, items = job.take(LOOK_AHEAD_ITEMS)
        job.note_chunk(handles, chunk_of(job, handles, items, 2))
    assert len(handles) == LOOK_AHEAD_ITEMS
    handles, items = job.take(LOOK_AHEAD_ITEMS)
    job.put_back(handles[100:], items[100:])
    if job._returned:
        job.take(LOOK_AHEAD_ITEMS)
    assert len(job.take(LOOK_AHEAD_ITEMS)[0]) == 200


class Sending:
    """Sends items of these sizes in frames, as queue.py does (`_send_chunk`)."""

    def __init__(self, source: TaskSource, sizes: Sequence[int]) -> None:
        self.source = source
        self.sizes = sizes
        self.sent = 0
        self.put_back: list[int] = []  # by each frame
        self.last: tuple[Handles, list[Any]] = ((), [])  # the last frame

    def send_frame(self) -> None:
        handles, items = self.source.take(LOOK_AHEAD_ITEMS)
        count = size = 0
        while count < len(items) and size < CHUNK_BYTES:
            size += self.sizes[items[count]]
            count += 1
        self.last = handles[:count], items[:count]
        self.source.note_chunk(self.last[0], Chunk(self.source, *self.last, 0, size))
        if count < len(items):
            self.source.put_back(handles[count:], items[count:])
        self.put_back.append(len(items) - count)
        self.sent += count


@pytest.mark.parametrize("routed", [False, True], ids=["the map", "its part in one queue"])
@pytest.mark.parametrize("size", [700, 48_000, CHUNK_BYTES, 1 << 20])
async def test_a_sequence_soon_gives_just_what_a_frame_has_room_for(
    size: int, routed: bool
) -> None:
    """STEP-3: of items of one size, none is put back but of the first frames."""
    job = job_of(range(20_000))
    sending = Sending(part_of(job) if routed else job, [size] * 10_000 + [2] * 10_000)
    for _ in range(10 + 2 * ALIKE):
        sending.send_frame()
    assert sending.put_back[0] > 0
    assert sending.put_back[ALIKE + 1 :] == [0] * (9 + ALIKE)


@pytest.mark.parametrize("routed", [False, True], ids=["the map", "its part in one queue"])
async def test_small_items_after_large_ones_soon_travel_by_the_thousand(routed: bool) -> None:
    """STEP-1: the number grows by a factor with each chunk."""
    job = job_of(range(10_030))
    sending = Sending(part_of(job) if routed else job, [1 << 20] * 30 + [2] * 10_000)
    while sending.sent < 10_030:
        sending.send_frame()
    assert len(sending.put_back) <= 30 + 6


@pytest.mark.parametrize("pattern", [[CHUNK_BYTES, 20], [20, 20, 20, 1 << 20]])
async def test_small_items_between_large_ones_need_no_frames_of_their_own(
    pattern: list[int],
) -> None:
    """STEP-3: the frames carry more than one item, so more than one is given."""
    sending = Sending(job_of(range(1000)), pattern * 500)
    while sending.sent < 1000:
        sending.send_frame()
    assert len(sending.put_back) <= 1000 // len(pattern) + 2


@pytest.mark.parametrize("size", [2, 8, 9])
async def test_items_that_cannot_be_pickled_cost_no_walk_of_thousands_each(size: int) -> None:
    """What stands behind each is put back: also after full frames alike."""
    job = job_of(range(200_000))
    sending = Sending(job, [size] * 200_000)
    for _ in range(2 * ALIKE):
        sending.send_frame()
    walked = 0
    for _ in range(100):
        handles, items = job.take(LOOK_AHEAD_ITEMS)
        job.put_back(handles[1:], items[1:])  # the first has failed
        walked += len(items)
    assert walked <= LOOK_AHEAD_ITEMS + 100 * FIRST_STEP


@pytest.mark.parametrize("routed", [False, True], ids=["the map", "its part in one queue"])
@pytest.mark.parametrize("size", [2, CHUNK_BYTES])
async def test_what_comes_back_from_a_worker_says_nothing_of_the_room(
    size: int, routed: bool
) -> None:
    """The items of a worker that has died are no rest of what was given last."""
    job = job_of(range(40_000))
    source = part_of(job) if routed else job
    sending = Sending(source, [size] * 40_000)
    for _ in range(2 * ALIKE if size > 2 else 2):
        sending.send_frame()
    source.put_back(*sending.last)  # 8,192 of them, or one
    given = [len(source.take(LOOK_AHEAD_ITEMS)[0]) for _ in range(2)]
    assert given == [len(sending.last[0])] * 2


async def test_the_first_items_of_an_iterator_are_few() -> None:
    assert len(job_of(iter(range(100))).take(100)[0]) == FIRST_STEP
    assert len(job_of(range(100)).take(100)[0]) == 100


@pytest.mark.parametrize("room", [1, 3, 100])
async def test_an_iterator_of_large_items_is_always_pulled_little_ahead(room: int) -> None:
    """Items are put back, taken and put back again, which says no more of the room than before."""
    pulled = 0

    def blocks() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    job = job_of(blocks())
    job.want_all()  # else what is unread would bound it
    sent, ahead = 0, []
    for _ in range(1000):
        handles, items = job.take(LOOK_AHEAD_ITEMS)
        if len(handles) > room:
            job.put_back(handles[room:], items[room:])
        sent += min(room, len(handles))
        ahead.append(pulled - sent)
    assert max(ahead[20:]) <= max(FIRST_STEP, 2 * room)


@pytest.mark.row("D39")
@pytest.mark.parametrize("routed", [False, True], ids=["the map", "its part in one queue"])
@pytest.mark.parametrize(
    ("size", "most"), [(1_000_000, FIRST_STEP), (4096, 128), (2, LOOK_AHEAD_ITEMS)]
)
async def test_as_many_items_of_an_iterator_are_taken_as_their_size_allows(
    size: int, most: int, routed: bool
) -> None:
    """Though one by one they were taken, and each had a frame to itself."""
    job = job_of(iter(range(100_000)))
    job.want_all()
    source = part_of(job) if routed else job
    for _ in range(20):
        handles, items = source.take(1)
        assert len(handles) == 1
        source.note_chunk(handles, chunk_of(source, handles, items, size))
    assert len(source.take(LOOK_AHEAD_ITEMS)[0]) == most


async def test_tasks_that_came_back_from_a_dead_worker_go_first() -> None:
    job = job_of(list(range(20)))
    handles, items = job.take(10)
    job.put_back(list(handles[3:]), items[3:])
    job.deliver(handles[:3], items[:3], 0)
    assert run(job) == list(range(3, 20))
    assert await job.await_all() == list(range(20))


# -- lists of results ------------------------------------------------------------------------------


async def test_the_last_possible_caller_receives_the_list_itself() -> None:
    job = job_of([1, 2, 3])
    waiting = job.await_all()
    job.result_gone()
    run(job)
    assert await waiting is job._values


async def test_a_caller_that_is_not_the_last_receives_a_copy_before_the_other_waits() -> None:
    job = job_of([1, 2, 3])
    first, second = job.await_all(), job.await_all()
    job.result_gone()
    run(job)
    (await first).append("mine")
    assert await second == [1, 2, 3]


async def test_a_caller_that_may_ask_again_receives_a_copy() -> None:
    job = job_of([1, 2, 3])
    run(job)
    (await job.await_all()).append("mine")
    assert await job.await_all() == [1, 2, 3]


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# -- what happens while code of the user's runs ----------------------------------------------------


async def everything(job: Job) -> list[Any]:
    """Each result or type of error, until the end."""
    reader, found = job.add_reader(), list[Any]()
    async with asyncio.timeout(10):
        while True:
            try:
                found.append(await reader.next())
            except StopAsyncIteration:
                return found
            except Exception as error:  # noqa: BLE001 - one of an item
                found.append(type(error))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_that_is_given_up_while_an_item_is_pickled_stays_so(
    kind: Callable[[Any], Any],
) -> None:
    job = job_of(kind(range(5)))
    job.want_all()
    handles, items = job.take(5)
    job.fail_all(PoolTerminatedError("the pool was terminated"))  # by a __reduce__ of the second
    job.put_back(handles[1:], items[1:])
    assert job.done
    assert (await everything(job))[:5] == [PoolTerminatedError] * 5
    assert job.take(5) == ((), [])


async def test_a_job_that_is_given_up_by_its_own_input_ends() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        job.fail_all(PoolTerminatedError("the pool was terminated"))
        yield 2

    job = job_of(numbers())
    assert job.take(5) == ((), [])
    assert await everything(job) == [PoolTerminatedError]


async def test_an_async_iterable_that_fails_while_its_last_item_runs_is_not_complete() -> None:
    failing = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await failing.wait()
        raise LookupError("no more")

    job = job_of(numbers())
    await some_turns()
    handles, items = job.take(5)
    failing.set()
    await some_turns()
    assert job.source.exhausted
    job.deliver(handles, items, 10)  # and no worker has had room in between
    with pytest.raises(LookupError, match="no more"):
        await job.await_all()
