"""An error on the way names the item, the function, the value, the reason and the way out."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

import core_targets
import mishaps
import travellers
import workload
from aiomultiprocess import Pool, Process, ProxyException, Scheduler, Worker, WorkerLostError
from support import outcomes

pytestmark = pytest.mark.usefixtures("backend")


class Case(NamedTuple):
    """One way to meet an error, its types, and words that its last line has in this order."""

    meet: Callable[[], Awaitable[object]]
    kinds: tuple[type[BaseException], ...]
    words: tuple[str, ...]


async def one(function: Any, *args: Any, **options: Any) -> None:
    async with Pool(1, **options) as pool:
        await pool.apply(function, args)


async def second(function: Any, item: Any) -> None:
    """The error of item 1 of three, when the others have succeeded."""
    async with Pool(1) as pool:
        found = await outcomes(pool.map(function, ["fine", item, "fine"]))
        assert (found[0], found[2]) == ("fine", "fine")
        raise found[1]


async def start(kind: Any = Worker, **arguments: Any) -> object:
    process = kind(**{"target": core_targets.echo, **arguments})
    result = await process
    if isinstance(result, BaseException):
        raise result
    return result


def lock() -> Any:
    return threading.Lock()


class Broken(Scheduler):
    """Chooses what is not there."""

    def register_queue(self, queue: Any) -> Any:
        return 0

    def register_process(self, qid: Any) -> None: ...

    def complete_task(self, tid: Any) -> None: ...

    def schedule_task(self, *_: Any) -> Any:
        return 7


NOT_PICKLED = (pickle.PicklingError,)
PROXY = (ProxyException,)
AT_START = (pickle.PicklingError, AttributeError, TypeError)

CASES: dict[str, Case] = {
    "an item that cannot be pickled": Case(
        lambda: second(workload.identity, lock()),
        NOT_PICKLED,
        ("item 1", "workload.identity", "cannot be sent", "TypeError", "not lock (<unlocked"),
    ),
    "an argument of apply that cannot be pickled": Case(
        lambda: one(workload.identity, lock()),
        NOT_PICKLED,
        ("an argument", "workload.identity", "cannot be sent", "TypeError", "plain data", "lock"),
    ),
    "an item that cannot be unpickled": Case(
        lambda: second(workload.identity, travellers.Stuck()),
        (ProxyException, LookupError),
        ("item 1", "workload.identity", "unpickled in a worker", "LookupError: not there"),
    ),
    "an item of a class that workers do not have": Case(
        lambda: second(workload.identity, travellers.homeless()),
        (ProxyException, AttributeError),
        ("item 1", "workload.identity", "worker", "AttributeError", "top level of a module"),
    ),
    "an argument that cannot be unpickled": Case(
        lambda: one(workload.identity, travellers.Stuck()),
        (ProxyException, LookupError),
        ("an argument", "workload.identity", "unpickled in a worker", "LookupError: not there"),
    ),
    "a result that cannot be pickled": Case(
        lambda: second(travellers.lock_or, "lock"),
        (ProxyException, pickle.PicklingError),
        (
            *("result of item 1", "travellers.lock_or", "cannot be pickled", "TypeError"),
            *("plain data", "not lock (<unlocked"),
        ),
    ),
    "a result of an item that waited, that cannot be pickled": Case(
        lambda: second(travellers.lock_later_or, "lock"),
        (ProxyException, pickle.PicklingError),
        ("result of item 1", "travellers.lock_later_or", "cannot be pickled", "not lock (<"),
    ),
    "a result of apply that cannot be pickled": Case(
        lambda: one(travellers.lock_or, "lock"),
        (ProxyException, pickle.PicklingError),
        ("result of travellers.lock_or", "cannot be pickled", "TypeError", "not lock (<unlocked"),
    ),
    "a result whose pickling ends programs": Case(
        lambda: one(travellers.exit_when_pickled),
        (ProxyException, pickle.PicklingError),
        ("result of travellers.exit_when_pickled", "SystemExit: 5", "not ExitsWhenPickled"),
    ),
    "a result that cannot be unpickled": Case(
        lambda: second(travellers.stuck_or, "stuck"),
        PROXY,
        ("result of item 1", "travellers.stuck_or", "in the parent process", "LookupError: not"),
    ),
    "a function that cannot be pickled": Case(
        lambda: one(lambda: 0),
        NOT_PICKLED,
        ("<lambda>", "cannot be sent to a worker", "importable", "top level of a module"),
    ),
    "a function that is not in the worker": Case(
        lambda: one(travellers.homeless_function()),
        (ProxyException, AttributeError),
        ("travellers.nowhere", "unpickled in a worker", "AttributeError", "top level of a module"),
    ),
    "a function with state that cannot be unpickled": Case(
        lambda: one(travellers.Stuck().call),
        (ProxyException, LookupError),
        ("travellers.Stuck.call", "unpickled in a worker", "LookupError: not there"),
    ),
    "an exception that cannot be pickled": Case(
        lambda: one(mishaps.fail_as, "holding"),
        (ProxyException, mishaps.HoldingError),
        ("not all of it arrived", "what cannot be pickled", "lock"),
    ),
    "an exception that cannot be rebuilt": Case(
        lambda: one(travellers.fail_unloadably),
        PROXY,
        ("only its text", "rebuilt", "LookupError: not there", "importable in both processes"),
    ),
    "a worker that died": Case(
        lambda: second(travellers.exit_or, "exit"),
        (WorkerLostError,),
        ("exited with code 7", "item 1", "travellers.exit_or"),
    ),
    "initargs that cannot be pickled": Case(
        lambda: one(workload.two, initializer=workload.set_greeting, initargs=(lock(),)),
        AT_START,
        ("initargs cannot be sent to a worker",),
    ),
    "initargs whose pickling fails in its own way": Case(
        lambda: one(workload.two, initializer=workload.set_greeting, initargs=(travellers.No(),)),
        NOT_PICKLED,
        ("OwnError: no", "initargs cannot be sent to a worker"),
    ),
    "initargs that cannot be unpickled": Case(
        lambda: one(
            workload.two, initializer=workload.set_greeting, initargs=(travellers.Stuck(),)
        ),
        (ProxyException, pickle.UnpicklingError),
        ("initargs cannot be unpickled in a worker", "LookupError: not there"),
    ),
    "an initializer that cannot be pickled": Case(
        lambda: one(workload.two, initializer=lambda: None),
        AT_START,
        ("initializer cannot be sent to a worker", "top level of a module"),
    ),
    "an initializer that is not in the worker": Case(
        lambda: one(workload.two, initializer=travellers.homeless_function(plain=True)),
        (ProxyException, pickle.UnpicklingError),
        ("initializer cannot be unpickled in a worker", "nowhere", "top level of a module"),
    ),
    "a loop_initializer that is not in the worker": Case(
        lambda: one(workload.two, loop_initializer=travellers.homeless_function(plain=True)),
        (ProxyException, pickle.UnpicklingError),
        ("loop_initializer cannot be unpickled in a worker", "top level of a module"),
    ),
    "an exception_handler that is not in the worker": Case(
        lambda: one(workload.two, exception_handler=travellers.homeless_function(plain=True)),
        (ProxyException, pickle.UnpicklingError),
        ("exception_handler cannot be unpickled in a worker", "top level of a module"),
    ),
    "a scheduler that chooses no queue of the pool": Case(
        lambda: one(workload.two, scheduler=Broken()),
        (ValueError,),
        ("the scheduler chose queue 7", "this pool has [0]"),
    ),
    "a target that cannot be pickled": Case(
        lambda: start(target=travellers.local()),
        AT_START,
        ("target cannot be sent", "that runs travellers.local", "top level of a module"),
    ),
    "args of a Process that cannot be pickled": Case(
        lambda: start(Process, args=(lock(),)),
        AT_START,
        ("args cannot be sent", "that runs core_targets.echo"),
    ),
    "kwargs of a Worker that cannot be pickled": Case(
        lambda: start(kwargs={"x": lock()}),
        AT_START,
        ("kwargs cannot be sent", "that runs core_targets.echo"),
    ),
    "a target that is not in the process": Case(
        lambda: start(target=travellers.homeless_function()),
        (WorkerLostError,),
        ("exited with code 1", "its start, before travellers.nowhere ran", "target", "top level"),
    ),
    "args of a Worker that cannot be unpickled": Case(
        lambda: start(args=(travellers.Stuck(),)),
        (WorkerLostError,),
        ("its start, before core_targets.echo ran", "args cannot be unpickled", "LookupError"),
    ),
    "a result of a Worker that cannot be pickled": Case(
        lambda: start(target=travellers.lock_or, args=("lock",)),
        NOT_PICKLED,
        ("result of travellers.lock_or cannot be pickled", "TypeError", "not lock (<unlocked"),
    ),
    "a result of a Worker that cannot be unpickled": Case(
        lambda: start(target=travellers.stuck_or, args=("stuck",)),
        (pickle.UnpicklingError,),
        ("result of travellers.stuck_or arrived", "LookupError: not there"),
    ),
}


def said(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.row("G62")
@pytest.mark.parametrize("case", CASES)
async def test_an_error_on_the_way_names_what_it_is_about(case: str) -> None:
    meet, kinds, words = CASES[case]
    with pytest.raises(kinds) as caught:
        await meet()
    if kinds is not AT_START:  # which of them it is is CPython's choice, and differs
        assert all(isinstance(caught.value, kind) for kind in kinds)
    last = said(caught.value).splitlines()[-1]
    pattern = ".*".join(map(re.escape, words))
    assert re.search(pattern, last, re.IGNORECASE), said(caught.value)


@pytest.mark.row("G62")
async def test_the_cause_of_a_result_that_cannot_be_pickled_is_kept() -> None:
    async with Pool(1) as pool:
        with pytest.raises(pickle.PicklingError) as caught:
            await pool.apply(travellers.lock_or, ("lock",))
    refusal = caught.value.__cause__
    assert type(refusal) is pickle.PicklingError
    assert type(refusal.__cause__) is TypeError
    assert "TypeError: cannot pickle" in str(caught.value).splitlines()[0]


@pytest.mark.spawned
@pytest.mark.row("G62")
async def test_an_exception_handler_gets_the_error_of_a_result_that_cannot_be_pickled(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Pool(1, exception_handler=travellers.print_error) as pool:
        with pytest.raises(ProxyException):
            await pool.apply(travellers.lock_or, ("lock",))
    assert "UnsendableError: the result cannot be pickled" in capfd.readouterr().out


@pytest.mark.row("G62")
async def test_an_object_that_two_arguments_share_stays_one() -> None:
    shared: list[int] = []
    target = travellers.are_one
    assert await Worker(target=target, args=(shared,), kwargs={"other": shared}) is True


@pytest.mark.row("G62")
async def test_a_value_that_cannot_be_printed_is_named_by_its_type() -> None:
    async with Pool(1) as pool:
        with pytest.raises(pickle.PicklingError, match="not Unprintable"):
            await pool.apply(travellers.unprintable)


@pytest.mark.row("G62")
async def test_a_long_value_is_shortened() -> None:
    async with Pool(1) as pool:
        with pytest.raises(pickle.PicklingError) as caught:
            await pool.map(workload.identity, [["x" * 10_000] * 10_000 + [lock()]])
    assert len(str(caught.value)) < 1000
