"""The answers of a worker: what becomes of its items, on the way to the parent.

    result -> journal, which outlives the process -> frame of the link -> published

An answer is in the journal (journal.py) or published before code of another item runs (_worker/engine.py,
WORKER-6). Results that leave together are one entry of the journal and one RESULTS frame.

RESULTS-1  An entry of the journal is the burst's that writes it, or `add`'s, which goes on with it to the
    end of the turn: items of a chunk that end in one turn have one frame. Nobody takes an entry
    from the other: what ends while an item runs the loop from inside is answered after the burst.
RESULTS-2  A result that cannot be sent fails alone: an error is sent in its place, and those that travel
    with it are sent as the journal has kept them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import _accel
from .._pure.tasks import UnsendableError
from .._wire import exceptions, journal
from .._wire.exceptions import Stage
from .._wire.frames import Kind
from .._wire.tracebacks import without_our_frames
from ..types import describe_error, import_hint, shown
from . import nested

if TYPE_CHECKING:
    from .._transport.link import Link

log = logging.getLogger(__name__)


class ResultSender:
    """Keeps and sends what becomes of items; an item is `offset` in the chunk `chunk_id`."""

    def __init__(
        self, link: Link, exception_handler: Callable[[BaseException], object] | None
    ) -> None:
        self._link = link
        self._exception_handler = exception_handler
        self._journal = _accel.Journal(link.journal)
        self._next: tuple[int, int] | None = None  # item that the entry of `add` may take next

    def close(self) -> None:
        """Release the memory of the link that is used here."""
        self._journal.close()

    def begin_burst(self, chunk_id: int, offset: int) -> _accel.Journal:
        """Open an entry for the results of a burst, which appends them itself, from `offset` on,
        until `end_entry`.
        """
        if self._next is not None:  # asked here: a call would be felt in an `apply`
            self._send_added()
        self._journal.begin(chunk_id, offset)
        return self._journal

    def end_entry(self) -> None:
        """Close the entry of the journal and send what it holds."""
        try:
            chunk_id, offset, count, payload = self._journal.take()
        except MemoryError as error:  # RESULTS-2
            chunk_id, offset, count = self._journal.place()
            if count:
                self._send_kept(chunk_id, offset, count, error)
            return
        if not count:
            return
        try:
            self._link.send(
                Kind.RESULTS, count=count, chunk_id=chunk_id, offset=offset, payload=payload
            )
        except Exception as error:  # noqa: BLE001 - too large, or too much for memory: RESULTS-2
            self._send_kept(chunk_id, offset, count, error)

    def add(self, chunk_id: int, offset: int, value: object) -> None:
        """Answer one item: with those before it in its chunk, if they are answered in this turn.

        Raises what pickling its value raises, and nothing was answered then.
        """
        if self._next != (chunk_id, offset):
            self._send_added()
            self._journal.begin(chunk_id, offset)
        self._next = (chunk_id, offset + 1)
        try:
            fits = self._journal.append(value)
        except BaseException:
            self._send_added()  # without it: the next value would be taken for this item's
            raise
        if not fits:
            self.publish()

    def fail(
        self,
        chunk_id: int,
        offset: int,
        error: BaseException,
        stage: Stage | None = None,
        *,
        refused: bool = False,
        given_up: bool = False,
    ) -> None:
        """Answer one item by an error: its own, or one that was met on its way at `stage`.

        `refused`: there was no memory for it on its way here, so it was not run. An item that is
        `given_up` was cancelled because its caller was: that is no failure of its own, and the
        user's exception_handler does not get it.
        """
        nested.explain(error)
        if self._exception_handler is not None and not given_up:
            try:
                self._exception_handler(error)
            except BaseException as failure:  # the item's own error is what counts
                without_our_frames(failure)
                log.exception("exception_handler failed, called with %s", shown(error))
        payload = [cancellation() if given_up else _dumped(error, stage)]
        self._send_added()  # the journal takes one entry at a time
        kind = Kind.REFUSED if refused else Kind.ERROR
        fits = self._journal.put(kind, chunk_id, offset, 1, payload)
        self._link.send(kind, chunk_id=chunk_id, offset=offset, payload=payload)
        if not fits:
            self.publish()

    def publish(self) -> None:
        """Let all answers leave; the journal is empty when they have (journal.py, JOURNAL-3)."""
        if self._next is not None:  # as in begin_burst
            self._send_added()
        self._link.flush()
        if not self._link.congested:
            self._journal.reset()

    def _send_added(self) -> None:
        """Send what `add` has gathered."""
        if self._next is not None:
            self._next = None
            self.end_entry()

    def _send_kept(self, chunk_id: int, offset: int, count: int, error: Exception) -> None:
        """RESULTS-2: send those results of an entry that the journal has; the others fail."""
        for kind, *place, kept, payload in journal.read(self._link.journal):
            if place == [chunk_id, offset]:
                self._link.send(
                    kind, count=kept, chunk_id=chunk_id, offset=offset, payload=[bytes(payload)]
                )
                offset, count = offset + kept, count - kept
        for at in range(offset, offset + count):
            self.fail(chunk_id, at, error, Stage.SENDING)


@functools.cache
def cancellation() -> bytes:
    """The answer of an item whose caller is gone: no traceback, which no one would read."""
    return exceptions.dump_exception(asyncio.CancelledError(), _accel.dumps)


def _dumped(error: BaseException, stage: Stage | None) -> bytes:
    if type(error) is UnsendableError:
        cause = error if error.__cause__ is None else error.__cause__
        return exceptions.dump_exception(cause, _accel.dumps, Stage.RESULT, str(error))
    detail = "" if stage is None else f"({describe_error(error)}){import_hint(error)}"
    return exceptions.dump_exception(error, _accel.dumps, stage, detail)
