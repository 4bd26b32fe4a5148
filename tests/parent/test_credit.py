"""How many tasks a worker may hold (_parent/credit.py, CREDIT-1 to CREDIT-9)."""

import pytest

from aiomultiprocess._parent.credit import (
    ALONE_TIMES,
    CONTENTION_PARTS,
    GROWTH,
    HORIZON,
    MOST_BYTES,
    THREAD_WAIT,
    Credit,
)

FUNCTION, OTHER = 1, 2


def report(credit: Credit, count: int, started: int, now: float, size: int = 0) -> None:
    credit.report(count, FUNCTION, size)
    credit.settle(started, now)


def test_nothing_waits_behind_a_task_that_was_never_measured() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    assert credit.room(0, FUNCTION) == 1
    credit.send(1, FUNCTION, now=0.0)
    assert credit.room(0, FUNCTION) == 0  # not begun
    assert credit.room(1, FUNCTION) == 0  # begun, and still running


def test_nothing_waits_behind_a_task_that_takes_longer_than_the_horizon() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=2 * HORIZON)
    credit.send(1, FUNCTION, now=2 * HORIZON)
    assert credit.room(2, FUNCTION) == 0


def test_a_worker_with_free_slots_gets_as_many() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15)
    assert credit.room(1, FUNCTION) == 15
    credit.send(10, FUNCTION, now=0.0)
    assert credit.room(11, FUNCTION) == 5


def test_quick_tasks_travel_by_the_thousand_but_not_after_one_measurement() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-6)
    assert credit.room(1, FUNCTION) == GROWTH + 1
    now = 1e-6
    for _ in range(4):
        count = credit.room(credit.sent, FUNCTION)
        credit.send(count, FUNCTION, now)
        now += count * 1e-6
        report(credit, count, started=credit.sent, now=now)
    assert 1000 < credit.room(credit.sent, FUNCTION) <= HORIZON / 1e-6 + 16


def test_tasks_that_end_together_and_are_reported_one_by_one_are_not_quick() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    now = 0.0
    for _ in range(20):  # 16 tasks of ten horizons each, which end within a tenth of one
        credit.send(16, FUNCTION, now)
        started, now = credit.sent, now + 10 * HORIZON
        for _ in range(16):
            report(credit, 1, started, now)
            now += HORIZON / 160
    credit.send(16, FUNCTION, now)
    backlog = credit.room(credit.sent, FUNCTION)
    assert backlog <= 16 / 10 + 1


def test_a_function_that_becomes_slow_is_soon_known_to_be() -> None:
    credit = Credit(concurrency=1, lifetime=0)
    now = 0.0
    for _ in range(20):
        count = credit.room(credit.sent, FUNCTION)
        credit.send(count, FUNCTION, now)
        now += count * 1e-6
        report(credit, count, credit.sent, now)
    assert credit.room(credit.sent, FUNCTION) > 1000
    for _ in range(2):
        credit.send(1, FUNCTION, now)
        now += 25 * HORIZON
        report(credit, 1, credit.sent, now)
    assert credit.room(credit.sent, FUNCTION) <= 10


def test_what_was_measured_of_one_function_is_not_assumed_of_another() -> None:
    credit = Credit(concurrency=1, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-6)
    assert credit.room(1, FUNCTION) > 1
    assert credit.room(1, OTHER) == 1


def test_a_worker_gets_no_more_tasks_than_its_lifetime() -> None:
    credit = Credit(concurrency=16, lifetime=3)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15)
    assert credit.room(1, FUNCTION) == 2
    credit.send(2, FUNCTION, now=0.0)
    assert credit.spent
    assert credit.room(3, FUNCTION) <= 0


def waiting_side_by_side(concurrency: int) -> Credit:
    """A worker that was seen to run as many tasks as it may, all of which end after a while."""
    credit = Credit(concurrency, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(concurrency - 1)
    credit.send(concurrency - 1, FUNCTION, now=0.0)
    report(credit, concurrency, started=concurrency, now=1.0)
    credit.send(concurrency, FUNCTION, now=1.0)
    return credit


def test_a_worker_whose_tasks_wait_side_by_side_holds_successors_while_work_is_ample() -> None:
    credit = waiting_side_by_side(16)
    assert credit.room(32, FUNCTION) == 0  # all 16 run, and nothing waits behind them
    assert credit.room(32, FUNCTION, work_is_ample=True) == 15
    credit.send(15, FUNCTION, now=1.0)
    assert credit.room(32, FUNCTION, work_is_ample=True) == 0


def test_at_the_tail_nothing_waits_behind_tasks_that_take_longer_than_the_horizon() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(16, FUNCTION, now=0.0)
    report(credit, 16, started=16, now=2 * HORIZON)  # eight begin within a horizon
    credit.send(15, FUNCTION, now=2 * HORIZON)
    assert credit.room(31, FUNCTION) == 1 + 8
    assert credit.room(31, FUNCTION, work_is_ample=False) == 1


def test_at_the_tail_as_many_quick_tasks_wait_as_before() -> None:
    credit = with_backlog()
    room = credit.room(credit.sent, FUNCTION)
    assert credit.room(credit.sent, FUNCTION, work_is_ample=False) == room > 1


def test_a_worker_holds_no_successors_of_an_unmeasured_function() -> None:
    credit = waiting_side_by_side(16)
    assert credit.room(32, OTHER, work_is_ample=True) == 0


def test_an_unmeasured_function_gets_one_slot_whatever_another_was_seen_to_use() -> None:
    credit = waiting_side_by_side(16)
    report(credit, 16, started=32, now=2.0)
    assert credit.room(32, FUNCTION) == 16
    assert credit.room(32, OTHER) == 1
    credit.send(1, FUNCTION, now=2.0)
    credit.need_work(15)  # which tells nothing about the other function
    assert credit.room(33, FUNCTION) == 15
    assert credit.room(33, OTHER) == 1
    credit.send(1, OTHER, now=2.0)
    assert credit.room(34, OTHER) <= 0
    credit.need_work(14)  # now it does
    assert credit.room(34, OTHER) == 14


def test_a_plain_function_has_one_slot_unless_its_tasks_were_suspended() -> None:
    for suspended in (False, True):
        credit = Credit(concurrency=16, lifetime=0)
        credit.note_blocking(FUNCTION)
        credit.send(16, FUNCTION, now=0.0)
        if suspended:  # it returns awaitables
            credit.need_work(0)
        report(credit, 1, started=16, now=20 * HORIZON)  # others were started, not reported yet
        report(credit, 15, started=16, now=40 * HORIZON)
        room = credit.room(16, FUNCTION, work_is_ample=False)
        assert room > 8 if suspended else room == 1


def test_nothing_waits_behind_a_slow_plain_function() -> None:
    credit = with_backlog()
    report(credit, credit.in_flight, started=credit.sent, now=2e-6)
    assert credit.room(credit.sent, FUNCTION) > 16
    credit.note_blocking(OTHER)
    credit.send(1, OTHER, now=2e-6)
    assert credit.room(credit.sent, FUNCTION) <= 0
    assert credit.overtake(credit.sent, FUNCTION) == 0
    credit.need_work(15)  # it was suspended after all
    assert credit.room(credit.sent, FUNCTION) > 16


def with_backlog() -> Credit:
    """A worker behind whose running tasks a backlog of quick ones waits."""
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-6)
    credit.send(credit.room(1, FUNCTION), FUNCTION, now=1e-6)
    assert credit.room(1, FUNCTION) <= 0
    return credit


def test_one_unmeasured_call_overtakes_a_backlog() -> None:
    credit = with_backlog()
    assert credit.room(1, OTHER) <= 0
    assert credit.overtake(1, OTHER) == 1


def test_a_few_quick_calls_overtake_a_backlog() -> None:
    assert with_backlog().overtake(1, FUNCTION) == 16


def test_the_next_calls_overtake_once_the_last_ones_have_begun() -> None:
    credit = with_backlog()
    credit.send(16, FUNCTION, now=1e-6)
    credit.have_overtaken()
    assert credit.overtake(credit.sent - 1, FUNCTION) == 0
    assert credit.overtake(credit.sent, FUNCTION) == 16


def test_no_call_overtakes_tasks_that_may_take_long() -> None:
    credit = with_backlog()
    credit.send(1, OTHER, now=1e-6)
    credit.have_overtaken()
    assert credit.overtake(credit.sent, FUNCTION) == 0


def test_a_part_or_a_multiple_of_a_backlog_waits() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-6)
    assert credit.room(1, FUNCTION) == GROWTH + 1
    assert credit.backlog(FUNCTION) == GROWTH
    assert credit.backlog(OTHER) == 0
    assert credit.room(1, FUNCTION, scale=1 / CONTENTION_PARTS) == GROWTH // CONTENTION_PARTS + 1
    assert credit.room(1, FUNCTION, scale=ALONE_TIMES) == GROWTH * ALONE_TIMES + 1


def test_no_call_overtakes_beyond_the_lifetime_of_a_worker() -> None:
    credit = Credit(concurrency=16, lifetime=4)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-6)
    credit.send(1, FUNCTION, now=1e-6)
    assert credit.overtake(1, FUNCTION) == 2


def test_a_worker_that_holds_much_gets_what_it_has_slots_for_and_no_backlog() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    credit.send(1, FUNCTION, now=0.0, size=100)
    report(credit, 1, started=1, now=1e-6, size=100)
    assert credit.room(1, FUNCTION) > 1
    credit.send(1, FUNCTION, now=1e-6, size=MOST_BYTES)
    assert credit.room(2, FUNCTION) == 0
    assert credit.overtake(2, FUNCTION) == 0
    credit.need_work(15)
    assert credit.room(2, FUNCTION) == 15
    report(credit, 1, started=2, now=2e-6, size=MOST_BYTES)
    assert credit.room(2, FUNCTION) > 15


def test_nothing_is_kept_of_functions_that_are_forgotten() -> None:
    credit = Credit(concurrency=16, lifetime=0)
    for function in range(1, 1000):
        credit.send(1, function, now=0.0)
        credit.report(1, function)
        credit.drop_function(function)  # its last task was the one that is reported
        credit.settle(credit.sent, now=1.0)
    assert credit.in_flight == 0
    assert len(credit._paces) <= 1


def quick(concurrency: int) -> Credit:
    """The account of a worker that is known to run OTHER by the hundred."""
    credit = Credit(concurrency, lifetime=0)
    now = 0.0
    for _ in range(4):
        count = credit.room(credit.sent, OTHER)
        credit.send(count, OTHER, now)
        now += count * HORIZON / 1000
        credit.report(count, OTHER)
        credit.settle(credit.sent, now)
    assert credit.room(credit.sent, OTHER) > 100
    return credit


@pytest.mark.parametrize("slow", [False, True], ids=["unknown", "slow"])
def test_nothing_quick_waits_behind_tasks_that_may_take_long_and_have_all_slots(slow: bool) -> None:
    credit = quick(concurrency=2)
    if slow:
        credit.send(1, FUNCTION, now=10.0)
        report(credit, 1, credit.sent, now=10.0 + 5 * HORIZON)
    credit.send(1, FUNCTION, now=20.0)
    credit.need_work(1)
    assert credit.room(credit.sent, OTHER) > 100  # the other slot takes them
    credit.send(1, FUNCTION, now=20.0)
    credit.need_work(0)
    for work_is_ample in (None, False, True):
        assert credit.room(credit.sent, OTHER, work_is_ample=work_is_ample) == 0
    credit._recent = OTHER  # whatever was sent last
    assert credit.overtake(credit.sent, OTHER) == 0
    report(credit, 1, credit.sent, now=20.0 + 5 * HORIZON)
    assert credit.room(credit.sent, OTHER) > 100
    assert credit.overtake(credit.sent, OTHER) > 0


def test_an_advertised_free_slot_counts_only_until_it_is_filled() -> None:
    """A worker advertises its free slots while those very slots are being filled."""
    credit = quick(concurrency=16)
    credit.send(16, FUNCTION, now=20.0)
    credit.need_work(10)
    assert credit.room(credit.sent, OTHER) == 0
    report(credit, 4, credit.sent, now=20.0 + 5 * HORIZON)
    assert credit.room(credit.sent, OTHER) >= 4


def in_threads(threads: int) -> Credit:
    """The account of a worker that runs FUNCTION in its threads, and OTHER on its loop."""
    credit = Credit(16, 0, threads)
    credit.note_threaded(FUNCTION)
    return credit


def test_a_task_that_needs_no_thread_has_a_slot_while_all_threads_are_busy() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15, 0, 1)
    assert credit.room(1, FUNCTION) <= 0
    assert credit.room(1, OTHER) == 1
    credit.send(1, OTHER, now=0.0)
    credit.need_work(14, 0, 2)
    assert credit.room(2, OTHER) == 14
    assert credit.room(2, FUNCTION) <= 0


def test_no_more_plain_tasks_are_sent_than_threads_were_free() -> None:
    credit = in_threads(4)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15, 3, 1)
    assert credit.room(1, FUNCTION) == 3
    credit.send(3, FUNCTION, now=0.0)
    credit.need_work(15, 3, 1)  # it came late: sent before the three had arrived
    assert credit.room(4, FUNCTION) <= 0
    assert credit.room(4, OTHER) == 1


def test_tasks_that_need_no_thread_take_none() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(0, 1, 1)  # it has returned an awaitable
    for _ in range(10):
        credit.send(1, OTHER, now=0.0)
        assert credit.free_threads() == 1
    credit.send(1, FUNCTION, now=0.0)
    assert credit.free_threads() <= 0


def test_what_a_worker_could_not_take_has_no_thread() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    credit.take_back(1, FUNCTION, 0)
    credit.send(1, OTHER, now=0.0)
    credit.need_work(15, 1, 1)
    assert credit.free_threads() == 1


def test_the_threads_of_tasks_that_returned_awaitables_are_free() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15, 1, 1)
    assert credit.room(1, FUNCTION) == 1


def test_no_plain_task_waits_behind_slow_ones_that_have_all_threads() -> None:
    credit = in_threads(2)
    now = 0.0
    for _ in range(3):
        credit.send(2, FUNCTION, now)
        now += 2 * THREAD_WAIT
        report(credit, 2, credit.sent, now)
    credit.send(2, FUNCTION, now)
    for work_is_ample in (None, False, True):
        assert credit.room(credit.sent, FUNCTION, work_is_ample=work_is_ample) <= 0
    assert credit.overtake(credit.sent, FUNCTION) == 0


def test_no_plain_task_waits_behind_one_that_takes_longer_than_its_pace_tells() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-5)
    begin = 10 * THREAD_WAIT
    credit.send(1, FUNCTION, now=begin)
    credit.look_at_threads(begin + THREAD_WAIT / 2)
    assert credit.room(2, FUNCTION) == GROWTH
    assert credit.overtake(2, FUNCTION) == GROWTH
    credit.need_work(15, 0, 2)
    credit.look_at_threads(begin + 2 * THREAD_WAIT)
    for work_is_ample in (None, False, True):
        assert credit.room(2, FUNCTION, work_is_ample=work_is_ample) <= 0
    assert credit.overtake(2, FUNCTION) == 0
    assert credit.room(2, OTHER) == 1
    report(credit, 1, started=2, now=begin + 3 * THREAD_WAIT)
    assert credit.room(2, FUNCTION) == 1


def test_a_plain_task_of_some_milliseconds_has_a_successor_at_hand() -> None:
    """A parent that is busy for as long would leave the threads idle."""
    credit = in_threads(2)
    now = 0.0
    for _ in range(3):
        credit.send(2, FUNCTION, now)
        now += 3 * HORIZON
        report(credit, 2, credit.sent, now)
    credit.send(2, FUNCTION, now)
    assert credit.backlog(FUNCTION) == 0
    assert credit.room(credit.sent, FUNCTION, work_is_ample=True) >= 1
    credit.note_threaded(3)
    credit.send(1, 3, now)  # which was not measured yet, and may have the next thread
    assert credit.room(credit.sent, FUNCTION, work_is_ample=True) <= 0


def test_a_backlog_of_quick_plain_tasks_waits_for_a_thread() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    report(credit, 1, started=1, now=1e-5)
    credit.send(1, FUNCTION, now=1e-5)
    assert credit.room(2, FUNCTION) == GROWTH
    credit.note_threaded(3)
    credit.send(1, 3, now=1e-5)  # which was not measured yet, and will have the thread
    assert credit.room(3, FUNCTION) <= 0


def test_a_plain_function_does_not_look_as_quick_as_tasks_beside_it() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    now = 0.0
    for _ in range(1000):
        credit.send(1, OTHER, now)
        now += 1e-4
        credit.report(1, OTHER)
        if now >= 20 * HORIZON:
            credit.report(1, FUNCTION)
            credit.settle(credit.sent, now)
            break
        credit.settle(credit.sent, now)
    assert credit.backlog(OTHER) > 10
    assert credit.backlog(FUNCTION) == 0


def test_a_thread_that_was_told_of_is_free_again_if_its_task_could_not_be_sent() -> None:
    credit = in_threads(1)
    credit.send(1, FUNCTION, now=0.0)
    credit.need_work(15, 1, 1)  # it has returned an awaitable
    credit.send(1, FUNCTION, now=0.0)
    credit.take_back(1, FUNCTION, 0)
    assert credit.free_threads() == 1
