"""`make cluster-demo`, and the example of the page on clusters, do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aiomultiprocess._wire.serializing import ENVIRONMENT
from clusters import Dask
from conftest import ROOT


def run(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints, as a user runs it."""
    # what the main module defines has to travel by value
    kept = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
        env=kept,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_loses_nothing_with_a_worker(tmp_path: Path) -> None:
    out = run("cluster.py", tmp_path, "--count", "2000")
    assert "half-way: dask worker" in out
    assert out.endswith("both are the same: nothing was lost with the worker\n")


def test_the_example_runs_on_a_cluster_by_its_address_and_by_a_client(
    dask: Dask, tmp_path: Path
) -> None:
    out = run("many_machines.py", tmp_path, dask.address)
    assert out == (
        "1,000 pages; some hosts: True\npage 0\npage 1\npage 2\n1,000 pages through the scheduler\n"
    )
