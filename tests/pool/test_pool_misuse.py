"""Bad input, and use at the wrong time or place: an error where the user made the mistake."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, RoundRobin
from conftest import BUILT
from support import run_script

pytestmark = pytest.mark.usefixtures("backend")


# -- arguments of Pool -----------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "negative processes": ({"processes": -1}, ValueError, "processes.*-1"),
    "fractional processes": ({"processes": 2.5}, TypeError, "processes.*2.5"),
    "text processes": ({"processes": "2"}, TypeError, "processes"),
    "too many queues": (
        {"processes": 4, "queuecount": 9},
        ValueError,
        "queue count must be <= process count",
    ),
    "fractional queues": ({"processes": 4, "queuecount": 1.5}, TypeError, "queuecount"),
    "fractional concurrency": ({"childconcurrency": 1.5}, TypeError, "childconcurrency"),
    "text concurrency": ({"childconcurrency": "16"}, TypeError, "childconcurrency"),
    "fractional lifetime": ({"maxtasksperchild": 0.5}, TypeError, "maxtasksperchild"),
    "text lifetime": ({"maxtasksperchild": "7"}, TypeError, "maxtasksperchild"),
    **{
        f"{value} as {name}": ({name: value}, TypeError, f"{name} must be .*, got {value}")
        for name in (
            *("processes", "queuecount", "childconcurrency", "maxtasksperchild", "threads"),
            *("maxmemoryperchild", "sharedmemory", "grace"),
        )
        for value in (True, False)
    },
    "no time at the end": ({"grace": 0}, ValueError, "grace must be a positive .* seconds, got 0"),
    "an endless end": (
        {"grace": 10**400},
        ValueError,
        "grace is too large for a number of seconds",
    ),
    "async initializer": (
        {"initializer": workload.initialize_async},
        ValueError,
        "initializer must be synchronous function",
    ),
    "async loop_initializer": (
        {"loop_initializer": workload.initialize_async},
        ValueError,
        "loop_initializer must be synchronous function",
    ),
    "initializer that is no function": ({"initializer": 5}, TypeError, "initializer"),
    "handler that is no function": ({"exception_handler": 5}, TypeError, "exception_handler"),
    "loop that is no function": ({"loop_initializer": 5}, TypeError, "loop_initializer"),
    "initargs that are none": ({"initargs": 5}, TypeError, "initargs.*5"),
    "scheduler that is none": ({"scheduler": 5}, TypeError, r"scheduler.*RoundRobin\(\).*5"),
    "class of a scheduler": ({"scheduler": RoundRobin}, TypeError, r"scheduler.*RoundRobin\(\)"),
    "unknown backend": ({"backend": "carrier pigeon"}, ValueError, "carrier pigeon.*shm.*pipe"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_of_pool_is_refused_by_name(case: str) -> None:
    arguments, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        Pool(**arguments)


async def test_a_bad_argument_of_pool_starts_no_worker() -> None:
    for arguments, error, _ in BAD_ARGUMENTS.values():
        with pytest.raises(error):
            Pool(**arguments)  # the fixture sees that there is no process


async def test_initargs_that_cannot_be_pickled_are_refused_where_workers_start() -> None:
    with pytest.raises((TypeError, pickle.PicklingError), match=r"pickle.*initargs cannot be sent"):
        async with Pool(1, initializer=workload.set_greeting, initargs=(threading.Lock(),)):
            pass


@pytest.mark.parametrize("name", ["initializer", "loop_initializer", "exception_handler"])
async def test_a_lambda_that_workers_are_to_call_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        (AttributeError, pickle.PicklingError), match=f": {name} cannot be sent.*top level"
    ):
        async with Pool(1, **{name: lambda *args: None}):  # type: ignore[arg-type]
            pass


async def test_an_input_that_is_not_iterable_is_refused_by_value() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="the input must be iterable or async iterable, got 5"):
            pool.map(workload.double, 5)  # type: ignore[call-overload]


# -- backends --------------------------------------------------------------------------------------


async def test_the_environment_chooses_the_backend(backend: str) -> None:
    async with Pool(1) as pool:
        assert pool.backend == backend
        assert await pool.apply(workload.two) == 2


@pytest.mark.skipif(not BUILT, reason="there is only one backend to choose without the extension")
async def test_the_argument_wins_over_the_environment(backend: str) -> None:
    other = {"shm": "pipe", "pipe": "shm"}[backend]
    async with Pool(1, backend=other) as pool:
        assert pool.backend == other
        assert await pool.apply(workload.two) == 2


def test_an_unknown_backend_of_the_environment_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "smoke signals")
    with pytest.raises(ValueError, match=r"smoke signals.*AIOMULTIPROCESS_BACKEND.*shm.*pipe"):
        Pool(1)


# -- use at the wrong time or place ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_pool_that_was_ended_takes_no_calls(end: str) -> None:
    pool = Pool(1)
    assert await pool.apply(workload.two) == 2
    getattr(pool, end)()
    with pytest.raises(RuntimeError, match="pool is closed"):
        pool.map(workload.double, [1])
    with pytest.raises(RuntimeError, match="pool is closed"):
        pool.starmap(workload.double, [(1,)])
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.apply(workload.two)
    await pool.join()
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.apply(workload.two)
    with pytest.raises(RuntimeError, match="pool is closed"):
        await pool.__aenter__()


def test_a_pool_that_was_closed_before_its_first_use_starts_no_workers() -> None:
    pool = Pool(1)  # no loop runs, so it has none yet
    pool.close()
    with pytest.raises(RuntimeError, match="pool is closed"):
        asyncio.run(pool.__aenter__())
    assert not pool.processes


def test_a_second_loop_is_refused_and_the_first_still_works() -> None:
    with asyncio.Runner() as first, asyncio.Runner() as second:

        async def use() -> int:
            return await pool.apply(workload.two)

        async def read() -> list[int]:
            return await results

        async def make() -> tuple[Pool, Any]:
            pool = Pool(1)
            return pool, pool.map(workload.double, [1, 2])

        async def end() -> None:
            pool.close()
            await pool.join()

        pool, results = first.run(make())
        for misuse in (use, read):
            with pytest.raises(RuntimeError, match="another event loop"):
                second.run(misuse())
        assert first.run(use()) == 2
        assert first.run(read()) == [2, 4]
        with pytest.raises(RuntimeError, match="another event loop"):
            second.run(end())
        first.run(pool.join())


def test_a_call_without_a_running_loop_is_an_error() -> None:
    pool = Pool(1)
    with pytest.raises(RuntimeError, match="loop"):
        pool.map(workload.double, [1])
    pool.terminate()


@pytest.mark.row("E41")
@pytest.mark.parametrize("start_method_name", ["spawn", "forkserver"])
def test_a_missing_main_guard_is_named(tmp_path: Path, start_method_name: str) -> None:
    program = f"""
        import asyncio
        from aiomultiprocess import Pool, set_start_method

        set_start_method("{start_method_name}")

        async def main():
            async with Pool(2) as pool:
                print(await pool.map(abs, range(10)))

        asyncio.run(main())
    """
    script = run_script(tmp_path, program, within=20)
    assert script.process.returncode != 0
    assert '__name__ == "__main__"' in script.err or "__name__ == '__main__'" in script.err
    assert len(script.err) < 20_000  # no recursion


def test_the_names_of_errors_are_importable_from_the_package() -> None:
    import aiomultiprocess

    assert issubclass(aiomultiprocess.PoolTerminatedError, RuntimeError)
    assert issubclass(aiomultiprocess.WorkerLostError, Exception)
    assert issubclass(aiomultiprocess.ProxyException, Exception)


class DeafLoop(asyncio.SelectorEventLoop):
    """A loop that watches nothing for others, as is asyncio's default on Windows."""

    def add_reader(self, *_args: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    remove_reader = add_writer = remove_writer = add_reader  # type: ignore[assignment]


def test_a_loop_that_cannot_carry_a_pool_is_named_and_nothing_is_left() -> None:
    async def scenario() -> None:
        with pytest.raises(RuntimeError, match="DeafLoop cannot watch descriptors"):
            Pool(2)

    with asyncio.Runner(loop_factory=DeafLoop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("option", ["retries", "priority", "task_timeout"])
async def test_a_flag_is_no_number_of_a_call(option: str) -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match=f"{option} must be .*, got True"):
            await pool.apply(workload.two, **{option: True})  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=f"{option} must be .*, got True"):
            pool.map(workload.double, [1], **{option: True})  # type: ignore[call-overload]
