"""Bad input, and values, functions and errors that do not travel.

An error comes where the user made the mistake, fails no other task, and leaves the workers alive.
A number such as A1 is that of the row in the catalogue of failures.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, ProxyException, set_start_method
from conftest import BUILT, FORK_WARNING
from support import outcomes, run_script

pytestmark = pytest.mark.usefixtures("backend")

NEVER_RAISED_HERE = (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    StopIteration,
    StopAsyncIteration,
)


async def assert_lives(pool: Pool, pids: set[int | None]) -> None:
    """The pool works, with the same workers as before."""
    assert await pool.map(workload.double, range(5)) == [0, 2, 4, 6, 8]
    assert {process.pid for process in pool.processes} == pids


def pids_of(pool: Pool) -> set[int | None]:
    return {process.pid for process in pool.processes}


# -- A1, A3: arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lambda", "lock", "generator", "nested", "reduce"])
async def test_an_argument_that_cannot_be_pickled_fails_alone_and_is_named(kind: str) -> None:
    bad = workload.results_that_do_not_travel(kind)
    async with Pool(1) as pool:
        pids = pids_of(pool)
        results = pool.map(workload.identity, [0, 1, 2, bad, 4])
        found = await outcomes(results)
        assert [*found[:3], *found[4:]] == [0, 1, 2, 4]
        assert not isinstance(found[3], ProxyException)  # it never left this process
        assert "item 3" in "".join([str(found[3]), *getattr(found[3], "__notes__", [])])
        with pytest.raises(type(found[3])):
            await results
        await assert_lives(pool, pids)


async def test_an_argument_of_apply_that_cannot_be_pickled_is_an_error_of_the_caller() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(TypeError, match="pickle"):
            await pool.apply(workload.identity, (threading.Lock(),))
        with pytest.raises(TypeError, match="pickle"):
            await pool.apply(workload.describe, (), {"lock": threading.Lock()})
        await assert_lives(pool, pids)


async def test_an_argument_that_cannot_be_unpickled_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        items = [1, workload.HomeBound(os.getpid()), 3]
        found = await outcomes(pool.map(workload.double, items))
        assert (found[0], found[2]) == (2, 6)
        assert isinstance(found[1], ProxyException)
        assert "homesick" in str(found[1])
        with pytest.raises(ProxyException, match="homesick"):
            await pool.apply(workload.double, (items[1],))
        await assert_lives(pool, pids)


# -- A2, A8: functions -----------------------------------------------------------------------------


async def test_a_function_that_cannot_be_imported_is_refused_at_the_call() -> None:
    async def local(value: int) -> int:
        return value

    async with Pool(1) as pool:
        pids = pids_of(pool)
        for func in (local, lambda value: value, functools.partial(local, 1)):
            with pytest.raises(pickle.PicklingError, match="importable"):
                pool.map(func, [1])
            with pytest.raises(pickle.PicklingError, match="importable"):
                pool.starmap(func, [(1,)])
            with pytest.raises(pickle.PicklingError, match="importable"):
                await pool.apply(func, (1,))
        await assert_lives(pool, pids)


@FORK_WARNING
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_function_that_cannot_be_imported_is_refused_under_fork_too() -> None:
    set_start_method("fork")
    try:
        async with Pool(1) as pool:
            with pytest.raises(pickle.PicklingError, match="importable"):
                pool.map(lambda value: value, [1])
    finally:
        set_start_method()


@pytest.mark.parametrize("func", [None, 5, "double", [workload.double]], ids=repr)
async def test_what_cannot_be_called_is_refused_at_the_call(func: Any) -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="callable"):
            pool.map(func, [1])
        with pytest.raises(TypeError, match="callable"):
            pool.starmap(func, [(1,)])
        with pytest.raises(TypeError, match="callable"):
            await pool.apply(func)


async def test_an_async_generator_function_is_refused_at_the_call() -> None:
    async with Pool(1) as pool:
        for func in (workload.counting, functools.partial(workload.counting, 3)):
            with pytest.raises(TypeError, match="async generator"):
                pool.map(func, [1])
        with pytest.raises(TypeError, match="async generator"):
            await pool.apply(workload.counting, (1,))


async def test_a_wrong_number_of_arguments_fails_the_task() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(TypeError, match="argument"):
            await pool.apply(workload.double)
        with pytest.raises(TypeError, match="argument"):
            await pool.map(workload.with_two, [1])
        found = await outcomes(pool.starmap(workload.with_two, [(1, 2), (1,), (3, 4)]))
        assert (found[0], found[2]) == ((1, 2), (3, 4))
        assert isinstance(found[1], TypeError)
        await assert_lives(pool, pids)


async def test_input_that_is_not_iterable_is_refused_at_the_call() -> None:
    async with Pool(1) as pool:
        with pytest.raises(TypeError, match="iterable"):
            pool.map(workload.double, 5)
        with pytest.raises(TypeError, match="iterable"):
            pool.starmap(workload.double, None)


# -- A4, A5: results -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lambda", "lock", "generator", "nested", "reduce"])
async def test_a_result_that_cannot_be_pickled_fails_alone(kind: str) -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        found = await outcomes(pool.map(workload.result_of_kind, ["fine", kind, "fine"]))
        assert (found[0], found[2]) == ("fine", "fine")
        assert isinstance(found[1], ProxyException)
        with pytest.raises(ProxyException):
            await pool.apply(workload.result_of_kind, (kind,))
        await assert_lives(pool, pids)


async def test_a_result_that_cannot_be_unpickled_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        found = await asyncio.gather(
            pool.apply(workload.double, (1,)),
            pool.apply(workload.home_bound),
            pool.apply(workload.double, (2,)),
            return_exceptions=True,
        )
        assert (found[0], found[2]) == (2, 4)
        assert isinstance(found[1], ProxyException)
        assert "homesick" in str(found[1])
        found = await outcomes(pool.map(workload.home_bound, range(3)))
        assert [type(error) for error in found] == [ProxyException] * 3
        await assert_lives(pool, pids)


# -- A6, A7: errors --------------------------------------------------------------------------------

HARD_TO_CARRY = {
    "two arguments": (workload.TwoArgumentsError, "404: not found"),
    "picky": (workload.PickyError, "picky"),
    "frozen": (ProxyException, "FrozenError"),
    "holding": (ProxyException, "holds a lock"),
    "lost": (ProxyException, "gone"),
    "chain": (ProxyException, "depth 9999"),
    "key": (KeyError, "missing"),
    "os": (FileNotFoundError, "/nowhere"),
    "unicode": (UnicodeDecodeError, "because"),
    "group": (ExceptionGroup, "TypeError: two"),
    "base group": (ProxyException, "KeyboardInterrupt"),
}


@pytest.mark.parametrize("kind", HARD_TO_CARRY)
async def test_the_text_of_an_error_always_arrives_and_its_type_where_it_can(kind: str) -> None:
    expected, text = HARD_TO_CARRY[kind]
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(ProxyException) as caught:
            await pool.apply(workload.fail_as, (kind,))
        assert isinstance(caught.value, expected)
        assert text in str(caught.value)
        assert "Traceback" in str(caught.value)
        (again,) = await outcomes(pool.map(workload.fail_as, [kind]))
        assert isinstance(again, expected)
        await assert_lives(pool, pids)


async def test_an_error_carries_its_original() -> None:
    async with Pool(1) as pool:
        with pytest.raises(FileNotFoundError) as caught:
            await pool.apply(workload.fail_as, ("os",))
        assert (caught.value.errno, caught.value.filename) == (2, "/nowhere")
        cause = caught.value.__cause__
        assert type(cause) is FileNotFoundError
        assert cause.args == (2, "No such file")
        with pytest.raises(workload.TwoArgumentsError) as two:
            await pool.apply(workload.fail_as, ("two arguments",))
        assert two.value.code == 404
        assert type(two.value.__cause__) is workload.TwoArgumentsError


@pytest.mark.parametrize("kind", [name for name in workload.ERRORS if name != "RuntimeError"])
@pytest.mark.parametrize(
    "func",
    [workload.fail_now, workload.fail_at_once, workload.fail_after_a_turn],
    ids=lambda func: func.__name__,
)
async def test_errors_that_end_programs_end_only_their_task(func: Any, kind: str) -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(ProxyException) as caught:
            await pool.apply(func, ("farewell", kind))
        assert not isinstance(caught.value, NEVER_RAISED_HERE)
        assert kind in str(caught.value)
        found = await outcomes(pool.starmap(func, [("farewell", kind), ("farewell",)]))
        assert [isinstance(error, ProxyException) for error in found] == [True, True]
        assert not isinstance(found[0], NEVER_RAISED_HERE)
        await assert_lives(pool, pids)


async def test_a_task_that_cancels_itself_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(ProxyException, match="CancelledError"):
            await pool.apply(workload.cancel_oneself)
        await assert_lives(pool, pids)


# -- A9: exception_handler -------------------------------------------------------------------------


async def test_an_exception_handler_that_fails_is_logged_and_the_tasks_error_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Pool(1, exception_handler=workload.refuse_error) as pool:
        pids = pids_of(pool)
        for func in (workload.fail_now, workload.fail_at_once, workload.fail_after_a_turn):
            with pytest.raises(RuntimeError, match="the task's own"):
                await pool.apply(func, ("the task's own",))
        await assert_lives(pool, pids)
    assert capfd.readouterr().err.count("LookupError: the handler itself is broken") == 3


# -- A12: no aliasing ------------------------------------------------------------------------------


async def test_items_that_are_one_object_here_are_many_there() -> None:
    shared: list[Any] = []
    async with Pool(1) as pool:
        assert await pool.map(workload.append_one, [shared] * 50) == [[1]] * 50
        found = await pool.starmap(workload.append_to, [(shared, i) for i in range(50)])
        assert found == [[i] for i in range(50)]
        assert shared == []


async def test_the_state_of_a_callable_is_fresh_for_each_item() -> None:
    async with Pool(1) as pool:
        found = await pool.map(functools.partial(workload.append_to, []), range(50))
        assert found == [[i] for i in range(50)]
        assert await pool.map(workload.Multiplier(1).count, range(50)) == [1] * 50


async def test_results_that_are_one_object_there_are_many_here() -> None:
    async with Pool(1) as pool:
        one, other = await pool.map(workload.shared_list, range(2))
        one.append("mine")
        assert other == []


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
    "unknown backend": ({"backend": "carrier pigeon"}, ValueError, "carrier pigeon.*shm.*pipe"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_of_pool_is_refused_by_name(case: str) -> None:
    arguments, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        Pool(**arguments)


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
async def test_a_bad_argument_of_pool_starts_no_worker(case: str) -> None:
    arguments, error, _ = BAD_ARGUMENTS[case]
    with pytest.raises(error):
        Pool(**arguments)  # the fixture sees that there is no process


async def test_initargs_that_cannot_be_pickled_are_refused_where_workers_start() -> None:
    with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
        async with Pool(1, initializer=workload.set_greeting, initargs=(threading.Lock(),)):
            pass


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
