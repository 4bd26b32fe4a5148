"""The progress of a map: `result.progress`, `progress=`, `len(result)`, and tqdm over a result."""

from __future__ import annotations

import asyncio
import contextvars
import io
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tqdm.asyncio import tqdm

import mishaps
import workload
from aiomultiprocess import Pool, Progress
from support import Meeting, outcomes, pool_script, run_script

pytestmark = pytest.mark.usefixtures("backend")


async def test_progress_counts_what_has_ended_and_what_has_failed() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        results = pool.starmap(mishaps.meet_or_raise, [(meeting.port, i) for i in range(3)])
        assert results.progress == Progress(done=0, failed=0, total=3)
        iterator = results.as_completed()
        for arrival, word, then in zip(
            await meeting.first(3), ("go", "raise", "go"), ((1, 0), (2, 1), (3, 1)), strict=True
        ):
            arrival.release(word)
            await asyncio.gather(anext(iterator), return_exceptions=True)
            assert results.progress == Progress(*then, total=3)
        assert results.done()


@pytest.mark.parametrize("way", [False, True])
async def test_progress_counts_failures_that_stand_for_results(way: bool) -> None:
    async with Pool(1) as pool:
        items = [(3, i) for i in range(6)]
        results = pool.starmap(mishaps.fail_at, items, return_exceptions=way)
        await outcomes(results)
        assert results.progress == Progress(6, 1, 6)


async def test_the_total_of_an_iterator_is_known_at_its_end() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.double, iter(range(3)))
        assert results.progress.total is None
        await results
        assert results.progress == Progress(3, 0, 3)


async def test_a_pool_that_ends_lets_the_rest_fail() -> None:
    async with Pool(1) as pool:
        results = pool.map(workload.wait_for_ever, range(3))
    assert results.progress == Progress(3, 3, 3)


async def test_a_result_has_the_length_of_its_input_and_is_always_true() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    async with Pool(1) as pool:
        for bounded in ([1, 2], (1, 2), range(2), {1, 2}, {1: 2, 2: 3}):
            assert len(pool.map(workload.double, bounded)) == 2
        empty = pool.map(workload.double, [])
        assert len(empty) == 0
        assert empty
        for unbounded in (iter([1, 2]), items()):
            results = pool.map(workload.double, unbounded)
            assert results
            with pytest.raises(TypeError, match=r"no length: .* pass list\(...\) of it"):
                len(results)
            await results


async def test_tqdm_over_a_result_shows_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread, and no lock that is shared memory
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)
    shown = io.StringIO()
    async with Pool(1) as pool:
        bar = tqdm(pool.map(workload.double, range(30)), file=shown)
        assert [value async for value in bar] == list(range(0, 60, 2))
    assert "30/30" in shown.getvalue()


# -- progress= -------------------------------------------------------------------------------------


async def test_a_callable_gets_the_progress_and_once_the_end() -> None:
    seen: list[Progress] = []
    async with Meeting() as meeting, Pool(1) as pool:
        reported = asyncio.Event()

        def show(progress: Progress) -> None:
            seen.append(progress)
            reported.set()

        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(2)], progress=show)
        one, other = await meeting.first(2)
        assert seen == []
        one.release()
        await reported.wait()
        assert seen == [Progress(1, 0, 2)]
        other.release()
        await results
        assert seen == [Progress(1, 0, 2), Progress(2, 0, 2)]
        await pool.apply(workload.two)
        assert len(seen) == 2


async def test_a_callable_is_called_at_most_ten_times_a_second() -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()
    async with Pool(2) as pool:
        await pool.map(
            workload.double, range(300_000), progress=lambda progress: times.append(loop.time())
        )
    *during, _last = times
    gaps = [after - before for before, after in itertools.pairwise(during)]
    assert all(gap > 0.09 for gap in gaps)


@pytest.mark.parametrize("items", [[], iter(())])
async def test_the_end_is_reported_of_a_map_without_items(items: Any) -> None:
    seen: list[Progress] = []
    async with Pool(1) as pool:
        await pool.map(workload.double, items, progress=seen.append)
        await asyncio.sleep(0)
    assert seen == [Progress(0, 0, 0)]


async def test_a_callable_that_raises_is_reported_once_and_the_map_goes_on() -> None:
    complaints: list[dict[str, Any]] = []
    calls = 0

    def fail(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        reported.set()
        raise LookupError("no place to show it")

    async with Meeting() as meeting, Pool(1) as pool:
        reported = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context)
        )
        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(2)], progress=fail)
        one, other = await meeting.first(2)
        one.release()
        await reported.wait()
        other.release()
        assert await results == ["go", "go"]
        assert calls == 2
    (complaint,) = complaints
    assert "progress of a map of workload.meet" in complaint["message"]
    assert isinstance(complaint["exception"], LookupError)


@pytest.mark.row("H82")
async def test_a_callable_may_cancel_the_map() -> None:
    async with Meeting() as meeting, Pool(1) as pool:
        seen: list[Progress] = []

        def show(progress: Progress) -> None:
            seen.append(progress)
            results.cancel()

        results = pool.starmap(workload.meet, [(meeting.port, i) for i in range(3)], progress=show)
        (await meeting.next()).release()
        with pytest.raises(asyncio.CancelledError):
            await results
        assert seen == [Progress(1, 0, 3)] * 2


async def test_a_callable_runs_in_the_context_of_the_call() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []
    async with Pool(1) as pool:
        variable.set(7)
        results = pool.map(workload.double, [1], progress=lambda _: seen.append(variable.get()))
        variable.set(8)
        await results
    assert set(seen) == {7}


async def test_a_pool_that_is_terminated_is_an_end() -> None:
    seen: list[Progress] = []
    async with Pool(1) as pool:
        pool.map(workload.wait_for_ever, range(3), progress=seen.append)
    assert seen == [Progress(3, 3, 3)]


async def test_true_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    async with Pool(1) as pool:
        items = [(3, i) for i in range(6)]
        found = await pool.starmap(mishaps.fail_at, items, progress=True, return_exceptions=True)
        assert len(found) == 6
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "failed=1" in shown


async def test_a_bar_of_an_iterator_has_no_total_before_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def items() -> Iterator[int]:
        yield from range(5)

    async with Pool(1) as pool:
        await pool.map(workload.double, items(), progress=True)
    assert "5/5" in capsys.readouterr().err


async def test_true_without_tqdm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        monkeypatch.setitem(sys.modules, name, None)
    async with Pool(1) as pool:
        with pytest.raises(ImportError, match=r"install aiomultiprocess\[progress\]"):
            pool.map(workload.double, range(3), progress=True)
        assert await pool.map(workload.double, range(3), progress=lambda _: None) == [0, 2, 4]


async def test_what_cannot_show_progress_is_refused_by_name() -> None:
    async with Pool(1) as pool:
        for wrong in (None, 1, "bar"):
            with pytest.raises(TypeError, match=f"progress must be True .*got {wrong!r}"):
                pool.map(workload.double, [], progress=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="progress must be True or a synchronous function"):
            pool.starmap(workload.describe, [], progress=workload.double)


@pytest.mark.row("H84")
def test_a_bar_starts_no_process_and_no_thread(tmp_path: Path, start_method: str) -> None:
    """A resource tracker, which a lock of multiprocessing needs, or the monitor of tqdm."""
    body = """
async with Pool(1) as pool:
    await pool.map(workload.double, range(100), progress=True)
    import threading
    print("threads", [thread.name for thread in threading.enumerate()])
    from tqdm import tqdm
    print("lock", hasattr(tqdm, "_lock"))
"""
    source = pool_script(body, setup=f"set_start_method({start_method!r})")
    script = run_script(tmp_path, source)
    assert "lock False" in script.out, script.err
    assert "TMonitor" not in script.out
