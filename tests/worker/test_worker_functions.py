"""Functions that workers receive, and the stand-ins for those that cannot be unpickled."""

from __future__ import annotations

import gc
import pickle
import traceback
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

import exception_types as errors
from aiomultiprocess._worker import functions

UNKNOWN = b"cno_such_module\nf\n."


def fail() -> NoReturn:
    """What unpickling runs; a test decides what that raises."""
    raise RAISED[-1]


RAISED: list[BaseException] = []


class Failing:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return fail, ()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Any]:
    """Load a function whose unpickling raises this."""

    def load(error: BaseException) -> Any:
        monkeypatch.setitem(globals(), "RAISED", [error])
        return functions.load_function(memoryview(pickle.dumps(Failing())))

    return load


class Argument:
    pass


def raised_by(function: Any, *args: Any) -> Any:
    """What a call raises."""
    try:
        function(*args)
    except BaseException as error:  # noqa: BLE001 - as the starter does
        return error
    finally:
        del args  # this frame is in the traceback
    raise AssertionError("it returned")


# -- a function that cannot be unpickled (A2, A6) --------------------------------------------------


@pytest.mark.row("A2")
def test_a_function_that_cannot_be_unpickled_has_a_stand_in_that_raises_the_reason() -> None:
    function = functions.load_function(memoryview(UNKNOWN))
    error = raised_by(function, 1)
    assert isinstance(error, ModuleNotFoundError)


@pytest.mark.row("A2")
def test_each_call_of_a_stand_in_raises_with_the_same_traceback() -> None:
    function = functions.load_function(memoryview(UNKNOWN))

    def length() -> int:
        return len(list(traceback.walk_tb(raised_by(function, 1).__traceback__)))

    assert len({length() for _ in range(10)}) == 1


@pytest.mark.row("A2")
def test_the_traceback_of_a_stand_in_keeps_no_argument_alive() -> None:
    function = functions.load_function(memoryview(UNKNOWN))

    def made() -> Argument:
        argument = Argument()
        known.append(weakref.ref(argument))
        return argument

    known: list[weakref.ref[Argument]] = []
    raised_by(function, made())
    raised_by(lambda: function(key=made()))
    assert [argument() for argument in known] == [None, None]


@pytest.mark.row("A6")
@pytest.mark.parametrize("cls", [errors.Frozen, errors.FrozenSlots])
def test_a_frozen_exception_of_an_import_is_raised_as_it_is(
    load: Callable[[BaseException], Any], cls: Any
) -> None:
    function = load(error := cls(1, reason="two"))
    for _ in range(2):
        assert raised_by(function, 1) is error


@pytest.mark.row("A6")
@pytest.mark.parametrize(
    "cls",
    # not exceptions: pytest looks at parameters
    [errors.NoCause, errors.NoClass, errors.NoAttributes],
)
def test_an_exception_of_an_import_that_cannot_be_inspected_is_raised_all_the_same(
    load: Callable[[BaseException], Any], cls: type[BaseException]
) -> None:
    with errors.ShownAsText():
        function = load(error := cls())
        for _ in range(2):
            same = raised_by(function, 1) is error
            assert same


# -- an argument that cannot be unpickled ----------------------------------------------------------


class LonelyError(Exception):
    """To be known weakly."""


def test_an_exception_that_was_raised_for_an_item_is_in_no_cycle() -> None:
    error = LonelyError()
    known = weakref.ref(error)
    gc.disable()
    try:
        assert raised_by(functions.raise_error, error) is error
        del error
        assert known() is None
    finally:
        gc.enable()
