"""An item that a starter runs sees what it would see in a plain task (STARTER-1 to STARTER-8)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import time
import types
from typing import Any

import pytest

import starter_items
import starter_support
from aiomultiprocess import _accel
from aiomultiprocess._pure import codec
from aiomultiprocess._pure.tasks import UnsendableError
from exception_types import UNSEEN, ShownAsText
from starter_items import INHERITED, Pause, me
from starter_support import (
    DONE,
    EVER,
    FULL,
    PAUSES,
    RAISED,
    Worker,
    comparable,
    in_loop,
    long_pause,
)

loop = starter_support.loop
kind = starter_support.kind
worker = starter_support.worker


# -- what an item sees -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behave", starter_items.ALL, ids=lambda f: getattr(f, "__name__", type(f).__name__)
)
def test_an_item_sees_what_it_would_see_in_a_plain_task(worker: Worker, behave: Any) -> None:
    token = INHERITED.set("inherited")
    expected = worker.plainly([(behave, pause) for pause in PAUSES * 2])
    INHERITED.reset(token)
    found = worker.outcomes(behave, PAUSES * 2)
    assert [comparable(one) for one in found] == [comparable(one) for one in expected]


def test_items_of_all_kinds_do_not_see_each_other(worker: Worker) -> None:
    todo = [(behave, pause) for behave in starter_items.ALL for pause in PAUSES]
    token = INHERITED.set("inherited")
    expected = worker.plainly(todo)
    INHERITED.reset(token)
    assert [comparable(one) for one in worker.outcomes(_behave, todo)] == [
        comparable(one) for one in expected
    ]


def _behave(item: tuple[Any, Pause]) -> Any:
    return item[0](item[1])


def test_a_request_by_aiohttp_is_answered(worker: Worker) -> None:
    web, client = pytest.importorskip("aiohttp.web"), pytest.importorskip("aiohttp")

    async def answer(request: Any) -> Any:
        return web.Response(text=request.path)

    async def serve() -> Any:
        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def request(path: str) -> str:
        timeout = client.ClientTimeout(total=10)
        async with client.ClientSession(timeout=timeout) as session, session.get(url + path) as got:
            return await got.text()  # type: ignore[no-any-return]

    runner = worker.loop.run_until_complete(serve())
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        assert worker.outcomes(request, ["/a", "/b"]) == [("/a", None), ("/b", None)]
    finally:
        worker.loop.run_until_complete(runner.cleanup())


@pytest.mark.row("A7")
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("stopper", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_stops_a_loop_is_an_outcome(
    worker: Worker, stopper: Any, pause: Pause
) -> None:
    async def stop(n: int) -> Any:
        kept.append(me())
        await pause()
        raise stopper(n)

    kept: list[asyncio.Task[Any]] = []
    found = worker.outcomes(stop, [1, 2])
    assert [comparable(one) for one in found] == [(stopper, [n], None, None) for n in ("1", "2")]
    assert [repr(task.exception()) for task in kept] == [repr(error) for _, error in found]


def test_an_exception_that_stops_a_loop_is_an_outcome_of_a_function(worker: Worker) -> None:
    [(_, error)] = worker.outcomes(sys.exit, [3])
    assert repr(error) == "SystemExit(3)"


def test_an_exception_that_stops_a_loop_is_an_outcome_after_a_cancellation(worker: Worker) -> None:
    async def stop(n: int) -> Any:
        asyncio.get_running_loop().call_soon(me().cancel)
        try:
            await long_pause()
        finally:
            raise SystemExit(n)

    [(_, error)] = worker.outcomes(stop, [1])
    assert repr(error) == "SystemExit(1)"


# -- run -------------------------------------------------------------------------------------------


def test_the_mark_is_set_before_the_function_is_called(worker: Worker) -> None:
    async def mark(n: int) -> int:
        return worker.counter.started

    def fail(n: int) -> None:
        seen.append(worker.counter.started)
        raise ValueError

    seen: list[int] = []
    assert worker.outcomes(mark, [0, 0, 0]) == [(1, None), (2, None), (3, None)]
    worker.outcomes(fail, [0, 0])
    assert seen == [4, 5]


@pytest.mark.parametrize(
    ("mode", "items"),
    [(0, [1, 2]), (1, [(1,), [2]]), (2, [((1,), {}), ((), {"n": 2})])],
)
def test_a_function_is_called_as_the_mode_says(worker: Worker, mode: int, items: Any) -> None:
    async def double(n: int) -> int:
        return n * 2

    assert worker.outcomes(double, items, mode) == [(2, None), (4, None)]


@pytest.mark.row("A6")
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("kept", [False, True], ids=["", "its task is kept"])
@pytest.mark.parametrize("cls", UNSEEN)
def test_an_exception_that_cannot_be_inspected_is_an_outcome(
    worker: Worker, cls: Any, kept: bool, pause: Pause
) -> None:
    async def fail(n: int) -> None:
        if kept:
            tasks.append(me())
        await pause()
        raise cls(n)

    def fail_plainly(n: int) -> None:
        raise cls(n)

    tasks: list[asyncio.Task[Any]] = []
    with ShownAsText():
        for func in (fail, fail_plainly):
            for value, error in worker.outcomes(func, [1, 2]):
                assert value is None
                assert type(error) is cls


# -- values of items -------------------------------------------------------------------------------


class Cancelling:
    """Takes values; to take one cancels the task that runs."""

    def __init__(self, room: int) -> None:
        self.values: list[Any] = []
        self.room = room

    def append(self, value: Any) -> bool:
        me().cancel()
        self.values.append(value)
        return len(self.values) < self.room


async def from_a_coroutine(n: int) -> int:
    return n


def from_a_function(n: int) -> int:
    return n


AT_ONCE = pytest.mark.parametrize("func", [from_a_function, from_a_coroutine])


@pytest.mark.row("A7")
@AT_ONCE
def test_an_item_whose_value_cancels_it_when_it_is_given_away_has_finished_once(
    worker: Worker, func: Any
) -> None:
    out = Cancelling(room=10)
    found = in_loop(worker, lambda: worker.starter.run(0, func, [1, 2, 3], 0, 3, out, EVER))
    assert found == (3, DONE, None)
    assert out.values == [1, 2, 3]


@AT_ONCE
def test_a_sink_that_is_full_says_so_though_it_cancels_the_item(worker: Worker, func: Any) -> None:
    out = Cancelling(room=2)
    found = in_loop(worker, lambda: worker.starter.run(0, func, [1, 2, 3], 0, 3, out, EVER))
    assert found == (2, FULL, None)
    assert out.values == [1, 2]


class Refusing:
    """Cancels the task that runs, and takes no value."""

    def append(self, value: Any) -> bool:
        me().cancel()
        raise ValueError(value)


@AT_ONCE
def test_a_value_that_cancels_its_item_and_is_not_taken_is_raised(
    worker: Worker, func: Any
) -> None:
    def run() -> Any:
        return worker.starter.run(0, func, [1, 2], 0, 2, Refusing(), EVER)

    end, status, error = in_loop(worker, run)
    assert (end, status) == (0, RAISED)
    assert isinstance(error, UnsendableError | asyncio.CancelledError)


class CancelsWhenPickled:
    def __reduce__(self) -> Any:
        me().cancel()
        return int, ()


def cancels_when_pickled(n: int) -> Any:
    return CancelsWhenPickled()


async def cancels_when_pickled_later(n: int) -> Any:
    return CancelsWhenPickled()


@pytest.mark.row("A7")
@pytest.mark.parametrize("func", [cancels_when_pickled, cancels_when_pickled_later])
def test_a_value_that_cancels_its_item_when_it_is_pickled_is_in_the_journal_once(
    worker: Worker, func: Any
) -> None:
    out = _accel.Journal(memoryview(bytearray(4096)))
    out.begin(7, 0)
    found = in_loop(worker, lambda: worker.starter.run(0, func, [1, 2], 0, 2, out, EVER))
    assert found == (2, DONE, None)
    chunk_id, offset, count, payload = out.take()
    assert (chunk_id, offset, count) == (7, 0, 2)
    assert codec.decode_items(b"".join(payload), count) == ([0, 0], None)


# -- what cannot be run ----------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "item"), [(1, 5), (2, ((1, 2), {})), (1, ()), (2, 5), (1, None)])
def test_an_item_that_does_not_fit_the_function_raises(
    worker: Worker, mode: int, item: Any
) -> None:
    async def double(n: int) -> int:
        return n * 2

    [(_, error)] = worker.outcomes(double, [item], mode)
    assert isinstance(error, TypeError)


def test_nothing_is_started_after_the_deadline(worker: Worker) -> None:
    def start() -> Any:
        return worker.starter.run(0, str, [1, 2], 1, 2, [], time.monotonic_ns())

    assert in_loop(worker, start) == (1, DONE, None)
    assert worker.counter.started == 0


def test_a_burst_ends_at_the_deadline(worker: Worker) -> None:
    async def slow(n: int) -> int:
        end = time.monotonic_ns() + 200_000
        while time.monotonic_ns() < end:
            pass
        return n

    def start() -> Any:
        deadline = time.monotonic_ns() + 1_000_000
        return worker.starter.run(0, slow, list(range(1000)), 0, 1000, values, deadline)

    values: list[int] = []
    end, status, what = in_loop(worker, start)
    assert (status, what) == (DONE, None)
    assert values == list(range(end))
    assert end < 100


def test_slow_items_that_come_after_quick_ones_end_a_burst_too(worker: Worker) -> None:
    def slow_from_ten(n: int) -> int:
        end = time.monotonic_ns() + 20_000_000
        while n >= 10 and time.monotonic_ns() < end:
            pass
        return n

    def start() -> Any:
        deadline = time.monotonic_ns() + 30_000_000
        return worker.starter.run(0, slow_from_ten, list(range(50)), 0, 50, [], deadline)

    end, status, _ = in_loop(worker, start)
    assert status == DONE
    assert end < 15  # two slow ones are due, and a third at a clock that is behind by a tick


def test_a_part_of_the_items_is_run(worker: Worker) -> None:
    async def double(n: int) -> int:
        return n * 2

    values: list[int] = []
    run = worker.starter.run
    assert in_loop(worker, lambda: run(0, double, [0, 1, 2, 3], 1, 3, values, EVER)) == (
        3,
        DONE,
        None,
    )
    assert values == [2, 4]


def test_a_counter_that_fails_fails_the_call(kind: Any, loop: asyncio.AbstractEventLoop) -> None:
    class Broken:
        def mark_started(self, n: int) -> None:
            raise ValueError("closed")

    starter = kind(loop, Broken())

    def start() -> None:
        with pytest.raises(ValueError, match="closed"):
            starter.run(0, str, [1], 0, 1, [], EVER)
        assert asyncio.current_task() is None
        loop.stop()

    loop.call_soon(start)
    loop.run_forever()
    assert not asyncio.all_tasks(loop)


def test_a_starter_that_is_dropped_leaves_nothing(
    kind: Any, loop: asyncio.AbstractEventLoop
) -> None:
    def tasks() -> set[int]:
        gc.collect()
        return {id(one) for one in gc.get_objects() if isinstance(one, asyncio.Task)}

    before = tasks()  # another test's, in the traceback of its failure for one
    worker = Worker(kind, loop)
    assert worker.outcomes(str, [1]) == [("1", None)]
    del worker
    assert tasks() <= before


def test_items_leave_no_objects(worker: Worker) -> None:
    def tasks() -> int:
        gc.collect()
        kinds = asyncio.Future, types.CoroutineType, contextvars.Context
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    todo = [(behave, pause) for behave in starter_items.ALL for pause in PAUSES]
    worker.outcomes(_behave, todo)
    before = tasks()
    worker.outcomes(_behave, todo)
    assert tasks() - before < len(todo) // 10  # the loop keeps some handles
