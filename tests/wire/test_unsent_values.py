"""An exception that holds what cannot be pickled: its type arrives, with stand-ins for that."""

from __future__ import annotations

import copy
import copyreg
import functools
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import exception_types as errors
from aiomultiprocess import ProxyException
from aiomultiprocess._wire.exceptions import dump_exception, load_exception, load_original
from aiomultiprocess._wire.unsent import Unsent


def travel(error: BaseException) -> Any:
    return load_exception(dump_exception(error, pickle.dumps), pickle.loads)


class Request:
    """What an exception may refer to."""

    def __init__(self, url: str, connection: Any) -> None:
        self.url = url
        self.connection = connection


def request() -> Request:
    return Request("http://here", threading.Lock())


class RequestError(Exception):
    """Like those of HTTP clients: it holds a request, which holds a connection."""

    def __init__(self, request: Request, *, status: int) -> None:
        super().__init__(request)
        self.request = request
        self.status = status

    def __str__(self) -> str:
        return f"{self.status} for {self.request.url}"


class ReducedError(RequestError):
    def __reduce__(self) -> Any:
        return functools.partial(type(self), status=self.status), (self.request,)


@pytest.mark.row("H116")
@pytest.mark.parametrize("cls", [RequestError, ReducedError])
def test_only_what_cannot_be_pickled_is_replaced_and_the_type_arrives(
    cls: type[RequestError],
) -> None:
    proxy = travel(cls(request(), status=404))
    with pytest.raises(cls):
        raise proxy
    original = proxy.__cause__
    assert type(original) is cls
    for error in (proxy, original):
        assert error.status == 404
        assert error.request is error.args[0]
        assert error.request.url == "http://here"
        assert type(error.request.connection) is Unsent
    assert str(original) == "404 for http://here"
    assert len(proxy.__notes__) == 1
    assert "Not all of it arrived: it held what cannot be pickled, lock (" in proxy.__notes__[0]


@pytest.mark.row("H116")
def test_a_stand_in_says_so_when_it_is_used() -> None:
    stand_in = travel(ValueError(threading.Lock())).args[0]
    assert repr(stand_in).startswith("<not sent: lock (")
    with pytest.raises(
        AttributeError, match=r"lock \(.* has no acquire here: it cannot be pickled"
    ):
        stand_in.acquire()
    with pytest.raises(TypeError):
        "name" in stand_in  # noqa: B015
    for same in (copy.copy(stand_in), copy.deepcopy(stand_in)):
        assert repr(same) == repr(stand_in)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", lambda: None),
        ValueError("bad", errors.BadSetstate()),
        errors.SeveralArguments(errors.BadSetstate(), "two", retry=True),  # type: ignore[arg-type]
        errors.Frozen(threading.Lock(), "two"),  # type: ignore[arg-type]
        errors.FrozenSlots(threading.Lock(), "two"),  # type: ignore[arg-type]
        OSError(2, threading.Lock()),
        RequestError(Request("here", errors.BadSetstate()), status=1),
        RequestError(type("Local", (), {})(), status=1),
        RequestError(request().connection.acquire, status=1),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.args[-1:]!r:.30}",
)
def test_what_cannot_be_pickled_or_rebuilt_may_be_anywhere(error: Exception) -> None:
    proxy = travel(error)
    assert isinstance(proxy, type(error))
    assert type(proxy.__cause__) is type(error)
    assert len(proxy.__notes__) == 1
    again = travel(proxy)  # from a pool within a worker
    assert isinstance(again, type(error))
    assert again.__notes__ == proxy.__notes__


class Connected(Request):
    """Its finalizer needs the connection."""

    def __del__(self) -> None:
        self.connection.release()


def test_an_object_with_a_finalizer_is_whole_or_is_replaced() -> None:
    lock = threading.Lock()
    lock.acquire()
    proxy = travel(RequestError(Connected("here", lock), status=1))
    assert type(proxy.request) is Unsent


def test_each_exception_of_a_chain_and_of_a_group_keeps_its_type() -> None:
    error = ExceptionGroup("group", [KeyError("key"), RequestError(request(), status=500)])
    error.__cause__ = RequestError(request(), status=501)
    proxy = travel(error)
    assert isinstance(proxy, ExceptionGroup)
    assert [type(member) for member in proxy.exceptions] == [KeyError, RequestError]
    assert proxy.exceptions[1].status == 500
    assert proxy.__cause__.__cause__.status == 501
    assert not hasattr(proxy, "__notes__")
    for part in (proxy.exceptions[1], proxy.__cause__.__cause__):
        assert "Not all of it arrived" in part.__notes__[0]


def test_the_note_of_stand_ins_is_behind_those_of_the_user() -> None:
    error = ValueError(threading.Lock())
    error.add_note("mind the gap")
    assert travel(error).__notes__[0] == "mind the gap"
    error.__notes__ = "no list"  # type: ignore[assignment]
    assert isinstance(travel(error), ValueError)


def test_many_stand_ins_are_counted() -> None:
    (note,) = travel(ValueError(*(errors.BadSetstate() for _ in range(9)))).__notes__
    assert note.endswith(" and 6 more.")


def test_who_gets_the_original_itself_gets_stand_ins_too() -> None:
    original: Any = load_original(dump_exception(RequestError(request(), status=404)))
    assert type(original) is RequestError
    assert original.status == 404
    assert "Not all of it arrived" in original.__notes__[0]


def test_a_type_that_cannot_be_found_arrives_as_text() -> None:
    local = type("Local", (RequestError,), {})
    proxy = travel(local(request(), status=404))
    assert type(proxy) is ProxyException
    assert "Only its text arrived" in proxy.__notes__[0]


# -- a reducer for all exceptions ------------------------------------------------------------------


def reduce_any(error: BaseException) -> Any:
    return (str, ("by the general way",))


@pytest.fixture
def _general_reducer() -> Iterator[None]:
    """What tblib does when dask, for example, imports it."""
    known = [BaseException, ValueError, RequestError, ReducedError]
    for cls in known:
        copyreg.pickle(cls, reduce_any)  # type: ignore[arg-type]
    yield
    for cls in known:
        del copyreg.dispatch_table[cls]


@pytest.mark.row("H117")
@pytest.mark.usefixtures("_general_reducer")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        ReducedError(Request("here", None), status=3),
        RequestError(request(), status=3),
        RequestError(Request("here", ValueError("within")), status=3),
    ],
    ids=["builtin", "reduced", "with a lock", "with another"],
)
def test_a_reducer_for_all_exceptions_is_not_used(error: Exception) -> None:
    proxy = travel(error)
    assert type(proxy.__cause__) is type(error)
    assert proxy.__cause__.__traceback__ is None
    if isinstance(error, RequestError):
        assert type(proxy.request.connection) in (type(None), Unsent, ValueError)
