"""What the processes of the core tests run. Children import this, so it is light."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import reduction, resource_tracker
from pathlib import Path
from typing import Any

from aiomultiprocess import Worker

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
CONSTANT: object = None


class Adder:
    """A callable with a coroutine method."""

    def __init__(self, left: int) -> None:
        self.left = left

    async def add(self, right: int) -> int:
        return self.left + right

    async def __call__(self, right: int) -> int:
        return self.left + right


class Unprintable:
    """A callable that may not be shown: its repr could be huge, or raise."""

    def __repr__(self) -> str:
        raise AssertionError("the repr was used")

    async def __call__(self) -> None: ...


class Unpicklable:
    def __reduce__(self) -> object:
        raise RuntimeError("this does not travel")


class Unloadable:
    """Pickles, but cannot be unpickled."""

    def __reduce__(self) -> object:
        return raise_value_error, ("cannot be rebuilt",)


class EmptyError(Exception):
    """Counts as false."""

    def __len__(self) -> int:
        return 0


class NoCauseError(Exception):
    """Can be inspected, but for one attribute."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__cause__":
            raise RuntimeError("not now")
        return super().__getattribute__(name)


def raise_value_error(*args: object) -> None:
    raise ValueError(*args)


def nothing() -> None:
    """A synchronous function."""


def set_constant(value: object) -> None:
    """An initializer: it finds the loop of its process, as it did in 0.9.1."""
    global CONSTANT
    CONSTANT = value
    VARIABLE.set("set")
    asyncio.get_event_loop()


def make_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.slow_callback_duration = 12.5
    return loop


def make_nothing() -> None:
    """A loop_initializer that returns no loop."""


def exit_soon(code: int) -> None:
    time.sleep(0.1)  # long enough for the parent to begin to wait
    sys.exit(code)


def sleep_long() -> None:
    time.sleep(60)


def fork_and_exit(path: str) -> None:
    """Leave a forked process behind, which holds all descriptors open, and write its pid."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    Path(path).write_text(str(pid))
    time.sleep(0.1)
    os._exit(5)


def close_everything_and_wait() -> None:
    """What a daemon does: multiprocessing's sentinel is among what it closes."""
    os.closerange(3, 100)
    time.sleep(60)


def check_size(data: bytes) -> None:
    sys.exit(0 if data else 1)


def check_mask(expected: set[signal.Signals]) -> None:
    sys.exit(0 if signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= expected else 1)


class Fd:
    """A descriptor on its way into a child."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> Any:
        return _receive, (reduction.DupFd(self.fd),)


def _receive(handle: Any) -> Any:
    return Fd(handle.detach())


def check_descriptors(one: Fd, other: Fd) -> None:
    sys.exit(0 if os.fstat(one.fd) == os.fstat(other.fd) else 1)


async def use_lock(lock: Any) -> tuple[bool, bool]:
    """Whether the lock works, and whether a resource tracker is known here."""
    with lock:
        return True, resource_tracker._resource_tracker._fd is not None


async def make_lock() -> str:
    with multiprocessing.get_context("spawn").Lock():
        return "made"


async def get_constant() -> object:
    return CONSTANT


async def get_variable() -> str:
    return VARIABLE.get()


async def get_pid() -> int:
    return os.getpid()


async def echo(*args: object, **kwargs: object) -> object:
    return (args, kwargs)


async def size_of(data: bytes) -> int:
    return len(data)


async def zeros(size: int) -> bytes:
    return bytes(size)


async def count_to(end: int) -> list[int]:
    return list(range(end))


async def zeros_when_released(fifo: str, size: int) -> bytes:
    """Return once a writer has opened and closed the FIFO."""
    Path(fifo).read_bytes()  # noqa: ASYNC240 - nothing else runs here
    return bytes(size)


async def exit_when_released(fifo: str, code: int) -> None:
    """End the process once a writer has opened and closed the FIFO."""
    Path(fifo).read_bytes()  # noqa: ASYNC240 - nothing else runs here
    os._exit(code)


async def fail(error: BaseException) -> None:
    raise error


async def fail_as(cls: type[BaseException], *args: object) -> None:
    raise cls(*args)


async def leave(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


async def leave_at_once(code: int) -> None:
    os._exit(code)


async def kill_self(signum: int) -> None:
    faulthandler.disable()  # a fork of pytest has it on, and would print all stacks
    os.kill(os.getpid(), signum)
    await asyncio.sleep(60)


async def return_unpicklable() -> object:
    return Unpicklable()


async def return_unloadable() -> object:
    return Unloadable()


async def wait_long() -> None:
    await asyncio.sleep(60)


async def say_and_wait(words: str) -> None:
    print(f"{words}\n", end="", flush=True)  # in one write, as others write to the same file
    await asyncio.sleep(60)


async def start_another() -> str:
    from aiomultiprocess import Process

    await Process(target=get_pid)
    return "done"


async def fork_and_return(seconds: float) -> int:
    """Leave a forked process behind, which holds all descriptors open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)  # noqa: ASYNC251 - the fork has no loop
        os._exit(0)
    return pid


async def loop_of() -> tuple[str, float]:
    loop = asyncio.get_running_loop()
    return type(loop).__module__.partition(".")[0], loop.slow_callback_duration


async def leave_a_task(path: str) -> None:
    """End while a task still runs, which writes to `path` when it is cancelled."""
    asyncio.create_task(_wait_and_tell(path))  # noqa: RUF006 - left behind on purpose
    await asyncio.sleep(0)


async def _wait_and_tell(path: str) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        Path(path).write_text("cancelled")  # noqa: ASYNC240 - nothing else runs any more


async def sigint_is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


async def sigterm_is_default() -> bool:
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


add_two = functools.partial(Adder(2).add)


async def process_name() -> str:
    return multiprocessing.current_process().name


class Own(Worker):
    """A worker whose target is a method of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(target=self.work, name="own", initializer=self.double)
        self.number = number

    def double(self) -> None:
        self.number *= 2

    async def work(self) -> tuple[int, bool, str, bool, list[str]]:
        refusals = [
            await refusal(self.join),
            await refusal(self.start),
            await refusal(pickle.dumps, self),
        ]
        return self.number, self.pid == os.getpid(), self.name, self.is_alive(), refusals


async def refusal(func: Callable[..., Any], *args: Any) -> str:
    """The error of a call."""
    try:
        returned = func(*args)
        if returned is not None:
            await returned
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
    return ""


class OwnWithState(Own):
    """One that says itself what is pickled, as the documentation of pickle shows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()

    async def work(self) -> Any:
        with self.lock:
            return await super().work()


class OwnWithSlots(Own):
    """One with an attribute in a slot."""

    __slots__ = ("more",)

    def __init__(self, number: int) -> None:
        super().__init__(number - 1)
        self.more = 2

    async def work(self) -> Any:
        self.number += self.more
        return await super().work()
