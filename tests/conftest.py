"""What holds for every test.

The installed package is tested, with the extension where it is required; nothing is left behind; a
test that asks for `backend` or `start_method` runs once for each of them.
"""

import asyncio
import gc
import inspect
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the root on sys.path, where the folder amp_ext, which holds sources only,
# would be imported in place of the installed package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# A worker that gets SIGABRT when a test has hung prints its stacks.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")
# Most tests are about pickle, which cloudpickle, if it is installed, backs up by default.
os.environ.setdefault("AIOMULTIPROCESS_SERIALIZER", "pickle")
# NumPy's threads would make every fork a fork of a process with threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# An example may take as long as it does: no test asserts a time.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

import leaks  # noqa: E402  (after sys.path is right)
import start_methods  # noqa: E402

pytest_plugins = ["catalogue", "cluster_fixtures"]

REQUIRED = os.environ.get("AIOMULTIPROCESS_REQUIRE_EXTENSION", "") not in ("", "0")
BUILT = find_spec("amp_ext") is not None and find_spec("amp_ext.ring") is not None
BACKENDS = ("shm", "pipe") if BUILT else ("pipe",)
# AIOMULTIPROCESS_TEST_BACKENDS=shm: of the tests that run over each backend, those over this one
ONLY = os.environ.get("AIOMULTIPROCESS_TEST_BACKENDS", ",".join(BACKENDS)).split(",")

# What takes minutes and no commit needs: the rest of the contract over hosts.
FULL = os.environ.get("AIOMULTIPROCESS_TEST_SCALE") == "full"
collect_ignore = [] if FULL else ["cluster/test_wider_contract.py"]

# faulthandler_timeout keeps a thread, of which fork warns from 3.12 on
FORK_WARNING = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def pytest_configure() -> None:
    """Refuse to run where the extension is required and missing: all else would pass by `pipe`."""
    if REQUIRED and not BUILT:
        raise pytest.UsageError(
            "AIOMULTIPROCESS_REQUIRE_EXTENSION is set, but amp_ext.ring cannot be imported: "
            "install the package with a C compiler at hand (`make test` does)"
        )
    leaks.adopt_orphans()
    if sys.platform == "win32":  # pools want selector loops, and the default there is another
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    # A job that a shell started in the background ignores SIGINT, and so would all our scripts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # spawned workers import the parent's main module: without this, each would import pytest
    main = sys.modules["__main__"]
    main.__spec__ = None
    main.__dict__.pop("__file__", None)


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Spare the tests that look at all objects what is older than their module: it is most of them.

    Each async test looks through them for pending futures (leaks.py), and they are many once this
    process has imported dask: a third of the suite's CPU time was this process's own.
    """
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say in the first lines what is tested."""
    return f"aiomultiprocess: extension {'built' if BUILT else 'not built (pipe only)'}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """No test may leave a pending future in its loop."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = leaks.leaves_no_future(item.obj)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer() -> Generator[None, Any, Any]:
    """When a test has hung to its limit, its workers print their stacks first, then the parent."""
    done = yield
    if sys.platform != "win32" and callable(limit := signal.getsignal(signal.SIGALRM)):

        def dump_all(signum: int, frame: types.FrameType | None) -> None:
            leaks.dump_stacks_of_descendants()
            limit(signum, frame)

        signal.signal(signal.SIGALRM, dump_all)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test during which asyncio or a resource tracker warned, in any process."""
    report = yield
    if report.when == "teardown" and report.passed:
        said = leaks.complaint(report.capstderr + report.caplog)
        if said:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: {said!r} was written to stderr or the log"
    return report


def is_about_processes(request: pytest.FixtureRequest) -> bool:
    """Whether a test decides how its processes start, or needs children of this one."""
    if {"start_method", "capfd"} & set(request.fixturenames):
        return True
    return request.node.get_closest_marker("spawned") is not None


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes, threads, descriptors, mappings, shared memory: as before the test."""
    start_methods.provide_fork_server(shared=not is_about_processes(request))
    leaks.stop_resource_tracker()  # which comes with it: each test has its own
    before = leaks.holdings()
    yield
    start_methods.end_fork_server_of_test()
    left = leaks.left_behind(before)
    if left:
        leaks.clear_away(left)
        pytest.fail(f"left behind: {left}", pytrace=False)


@pytest.fixture(params=[backend for backend in BACKENDS if backend in ONLY])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the backend that pools, also those of scripts, choose in this test."""
    from aiomultiprocess import set_start_method

    name: str = request.param
    monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", name)
    if not is_about_processes(request):
        set_start_method(start_methods.method_over(name))
    yield name
    if not is_about_processes(request):
        set_start_method()


@pytest.fixture(
    params=[
        pytest.param(name, marks=FORK_WARNING if name == "fork" else ())
        for name in multiprocessing.get_all_start_methods()
    ]
)
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """The start method of all processes of this test."""
    from aiomultiprocess import set_start_method

    set_start_method(request.param)
    yield request.param
    set_start_method()
