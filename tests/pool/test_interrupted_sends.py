"""Calls that are cancelled while the engine is sending: by Ctrl-C, a reducer or a finalizer.

`asyncio.run` answers SIGINT by `Task.cancel` within the signal handler, and so at any place of the
engine's code; a call that the task waits for is cancelled there. Here, code that runs while a frame
is written does the same.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool
from aiomultiprocess._transport import pipe
from support import Meeting, Script, pool_script

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("H173")]


class Interrupting:
    """A producer of a ring, which runs `interrupt` once while a frame is half written."""

    def __init__(self, producer: Any, interrupt: Callable[[], object]) -> None:
        self._producer = producer
        self._interrupt: Callable[[], object] | None = interrupt

    def write_some(self, segments: Any, offset: int) -> int:
        written: int = self._producer.write_some(segments, offset)
        self.strike()
        return written

    def strike(self) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            interrupt()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def interrupt_next_write(pool: Pool, patch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Run `what` while the next large frame to the only worker is half written."""
    [worker] = pool.processes
    if pool.backend == "shm":
        patch.setattr(worker.link, "_producer", Interrupting(worker.link._producer, what))
        return
    add, once = pipe.Outbox.add, [what]

    def interrupted(self: Any, segment: Any) -> None:  # the header is there, and no payload
        while once:
            once.pop()()
        add(self, segment)

    patch.setattr(pipe.Outbox, "add", interrupted)


async def test_a_call_that_is_cancelled_while_a_frame_is_written_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        running = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.next()
        interrupt_next_write(pool, monkeypatch, running.cancel)
        data = bytes(range(256)) * (4 << 12)
        assert await pool.apply(workload.identity, (data,)) == data
        await arrival.gone
        assert await pool.apply(workload.identity, (data,)) == data
        assert running.cancelled()
        assert sum(pool.stats().restarts.values()) == 0


class Cancelling:
    """Cancels a call while it is pickled."""

    def __init__(self) -> None:
        self.call: asyncio.Future[Any] | None = None

    def __reduce__(self) -> Any:
        if self.call is not None:
            self.call.cancel()
        return Cancelling, ()


async def test_a_call_that_is_cancelled_while_it_is_pickled_is_cancelled_in_its_worker(
    tmp_path: Path,
) -> None:
    note = str(tmp_path / "ended")
    async with Meeting() as meeting, Pool(1, childconcurrency=2) as pool:
        first = pool.apply(workload.meet, (meeting.port, "first"))
        second = pool.apply(workload.meet, (meeting.port, "second"))
        held = await meeting.first(2)
        item = Cancelling()
        item.call = call = pool.apply(workload.clean_up, (note, meeting.port, item))
        for arrival in held:
            arrival.release()
        await asyncio.gather(first, second)
        assert await pool.apply(workload.two) == 2
        with pytest.raises(asyncio.CancelledError):
            await call
        pool.close()
        await pool.join()  # which waits for what runs in the worker


async def test_ctrl_c_while_large_calls_are_sent_breaks_no_link(tmp_path: Path) -> None:
    body = """
    data = bytes(1 << 20)
    pool = Pool(2)
    try:
        print("sending", flush=True)
        while True:
            await asyncio.gather(*[pool.apply(workload.identity, (data,)) for _ in range(20)])
    finally:
        pool.terminate()
        await pool.join()
        print("ended", flush=True)
    """
    for at in range(5):
        with Script(tmp_path, pool_script(body), name=f"p{at}.py") as script:
            await script.line("sending")
            await asyncio.sleep(0.05 * (at + 1))
            script.process.send_signal(signal.SIGINT)
            script.finish()
            assert "link" not in script.err
            assert "ended" in script.out
