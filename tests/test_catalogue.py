"""The catalogue of failures (catalogue.py) is complete: no row without a test."""

from __future__ import annotations

import subprocess
import sys

from catalogue import NO_TEST, ROWS
from conftest import ROOT
from support import TESTS

LOAD = "F47"  # shown by test_chaos.py


def test_every_row_of_the_catalogue_has_a_test() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:]
    listed = [line for line in done.stdout.splitlines() if line.partition(" ")[0] in ROWS]
    assert [line.partition(" ")[0] for line in listed] == list(ROWS)
    without = [line for line in listed if line.endswith(NO_TEST)]
    assert [line for line in without if not line.startswith(LOAD) or has_chaos()] == []


def has_chaos() -> bool:
    return (TESTS / "test_chaos.py").exists()
