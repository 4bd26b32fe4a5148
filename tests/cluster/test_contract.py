"""The contract of pools, over hosts: tests of tests/pool, with the workers in a dask cluster.

They are the same functions, whose `Pool` makes a pool over the cluster. What cannot be the same
there is left out, by name and with the reason.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from conftest import ROOT

sys.path.insert(1, str(ROOT / "tests" / "pool"))  # its tests run here too

NO_CHILDREN = "it waits for a worker as for a child of this process"
ONE_QUEUE = "hosts come and go: a pool over them has one queue"
NO_START_METHOD = "hosts have a start method of their own"
ELSEWHERE = "the worker's output is not that of this process"
AT_ONCE = "it looks for processes before hosts can have started them"

FORGOTTEN = "a forgotten pool leaves the scheduler in more turns than the test waits for"

CLIENT = "a client of dask lives in the loop, with tasks of its own, and ends with it"
LATER = "it looks at what a host reports some milliseconds later"
NO_RESIZE = "hosts decide how many workers there are"

OUT: dict[str, dict[str, str]] = {
    "test_pool_api": {
        "test_attributes_hold_what_the_pool_was_made_with": ONE_QUEUE,
        "test_the_exception_handler_runs_in_the_worker": AT_ONCE,
        "test_a_pool_may_be_made_before_the_loop": AT_ONCE,
        "test_every_start_method_gives_workers_of_their_own": NO_START_METHOD,
    },
    "test_pool_results": {},
    "test_pool_errors": {
        "test_an_exception_handler_that_fails_is_logged_and_the_tasks_error_kept": ELSEWHERE,
    },
    "test_pool_death": {
        "test_a_death_is_reported_at_once_and_not_by_a_timer": NO_CHILDREN,
        "test_a_death_under_any_start_method_fails_what_ran_and_moves_the_rest": NO_START_METHOD,
        "test_a_result_published_before_the_death_is_delivered": NO_CHILDREN,
        "test_many_results_published_before_the_death_are_all_delivered": NO_CHILDREN,
        "test_a_death_is_noticed_though_a_forked_process_lives_on": NO_CHILDREN,
        "test_workers_killed_while_they_start_do_not_harm_one_that_works": AT_ONCE,
        "test_a_forgotten_pool_starts_no_worker_later": FORGOTTEN,
        "test_a_backlog_of_a_pool_that_was_dropped_is_finished_too": FORGOTTEN,
    },
    "test_pool_retries": {
        "test_a_retry_task_goes_to_an_idle_worker_at_once": AT_ONCE,
        "test_a_busy_worker_falls_idle_for_a_retry_task_that_has_no_other": AT_ONCE,
        "test_a_call_that_is_cancelled_while_it_waits_for_a_retry_leaves_nothing": AT_ONCE,
        "test_a_worker_that_was_kept_free_goes_on_once_another_runs_the_retry_task": AT_ONCE,
    },
    "test_pool_end": {
        "test_close_lets_all_tasks_finish": CLIENT,
        "test_terminate_fails_pending_calls_and_runs_finally_blocks": LATER,
        "test_calls_that_are_given_up_leave_nothing_behind": CLIENT,
    },
    "test_pool_corners": {},
    "test_pool_large": {},
    "test_pool_journal": {},
    "test_as_completed": {},
    "test_calls": {
        "test_gather_needs_no_task_for_a_call": CLIENT,
        "test_a_call_can_be_cancelled_after_its_loop_was_closed": CLIENT,
    },
    "test_cancelled_maps": {},
    "test_context_variables": {},
    "test_current_worker": {},
    "test_exception_handlers": {},
    "test_lifespan": {
        "test_a_worker_that_a_smaller_pool_dismisses_leaves_its_lifespan": NO_RESIZE,
    },
    "test_memory_limits": {},
    "test_return_exceptions": {},
    "test_shutdown": {},
    "test_stats": {
        "test_stats_say_what_runs_and_waits_and_is_done": LATER,
    },
    "test_streams": {
        "test_a_stream_that_is_dropped_while_its_loop_stands_still_is_closed": CLIENT,
    },
    "test_threads": {},
    "test_time_limits": {
        "test_a_task_whose_worker_died_in_time_has_not_timed_out": NO_CHILDREN,
    },
    "test_worker_logs": {},
}


def gather() -> dict[str, Any]:
    """The tests of these modules, and the fixtures that they need, by names of their own."""
    found: dict[str, Any] = {}
    for name, out in OUT.items():
        for each, thing in vars(importlib.import_module(name)).items():
            if type(thing).__name__ == "FixtureFunctionDefinition":
                found[each] = thing
            elif each.startswith("test_") and each not in out and not needs_queues(thing):
                found[f"test_{name.removeprefix('test_')}__{each.removeprefix('test_')}"] = thing
    return found


def needs_queues(test: Any) -> bool:
    """Whether a test makes a pool with a scheduler of its own, which has no meaning here."""
    names = test.__code__.co_names
    called = {*names, *(const for const in test.__code__.co_consts if isinstance(const, str))}
    constants = [const for const in test.__code__.co_consts if isinstance(const, tuple)]
    called |= {name for names_of_call in constants for name in names_of_call}
    return bool(called & {"scheduler", "queuecount"})


globals().update(gather())


@pytest.fixture(autouse=True)
def _over_hosts(
    request: pytest.FixtureRequest, dask_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[request.function.__module__], "Pool", dask_pool)
