"""What goes wrong in workers, on purpose: errors, values that do not travel, and death.

Used by name, as `workload` is.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import faulthandler
import gc
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from aiomultiprocess import TaskTimeoutError
from workload import HOST, meet, meet_blocking, note

# -- errors --------------------------------------------------------------------------------------


class Sudden(SystemExit):
    """A subclass, as libraries of command lines have them."""


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "RuntimeError": RuntimeError,
    "SystemExit": SystemExit,
    "Sudden": Sudden,
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
}


def fail_now(text: str, kind: str = "RuntimeError") -> NoReturn:
    raise ERRORS[kind](text)


async def fail_at_once(text: str, kind: str = "RuntimeError") -> NoReturn:
    fail_now(text, kind)


async def fail_after_a_turn(text: str, kind: str = "RuntimeError") -> NoReturn:
    await asyncio.sleep(0)
    fail_now(text, kind)


class Revived:
    """Does something when it is unpickled, which a test decides."""

    act: Callable[[], None] = staticmethod(lambda: None)

    def __getstate__(self) -> bool:
        return True

    def __setstate__(self, state: bool) -> None:
        type(self).act()


def make_revived() -> Revived:
    return Revived()


class TwoArgumentsError(Exception):
    """Not to be rebuilt by a call with its `args`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class PickyError(Exception):
    """Its constructor refuses most calls."""

    def __init__(self, *, token: object = None) -> None:
        if token is None:
            raise AssertionError("constructed without a token")
        super().__init__("picky")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Refuses every attribute that is set, even those that `raise` sets."""

    code: int


class HoldingError(Exception):
    """Has state that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class MuteError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise LookupError("no words")


class MuteOut:
    """Cannot be pickled, for a reason that cannot be printed."""

    def __reduce__(self) -> Any:
        raise MuteError


async def raise_large(_: object = None) -> NoReturn:
    """An error that holds a megabyte."""
    raise ValueError(bytes(1 << 20))


def raise_mute() -> NoReturn:
    raise MuteError


class MuteIn:
    """Cannot be unpickled, for a reason that cannot be printed."""

    def __reduce__(self) -> Any:
        return raise_mute, ()


async def mute_in(_: object = None) -> MuteIn:
    return MuteIn()


class LostError(Exception):
    """Can be pickled, but never rebuilt."""

    def __reduce__(self) -> Any:
        return fail_now, ("cannot be rebuilt",)


class NoCauseError(Exception):
    """Can be inspected, but for one attribute."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__cause__":
            raise RuntimeError("not now")
        return super().__getattribute__(name)


class NoAttributesError(Exception):
    """Raises whenever it is inspected."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not now")


class NoClassError(Exception):
    """Does not say what it is an instance of."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("not now")


def long_chain(length: int) -> BaseException:
    error: BaseException = ValueError("the deepest")
    for depth in range(length):
        outer = ValueError(f"depth {depth}")
        outer.__cause__ = error
        error = outer
    return error


def error_of_kind(kind: str) -> BaseException:
    """Errors that are hard to carry."""
    return {
        "two arguments": lambda: TwoArgumentsError(404, "not found"),
        "picky": lambda: PickyError(token=1),
        "frozen": lambda: FrozenError(42),
        "holding": lambda: HoldingError("holds a lock"),
        "lost": lambda: LostError("gone"),
        "without a cause": lambda: NoCauseError("unseen"),
        "without a class": lambda: NoClassError("unseen"),
        "without attributes": lambda: NoAttributesError("unseen"),
        "chain": lambda: long_chain(10_000),
        "key": lambda: KeyError("missing"),
        "os": lambda: FileNotFoundError(2, "No such file", "/nowhere"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "because"),
        "group": lambda: ExceptionGroup("both", [ValueError("one"), TypeError("two")]),
        "base group": lambda: BaseExceptionGroup("both", [KeyboardInterrupt("one")]),
    }[kind]()


async def fail_as(kind: str) -> NoReturn:
    raise error_of_kind(kind)


async def fail_later_as(kind: str) -> NoReturn:
    await asyncio.sleep(0)
    raise error_of_kind(kind)


def fail_plainly_as(kind: str) -> NoReturn:
    raise error_of_kind(kind)


class KeepsTask:
    """Holds on to the tasks of items, which then end as tasks do."""

    tasks: list[Any] = []  # noqa: RUF012 - of the worker


async def keep_the_task_and_fail_as(kind: str) -> NoReturn:
    KeepsTask.tasks.append(asyncio.current_task())
    raise error_of_kind(kind)


async def fail_at(bad: int, value: int) -> int:
    if value == bad:
        raise ValueError(f"{value} is bad")
    return value


async def meet_or_raise(port: int, token: object) -> str:
    answer = await meet(port, token)
    if answer == "raise":
        raise ValueError("told to")
    return answer


async def with_two(first: Any, second: Any) -> tuple[Any, Any]:
    return first, second


def rebuild_here_only(pid: int) -> Any:
    """The unpickling of HomeBound."""
    if os.getpid() != pid:
        raise RuntimeError("homesick")
    return HomeBound(pid)


class HomeBound:
    """Can be pickled, but unpickled only in the process `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return rebuild_here_only, (self.pid,)


async def home_bound(_: object = None) -> HomeBound:
    """A result that fails in the parent when it is unpickled."""
    return HomeBound(os.getpid())


class Unsendable:
    """Fails to be pickled, and says so."""

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("never leaves home")


STAYING = ("lambda", "lock", "generator", "nested", "reduce")


def result_that_stays(kind: str) -> Any:
    """Values that cannot be pickled."""
    return {
        "lambda": lambda: 1,
        "lock": threading.Lock(),
        "generator": (value for value in ()),
        "nested": {"deep": [threading.Lock()]},
        "reduce": Unsendable(),
    }[kind]


async def result_of_kind(kind: str) -> Any:
    return "fine" if kind == "fine" else result_that_stays(kind)


# -- initializers and handlers ---------------------------------------------------------------------


def initialize_and_fail(path: str, way: str) -> None:
    note(path, os.getpid())
    if way in WAYS_TO_DIE:
        die(way)
    fail_now("no database", way)


def initialize_once(path: str, way: str) -> None:
    """An initializer that works in the first worker only."""
    if os.path.exists(path):
        note(path, os.getpid())
        if way in WAYS_TO_DIE:
            die(way)
        fail_now("once only", way)
    note(path, os.getpid())


TOGETHER = asyncio.Event()  # in the worker


async def end_in_turn(port: int, i: int, last: int) -> int:
    """A result of its own turn of the loop; the worker dies when the last one's was long sent."""
    if i == last:
        await meet(port)
        TOGETHER.set()
    await TOGETHER.wait()
    for _ in range(2 * i):
        await asyncio.sleep(0)
    if i == last:
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGKILL)
    return i


def initialize_one(first: str, others: str) -> None:
    """An initializer that ends in one worker, and in the others when there is that file."""
    try:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        while not os.path.exists(others):
            time.sleep(0.01)


def refuse_error(error: BaseException) -> NoReturn:
    """An exception_handler that does not work."""
    raise LookupError("the handler itself is broken")


def time_out_by_itself() -> NoReturn:
    raise TaskTimeoutError("a task of its own", 1.0)


async def cancel_oneself(_: object = None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


# -- death ---------------------------------------------------------------------------------------

WAYS_TO_DIE = ("SIGKILL", "SIGSEGV", "SIGTERM", "exit 7")


def die(way: str) -> None:
    """End this process; SIGTERM may take its time."""
    if way == "exit 7":
        os._exit(7)
    if way == "SIGSEGV":
        forget_core_dumps()
    if way == "crash":
        forget_core_dumps()
        faulthandler._sigsegv()  # type: ignore[attr-defined]  # CPython's own tests use it
    os.kill(os.getpid(), getattr(signal, way))


def forget_core_dumps() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def no_loop() -> Any:
    """A loop_initializer that fails."""
    raise LookupError("no loop today")


def exit_with(code: int) -> None:
    os._exit(code)


async def die_at(bad: int, way: str, value: int) -> int:
    if value == bad:
        await asyncio.sleep(0.05)  # results of tasks before this one leave first
        die(way)
        await asyncio.Event().wait()  # until SIGTERM arrives
    return value


class Point:
    """A result that has to be pickled."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


SIZES = {"large": 20_000, "huge": 300_000}  # bytes: a few fit a journal, none does


def answer(kind: str, value: int) -> Any:
    """A result of a kind that travels in a way of its own; an error is raised."""
    if kind == "error" or (kind == "mixed" and value % 3 == 1):
        raise LookupError(value)
    if kind == "pickle" or (kind == "mixed" and value % 3 == 2):
        return Point(value)
    if kind == "dict":
        return {"id": value, "name": f"number {value}", "tags": [value, None, 0.5]}
    if kind in SIZES:
        return bytes([value]) * SIZES[kind]
    return str(value) if kind == "mixed" else value * 1000


def die_among(deadly: list[int], way: str, kind: str, value: int) -> Any:
    """Finish at once, or kill the process."""
    if value in deadly:
        die(way)
    return answer(kind, value)


async def die_among_coroutines(deadly: list[int], way: str, kind: str, value: int) -> Any:
    return die_among(deadly, way, kind, value)


_waiting: list[asyncio.Future[None]] = []


async def die_among_suspended(deadly: list[int], count: int, kind: str, value: int) -> Any:
    """Wait for `count` of this worker, then all go on in one turn of the loop, in order.

    The last one need not wait, it finishes before the others.
    """
    future = asyncio.get_running_loop().create_future()
    _waiting.append(future)
    if len(_waiting) == count:
        for waiter in _waiting:
            waiter.set_result(None)
    await future
    return die_among(deadly, "SIGKILL", kind, value)


async def answer_and_die(value: int) -> int:
    """Finish in a turn of the loop in which, before the answer leaves, the process ends."""
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(die, "SIGKILL")
    return value


def spoil_the_journal(damage: bytes, at: int) -> None:
    links = [one for one in gc.get_objects() if type(one).__name__ in ("ShmLink", "PipeLink")]
    (link,) = links
    link.journal[at : at + len(damage)] = damage


def die_with_a_spoiled_journal(deadly: list[int], damage: bytes, at: int, value: int) -> int:
    if value in deadly:
        spoil_the_journal(damage, at)
        die("SIGKILL")
    return value


def block_with_a_spoiled_journal(blocking: list[int], damage: bytes, at: int, value: int) -> int:
    if value in blocking:
        spoil_the_journal(damage, at)
        time.sleep(60)
    return value


async def note_and_die_at_some(path: str, bad: list[int], value: int) -> int:
    note(path, value)
    if value in bad:
        die("SIGKILL")
    return value


async def meet_and_kill(port: int, token: object) -> object:
    """Kill the process whose number is the answer."""
    os.kill(int(await meet(port, token)), signal.SIGKILL)
    return token


async def meet_or_die(port: int, token: object) -> object:
    if await meet(port, token) == "die":
        die("SIGSEGV")
    return token


async def publish_then_die(port: int) -> str:
    """The result leaves in this turn of the loop; the process a little later."""
    await meet(port)
    asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGKILL)
    return "published"


def leave_a_child(port: int) -> None:
    """Die when the test says so, survived by a forked process that holds every descriptor."""
    if os.fork() == 0:
        meet_blocking(port, "survivor")
        os._exit(0)
    meet_blocking(port, "worker")
    os._exit(7)


def hold_the_gil(port: int) -> int:
    """A loop in C: no signal handler and no other thread of Python runs for minutes."""
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(f"{os.getpid()} holding\n".encode())
        return sum(range(10**11))


class MeetsWhenLoaded:
    """Calls in when it is unpickled, and holds that up until it is answered."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self) -> Any:
        return meet_blocking, (self.port, "unpickling")


# -- attacks on the shared memory ----------------------------------------------------------------


def shrink_shared_memory(_: object = None) -> list[int | None]:
    """Try it with every shared memory that this process has mapped; the errors."""
    refused = []
    for line in mapped_memory():
        path = f"/proc/self/map_files/{line.split()[0]}"
        try:
            descriptor = os.open(path, os.O_RDWR)  # refused, too, without privileges
        except OSError as error:
            refused.append(error.errno)
            continue
        try:
            os.ftruncate(descriptor, 0)
        except OSError as error:
            refused.append(error.errno)
        finally:
            os.close(descriptor)
    return refused


def mapped_memory() -> list[str]:
    """The lines of the shared memory in the table of this process's mappings."""
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "/memfd:" in line]


STARTED = 128  # where a worker counts the tasks that it has started (ring.h)
UP_TAIL = 768  # where a worker says how far it has written (ring.h)


def damage_the_link(port: int) -> None:
    """Reset the count of started tasks, write impossible values into the link, and stay."""
    import ctypes

    meet_blocking(port, "about to")
    for line in mapped_memory():
        begin = int(line.partition("-")[0], 16)
        if "-page" in line:
            ctypes.memset(begin, 0, 8)  # its counter of started tasks (shared_page.py)
        else:
            ctypes.memset(begin + STARTED, 0, 8)
            ctypes.memset(begin + UP_TAIL, 0xFF, 8)
    for entry in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the listing's own
            continue
        if "eventfd" in kind:
            os.write(int(entry), (1).to_bytes(8, "little"))
        elif kind.startswith("socket:"):
            os.write(int(entry), b"\xff" * 64)
    signal.pause()


# -- being cancelled -----------------------------------------------------------------------------


async def meet_and_fail_when_cancelled(port: int, token: object = "") -> str:
    """An item that is cancelled, and has a failure of its own while it cleans up."""
    try:
        return await meet(port, token)
    except asyncio.CancelledError:
        raise LookupError("while cleaning up") from None


async def cancel_at_once() -> None:
    raise asyncio.CancelledError


async def meet_and_fail_oddly(port: int, kind: str) -> str:
    """An item that is cancelled, and fails while it cleans up by what is hard to carry."""
    try:
        return await meet(port)
    except asyncio.CancelledError:
        raise error_of_kind(kind) from None


def double_or_meet_blocking(port: int) -> str | int:
    """Blocks its worker, if it has somebody to meet."""
    return meet_blocking(port) if port else 2 * port


def interrupt_a_program() -> int:
    """The exit code of a program that a task has started."""
    with subprocess.Popen(["sleep", "20"]) as program:
        program.send_signal(signal.SIGINT)
        return program.wait()


def read_through_an_interrupt(seconds: float) -> bool:
    """Whether C code that gives up at EINTR reads on after SIGINT."""
    read, write = os.pipe()
    later = threading.Timer(seconds, os.write, (write, b"."))
    interrupt = threading.Timer(seconds / 2, os.kill, (os.getpid(), signal.SIGINT))
    later.start()
    interrupt.start()
    buffer = ctypes.create_string_buffer(1)
    count = ctypes.CDLL(None).read(read, buffer, 1)
    for each in (later, interrupt):
        each.join()
    for fd in (read, write):
        os.close(fd)
    return bool(count == 1)
