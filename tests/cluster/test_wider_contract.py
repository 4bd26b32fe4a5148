"""All else that pools do, over hosts, which takes some minutes (see test_contract.py).

It runs with AIOMULTIPROCESS_TEST_SCALE=full alone.
"""

from __future__ import annotations

from over_hosts import CLIENT, LATER, NO_CHILDREN, NO_RESIZE, gather

OUT: dict[str, dict[str, str]] = {
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

globals().update(gather(OUT))
