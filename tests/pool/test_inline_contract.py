"""The contract of pools holds inline: the tests of other modules, over the backend "inline".

Their functions are collected here a second time, with a `backend` that is inline. `LEFT_OUT` names
those that are about processes, by what they need of one.
"""

from __future__ import annotations

import importlib
import os
import types
from typing import Any

import pytest

MODULES = (
    "test_apply_as_coroutine",
    "test_as_completed",
    "test_calls",
    "test_cancelled_maps",
    "test_context_variables",
    "test_error_messages",
    "test_exception_handlers",
    "test_failed_maps",
    "test_huge_inputs",
    "test_huge_numbers",
    "test_late_inputs",
    "test_lifespan",
    "test_pool_api",
    "test_pool_corners",
    "test_pool_end",
    "test_pool_errors",
    "test_pool_misuse",
    "test_pool_results",
    "test_pool_scheduler",
    "test_priority",
    "test_resize",
    "test_return_exceptions",
    "test_sent_pools",
    "test_serializers",
    "test_shutdown",
    "test_stats",
    "test_streams",
    "test_threads",
    "test_time_limits",
    "test_unawaited_calls",
)

LEFT_OUT = {
    "the caller and the worker have one loop, and a call that blocks the one blocks the other": """
        test_a_parent_that_was_blocked_times_out_nothing_that_ended_meanwhile
    """,
    "a worker is found by its process id": """
        test_a_pool_grows_and_the_new_workers_get_tasks
        test_a_pool_that_grows_again_gives_an_index_anew_after_its_worker_has_left
        test_a_result_that_cannot_be_unpickled_fails_alone
        test_a_lifespan_that_ends_by_itself_is_named_in_the_log
        test_a_single_worker_is_replaced_after_exactly_maxtasksperchild
        test_a_worker_is_not_replaced_before_its_lifespan_was_left
        test_a_with_block_that_is_cut_off_ends_the_pool
        test_an_argument_that_cannot_be_unpickled_fails_alone
        test_applies_fill_childconcurrency_too
        test_every_start_method_gives_workers_of_their_own
        test_no_worker_runs_more_than_maxtasksperchild
        test_queues_without_a_scheduler_are_served_in_turn
        test_slow_tasks_are_shared_evenly
        test_the_initializer_runs_once_in_each_worker_before_any_task
    """,
    "a worker has globals, imports and a stderr of its own": """
        test_an_exception_handler_that_fails_is_logged_and_the_tasks_error_kept
        test_an_error_on_the_way_names_what_it_is_about
        test_a_lifespan_is_entered_after_the_initializer_and_left_after_the_last_task
        test_two_pools_at_once_do_not_disturb_each_other
        test_a_worker_that_cannot_answer_an_item_ends
        test_by_pickle_alone_a_shared_object_of_a_session_says_what_is_missing
        test_without_cloudpickle_what_lives_in_a_session_names_the_extra
    """,
    "a process is killed, or kills itself": """
        test_a_thread_that_never_returns_costs_its_worker_after_the_grace_period
        test_a_call_whose_worker_dies_after_it_was_cancelled_stays_cancelled
        test_a_copy_of_the_worker_that_a_call_forks_does_no_harm
        test_a_dead_worker_is_an_error_after_the_values_that_it_sent
        test_a_dead_worker_is_found_to_have_started_tasks_of_all_contexts
        test_a_dismissed_worker_that_dies_is_not_replaced_and_its_tasks_end
        test_a_function_that_lost_its_worker_is_sent_to_the_next
        test_a_lost_item_comes_in_its_turn
        test_a_lost_worker_and_what_cannot_be_pickled_are_errors_of_their_items
        test_a_lost_worker_fails_its_calls
        test_a_pool_lives_its_whole_life_under_uvloop
        test_a_retried_item_is_sealed_again
        test_a_task_that_lost_its_worker_goes_before_higher_priorities
        test_a_task_that_runs_again_sees_the_same_values
        test_a_retry_has_a_limit_of_its_own
        test_a_task_that_waits_to_run_again_is_dropped
        test_a_task_that_was_cancelled_and_dies_with_its_worker_has_timed_out
        test_a_task_whose_worker_died_in_time_has_not_timed_out
        test_a_task_with_a_limit_whose_worker_dies_otherwise_is_lost_or_retried
        test_no_value_is_lost_that_was_yielded_before_its_worker_died
        test_a_copy_that_a_generator_forks_sends_nothing
        test_streams_side_by_side_lose_no_value_when_their_worker_is_killed
        test_a_worker_that_gets_sigterm_while_it_enters_its_lifespan_is_replaced
        test_stats_count_lost_and_retried_tasks_and_restarts
        test_the_id_of_a_queue_may_be_anything
        test_tasks_that_were_not_started_return_to_their_priority
    """,
    "a task that blocks its loop, or goes on when it is cancelled, holds up its worker alone": """
        test_what_the_journal_holds_wins_over_the_kill
        test_the_late_result_of_a_timed_out_apply_is_dropped
        test_a_generator_that_blocks_its_worker_is_killed
        test_a_generator_that_goes_on_after_its_cancellation_is_killed
        test_a_killed_task_is_never_retried_and_its_neighbours_are
        test_a_lifespan_is_left_though_a_terminated_task_goes_on
        test_a_map_goes_on_when_items_are_killed
        test_a_pool_that_ends_does_not_wait_for_a_blocked_thread
        test_a_task_that_does_not_end_is_killed_and_its_worker_replaced
        test_an_apply_that_is_cancelled_before_it_is_sent_never_runs
        test_deaths_by_time_limits_do_not_delay_replacements
        test_no_wait_for_a_reader_saves_a_generator_that_was_cancelled
        test_stats_count_time_outs_whether_the_task_was_cancelled_or_killed
        test_a_users_scheduler_changes_nothing_in_test_time_limits
        test_a_worker_that_has_had_all_its_tasks_is_limited_too
        test_limits_hold_while_the_pool_closes
        test_tasks_behind_one_that_blocks_have_not_started_and_run_elsewhere
        test_terminate_ends_a_worker_that_holds_the_gil
        test_terminate_kills_what_ignores_its_cancellation_after_the_grace_period
        test_the_end_of_a_generator_has_the_same_limit
    """,
    "a worker has a loop of its own": """
        test_a_cancelled_apply_cancels_the_call_and_frees_its_slot
        test_a_loop_initializer_gives_workers_uvloop
        test_a_loop_initializer_wins_over_the_parents_loop
        test_a_loop_that_cannot_carry_a_pool_is_named_and_nothing_is_left
        test_a_task_factory_does_not_let_more_calls_run_than_there_are_threads
        test_all_tasks_shows_nothing_but_the_items
        test_an_initializer_may_run_the_loop
        test_calls_that_are_given_up_leave_nothing_behind
        test_errors_that_end_programs_end_only_their_task
        test_items_that_end_with_their_loop_are_no_failures
    """,
    "an interrupt in a task means the program too, which here is that of the tests": """
        test_a_result_whose_pickling_ends_programs_fails_alone
        test_a_value_whose_pickling_ends_programs_ends_its_stream
    """,
    "it is about the start of a process, or the choice of a backend": """
        test_a_lambda_that_workers_are_to_call_is_refused_by_name
        test_a_missing_main_guard_is_named
        test_a_pool_whose_first_start_failed_says_so_at_each_call
        test_restarts_are_counted_by_cause
        test_the_argument_wins_over_the_environment
    """,
}  # fmt: skip


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of the fixture that runs over all backends; a task cannot end the tests."""

    def kill(pid: int, signum: int) -> None:
        if pid == os.getpid() and signum:
            raise RuntimeError(f"signal {signum} for the process of the tests")
        real_kill(pid, signum)

    def leave(code: int) -> None:
        raise RuntimeError(f"exit code {code} for the process of the tests")

    real_kill = os.kill
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "inline")
    return "inline"


@pytest.fixture
def start_method() -> str:
    """In place of the fixture that runs over all start methods: no process is started."""
    return "spawn"


def again(function: types.FunctionType, marks: list[Any]) -> types.FunctionType:
    """A copy of a test, with its marks and those of its module, but for rows of the catalogue."""
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    vars(copy).update(vars(function))
    marks = [*marks, *vars(function).get("pytestmark", ())]
    vars(copy)["pytestmark"] = [mark for mark in marks if mark.name != "row"]
    copy.__annotations__ = function.__annotations__
    return copy


def collect() -> dict[str, Any]:
    """The tests and fixtures of all modules, by their names."""
    found: dict[str, Any] = {}
    unseen = {name for names in LEFT_OUT.values() for name in names.split()}
    for name in MODULES:
        module = importlib.import_module(name)
        marks = getattr(module, "pytestmark", [])
        marks = [mark.mark for mark in (marks if isinstance(marks, list) else [marks])]
        for key, value in vars(module).items():
            if type(value).__name__ == "FixtureFunctionDefinition":
                found.setdefault(key, value)
            elif key.startswith("test_") and value.__module__ == name:
                unique = f"{key}_in_{name}" if key in found else key
                if unique in unseen:
                    unseen.discard(unique)
                else:
                    found[unique] = again(value, marks)
    assert not unseen, f"these tests are not there: {unseen}"
    return found


globals().update({**collect(), "backend": backend, "start_method": start_method})
