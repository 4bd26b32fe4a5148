"""The table of running items, in both kinds of memory (RING-11, PAGE-5, _transport/link.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from aiomultiprocess._transport import select, shared_page
from aiomultiprocess._transport.link import MOST_ENTRIES, entries_for
from conftest import BUILT

KINDS = ["page", *(["mapping"] if BUILT else [])]


def pair_of(kind: str, entries: int) -> tuple[Any, Any]:
    """One memory as its worker and its parent have it."""
    if kind == "page":
        page = shared_page.SharedPage.create(entries)
        return page, shared_page.SharedPage(os.dup(page.fd), entries)
    from amp_ext.ring import Mapping

    mapping = Mapping.create(1 << 12, entries=entries)
    return mapping, Mapping.attach(os.dup(mapping.fd))


@pytest.fixture(params=KINDS)
def memories(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    pair = pair_of(request.param, 3)
    yield pair
    for memory in pair:
        memory.close()


def start(worker: Any, number: int, since: int) -> None:
    worker.mark_time(number, since)
    worker.mark_started(number)


def test_an_item_is_in_the_table_from_its_mark_to_its_end(memories: tuple[Any, Any]) -> None:
    worker, parent = memories
    assert parent.entries == worker.entries == 3
    assert parent.running() == {}
    start(worker, 7, 2**63)
    assert (parent.started, parent.running()) == (7, {7: 2**63})
    worker.keep_running(2)
    assert parent.running() == {7: 2**63}
    start(worker, 8, 5)
    assert parent.running() == {7: 2**63, 8: 5}
    worker.clear_running(0)
    assert parent.running() == {7: 2**63}
    worker.clear_running(2)
    assert parent.running() == {}
    worker.mark_started(9)
    assert (parent.started, parent.running()) == (9, {})


def test_an_item_may_be_renewed_and_leave_the_table_for_a_while(memories: tuple[Any, Any]) -> None:
    worker, parent = memories
    start(worker, 7, 10)
    worker.set_running(0, 7, 20)
    assert parent.running() == {7: 20}
    worker.clear_running(0)
    worker.keep_running(2)
    assert parent.running() == {}
    worker.set_running(2, 7, 30)
    assert parent.running() == {7: 30}
    worker.clear_running(2)
    assert parent.running() == {}
    with pytest.raises(IndexError):
        worker.set_running(3, 7, 30)


def test_items_that_run_one_after_the_other_share_a_time(memories: tuple[Any, Any]) -> None:
    worker, parent = memories
    worker.mark_time(3, 10)
    assert parent.running() == {}  # none is started yet
    for number in (3, 4, 5):
        worker.mark_started(number)
        assert parent.running() == {number: 10}
    worker.mark_time(6, 20)
    assert parent.running() == {}  # 5 has ended, 6 is not started
    worker.mark_started(6)
    worker.mark_started(7)
    worker.keep_running(1)
    worker.mark_started(8)
    assert parent.running() == {7: 20}


def test_the_table_lies_behind_the_journal(memories: tuple[Any, Any]) -> None:
    worker, parent = memories
    with worker.journal as journal:
        journal[:] = b"\xff" * len(journal)
    assert parent.running() == {}
    for at in (2, 1):
        start(worker, 2**64 - 1, 2**64 - 1)
        worker.keep_running(at)
    start(worker, 2**64 - 1, 2**64 - 1)
    with parent.journal as journal:
        assert bytes(journal) == b"\xff" * len(journal)


def test_an_entry_that_is_not_there_is_refused(memories: tuple[Any, Any]) -> None:
    worker, _ = memories
    with pytest.raises(IndexError):
        worker.keep_running(3)
    with pytest.raises(IndexError):
        worker.clear_running(3)


def test_a_closed_memory_refuses_its_table(memories: tuple[Any, Any]) -> None:
    worker, _ = memories
    worker.close()
    for use in (lambda: worker.mark_time(1, 1), lambda: worker.keep_running(1), worker.running):
        with pytest.raises(ValueError, match=r"closed|released"):
            use()


def test_an_entry_that_changes_while_it_is_read_does_not_count() -> None:
    """PAGE-5."""
    page = shared_page.SharedPage.create(2)

    class Changing:
        def __init__(self) -> None:
            self.readings = [[1, 10, 2, 20], [1, 10, 2, 21]]

        def tolist(self) -> list[int]:
            return self.readings.pop(0)

        def release(self) -> None:
            page_table.release()

    page.mark_started(1)
    page_table, page._table = page._table, Changing()  # type: ignore[assignment]
    assert page.running() == {1: 10}
    page.close()


def test_a_channel_has_an_entry_for_each_item_that_may_be_suspended(backend: str) -> None:
    made = select.select(backend).make()
    for concurrency in (1, 16, 1000):
        link, end = made.create(concurrency)
        worker = end.open()
        assert link.counter.entries == worker.counter.entries == concurrency + 1
        start(worker.counter, 1, 2)
        worker.counter.keep_running(concurrency)
        assert link.counter.running() == {1: 2}
        end.release()
        worker.close()
    made.close()


def test_however_many_items_may_run_the_table_is_limited(backend: str) -> None:
    assert entries_for(10**9) == MOST_ENTRIES
    made = select.select(backend).make()
    link, end = made.create(10**9)
    assert link.counter.entries == MOST_ENTRIES
    end.release()
    made.close()
