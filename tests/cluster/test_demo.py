"""`make cluster-demo`, and the example of the page on clusters, do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiomultiprocess._wire.serializing import ENVIRONMENT
from clusters import Dask
from conftest import ROOT


def run(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints, as a user runs it."""
    done = completed(name, folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def completed(
    name: str, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The same, if it may fail."""
    # what the main module defines has to travel by value
    kept = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
        env={**kept, **environment},
    )


def test_the_demo_loses_nothing_with_a_worker(tmp_path: Path) -> None:
    out = run("cluster.py", tmp_path, "--count", "2000")
    assert "half-way: dask worker" in out
    assert out.endswith("both are the same: nothing was lost with the worker\n")


@pytest.mark.row("H210")
def test_the_demo_shows_the_log_of_a_scheduler_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ImportError('it is broken')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = completed("cluster.py", tmp_path, "--count", "1", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.startswith("the scheduler has ended with code 1:\n")
    assert done.stderr.endswith("ImportError: it is broken\n\n")


@pytest.mark.row("H210")
def test_the_demo_refuses_to_find_no_number(tmp_path: Path) -> None:
    done = completed("cluster.py", tmp_path, "--count", "0")
    assert done.returncode == 2
    assert "argument --count: invalid positive value: '0'" in done.stderr


def test_the_example_runs_on_a_cluster_by_its_address_and_by_a_client(
    dask: Dask, tmp_path: Path
) -> None:
    out = run("many_machines.py", tmp_path, dask.address)
    assert out == (
        "1,000 pages; some hosts: True\npage 0\npage 1\npage 2\n1,000 pages through the scheduler\n"
    )
