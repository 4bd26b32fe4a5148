"""How a worker answers items: together (RESULTS-1), a failure alone (RESULTS-2), and so that a
finished item outlives it (WORKER-6).

Without a process: a worker engine on a loop of its own, over a link that notes what is sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mishaps
from aiomultiprocess import _accel
from aiomultiprocess._pure import journal as pure_journal
from aiomultiprocess._wire import journal
from aiomultiprocess._wire.frames import Kind, Mode
from aiomultiprocess._worker import engine as child
from aiomultiprocess._worker import results

HOUR = 3_600_000_000_000  # nanoseconds: however slow this machine is, a burst is not over

Sent = tuple[int, int, int]  # of a frame: kind, offset, count


class Link:
    """Takes answers."""

    congested = False

    def __init__(self) -> None:
        self.memory = bytearray(64 << 10)
        self.journal = memoryview(self.memory)
        self.counter = self
        self.sent: list[Sent] = []
        self.most = 1 << 30

    def mark_started(self, n: int) -> None:
        pass

    def send(
        self, kind: int, *, offset: int = 0, count: int = 0, payload: Any = (), **fields: Any
    ) -> None:
        if sum(map(len, payload)) > self.most:
            raise MemoryError
        if kind != Kind.NEED_WORK:
            self.sent.append((kind, offset, count))

    def flush(self) -> None:
        pass

    def kept(self) -> list[Sent]:
        """What the parent would read in the journal if the worker died now."""
        entries = journal.read(memoryview(bytes(self.memory)))
        return [(entry.kind, entry.offset, entry.items) for entry in entries]


class CancelsWhenPickled:
    """Cancels the task that runs, which may be the one whose result it is."""

    def __reduce__(self) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return int, ()


class Worker:
    """Runs one chunk of items, all of which wait until `end` lets them go on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.link = Link()
        self.engine = child.WorkerEngine(self.loop, self.link, 16, None, 3.0)  # type: ignore[arg-type]
        counter, on_value = self.link.counter, self.engine._on_value
        self.engine._starter = _accel.Starter(self.loop, counter, on_value)
        self.engine._functions[1] = self.item
        self.gates: dict[str, asyncio.Event] = {}
        self.seen: list[tuple[list[Sent], list[Sent]]] = []

    async def item(self, what: str) -> Any:
        gate = self.gates.setdefault(what[:1], asyncio.Event())
        await gate.wait()
        self.seen.append((list(self.link.sent), self.link.kept()))
        if what.endswith("raises"):
            raise ValueError(what)
        if what.endswith("is large"):
            return bytes(len(self.link.memory))
        if what.endswith("cancels"):
            return CancelsWhenPickled()
        return threading.Lock() if what.endswith("is not to be pickled") else what

    def item_at_once(self, what: str) -> Any:
        """The same as a plain function, which returns at once."""
        return bytes(len(self.link.memory)) if what.endswith("is large") else what

    def run(self, items: list[str], *gates: str) -> list[Sent]:
        """Open these gates, each in a turn of its own; the frames that were sent."""
        self.receive(items, 7, 1)

        async def drive() -> None:
            self.engine._schedule_turn()
            await self.turns(lambda: not self.engine._turn_scheduled)
            for gate in gates:
                self.gates[gate].set()
                await self.turns(lambda gate=gate: not self.is_busy(items, gate))

        self.loop.run_until_complete(drive())
        return self.link.sent

    async def turns(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until then: nothing here waits for time."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)

    def receive(
        self, items: list[Any], chunk_id: int, function: int, burst: int = HOUR // 1000
    ) -> None:
        """A chunk arrives; `burst` is in microseconds."""
        (payload,), count, _ = _accel.encode_items(items, 0, len(items), 1 << 20)
        self.engine._on_frame(
            Kind.CHUNK, Mode.MAP, count, chunk_id, burst, function, memoryview(payload)
        )

    def run_at_once(self, item: Callable[[Any], Any], items: list[Any], burst: int) -> list[Sent]:
        """Run items of a plain function for some turns of the loop; the frames that were sent."""
        self.engine._functions[1] = item
        self.receive(items, 7, 1, burst)

        async def drive() -> None:
            self.engine._schedule_turn()
            for _ in range(10 * len(items)):
                await asyncio.sleep(0)

        self.loop.run_until_complete(drive())
        return self.link.sent

    def is_busy(self, items: list[str], gate: str) -> bool:
        """Whether items behind this gate have not ended, or the turn after them is to come."""
        places = self.engine._running.values()
        return self.engine._turn_scheduled or any(
            place is None or items[place[1]].startswith(gate) for place in places
        )

    def close(self) -> None:
        self.engine.close()
        self.engine._results.close()
        self.loop.close()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes that the worker has asked for, which is this process here."""
    codes: list[int] = []
    monkeypatch.setattr(child.os, "_exit", codes.append)
    return codes


@pytest.fixture(params=["compiled", "python"])
def worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    if request.param == "python":
        monkeypatch.setattr(_accel, "Journal", pure_journal.Journal)
    monkeypatch.setattr(child, "BURST_NS", HOUR)
    monkeypatch.setattr(results, "MOMENT_NS", 1 << 62)  # results wait for the end of the turn
    worker = Worker()
    yield worker
    worker.close()


def test_items_that_end_in_one_turn_are_answered_in_one_frame(worker: Worker) -> None:
    assert worker.run(["a"] * 10, "a") == [(Kind.RESULTS, 0, 10)]


def test_items_that_end_later_are_answered_later(worker: Worker) -> None:
    sent = worker.run(["a", "a", "b", "b", "b"], "b", "a")
    assert sent == [(Kind.RESULTS, 2, 3), (Kind.RESULTS, 0, 2)]


def test_items_between_others_have_frames_of_their_own(worker: Worker) -> None:
    sent = worker.run(["a", "b", "a", "a"], "a", "b")
    assert sent == [(Kind.RESULTS, 0, 1), (Kind.RESULTS, 2, 2), (Kind.RESULTS, 1, 1)]


@pytest.mark.parametrize("failing", ["a raises", "a is not to be pickled"])
def test_an_item_that_fails_among_them_is_answered_by_its_error(
    worker: Worker, failing: str
) -> None:
    sent = worker.run(["a", "a", failing, "a"], "a")
    # an error is known only in the callback of its task, when the others have been answered
    assert sorted(sent, key=lambda frame: frame[1]) == [
        (Kind.RESULTS, 0, 2),
        (Kind.ERROR, 2, 0),
        (Kind.RESULTS, 3, 1),
    ]


@pytest.mark.row("A7")
def test_a_result_that_cancels_its_item_when_it_is_pickled_is_its_only_answer(
    worker: Worker,
) -> None:
    assert worker.run(["a", "a cancels", "a"], "a") == [(Kind.RESULTS, 0, 3)]
    assert not worker.engine._running


@pytest.mark.row("H135")
def test_a_suspended_item_is_answered_as_it_ends_if_none_was_just_before(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RESULTS-3."""
    monkeypatch.setattr(results, "MOMENT_NS", -1)
    assert worker.run(["a"] * 3, "a") == [(Kind.RESULTS, at, 1) for at in range(3)]


@pytest.mark.parametrize("at_once", [False, True], ids=["suspended", "at once"])
def test_a_result_that_cannot_be_sent_fails_alone(worker: Worker, at_once: bool) -> None:
    worker.link.most = len(worker.link.memory)
    if at_once:
        worker.engine._functions[1] = worker.item_at_once
    sent = worker.run(["a", "a", "a is large", "a"], *(() if at_once else "a"))
    assert sent == [(Kind.RESULTS, 0, 2), (Kind.ERROR, 2, 0), (Kind.RESULTS, 3, 1)]


def test_no_other_chunk_writes_into_the_open_entry_of_a_burst(worker: Worker) -> None:
    """An item that runs the loop from inside lets others end while it is run (RESULTS-1)."""
    refused = []

    def item(what: str) -> str:
        if what == "b":
            try:
                worker.engine._results.add(6, 0, "of another chunk")
            except RuntimeError as error:
                refused.append(str(error))
        return what

    worker.engine._functions[1] = item
    assert worker.run(["a", "b", "a"]) == [(Kind.RESULTS, 0, 3)]
    assert refused == ["an entry is open"]


def test_items_that_end_inside_another_are_answered_after_it(worker: Worker) -> None:
    """An item that runs the loop from inside, as nest_asyncio lets it (RESULTS-1)."""
    engine, loop = worker.engine, worker.loop

    def inside(what: str) -> str:
        reusable = asyncio.current_task(loop)
        assert reusable is not None
        asyncio.tasks._leave_task(loop, reusable)
        worker.gates["a"].set()
        of_the_turn = len(loop._ready)  # type: ignore[attr-defined]
        for _ in range(8):
            loop.call_soon(engine._turn)
            loop._run_once()  # type: ignore[attr-defined]
        for _ in range(of_the_turn):  # the turn we are in has counted them, and asks for as many
            loop.call_soon(lambda: None)
        asyncio.tasks._enter_task(loop, reusable)
        return what

    engine._functions[2] = inside
    worker.run(["a", "a"])
    loop.call_soon(worker.receive, ["c", "c"], 8, 2)
    loop.call_soon(engine._schedule_turn)
    loop.run_until_complete(worker.turns(lambda: len(worker.link.sent) == 2))
    assert worker.link.sent == [(Kind.RESULTS, 0, 2), (Kind.RESULTS, 0, 2)]
    assert not engine._running


def test_an_item_that_is_cancelled_inside_another_is_answered_once_and_so_are_those_after_it(
    worker: Worker,
) -> None:
    """A CANCEL that arrives within a burst (RESULTS-1) comes too late for the items of that
    burst."""

    def item(n: int) -> int:
        if n == 0:
            worker.engine._on_frame(Kind.CANCEL, 0, 0, 7, 1, 0, memoryview(b""))
        if n == 1:
            raise ValueError(n)
        return n

    sent = worker.run_at_once(item, [0, 1, 2], HOUR // 1000)
    assert sent == [(Kind.RESULTS, 0, 1), (Kind.ERROR, 1, 0), (Kind.RESULTS, 2, 1)]
    assert not worker.engine._chunks


@pytest.mark.parametrize("last", ["returns", "raises", "suspends"])
def test_an_item_may_let_its_worker_be_terminated_inside_it(
    worker: Worker, exits: list[int], monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """By a loop that it runs from inside (RESULTS-1): its turn ends, and so does the worker."""
    monkeypatch.setattr(child.leaving, "exit_by_signal", exits.append)
    complaints: list[Any] = []
    worker.loop.set_exception_handler(lambda loop, context: complaints.append(context))

    def item(n: int) -> Any:
        if n == 0:
            worker.engine._terminate()
        if n == 1 and last == "raises":
            raise ValueError(n)
        return asyncio.sleep(0) if n == 1 and last == "suspends" else n

    worker.engine._functions[1] = item
    worker.receive([0, 1], 7, 1)
    worker.engine._schedule_turn()
    worker.loop.run_forever()
    assert complaints == exits == []
    assert worker.engine.terminated
    assert not worker.engine._chunks


@pytest.mark.row("A3")
def test_an_argument_that_cannot_be_unpickled_fails_though_its_turn_begins_with_no_time_left(
    worker: Worker,
) -> None:
    called = []

    def use_up_the_burst(item: object) -> None:
        called.append(item)
        time.sleep(0.002)

    sent = worker.run_at_once(use_up_the_burst, [1, mishaps.LostError("gone")], burst=1000)
    assert sent == [(Kind.RESULTS, 0, 1), (Kind.ERROR, 1, 0)]
    assert called == [1]  # and never with the exception in the argument's place


def test_an_item_that_was_cancelled_fails_though_its_turn_begins_with_no_time_left(
    worker: Worker,
) -> None:
    called = []

    def use_up_the_burst(n: int) -> None:
        called.append(n)
        time.sleep(0.002)

    worker.engine._functions[1] = use_up_the_burst
    worker.loop.call_soon(
        worker.engine._on_frame, Kind.CANCEL, 0, 0, 7, 1, 0, memoryview(b"")
    )  # it runs before the first turn, and after the chunk has arrived
    sent = worker.run_at_once(use_up_the_burst, [0, 1, 2], burst=1000)
    assert sent == [(Kind.RESULTS, 0, 1), (Kind.ERROR, 1, 0), (Kind.RESULTS, 2, 1)]
    assert called == [0, 2]


@pytest.mark.row("B13")
def test_each_answer_outlives_the_process_before_another_item_runs(worker: Worker) -> None:
    worker.run(["a"] * 3, "a")
    assert [kept for _, kept in worker.seen] == [
        [],
        [(Kind.RESULTS, 0, 1)],
        [(Kind.RESULTS, 0, 2)],
    ]
    assert not any(sent for sent, _ in worker.seen)  # so it was the journal that kept them
    assert worker.link.kept() == []  # and what was published is not kept twice


# -- errors of the engine itself -------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "inside another"])
def test_a_worker_that_cannot_answer_a_suspended_item_ends_loudly(
    worker: Worker, exits: list[int], monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("unforeseen")

    worker.run(["a raises", "b"])
    monkeypatch.setattr(worker.engine._results, "fail", fail)
    [task] = [task for task, place in worker.engine._running.items() if place == (7, 0)]
    if inside:
        # as if an item were running the loop
        worker.engine._in_burst = True
    worker.gates["a"].set()
    worker.loop.run_until_complete(worker.turns(task.done))
    worker.loop.run_until_complete(asyncio.sleep(0))
    if inside:
        assert exits == []
        worker.engine._in_burst = False
        worker.engine._finish_ended()
    assert exits == [70]
    worker.gates["b"].set()
    worker.loop.run_until_complete(worker.turns(lambda: not worker.engine._running))


def test_a_worker_whose_turn_fails_ends_loudly(
    worker: Worker, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("unforeseen")

    complaints: list[Any] = []
    worker.loop.set_exception_handler(lambda loop, context: complaints.append(context))
    monkeypatch.setattr(worker.engine, "_turn", fail)
    worker.engine._schedule_turn()
    worker.loop.run_until_complete(asyncio.sleep(0))
    assert exits == [70]
    assert complaints == []
