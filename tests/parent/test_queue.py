"""What a queue gives to a worker, and in which order (QUEUE-3, RETRY-1).

Without processes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import workload
from aiomultiprocess import _accel
from aiomultiprocess._arguments import TaskOptions
from aiomultiprocess._parent import credit as accounts
from aiomultiprocess._parent import queue as queues
from aiomultiprocess._parent import sources
from aiomultiprocess._parent.calls import CallQueue
from aiomultiprocess._parent.credit import (
    ALONE_TIMES,
    BURST_US,
    CONTENTION_PARTS,
    MOST_BYTES,
    Credit,
)
from aiomultiprocess._parent.functions import Function, FunctionTable
from aiomultiprocess._parent.job import Job
from aiomultiprocess._parent.queue import Queue
from aiomultiprocess._parent.retry import RetryQueue
from aiomultiprocess._parent.sources import source_of
from aiomultiprocess._parent.threaded_queue import ThreadedQueue
from aiomultiprocess._wire.frames import Kind, Mode
from aiomultiprocess.types import WorkerLostError

QUICK = 1e-6  # seconds that a task takes


class Link:
    """Takes frames, and starts tasks when the test says so."""

    congested = False

    def __init__(self) -> None:
        self.started = 0
        self.unflushed = 0
        self.chunks: list[tuple[int, int, int]] = []  # chunk_id, function, count
        self.bursts: list[int] = []  # of each

    def send(
        self,
        kind: int,
        *,
        flags: int = 0,
        count: int = 0,
        chunk_id: int = 0,
        offset: int = 0,
        function: int = 0,
        payload: Sequence[Any] = (),
    ) -> None:
        self.unflushed += 1
        if kind == Kind.CHUNK:
            self.chunks.append((chunk_id, function, count))
            self.bursts.append(offset)

    def flush(self) -> None:
        self.unflushed = 0


class Worker:
    """What a queue needs of a worker."""

    leaving, takes_tasks = False, True

    def __init__(self, threads: int = 0) -> None:
        self.link = Link()
        self.credit = Credit(concurrency=16, lifetime=0, threads=threads)
        self.chunks: dict[int, Any] = {}
        self.functions: set[int] = set()
        self.taken: dict[tuple[int, int], Any] = {}

    def watch(self) -> None:
        pass

    def run(self, queue: Queue, chunk: tuple[int, int, int], results: Sequence[Any]) -> None:
        """Run one chunk and report it."""
        chunk_id, _, count = chunk
        self.link.started = max(self.link.started, chunk_id + count)
        (payload,), _, _ = _accel.encode_items(results, 0, count, 1 << 20)
        frame = (Kind.RESULTS, 0, count, chunk_id, 0, 0, memoryview(payload))
        queue.on_frame(self, ignore, *frame)  # type: ignore[arg-type]


def ignore(*args: object) -> None:
    pass


class Setting:
    """A queue with one worker, and a large map that has taught it that tasks are quick."""

    def __init__(self, mapped: Callable[..., Any] = workload.double, *, threads: int = 0) -> None:
        self.table = FunctionTable(_accel.dumps)
        kind = ThreadedQueue if threads else Queue
        self.queue: Queue = kind(asyncio.get_running_loop())
        self.worker = Worker(threads)
        self.queue.workers.append(self.worker)  # type: ignore[arg-type]
        self.mapped = self.table.of(mapped)
        self.job = Job(
            mapped, self.mapped, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop()
        )
        self.job.open(source_of(range(100_000), ignore))
        self.queue.offer(self.job)
        for _ in range(3):
            self.report_next()

    def report_next(self) -> None:
        """The worker reports the oldest chunk that it holds, after as long as its tasks take."""
        credit, link = self.worker.credit, self.worker.link
        chunk = next(chunk for chunk in link.chunks if chunk[0] in self.worker.chunks)
        self.worker.run(self.queue, chunk, range(chunk[2]))
        credit.settle(link.started, credit._busy_since + QUICK * chunk[2])
        self.queue.serve(self.worker)  # type: ignore[arg-type]

    def call(self, function: Function, count: int) -> list[asyncio.Future[Any]]:
        calls = self.queue.calls.setdefault(function.id, CallQueue(function, ignore))
        futures = [asyncio.get_running_loop().create_future() for _ in range(count)]
        for future in futures:
            self.queue.call(calls, future, ((1,), {}))
        self.queue.dispatch_all()
        return futures

    @property
    def sent(self) -> list[tuple[int, int]]:
        """Function and number of the tasks of each chunk."""
        return [(function, count) for _, function, count in self.worker.link.chunks]


async def test_a_call_is_not_held_until_the_backlog_of_a_map_is_done() -> None:
    setting = Setting()
    before = len(setting.sent)
    function = setting.table.of(workload.two)
    setting.call(function, 1)
    assert setting.sent[before:] == [(function.id, 1)]


async def test_calls_that_overtake_do_not_stop_the_map() -> None:
    setting = Setting()
    function = setting.table.of(workload.two)
    before = len(setting.sent)
    futures = setting.call(function, 1000)
    assert setting.sent[before:] == [(function.id, 1)]  # which was never measured
    while not all(future.done() for future in futures):
        setting.report_next()
    order = [chunk_id for chunk_id, _ in setting.sent[before:]]
    last_call = len(order) - 1 - order[::-1].index(function.id)
    assert setting.mapped.id in order[:last_call]


async def test_a_map_waits_in_smaller_portions_and_answers_more_often_beside_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "CONTENTION_SECONDS", 1000.0)  # however slow this machine is
    setting = Setting()
    while setting.worker.credit.in_flight < 1000:
        setting.report_next()
    alone = setting.worker.credit.in_flight
    [future] = setting.call(setting.table.of(workload.two), 1)
    while not future.done():
        setting.report_next()
    setting.report_next()
    assert setting.sent[-1][0] == setting.mapped.id
    assert setting.worker.link.bursts[-1] == BURST_US // CONTENTION_PARTS
    assert setting.worker.credit.in_flight < alone // 2


async def test_a_map_that_is_alone_waits_in_larger_portions_until_little_is_left() -> None:
    setting = Setting()
    credit, link = setting.worker.credit, setting.worker.link
    most = 0
    while setting.worker.chunks:
        most = max(most, credit.in_flight)
        setting.report_next()
    backlog = credit.backlog(setting.mapped.id)
    assert 0.5 < most / (ALONE_TIMES * backlog) < 1.1
    assert ALONE_TIMES * BURST_US in link.bursts
    assert link.bursts[-1] == BURST_US


async def test_a_map_is_not_alone_after_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "CONTENTION_SECONDS", -1.0)
    monkeypatch.setattr(queues, "ALONE_SECONDS", 1000.0)  # however slow this machine is
    setting = Setting()
    [future] = setting.call(setting.table.of(workload.two), 1)
    while not future.done():
        setting.report_next()
    after = len(setting.worker.link.bursts)
    while setting.worker.credit.in_flight > setting.worker.credit.backlog(setting.mapped.id):
        setting.report_next()
    setting.report_next()
    assert set(setting.worker.link.bursts[after:]) == {BURST_US}


async def test_a_map_is_alone_again_a_while_after_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "CONTENTION_SECONDS", -1.0)
    monkeypatch.setattr(queues, "ALONE_SECONDS", -1.0)
    setting = Setting()
    [future] = setting.call(setting.table.of(workload.two), 1)
    while not future.done():
        setting.report_next()
    after = len(setting.worker.link.bursts)
    for _ in range(3):
        setting.report_next()
    assert ALONE_TIMES * BURST_US in setting.worker.link.bursts[after:]


@pytest.mark.parametrize("items", [[1], iter(range(1000))], ids=["one item", "an iterator"])
async def test_a_map_of_few_or_unknown_items_has_no_longer_bursts(items: Any) -> None:
    setting = Setting()
    while setting.worker.chunks:
        setting.report_next()
    before = len(setting.worker.link.bursts)
    job = Job(
        workload.double, setting.mapped, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop()
    )
    job.open(source_of(items, ignore))
    setting.queue.offer(job)
    setting.queue.dispatch_all()
    while setting.worker.chunks:
        setting.report_next()
    assert set(setting.worker.link.bursts[before:]) == {BURST_US}


async def test_a_map_that_is_alone_over_unmeasured_items_has_no_longer_bursts() -> None:
    setting = Setting()
    while setting.worker.chunks:
        setting.report_next()
    before = len(setting.worker.link.bursts)
    function = setting.table.of(workload.two)
    job = Job(workload.two, function, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop())
    job.open(source_of(range(1000), ignore))
    setting.queue.offer(job)
    setting.queue.dispatch_all()
    assert setting.worker.link.bursts[before:] == [BURST_US]


async def test_two_maps_are_not_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "ALONE_SECONDS", 1000.0)
    setting = Setting()
    other = Job(
        workload.two, setting.mapped, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop()
    )
    other.open(source_of(range(100_000), ignore))
    before = len(setting.worker.link.bursts)
    setting.queue.offer(other)
    while len(setting.worker.link.bursts) < before + 3:
        setting.report_next()
    assert set(setting.worker.link.bursts[before:]) == {BURST_US}


async def test_quick_tasks_over_large_items_travel_by_their_size_and_not_by_their_number() -> None:
    setting = Setting()
    size = 1 << 20
    job = Job(
        workload.double, setting.mapped, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop()
    )
    items = iter(lambda: bytes(size), None)
    while setting.worker.chunks:
        setting.report_next()
    assert setting.worker.credit.room(setting.worker.link.started, setting.mapped.id) > 100
    job.open(source_of(items, ignore))
    setting.queue.offer(job)
    for _ in range(5):  # a few of an iterator at a time
        setting.queue.dispatch_all()
    assert MOST_BYTES <= setting.worker.credit.bytes <= MOST_BYTES + 2 * size


@pytest.mark.parametrize("workers", [1, 2, 8, 32])
async def test_small_items_of_an_iterator_soon_travel_by_the_hundred(workers: int) -> None:
    """However many workers share what is at hand."""
    queue, table = Queue(asyncio.get_running_loop()), FunctionTable(_accel.dumps)
    fleet = [Worker() for _ in range(workers)]
    queue.workers += fleet  # type: ignore[arg-type]
    loop, now = asyncio.get_running_loop(), 0.0
    mapped = table.of(workload.double)
    job = Job(workload.double, mapped, Mode.MAP, ignore, ignore, loop=loop)
    job.want_all()
    job.open(source_of(iter(range(20_000)), ignore))
    queue.offer(job)
    queue.dispatch_all()
    while any(worker.chunks for worker in fleet):
        now += 1.0
        for worker in fleet:
            ended = [chunk for chunk in worker.link.chunks if chunk[0] in worker.chunks]
            worker.credit._busy_since = now
            for chunk in ended:
                worker.run(queue, chunk, range(chunk[2]))
            worker.credit.settle(worker.link.started, now + QUICK * sum(n for *_, n in ended))
            queue.serve(worker)  # type: ignore[arg-type]
    assert job.done
    assert sum(len(worker.link.chunks) for worker in fleet) < 16 * workers


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_iterator_that_takes_long_is_not_pulled_for_as_much_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """It runs in the loop, which it would block; and workers would be idle meanwhile."""
    monkeypatch.setattr(sources, "PULL_SECONDS", -1.0)  # each item takes longer
    setting = Setting()
    setting.queue.workers += [Worker() for _ in range(workers - 1)]  # type: ignore[misc]
    while setting.worker.chunks:
        setting.report_next()
    assert setting.worker.credit.room(setting.worker.link.started, setting.mapped.id) > 100
    loop, pulled = asyncio.get_running_loop(), 0

    def items() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    job = Job(workload.double, setting.mapped, Mode.MAP, ignore, ignore, loop=loop)
    job.want_all()
    job.open(source_of(items(), ignore))
    setting.queue.offer(job)
    setting.queue.dispatch_all()
    assert pulled <= 2 * workers
    assert setting.worker.credit.in_flight


async def test_a_call_goes_straight_to_an_idle_worker() -> None:
    setting = Setting()
    setting.worker.chunks.clear()
    setting.queue._sources.clear()
    function = setting.table.of(workload.two)
    before = len(setting.sent)
    calls = CallQueue(function, ignore)
    future = asyncio.get_running_loop().create_future()
    setting.queue.call(calls, future, ((), {}))
    assert setting.sent[before:] == [(function.id, 1)]
    setting.worker.run(setting.queue, setting.worker.link.chunks[-1], [2])
    assert future.result() == 2


async def test_an_idle_worker_drops_a_function_that_has_ended_at_once() -> None:
    queue, worker = Queue(asyncio.get_running_loop()), Worker()
    queue.workers.append(worker)  # type: ignore[arg-type]
    function = FunctionTable(_accel.dumps).of(functools.partial(workload.double, bytes(1000)))
    worker.functions.add(function.id)
    queue.drop_function(object(), function)
    assert not worker.functions
    assert worker.link.unflushed == 0  # else it would keep those bytes until it gets other work


async def test_a_retry_task_that_never_began_is_not_run_after_its_caller_gave_up() -> None:
    settled: list[CallQueue] = []
    calls = CallQueue(FunctionTable(_accel.dumps).of(workload.two), settled.append)
    retry_queue, worker = RetryQueue(), Worker()
    future = asyncio.get_running_loop().create_future()
    calls.expect(future)
    calls.allow(future, 5)
    retry_queue.lose(calls, future, ((), {}), WorkerLostError("two", 1, -9))
    retry_task = retry_queue.next_for(worker)  # type: ignore[arg-type]
    assert retry_task is not None
    future.cancel()  # and while the worker is cancelling it, that worker dies
    retry_task.put_back([future], [((), {})])
    assert retry_queue.next_for(worker) is None  # type: ignore[arg-type]
    assert not retry_queue.unsettled
    assert settled == [calls]


async def test_persistent_calls_end_when_all_are_settled_and_the_pool_closes() -> None:
    function = FunctionTable(_accel.dumps).of(workload.two)
    ended: list[CallQueue] = []
    idle, busy = (CallQueue(function, ended.append, persistent=True) for _ in range(2))
    futures = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for calls, future in zip((idle, busy), futures, strict=True):
        calls.expect(future)
    idle.deliver([futures[0]], [1], 1)
    assert not ended  # there may be more of them
    for calls in (idle, busy):
        calls.pool_closes()
    assert ended == [idle]
    busy.fail(futures[1], WorkerLostError("two", 1, 1))
    assert ended == [idle, busy]
    assert futures[1].exception() is not None


class ThreadedSetting(Setting):
    """The same, over workers whose one thread runs a plain function that was not measured."""

    def __init__(self, workers: int = 1) -> None:
        super().__init__(threads=1)
        self.blocking = self.table.of(workload.set_greeting)
        self.queue.workers += [Worker(1) for _ in range(workers - 1)]  # type: ignore[misc]
        for worker in self.queue.workers:
            worker.credit.note_threaded(self.blocking.id)
            worker.credit.send(1, self.blocking.id, now=0.0)
            assert worker.credit.free_threads() == 0


@pytest.mark.row("H232")
async def test_a_call_that_waits_for_a_thread_makes_no_portion_of_a_map_smaller() -> None:
    setting = ThreadedSetting()
    before = len(setting.worker.link.bursts)
    setting.call(setting.table.of(workload.double_sync), 1)
    for _ in range(5):
        setting.report_next()
    assert {function for function, _ in setting.sent[before:]} == {setting.mapped.id}
    assert min(setting.worker.link.bursts[before:]) == BURST_US


@pytest.mark.row("H232")
async def test_a_call_overtakes_those_that_wait_for_a_thread() -> None:
    setting = ThreadedSetting()
    setting.worker.credit.need_work(1, 0, setting.worker.credit.sent)
    setting.report_next()
    setting.call(setting.table.of(workload.double_sync), 1)
    before = len(setting.sent)
    function = setting.table.of(workload.two)
    setting.call(function, 1)
    assert (function.id, 1) in setting.sent[before:]


@pytest.mark.row("H232")
async def test_the_end_of_a_plain_map_is_spread_though_no_thread_is_free() -> None:
    setting = ThreadedSetting(workers=4)
    function = setting.table.of(workload.double_sync)
    job = Job(
        workload.double_sync, function, Mode.MAP, ignore, ignore, loop=asyncio.get_running_loop()
    )
    job.open(source_of(range(40), ignore))
    worker = setting.queue.workers[-1]
    assert setting.queue._fair_share(worker, job, 1000) <= 14
    worker.credit.need_work(15, 2, worker.credit.sent)  # what returned awaitables has left them
    assert worker.credit.free_threads() == 2
    assert setting.queue._fair_share(worker, job, 2) == 2


@pytest.mark.row("H232")
async def test_a_plain_call_overtakes_a_quick_plain_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are busy, but not for long."""
    monkeypatch.setattr(accounts, "THREAD_WAIT", 1000.0)  # however slow this machine is
    setting = Setting(workload.double_sync, threads=4)
    before = len(setting.sent)
    function = setting.table.of(workload.set_greeting)
    setting.call(function, 1)
    assert setting.sent[before:] == [(function.id, 1)]


@pytest.mark.row("H232")
async def test_calls_that_are_gone_hold_up_no_call_behind_them() -> None:
    setting = ThreadedSetting()
    setting.worker.credit.need_work(1, 0, setting.worker.credit.sent)
    setting.report_next()
    setting.call(setting.table.of(workload.double_sync), 1)
    gone = CallQueue(setting.table.of(workload.identity), ignore)
    gone.in_call_backlog = True
    setting.queue._call_backlog.append(gone)
    before = len(setting.sent)
    function = setting.table.of(workload.two)
    setting.call(function, 1)
    assert (function.id, 1) in setting.sent[before:]
    assert not gone.in_call_backlog


@pytest.mark.row("H232")
async def test_a_call_that_waits_for_a_thread_keeps_its_place_in_line() -> None:
    setting = ThreadedSetting()
    plain = setting.table.of(workload.double_sync)
    setting.call(plain, 1)
    setting.call(setting.table.of(workload.two), 20)
    setting.queue.drop({setting.job})
    while setting.worker.chunks:
        setting.report_next()
    credit, link = setting.worker.credit, setting.worker.link
    link.started = credit.sent  # only the plain function runs
    credit.need_work(15, 0, credit.sent)
    setting.queue.serve(setting.worker)  # type: ignore[arg-type]
    while setting.worker.chunks:
        setting.report_next()
    assert [source.function for source in setting.queue._sources] == [plain]
    credit.need_work(15, 1, credit.sent)
    setting.queue.serve(setting.worker)  # type: ignore[arg-type]
    assert setting.sent[-1] == (plain.id, 1)


@pytest.mark.row("H232")
@pytest.mark.parametrize("kind", ["calls", "a map"])
async def test_what_waits_for_a_thread_is_not_walked_through(kind: str) -> None:
    """Nor does it hold up calls of a lower priority."""
    setting = ThreadedSetting()
    setting.worker.credit.need_work(1, 0, setting.worker.credit.sent)
    looked = 0

    class Function:
        """A plain function, which counts who asks whether it is."""

        id, for_streams, permanent, shared = 10**6, False, False, ()

        @property
        def blocking(self) -> bool:
            nonlocal looked
            looked += 1
            return True

    function: Any = Function()
    for at in range(1000):
        options = TaskOptions(priority=at % 2)
        source: Any
        if kind == "calls":
            source = CallQueue(function, ignore, options)
            source.wait((asyncio.get_running_loop().create_future(), ((1,), {})))
        else:
            loop = asyncio.get_running_loop()
            source = Job(workload.two, function, Mode.MAP, ignore, ignore, options, loop=loop)
            source.open(source_of(range(3), ignore))
        setting.queue.offer(source)
    setting.report_next()
    looked, before = 0, len(setting.sent)
    called = setting.table.of(workload.two)
    for _ in range(10):
        setting.call(called, 1)
        setting.report_next()
    assert looked < 1000
    assert (called.id, 1) in setting.sent[before:]
    assert setting.queue._count_in_line() > 1000


@pytest.mark.row("H232")
@pytest.mark.parametrize("threads", [0, 1])
async def test_calls_that_end_while_they_wait_leave_the_line(threads: int) -> None:
    setting = ThreadedSetting() if threads else Setting()
    queue = setting.queue
    setting.worker.link.congested = True
    for at in range(1000):
        function = setting.table.of(functools.partial(workload.double_sync, at))
        calls = CallQueue(function, lambda calls: queue.drop_function(calls, calls.function))
        queue.calls[calls.key] = calls
        future = asyncio.get_running_loop().create_future()
        queue.call(calls, future, ((), {}))
        queue.serve(setting.worker)  # type: ignore[arg-type]
        future.cancel()
        calls.drop_cancelled()
        assert queue._count_in_line() < 5
        assert len(list(queue._call_backlog)) < 5
    assert not queue.calls
    assert len(setting.worker.credit._threaded) < 5
