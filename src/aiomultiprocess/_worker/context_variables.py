"""Context variables of the submitter, in the worker; the parent's side has the same name.

The parent sends a CONTEXT frame before the first chunk of a context, and `ContextWorkerEngine`
remembers for each chunk which context was the last. `main` imports this module only in pools that
have `contextvars`.

CONTEXT-1  An item runs in a copy of the worker's own context (STARTER-2) in which the variables
    have the values of the submitter. A variable that is unset there has here the value of the
    worker's own context, and is unset if that has none.
CONTEXT-2  A value that cannot be unpickled fails the items of its context, and no others.
"""

from __future__ import annotations

import pickle
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeAlias

from .. import _accel
from .._wire.frames import Kind, Payload, as_bytes
from ..types import describe_error, import_hint
from .engine import CHUNK, WorkerEngine
from .functions import Unloadable
from .received_chunk import ReceivedChunk

#: A context as it was received: the values by the position of their variable, or the error.
Values: TypeAlias = "dict[int, Any] | Unusable"


class Unusable(Unloadable):
    """The stand-in for the function of items whose context could not be unpickled (CONTEXT-2)."""


class ContextWorkerEngine(WorkerEngine):
    """A worker engine whose items see the submitter's values of context variables."""

    variables: tuple[ContextVar[Any], ...] = ()
    _base: Context
    _received: Values = {}  # noqa: RUF012 - never changed: the context before the first frame
    _active: Values | None = None  # the context of the starter; None: the worker's own

    def _make_starter(self) -> None:
        self._base = copy_context()
        self._contexts: dict[int, Values] = {}  # by the id of a chunk that waits
        super()._make_starter()

    def _on_frame(self, kind: int, *fields: Any) -> None:
        if kind == Kind.CONTEXT:
            self._received = self._load(fields[-1])
            return
        super()._on_frame(kind, *fields)
        chunk_id = fields[2]
        if kind == CHUNK and self._chunks and self._chunks[-1].chunk_id == chunk_id:  # it is taken
            self._contexts[chunk_id] = self._received
            if isinstance(self._received, Unusable):
                self._chunks[-1].func = self._received

    def _advance(self, chunk: ReceivedChunk, deadline: int) -> bool:
        values = self._contexts[chunk.chunk_id]
        if values is not self._active and not isinstance(values, Unusable):
            self._switch_to(values)
        advanced = super()._advance(chunk, deadline)
        if chunk.next >= len(chunk.items):
            self._contexts.pop(chunk.chunk_id, None)
        return advanced

    def _switch_to(self, values: dict[int, Any]) -> None:
        """Make a starter in the context of the next items (CONTEXT-1)."""
        context = self._base.copy()
        for position, value in values.items():
            context.run(self.variables[position].set, value)
        if self._starter is not None:
            self._starter.close()
        counter = self._link.counter
        self._starter = context.run(
            _accel.Starter, self._loop, counter, self._on_value, self._link.started
        )
        self._active = values

    def _load(self, payload: Payload) -> Values:
        position = 0
        values = {}
        try:
            for position, pickled in _accel.loads(as_bytes(payload)):
                values[position] = _accel.loads(pickled)
        except BaseException as error:  # noqa: BLE001 - importing a user's module may raise anything
            return self._unusable(self.variables[position], error)
        return values

    def _unusable(self, variable: ContextVar[Any], error: BaseException) -> Unusable:
        refusal = pickle.UnpicklingError(
            f"the value of context variable {variable.name!r} cannot be unpickled in a worker "
            f"({describe_error(error)}){import_hint(error)}"
        )
        refusal.__cause__ = error
        return Unusable(refusal)
