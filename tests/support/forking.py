"""Items that fork in every way, and go on in the copy, or do not.

Used by name, as `workload` is. What waits for a copy returns its exit code.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from workload import meet, meet_blocking, note

forked = 0  # the pid of the last copy; 0 in a copy


def fork() -> bool:
    """Fork; True in the copy."""
    global forked
    forked = os.fork()
    return forked == 0


def exit_code() -> int:
    """Wait for the copy to end."""
    return os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])


# -- where the copy returns to the engine --------------------------------------------------------


def fork_and_return(value: object) -> object:
    return "copy" if fork() else exit_code()


def fork_and_raise(value: object) -> object:
    if fork():
        raise ValueError("in the copy")
    return exit_code()


def fork_and_exit_as_programs_do(value: object) -> object:
    if fork():
        sys.exit(5)
    return exit_code()


async def fork_in_the_first_step(value: object) -> object:
    return fork_and_return(value)


async def fork_and_suspend(value: object) -> object:
    if fork():
        await asyncio.sleep(0)
        return "copy"
    return exit_code()


async def fork_after_a_turn(value: object) -> object:
    await asyncio.sleep(0)
    return fork_and_return(value)


async def fork_after_a_turn_and_suspend(value: object) -> object:
    await asyncio.sleep(0)
    return await fork_and_suspend(value)


async def fork_after_a_turn_and_raise(value: object) -> object:
    await asyncio.sleep(0)
    return fork_and_raise(value)


async def fork_in_a_callback(value: object) -> object:
    done = asyncio.get_running_loop().create_future()

    def call() -> None:
        if not fork():
            done.set_result(exit_code())

    asyncio.get_running_loop().call_soon(call)
    return await done


async def fork_in_a_task(value: object) -> object:
    return await asyncio.create_task(fork_and_suspend(value))


async def fork_in_a_thread(value: object) -> object:
    return await asyncio.to_thread(fork_and_return, value)


class ForksWhenPickled:
    def __reduce__(self) -> Any:
        return int, (0 if fork() else exit_code(),)


def fork_while_the_result_is_pickled(value: object) -> object:
    return ForksWhenPickled()


async def fork_later_while_the_result_is_pickled(value: object) -> object:
    await asyncio.sleep(0)
    return ForksWhenPickled()


COMES_BACK = (
    fork_and_return,
    fork_and_raise,
    fork_and_exit_as_programs_do,
    fork_in_the_first_step,
    fork_and_suspend,
    fork_after_a_turn,
    fork_after_a_turn_and_suspend,
    fork_after_a_turn_and_raise,
    fork_in_a_callback,
    fork_in_a_task,
    fork_in_a_thread,
    fork_while_the_result_is_pickled,
    fork_later_while_the_result_is_pickled,
)


class ForksWhenUnpickled:
    """An argument."""

    def __reduce__(self) -> Any:
        return fork_and_return, (0,)


def fork_for_an_error(error: BaseException) -> None:
    """An exception_handler."""
    if not fork():
        exit_code()


def fork_once(path: str) -> None:
    """An initializer."""
    if not fork():
        note(path, exit_code())


def make_loop_and_fork() -> asyncio.AbstractEventLoop:
    """A loop_initializer."""
    if not fork():
        exit_code()
    return asyncio.new_event_loop()


async def meet_and_add(port: int, value: int) -> int:
    """A neighbour."""
    await meet(port, value)
    return value + 1


async def fork_beside(port: int) -> object:
    """Fork while neighbours wait, and are to be stepped in the same turn of the loop."""
    await meet(port, "forks")
    return await fork_and_suspend(None)


def leave_a_process() -> int | None:
    """Leave a process of multiprocessing, for whose end the worker waits."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    return process.pid


# -- where it does not ---------------------------------------------------------------------------


def fork_and_exit_at_once(value: object) -> object:
    if fork():
        os._exit(3)
    return exit_code()


def fork_and_become_another_program(value: object) -> object:
    if fork():
        os.execv(sys.executable, [sys.executable, "-S", "-c", "raise SystemExit(4)"])
    return exit_code()


def run_a_program(value: object) -> object:
    command = [sys.executable, "-S", "-c", "print(6)"]
    return subprocess.run(command, capture_output=True, check=True, preexec_fn=os.getpid).stdout


def put(queue: Any) -> None:
    queue.put(asyncio.run(add_up(3)))


async def add_up(stop: int) -> int:
    await asyncio.sleep(0)
    return sum(range(stop))


def use_multiprocessing(value: object) -> object:
    """Let a forked process of multiprocessing run a loop of its own."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue,))
    process.start()
    result = queue.get()
    process.join()
    queue.close()
    return result, process.exitcode


def sum_in_a_pool(queue: Any) -> None:
    queue.put(asyncio.run(_sum_in_a_pool()))


async def _sum_in_a_pool() -> int:
    from aiomultiprocess import Pool, set_start_method

    set_start_method("fork")
    async with Pool(1) as pool:
        return sum(await pool.map(fork_in_the_first_step, range(3)))


def use_a_pool_in_a_process(value: object) -> object:
    """Let a forked process have a pool of its own, whose items fork, too."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=sum_in_a_pool, args=(queue,))
    process.start()
    result = queue.get()
    process.join()
    queue.close()
    return result, process.exitcode


async def terminate_a_process(value: object) -> object:
    """End a forked process of multiprocessing by SIGTERM."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    process.start()
    process.terminate()
    process.join()
    await asyncio.sleep(0)
    return process.exitcode


def terminate_a_copy(value: object) -> object:
    if fork():
        signal.pause()
    os.kill(forked, signal.SIGTERM)
    return exit_code()


def interrupt_this_process() -> None:
    """Exit with a code that says whether SIGINT interrupts."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
    except KeyboardInterrupt:
        os._exit(9)
    os._exit(5)


def interrupt_a_copy(value: object) -> object:
    if fork():
        interrupt_this_process()
    return exit_code()


def interrupt_a_process(value: object) -> object:
    process = multiprocessing.get_context("fork").Process(target=interrupt_this_process)
    process.start()
    process.join()
    return process.exitcode


STAYS_AWAY = {
    fork_and_exit_at_once: 3,
    fork_and_become_another_program: 4,
    run_a_program: b"6\n",
    use_multiprocessing: (3, 0),
    use_a_pool_in_a_process: (3, 0),
    terminate_a_process: -signal.SIGTERM,
    terminate_a_copy: -signal.SIGTERM,
    interrupt_a_copy: 5,  # COPY-5
    interrupt_a_process: 9,
}


def fork_and_meet(port: int) -> None:
    """Stay in the copy, and report its pid."""
    if fork():
        meet_blocking(port, "copy")
        os._exit(0)


def fork_in_a_thread_and_meet(port: int) -> None:
    thread = threading.Thread(target=fork_and_meet, args=(port,))
    thread.start()
    thread.join()


async def answer_twice() -> str:
    """The target of a Worker: go on in the copy, which is first."""
    if fork():
        return "copy"
    exit_code()
    return "original"
