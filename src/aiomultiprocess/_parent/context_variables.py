"""Context variables of the submitter, in the parent; the worker's side has the same name.

`ContextEngine` captures the values at each call and stores them in the options of its tasks;
`ContextQueue` sends them before the chunks of these tasks. Pools without `contextvars` use the base
classes, and pay nothing.

CAPTURE-1  Tasks see the values that their submitter has at the call of `map`, `starmap` or `apply`,
    or at the first step of a stream.
    Several `apply` share a `CallQueue` only if all values are the same bytes.
CAPTURE-2  A context travels to a worker in a CONTEXT frame, and is that of all chunks behind it
    until the next such frame.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterable, Callable, Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from .. import _accel
from .._arguments import DEFAULT_OPTIONS, TaskOptions
from .._processes.context_variables import NamedVariable
from .._wire import sharing
from .._wire.frames import Kind, Mode, PayloadTooLargeError
from .._wire.tracebacks import without_our_frames
from ..types import describe_error, shown
from .engine import CallT, Engine
from .feed import Handles, TaskOwner
from .job import Job
from .queue import Queue
from .stream_source import StreamSource

if TYPE_CHECKING:
    from .worker import PoolWorker


class ContextQueue(Queue):
    """A queue that sends the context of a chunk before it."""

    def _send_chunk(
        self, worker: PoolWorker, owner: TaskOwner, handles: Handles, items: list[Any]
    ) -> int:
        context = owner.options.context
        if context is not None and context != worker.context:  # CAPTURE-2
            try:
                worker.link.send(Kind.CONTEXT, payload=[context])
            except (MemoryError, PayloadTooLargeError) as refusal:
                return self._send_alone(worker, owner, handles, items, refusal)
            worker.context = context
        return super()._send_chunk(worker, owner, handles, items)


class ContextEngine(Engine):
    """An engine whose tasks see the submitter's values of `variables`."""

    queue_class = ContextQueue

    def __init__(self, variables: tuple[NamedVariable, ...], *args: Any) -> None:
        super().__init__(*args)
        self._variables = [named.variable for named in variables]

    def submit_map(
        self,
        func: Callable[..., Any],
        mode: Mode,
        iterable: Iterable[Any] | AsyncIterable[Any],
        options: TaskOptions,
        **reading: Any,
    ) -> Job:
        return super().submit_map(func, mode, iterable, self._capture(options), **reading)

    def submit_call(
        self,
        kind: type[CallT],
        pool: object,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        options: TaskOptions = DEFAULT_OPTIONS,
    ) -> CallT:
        return super().submit_call(kind, pool, func, args, kwds, self._capture(options))

    def submit_stream(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        ahead: int,
        options: TaskOptions,
    ) -> StreamSource:
        return super().submit_stream(func, args, kwds, ahead, self._capture(options))

    def options_from_outside(self) -> TaskOptions:
        return self._capture(DEFAULT_OPTIONS)

    def _capture(self, options: TaskOptions) -> TaskOptions:
        """CAPTURE-1: the options with the caller's values; PicklingError names the variable."""
        context = copy_context()
        values = [
            (position, _pickled(variable.name, context[variable]))
            for position, variable in enumerate(self._variables)
            if variable in context
        ]
        return options._replace(context=_accel.dumps(values))


def _pickled(name: str, value: object) -> bytes:
    try:
        pickled = _accel.dumps(value)
        if sharing.collected and sharing.take():
            raise TypeError("a shared object travels as an argument alone")
        return pickled
    except Exception as error:
        without_our_frames(error)
        raise pickle.PicklingError(
            f"the value of context variable {name!r} cannot be sent to a worker "
            f"({describe_error(error)}); set it to plain data, not {shown(value)}"
        ) from error
