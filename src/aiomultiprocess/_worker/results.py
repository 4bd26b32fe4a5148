"""The results of a worker's items, on their way to the parent.

    result -> journal, which outlives the process -> frame of the link -> published

The engine gives each result to a `ResultSender`, which journals it and sends it. A result is in the
journal (journal.py) or published before code of another item runs (engine.py, WORKER-6). Each entry
of the journal becomes one frame, of results or of one error; the frames of a turn are published
together.

RESULTS-1  One entry of the journal is open at a time. Either a burst opens it, writes it and ends
    it; or `add` does, and extends it until the turn ends, so that items of one chunk that end in
    one turn share a frame. A task that ends during a burst, because an item runs the loop inside
    its call, is answered after the burst.
RESULTS-2  A result that cannot be sent fails alone: its item gets an error instead. Other results
    of the same entry are sent as the journal has them.
RESULTS-3  The result of an item that was suspended is sent as it ends, if `publish` did not run in
    the last millisecond: another item may block the loop before the turn that would send it. Else
    the turn that follows sends it; should an item block that turn, the parent takes it from the
    journal (_parent/blocked.py).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING

from .. import _accel
from .._pure.tasks import CarriedStopError, UnsendableError, UnsentError
from .._wire import exceptions, journal, sharing
from .._wire.exceptions import Stage
from .._wire.frames import Kind
from .._wire.tracebacks import without_our_frames
from ..types import describe_error, import_hint, shown

if TYPE_CHECKING:
    from .._transport.link import Link

MOMENT_NS = 1_000_000  # RESULTS-3

RESULTS = int(Kind.RESULTS)  # a member of an enum is found slowly, and each `apply` sends one

log = logging.getLogger(__name__)


class ResultSender:
    """Journals and sends the results of items; `chunk_id` and `offset` say which item."""

    interrupted = False
    """Whether KeyboardInterrupt struck the user's code here; who sets it to False acts on it."""

    def __init__(
        self, link: Link, exception_handler: Callable[[BaseException], object] | None
    ) -> None:
        self._link = link
        self._exception_handler = exception_handler
        self._journal = _accel.Journal(journal.parts_of(link.journal)[0])
        self._next: tuple[int, int] | None = None  # the item that extends the entry of `add`
        self._published = 0  # when `publish` ran last, in nanoseconds of the monotonic clock

    def close(self) -> None:
        """Release the journal, which is memory of the link."""
        self._journal.close()

    def begin_burst(self, chunk_id: int, offset: int) -> _accel.Journal:
        """Open an entry for results from `offset` on; the burst appends them until `end_entry`."""
        if self._next is not None:  # checked here: a call would slow each `apply`
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
        # in two steps: CPython 3.11 finds an attribute faster than it looks up a method
        send = self._link.send
        try:
            send(RESULTS, count=count, chunk_id=chunk_id, offset=offset, payload=payload)
        except Exception as error:  # noqa: BLE001 - too large, or too much for memory: RESULTS-2
            self._send_kept(chunk_id, offset, count, error)

    def add(self, chunk_id: int, offset: int, value: object) -> None:
        """Journal the value of one item, in the entry of the items before it if they are in it.

        Raises what pickling the value raises; the item has no answer then.
        """
        if self._next != (chunk_id, offset):
            self._send_added()
            self._journal.begin(chunk_id, offset)
        self._next = (chunk_id, offset + 1)
        try:
            fits = self._journal.append(value)
        except BaseException:
            self._send_added()  # end the entry: the next value would count as this item's
            raise
        if not fits:
            self.publish()

    def fail(
        self,
        chunk_id: int,
        offset: int,
        error: BaseException,
        stage: int | None = None,
        *,
        refused: bool = False,
        given_up: bool = False,
        timed_out: bool = False,
    ) -> None:
        """Answer one item by an error: one that it raised, or one that arose at `stage`.

        `refused`: there was no memory to receive the item, so it did not run. `given_up`: it was
        cancelled because its caller was, so the user's exception_handler does not get the error.
        `timed_out`: `error` says that its time limit has cancelled it (LIMITS-2). The parent makes
        the same error, and gets the cause of this one.
        """
        if type(error) is CarriedStopError and error.__cause__ is not None:
            error = error.__cause__
        elif type(error) is UnsentError and error.__cause__ is not None:
            error, stage = error.__cause__, Stage.SENDING
        if type(error) is UnsendableError and self._add_sealed(chunk_id, offset, error):
            return
        with suppress(ImportError, OSError):  # no descriptor is left to import it
            from . import nested  # here: a start does not need it

            nested.explain(error)
        if self._exception_handler is not None and not given_up:
            try:
                self._exception_handler(error)
            except BaseException as failure:  # answer the item by its own error
                self.note(failure)
                without_our_frames(failure)
                log.exception("exception_handler failed, called with %s", shown(error))
        if timed_out and error.__cause__ is not None:
            error = error.__cause__
        payload = [cancellation() if given_up else _dumped(error, stage)]
        self._send_added()  # RESULTS-1
        kind = Kind.REFUSED if refused else Kind.TIMED_OUT if timed_out else Kind.ERROR
        fits = self._journal.put(kind, chunk_id, offset, 1, payload)
        self._link.send(kind, chunk_id=chunk_id, offset=offset, payload=payload)
        if not fits:
            self.publish()

    def _add_sealed(self, chunk_id: int, offset: int, error: UnsendableError) -> bool:
        """Journal a value that pickle refused by another serializer, if one takes it."""
        value, error.value = error.value, None
        self.note(error.__cause__)
        try:
            from .._wire.serializing import fallback  # here: SERIAL-1
        except (ImportError, OSError):  # no descriptor is left to import it
            return False
        serializer = fallback()
        if serializer is None:
            return False
        try:
            self.add(chunk_id, offset, serializer.seal(value))
        except BaseException as failure:  # noqa: BLE001 - the item gets the error of pickle
            self.note(failure)
            return False
        return True

    def note(self, error: BaseException | None) -> None:
        """Note an error of the user's code if the answer of its item may not show it."""
        if issubclass(type(error), KeyboardInterrupt):
            self.interrupted = True

    def publish(self) -> None:
        """Send all results; once they are published, empty the journal (journal.py, JOURNAL-3)."""
        if self._next is not None:  # as in begin_burst
            self._send_added()
        link = self._link
        flush = link.flush  # in two steps, as `send` in `end_entry`
        flush()
        self._published = monotonic_ns()
        if not link.congested:
            self._journal.reset()
        if sharing.collected:  # of results, which need no memory passed
            sharing.take()

    def publish_unless_just_now(self) -> None:
        """Send all results, unless that was done in the last millisecond (RESULTS-3)."""
        if monotonic_ns() - self._published > MOMENT_NS:
            self.publish()

    def _send_added(self) -> None:
        """End the entry of `add`, if one is open."""
        if self._next is not None:
            self._next = None
            self.end_entry()

    def _send_kept(self, chunk_id: int, offset: int, count: int, error: Exception) -> None:
        """Send the results of an entry that the journal has; the other items fail (RESULTS-2)."""
        results, _ = journal.parts_of(self._link.journal)
        for kind, *place, kept, payload in journal.read(results):
            if place == [chunk_id, offset]:
                self._link.send(
                    kind, count=kept, chunk_id=chunk_id, offset=offset, payload=[bytes(payload)]
                )
                offset, count = offset + kept, count - kept
        for at in range(offset, offset + count):
            self.fail(chunk_id, at, error, Stage.SENDING)


@functools.cache
def cancellation() -> bytes:
    """The error of an item whose caller is gone; without a traceback, which has no reader."""
    return exceptions.dump_exception(asyncio.CancelledError(), _accel.dumps)


def _dumped(error: BaseException, stage: int | None) -> bytes:
    if type(error) is UnsendableError:
        cause = error if error.__cause__ is None else error.__cause__
        return exceptions.dump_exception(cause, _accel.dumps, Stage.RESULT, str(error))
    detail = "" if stage is None else f"({describe_error(error)}){import_hint(error)}"
    return exceptions.dump_exception(error, _accel.dumps, stage, detail)
