"""Values, functions and errors that do not travel: each fails its own task, and no worker.

A number such as A1 is that of the row in the catalogue of failures.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import threading
from typing import Any

import pytest

import mishaps
import workload
from aiomultiprocess import Pool, ProxyException, set_start_method
from conftest import FORK_WARNING
from support import outcomes

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


@pytest.mark.row("A1")
async def test_an_argument_that_cannot_be_pickled_fails_alone_and_is_named() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        for kind in mishaps.STAYING:
            bad = mishaps.result_that_stays(kind)
            results = pool.map(workload.identity, [0, 1, 2, bad, 4])
            found = await outcomes(results)
            assert [*found[:3], *found[4:]] == [0, 1, 2, 4], kind
            assert not isinstance(found[3], ProxyException)  # it never left this process
            with pytest.raises(pickle.PicklingError, match=r"item 3 of .*identity cannot"):
                await results
        await assert_lives(pool, pids)


@pytest.mark.row("A1")
async def test_an_argument_of_apply_that_cannot_be_pickled_is_an_error_of_the_caller() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(pickle.PicklingError, match=r"cannot be sent .*TypeError: .*lock"):
            await pool.apply(workload.identity, (threading.Lock(),))
        with pytest.raises(pickle.PicklingError, match="describe cannot be sent") as caught:
            await pool.apply(workload.describe, (), {"lock": threading.Lock()})
        assert isinstance(caught.value.__cause__, TypeError)
        await assert_lives(pool, pids)


@pytest.mark.row("A1", "A5")
async def test_a_value_that_fails_for_a_reason_that_cannot_be_printed_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        found = await outcomes(pool.map(workload.identity, [1, mishaps.MuteOut(), 3]))
        assert (found[0], found[2]) == (1, 3)
        with pytest.raises(pickle.PicklingError, match=r"item 1 of .*MuteError, which cannot"):
            raise found[1]
        calls = [pool.apply(workload.identity, (item,)) for item in (1, mishaps.MuteOut(), 3)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert (found[0], found[2]) == (1, 3)
        assert isinstance(found[1], pickle.PicklingError)
        with pytest.raises(pickle.PicklingError):  # alone
            await pool.apply(workload.identity, (mishaps.MuteOut(),))
        with pytest.raises(pickle.PicklingError, match="MuteError"):
            await pool.apply(functools.partial(workload.identity, mishaps.MuteOut()))
        for call in (pool.apply(mishaps.mute_in), pool.map(mishaps.mute_in, [0])):
            with pytest.raises(
                ProxyException, match=r"result .*mute_in could not be unpickled .*MuteError"
            ):
                await call
        await assert_lives(pool, pids)
        pool.close()
        await pool.join()


@pytest.mark.row("A3")
async def test_an_argument_that_cannot_be_unpickled_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        items = [1, mishaps.HomeBound(os.getpid()), 3]
        found = await outcomes(pool.map(workload.double, items))
        assert (found[0], found[2]) == (2, 6)
        assert isinstance(found[1], ProxyException)
        assert "homesick" in str(found[1])
        with pytest.raises(ProxyException, match="homesick"):
            await pool.apply(workload.double, (items[1],))
        await assert_lives(pool, pids)


# -- A2, A8: functions -----------------------------------------------------------------------------


@pytest.mark.row("A2")
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


@pytest.mark.row("A2")
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


@pytest.mark.row("A8")
async def test_an_object_that_cannot_be_called_is_refused_at_the_call() -> None:
    async with Pool(1) as pool:
        for func in (None, 5, "double", [workload.double]):
            with pytest.raises(TypeError, match="callable"):
                pool.map(func, [1])
            with pytest.raises(TypeError, match="callable"):
                pool.starmap(func, [(1,)])
            with pytest.raises(TypeError, match="callable"):
                await pool.apply(func)


@pytest.mark.row("A8")
async def test_an_async_generator_function_is_refused_at_the_call() -> None:
    async with Pool(1) as pool:
        for func in (workload.counting, functools.partial(workload.counting, 3)):
            with pytest.raises(TypeError, match="async generator"):
                pool.map(func, [1])
        with pytest.raises(TypeError, match="async generator"):
            await pool.apply(workload.counting, (1,))


@pytest.mark.row("A8")
async def test_a_wrong_number_of_arguments_fails_the_task() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(TypeError, match="argument"):
            await pool.apply(workload.double)
        with pytest.raises(TypeError, match="argument"):
            await pool.map(mishaps.with_two, [1])
        found = await outcomes(pool.starmap(mishaps.with_two, [(1, 2), (1,), (3, 4)]))
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


@pytest.mark.row("A4")
async def test_a_result_that_cannot_be_pickled_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        for kind in mishaps.STAYING:
            found = await outcomes(pool.map(mishaps.result_of_kind, ["fine", kind, "fine"]))
            assert (found[0], found[2]) == ("fine", "fine")
            assert isinstance(found[1], ProxyException), kind
            with pytest.raises(ProxyException):
                await pool.apply(mishaps.result_of_kind, (kind,))
        await assert_lives(pool, pids)


@pytest.mark.row("A5")
async def test_a_result_that_cannot_be_unpickled_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        found = await asyncio.gather(
            pool.apply(workload.double, (1,)),
            pool.apply(mishaps.home_bound),
            pool.apply(workload.double, (2,)),
            return_exceptions=True,
        )
        assert (found[0], found[2]) == (2, 4)
        assert isinstance(found[1], ProxyException)
        assert "homesick" in str(found[1])
        found = await outcomes(pool.map(mishaps.home_bound, range(3)))
        assert [type(error) for error in found] == [ProxyException] * 3
        await assert_lives(pool, pids)


# -- A6, A7: errors --------------------------------------------------------------------------------

HARD_TO_CARRY = {
    "two arguments": (mishaps.TwoArgumentsError, "404: not found"),
    "picky": (mishaps.PickyError, "picky"),
    "frozen": (ProxyException, "FrozenError"),
    "holding": (ProxyException, "holds a lock"),
    "lost": (ProxyException, "gone"),
    "without a cause": (ProxyException, "NoCauseError (its traceback cannot be shown"),
    "without a class": (ProxyException, "NoClassError (its traceback cannot be shown"),
    "without attributes": (ProxyException, "NoAttributesError (its traceback cannot be shown"),
    "chain": (ProxyException, "depth 9999"),
    "key": (KeyError, "missing"),
    "os": (FileNotFoundError, "/nowhere"),
    "unicode": (UnicodeDecodeError, "because"),
    "group": (ExceptionGroup, "TypeError: two"),
    "base group": (ProxyException, "KeyboardInterrupt"),
}


@pytest.mark.row("A6")
@pytest.mark.parametrize("kind", HARD_TO_CARRY)
async def test_the_text_of_an_error_always_arrives_and_its_type_where_it_can(kind: str) -> None:
    expected, text = HARD_TO_CARRY[kind]
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(ProxyException) as caught:
            await pool.apply(mishaps.fail_as, (kind,))
        assert isinstance(caught.value, expected)
        assert text in str(caught.value)
        assert "traceback" in str(caught.value).lower()
        (again,) = await outcomes(pool.map(mishaps.fail_as, [kind]))
        assert isinstance(again, expected)
        await assert_lives(pool, pids)


@pytest.mark.row("A6")
@pytest.mark.parametrize("kind", HARD_TO_CARRY)
@pytest.mark.parametrize(
    "func",
    [mishaps.fail_plainly_as, mishaps.fail_later_as, mishaps.keep_the_task_and_fail_as],
    ids=lambda func: func.__name__,
)
async def test_an_error_that_is_hard_to_carry_may_be_raised_at_once_or_later(
    func: Any, kind: str
) -> None:
    expected, text = HARD_TO_CARRY[kind]
    async with Pool(1) as pool:
        pids = pids_of(pool)
        for error in await outcomes(pool.map(func, [kind, kind])):
            assert isinstance(error, ProxyException)
            assert isinstance(error, expected)
            assert text in str(error)
        await assert_lives(pool, pids)


@pytest.mark.row("A6")
async def test_an_error_carries_its_original() -> None:
    async with Pool(1) as pool:
        with pytest.raises(FileNotFoundError) as caught:
            await pool.apply(mishaps.fail_as, ("os",))
        assert (caught.value.errno, caught.value.filename) == (2, "/nowhere")
        cause = caught.value.__cause__
        assert type(cause) is FileNotFoundError
        assert cause.args == (2, "No such file")
        with pytest.raises(mishaps.TwoArgumentsError) as two:
            await pool.apply(mishaps.fail_as, ("two arguments",))
        assert two.value.code == 404
        assert type(two.value.__cause__) is mishaps.TwoArgumentsError


@pytest.mark.row("A7")
@pytest.mark.parametrize(
    "func",
    [mishaps.fail_now, mishaps.fail_at_once, mishaps.fail_after_a_turn],
    ids=lambda func: func.__name__,
)
async def test_errors_that_end_programs_end_only_their_task(func: Any) -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        for kind in mishaps.ERRORS:
            with pytest.raises(ProxyException, match=kind) as caught:
                await pool.apply(func, ("farewell", kind))
            assert not isinstance(caught.value, NEVER_RAISED_HERE)
            found = await outcomes(pool.starmap(func, [("farewell", kind), ("farewell",)]))
            assert [isinstance(error, ProxyException) for error in found] == [True, True], kind
            assert not isinstance(found[0], NEVER_RAISED_HERE)
            await assert_lives(pool, pids)


@pytest.mark.row("A7")
async def test_a_task_that_cancels_itself_fails_alone() -> None:
    async with Pool(1) as pool:
        pids = pids_of(pool)
        with pytest.raises(ProxyException, match="CancelledError"):
            await pool.apply(mishaps.cancel_oneself)
        await assert_lives(pool, pids)


# -- A9: exception_handler -------------------------------------------------------------------------


@pytest.mark.spawned
@pytest.mark.row("A9")
async def test_an_exception_handler_that_fails_is_logged_and_the_tasks_error_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Pool(1, exception_handler=mishaps.refuse_error) as pool:
        pids = pids_of(pool)
        for func in (mishaps.fail_now, mishaps.fail_at_once, mishaps.fail_after_a_turn):
            with pytest.raises(RuntimeError, match="the task's own"):
                await pool.apply(func, ("the task's own",))
        await assert_lives(pool, pids)
    assert capfd.readouterr().err.count("LookupError: the handler itself is broken") == 3


# -- A12: no aliasing ------------------------------------------------------------------------------


@pytest.mark.row("A12")
async def test_items_that_are_one_object_in_the_parent_are_many_in_a_worker() -> None:
    shared: list[Any] = []
    async with Pool(1) as pool:
        assert await pool.map(workload.append_one, [shared] * 50) == [[1]] * 50
        found = await pool.starmap(workload.append_to, [(shared, i) for i in range(50)])
        assert found == [[i] for i in range(50)]
        assert shared == []


@pytest.mark.row("A12")
async def test_the_state_of_a_callable_is_fresh_for_each_item() -> None:
    async with Pool(1) as pool:
        found = await pool.map(functools.partial(workload.append_to, []), range(50))
        assert found == [[i] for i in range(50)]
        assert await pool.map(workload.Multiplier(1).count, range(50)) == [1] * 50


@pytest.mark.row("A12")
async def test_results_that_are_one_object_in_a_worker_are_many_in_the_parent() -> None:
    async with Pool(1) as pool:
        one, other = await pool.map(workload.shared_list, range(2))
        one.append("mine")
        assert other == []
