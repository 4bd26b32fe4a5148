"""A map that is cancelled: by `cancel()`, or because its cancelled `await` was the last reader."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_pool_scheduler import ByParity

import mishaps
import workload
from aiomultiprocess import Pool, PoolResult, PoolTerminatedError, Progress
from aiomultiprocess._wire.frames import Kind
from cancellations import (
    CallsWhenPickled,
    die_when_cancelled,
    note_and_wait,
    return_when_cancelled,
)
from support import Meeting, lines

pytestmark = pytest.mark.usefixtures("backend")


async def raises_cancelled(result: PoolResult[Any]) -> None:
    with pytest.raises(asyncio.CancelledError, match="the map was cancelled"):
        await result
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def places(iterator: Any) -> list[Any]:
    """What an iterator gives, or the types of what it raises."""
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(iterator))
        except StopAsyncIteration:
            return found
        except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001 - the item's own
            found.append(type(error))


# -- cancel() --------------------------------------------------------------------------------------


async def test_a_cancelled_map_keeps_what_was_finished_and_starts_nothing_more(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    async with Meeting() as meeting, Pool(1, childconcurrency=2) as pool:
        items = [(str(log), meeting.port, i) for i in range(50)]
        results = pool.starmap(workload.note_and_meet, items)
        iterator = results.as_completed()
        for arrival in await meeting.first(2):
            if arrival.token == "1":
                arrival.release()
        assert await anext(iterator) == 1
        waiting = asyncio.ensure_future(results)
        await meeting.next()
        assert not results.done()
        assert results.cancel() is True
        assert results.done()
        assert results.cancel() is False
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await raises_cancelled(results)
        gone = asyncio.CancelledError
        assert await places(aiter(results)) == [gone, 1, *[gone] * 48]
        assert await places(iterator) == [gone] * 49
        assert await places(results.as_completed()) == [1, *[gone] * 49]
        assert results.progress == Progress(1, 0, 50)
        assert await pool.map(workload.double, range(100)) == list(range(0, 200, 2))
        pool.close()
        await pool.join()
    assert sorted(lines(log)) == ["0", "1", "2"]


async def test_what_runs_is_cancelled_and_join_waits_for_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Meeting() as meeting:
        pool = Pool(2)
        results = pool.starmap(workload.clean_up, [(str(log), meeting.port, i) for i in range(4)])
        await meeting.first(4)
        results.cancel()
        pool.close()
        await pool.join()
        assert sorted(lines(log)) == [f"cleaned {i}" for i in range(4)]


async def test_a_result_that_comes_late_is_dropped_and_frees_its_slot() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        results = pool.starmap(return_when_cancelled, [(meeting.port, "first")])
        await meeting.next()
        other = pool.starmap(workload.meet, [(meeting.port, "other")])
        results.cancel()
        arrival = await meeting.next()
        assert arrival.token == "late first"
        arrival.release()
        (await meeting.next()).release("free")
        assert await other == ["free"]
        await raises_cancelled(results)
        assert await places(aiter(results)) == [asyncio.CancelledError]


async def test_a_map_that_is_done_cannot_be_cancelled() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, range(3))
        await results
        assert results.cancel() is False
        assert await results == [0, 2, 4]
        assert pool.map(workload.double, []).cancel() is False
        cut_off = pool.map(workload.wait_for_ever, range(3))
    assert cut_off.cancel() is False
    with pytest.raises(PoolTerminatedError):
        await cut_off


async def test_a_pool_may_be_terminated_while_late_answers_are_due() -> None:
    async with Meeting() as meeting:
        async with Pool(1) as pool:
            results = pool.starmap(return_when_cancelled, [(meeting.port, i) for i in range(3)])
            await meeting.first(3)
            results.cancel()
            await meeting.first(3)
        await raises_cancelled(results)


async def test_one_frame_cancels_a_chunk_of_a_million_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Meeting() as meeting, Pool(2) as pool:
        results = pool.starmap(workload.meet, [(meeting.port,)] * 1_000_000)
        arrivals = await meeting.first(32)  # both workers are full, and stay so
        sent: list[tuple[int, int, int]] = []
        held: list[tuple[int, int, int]] = []
        for worker in pool.processes:
            held += [
                (Kind.CANCEL, chunk.first, len(chunk.handles)) for chunk in worker.chunks.values()
            ]

            def send(kind: int, *, original: Any = worker.link.send, **fields: Any) -> None:
                sent.append((kind, fields["chunk_id"], fields["count"]))
                original(kind, **fields)

            monkeypatch.setattr(worker, "link", Through(worker.link, send))
        results.cancel()
        await asyncio.sleep(0)
        assert sent == held
        assert len(held) >= 2
        monkeypatch.undo()
        for arrival in arrivals:
            await arrival.gone
        assert results.progress == Progress(0, 0, 1_000_000)
        pool.close()
        await pool.join()


class Through:
    """A link that shows what is sent."""

    def __init__(self, link: Any, send: Any) -> None:
        self._link = link
        self.send = send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


class Numbers(Iterator[int]):
    def __init__(self) -> None:
        self.numbers = itertools.count()

    def __next__(self) -> int:
        return next(self.numbers)


@pytest.mark.row("H80")
async def test_an_endless_input_is_freed_at_once() -> None:
    numbers = Numbers()
    gone = weakref.ref(numbers)
    async with Pool(1) as pool:
        results = pool.map(workload.double, numbers)
        del numbers
        iterator = aiter(results)
        assert [await anext(iterator) for _ in range(5000)] == list(range(0, 10_000, 2))
        assert gone() is not None
        results.cancel()
        assert gone() is None
        *_, last = await places(iterator)
        assert last is asyncio.CancelledError
        await raises_cancelled(results)
        pool.close()
        await pool.join()


async def test_an_async_iterable_is_finalized() -> None:
    finalized = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
                await asyncio.sleep(0)
        finally:
            finalized.set()

    async with Pool(1) as pool:
        results = pool.map(workload.double, items())
        assert await anext(aiter(results)) == 0
        results.cancel()
        await finalized.wait()
        pool.close()
        await pool.join()


@pytest.mark.parametrize("endless", [True, False])
async def test_a_scheduler_is_notified_of_the_end_of_each_task_once(endless: bool) -> None:
    scheduler = ByParity()
    async with Meeting() as meeting:
        pool = Pool(2, queuecount=2, childconcurrency=2, scheduler=scheduler)
        numbers = itertools.count() if endless else range(100)
        items = ((at, meeting.port) for at in numbers)
        results = pool.starmap(return_numbered_when_cancelled, items if endless else list(items))
        running = len(await meeting.first(4))
        results.cancel()
        scheduled, completed = set(scheduler.scheduled), list(scheduler.completed)
        assert len(completed) == len(set(completed))
        assert len(scheduled - set(completed)) >= running
        releasing = asyncio.ensure_future(release_every(meeting))
        pool.close()
        await pool.join()
        releasing.cancel()
        assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
        assert set(scheduler.scheduled) == scheduled


async def release_every(meeting: Meeting) -> None:
    while True:
        (await meeting.next()).release()


async def return_numbered_when_cancelled(number: int, port: int) -> object:
    return await return_when_cancelled(port, number)


async def test_a_task_that_is_to_run_again_does_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Meeting() as meeting:
        pool = Pool(1)
        items = [(str(log), meeting.port, i) for i in range(2)]
        results = pool.starmap(die_when_cancelled, items, retries=5)
        await meeting.first(2)
        results.cancel()
        pool.close()
        await pool.join()
        await raises_cancelled(results)
        assert sorted(lines(log)) == ["0", "1"]


async def test_a_task_that_waits_to_run_again_is_dropped() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        items = [(meeting.port, i) for i in range(2)]
        results = pool.starmap(mishaps.meet_or_die, items, retries=3)
        arrivals = await meeting.first(2)
        arrivals[0].release("die")  # both are lost, and then run alone, one after the other
        again = await meeting.next()
        results.cancel()
        await again.gone
        assert await pool.apply(workload.two) == 2
        pool.close()
        await pool.join()
        assert meeting.arrivals.empty()


async def test_two_maps_are_cancelled_apart() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        one = pool.starmap(workload.meet, [(meeting.port, "one")])
        two = pool.starmap(workload.meet, [(meeting.port, "two")])
        held = {arrival.token: arrival for arrival in await meeting.first(2)}
        one.cancel()
        await held["one"].gone
        held["two"].release()
        assert await two == ["go"]


async def test_a_map_of_a_function_with_state_is_forgotten_after_its_late_answers() -> None:
    async with Pool(1) as pool:
        for _ in range(3):
            results = pool.map(workload.Multiplier(3).times, range(100_000))
            await anext(aiter(results))
            results.cancel()
        assert await pool.map(workload.Multiplier(3).times, range(3)) == [0, 3, 6]
        pool.close()
        await pool.join()


# -- code of the user's that cancels ---------------------------------------------------------------


@pytest.mark.row("H82")
async def test_an_input_may_cancel_its_own_map() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        results.cancel()
        yield from itertools.count()

    async with Pool(1) as pool:
        results = pool.map(workload.double, items())
        waiting = asyncio.ensure_future(results)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pool.close()
        await pool.join()


@pytest.mark.row("H82")
@pytest.mark.parametrize("scheduler", [None, ByParity])
async def test_an_item_may_cancel_its_map_while_it_is_pickled(
    scheduler: Any, tmp_path: Path
) -> None:
    class Item(CallsWhenPickled):
        def __mod__(self, number: int) -> int:
            return 0

    async with Meeting() as meeting:
        pool = Pool(2, queuecount=2, scheduler=scheduler() if scheduler else None)
        result: list[PoolResult[Any]] = []

        def cancel() -> None:
            if result:
                result[0].cancel()

        port = meeting.port
        items = [(0, port), (Item(cancel), port), (0, port)]
        result.append(pool.starmap(return_numbered_when_cancelled, iter(items)))
        await places(aiter(result[0]))
        result[0].cancel()
        pool.close()

        releasing = asyncio.ensure_future(release_every(meeting))
        await pool.join()
        releasing.cancel()
        await raises_cancelled(result[0])


@pytest.mark.row("H82")
async def test_a_scheduler_may_cancel_the_map_whose_task_it_gets() -> None:
    class Cancelling(ByParity):
        def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
            if args[0] == 3:
                results.cancel()
            return super().schedule_task(task_id, func, args, kwargs)

    scheduler = Cancelling()
    pool = Pool(2, queuecount=2, scheduler=scheduler)
    results = pool.map(workload.double, iter(range(100)))
    with pytest.raises(asyncio.CancelledError):
        await results
    pool.close()
    await pool.join()
    assert sorted(scheduler.completed) == sorted(scheduler.scheduled)
    assert max(args[0] for _, args, _ in scheduler.scheduled.values()) <= 3


async def test_another_thread_is_refused() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.wait_for_ever, range(3))
        errors: list[BaseException] = []

        def cancel() -> None:
            try:
                results.cancel()
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join()
        assert "no event loop runs in this thread" in str(errors[0])
        assert not results.done()


# -- marked maps -----------------------------------------------------------------------------------


async def test_a_time_out_of_an_await_cancels_the_map(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Meeting() as meeting:
        pool = Pool(1, childconcurrency=2)
        items = [(str(log), meeting.port, i) for i in range(100)]

        async def wait() -> None:
            await pool.starmap(note_and_wait, items)

        waiting = asyncio.ensure_future(asyncio.wait_for(wait(), None))
        await meeting.first(2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pool.close()
        await pool.join()
        assert sorted(lines(log)) == ["end 0", "end 1", "start 0", "start 1"]


async def test_a_failing_task_group_cancels_its_maps() -> None:
    async with Meeting() as meeting, Pool(1) as pool:

        async def wait() -> None:
            await pool.starmap(workload.meet, [(meeting.port,)])

        async def fail() -> None:
            raise LookupError("one of the group")

        async def run_both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait())
                arrivals.append(await meeting.next())
                group.create_task(fail())

        arrivals: list[Any] = []
        with pytest.raises(ExceptionGroup):
            await run_both()
        await arrivals[0].gone


async def test_a_map_goes_on_while_another_can_wait_for_it() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)])
        one, two = asyncio.ensure_future(results), asyncio.ensure_future(results)
        arrivals = await meeting.first(3)
        one.cancel()
        await asyncio.wait([one])
        del results
        gc.collect()
        for arrival in arrivals:
            arrival.release()
        assert await two == ["go"] * 3


async def test_a_marked_map_is_cancelled_when_its_result_goes_later() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(workload.meet, [(meeting.port,)])
        iterator = aiter(results)
        arrival = await meeting.next()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await results
        assert not results.done()
        del results
        gc.collect()
        step = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0)
        assert not step.done()
        step.cancel()
        await asyncio.wait([step])
        assert not arrival.gone.done()
        del step, iterator
        gc.collect()
        await arrival.gone


async def test_a_map_that_was_never_awaited_runs_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Meeting() as meeting:
        pool = Pool(1)
        pool.starmap(workload.note_and_meet, [(str(log), meeting.port, i) for i in range(20)])
        gc.collect()
        await meeting.release_all(20)
        pool.close()
        await pool.join()
        assert len(lines(log)) == 20


@pytest.mark.row("H80")
async def test_an_endless_map_whose_await_was_cancelled_frees_its_input() -> None:
    numbers = Numbers()
    gone = weakref.ref(numbers)
    pool = Pool(1)
    waiting = asyncio.ensure_future(pool.map(workload.double, numbers).results())
    del numbers
    await pool.map(workload.double, range(10_000))
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    gc.collect()
    pool.close()
    await pool.join()
    assert gone() is None


@pytest.mark.row("H83")
async def test_a_time_out_of_gathered_maps_lets_the_pool_close() -> None:
    async with Meeting() as meeting:
        pool = Pool(1)

        async def wait() -> None:
            endless = ((meeting.port, at) for at in itertools.count())
            bounded = [(meeting.port, at) for at in range(100)]
            await asyncio.gather(
                pool.starmap(workload.meet, endless), pool.starmap(workload.meet, bounded)
            )

        waiting = asyncio.ensure_future(wait())
        await meeting.first(16)
        waiting.cancel()
        await asyncio.wait([waiting])
        del waiting
        gc.disable()  # as in a program that has nothing more to do
        try:
            pool.close()
            await pool.join()
        finally:
            gc.enable()


@pytest.mark.row("H164")
async def test_a_generator_that_suppresses_its_cancellation_is_read_no_further() -> None:
    waits, closed = asyncio.Event(), asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 0
            waits.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            for number in itertools.count():
                await asyncio.sleep(0)
                yield number
        finally:
            closed.set()

    async with Pool(1) as pool:
        results = pool.map(workload.double, numbers())
        await waits.wait()
        assert results.cancel()
        await asyncio.wait_for(closed.wait(), 20)
        assert await pool.apply(workload.double, (4,)) == 8
