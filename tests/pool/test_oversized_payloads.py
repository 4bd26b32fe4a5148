"""Payloads over the limit of one frame fail their own tasks, and are no loss to any other."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolExecutor, WorkerLostError
from aiomultiprocess._wire import frames
from support import Meeting, lines

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("H172")]

LIMIT = 1 << 20  # in place of 64 GiB
TOO_LARGE = bytes(LIMIT + 1)
REFUSED = r"cannot be sent to a worker: a payload of \d+ bytes is over the limit of 1048576 bytes"


@pytest.fixture(autouse=True)
def _low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_PAYLOAD", LIMIT)


async def test_a_call_fails_by_name_and_its_worker_goes_on() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(workload.two) == 2
        with pytest.raises(ValueError, match=REFUSED):
            await pool.apply(workload.identity, (TOO_LARGE,))
        assert await pool.apply(workload.identity, (b"x",)) == b"x"
        [worker] = pool.processes
        assert worker.credit.sent == worker.link.started == 2
        pool.close()
        await pool.join()


async def test_a_call_that_waits_for_a_worker_fails_too() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=1) as pool:
        first = pool.apply(workload.meet, (meeting.port,))
        arrival = await meeting.next()
        call = pool.apply(workload.identity, (TOO_LARGE,))
        arrival.release()
        assert await first == "go"
        with pytest.raises(ValueError, match=REFUSED):
            await call


@pytest.mark.parametrize("kind", [list, iter])
async def test_an_item_of_a_map_fails_alone(kind: Any) -> None:
    async with Pool(2) as pool:
        items = [b"a", b"b", TOO_LARGE, b"c", TOO_LARGE, b"d"]
        found = await pool.map(workload.identity, kind(items), return_exceptions=True)
        assert [value for value in found if isinstance(value, bytes)] == [b"a", b"b", b"c", b"d"]
        errors = [found[at] for at in (2, 4)]
        assert [str(error).partition(" cannot")[0] for error in errors] == [
            "item 2 of a call of workload.identity",
            "item 4 of a call of workload.identity",
        ]
        assert await pool.map(workload.double, range(100)) == [2 * at for at in range(100)]


async def test_no_task_runs_twice_if_the_worker_dies_later(tmp_path: Path) -> None:
    note = tmp_path / "started"
    async with Meeting() as meeting, Pool(1) as pool:
        with pytest.raises(ValueError, match=REFUSED):
            await pool.apply(workload.identity, (TOO_LARGE,))
        call = pool.apply(workload.note_and_meet, (str(note), meeting.port, "once"))
        arrival = await meeting.next()
        os.kill(arrival.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await call
        assert await pool.apply(workload.two) == 2
    assert lines(note) == ["once"]


def test_a_call_of_an_executor_fails_by_name() -> None:
    with PoolExecutor(1) as executor:
        with pytest.raises(ValueError, match=REFUSED):
            executor.submit(workload.identity, TOO_LARGE).result()
        assert executor.submit(workload.identity, 1).result() == 1
