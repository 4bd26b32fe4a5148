"""Ctrl-C in the middle of a call: the program may go on with its loop, and so does the pool.

A notebook does that. Each test has a loop of its own, which an interrupt stops.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, RoundRobin
from aiomultiprocess._parent import worker as worker_module
from aiomultiprocess._parent.sources import IteratorSource
from aiomultiprocess._parent.worker import PoolWorker
from aiomultiprocess._transport import pipe
from aiomultiprocess._wire.frames import Kind
from support import outcomes

pytestmark = pytest.mark.usefixtures("backend")


class Interrupted:
    """Is interrupted once while it is pickled; a 2 in the worker."""

    def __init__(self) -> None:
        self.interrupts = iter([KeyboardInterrupt])

    def __reduce__(self) -> tuple[Any, ...]:
        for interrupt in self.interrupts:
            raise interrupt
        return int, (2,)


@pytest.mark.parametrize("what", ["an idle worker", "a line", "a map"])
def test_an_interrupt_while_an_argument_is_pickled_loses_no_other_task(what: str) -> None:
    async def start() -> Pool:
        pool = Pool(1, childconcurrency=1)
        assert await pool.apply(workload.two) == 2
        return pool

    async def call() -> Any:
        item = Interrupted()
        if what == "a map":
            return await pool.map(workload.double, [1, 2, item, 4])
        if what == "a line":
            before = [pool.apply(workload.double, (n,)) for n in range(20)]
            return await asyncio.gather(*before, pool.apply(workload.double, (item,)))
        return await pool.apply(workload.double, (item,))

    async def finish() -> Any:
        assert await pool.apply(workload.double, (7,)) == 14
        pool.close()
        await pool.join()

    with asyncio.Runner() as runner:
        pool = runner.run(start())
        loop = runner.get_loop()
        calling = loop.create_task(call())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(calling)
        loop.run_until_complete(finish())
        if what == "a map":
            assert loop.run_until_complete(calling) == [2, 4, 4, 8]
        elif what == "a line":
            assert loop.run_until_complete(calling) == [2 * n for n in (*range(20), 2)]
        else:  # this call was interrupted, and its caller got the interrupt
            assert isinstance(calling.exception(), KeyboardInterrupt)


class Struck:
    """An iterator that Ctrl-C interrupts once; it could go on, but the pool cannot know that."""

    def __init__(self, length: int, at: int, interrupt: type[BaseException]) -> None:
        self.numbers = iter(range(length))
        self.at = at
        self.interrupt = interrupt

    def __iter__(self) -> Struck:
        return self

    def __next__(self) -> int:
        number = next(self.numbers)
        if number == self.at:
            raise self.interrupt
        return number


def struck_generator(*args: Any) -> Iterator[int]:
    yield from Struck(*args)


async def struck_async_generator(*args: Any) -> AsyncIterator[int]:
    for number in Struck(*args):
        yield number


class Program:
    """A program that continues its loop after each interrupt."""

    def __init__(self, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.pool = self.runner.run(self.make(options))
        self.interrupts: list[BaseException] = []

    async def make(self, options: dict[str, Any]) -> Pool:
        return Pool(**options)

    def run(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine; if it was interrupted itself, make and run it once more."""
        while True:
            task = self.loop.create_task(call())
            task.add_done_callback(lambda _: self.loop.stop())
            while not task.done():  # run_until_complete may have been interrupted as it returned
                try:
                    self.loop.run_forever()
                except (KeyboardInterrupt, SystemExit) as error:
                    self.interrupts.append(error)
            if not isinstance(task.exception(), (KeyboardInterrupt, SystemExit)):
                return task.result()

    async def finish(self) -> None:
        self.pool.close()
        async with asyncio.timeout(20):
            await self.pool.join()


def one_worker() -> dict[str, Any]:
    return {"processes": 1}


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    program = Program(**getattr(request, "param", one_worker)())
    yield program
    program.run(program.finish)
    program.runner.close()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("make", [Struck, struck_generator, struck_async_generator])
@pytest.mark.parametrize("at", [0, 3, 3005])
def test_an_interrupt_within_an_input_is_its_end_and_no_item_before_it_is_lost(
    program: Program, make: Any, at: int, interrupt: type[BaseException]
) -> None:
    async def call() -> None:
        results.append(program.pool.map(workload.double, make(6000, at, interrupt)))

    async def read() -> list[Any]:
        return await outcomes(results[0])

    results: list[Any] = []
    try:
        program.loop.run_until_complete(call())
    except (KeyboardInterrupt, SystemExit) as error:  # at the call, which has no results then
        program.interrupts.append(error)
    else:
        found = program.run(read)
        assert found[:-1] == [2 * number for number in range(at)]
        with pytest.raises(RuntimeError, match=f"was ended by {interrupt.__name__}"):
            raise found[-1]
    assert [type(error) for error in program.interrupts] == [interrupt]


def test_an_interrupt_between_two_items_of_an_input_loses_none() -> None:
    """The interrupt hit no code of the input, which goes on."""
    strike = map(signal.raise_signal, [signal.SIGINT])
    source = IteratorSource(itertools.chain(range(5), strike, range(5, 20)))
    with pytest.raises(KeyboardInterrupt):
        source.take(10)
    assert not source.exhausted
    assert [*source.take(2), *source.take(10), *source.take(10)] == list(range(20))
    assert source.exhausted
    assert source.error is None


class Interrupting(RoundRobin):
    """Is interrupted at some of the items."""

    at: tuple[int, ...] = ()

    def schedule_task(self, task_id: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if args[0] in self.at:
            raise KeyboardInterrupt
        return super().schedule_task(task_id, func, args, kwargs)


def two_queues() -> dict[str, Any]:
    return {"processes": 2, "queuecount": 2, "scheduler": Interrupting()}


@pytest.mark.parametrize("program", [two_queues], indirect=True)
@pytest.mark.parametrize("way", [list, iter])
def test_an_interrupt_within_a_scheduler_fails_that_task_alone(program: Program, way: Any) -> None:
    async def call() -> None:
        results.append(program.pool.map(workload.double, way(range(3000))))

    async def read() -> list[Any]:
        return await outcomes(results[0])

    async def again() -> list[Any]:
        return await outcomes(program.pool.map(workload.double, [1, 2]))

    results: list[Any] = []
    Interrupting.at = (5, 2000) if way is list else (2000,)
    try:
        program.loop.run_until_complete(call())
    except KeyboardInterrupt as error:
        program.interrupts.append(error)
    else:
        found = program.run(read)
        assert isinstance(found.pop(2000), RuntimeError)
        assert found == [2 * item for item in range(3000) if item != 2000]
    assert [type(error) for error in program.interrupts] == [KeyboardInterrupt]
    Interrupting.at = ()
    assert program.run(again) == [2, 4]


@pytest.mark.parametrize("nth", [1, 3])
def test_an_interrupt_when_a_chunk_has_just_been_sent_loses_none(
    program: Program, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The chunk is under way, so the queue must have recorded it already."""
    [worker] = program.pool.processes
    send, sent = worker.link.send, []

    def struck(kind: int, **fields: Any) -> None:
        send(kind, **fields)
        if kind == Kind.CHUNK:
            sent.append(kind)
            if len(sent) == nth:
                signal.raise_signal(signal.SIGINT)

    async def read() -> Any:
        return await results[0]

    async def call() -> None:
        results.append(program.pool.map(workload.double, range(3000)))

    results: list[Any] = []
    monkeypatch.setattr(worker.link, "send", struck)
    if nth == 1:
        with pytest.raises(KeyboardInterrupt):
            program.loop.run_until_complete(call())
        assert worker.chunks
    else:
        program.loop.run_until_complete(call())
        assert program.run(read) == [2 * number for number in range(3000)]
        assert len(program.interrupts) == 1


# -- starts and exits of workers -------------------------------------------------------------------


def strike_once(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, before: bool = False, times: int = 1
) -> None:
    """Let Ctrl-C strike the first calls of a function, at their begin or when they are over."""
    function = getattr(owner, name)
    strikes = iter(range(times))

    def struck(*args: Any, **options: Any) -> Any:
        strike = next(strikes, None) is not None
        if strike and before:
            signal.raise_signal(signal.SIGINT)
        result = function(*args, **options)
        if strike:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, struck)


async def kill_workers(pool: Pool) -> None:
    for worker in pool.processes:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)


def kill_and_go_on(program: Program, strikes: int) -> None:
    """Kill the workers, get the interrupts, and find the pool working."""

    async def until_interrupted() -> None:
        while len(program.interrupts) < strikes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def call() -> Any:
        async with asyncio.timeout(20):
            return await program.pool.map(workload.double, range(3))

    program.run(lambda: kill_workers(program.pool))
    program.run(until_interrupted)
    assert program.run(call) == [0, 2, 4]
    assert len(program.interrupts) == strikes


def supervisor_of(program: Program) -> Any:
    engine: Any = program.pool._engine
    engine.supervisor._pause = 0.01
    return engine.supervisor


@pytest.mark.row("H218")
@pytest.mark.parametrize(
    ("name", "before"), [("create", True), ("launch", True), ("launch", False)]
)
def test_an_interrupt_of_the_start_of_a_replacement_delays_it(
    program: Program, monkeypatch: pytest.MonkeyPatch, name: str, before: bool
) -> None:
    """SUPERVISOR-6"""
    supervisor = supervisor_of(program)
    owner = supervisor._channels if name == "create" else PoolWorker
    strike_once(monkeypatch, owner, name, before=before)
    kill_and_go_on(program, 1)
    assert len(program.pool.processes) == 1


@pytest.mark.row("H218")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["drain_dead", "close", "_settle"])
def test_an_interrupt_of_the_end_of_a_worker_keeps_it_from_no_replacement(
    program: Program, monkeypatch: pytest.MonkeyPatch, name: str, before: bool
) -> None:
    """SUPERVISOR-6"""
    [worker] = program.pool.processes
    strike_once(monkeypatch, worker if name == "_settle" else worker.link, name, before=before)
    kill_and_go_on(program, 1)


def two_workers() -> dict[str, Any]:
    return {"processes": 2}


@pytest.mark.row("H218")
@pytest.mark.parametrize("program", [two_workers], indirect=True)
def test_interrupts_of_later_starts_lose_no_worker(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SUPERVISOR-6"""
    strike_once(monkeypatch, supervisor_of(program), "start_worker", before=True, times=4)
    kill_and_go_on(program, 4)

    async def all_started() -> None:
        async with asyncio.timeout(20):
            while len(program.pool.processes) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    program.run(all_started)


@pytest.mark.row("H218")
def test_an_interrupt_while_a_link_is_made_leaves_a_pool_that_can_be_terminated(
    program: Program, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    if backend == "shm":
        from aiomultiprocess._accel import link as framing

        strike_once(monkeypatch, framing, "Outlet", before=True)
    else:
        strike_once(monkeypatch, pipe, "Inbox", before=True)
    supervisor_of(program)._pause = 60.0

    async def fall() -> None:
        await kill_workers(program.pool)
        await asyncio.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        program.loop.run_until_complete(fall())
    program.pool.terminate()


@pytest.mark.row("H219")
@pytest.mark.parametrize("name", ["BlockedWatch", "launch", "Exit"])
def test_an_interrupt_just_after_a_process_was_started_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """POOLWORKER-6"""
    strike_once(monkeypatch, PoolWorker if name == "launch" else worker_module, name)

    async def make() -> None:
        Pool(1)

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(make())
    assert multiprocessing.active_children() == []
