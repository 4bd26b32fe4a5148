"""How long a worker runs items before it answers (WORKER-4). Without a process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from aiomultiprocess import _accel
from aiomultiprocess._wire.frames import Kind, Mode
from aiomultiprocess._worker import engine

LONG, SHORT = 2_000, 100  # microseconds, on both sides of BURST_NS


class Link:
    """Takes answers."""

    congested = False

    def __init__(self) -> None:
        self.journal = memoryview(bytearray(4096))

    def send(self, kind: int, **fields: Any) -> None:
        pass

    def flush(self) -> None:
        pass


class Item:
    """A task that an item became."""

    def add_done_callback(self, callback: Any) -> None:
        pass

    def done(self) -> bool:
        return False


class Starter:
    """Notes how long it may run; an item "suspends", or is "slow" and uses up the time."""

    def __init__(self) -> None:
        self.bursts: list[int] = []  # nanoseconds

    def run(
        self,
        mode: int,
        func: Any,
        items: list[Any],
        at: int,
        stop: int,
        out: Any,
        deadline: int,
        timed: bool,
    ) -> tuple[int, int, Any]:
        self.bursts.append(deadline)  # it is always the moment 0
        if items[at] == "suspends":
            return at, _accel.SUSPENDED, Item()
        for end, item in enumerate(items[at:stop], at + 1):
            out.append(item)
            if item == "slow":
                return end, _accel.DONE, None
        return stop, _accel.DONE, None


class Worker:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine.WorkerEngine(loop, Link(), 16, None, 3.0)  # type: ignore[arg-type]
        self.starter = Starter()
        self.engine._starter = self.starter  # type: ignore[assignment]
        self.engine._functions[1] = len
        self.chunks = 0

    def receive(self, items: list[str], burst: int) -> None:
        (payload,), count, _ = _accel.encode_items(items, 0, len(items), 1 << 20)
        self.chunks += 1
        self.engine._on_frame(
            Kind.CHUNK, Mode.MAP, count, self.chunks, burst, 1, memoryview(payload)
        )


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(engine.time, "monotonic_ns", lambda: 0)
    loop = asyncio.new_event_loop()
    worker = Worker(loop)
    yield worker
    worker.engine._results.close()
    loop.close()


@pytest.mark.parametrize("burst", [LONG, SHORT])
def test_a_worker_runs_for_as_long_as_its_parent_says(worker: Worker, burst: int) -> None:
    worker.receive(["a", "b"], burst)
    worker.engine._turn()
    assert worker.starter.bursts == [1000 * burst]


def test_suspended_items_do_not_wait_for_longer_bursts(worker: Worker) -> None:
    worker.receive(["suspends", "a"], LONG)
    worker.receive(["b"], LONG)
    worker.engine._turn()
    worker.receive(["c"], LONG)
    worker.engine._turn()
    assert worker.starter.bursts == [1000 * LONG, engine.BURST_NS, engine.BURST_NS, engine.BURST_NS]


def test_suspended_items_do_not_make_bursts_longer(worker: Worker) -> None:
    worker.receive(["suspends"], SHORT)
    worker.receive(["a"], SHORT)
    worker.engine._turn()
    assert worker.starter.bursts == [1000 * SHORT] * 2


def test_a_burst_that_used_up_its_time_is_not_begun_once_more(worker: Worker) -> None:
    worker.receive(["a", "slow", "b"], LONG)
    worker.engine._turn()
    assert len(worker.starter.bursts) == 1
    assert worker.engine._turn_scheduled
    worker.engine._turn()
    assert len(worker.starter.bursts) == 2
    assert not worker.engine._chunks
