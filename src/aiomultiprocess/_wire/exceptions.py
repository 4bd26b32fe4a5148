"""Exceptions that cross a process boundary.

    worker: dump_exception(exc) -> bytes -> parent: load_exception(bytes) -> the error to raise

The parent raises a *proxy*: a ProxyException whose text is the traceback from the worker. Where the
two types can be combined, the proxy is also an instance of the original's type, so that the
caller's `except ValueError` catches it. Its `__cause__` is the *original*, the exception that was
rebuilt in the parent. tracebacks.py makes the text; exception_parts.py takes one exception apart.

EXC-1  The text arrives whatever the exception contains. The rest may be lost: of an exception
    that cannot be pickled, or cannot be rebuilt, its type arrives with stand-ins for the values
    that are the reason (unsent.py); or, if that is not possible either, it becomes a plain
    ProxyException without a cause. A note says so.
EXC-2  An exception is rebuilt without a call of its `__init__`, whose arguments may differ from
    `args`. It is made from `args`, `__dict__`, slots, and what its builtin base class keeps in C.
    Only a type that defines `__reduce__` itself, or is in copyreg, is pickled its own way.
EXC-3  An exception travels as a flat list of nodes that refer to each other by index, so that no
    recursion walks its chain, however long or circular. Members of a group are before the group.
EXC-4  A type that does not derive from Exception, or that coroutines and generators treat
    specially, is never combined. Raised in the parent it would end the loop, or look like a
    cancellation of the caller.
EXC-5  A printed error shows the remote traceback once. Python prints the proxy with its text, so
    the original has no traceback. Where Python prints no text (SyntaxError), and where the caller
    gets the original itself (`load_original`), the original's chain ends in a RemoteTraceback.
    Notes are printed after the text, so they are moved to the proxy and are not in its text.
EXC-6  A reducer that copyreg has for BaseException too is not used. tblib, and dask with it, has
    one for every class of exceptions; its copies have tracebacks, whose frames refer to ours and so
    keep alive what the parent had in hand when it rebuilt them.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from ..types import ProxyException, TracebackStr, describe_error
from .exception_parts import (
    REMOTE,
    ExceptionParts,
    group_field,
    pickles_itself,
    put_together,
    reducers,
    take_apart,
)
from .tracebacks import RemoteTraceback, attributes_of, describe, field, notes_of

Dumps: TypeAlias = Callable[[Any], Any]
Loads: TypeAlias = Callable[[Any], Any]

#: What ends programs. In the parent it may be of a signal, and passes through the link (LINK-7).
INTERRUPTS: Final = (KeyboardInterrupt, SystemExit)
MAX_NODES = 1000  # exceptions in one message, with causes, contexts and members; the text has all

#: What Python prints between an exception and the one that it caused.
_CAUSED = """
The above exception was the direct cause of the following exception:
"""


class Stage:
    """The step of a task at which an error arose that its function did not raise.

    Plain numbers: each worker imports this module at its start, and an enum takes long to make.
    """

    FUNCTION: Final = 0  # the function was unpickled in the worker
    ARGUMENT: Final = 1  # the item was unpickled in the worker
    RESULT: Final = 2  # the result was pickled in the worker
    SENDING: Final = 3  # the result was sent to the parent


def dump_exception(
    exc: BaseException,
    dumps: Dumps = pickle.dumps,
    stage: int | None = None,
    detail: str = "",
) -> bytes:
    """Make bytes of `exc` and its chain. It never raises because of `exc` (EXC-1).

    `stage` is the step at which `exc` arose if the task's function did not raise it. `detail` is
    what the parent's message says about that step.
    """
    dumper = _Dumper()
    try:
        nodes, root = dumper.dump(exc)
    except BaseException:  # noqa: BLE001 - attributes of an exception may run any code; EXC-1
        nodes, root = [], None
    payload: bytes = dumps((*describe(exc), nodes, root, dumper.refusal, stage, detail))
    return payload


def load_exception(payload: Any, loads: Loads = pickle.loads) -> ProxyException:
    """The error to raise here for an exception that a worker has dumped."""
    return _raisable(_Message(*loads(payload)))


def original_of(proxy: BaseException) -> BaseException:
    """The original of a proxy; `proxy` itself if the original could not be rebuilt."""
    cause: BaseException | None = field("__cause__").__get__(proxy)
    return proxy if cause is None else cause


def unwrap(proxy: BaseException) -> BaseException:
    """The original of a proxy with its notes and traceback (EXC-5); `proxy` if it has none."""
    original = original_of(proxy)
    if original is not proxy:
        notes = attributes_of(proxy).pop("__notes__", None)
        if notes is not None:
            attributes_of(original)["__notes__"] = notes
        if not issubclass(type(original), SyntaxError):  # which has it already
            _end_chain(original, RemoteTraceback(str(proxy)))
    return original


def twin_of(error: BaseException) -> BaseException:
    """An error like this one, without a traceback; `error` itself if there can be none.

    Raised, it takes the references to the frames that it goes through, and `error` has none.
    """
    cls = type(error)
    try:
        is_ours = issubclass(cls, ProxyException) or cls.__module__ == ProxyException.__module__
        if not is_ours and pickles_itself(cls):
            return error
        twin: BaseException = put_together(cls, take_apart(error))
    except INTERRUPTS:
        raise
    except BaseException:  # noqa: BLE001 - its type may run any code
        return error
    attributes = attributes_of(twin)
    if REMOTE in attributes_of(error):
        attributes[REMOTE] = attributes_of(error)[REMOTE]
    if notes := notes_of(error):
        attributes["__notes__"] = notes
    for name in ("__cause__", "__context__", "__suppress_context__"):  # the first sets the last
        field(name).__set__(twin, field(name).__get__(error))
    return twin


def load_answer(payload: Any, loads: Loads = pickle.loads) -> ProxyException | Failure:
    """The error to raise for a task's exception; a `Failure` if it was dumped with a stage."""
    message = _Message(*loads(payload))
    if message.stage is None:
        return _raisable(message)
    return Failure(message.text, _rebuilt(message)[0], message.stage, message.detail)


def load_original(payload: Any, loads: Loads = pickle.loads) -> BaseException:
    """The original, with its remote traceback; a ProxyException if it cannot be rebuilt."""
    message = _Message(*loads(payload))
    original, refusal = _rebuilt(message)
    if original is None:
        return _text_only(message, refusal)
    _end_chain(original, RemoteTraceback(message.text))
    return original


class Failure:
    """An error that was dumped with a stage. The parent adds which item it concerns."""

    def __init__(
        self, text: TracebackStr, original: BaseException | None, stage: int, detail: str
    ) -> None:
        self.text = text
        self.original = original
        self.stage = stage
        self.detail = detail

    def noted(self, message: str) -> ProxyException:
        """The error as a proxy of its own type, with `message` below its traceback."""
        text = f"{self.text}\n{message}"
        return ProxyException(text) if self.original is None else _proxy_of(self.original, text)

    def replaced(self, error: Exception) -> ProxyException:
        """A proxy of `error`, which has this error as its cause."""
        error.__cause__ = self.original
        last = traceback.format_exception_only(error)[-1].rstrip("\n")
        return _proxy_of(error, f"{self.text}\n{_CAUSED}\n{last}")


class _Message:
    """What travels of an exception, as a plain tuple in this order."""

    def __init__(
        self,
        text: TracebackStr,
        notes: list[str],
        nodes: list[tuple[Any, ...]],
        root: int | None,  # the node of the exception itself, None if it could not be pickled
        refusal: str | None = None,  # why there is no root
        stage: int | None = None,
        detail: str = "",
    ) -> None:
        self.text, self.notes = text, notes
        self.nodes, self.root, self.refusal = nodes, root, refusal
        self.stage, self.detail = stage, detail


# -- a chain of exceptions <-> nodes ---------------------------------------------------------------


class Node(NamedTuple):
    """One exception of a message (EXC-3); it travels as a plain tuple."""

    pickled: bytes
    members: list[int] | None  # indices of a group's members; None if it is no group
    cause: int | None = None
    context: int | None = None
    suppress_context: bool = False
    note: str | None = None  # which values have stand-ins (EXC-1)


Nodes: TypeAlias = list[tuple[Any, ...]]


class _Dumper:
    """Makes the nodes of an exception and of all exceptions that it refers to."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._rebuilt: list[BaseException] = []
        self._seen: dict[int, int | None] = {}
        self._unlinked: list[tuple[int, BaseException]] = []
        self.refusal: str | None = None  # why the last exception without a node has none

    def dump(self, exc: BaseException) -> tuple[Nodes, int | None]:
        """The nodes, and the index of the node of `exc`."""
        root = self._visit(exc)
        while self._unlinked:
            index, source = self._unlinked.pop()
            self._nodes[index] = self._nodes[index]._replace(
                cause=self._visit(field("__cause__").__get__(source)),
                context=self._visit(field("__context__").__get__(source)),
                suppress_context=field("__suppress_context__").__get__(source),
            )
        return [tuple(node) for node in self._nodes], root

    def _visit(self, exc: BaseException | None) -> int | None:
        """The index of the node of `exc`; None if it cannot be made, or there are too many."""
        if exc is None or isinstance(exc, RemoteTraceback):
            return None
        if id(exc) not in self._seen:
            self._seen[id(exc)] = None  # for a group that contains itself
            self._seen[id(exc)] = self._add(exc) if len(self._nodes) < MAX_NODES else None
        return self._seen[id(exc)]

    def _add(self, exc: BaseException) -> int | None:
        try:
            node, rebuilt = self._node_of(exc)
        except BaseException as error:  # noqa: BLE001 - it runs the user's pickling; EXC-1
            self.refusal = describe_error(error)
            return None
        index = len(self._nodes)
        self._nodes.append(node)
        self._rebuilt.append(rebuilt)
        # a proxy has the chain of its original
        source = _remote_of(exc).original if isinstance(exc, _Combined) else exc
        self._unlinked.append((index, source))
        return index

    def _node_of(self, exc: BaseException) -> tuple[Node, BaseException]:
        """A node, and the exception rebuilt from it, which shows that it can be rebuilt (EXC-1)."""
        members = self._members(exc) if isinstance(exc, BaseExceptionGroup) else None
        recipe = _recipe(exc, group=members is not None)
        try:
            node = Node(_pickled(recipe), members)
            if members is None and _is_plain(exc):
                return node, exc
            return node, _rebuild(node, self._rebuilt)
        except Exception as error:  # noqa: BLE001 - what the user's pickling raises
            return self._node_with_stand_ins(recipe, members, error)

    def _node_with_stand_ins(
        self, recipe: object, members: list[int] | None, refusal: Exception
    ) -> tuple[Node, BaseException]:
        """The same without what cannot travel; raises `refusal` if that is not possible."""
        from . import unsent  # here: few exceptions need it

        for rebuilt in (False, True):
            try:
                pickled, note = unsent.dumps(recipe, rebuilt=rebuilt)
                node = Node(pickled, members, note=note)
                return node, _rebuild(node, self._rebuilt)
            except Exception:  # noqa: BLE001 - as above; the first refusal says why
                continue
        raise refusal

    def _members(self, group: BaseExceptionGroup[BaseException]) -> list[int]:
        exceptions = group_field("exceptions").__get__(group)
        members = [index for index in map(self._visit, exceptions) if index is not None]
        if len(members) != len(exceptions):
            raise ValueError("members of the group cannot be pickled: only its text is complete")
        return members


#: Values that can be rebuilt wherever they can be pickled.
_PLAIN: Final = frozenset({bool, bytes, float, int, str, type(None)})


def _is_plain(exc: BaseException) -> bool:
    """Whether an exception can surely be rebuilt, as most can: a builtin one of plain values."""
    return (
        type(exc).__module__ == "builtins"
        and not attributes_of(exc).keys() - {"__notes__"}
        and _PLAIN.issuperset(map(type, field("args").__get__(exc)))
    )


def _pickled(recipe: object) -> bytes:
    try:
        return _dumps(recipe)
    except Exception:
        from .serializing import fallback  # here: SERIAL-1

        serializer = fallback()
        if serializer is None:
            raise
        return pickle.dumps(serializer.seal(recipe), pickle.HIGHEST_PROTOCOL)


def _dumps(recipe: object) -> bytes:
    table = reducers()
    if table is copyreg.dispatch_table:
        return pickle.dumps(recipe, pickle.HIGHEST_PROTOCOL)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = table  # EXC-6
    pickler.dump(recipe)
    return file.getvalue()


def _recipe(exc: BaseException, *, group: bool) -> object:
    """What is pickled: the exception, if its type pickles itself (EXC-2), or its parts."""
    cls = _original_type(type(exc))
    if pickles_itself(cls):
        return _remote_of(exc).original if isinstance(exc, _Combined) else exc
    parts = take_apart(exc)
    if group:
        message, members = parts.base_args
        args = None if _are_members(members, parts.args) else parts.args
        parts = parts._replace(args=args, base_args=(message,))
    return cls, tuple(parts)


def _are_members(members: Sequence[Any], args: Any) -> bool:
    """Whether a group has the `args` that its builtin class sets: message and members."""
    return (
        len(args) == 2
        and isinstance(args[1], Sequence)
        and list(map(id, args[1])) == list(map(id, members))
    )


def _rebuild(node: Node, earlier: list[Any]) -> BaseException:
    """The exception of a node. Raises what the user's classes raise."""
    recipe = pickle.loads(node.pickled)
    if isinstance(recipe, tuple):
        cls, parts = recipe[0], ExceptionParts(*recipe[1])
        if node.members is not None:
            members = [earlier[index] for index in node.members]
            parts = parts._replace(base_args=(*parts.base_args, members))
        recipe = put_together(cls, parts)
    if not isinstance(recipe, BaseException):
        raise TypeError(f"an exception was unpickled as {type(recipe).__name__}")
    return recipe


def _rebuilt(message: _Message) -> tuple[BaseException | None, str | None]:
    """The original of a message with its chain; or None, and why it cannot be rebuilt."""
    if message.root is None:
        return None, message.refusal
    refusals: dict[int, str] = {}
    return _build_up(message.nodes, refusals)[message.root], refusals.get(message.root)


def _build_up(nodes: Nodes, refusals: dict[int, str]) -> list[BaseException | None]:
    """The exceptions of `nodes`; None, and a refusal, for one that cannot be rebuilt."""
    built: list[Any] = []
    for index, node in enumerate(map(Node._make, nodes)):
        try:
            built.append(_rebuild(node, built))
        except BaseException as error:  # noqa: BLE001 - as in _Dumper._add
            built.append(None)
            refusals[index] = describe_error(error)
    for exc, node in zip(built, map(Node._make, nodes), strict=True):
        if exc is not None:
            field("__context__").__set__(exc, _at(built, node.context))
            field("__cause__").__set__(exc, _at(built, node.cause))
            field("__suppress_context__").__set__(exc, node.suppress_context)
            if node.note is not None:
                append_note(exc, node.note)
    return built


def append_note(exc: BaseException, note: str) -> None:
    """As `add_note`, without code of the exception; nothing if its notes are no list."""
    attributes = attributes_of(exc)
    if issubclass(type(attributes.get("__notes__", [])), list):
        attributes["__notes__"] = [*notes_of(exc), note]


def _at(built: list[Any], index: int | None) -> BaseException | None:
    return None if index is None else built[index]


# -- what is raised --------------------------------------------------------------------------------


class _Remote(NamedTuple):
    text: TracebackStr
    original: BaseException  # also the `__cause__`, unless the user raises the proxy `from` another


class _Combined(ProxyException):
    """The first base of a combined class, so that it decides how the error behaves.

    It hides the original's `__str__`, `__setattr__`, `__eq__`, `__hash__` and `__reduce__`. With
    those of a frozen dataclass, for example, contextlib could not set `__traceback__`.
    """

    __setattr__ = BaseException.__setattr__
    __delattr__ = BaseException.__delattr__
    __eq__ = BaseException.__eq__
    __hash__ = BaseException.__hash__
    __repr__ = BaseException.__repr__

    def __init_subclass__(cls) -> None:
        """Keep the original's `__init_subclass__` from seeing the combined class."""

    def __str__(self) -> str:
        return _remote_of(self).text

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (str(self), *_Dumper().dump(self))

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return self.__reduce__()


def _remote_of(proxy: ProxyException) -> _Remote:
    remote: _Remote = attributes_of(proxy)[REMOTE]
    return remote


def _revive(text: TracebackStr, nodes: Nodes, root: int | None) -> ProxyException:
    """A copy of a combined exception."""
    return _raisable(_Message(text, [], nodes, root))


def _raisable(message: _Message) -> ProxyException:
    original, refusal = _rebuilt(message)
    if original is None:
        return _text_only(message, refusal)
    return _proxy_of(original, message.text)


def _text_only(message: _Message, refusal: str | None) -> ProxyException:
    proxy = ProxyException(message.text)
    notes = message.notes
    if refusal is not None:
        notes.append(
            f"Only its text arrived: the exception cannot be pickled and rebuilt ({refusal}). Its "
            "class must be importable in both processes, and what it holds must be picklable."
        )
    if notes:
        proxy.__notes__ = notes
    return proxy


def _proxy_of(original: BaseException, text: TracebackStr) -> ProxyException:
    combined = _combine(original, text)  # which may be false: it has the methods of its type
    proxy = ProxyException(text) if combined is None else combined
    if issubclass(type(proxy), SyntaxError):  # EXC-5
        _end_chain(original, RemoteTraceback(text))
    if notes_of(original):
        attributes_of(proxy)["__notes__"] = attributes_of(original).pop("__notes__")
    field("__cause__").__set__(proxy, original)
    return proxy


def _combine(original: BaseException, text: TracebackStr) -> ProxyException | None:
    """An error that is of the type of `original` and a ProxyException; None if there is none."""
    original_type: Any = type(original)
    try:
        cls = _combined_type(original_type)
        if cls is None:
            return None
        proxy: ProxyException = put_together(cls, take_apart(original))
        attributes_of(proxy)[REMOTE] = _Remote(text, original)
    except INTERRUPTS:
        raise
    except BaseException:  # noqa: BLE001 - its type may run any code; EXC-1
        return None
    return proxy


@functools.lru_cache(maxsize=256)
def _combined_type(cls: Any) -> type[ProxyException] | None:
    if cls is ProxyException or not _may_be_raised(cls):
        return None
    bases: tuple[type, ...] = (_Combined, cls)
    if cls is Exception:  # a base of _Combined already
        bases = (_Combined,)
    namespace = {"__module__": ProxyException.__module__, "_original": cls}
    if issubclass(cls, BaseExceptionGroup):
        namespace["derive"] = _derive
    name = f"{ProxyException.__name__}({cls.__name__})"
    try:
        return types.new_class(name, bases, exec_body=lambda body: body.update(namespace))
    except INTERRUPTS:
        raise
    except BaseException:  # noqa: BLE001 - layouts conflict, or a metaclass refuses: EXC-1
        return None


def _derive(self: Any, excs: Sequence[BaseException]) -> Any:
    """The part of a group that `except*` or `split` takes: it keeps the remote traceback."""
    part = _original_type(type(self)).derive(self, excs)
    combined = _combine(part, str(self))
    return part if combined is None else combined


def _may_be_raised(cls: type[BaseException]) -> bool:
    """Whether an error of this type may be raised in the parent (EXC-4)."""
    return issubclass(cls, Exception) and not issubclass(cls, (StopIteration, StopAsyncIteration))


def _original_type(cls: type[Any]) -> type[Any]:
    original: type[Any] = vars(cls)["_original"] if issubclass(cls, _Combined) else cls
    return original


def _end_chain(exc: BaseException, end: RemoteTraceback) -> None:
    """Append `end` to the chain that Python prints before `exc`."""
    seen = {id(exc)}
    while (deeper := _printed_before(exc)) is not None and id(deeper) not in seen:
        exc = deeper
        seen.add(id(exc))
    field("__cause__").__set__(exc, end)


def _printed_before(exc: BaseException) -> BaseException | None:
    cause: BaseException | None = field("__cause__").__get__(exc)
    if cause is None and not field("__suppress_context__").__get__(exc):
        cause = field("__context__").__get__(exc)
    return cause
