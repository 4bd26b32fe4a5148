"""Items for test_starter*.py: what user code does while it waits, is cancelled, or shares the loop.

As in starter_items.py, to whose list they are added.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel

from starter_items import MINE, Pause, behaviour, me

# -- cancellation ----------------------------------------------------------------------------------


@behaviour
async def cancels_itself_and_returns(pause: Pause) -> Any:
    return me().cancel("why"), me().cancelling()


@behaviour
async def cancels_itself_after_a_pause(pause: Pause) -> Any:
    await pause()
    me().cancel("why")


@behaviour
async def cancels_itself_and_pauses(pause: Pause) -> Any:
    me().cancel("why")
    await pause()
    return "returned"


@behaviour
async def cancels_itself_and_raises(pause: Pause) -> Any:
    me().cancel("why")
    raise ValueError("raised")


@behaviour
async def cancels_itself_and_waits(pause: Pause) -> Any:
    me().cancel()
    await asyncio.sleep(10)


@behaviour
async def cancels_itself_and_catches(pause: Pause) -> Any:
    task = me()
    task.cancel("why")
    task.cancel("again")
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError as error:
        seen = error.args, task.cancelling()
        await pause()
        return *seen, task.uncancel(), task.uncancel(), task.cancelling()


@behaviour
async def cancels_itself_and_takes_it_back(pause: Pause) -> Any:
    me().cancel("why")
    left = me().uncancel()
    try:
        await pause()
    except asyncio.CancelledError as error:  # up to 3.12, uncancel does not take it back
        return left, error.args
    return left, me().cancelling()


@behaviour
async def takes_one_of_two_back_and_waits(pause: Pause) -> Any:
    me().cancel("first")
    me().cancel("second")
    me().uncancel()
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError as error:
        await pause()
        return error.args, me().cancelling()


@behaviour
async def waits_for_what_cannot_be_cancelled(pause: Pause) -> Any:
    class Stubborn(asyncio.Future):  # type: ignore[type-arg]
        requests = 0

        def cancel(self, msg: Any = None) -> bool:
            self.requests += 1
            seen.append((msg, asyncio.current_task() is task, MINE.get()))
            return False

    MINE.set("set")
    task = me()
    seen: list[Any] = []
    loop = asyncio.get_running_loop()
    future = Stubborn(loop=loop)
    task.cancel("why")
    loop.call_soon(future.set_result, "result")
    try:
        await future
    except asyncio.CancelledError as error:
        return error.args, future.requests, seen, task.cancelling()


@behaviour
async def cancels_what_it_waits_for(pause: Pause) -> Any:
    child = asyncio.create_task(asyncio.sleep(10))
    me().cancel("why")
    try:
        await child
    except asyncio.CancelledError as error:
        return child.cancelled(), error.args


@behaviour
async def is_cancelled_by_another(pause: Pause) -> Any:
    asyncio.get_running_loop().call_soon(me().cancel, "by another")
    try:
        await asyncio.sleep(10)
    finally:
        await pause()


@behaviour
async def is_cancelled_while_it_shields(pause: Pause) -> Any:
    inner = asyncio.create_task(asyncio.sleep(0, "inner"))
    asyncio.get_running_loop().call_soon(me().cancel)
    try:
        await asyncio.shield(inner)
    except asyncio.CancelledError:
        return await inner, inner.cancelled()


@behaviour
async def raises_a_cancellation(pause: Pause) -> Any:
    await pause()
    raise asyncio.CancelledError("mine")


# -- timeouts and groups ---------------------------------------------------------------------------


@behaviour
async def stays_within_its_timeout(pause: Pause) -> Any:
    async with asyncio.timeout(10) as timeout:
        await pause()
    return timeout.expired()


@behaviour
async def runs_into_its_timeout(pause: Pause) -> Any:
    async with asyncio.timeout(0.001):
        await asyncio.sleep(10)


@behaviour
async def runs_into_a_timeout_that_is_over(pause: Pause) -> Any:
    try:
        async with asyncio.timeout(0):
            await pause()
            await asyncio.sleep(10)
    except TimeoutError:
        return me().cancelling(), me().cancelled()


@behaviour
async def waits_for_a_time(pause: Pause) -> Any:
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.001)
    except TimeoutError:
        return await asyncio.wait_for(asyncio.sleep(0, "value"), 10), me().cancelling()


@behaviour
async def runs_a_group(pause: Pause) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
        await pause()
    return [task.result() for task in tasks]


@behaviour
async def runs_an_empty_group(pause: Pause) -> Any:
    async with asyncio.TaskGroup():
        await pause()
    return me().cancelling()


@behaviour
async def runs_a_group_that_fails(pause: Pause) -> Any:
    async def fail() -> None:
        raise ValueError("a child's")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(10)
    except* ValueError as errors:
        seen = [repr(error) for error in errors.exceptions]
    await pause()
    return seen, me().cancelling()


@behaviour
async def moves_on_with_anyio(pause: Pause) -> Any:
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(10)
    await pause()
    return scope.cancelled_caught, me().cancelling(), anyio.get_current_task().id == id(me())


@behaviour
async def finishes_within_a_scope_of_anyio(pause: Pause) -> Any:
    with anyio.move_on_after(10) as scope:
        await pause()
    return scope.cancelled_caught, scope.cancel_called


@behaviour
async def cancels_a_scope_of_anyio(pause: Pause) -> Any:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(10)
    await pause()
    return scope.cancelled_caught, me().cancelling()


@behaviour
async def runs_a_group_of_anyio(pause: Pause) -> Any:
    seen = []

    async def child(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    async with anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(child, n)
        await pause()
    return seen


@behaviour
async def fails_after_a_time_with_anyio(pause: Pause) -> Any:
    with anyio.fail_after(0.001):
        await anyio.sleep(10)


# -- other tasks and threads -----------------------------------------------------------------------


@behaviour
async def gathers(pause: Pause) -> Any:
    async def child(n: int) -> tuple[int, bool]:
        await pause()
        return n, asyncio.current_task() is not task

    task = me()
    return await asyncio.gather(*(child(n) for n in range(3)))


@behaviour
async def goes_to_a_thread(pause: Pause) -> Any:
    MINE.set("set")
    where, var = await asyncio.to_thread(lambda: (threading.current_thread(), MINE.get()))
    await pause()
    return where is not threading.main_thread(), var


@behaviour
async def leaves_a_task_running(pause: Pause) -> Any:
    async def child() -> str:
        await asyncio.sleep(0)
        return MINE.get()

    MINE.set("set")
    return "child", asyncio.create_task(child())


@behaviour
async def is_awaited_by_its_child(pause: Pause) -> Any:
    async def child(parent: asyncio.Task[Any]) -> Any:
        return (await parent)[0]

    task = asyncio.create_task(child(me()))
    await pause()
    return "parent", task


@behaviour
async def awaits_itself(pause: Pause) -> Any:
    await me()


@behaviour
async def iterates_asynchronously(pause: Pause) -> Any:
    async def numbers() -> AsyncGenerator[int, None]:
        try:
            for n in range(10):
                await pause()
                yield n
        finally:
            await pause()

    async with contextlib.aclosing(numbers()) as iterator:
        async for n in iterator:
            if n == 3:
                break
    return n


@behaviour
async def collects_garbage(pause: Pause) -> Any:
    gc.collect()
    await pause()
    return gc.collect() >= 0
