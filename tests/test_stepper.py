"""Items that a starter runs cannot tell that it does: everything is as in a plain task (S1-S7).

Both starters, on every loop there is here, also in debug mode.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import sys
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import pytest

import stepper_items
from aiomultiprocess import stepper
from stepper_items import INHERITED, MINE, Pause, me

EVER = 1 << 62
DONE, RAISED, SUSPENDED = stepper.DONE, stepper.RAISED, stepper.SUSPENDED
COMPILED = find_spec("amp_ext") is not None and find_spec("amp_ext.step") is not None


async def no_pause() -> None:
    """The item finishes in its first step, as far as it is up to this."""


async def short_pause() -> None:
    await asyncio.sleep(0)


async def long_pause() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_later(0.001, lambda: future.done() or future.set_result(None))
    await future


PAUSES = [no_pause, short_pause, long_pause]


class Counter:
    """What stands for the shared counter."""

    started = 0

    def mark_started(self, n: int) -> None:
        self.started = n


class Worker:
    """The least that can be a worker engine: starts items, one after another."""

    def __init__(self, kind: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.counter = Counter()
        self.starter = kind(loop, self.counter)
        self.statuses: list[int] = []

    def outcomes(self, func: Any, items: list[Any], mode: int = 0) -> list[Any]:
        """What the items ended with, in order."""
        found: dict[int, tuple[Any, BaseException | None]] = {}
        finished = self.loop.create_future()

        def keep(at: int, outcome: tuple[Any, BaseException | None]) -> None:
            found[at] = outcome
            if len(found) == len(items):
                finished.set_result(None)

        def start(at: int) -> None:
            values: list[Any] = []
            end, status, what = self.starter.run(mode, func, items, at, len(items), values, EVER)
            self.statuses.append(status)
            for offset, value in enumerate(values):
                keep(at + offset, (value, None))
            if status == RAISED:
                keep(end, (None, what))
            elif status == SUSPENDED:
                what.add_done_callback(lambda task: keep(end, self.starter.outcome(task)))
            del what  # which may be an exception, in whose traceback this frame lives on
            if status != DONE:
                self.loop.call_soon(start, end + 1)

        self.loop.call_soon(start, 0)
        self.loop.run_until_complete(finished)
        return self.settled([found.pop(at) for at in range(len(items))])

    def settled(self, outcomes: list[Any]) -> list[Any]:
        """The same, with the result of an awaitable that a value brings in its place."""
        return [(self._settled(value), error) for value, error in outcomes]

    def _settled(self, value: Any) -> Any:
        if isinstance(value, tuple) and value and asyncio.isfuture(value[-1]):
            return *value[:-1], self.loop.run_until_complete(value[-1])
        return value

    def plainly(self, calls: list[tuple[Any, Any]]) -> list[Any]:
        """What calls of functions with items end with as plain tasks."""
        outcomes = []
        for func, item in calls:
            coro = func(item) if iscoroutinefunction(func) else _plain(func, item)
            task = self.loop.create_task(coro)
            self.loop.run_until_complete(asyncio.wait([task]))
            outcomes.append(stepper.Starter.outcome(task))
        return self.settled(outcomes)


async def _plain(func: Any, item: Any) -> Any:
    value = func(item)
    return (await value) if isawaitable(value) else value


def told(outcome: tuple[Any, BaseException | None]) -> Any:
    """An outcome as something that compares equal to another of its kind."""
    value, error = outcome
    return value if error is None else chain(error)


def chain(error: BaseException | None) -> Any:
    if error is None:
        return None
    args = [re.sub("[0-9a-f]{8,}|(<| by |; reason).*", "...", str(arg)) for arg in error.args]
    return type(error), args, chain(error.__cause__), chain(error.__context__)


# -- fixtures --------------------------------------------------------------------------------------


LOOPS = ["asyncio", "debug"]
if find_spec("uvloop"):
    import uvloop

    uvloop.new_event_loop().close()  # opens the pipe for signals, which the process then keeps
    LOOPS.append("uvloop")


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that has no reason to complain until its end."""
    complaints: list[dict[str, Any]] = []
    if request.param == "uvloop":
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.SelectorEventLoop()
        loop.set_debug(request.param == "debug")
        loop.slow_callback_duration = 10.0
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    asyncio.set_event_loop(loop)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert not asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()
    assert not complaints


@pytest.fixture(params=["python", *(["cython"] if COMPILED else [])])
def kind(request: pytest.FixtureRequest) -> Any:
    """The class of starters."""
    if request.param == "python":
        return stepper.Starter
    import amp_ext.step

    return amp_ext.step.Starter


@pytest.fixture
def worker(kind: Any, loop: asyncio.AbstractEventLoop) -> Iterator[Worker]:
    """A worker whose items inherit one context variable."""
    context = contextvars.copy_context()
    context.run(INHERITED.set, "inherited")
    worker = context.run(Worker, kind, loop)
    yield worker
    worker.starter.close()


# -- items cannot tell -----------------------------------------------------------------------------


@pytest.mark.parametrize("behave", stepper_items.ALL, ids=lambda f: getattr(f, "__name__", repr(f)))
def test_an_item_sees_what_it_would_see_in_a_plain_task(worker: Worker, behave: Any) -> None:
    token = INHERITED.set("inherited")
    expected = worker.plainly([(behave, pause) for pause in PAUSES * 2])
    INHERITED.reset(token)
    found = worker.outcomes(behave, PAUSES * 2)
    assert [told(one) for one in found] == [told(one) for one in expected]


def test_items_of_all_kinds_do_not_see_each_other(worker: Worker) -> None:
    todo = [(behave, pause) for behave in stepper_items.ALL for pause in PAUSES]
    token = INHERITED.set("inherited")
    expected = worker.plainly(todo)
    INHERITED.reset(token)
    assert [told(one) for one in worker.outcomes(_behave, todo)] == [told(one) for one in expected]


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


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("stopper", [SystemExit, KeyboardInterrupt])
def test_what_stops_a_loop_is_an_outcome(worker: Worker, stopper: Any, pause: Pause) -> None:
    async def stop(n: int) -> Any:
        kept.append(me())
        await pause()
        raise stopper(n)

    kept: list[asyncio.Task[Any]] = []
    found = worker.outcomes(stop, [1, 2])
    assert [told(one) for one in found] == [(stopper, [n], None, None) for n in ("1", "2")]
    assert [repr(task.exception()) for task in kept] == [repr(error) for _, error in found]


def test_what_stops_a_loop_is_an_outcome_of_a_function(worker: Worker) -> None:
    [(_, error)] = worker.outcomes(sys.exit, [3])
    assert repr(error) == "SystemExit(3)"


def test_what_stops_a_loop_is_an_outcome_after_a_cancellation(worker: Worker) -> None:
    async def stop(n: int) -> Any:
        asyncio.get_running_loop().call_soon(me().cancel)
        try:
            await long_pause()
        finally:
            raise SystemExit(n)

    [(_, error)] = worker.outcomes(stop, [1])
    assert repr(error) == "SystemExit(1)"


# -- tasks of items --------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", PAUSES)
def test_a_task_that_was_kept_is_the_items_own_and_done(worker: Worker, pause: Pause) -> None:
    async def keep(n: int) -> int:
        kept.append(me())
        await pause()
        if n == 2:
            raise ValueError(n)
        return n

    kept: list[asyncio.Task[Any]] = []
    found = worker.outcomes(keep, [1, 2, 3])
    assert len(set(kept)) == 3
    assert [stepper.Starter.outcome(task) for task in kept] == found
    assert [told(one) for one in found] == [1, (ValueError, ["2"], None, None), 3]


def test_a_task_known_weakly_ends_with_its_item(worker: Worker) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))

    known: list[weakref.ref[asyncio.Task[Any]]] = []
    worker.outcomes(know, [1, 2, 3])
    assert [one() for one in known] == [None] * 3


def test_a_task_in_a_cycle_is_collected(worker: Worker) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))
        cycle: list[Any] = [me()]
        cycle.append(cycle)

    known: list[weakref.ref[asyncio.Task[Any]]] = []
    worker.outcomes(know, [1, 2, 3])
    gc.collect()
    assert [one() for one in known] == [None] * 3


class MortalError(Exception):
    """One that can be referenced weakly."""


@pytest.mark.parametrize("pause", PAUSES)
def test_nothing_waits_for_the_garbage_collector(worker: Worker, pause: Pause) -> None:
    async def know(n: int) -> None:
        known.append(weakref.ref(me()))
        await pause()

    async def fail(n: int) -> None:
        await pause()
        raise MortalError(n)

    known: list[weakref.ref[Any]] = []
    gc.collect()
    gc.disable()
    try:
        worker.outcomes(know, [1, 2, 3])
        known += [weakref.ref(error) for _, error in worker.outcomes(fail, [1, 2, 3])]
        worker.loop.run_until_complete(asyncio.sleep(0))
        assert [one() for one in known] == [None] * 6
    finally:
        gc.enable()


def test_quick_items_share_one_task(worker: Worker) -> None:
    async def name(n: int) -> tuple[str, int]:
        async with asyncio.timeout(10):  # noqa: ASYNC100 - which looks at the task
            return me().get_name(), n

    found = worker.outcomes(name, list(range(100)))
    assert [value[1] for value, _ in found] == list(range(100))
    assert len({value[0] for value, _ in found}) == 1
    assert worker.statuses == [DONE]


def test_between_bursts_there_is_no_task(worker: Worker) -> None:
    def start() -> None:
        for _ in range(3):
            worker.starter.run(0, str, [1], 0, 1, [], EVER)
            seen.append((asyncio.all_tasks(), asyncio.current_task()))
        worker.loop.stop()

    seen: list[Any] = []
    worker.loop.call_soon(start)
    worker.loop.run_forever()
    assert seen == [(set(), None)] * 3


def test_a_suspended_item_is_among_all_tasks(worker: Worker) -> None:
    async def others(n: int) -> int:
        await long_pause()
        return len(asyncio.all_tasks())

    assert [value for value, _ in worker.outcomes(others, [1, 2, 3])] == [3, 2, 1]


def test_all_tasks_can_be_gathered(worker: Worker) -> None:
    async def gather(n: int) -> Any:
        if n < 2:
            await gathering
            return n
        worker.loop.call_soon(gathering.set_result, None)
        return set(await asyncio.gather(*(asyncio.all_tasks() - {me()})))

    gathering = worker.loop.create_future()
    assert [value for value, _ in worker.outcomes(gather, [0, 1, 2])] == [0, 1, {0, 1}]


def test_a_suspended_item_can_be_cancelled(worker: Worker) -> None:
    async def wait(n: int) -> None:
        tasks.append(me())
        worker.loop.call_soon(cancel, n)
        await asyncio.sleep(10)

    def cancel(n: int) -> None:
        tasks[n].cancel(f"item {n}")

    tasks: list[asyncio.Task[Any]] = []
    found = [told(one) for one in worker.outcomes(wait, [0, 1])]
    assert [(one[0], one[1]) for one in found] == [
        (asyncio.CancelledError, [f"item {n}"]) for n in range(2)
    ]


def test_an_item_is_not_cancelled_by_the_cancellation_of_another(worker: Worker) -> None:
    async def cancel(n: int) -> int:
        if n % 2:
            me().cancel()
        return me().cancelling()

    found = [told(one) for one in worker.outcomes(cancel, list(range(6)))]
    assert found[::2] == [0, 0, 0]
    assert [one[0] for one in found[1::2]] == [asyncio.CancelledError] * 3


def test_a_traceback_shows_the_items_code_only(worker: Worker) -> None:
    async def fail(pause: Pause) -> None:
        await pause()
        raise ValueError

    def fail_at_once(pause: Pause) -> None:
        raise ValueError

    for func in (fail, fail_at_once):
        for _, error in worker.outcomes(func, PAUSES):
            assert error is not None
            frames = traceback.extract_tb(error.__traceback__)
            assert [frame.name for frame in frames] == [func.__name__]


# -- task factories --------------------------------------------------------------------------------


class Special(asyncio.Task[Any]):
    """A task that a factory of the user's makes."""


def _special(loop: Any, coro: Any, **kwargs: Any) -> Any:
    return Special(coro, loop=loop, **kwargs)


def can_make_tasks(loop: asyncio.AbstractEventLoop) -> bool:
    """False for uvloop with the eager factory of Python 3.13.0, whose arguments were others."""
    coro = no_pause()
    try:
        loop.create_task(coro)
    except TypeError:
        coro.close()
        return False
    return True


FACTORIES: list[Any] = [_special]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("pause", PAUSES)
def test_the_loops_task_factory_makes_the_tasks(worker: Worker, factory: Any, pause: Pause) -> None:
    async def item(n: int) -> Any:
        kept.append(me())
        await pause()
        if n == 2:
            raise SystemExit(n)
        return n, isinstance(me(), Special), me() is kept[-1] or pause is not no_pause, MINE.get()

    kept: list[Any] = []
    worker.loop.set_task_factory(factory)
    special = factory is _special
    try:
        if not in_loop(worker, lambda: can_make_tasks(worker.loop)):
            pytest.skip("this loop does not get on with this factory of this Python")
        found = [told(one) for one in worker.outcomes(item, [1, 2, 3])]
        functions = worker.outcomes(str, [1, 2])
    finally:
        worker.loop.set_task_factory(None)
    end = special, True, "nothing"
    assert found == [(1, *end), (SystemExit, ["2"], None, None), (3, *end)]
    assert len(set(kept)) == 3
    assert functions == [("1", None), ("2", None)]


def test_a_factory_that_fails_fails_the_item(worker: Worker) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("factory")

    async def item(n: int) -> None: ...

    worker.loop.set_task_factory(fail)
    try:
        found = worker.outcomes(item, [1, 2])
    finally:
        worker.loop.set_task_factory(None)
    assert [repr(error) for _, error in found] == ["ValueError('factory')"] * 2


# -- run -------------------------------------------------------------------------------------------


def in_loop(worker: Worker, call: Callable[[], Any]) -> Any:
    """What `call` returns as a callback of the running loop."""

    future = worker.loop.create_future()
    worker.loop.call_soon(lambda: future.set_result(call()))
    return worker.loop.run_until_complete(future)


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

    todo = [(behave, pause) for behave in stepper_items.ALL for pause in PAUSES]
    worker.outcomes(_behave, todo)
    before = tasks()
    worker.outcomes(_behave, todo)
    assert tasks() - before < len(todo) // 10  # the loop keeps some handles
