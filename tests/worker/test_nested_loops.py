"""Items that run an event loop of their own, which cannot run within that of their worker."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aiomultiprocess import Pool, ProxyException
from aiomultiprocess._worker import nested


async def main() -> int:
    return 1


def by_run(n: int) -> int:
    return asyncio.run(main())


async def by_run_in_a_coroutine(n: int) -> int:
    await asyncio.sleep(0)
    return asyncio.run(main())


def by_a_runner(n: int) -> int:
    with asyncio.Runner() as runner:
        return runner.run(main())


def by_another_loop(n: int) -> int:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def by_the_loop_of_the_worker(n: int) -> int:
    return asyncio.get_event_loop().run_until_complete(main())


def by_a_library(n: int) -> int:
    try:
        return asyncio.run(main())
    except RuntimeError as error:
        raise ValueError("the library failed") from error


async def by_a_group(n: int) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(by_run_in_a_coroutine(n))


WAYS: list[Callable[[int], Any]] = [
    by_run,
    by_run_in_a_coroutine,
    by_a_runner,
    by_another_loop,
    by_the_loop_of_the_worker,
    by_a_library,
    by_a_group,
]


@pytest.mark.row("G60")
@pytest.mark.parametrize("way", WAYS)
async def test_an_item_that_runs_a_loop_gets_an_error_with_the_way_out(
    backend: str, capfd: pytest.CaptureFixture[str], way: Callable[[int], Any]
) -> None:
    async with Pool(1) as pool:
        with pytest.raises(ProxyException) as caught:
            await pool.apply(way, (1,))
        assert await pool.apply(main) == 1
        pool.close()
        await pool.join()
    text = "".join(traceback.format_exception(caught.value))
    assert "coroutine function (async def)" in text
    assert "running" in text
    assert capfd.readouterr().err == ""


async def never_awaited(n: int) -> int:
    main()
    return n


def other_error(n: int) -> Coroutine[Any, Any, int]:
    coro = main()
    raise RuntimeError(f"has {coro.__name__}, and nothing to do with a loop")


@pytest.mark.row("G60")
@pytest.mark.parametrize("func", [never_awaited, other_error])
async def test_a_coroutine_that_a_user_never_awaits_still_causes_a_warning(
    backend: str, capfd: pytest.CaptureFixture[str], func: Callable[[int], Any]
) -> None:
    async with Pool(1) as pool:
        [outcome] = await asyncio.gather(pool.apply(func, (1,)), return_exceptions=True)
        pool.close()
        await pool.join()
    assert "async def" not in str(outcome)
    assert "coroutine 'main' was never awaited" in capfd.readouterr().err


@pytest.mark.row("G60")
@pytest.mark.parametrize("args", [(), (1,), ("a text",), ("This event loop is already running",)])
def test_any_other_error_stays_as_it_is(args: tuple[Any, ...]) -> None:
    error = RuntimeError(*args)
    error.__notes__ = 5  # type: ignore[assignment]
    error.__context__ = again = ValueError()
    again.__context__ = error
    nested.explain(error)
    assert error.__notes__ == 5
    assert not hasattr(again, "__notes__")


@pytest.mark.row("G60")
def test_an_error_that_many_items_raise_gets_one_note() -> None:
    error = RuntimeError("This event loop is already running")
    error.add_note("the user's")
    for _ in range(3):
        nested.explain(error)
    assert error.__notes__ == ["the user's", nested.NOTE]
