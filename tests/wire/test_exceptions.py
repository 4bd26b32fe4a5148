"""Exceptions across the process boundary: the text always arrives, the type where it can."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import copyreg
import cProfile
import gc
import pickle
import pstats
import traceback
from typing import Any

import pytest

import exception_types as errors
from aiomultiprocess import (
    PoolTerminatedError,
    ProxyException,
    TaskTimeoutError,
    WorkerLostError,
)
from aiomultiprocess._wire.exceptions import (
    MAX_NODES,
    Failure,
    Stage,
    dump_exception,
    load_exception,
    load_original,
    twin_of,
)
from aiomultiprocess._wire.tracebacks import RemoteTraceback


@pytest.fixture(autouse=True)
def _only_our_reducers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what tblib does to all classes of exceptions: tests of clusters import it with dask."""
    table = copyreg.dispatch_table
    for cls in [cls for cls in table if issubclass(cls, BaseException)]:
        monkeypatch.delitem(table, cls)
    monkeypatch.setitem(table, errors.Registered, errors.reduce_registered)


UNICODE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def slotted() -> errors.Slotted:
    error = errors.Slotted(2, "no such thing", "here")
    error.extra = "extra"  # type: ignore[attr-defined]
    error.hide("hidden")
    return error


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """The error with a traceback, raised while another one is handled."""
    try:
        try:
            raise LookupError("context")
        except LookupError:
            if cause is None:
                raise error  # noqa: B904 - so that it has a context and no cause
            raise error from cause
    except BaseException as caught:  # noqa: BLE001 - the one we raised
        return caught


def raised_during(context: BaseException) -> BaseException:
    error = ValueError("bad")
    error.__context__ = context
    return error


def travel(error: BaseException) -> ProxyException:
    return load_exception(dump_exception(error, pickle.dumps), pickle.loads)


COMBINED: list[Exception] = [
    Exception("plain"),
    ValueError("bad"),
    ValueError(),
    KeyError("key"),
    FileNotFoundError(2, "No such file", "name"),
    UNICODE,
    SyntaxError("bad", ("file", 1, 2, "text")),
    ImportError("no", name="module", path="path"),
    AttributeError("no", name="attribute"),
    MemoryError("m"),
    RecursionError("r"),
    TimeoutError(),
    BlockingIOError(11, "again", 5),
    errors.SeveralArguments(1, "two", retry=True),
    errors.Counted("c"),
    errors.Frozen(1, reason="two"),
    errors.FrozenSlots(1, reason="two"),
    slotted(),
    errors.OwnStr("x"),
    errors.BadStr("x"),
    errors.VeryBadStr("x"),
    errors.OwnReduce("x"),
    errors.Registered(None),
    errors.Group([ValueError(1), errors.Group([KeyError(2)], 4)], 3),
    ExceptionGroup("group", [ValueError(1), errors.SeveralArguments(1, "two", retry=True)]),
    errors.NoSubclasses("x"),
    errors.Concrete("x"),
    errors.WithType[int]("x"),
    errors.TwoBases(2, "no such thing", "here"),
    WorkerLostError("task", 5, -9),
]

PLAIN: list[BaseException] = [
    SystemExit(3),
    errors.ExitSubclass(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError("stop"),
    StopIteration(5),
    StopAsyncIteration(),
    BaseExceptionGroup("group", [KeyboardInterrupt(), ValueError(1)]),
    ProxyException("as 0.9.1 raised it"),
    errors.Refusing("x"),
]

LOST: list[BaseException] = [
    errors.BadReduce("x"),
    errors.VeryBadReduce("x"),
    errors.ReducesToText("x"),
    ExceptionGroup("group", [errors.BadReduce("x")]),
    type("Local", (Exception,), {})("x"),
]


def name_of(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", COMBINED, ids=name_of)
def test_the_raised_error_is_of_the_original_type_too(error: Exception) -> None:
    proxy = travel(raised(error))
    assert isinstance(proxy, ProxyException)
    assert isinstance(proxy, type(error))
    assert type(proxy.__cause__) is type(error)
    with pytest.raises(type(error)):
        raise proxy


@pytest.mark.parametrize("error", PLAIN, ids=name_of)
def test_an_error_that_must_not_be_raised_here_is_the_cause_of_a_plain_proxy(
    error: BaseException,
) -> None:
    proxy = travel(raised(error))
    assert type(proxy) is ProxyException
    assert type(proxy.__cause__) is type(error)
    if not isinstance(error, BaseExceptionGroup):
        assert proxy.__cause__.args == error.args


@pytest.mark.row("A6")
@pytest.mark.parametrize("error", LOST, ids=name_of)
def test_an_error_that_cannot_be_rebuilt_arrives_as_text(error: BaseException) -> None:
    proxy = travel(raised(error))
    assert type(proxy) is ProxyException
    assert proxy.__cause__ is None


@pytest.mark.row("A6")
@pytest.mark.parametrize("cls", errors.UNSEEN)
def test_an_error_that_cannot_be_inspected_arrives_at_least_as_text(
    cls: type[BaseException],
) -> None:
    with errors.ShownAsText():
        for proxy in (travel(cls("x")), travel(raised(cls("x")))):
            assert issubclass(type(proxy), ProxyException)
            assert cls.__name__ in str(proxy)


@pytest.mark.row("A6")
@pytest.mark.parametrize("cls", errors.UNSEEN)
def test_an_error_that_cannot_be_inspected_may_be_in_the_chain_of_another(
    cls: type[BaseException],
) -> None:
    with errors.ShownAsText():
        for error in (raised(ValueError("bad"), cause=cls("x")), raised_during(cls("x"))):
            proxy = travel(error)
            assert isinstance(proxy, ProxyException)
            assert "ValueError" in str(proxy)


@pytest.mark.row("A6")
def test_an_error_that_cannot_be_inspected_arrives_as_no_more_than_text() -> None:
    with errors.ShownAsText():
        assert type(travel(raised(errors.NoAttributes("x")))) is ProxyException


@pytest.mark.parametrize("error", [*COMBINED, *PLAIN, *LOST], ids=name_of)
def test_str_is_the_remote_traceback(error: BaseException) -> None:
    text = str(travel(raised(error)))
    assert type(error).__name__ in text
    assert "raise error" in text
    assert "LookupError: context" in text
    if type(error).__str__ is BaseException.__str__:
        assert text.rstrip().endswith(str(error))


@pytest.mark.parametrize("error", [*COMBINED, *PLAIN], ids=name_of)
def test_the_error_pickles_and_copies(error: BaseException) -> None:
    proxy = travel(raised(error))
    for again in (pickle.loads(pickle.dumps(proxy)), copy.copy(proxy), copy.deepcopy(proxy)):
        assert type(again) is type(proxy)
        assert str(again) == str(proxy)
        if type(proxy) is not ProxyException:
            assert type(again.__cause__) is type(error)
            assert again.args == proxy.args or isinstance(error, errors.OwnReduce | ExceptionGroup)


@pytest.mark.parametrize("error", COMBINED, ids=name_of)
def test_the_error_travels_on_from_process_to_process(error: BaseException) -> None:
    further = travel(raised(travel(raised(error))))
    assert type(further) is type(travel(error))
    assert type(further.__cause__) is type(error)
    assert str(further).count("raise error") >= 2


@pytest.mark.parametrize("error", COMBINED, ids=name_of)
def test_the_error_travels_on_whatever_it_is_raised_from(error: BaseException) -> None:
    further = travel(raised(travel(error), cause=KeyError("another")))
    assert type(further.__cause__) is type(error)


def test_fields_arrive_without_a_call_of_the_constructor() -> None:
    proxy: Any = travel(errors.SeveralArguments(1, "two", retry=True))
    assert (proxy.code, proxy.reason, proxy.retry) == (1, "two", True)
    assert proxy.args == proxy.__cause__.args == ("told otherwise",)
    counted = errors.Counted("c")
    made = errors.Counted.made
    travel(counted)
    assert errors.Counted.made == made


@pytest.mark.row("A6")
@pytest.mark.parametrize("cls", [errors.Frozen, errors.FrozenSlots])
def test_a_frozen_dataclass_can_be_raised_and_passed_on(cls: Any) -> None:
    proxy: Any = travel(cls(1, reason="two"))
    assert (proxy.code, proxy.reason) == (1, "two")
    assert proxy.__cause__ == cls(1, reason="two")

    def pass_on() -> None:
        with contextlib.ExitStack() as stack:
            stack.push(lambda *exc: None)  # sets __context__, which the original would refuse
            raise proxy

    with pytest.raises(cls):
        pass_on()


def test_slots_and_fields_that_c_keeps_arrive() -> None:
    proxy: Any = travel(slotted())
    assert (proxy.errno, proxy.strerror, proxy.filename) == (2, "no such thing", "here")
    assert (proxy.extra, proxy.hidden()) == ("extra", "hidden")
    assert not hasattr(proxy, "unset")
    unicode: Any = travel(UNICODE)
    assert (unicode.start, unicode.object) == (0, b"\xff")
    imported: Any = travel(ImportError("no", name="module", path="path"))
    assert (imported.name, imported.path) == ("module", "path")


def test_a_type_with_its_own_way_to_pickle_goes_that_way() -> None:
    proxy: Any = travel(errors.OwnReduce("x"))
    assert proxy.args == ("x rebuilt",)
    assert not proxy.lock.locked()
    registered: Any = travel(errors.Registered("anything"))
    assert registered.lock == "registered"


@pytest.mark.row("A6")
def test_a_group_is_rebuilt_with_its_members_and_can_be_split() -> None:
    group = errors.Group([ValueError(1), errors.Group([KeyError(2), OSError(3)], 4)], 3)
    proxy: Any = travel(raised(group))
    assert proxy.code == proxy.__cause__.code == 3
    assert repr(proxy.exceptions) == repr(group.exceptions)
    matched, rest = proxy.split(KeyError)
    assert repr(matched.exceptions[0].exceptions) == "(KeyError(2),)"
    assert isinstance(rest.exceptions[0], ValueError)
    found = []

    def handle_some() -> None:
        try:
            raise proxy
        except* ValueError as some:
            found.append(repr(some.exceptions))

    with pytest.raises(ExceptionGroup) as left:
        handle_some()
    assert found == ["(ValueError(1),)"]
    assert left.value.split(ValueError)[0] is None


def test_the_chain_of_the_original_survives() -> None:
    original: Any = travel(raised(ValueError("bad"), cause=KeyError("deeper"))).__cause__
    assert repr(original.__cause__) == "KeyError('deeper')"
    assert repr(original.__context__) == "LookupError('context')"
    assert original.__cause__.__cause__ is None


def test_the_chain_of_an_original_that_is_given_away_alone_ends_in_the_remote_traceback() -> None:
    original: Any = load_original(
        dump_exception(raised(ValueError("bad"), cause=KeyError("deeper")))
    )
    assert type(original) is ValueError
    assert repr(original.__cause__) == "KeyError('deeper')"
    assert isinstance(original.__cause__.__cause__, RemoteTraceback)
    assert "KeyError: 'deeper'" in str(original.__cause__.__cause__)


def test_a_context_without_a_cause_survives() -> None:
    error = ValueError("bad")
    error.__context__ = LookupError("context")
    original: Any = travel(error).__cause__
    assert repr(original.__context__) == "LookupError('context')"
    assert original.__cause__ is None


def test_a_chain_is_cut_where_it_cannot_be_pickled() -> None:
    original: Any = travel(raised(ValueError("bad"), cause=errors.BadReduce("x"))).__cause__
    assert repr(original) == "ValueError('bad')"
    assert original.__cause__ is None


def test_notes_arrive() -> None:
    error = ValueError("bad")
    error.add_note("mind the gap")
    proxy = travel(error)
    assert proxy.__notes__ == ["mind the gap"]
    assert "mind the gap" not in str(proxy)  # as with any exception
    assert travel(raised(proxy)).__notes__ == ["mind the gap"]


@pytest.mark.row("A6")
def test_a_chain_of_ten_thousand_arrives_cut_short() -> None:
    error = ValueError(0)
    for number in range(1, 10_001):
        error, cause = ValueError(number), error
        error.__cause__ = cause
    proxy = travel(error)
    assert isinstance(proxy, ValueError)
    assert "ValueError: 0\n" in str(proxy)
    length, link = 0, proxy.__cause__
    while isinstance(link, ValueError):
        length, link = length + 1, link.__cause__
    assert length == MAX_NODES
    assert link is None


def test_a_circle_of_causes_arrives() -> None:
    error, other = ValueError("one"), KeyError("other")
    error.__cause__, other.__cause__ = other, error
    original: Any = travel(error).__cause__
    assert repr(original) == "ValueError('one')"
    assert repr(original.__cause__) == "KeyError('other')"


@pytest.mark.row("A6")
def test_a_deep_nest_of_groups_arrives_at_least_as_text() -> None:
    error: Exception = ValueError("innermost")
    for _ in range(5000):
        error = ExceptionGroup("nest", [error])
    assert str(travel(error))


def test_equal_types_share_one_combined_class() -> None:
    assert type(travel(ValueError(1))) is type(travel(ValueError(2)))
    assert type(travel(ValueError(1))).__name__ == "ProxyException(ValueError)"


def test_printing_shows_where_it_was_raised() -> None:
    shown = "".join(traceback.format_exception(travel(raised(ValueError("bad")))))
    assert "ProxyException(ValueError): Traceback (most recent call last):" in shown


def test_repr_and_equality_do_not_depend_on_the_original() -> None:
    proxy = travel(raised(errors.Frozen(1, "two")))
    assert repr(proxy) == "ProxyException(Frozen)(1, 'two')"
    assert proxy != travel(raised(errors.Frozen(1, "two")))
    assert len({proxy}) == 1


async def test_the_error_can_be_raised_through_futures_and_tasks() -> None:
    for error in (*COMBINED, *PLAIN):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(travel(raised(error)))
        with pytest.raises(ProxyException):
            await future


def test_an_ordinary_error_is_cheap() -> None:
    error = raised(ValueError("bad"))
    travel(error)  # what the first one imports and reads does not count
    profile = cProfile.Profile()
    profile.runcall(travel, error)
    assert pstats.Stats(profile).total_calls < 2000  # 577 on 3.11, 782 on 3.15


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-9, "worker process 5 was killed by SIGKILL during f"),
        (-64, "worker process 5 was killed by "),
        (7, "worker process 5 exited with code 7 during f"),
        (None, "worker process 5 ended, and another part of the program took its exit code,"),
    ],
)
def test_the_loss_of_a_worker_says_what_is_known(exitcode: int | None, words: str) -> None:
    error = WorkerLostError("f", 5, exitcode)
    assert str(error).startswith(words)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.task, again.pid, again.exitcode, again.signal) == (
        "f",
        5,
        exitcode,
        error.signal,
    )


def timed_out() -> TaskTimeoutError:
    return TaskTimeoutError("fetch", 0.5, killed=True)


TWINS = [
    pytest.param(lambda: load_exception(dump_exception(slotted())), id="proxy"),
    pytest.param(lambda: load_exception(dump_exception(UNICODE)), id="proxy of a builtin"),
    pytest.param(
        lambda: load_exception(dump_exception(ExceptionGroup("two", [UNICODE, KeyError(1)]))),
        id="group",
    ),
    pytest.param(lambda: WorkerLostError("the item", 7, -9), id="lost"),
    pytest.param(timed_out, id="timed out"),
    pytest.param(lambda: PoolTerminatedError("the pool was terminated"), id="terminated"),
    pytest.param(lambda: OSError(2, "no such thing", "here"), id="builtin"),
]


@pytest.mark.row("H231")
@pytest.mark.parametrize("make", TWINS)
def test_a_twin_is_the_same_error_without_a_traceback(make: Any) -> None:
    error = raised(make(), KeyError("cause"))
    error.add_note("a note")
    twin = twin_of(error)
    assert twin is not error
    assert twin.__traceback__ is None
    assert (type(twin), str(twin), twin.args) == (type(error), str(error), error.args)
    assert {**vars(twin)} == {**vars(error)}
    assert twin.__cause__ is error.__cause__
    assert (twin.__context__, twin.__suppress_context__) == (error.__context__, True)
    twin.add_note("another")
    assert error.__notes__ == ["a note"]
    assert str(twin_of(twin)) == str(error)
    assert type(pickle.loads(pickle.dumps(twin))) is type(error)


def test_an_error_that_pickles_itself_has_no_twin() -> None:
    error = errors.Registered("as it is")
    assert twin_of(error) is error


@pytest.mark.row("H233")
def test_an_error_whose_class_cannot_be_hashed_is_not_combined() -> None:
    class Comparable(type):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(cls, other: object) -> bool:
            return cls is other

    class Error(Exception, metaclass=Comparable):
        pass

    proxy = Failure("the traceback", Error("why"), Stage.ARGUMENT, "").noted("the message")
    assert type(proxy) is ProxyException
    assert str(proxy) == "the traceback\nthe message"
    del Error, proxy
    gc.collect()  # who walks all classes of exceptions, as distributed does, hashes them
