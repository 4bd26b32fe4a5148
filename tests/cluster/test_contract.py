"""The contract of pools, over hosts: API, results, errors, deaths, retries and the end."""

from __future__ import annotations

from over_hosts import (
    AT_ONCE,
    CLIENT,
    ELSEWHERE,
    FORGOTTEN,
    LATER,
    NO_CHILDREN,
    NO_START_METHOD,
    ONE_QUEUE,
    OWN_POOL,
    WATCHED_THERE,
    gather,
)

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
        "test_a_worker_killed_while_it_starts_is_replaced_and_its_tasks_run": AT_ONCE,
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
    "test_blocked_workers": {
        "test_an_executor_yields_what_is_there_before_a_slow_call": OWN_POOL,
        "test_results_taken_at_any_moment_count_once": WATCHED_THERE,
        "test_results_of_a_worker_that_began_late_do_not_wait_either": WATCHED_THERE,
    },
}

globals().update(gather(OUT))
