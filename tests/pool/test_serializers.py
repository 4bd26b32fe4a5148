"""`Pool(serializer=…)`: lambdas, closures, and what lives in a session."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import serializers
import travellers
import workload
from aiomultiprocess import Pool, PoolExecutor, ProxyException, RoundRobin, WorkerLostError, share
from support import TEST_PATH

pytestmark = pytest.mark.usefixtures("backend", "by_value")

HINT = 'To send it by value, install "aiomultiprocess\\[cloudpickle\\]"'


@pytest.fixture
def by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default serializer; elsewhere the tests are run with pickle alone (conftest.py)."""
    monkeypatch.delenv("AIOMULTIPROCESS_SERIALIZER", raising=False)


@pytest.fixture
def without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


def adder(base: int) -> Any:
    return lambda value: base + value


# -- functions -------------------------------------------------------------------------------------


async def test_lambdas_and_closures_run_in_workers(start_method: str) -> None:
    async def twice(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    async with Pool(2) as pool:
        assert await pool.apply(lambda: 7) == 7
        assert await pool.map(adder(10), range(100)) == list(range(10, 110))
        assert await pool.map(twice, range(100)) == list(range(0, 200, 2))
        assert await pool.starmap(lambda a, b: a - b, [(3, 1), (5, 2)]) == [2, 3]


async def test_a_function_by_value_is_pickled_at_each_call() -> None:
    base = 1

    def add(value: int) -> int:
        return base + value

    async with Pool(1) as pool:
        assert await pool.apply(add, (1,)) == 2
        base = 10
        assert await pool.apply(add, (1,)) == 11
        assert await pool.map(add, [1, 2]) == [11, 12]


async def test_a_function_by_value_is_sent_again_only_if_its_bytes_differ() -> None:
    base = 1

    def add(value: int) -> int:
        return base + value

    async with Pool(1) as pool:
        numbers = []
        for _ in range(3):
            await pool.apply(add, (1,))
            (worker,) = pool.processes
            numbers.append(set(worker.functions))
        assert numbers[0] == numbers[1] == numbers[2]
        base = 2
        assert await pool.apply(add, (1,)) == 3
        (worker,) = pool.processes
        assert worker.functions.isdisjoint(numbers[0])  # the worker has dropped the old one
        assert len(worker.functions) == 1


async def test_functions_by_value_that_are_gone_are_dropped_by_workers() -> None:
    async with Pool(1) as pool:
        for number in range(50):
            assert await pool.apply(adder(number), (1,)) == number + 1
        (worker,) = pool.processes
        assert len(worker.functions) <= 2


async def test_without_cloudpickle_the_error_names_the_extra(without_cloudpickle: None) -> None:
    async with Pool(1) as pool:
        with pytest.raises(pickle.PicklingError, match=HINT):
            await pool.apply(lambda: 1)
        with pytest.raises(pickle.PicklingError, match=HINT):
            await pool.apply(workload.identity, (lambda: 1,))
        assert await pool.apply(workload.two) == 2


def test_without_cloudpickle_what_lives_in_a_session_names_the_extra(tmp_path: Path) -> None:
    source = f"sys.modules['cloudpickle'] = None\n{SESSION}asyncio.run(main())"
    done = in_session(tmp_path, "-c", f"import sys; {source}")
    assert re.search(HINT, done.stderr), done.stderr
    assert "must be importable in a worker" in done.stderr


async def test_pickle_alone_refuses_what_it_always_has() -> None:
    async with Pool(1, serializer="pickle") as pool:
        with pytest.raises(pickle.PicklingError, match="not as a lambda") as info:
            await pool.apply(lambda: 1)
        assert "cloudpickle" not in str(info.value)
        with pytest.raises(ProxyException, match=r"the result .* cannot be pickled"):
            await pool.apply(serializers.closure)


# -- arguments, results, exceptions ----------------------------------------------------------------


async def test_arguments_and_items_that_pickle_refuses_travel(start_method: str) -> None:
    async with Pool(2) as pool:
        assert await pool.apply(serializers.call, (adder(1), 2)) == 3
        items = [1, adder(1), 2, 3, adder(2), "text"]
        found = await pool.map(serializers.kind, items)
        assert found == ["int", "function", "int", "int", "function", "str"]
        stream = pool.map(serializers.kind, iter(items))
        assert [kind async for kind in stream] == found
        assert await pool.starmap(serializers.call, [(adder(1), 1), (adder(5), 5)]) == [2, 10]


async def test_a_scheduler_of_the_user_changes_nothing() -> None:
    class Chosen(RoundRobin):
        pass

    items = [adder(number) for number in range(50)]
    async with Pool(2, queuecount=2, scheduler=Chosen()) as pool:
        assert await pool.map(lambda function: function(1), items) == list(range(1, 51))
        assert await pool.apply(serializers.call, (adder(1), 2)) == 3


async def test_a_function_that_lost_its_worker_is_sent_to_the_next() -> None:
    def die() -> None:
        os._exit(1)

    async with Pool(1) as pool:
        for _ in range(2):
            with pytest.raises(WorkerLostError):
                await pool.apply(die)


def test_an_executor_takes_lambdas_too() -> None:
    with PoolExecutor(1) as executor:
        assert executor.submit(lambda function: function(1), adder(1)).result() == 2
        assert list(executor.map(adder(1), range(100))) == list(range(1, 101))


async def test_what_no_serializer_takes_fails_alone() -> None:
    async with Pool(1) as pool:
        results = pool.map(serializers.kind, [1, sys._getframe(), adder(1)])
        with pytest.raises(pickle.PicklingError, match=r"item 1 of a call of serializers\.kind"):
            await results
        iterator = aiter(results)
        assert await anext(iterator) == "int"
        with pytest.raises(pickle.PicklingError):
            await anext(iterator)
        assert await anext(iterator) == "function"


async def test_results_that_pickle_refuses_travel(start_method: str) -> None:
    async with Pool(1) as pool:
        assert (await pool.apply(serializers.closure))(2) == 3
        functions = await pool.map(serializers.closure_after_a_turn, range(5))
        assert [function(2) for function in functions] == [2, 3, 4, 5, 6]


@pytest.mark.spawned
async def test_an_exception_that_pickle_refuses_arrives_as_itself() -> None:
    class LocalError(Exception):
        pass

    def fail() -> None:
        raise LocalError("of this function", 5)

    async with Pool(1) as pool:
        with pytest.raises(LocalError, match="of this function") as info:
            await pool.apply(fail)
        assert isinstance(info.value, ProxyException)


@pytest.mark.spawned
async def test_a_class_that_travels_by_value_comes_back_as_itself() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    def moved(point: Point) -> Point:
        return Point(point.x + 1)

    async with Pool(1) as pool:
        found = await pool.apply(moved, (Point(1),))
        assert type(found) is Point
        assert found.x == 2


async def test_start_arguments_that_pickle_refuses_travel(start_method: str) -> None:
    greeting = adder(4)

    async def failing() -> None:
        raise LookupError

    async with Pool(
        1,
        initializer=lambda value: workload.set_greeting(value(1)),
        initargs=(greeting,),
        exception_handler=lambda error: None,
    ) as pool:
        assert (await pool.apply(workload.get_greeting))[1] == 5
        with pytest.raises(LookupError):
            await pool.apply(failing)


async def test_a_retried_item_is_sealed_again(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    def die_once(function: Any) -> int:
        if not ran.exists():
            ran.touch()
            os._exit(1)
        result: int = function(1)
        return result

    async with Pool(1) as pool:
        assert await pool.map(die_once, [adder(1)], retries=1) == [2]


# -- a main module that workers cannot import ------------------------------------------------------

SESSION = """
import asyncio, sys
import serializers
from aiomultiprocess import Pool, set_start_method

class Point:
    def __init__(self, x):
        self.x = x

class OwnError(Exception):
    pass

base = 1

async def move(point):
    return Point(point.x + base)

def fail():
    raise OwnError("mine")

def begin(point):
    global base
    base = point.x

async def main():
    global base
    async with Pool(1) as pool:
        point = await pool.apply(move, (Point(1),))
        print(type(point) is Point, point.x)
        base = 5
        print([point.x for point in await pool.map(move, [Point(1), Point(2)])])
        print(await pool.apply(serializers.kind, (Point(1),)), await pool.map(abs, [-1]))
        try:
            await pool.apply(fail)
        except OwnError as error:
            print("caught", error.__cause__)
    async with Pool(1, initializer=begin, initargs=(Point(7),)) as pool:
        print((await pool.apply(move, (Point(1),))).x)

"""


def in_session(folder: Path, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What became of Python with this command line."""
    return subprocess.run(
        [sys.executable, "-Wignore", *command],
        input=stdin,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": TEST_PATH},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        start_new_session=True,
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("way", ["-c", "stdin", "package"])
def test_what_lives_in_a_session_travels_by_value(tmp_path: Path, way: str, method: str) -> None:
    source = f"{SESSION}set_start_method({method!r})\nasyncio.run(main())\n"
    package = tmp_path / "program"
    package.mkdir()
    (package / "__init__.py").touch()
    body = f"    set_start_method({method!r})\n    asyncio.run(main())\n"
    (package / "__main__.py").write_text(f"{SESSION}if __name__ == '__main__':\n{body}")
    command = {"-c": ["-c", source], "stdin": ["-"], "package": ["-m", "program"]}[way]
    done = in_session(tmp_path, *command, stdin=source if way == "stdin" else "")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["True 2", "[6, 7]", "Point [1]", "caught mine"], done.stderr
    assert done.returncode == 0, done.stderr


BESIDE = """
import asyncio
from functools import partial
from aiomultiprocess import Pool, share

class Point:
    def __init__(self, x):
        self.x = x

def add(shared, point):
    return shared.value[0] + point.x

async def main():
    with share([1]) as shared:
        async with Pool(1) as pool:
            print(await pool.apply(add, (shared, Point(1))))
            print(await pool.starmap(add, [(shared, Point(x)) for x in (1, 2)]))
            print(await pool.apply(add, (), {"shared": shared, "point": Point(3)}))
            print(await pool.map(partial(add, shared), [Point(4)]))
        async with Pool(1, initializer=add, initargs=(shared, Point(3))) as pool:
            print(await pool.apply(abs, (-6,)))
        print(len(sharing.collected))

from aiomultiprocess._wire import sharing
asyncio.run(main())
"""


@pytest.mark.row("H196")
@pytest.mark.skipif(sys.platform == "win32", reason="share() needs Unix sockets")
def test_what_lives_in_a_session_travels_by_value_beside_a_shared_object(tmp_path: Path) -> None:
    done = in_session(tmp_path, "-c", BESIDE)
    assert done.stdout.split("\n")[:-1] == ["2", "[2, 3]", "4", "[5]", "6", "0"], done.stderr
    assert done.returncode == 0, done.stderr


SHARED = """
import asyncio
import numpy
from aiomultiprocess import Pool, share

class Point:
    def __init__(self, x):
        self.x, self.array = x, numpy.arange(100_000.0)

def kind(shared):
    value = shared.value
    return value.x, type(value).__name__, float(value.array[-1]), value.array.flags.writeable

def is_its_own(shared, point):
    return type(shared.value) is type(point)

async def main():
    with share(Point(1)) as shared, share(lambda x: Point(x)) as make:
        async with Pool(1) as pool:
            print(await pool.apply(kind, (shared,)))
            print(await pool.apply(is_its_own, (shared, Point(2))))
            print(await pool.apply(lambda shared: shared.value(3).x, (make,)))
        print(type(shared.value) is Point, shared.value.array.flags.writeable)

asyncio.run(main())
"""


@pytest.mark.row("H197")
@pytest.mark.skipif(sys.platform == "win32", reason="share() needs Unix sockets")
def test_what_lives_in_a_session_can_be_shared(tmp_path: Path) -> None:
    done = in_session(tmp_path, "-c", SHARED)
    found = done.stdout.splitlines()
    assert found == ["(1, 'Point', 99999.0, False)", "True", "3", "True False"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.row("H197")
@pytest.mark.skipif(sys.platform == "win32", reason="share() needs Unix sockets")
def test_by_pickle_alone_a_shared_object_of_a_session_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOMULTIPROCESS_SERIALIZER", "pickle")
    source = SHARED.replace(", share(lambda x: Point(x)) as make", "")
    source = source.replace("kind, (", "scarcity.first_of, (").replace(
        "import n", "import scarcity, n"
    )
    done = in_session(tmp_path, "-c", source)
    assert "a shared object could not be unpickled (AttributeError: " in done.stderr
    assert "It must be importable in a worker" in done.stderr


@pytest.mark.row("H197")
@pytest.mark.skipif(sys.platform == "win32", reason="share() needs Unix sockets")
def test_what_no_serializer_takes_cannot_be_shared(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(pickle.PicklingError, match=r"frame .* cannot be shared \(.*\)$"):
        share(sys._getframe())
    with share(adder(1)) as shared:
        assert shared.value(2) == 3
    request.getfixturevalue("without_cloudpickle")
    with pytest.raises(pickle.PicklingError, match=rf"function .* cannot be shared \(.*{HINT}$"):
        share(adder(1))
    with pytest.raises(MemoryError):
        share(Greedy())


class Greedy:
    def __reduce__(self) -> Any:
        raise MemoryError


FEW = """
import asyncio, pickle, sys
import scarcity, serializers
from aiomultiprocess import Pool

async def main():
    async with Pool(1) as pool:
        (worker,) = pool.processes
        assert await pool.map(serializers.kind, [1, 2]) == ["int", "int"]
        assert "cloudpickle" not in sys.modules
        scarcity.use_up_descriptors()
        for function, item in ((serializers.kind, lambda: 0), (lambda x: 0, 1)):
            try:
                await pool.map(function, [1, item, 2])
            except pickle.PicklingError as error:
                print(str(error).splitlines()[0])
        scarcity.free_descriptors()
        print(await pool.map(serializers.kind, [1, lambda: 0, 2]))
        print(await pool.apply(lambda: 5), worker in pool.processes)

asyncio.run(main())
"""


@pytest.mark.row("H201")
@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_NOFILE")
def test_without_descriptors_what_pickle_refuses_fails_alone(tmp_path: Path) -> None:
    done = in_session(tmp_path, "-c", FEW)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert "item 1 of a call of serializers.kind cannot be sent" in lines[0]
    assert "<lambda> cannot be sent" in lines[1]
    assert "aiomultiprocess[cloudpickle]" not in done.stdout
    assert lines[-2:] == ["['int', 'function', 'int']", "5 True"], done.stderr


# -- serializers of one's own ----------------------------------------------------------------------


async def test_an_object_with_dumps_and_loads_takes_functions_and_arguments() -> None:
    async with Pool(1, serializer=serializers.Marking()) as pool:
        assert await pool.apply(serializers.mark_of, (serializers.Marked(),)) == "marked"
        assert await pool.map(serializers.mark_of, [serializers.Marked(), 1]) == ["marked", "int"]
        assert await pool.apply(workload.double, (4,)) == 8


async def test_a_module_can_be_the_serializer() -> None:
    async with Pool(1, serializer=pickle) as pool:
        assert await pool.apply(serializers.call, (abs, -4)) == 4


async def test_cloudpickle_can_be_chosen_for_all_objects() -> None:
    async with Pool(1, serializer="cloudpickle") as pool:
        assert await pool.apply(adder(1), (4,)) == 5
        assert await pool.map(workload.double, range(1000)) == list(range(0, 2000, 2))
        assert await pool.apply(serializers.call, (adder(1), 4)) == 5


def test_cloudpickle_that_is_not_installed_is_refused(without_cloudpickle: None) -> None:
    with pytest.raises(ValueError, match=r'install "aiomultiprocess\[cloudpickle\]"'):
        Pool(1, serializer="cloudpickle")


@pytest.mark.parametrize("wrong", ["json", 5, object()])
def test_a_serializer_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"serializer must be .* got"):
        Pool(1, serializer=wrong)


def test_a_serializer_that_cannot_travel_is_refused() -> None:
    class Local(serializers.Marking):
        pass

    with pytest.raises(TypeError, match="must itself be importable in workers"):
        Pool(1, serializer=Local())


# -- results that end programs ---------------------------------------------------------------------


@pytest.mark.row("H203")
@pytest.mark.parametrize("func", [travellers.make_ending, travellers.make_ending_later])
@pytest.mark.parametrize("kind", travellers.ENDS)
async def test_a_result_whose_pickling_ends_programs_fails_alone(func: Any, kind: str) -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(workload.where)
        words = f"result of travellers.{func.__name__} .*{kind}: at once.*not EndsWhenPickled"
        with pytest.raises(pickle.PicklingError, match=words):
            await pool.apply(func, (kind,))
        assert await pool.apply(workload.where) == pid


@pytest.mark.row("H203")
@pytest.mark.parametrize("kind", travellers.ENDS)
async def test_a_value_whose_pickling_ends_programs_ends_its_stream(kind: str) -> None:
    async with Pool(1) as pool:
        pid = await pool.apply(workload.where)
        stream = pool.stream(travellers.yield_ending, (kind,))
        assert await anext(stream) == 1
        with pytest.raises(pickle.PicklingError, match=kind):
            await anext(stream)
        assert await pool.apply(workload.where) == pid


@pytest.mark.row("H203")
@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("kind", travellers.ENDS)
async def test_a_worker_that_cannot_answer_an_item_ends(kind: str, turns: int) -> None:
    async with Pool(1) as pool:
        with pytest.raises(WorkerLostError, match="exited with code 70"):
            await pool.apply(travellers.fail_unanswered, (kind, turns))
