"""`make cluster-demo` does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aiomultiprocess._wire.serializing import ENVIRONMENT
from conftest import ROOT


def test_the_demo_loses_nothing_with_a_worker(tmp_path: Path) -> None:
    # what the main module defines has to travel by value
    kept = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "cluster.py"), "--count", "2000"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
        env=kept,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "half-way: dask worker" in done.stdout
    assert done.stdout.endswith("both are the same: nothing was lost with the worker\n")
