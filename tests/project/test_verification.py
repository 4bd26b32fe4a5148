"""The tools of docs/verification.md work, and find nothing: a short run of each.

What they check does not depend on the version of Python, so one run is enough; `make verify` runs
them at length.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="run on Linux, for all systems")


def run(tool: str, *arguments: str) -> str:
    """What a tool says that succeeds."""
    command = [f"amp_ext/{tool}/run.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"needs {program}; `make verify` insists on it"
    )


@pytest.mark.row("C28", "C32", "C33")
@needs("cc")
def test_the_ring_is_sound_under_sanitizers_and_kills() -> None:
    said = run("stress", "50000", "40")
    assert said.count("writers killed") == 4
    assert said.count("records, rung") == said.count("rounds, slept") == 2


@pytest.mark.row("C29")
@pytest.mark.row("H242")
@needs("spin")
def test_the_models_of_ring_and_segment_hold_and_mutants_are_caught() -> None:
    said = run("model", "brief")
    assert said.count(" states, depth ") == 2
    assert said.count("caught: ") == 4


@pytest.mark.row("C30")
@needs("clang")
def test_the_fuzzer_finds_nothing_in_the_ring() -> None:
    assert "Done " in run("fuzz", "2")
