"""Results from the journals of workers that cannot send them: dead ones, and blocked ones.

A worker sends the results of a burst together (_worker/engine.py, WORKER-4), and has each in its
journal before other code runs (WORKER-6). So the parent can take results from there

- when the worker has died (retry.py, RETRY-7), and
- when an item blocks its loop: otherwise the caller of a quick task would wait for the slow one
  that runs after it in the same worker.

RECOVERY-1  A worker goes on while its journal is read. So what is valid is copied twice, and counts
    only if both copies agree (_wire/journal.py, `snapshot`). Valid bytes keep their meaning until
    the worker empties the journal, and the first entry names items that no later entry names: with
    that entry in both copies, the journal was not emptied between them. As for the time that a
    store may be delayed on its way to another CPU, PAGE-5 (_transport/shared_page.py) holds.
RECOVERY-2  What was taken of a blocked worker also arrives in a frame, as the journal's entry and
    the frame have the same place and the same bytes. `taken` says how many items of which entry
    were taken. These are skipped in the frame, or in the entry when it is read again: they are
    decoded, because what follows may name their keys (CODEC-6), but not unpickled again.
RECOVERY-3  What was reported before is skipped. Reading stops at the first invalid entry. A worker
    that lives and has one is killed. Its death costs what it would have cost if the worker had died
    by itself just before: its link, and its mark of what it has started, still count.
RECOVERY-4  Values of streams and what follows them are taken of dead workers alone: a frame of
    values does not say which they are, and may be on its way.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from .. import _accel
from .._wire import journal
from .._wire.frames import CorruptHeaderError, Handler, Kind, Mode, Payload

if TYPE_CHECKING:
    from .stream_source import StreamSource
    from .worker import PoolWorker

ERRORS = {Kind.ERROR, Kind.REFUSED, Kind.TIMED_OUT}  # of one item each

log = logging.getLogger(__name__)


def count_taken(worker: PoolWorker, kind: int, count: int, chunk_id: int, offset: int) -> int:
    """How many items of an answer were taken before (RECOVERY-2); -1 if all were."""
    if kind != Kind.RESULTS and kind not in ERRORS:
        return 0
    taken = worker.taken.pop((chunk_id, offset), 0)
    return -1 if taken and taken >= (count if kind == Kind.RESULTS else 1) else taken


def decode_rest(
    payload: Payload, count: int, offset: int, skip: int
) -> tuple[int, int, list[Any], dict[int, BaseException] | None]:
    """Count, offset, values and failures of results without the first `skip` (RECOVERY-2)."""
    values, failures = _accel.decode_items(payload, count, skip)
    late = {at - skip: error for at, error in (failures or {}).items() if at >= skip}
    return count - skip, offset + skip, values[skip:], late or None


def take_results(worker: PoolWorker, on_frame: Handler) -> None:
    """Pass to `on_frame` the results that a blocked worker has not sent (RECOVERY-1)."""
    try:
        with worker.link.journal as memory:
            results, values = journal.parts_of(memory)
            with results, values:  # a record of the error below may keep this frame
                copied = journal.snapshot(results)
        if copied is not None:
            _pass_results(worker, on_frame, memoryview(copied), streams=False)
    except Exception as error:  # noqa: BLE001 - as in a callback of the link (LINK-7)
        worker.mark_journal_corrupt(error)


def recover_results(worker: PoolWorker, on_frame: Handler) -> None:
    """Pass to `on_frame` what the journal of a dead worker has beyond its link."""
    try:
        with worker.link.journal as memory:
            copied = bytes(memory)  # unpickling a result may end the pool, which closes the link
        results, values = journal.parts_of(memoryview(copied))
        for _, chunk_id, offset, count, payload in journal.read(values):
            if _are_next_values(worker, chunk_id, offset, count):
                on_frame(Kind.VALUES, 0, count, chunk_id, offset, 0, payload)
        _pass_results(worker, on_frame, results, streams=True)
    except Exception as error:
        log.error("worker %s: its journal is broken", worker.pid, exc_info=error)


def _pass_results(
    worker: PoolWorker, on_frame: Handler, results: memoryview, *, streams: bool
) -> None:
    for kind, chunk_id, offset, count, payload in journal.read(results):
        place = chunk_id, offset
        taken = worker.taken.get(place, 0)
        at, end = offset + taken, offset + count
        # RECOVERY-3
        if count <= taken or not _is_unreported(worker, kind, chunk_id, at, end, streams=streams):
            continue
        chunk = worker.chunks[chunk_id]
        try:
            on_frame(kind, 0, count, chunk_id, offset, 0, payload)
        finally:  # an interrupt may have struck before or after the report
            reported = worker.chunks.get(chunk_id) is not chunk or not chunk.unreported(at, end)
            if reported or taken:
                worker.taken[place] = count if reported else taken


def _are_next_values(worker: PoolWorker, chunk_id: int, offset: int, count: int) -> bool:
    """Whether values of a stream were not received (JOURNAL-6)."""
    chunk = worker.chunks.get(chunk_id)
    if chunk is None or not count:
        return False
    if chunk.owner.mode is not Mode.STREAM:
        return False
    return cast("StreamSource", chunk.owner).lacks(offset)


def _is_unreported(
    worker: PoolWorker, kind: int, chunk_id: int, at: int, end: int, *, streams: bool
) -> bool:
    """Whether items were not reported; CorruptHeaderError if that contradicts what was sent."""
    chunk = worker.chunks.get(chunk_id)
    if chunk is None:  # all of it was reported
        return False
    if end > len(chunk.handles) or chunk.first + end > worker.link.started:
        raise CorruptHeaderError(f"results of tasks {at} to {end} of chunk {chunk_id}")
    if not chunk.unreported(at, end):
        return False
    if chunk.owner.mode is Mode.STREAM and not streams:  # RECOVERY-4
        return False
    if kind in ERRORS and end - at != 1:
        raise CorruptHeaderError(f"one error of {end - at} tasks")
    return True
