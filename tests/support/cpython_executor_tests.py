"""CPython's own tests of executors, with our executor in the place of its ProcessPoolExecutor.

A program: `python cpython_executor_tests.py MODULE` runs one module of CPython's package
`test.test_concurrent_futures` (before 3.12, the classes of that name in the one module), without
the tests in `LEFT_OUT`, and prints what came of it as one line of JSON.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import os
import sys
import time
import types
import unittest
from collections.abc import Iterator
from typing import Any

from aiomultiprocess import PoolExecutor

PACKAGE = "test.test_concurrent_futures"
#: The modules of 3.12 and newer, each with the classes that stand for it in the module of 3.11.
MODULES = {
    "test_as_completed": "AsCompletedTest",
    "test_deadlock": "ExecutorDeadlockTest",
    "test_init": "Initializer",
    "test_process_pool": "ProcessPoolExecutorTest",
    "test_shutdown": "ProcessPoolShutdownTest",
    "test_wait": "WaitTest",
}

ON_DEMAND = "all workers start with the first call, not one after the other"
ALONE = "what cannot be unpickled fails its own call, by its own error, and breaks nothing"
NOT_LOGGED = "the error of the call says why the initializer failed; the worker logs nothing"
INTERNAL = "it replaces parts inside of CPython's executor"

#: Tests that do not hold here, each with the difference of contract that is the reason, in words
#: that docs/how-to/threads.md has too.
LEFT_OUT = {
    "test_killed_child": "A worker that dies fails only the calls that it had begun",
    "test_idle_process_reuse_one": ON_DEMAND,
    "test_idle_process_reuse_multiple": ON_DEMAND,
    "test_processes_terminate": ON_DEMAND,
    "test_max_tasks_per_child": (
        "the limit of `max_tasks_per_child` works under fork too, and replacements overlap"
    ),
    "test_traceback": (
        "the cause of an error is not of CPython's private class `_RemoteTraceback`"
    ),
    "test_python_finalization_error": (
        "all calls share one thread, so at the exit of the interpreter there is no second one that "
        "could be refused"
    ),
    "test_error_at_task_unpickle": ALONE,
    "test_exit_at_task_unpickle": ALONE,
    "test_error_during_result_unpickle_in_result_handler": ALONE,
    "test_exit_during_result_unpickle_in_result_handler": ALONE,
    "test_exit_during_result_pickle_on_worker": (
        "the error for a result that ends its worker as it is pickled is a `PicklingError` that "
        "says why"
    ),
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": INTERNAL,
    "FailingInitializerTest.test_initializer": NOT_LOGGED,
    "FailingInitializerResourcesTest.test_spawn": NOT_LOGGED,
    "FailingInitializerResourcesTest.test_forkserver": NOT_LOGGED,
}


class Process:
    """A worker as CPython's tests use it, also after its pool has forgotten it."""

    def __init__(self, process: Any) -> None:
        self.pid = process.pid
        self.terminate = process.terminate

    def join(self) -> None:
        """Until it has ended; the executor reaps it."""
        while os.path.exists(f"/proc/{self.pid}"):
            time.sleep(0.01)


class StandIn(PoolExecutor):
    """A PoolExecutor with the private attributes that CPython's tests read."""

    def __init__(self, max_workers: int | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(max_workers, *args, **kwargs)
        self._mp_context = self._runner._pool.context
        self._call_queue = types.SimpleNamespace(join_thread=lambda: None)

    @property
    def _executor_manager_thread(self) -> Any:
        return self._runner._thread

    @property
    def _broken(self) -> bool:
        engine = self._runner._engine
        return engine is not None and engine.state is engine.BROKEN

    @property
    def _processes(self) -> dict[int, Process]:
        if self._runner._thread is None:
            self.submit(int).result()
        while self._runner._engine is None:
            time.sleep(0.01)
        return {worker.pid: Process(worker) for worker in list(self._runner._pool.processes)}


StandIn.__name__ = "ProcessPoolExecutor"


class Log(unittest.TestResult):
    """Collects what each test came to."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().addSuccess(test)
        self.passed.append(test.id())


def tests_of(suite: Any) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def with_our_executor(run: Any) -> Any:
    """`assert_python_ok` for programs that import CPython's executor."""

    def replaced(*args: str, **env: str) -> Any:
        ours = "from aiomultiprocess import PoolExecutor as ProcessPoolExecutor"
        theirs = "from concurrent.futures import ProcessPoolExecutor"
        return run(*(arg.replace(theirs, ours) for arg in args), **env)

    return replaced


def left_out_as(test: unittest.TestCase) -> str | None:
    """The entry of `LEFT_OUT` that is about a test."""
    return next((name for name in LEFT_OUT if test.id().endswith(name)), None)


def load(name: str) -> Any:
    concurrent.futures.ProcessPoolExecutor = StandIn  # type: ignore[misc]
    parts = importlib.import_module(PACKAGE)
    module = importlib.import_module(f"{PACKAGE}.{name}") if hasattr(parts, "__path__") else parts
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = with_our_executor(module.assert_python_ok)
    return module


def main(name: str) -> None:
    module = load(name)
    everything = list(tests_of(unittest.defaultTestLoader.loadTestsFromModule(module)))
    ours = [test for test in everything if "Thread" not in type(test).__name__]
    if module is sys.modules[PACKAGE]:
        ours = [test for test in ours if MODULES[name] in type(test).__name__]
    left_out = {test.id(): name for test in ours if (name := left_out_as(test)) is not None}
    log = Log()
    suite = unittest.TestSuite(test for test in ours if test.id() not in left_out)
    suite.run(log)
    failed = {test.id(): text for test, text in [*log.failures, *log.errors]}
    skipped = {test.id(): reason for test, reason in log.skipped}
    report = {"passed": log.passed, "failed": failed, "skipped": skipped, "left_out": left_out}
    print(f"\n{json.dumps(report)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
