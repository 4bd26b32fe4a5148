"""`Pool(contextvars=...)`: tasks see their submitter's values of context variables."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolExecutor, RoundRobin
from context_variables import (
    REQUEST,
    TENANT,
    OnlyHere,
    initialize,
    meet_and_read,
    read,
    read_and_name,
    read_later,
    read_sync,
    set_and_read,
    values_seen,
)
from support import Meeting, outcomes, pool_script, run_script

pytestmark = pytest.mark.usefixtures("backend")

BOTH = (REQUEST, TENANT)


async def submit(pool: Pool, value: object) -> Any:
    REQUEST.set(value)
    return await pool.apply(read)


async def test_tasks_see_the_values_of_their_submitter(start_method: str) -> None:
    async with Pool(2, contextvars=BOTH) as pool:
        REQUEST.set("first")
        results = pool.map(read, range(100))
        REQUEST.set("second")
        TENANT.set("mine")
        assert await pool.map(read_sync, range(3)) == [("second", "mine", True)] * 3
        assert await results == [("first", "nobody's", False)] * 100
        assert await pool.apply(read) == ("second", "mine", True)
        assert await pool.starmap(read, [()] * 2) == [("second", "mine", True)] * 2


async def test_a_variable_that_is_unset_stays_unset() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        assert await pool.apply(read) == ("unset", "nobody's", False)
        assert (await submit_in_a_task(pool, 5))[0] == 5
        assert await pool.apply(read) == ("unset", "nobody's", False)


def submit_in_a_task(pool: Pool, value: object) -> asyncio.Task[Any]:
    """In a context of its own."""
    return asyncio.ensure_future(submit(pool, value))


async def test_calls_from_many_tasks_see_each_its_own_value() -> None:
    async with Pool(2, contextvars=BOTH) as pool:
        calls = [submit_in_a_task(pool, value) for value in range(300)]
        assert [value for value, *_ in await asyncio.gather(*calls)] == list(range(300))
        assert await pool.apply(workload.two) == 2
        engine: Any = pool._engine
        assert all(len(queue.calls) == 0 for queue in engine.queues.values())


async def test_tasks_that_suspend_keep_their_values_while_others_run() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        results = []
        for value in range(20):
            REQUEST.set(value)
            results.append(pool.map(read_later, range(10)))
        for value, result in enumerate(results):
            assert await result == [value] * 10


async def test_a_task_does_not_see_what_another_sets() -> None:
    REQUEST.set("submitted")
    async with Pool(1, contextvars=BOTH) as pool:
        found = await pool.map(set_and_read, range(10))
        assert found == [("submitted", value) for value in range(10)]


async def test_a_variable_that_the_submitter_lacks_has_the_value_of_the_initializer() -> None:
    async with Pool(1, initializer=initialize, contextvars=BOTH) as pool:
        assert (await pool.apply(read))[0] == "the worker's"
        assert (await submit_in_a_task(pool, "own"))[0] == "own"
        assert (await pool.apply(read))[0] == "the worker's"


async def test_tasks_of_all_contexts_have_names_of_their_own() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        names = []
        for value in (1, 2, 1):
            REQUEST.set(value)
            names += await pool.map(read_and_name, range(3))
        assert len({name for _, name in names}) == 9


async def test_values_travel_with_a_scheduler_of_the_users() -> None:
    class Own(RoundRobin):
        pass

    async with Pool(2, queuecount=2, scheduler=Own(), contextvars=BOTH) as pool:
        for value in (1, 2):
            REQUEST.set(value)
            assert await pool.map(read_later, range(20)) == [value] * 20
            assert (await pool.apply(read))[0] == value


async def test_a_task_that_runs_again_sees_the_same_values() -> None:
    REQUEST.set("kept")
    async with Meeting() as meeting, Pool(1, contextvars=BOTH) as pool:
        call = asyncio.ensure_future(pool.apply(meet_and_read, (meeting.port,), retries=1))
        os.kill((await meeting.next()).pid, signal.SIGKILL)
        (await meeting.next()).release()
        assert await call == "kept"


async def test_a_dead_worker_is_found_to_have_started_tasks_of_all_contexts() -> None:
    async with Meeting() as meeting, Pool(1, childconcurrency=4, contextvars=BOTH) as pool:
        calls = []
        for value in range(3):
            REQUEST.set(value)
            calls.append(asyncio.ensure_future(pool.apply(workload.meet, (meeting.port, value))))
        arrivals = await meeting.first(3)
        os.kill(arrivals[0].pid, signal.SIGKILL)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error).__name__ for error in found] == ["WorkerLostError"] * 3


async def test_a_value_that_cannot_be_pickled_is_an_error_at_the_call() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        REQUEST.set(lambda: 0)
        message = "value of context variable 'REQUEST' cannot be sent to a worker"
        with pytest.raises(pickle.PicklingError, match=message):
            pool.map(read, range(3))
        with pytest.raises(pickle.PicklingError, match=message):
            await pool.apply(read)
        REQUEST.set(1)
        assert (await pool.apply(read))[0] == 1


async def test_a_value_that_cannot_be_unpickled_fails_its_tasks_and_no_others() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        REQUEST.set(OnlyHere(os.getpid()))
        failing = pool.map(read, range(3))
        REQUEST.set(1)
        assert await pool.map(read_later, range(3)) == [1, 1, 1]
        for error in await outcomes(failing):
            assert isinstance(error, pickle.UnpicklingError)
            assert "value of context variable 'REQUEST' cannot be unpickled in a worker" in str(
                error.__cause__
            )
            assert "LookupError: only in" in str(error.__cause__)


def test_a_variable_of_the_main_module_travels(start_method: str, tmp_path: Path) -> None:
    setup = f"""
import contextvars
set_start_method({start_method!r})
USER = contextvars.ContextVar("USER")
async def user(_=None):
    return USER.get()
"""
    body = """
    async with Pool(1, contextvars=[USER]) as pool:
        USER.set("me")
        print(await pool.apply(user), await pool.map(user, range(2)))
    """
    assert run_script(tmp_path, pool_script(body, setup=setup)).out == "me ['me', 'me']\n"


@pytest.mark.parametrize(
    ("variables", "kind", "message"),
    [
        (5, TypeError, "contextvars must be a sequence of ContextVar objects, not 5"),
        (REQUEST, TypeError, r"contextvars must be a sequence: pass \(<ContextVar name='REQUEST'"),
        (["REQUEST"], TypeError, "contextvars must be ContextVar objects, and 'REQUEST' is none"),
        (
            [contextvars.ContextVar("lost")],
            ValueError,
            "no module has <ContextVar name='lost' .* as a global",
        ),
    ],
)
async def test_what_cannot_travel_is_refused_by_name(
    variables: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        Pool(1, contextvars=variables)


def test_a_call_of_an_executor_sees_the_values_of_the_thread_that_submits_it() -> None:
    def submit_in_context(value: int) -> Any:
        def submit() -> Any:
            REQUEST.set(value)
            return executor.submit(read)

        return contextvars.copy_context().run(submit)

    with PoolExecutor(2, contextvars=BOTH) as executor:
        futures = [submit_in_context(value) for value in range(50)]
        assert [future.result()[0] for future in futures] == list(range(50))
        assert executor.submit(read).result() == ("unset", "nobody's", False)


async def test_a_stream_sees_the_values_at_its_first_step() -> None:
    async with Pool(1, contextvars=BOTH) as pool:
        stream = pool.stream(values_seen, (3,))
        REQUEST.set("first")
        assert await anext(stream) == "first"
        REQUEST.set("second")
        assert [value async for value in stream] == ["first", "first"]
