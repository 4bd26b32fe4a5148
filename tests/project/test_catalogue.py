"""Every row of the catalogue (catalogue.py) has a test, and a test that hangs is ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from catalogue import NO_TEST, ROWS
from conftest import ROOT


def pytest_in_another_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a session of its own, so that what it leaves is reaped as a script's (leaks.py)."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, start_new_session=True
    )


def test_every_row_of_the_catalogue_has_a_test() -> None:
    done = pytest_in_another_process("--collect-only", "-q")
    assert done.returncode == 0, done.stdout[-2000:]
    listed = [line for line in done.stdout.splitlines() if line.partition(" ")[0] in ROWS]
    assert [line.partition(" ")[0] for line in listed] == list(ROWS)
    assert [line for line in listed if line.endswith(NO_TEST)] == []


@pytest.mark.skipif(sys.platform == "win32", reason="there the limit ends all at once")
def test_a_test_that_hangs_is_ended_and_shows_the_stacks_of_parent_and_workers() -> None:
    test = "test_that_hangs_in_the_parent_and_in_two_workers"
    done = pytest_in_another_process("--timeout=3", f"tests/support/hanging.py::{test}")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Timeout (>3.0s)" in said
    assert said.count("Fatal Python error: Aborted") == 2  # in workers
    assert "in hold_the_gil" in said
    assert "in meet_blocking" in said
    assert f"in {test}" in said


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_test_that_hangs_in_c_is_ended_and_shows_its_stack() -> None:
    test = "test_that_hangs_in_c_in_the_parent"
    done = pytest_in_another_process(
        *("--timeout=5", "-o", "faulthandler_timeout=10", f"tests/support/hanging.py::{test}")
    )
    assert done.returncode == 1
    assert f"in {test}" in done.stderr
