"""Some seconds of chaos over a cluster: no task is lost, or run once more than it may."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT


def test_every_task_is_resolved_once_while_hosts_and_processes_die() -> None:
    command = [sys.executable, "-m", "tests.project.chaos", "--backend", "dask"]
    command += ["--seconds", "10", "--load", "0.5", "--mean", "0.5", "--host-mean", "2"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    assert "backend dask" in header
    assert rows[-1] == "sound"
    figures = {row[:44].strip(): row[44:].strip() for row in rows}
    assert figures["lost (never resolved)"] == "0"
    assert figures["left behind"] == "nothing"
    assert any(name.startswith("hosts ") for name in figures)
