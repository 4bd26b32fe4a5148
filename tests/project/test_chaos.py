"""A few seconds of chaos find no fault, and each kind of fault would be found."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from aiomultiprocess import TaskTimeoutError
from chaos.accounts import DEAF, Accounts, Outcome, outcome_of
from chaos.meter import COLUMNS, Samples
from chaos.report import slope_of, tenths_of
from chaos.stall import STATUS
from chaos.tasks import AMPLE, LIMIT, RECORD
from conftest import ROOT
from support import pool_script, run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc of Linux")


@pytest.mark.row("F47")
def test_every_task_is_resolved_once_while_workers_die(backend: str) -> None:
    command = [sys.executable, "-m", "tests.project.chaos", "--seconds", "4", "--mean", "0.3"]
    done = subprocess.run(
        [*command, "--backend", backend],
        cwd=ROOT,  # on purpose: the folder amp_ext there must not shadow the installed package
        capture_output=True,
        text=True,
        timeout=110,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    assert f"backend {backend}" in header
    assert str(ROOT / "src") not in header
    assert rows[-1] == "sound"
    figures = {row[:44].strip(): row[44:].strip() for row in rows}
    assert figures["lost (never resolved)"] == "0"
    assert figures["left behind"] == "nothing"
    assert not figures["deaths of workers"].startswith("0 ")


# -- the accounts find each fault ----------------------------------------------------------------


def execute(accounts: Accounts, *numbers: int) -> None:
    with accounts.executed.open("ab") as journal:
        for number in numbers:
            journal.write(RECORD.pack(number))


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    """Accounts of tasks 0, 1 and 2, all of which were executed."""
    accounts = Accounts(tmp_path)
    for value in range(3):
        accounts.new("value", value)
    execute(accounts, 0, 1, 2)
    return accounts


def settle(accounts: Accounts, *numbers: int) -> None:
    for number in numbers:
        accounts.judge((number, "value", number), (number, number))


def test_tasks_that_were_all_resolved_are_sound(accounts: Accounts) -> None:
    settle(accounts, 0, 1, 2)
    verdict = accounts.close()
    assert verdict.sound
    assert (verdict.submitted, verdict.executions) == (3, 3)
    assert verdict.outcomes == {Outcome.RESULT: 3}


def test_a_task_that_was_never_resolved_is_lost(accounts: Accounts) -> None:
    settle(accounts, 0, 2)
    verdict = accounts.close()
    assert (verdict.lost, verdict.sound) == (1, False)
    assert verdict.words == ["task 1 was never resolved; executed 1 times"]


def test_a_task_that_was_resolved_twice_is_found(accounts: Accounts) -> None:
    settle(accounts, 0, 1, 1, 2)
    verdict = accounts.close()
    assert (verdict.resolved_twice, verdict.sound) == (1, False)


def test_a_task_that_was_executed_twice_is_found(accounts: Accounts) -> None:
    settle(accounts, 0, 1, 2)
    execute(accounts, 1)
    verdict = accounts.close()
    assert (verdict.executed_too_often, verdict.sound) == (1, False)


def test_a_task_with_retries_may_be_executed_again_but_not_more_often(accounts: Accounts) -> None:
    settle(accounts, 0)
    for number in (1, 2):
        accounts.judge((number, "value", number), (number, number), limit=2)
    execute(accounts, 1, 2, 2)
    verdict = accounts.close()
    assert (verdict.executed_too_often, verdict.executions) == (1, 6)


def test_a_result_without_an_execution_is_found(accounts: Accounts) -> None:
    accounts.judge(accounts.new("value", 3), (3, 3))
    settle(accounts, 0, 1, 2)
    verdict = accounts.close()
    assert (verdict.executed_too_seldom, verdict.sound) == (1, False)


def test_a_result_of_another_task_is_a_fault(accounts: Accounts) -> None:
    settle(accounts, 0, 1)
    accounts.judge((2, "value", 2), (1, 1))
    verdict = accounts.close()
    assert (verdict.faults, verdict.lost, verdict.sound) == (1, 0, False)


@pytest.mark.parametrize("what", ["value", "raise", "stay", "unsent", "segfault", "exit"])
def test_an_error_of_something_else_is_no_outcome(what: str) -> None:
    assert outcome_of((0, what, None), RuntimeError("something else")) is None


@pytest.mark.parametrize("what", ["value", "just", "overtime"])
def test_a_time_out_is_the_end_only_of_a_task_with_the_short_limit(what: str) -> None:
    task = (0, what, None)
    for killed in (False, True):
        assert outcome_of(task, TaskTimeoutError("it", LIMIT, killed), LIMIT) is Outcome.TIMED_OUT
    assert outcome_of(task, TaskTimeoutError("it", LIMIT)) is None
    assert outcome_of(task, TaskTimeoutError("it", AMPLE), AMPLE) is None
    assert outcome_of(task, TaskTimeoutError("it", LIMIT + 1), LIMIT) is None


@pytest.mark.parametrize("what", ["overtime", *DEAF])
def test_a_task_that_takes_too_long_has_no_result(what: str) -> None:
    assert outcome_of((0, what, None), (0, None), LIMIT) is None


@pytest.mark.parametrize("what", DEAF)
def test_a_task_that_does_not_react_ends_only_with_its_worker(what: str) -> None:
    task = (0, what, None)
    killed, died = TaskTimeoutError("it", LIMIT, True), TaskTimeoutError("it", LIMIT, False)
    reacted = TaskTimeoutError("it", LIMIT, False)
    reacted.__cause__ = asyncio.CancelledError()
    assert outcome_of(task, killed, LIMIT) is Outcome.TIMED_OUT
    assert outcome_of(task, died, LIMIT) is Outcome.TIMED_OUT
    assert outcome_of(task, reacted, LIMIT) is None


def test_the_slope_of_a_line_is_exact_and_that_of_noise_has_an_error() -> None:
    slope, error = slope_of([(x, 5 + 2 * x) for x in range(10)])
    assert (slope, error) == (pytest.approx(2), pytest.approx(0))
    slope, error = slope_of([(x, x % 2) for x in range(10)])
    assert abs(slope) < 2 * error


def test_medians_are_of_ten_equal_parts_or_of_each_value() -> None:
    assert tenths_of(range(100)) == [10 * part + 4.5 for part in range(10)]
    assert len(tenths_of(range(19))) == 10
    assert tenths_of([3.0, 1.0]) == [3, 1]
    assert tenths_of(range(100), min) == list(range(0, 100, 10))


def test_samples_are_read_by_column_as_they_were_added(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "table")
    rows = [[row + column / 8 for column in range(len(COLUMNS))] for row in range(3)]
    for row in rows:
        samples.add(*row)
    columns = samples.columns()
    assert [*columns] == [*COLUMNS]
    assert [[*row] for row in zip(*columns.values(), strict=True)] == rows


# -- the watchdog finds a hang -------------------------------------------------------------------

HANGING = """
async with Pool(1, initializer=tasks.prepare, initargs=(os.devnull,)) as pool:
    await pool.apply(workload.two)  # it is ready for the signal
    with Watchdog(lambda: 0, 0.5):
        await pool.apply(workload.wait_for_ever)
"""


def test_a_hang_shows_the_stacks_of_parent_and_workers_and_ends(
    backend: str, tmp_path: Path
) -> None:
    setup = "from chaos import tasks\nfrom chaos.stall import Watchdog"
    script = run_script(tmp_path, pool_script(HANGING, setup=setup), within=30)
    assert script.process.returncode == STATUS
    hung, _, rest = script.err.partition("-- worker")
    worker, _, parent = rest.partition("-- parent")
    assert hung.startswith("HUNG")
    assert "engine.py" in worker
    assert "stall.py" in parent
    assert "await pool.apply(workload.wait_for_ever)" in parent
