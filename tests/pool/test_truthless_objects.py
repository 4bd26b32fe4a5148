"""What a user passes or raises is asked for nothing but what it is for: neither truth nor name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import truthless
import workload
from aiomultiprocess import Pool, ProxyException, Worker

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.row("H233")
@pytest.mark.parametrize("kind", truthless.ERRORS)
async def test_an_error_of_any_type_fails_its_own_task(kind: str) -> None:
    async with Pool(1) as pool:
        neighbours = pool.map(workload.double_after_a_turn, range(3))
        with pytest.raises(ProxyException):
            await pool.apply(truthless.fail, (kind,))
        found = await pool.map(truthless.fail, [kind] * 2, return_exceptions=True)
        assert [isinstance(error, ProxyException) for error in found] == [True, True]
        assert await neighbours == [0, 2, 4]
        assert pool.stats().restarts == {}


@pytest.mark.row("H233")
async def test_an_error_without_truth_arrives_as_what_it_is() -> None:
    async with Pool(1) as pool:
        with pytest.raises(truthless.EmptyError, match="why"):
            await pool.apply(truthless.fail, ("empty",))
        with pytest.raises(truthless.UndecidedError):
            await pool.apply(truthless.fail, ("undecided",))
        with pytest.raises(ValueError, match="noted") as caught:
            await pool.apply(truthless.fail, ("notes",))
        assert list(caught.value.__notes__) == ["a note"]


@pytest.mark.row("H233")
async def test_a_function_is_used_though_it_is_false() -> None:
    async with Pool(1, loop_initializer=truthless.MakeLoop()) as pool:
        assert await pool.apply(truthless.loop_made) == "made"
    made = Worker(target=truthless.loop_made, loop_initializer=truthless.MakeLoop())
    assert await made == "made"
    assert await Worker(target=truthless.Target(), args=(3,)) == 3


@pytest.mark.row("H234")
async def test_an_interrupt_that_an_argument_raises_fails_its_item_alone() -> None:
    async with Pool(1) as pool:
        neighbours = pool.map(workload.double_after_a_turn, range(3))
        found: list[Any] = await pool.map(
            workload.identity, [1, truthless.Interrupts(), 3], return_exceptions=True
        )
        assert [found[0], found[2]] == [1, 3]
        assert "item 1 of a call of workload.identity could not be unpickled" in str(found[1])
        with pytest.raises(ProxyException, match=r"an argument of a call .* not be unpickled"):
            await pool.apply(workload.identity, (truthless.Interrupts(),))
        assert await neighbours == [0, 2, 4]
        assert pool.stats().restarts == {}


@pytest.mark.row("H240")
async def test_an_initializer_that_returns_a_coroutine_is_refused_in_its_worker() -> None:
    pool = Pool(1, initializer=truthless.initialize_late)
    with pytest.raises(TypeError, match="initializer must be a synchronous function"):
        await pool.apply(workload.two)
    pool.terminate()
    await pool.join()
    result = await Worker(target=asyncio.sleep, args=(0,), initializer=truthless.initialize_late)
    assert isinstance(result, TypeError)
    assert "initializer must be a synchronous function" in str(result)
