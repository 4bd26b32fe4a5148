"""Process and Worker: 0.9.1's behaviour, their arguments, and start methods."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import aiomultiprocess as amp
import core_targets as targets
from aiomultiprocess import Process, Worker, WorkerLostError, _arguments, core

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")
forks = pytest.mark.filterwarnings("ignore:.*use of fork.*may lead to deadlocks:DeprecationWarning")


@pytest.fixture(autouse=True)
def _default_context() -> Iterator[None]:
    yield
    amp.set_start_method()


# -- 0.9.1 -----------------------------------------------------------------------------------------


async def test_process_runs_to_its_end(start_method: str) -> None:
    process = Process(target=targets.get_pid, name="test_process")
    assert process.pid is None
    assert not process.is_alive()
    process.start()
    assert process.name == "test_process"
    assert process.pid
    await process.join()
    assert not process.is_alive()
    assert process.exitcode == 0


async def test_a_process_that_runs_is_alive_and_a_worker_has_no_result_yet() -> None:
    worker = Worker(target=targets.wait_long)
    worker.start()
    assert worker.is_alive()
    assert worker.exitcode is None
    with pytest.raises(ValueError, match="coroutine not completed"):
        _ = worker.result
    worker.kill()
    with pytest.raises(WorkerLostError):
        await worker
    assert not worker.is_alive()


async def test_awaiting_a_process_starts_and_joins_it() -> None:
    process = Process(target=targets.get_pid)
    assert await process is None
    assert process.exitcode == 0


async def test_awaiting_a_started_process_joins_it() -> None:
    process = Process(target=targets.get_pid)
    process.start()
    await process
    assert process.exitcode == 0


async def test_a_process_is_joined_only_after_its_start() -> None:
    with pytest.raises(ValueError, match="must start process"):
        await Process(target=targets.get_pid).join()


async def test_daemon_can_be_changed_before_the_start() -> None:
    process = Process(daemon=False)
    assert process.daemon is False
    process.daemon = True
    assert process.daemon is True


async def test_worker_returns_the_result_and_keeps_it(start_method: str) -> None:
    worker = Worker(target=targets.get_pid)
    worker.start()
    assert await worker.join() == worker.pid
    assert worker.result == worker.pid
    assert await worker.join() == worker.pid
    assert await worker == worker.pid


async def test_result_of_an_unstarted_worker_is_not_completed() -> None:
    with pytest.raises(ValueError, match="coroutine not completed"):
        _ = Worker(target=targets.get_pid).result


async def test_arguments_reach_the_target() -> None:
    result = await Worker(target=targets.echo, args=[1, "two"], kwargs={"three": 3})
    assert result == ((1, "two"), {"three": 3})


@pytest.mark.parametrize(
    "target",
    [functools.partial(targets.Adder(2).add, 3), targets.Adder(5), targets.add_two],
    ids=["partial", "callable object", "partial of a method"],
)
async def test_any_callable_that_returns_a_coroutine_is_a_target(target: Any) -> None:
    args = () if getattr(target, "args", ()) else (3,)
    assert await Worker(target=target, args=args) in (5, 8)


async def test_an_initializer_prepares_the_process() -> None:
    worker = Worker(target=targets.get_constant, initializer=targets.set_constant, initargs=(10,))
    assert await worker == 10


async def test_context_variables_of_the_initializer_are_seen_by_the_target() -> None:
    worker = Worker(target=targets.get_variable, initializer=targets.set_constant, initargs=(1,))
    assert await worker == "set"


async def test_worker_returns_what_its_target_raised(start_method: str) -> None:
    worker = Worker(target=targets.fail, args=(RuntimeError("raising"),))
    result = await worker
    assert type(result) is RuntimeError
    assert str(result) == "raising"
    assert "in fail\n    raise error\nRuntimeError: raising" in str(result.__cause__)
    assert worker.exitcode == 1


async def test_worker_returns_what_its_initializer_raised() -> None:
    worker = Worker(target=targets.get_pid, initializer=targets.raise_value_error, initargs=("no",))
    assert repr(await worker) == "ValueError('no')"


async def test_an_uncaught_error_is_logged_in_the_child(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process(target=targets.fail, args=(RuntimeError("raising"),))
    await process
    assert process.exitcode == 1
    errors = capfd.readouterr().err
    assert f"aio process {process.pid} failed" in errors
    assert errors.count("RuntimeError: raising") == 1


async def test_a_process_without_a_target_fails(capfd: pytest.CaptureFixture[str]) -> None:
    process = Process()
    await process
    assert process.exitcode == 1
    assert "NotImplementedError" in capfd.readouterr().err
    with pytest.raises(NotImplementedError):
        await core.not_implemented()


# -- bad arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [targets.nothing, 5, "name", targets.Adder])
def test_a_target_that_is_no_coroutine_function_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"target must be coroutine function, not .*async def"):
        Process(target=target)


@pytest.mark.parametrize("name", ["initializer", "loop_initializer"])
def test_an_initializer_that_is_async_or_no_function_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be synchronous function, not .*get_pid"):
        Process(target=targets.get_pid, **{name: targets.get_pid})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"^{name} must be a function or None, not 'text'"):
        Process(target=targets.get_pid, **{name: "text"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"args": 5}, TypeError, "args must be a sequence of arguments, not 5"),
        ({"kwargs": [1]}, TypeError, r"kwargs must be a mapping of names to arguments, not \[1\]"),
        ({"initargs": 5}, TypeError, "initargs must be a sequence of arguments, not 5"),
        ({"name": 5}, TypeError, "name must be a string, not 5"),
        ({"group": 5}, ValueError, "group must be None, not 5"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Worker(target=targets.get_pid, **arguments)


@pytest.mark.row("A2")
@pytest.mark.parametrize("part", ["target", "args"])
async def test_a_target_or_argument_that_cannot_be_pickled_is_named_at_the_start(part: str) -> None:
    async def local() -> None: ...

    arguments: dict[str, Any] = {"target": targets.echo, "args": ()}
    arguments[part] = local if part == "target" else [local]
    process = Worker(**arguments)
    with pytest.raises(
        (AttributeError, pickle.PicklingError), match=f"local object.*{part} cannot .*importable"
    ):
        process.start()
    assert process.pid is None


@pytest.mark.row("A2")
@pytest.mark.parametrize("make", ["Lock", "Queue"])
def test_an_argument_that_travels_only_while_a_process_starts_is_not_blamed(make: str) -> None:
    """A lock cannot be pickled at any other time, when the error is explained."""
    shared = getattr(core.get_context(), make)()
    process = Process(target=targets.echo, args=(shared,), kwargs={"x": lambda: 0})
    with pytest.raises((AttributeError, pickle.PicklingError), match=": kwargs cannot be sent"):
        process.start()


@posix
@forks
async def test_a_local_function_runs_under_fork() -> None:
    async def local(value: int) -> int:
        return value

    amp.set_start_method("fork")
    assert await Worker(target=local, args=(17,)) == 17


async def test_a_process_starts_once() -> None:
    process = Process(target=targets.get_pid)
    await process
    with pytest.raises(RuntimeError, match="only once"):
        process.start()


async def test_a_loop_initializer_that_returns_no_loop_is_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = await Worker(target=targets.get_pid, loop_initializer=targets.make_nothing)
    assert isinstance(result, TypeError)
    assert "loop_initializer must return an event loop, not None" in capfd.readouterr().err


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (targets.get_pid, "core_targets.get_pid"),
        (targets.Adder(2).add, "core_targets.Adder.add"),
        (functools.partial(targets.echo, 5), "functools.partial(core_targets.echo)"),
    ],
)
def test_a_label_names_the_function(target: Any, label: str) -> None:
    assert _arguments.label_of(target) == label


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (lambda held: held, "an object of core_targets.Unprintable"),
        (lambda held: functools.partial(held, held), "functools.partial(an object of "),
        (lambda held: functools.partial(targets.echo, held), "functools.partial(core_targets.echo"),
        (
            lambda held: functools.partial(targets.echo, x=held),
            "functools.partial(core_targets.echo",
        ),
    ],
    ids=["itself", "in a partial", "as argument", "by keyword"],
)
def test_a_label_shows_nothing_that_a_function_holds(make: Any, label: str) -> None:
    assert _arguments.label_of(make(targets.Unprintable())).startswith(label)


@pytest.mark.parametrize("cls", [Process, Worker])
async def test_a_target_may_hold_an_object_without_a_usable_repr(cls: type[Process]) -> None:
    for target in (functools.partial(targets.echo, targets.Unprintable()), targets.Unprintable()):
        process = cls(target=target)
        await process
        assert process.exitcode == 0


# -- start methods ---------------------------------------------------------------------------------


def test_spawn_is_the_default_start_method() -> None:
    assert core.get_context().get_start_method() == "spawn"
    assert core.context is core.get_context()


def test_an_unknown_start_method_is_refused() -> None:
    with pytest.raises(ValueError, match="foo"):
        amp.set_start_method("foo")


def test_set_context_is_set_start_method_with_another_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str | None] = []
    monkeypatch.setattr(core, "set_start_method", calls.append)
    amp.set_context()
    amp.set_context("spawn")
    assert calls == [None, "spawn"]


def test_none_means_the_default_of_cpython() -> None:
    import multiprocessing

    amp.set_start_method(None)
    assert core.get_context() is multiprocessing.get_context()
