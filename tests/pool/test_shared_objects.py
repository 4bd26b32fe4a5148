"""`share`: one object in memory that every worker reads, and that no one holds for too long."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import multiprocessing
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

import scarcity
import shared_targets as targets
import workload
from aiomultiprocess import Pool, PoolExecutor, Process, RoundRobin, Shared, share
from aiomultiprocess._transport import endpoint, shared_objects
from aiomultiprocess._transport.link import Limits
from conftest import FORK_WARNING
from support import Meeting

pytestmark = [
    pytest.mark.usefixtures("backend", "nothing_is_shared_any_more"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture
def nothing_is_shared_any_more() -> Iterator[None]:
    gc.collect()
    assert targets.memories() == (0, 0)
    yield
    gc.collect()
    assert targets.memories() == (0, 0)


async def settle() -> None:
    """Let the loop send what was scheduled."""
    for _ in range(3):
        await asyncio.sleep(0)


# -- how it travels --------------------------------------------------------------------------------


async def test_items_arguments_and_partials_carry_a_shared_object(start_method: str) -> None:
    with share(targets.table()) as shared:
        async with Pool(2) as pool:
            assert await pool.starmap(targets.at, [(shared, i) for i in range(20)]) == [*range(20)]
            assert await pool.apply(targets.at, (shared,), {"index": 5}) == 5
            assert await pool.submit(targets.at, shared, 6) == 6
            part = functools.partial(targets.at, shared)
            assert await pool.map(part, range(20)) == [*range(20)]
            nested = functools.partial(targets.at, index=3)
            assert await pool.map(nested, [shared] * 5) == [3] * 5


async def test_initargs_and_what_a_lifespan_reads_carry_it(start_method: str) -> None:
    with share(targets.table()) as shared:
        pool = Pool(2, targets.keep, (shared,), lifespan=targets.yield_value)
        async with pool:
            assert await pool.map(targets.kept_at, range(10)) == [*range(10)]
            assert await pool.apply(targets.state) == 1


async def test_it_travels_as_a_few_bytes_and_is_loaded_once_for_each_process() -> None:
    with share(targets.table(1_000_000)) as shared:
        async with Pool(2) as pool:
            found = set(await pool.map(targets.facts, [shared] * 200))
            assert len(found) == len({pid for pid, _, _ in found})
            assert {writable for _, _, writable in found} == {False}
            assert await pool.map(targets.held, range(2)) in ([(2, 1)] * 2, [(1, 1)] * 2)
        with pytest.raises(ValueError, match="read-only"):
            shared.value[0] = 1


async def test_a_value_can_be_written_by_no_process() -> None:
    with share(targets.table()) as shared:
        async with Pool(1) as pool:
            with pytest.raises(ValueError, match="read-only"):
                await pool.apply(targets.write, (shared,))


@pytest.mark.parametrize(
    "value",
    [None, 5, {"a": [1, 2]}, "text" * 100_000, [np.arange(10), np.zeros((3, 4))], np.empty(0)],
    ids=["None", "int", "dict", "str", "arrays", "empty"],
)
async def test_any_object_that_pickle_takes_can_be_shared(value: Any) -> None:
    with share(value) as shared:
        async with Pool(1) as pool:
            back = await pool.apply(targets.give_back, (shared,))
        np.testing.assert_equal(back.value, value)  # also within lists and dicts
        np.testing.assert_equal(shared.value, value)
        assert type(back.value) is type(value)


async def test_what_a_task_returns_is_the_same_object_again() -> None:
    with share(targets.table()) as shared:
        async with Pool(1) as pool:
            back = await pool.apply(targets.give_back, (shared,))
            assert back.value is shared.value
            del back


async def test_a_closure_by_value_carries_it() -> None:
    with share(targets.table()) as shared:
        async with Pool(2, serializer="cloudpickle") as pool:
            assert await pool.map(lambda i: float(shared.value[i]), range(5)) == [*range(5)]


async def test_streams_carry_it() -> None:
    with share(targets.table()) as shared:
        async with Pool(1) as pool:
            assert [v async for v in pool.stream(targets.values, (shared, 4))] == [0, 1, 2, 3]
            assert [v async for v in pool.stream(targets.numbers, (shared, 3))] == [0, 1, 2]


class Single(RoundRobin):
    """A scheduler of a user's own."""


async def test_several_queues_and_an_own_scheduler_carry_it() -> None:
    with share(targets.table()) as shared:
        async with Pool(2, queuecount=2, scheduler=Single()) as pool:
            items = [(shared, i) for i in range(20)]
            assert await pool.starmap(targets.at, items) == [*range(20)]


def test_an_executor_carries_it() -> None:
    with share(targets.table()) as shared, PoolExecutor(1) as executor:
        assert executor.submit(targets.at, shared, 3).result() == 3


async def test_a_pool_in_a_worker_passes_it_on() -> None:
    with share(targets.table()) as shared:
        async with Pool(1) as pool:
            assert await pool.apply(targets.at_in_a_pool, (shared, 7)) == 7


@pytest.mark.row("H136")
async def test_a_pool_in_a_worker_refuses_what_was_released_and_goes_on() -> None:
    before = shared_objects._received.copy()  # tests of the codec made some
    async with Pool(1) as pool:
        with share(targets.table()) as shared:
            await pool.apply(targets.keep, (shared,))
        del shared
        gc.collect()
        await settle()
        errors = await pool.apply(targets.pass_on_what_was_kept)
        assert len(errors) == 3
        assert all("has released it" in error for error in errors)
        returned = await pool.apply(targets.kept)
        with pytest.raises(RuntimeError, match="has released it"):
            _ = returned.value
        assert shared_objects._received == before


# -- who holds it ----------------------------------------------------------------------------------


@pytest.mark.row("H109")
async def test_after_its_block_tasks_that_were_submitted_still_have_it() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        with share(targets.table()) as shared:
            mapped = pool.starmap(targets.at_later, [(shared, meeting.port, i) for i in range(3)])
            called = pool.apply(targets.at_later, (shared, meeting.port, 7))
            first = await meeting.next()
        with pytest.raises(RuntimeError, match="released at the end of its `with` block"):
            _ = shared.value
        assert targets.memories()[0]
        first.release()
        await meeting.release_all(3)
        assert await mapped == [0, 1, 2]
        assert await called == 7
        await settle()
        assert await pool.apply(targets.held) == (0, 0)
        assert targets.memories() == (0, 0)
        with pytest.raises(pickle.PicklingError, match="released at the end of its `with` block"):
            await pool.apply(targets.at, (shared, 1))


async def test_a_function_holds_it_as_long_as_its_map_runs() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        with share(targets.table()) as shared:
            func = functools.partial(targets.at_later, shared, meeting.port)
            result = pool.map(func, range(2))
        del func
        await meeting.release_all(2)
        assert await result == [0, 1]
        await settle()
        assert await pool.apply(targets.held) == (0, 0)
        assert targets.memories() == (0, 0)


@pytest.mark.row("H109")
async def test_a_pool_holds_what_its_workers_start_with(start_method: str) -> None:
    with share(targets.table()) as shared:
        pool = Pool(1, targets.keep, (shared,), maxtasksperchild=1)
        assert await pool.apply(targets.kept_at, (3,)) == 3
    assert await pool.map(targets.kept_at, range(4)) == [*range(4)]  # in workers that start later
    pool.close()
    await pool.join()
    assert targets.memories() == (0, 0)


async def test_without_a_block_it_lives_as_long_as_its_object() -> None:
    shared = share(targets.table())
    async with Pool(1) as pool:
        assert await pool.apply(targets.at, (shared, 2)) == 2
        del shared
        await settle()
        assert await pool.apply(targets.held) == (0, 0)
        assert targets.memories() == (0, 0)


async def test_a_part_of_a_value_that_a_task_keeps_stays_whole() -> None:
    async with Pool(1) as pool:
        with share(targets.table()) as shared:
            await pool.apply(targets.keep_a_part, (shared,))
        await settle()
        assert await pool.apply(targets.sum_of_the_part) == sum(range(10, 20))
        assert await pool.apply(targets.held) in ((0, 1), (1, 1))  # Python's mmap may have one


async def test_what_a_task_keeps_by_itself_says_that_it_was_released() -> None:
    async with Pool(1) as pool:
        with share(targets.table()) as shared:
            await pool.apply(targets.keep, (shared,))
        await settle()
        with pytest.raises(RuntimeError, match="has released it"):
            await pool.apply(targets.kept_at, (1,))


@FORK_WARNING
async def test_forked_workers_close_what_they_have_inherited() -> None:
    from aiomultiprocess import set_start_method

    shared = share(targets.table())
    set_start_method("fork")
    try:
        async with Pool(1) as pool:
            assert await pool.apply(targets.held) == (1, 0)
            assert await pool.apply(targets.at, (shared, 2)) == 2
            del shared
            await settle()
            assert await pool.apply(targets.held) == (0, 0)
    finally:
        set_start_method()


@pytest.mark.row("H159")
@FORK_WARNING
async def test_a_worker_that_is_forked_while_a_thread_loads_a_value_loads_it_too() -> None:
    from aiomultiprocess import set_start_method

    set_start_method("fork")
    try:
        with share(targets.Slow()) as shared:
            loader = threading.Thread(target=lambda: shared.value)
            loader.start()
            async with asyncio.timeout(20), Pool(1) as pool:
                assert await pool.apply(targets.value_of, (shared,)) == "slow"
            loader.join()
    finally:
        set_start_method()


@pytest.mark.row("H109")
async def test_a_task_that_lost_its_worker_finds_it_in_the_next(tmp_path: Path) -> None:
    async with Pool(1) as pool:
        with share(targets.table()) as shared:
            call = pool.apply(targets.at_or_die, (str(tmp_path / "died"), shared, 4), retries=1)
        assert await call == 4


async def test_terminating_a_pool_drops_what_its_tasks_held() -> None:
    async with Meeting() as meeting:
        async with Pool(1) as pool:
            with share(targets.table()) as shared:
                call = pool.apply(targets.at_later, (shared, meeting.port, 1))
                await meeting.next()
        with pytest.raises(Exception, match="terminated"):
            await call
        del call
        gc.collect()
        assert targets.memories() == (0, 0)


async def test_workers_of_several_pools_share_one_memory() -> None:
    with share(targets.table()) as shared:
        async with Pool(1) as first, Pool(1) as second:
            assert await first.apply(targets.at, (shared, 1)) == 1
            assert await second.apply(targets.at, (shared, 2)) == 2
            assert await first.apply(workload.two) == 2


async def test_many_shared_objects_come_and_go() -> None:
    async with Pool(1) as pool:
        for i in range(300):
            with share(np.full(10, i)) as shared:
                assert await pool.apply(targets.at, (shared, 3)) == i
        await settle()
        assert await pool.apply(targets.held) == (0, 0)


@pytest.mark.row("H158")
async def test_hundreds_of_them_reach_a_worker_at_once_whether_or_not_it_uses_them() -> None:
    shared = [share([i]) for i in range(400)]
    async with Pool(1) as pool:
        assert await pool.map(type, shared) == [Shared] * 400  # more than its socket can hold
        assert await pool.apply(len, (shared,)) == 400
    async with Pool(1, initializer=targets.ignore, initargs=shared) as pool:
        assert await pool.apply(workload.two) == 2


@pytest.mark.row("H194")
async def test_a_memory_keeps_nothing_of_workers_that_are_gone() -> None:
    with share(targets.table()) as shared:
        memory = shared.pickled()
        async with Pool(1, maxtasksperchild=1) as pool:
            for index in range(6):
                assert await pool.apply(targets.at, (shared, index)) == index
        gc.collect()
        async with Pool(1) as pool:
            assert await pool.apply(targets.at, (shared, 1)) == 1
            assert len(memory._links) == 1
        del memory


# -- without descriptors ---------------------------------------------------------------------------


@pytest.mark.row("H192")
async def test_a_worker_that_had_no_descriptor_free_gets_an_object_later() -> None:
    with share(targets.table()) as kept, share(targets.table()) as shared:
        async with Pool(1, targets.keep, (kept,)) as pool:
            await pool.apply(targets.allow_descriptors, (False,))
            for _ in range(3):  # each time it is asked for, and lost, again
                with pytest.raises(Exception, match="no descriptor was left"):
                    await pool.apply(targets.kept_at, (2,))
                with pytest.raises(Exception, match="no descriptor was left"):
                    await pool.apply(targets.at, (shared, 3))
            await pool.apply(targets.allow_descriptors, (True,))
            assert await pool.apply(targets.at, (shared, 3)) == 3
            assert await pool.apply(targets.kept_at, (2,)) == 2
            assert await pool.apply(targets.held) in ((2, 2), (4, 2))  # Python's mmap may have some
            assert pool.stats().lost == 0


@pytest.mark.row("H192")
async def test_what_a_worker_had_no_descriptor_for_is_released_as_all_else() -> None:
    async with Pool(1) as pool:
        with share([0]) as first:
            assert await pool.apply(targets.at, (first, 0)) == 0  # imports what that needs
        with share(targets.table()) as shared:
            await pool.apply(targets.allow_descriptors, (False,))
            with pytest.raises(Exception, match="no descriptor was left"):
                await pool.apply(targets.at, (shared, 3))
        del shared
        await settle()
        await pool.apply(targets.allow_descriptors, (True,))
        assert await pool.apply(targets.held) == (0, 0)
        assert targets.memories() == (0, 0)


# -- in processes that tasks fork ------------------------------------------------------------------


@pytest.mark.row("H193")
@FORK_WARNING
@pytest.mark.parametrize("fork", [targets.in_a_fork, targets.in_a_forked_process])
async def test_a_process_that_a_task_forks_has_what_its_worker_has(fork: Any) -> None:
    kept = share(targets.table())
    with share(targets.table()) as shared:
        async with Pool(1, targets.keep, (kept,)) as pool:
            assert await pool.apply(fork, (targets.at, shared, 3)) == 3
            assert await pool.apply(fork, (targets.kept_at, 4)) == 4
            assert await pool.apply(fork, (targets.at_in_a_pool, shared, 5)) == 5
            assert await pool.apply(fork, (fork, targets.at, shared, 6)) == 6
            shared.release()
            assert await pool.apply(targets.kept_at, (4,)) == 4
            assert await pool.apply(targets.held) in ((1, 1), (2, 1))  # Python's mmap may have one


@pytest.mark.row("H193")
@FORK_WARNING
async def test_a_worker_that_a_worker_forks_keeps_nothing_of_it() -> None:
    with share(targets.table()) as first, share(targets.table()) as second:
        async with Pool(1) as pool:
            await pool.apply(targets.give_back, (first,))
            found = await pool.apply(targets.held_by_a_forked_worker, (second,))
            assert found == ((0, 0), 3)


# -- in several threads ----------------------------------------------------------------------------


@pytest.mark.row("H190")
async def test_threads_of_a_worker_may_use_objects_for_the_first_time_at_once() -> None:
    count = 8
    shared = [share(np.full(10, float(i))) for i in range(count)]
    for _ in range(3):
        pool = Pool(1, targets.keep_all, shared, threads=count, childconcurrency=count)
        async with asyncio.timeout(40), pool:
            for _ in range(2):
                assert await pool.map(targets.kept_at_once, range(count)) == [*range(count)]
            pool.close()
            await pool.join()  # nothing of the worker is closed twice


@pytest.mark.row("H190")
@pytest.mark.parametrize("inherited", [False, True])
def test_what_is_released_while_a_thread_loads_it_is_closed_after_that(
    inherited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    parent = endpoint.LargeBuffers(ours.detach(), Limits())
    worker = endpoint.open_this_end(theirs.detach(), Limits())
    with share(targets.table()) as shared, ThreadPoolExecutor(1) as threads:
        memory: Any = shared.pickled()
        number, load, loads, goes_on = memory.number, shared_objects.load, Event(), Event()
        parent.share([(number, memory._fd)])
        if not inherited:
            memory = shared_objects._received[number] = shared_objects.Received(number)

        def load_slowly(fd: int) -> Any:
            loads.set()
            assert goes_on.wait(20)
            return load(fd)

        monkeypatch.setattr(shared_objects, "load", load_slowly)
        value = threads.submit(lambda memory: float(memory.value[3]), memory)
        assert loads.wait(20)
        shared_objects.drop(number)
        goes_on.set()
        assert value.result() == 3
        with pytest.raises(RuntimeError, match="has released it"):
            memory._descriptor()
    worker.close()
    parent.close()
    del memory


@pytest.mark.row("H198")
@pytest.mark.parametrize("inline", [False, True])
async def test_a_task_that_releases_it_takes_it_from_no_other(
    start_method: str, inline: bool
) -> None:
    with share(targets.table()) as shared:
        options: dict[str, Any] = {"backend": "inline"} if inline else {}
        async with Pool(1, targets.keep, (shared,), **options) as pool:
            part = functools.partial(targets.released_at, shared)
            assert await pool.map(part, range(5)) == [0, 2, 4, 6, 8]
            assert await pool.starmap(targets.released_at, [(shared, 1), (shared, 2)]) == [2, 4]
            assert await pool.map(targets.kept_released_at, range(5)) == [0, 2, 4, 6, 8]
        targets.initial.clear()  # of a worker in this process
        assert shared.value[3] == 3
    with pytest.raises(RuntimeError, match="released at the end of its `with` block"):
        _ = shared.value


@pytest.mark.row("H199")
async def test_a_function_that_cannot_be_pickled_leaves_nothing_behind() -> None:
    async with Pool(1) as pool:
        with share(targets.table()) as shared:
            part = functools.partial(targets.ignore, shared, threading.Lock())
            with pytest.raises(pickle.PicklingError):
                await pool.map(part, range(3))
        del part
        gc.collect()
        assert targets.memories() == (0, 0)


# -- what is refused -------------------------------------------------------------------------------


async def test_it_cannot_be_made_in_a_worker() -> None:
    async with Pool(1) as pool:
        with pytest.raises(RuntimeError, match=r"share\(\) was called in a worker of a Pool"):
            await pool.apply(targets.share_here)


async def test_a_pool_that_runs_inline_refuses_it_as_its_workers_would() -> None:
    async with Pool(1, backend="inline") as pool:
        with pytest.raises(RuntimeError, match=r"share\(\) was called in a worker of a Pool"):
            await pool.apply(targets.share_here)


async def test_only_a_pool_can_pickle_it() -> None:
    message = r"aiomultiprocess.share\(\) can be pickled by a Pool alone"
    with share(targets.table()) as shared:
        with pytest.raises(RuntimeError, match=message):
            pickle.dumps(shared)
        with pytest.raises(RuntimeError, match=message):
            multiprocessing.reduction.ForkingPickler.dumps([shared])
        with pytest.raises(Exception, match=message):
            await Process(target=workload.identity, args=(shared,))
        async with Pool(1) as pool:
            with pytest.raises(RuntimeError, match=message):
                await pool.apply(targets.pickle_it, (shared,))
            assert await pool.apply(targets.at, (shared, 1)) == 1


def test_what_cannot_be_pickled_is_refused_at_once() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        share(lambda: None)
    assert targets.memories() == (0, 0)


def test_copies_are_the_object_itself() -> None:
    with share([1]) as shared:
        assert copy.copy(shared) is shared
        assert copy.deepcopy([shared])[0] is shared
        assert repr(shared).startswith("<Shared ")
    assert repr(shared) == "<Shared, released>"
    shared.release()
    with pytest.raises(RuntimeError, match="released"), shared:
        pass


def test_without_memfd_a_file_without_a_name_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    with share(targets.table()) as shared:
        memory = shared.pickled()
        assert isinstance(memory, shared_objects.Memory)
        assert os.readlink(f"/proc/self/fd/{memory._fd}").endswith("(deleted)")
        assert (shared.value == targets.table()).all()
        assert not shared.value.flags.writeable
        del memory


def test_where_no_descriptors_pass_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("socket.send_fds")
    with pytest.raises(RuntimeError, match="needs Unix sockets"):
        share(1)


async def test_a_worker_that_takes_no_more_descriptors_fails_a_task_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("no room")

    with share(targets.table()) as shared:
        async with Pool(1) as pool:
            assert await pool.apply(workload.two) == 2
            with monkeypatch.context() as patched:
                patched.setattr("aiomultiprocess._transport.endpoint.LargeBuffers.share", refuse)
                with pytest.raises(Exception, match="no room"):
                    await pool.apply(targets.at, (shared, 1))
            assert await pool.apply(targets.at, (shared, 1)) == 1


@pytest.mark.row("H195")
async def test_a_worker_without_descriptors_fails_a_task_alone() -> None:
    """It has none to import what receives a shared object."""
    async with Meeting() as meeting, Pool(1) as pool:
        neighbour = pool.apply(scarcity.use_none_and_meet, (meeting.port,))
        arrival = await meeting.next()
        with share([7]) as shared:
            with pytest.raises(OSError, match="could not be unpickled in a worker") as info:
                await pool.apply(scarcity.first_of, (shared,))
            assert "Too many open files" in str(info.value)
        arrival.release()
        assert await neighbour == "freed"
        with share([7]) as shared:
            assert await pool.apply(scarcity.first_of, (shared,)) == 7


@pytest.mark.row("H195")
async def test_a_worker_without_descriptors_goes_on_when_an_object_is_released() -> None:
    async with Pool(1) as pool:
        (worker,) = pool.processes
        assert await pool.apply(scarcity.use_up_descriptors) is None
        with share([7]) as shared, pytest.raises(OSError, match="Too many open files"):
            await pool.apply(scarcity.first_of, (shared,))
        await settle()  # the worker gets UNSHARE
        assert await pool.apply(scarcity.free_descriptors) is None
        with share([7]) as shared:
            assert await pool.apply(scarcity.first_of, (shared,)) == 7
        assert worker in pool.processes


def test_the_memory_cannot_be_changed_by_any_process() -> None:
    with share(targets.table()) as shared:
        memory = shared.pickled()
        assert isinstance(memory, shared_objects.Memory)
        for change in (lambda: os.pwrite(memory._fd, b"x", 0), lambda: os.ftruncate(memory._fd, 0)):
            with pytest.raises(PermissionError):
                change()
        assert isinstance(shared, Shared)
