"""What the tests of the transport share; modules take its fixtures by `pair = …pair`.

Most tests hold both ends of a channel in one event loop, where every order of events can be
arranged; those that need a process have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import selectors
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import pytest

import as_on_windows
import conftest
from aiomultiprocess._transport import select
from aiomultiprocess._transport.link import Backend, ChildEnd, Link
from aiomultiprocess._wire.frames import Kind
from support import PATIENCE

#: More than any channel holds.
FLOOD = 4 << 20
METHODS = [
    pytest.param(name, marks=conftest.FORK_WARNING if name == "fork" else ())
    for name in multiprocessing.get_all_start_methods()
]


@functools.cache
def _unit(seed: int) -> bytes:
    return bytes((i * 7 + i // 256 + seed) % 256 for i in range(4099))


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every displacement shows."""
    unit = _unit(seed)
    return (unit * (size // len(unit) + 1))[:size]


class Receiver:
    """Records every callback of one link, and waits for them."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[tuple[Any, ...]] = []
        self.batches: list[int] = []  # frames seen at each on_drained
        self.rooms = 0
        self.broken: list[BaseException] = []
        self.take: Callable[..., None] | None = None  # in place of all else
        self.act: Callable[[Any], None] = lambda payload: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_drained: Callable[[], None] = lambda: None
        self.on_broken: Callable[[], None] = lambda: None
        self._news = asyncio.Event()

    def listen(self, loop: asyncio.AbstractEventLoop | None = None) -> Self:
        loop = loop or asyncio.get_running_loop()
        self.link.start(loop, self._frame, self._room, self._break, self._drained)
        return self

    @property
    def chunk_ids(self) -> list[int]:
        return [frame[3] for frame in self.frames]

    @property
    def payloads(self) -> list[bytes]:
        return [frame[-1] for frame in self.frames]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20 * PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def receives(self, count: int) -> None:
        await self.until(lambda: len(self.frames) >= count)

    def _frame(self, *frame: Any) -> None:
        if self.take is not None:
            self.take(*frame)
            self._news.set()
            return
        self.frames.append((*frame[:-1], bytes(frame[-1])))
        self._news.set()
        self.act(frame[-1])

    def _room(self) -> None:
        self.rooms += 1
        self._news.set()
        self.on_room()

    def _break(self, error: BaseException) -> None:
        self.broken.append(error)
        self._news.set()
        self.on_broken()

    def _drained(self) -> None:
        self.batches.append(len(self.frames) - sum(self.batches))
        self._news.set()
        self.on_drained()


class Pair:
    """Both ends of a channel in this process."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        link, self.end = backend.create()
        self.parent = Receiver(link)
        self.worker = Receiver(self.end.open())
        self.end.release()

    def listen(self) -> Self:
        self.parent.listen()
        self.worker.listen()
        return self

    def close(self) -> None:
        self.worker.link.close()
        self.parent.link.close()


AS_ON_WINDOWS = "pipe as on Windows"


@pytest.fixture(params=[*conftest.BACKENDS, *([] if sys.platform == "win32" else [AS_ON_WINDOWS])])
def made(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Backend]:
    name, _, elsewhere = request.param.partition(" ")
    if elsewhere:
        if request.node.callspec.params.get("method", "spawn") != "spawn":
            pytest.skip("Windows has no other start method than spawn")
        as_on_windows.pretend(tmp_path, functools.partial(monkeypatch.setattr, raising=False))
    made = select.select(name).make()
    assert made.name == name
    yield made
    made.close()


@pytest.fixture
async def pair(made: Backend) -> AsyncIterator[Pair]:
    pair = Pair(made)
    yield pair
    pair.close()


def send(link: Link, chunk_id: int, payload: bytes = b"") -> None:
    link.send(Kind.RESULTS, chunk_id=chunk_id, payload=[payload] if payload else ())


def say(link: Link, *chunk_ids: int, payload: bytes = b"") -> None:
    for chunk_id in chunk_ids:
        send(link, chunk_id, payload)
    link.flush()


def flood(link: Link, size: int = 1000) -> int:
    """Send more than the channel holds; how many frames that were."""
    count = FLOOD // size
    say(link, *range(count), payload=pattern(size))
    assert link.congested
    return count


class CountingSelector(selectors.DefaultSelector):
    """Counts how often the loop wakes up."""

    wakeups = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.wakeups += 1
        return super().select(timeout)


def run_counted(scenario: Callable[[CountingSelector], Coroutine[Any, Any, None]]) -> None:
    selector = CountingSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario(selector))


_processes: list[BaseProcess] = []


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    yield
    while _processes:
        process = _processes.pop()
        with contextlib.suppress(ValueError):  # closed, because it went as it should
            process.kill()
            process.join()
            process.close()


def start(method: str, target: Callable[..., None], end: ChildEnd, *args: object) -> BaseProcess:
    """A worker process that has got its end of the channel."""
    process = multiprocessing.get_context(method).Process(target=target, args=(end, *args))  # type: ignore[attr-defined]
    process.start()
    _processes.append(process)
    end.release()
    return process  # type: ignore[no-any-return]


async def finished(process: BaseProcess) -> None:
    await asyncio.to_thread(process.join, 20)
    assert process.exitcode == 0
    process.close()
