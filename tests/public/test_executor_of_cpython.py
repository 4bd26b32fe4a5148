"""CPython's own tests of executors pass with PoolExecutor, but for differences of contract."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

import cpython_executor_tests
from cpython_executor_tests import LEFT_OUT, MODULES
from support import wait_for_exit

PROGRAM = Path(cpython_executor_tests.__file__)
LIMIT = 400  # seconds: several hundred workers are started


def installed() -> bool:
    """Whether this Python has its own tests; many installations leave them out."""
    try:
        return find_spec(cpython_executor_tests.PACKAGE) is not None
    except ModuleNotFoundError:
        return False


def outcome_of(module: str, folder: Path) -> dict[str, Any]:
    out = folder / "out"
    before = {child.pid for child in psutil.Process().children()}  # a cluster of other tests
    with out.open("wb") as file:
        subprocess.run(
            [sys.executable, str(PROGRAM), module],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROGRAM.parent)},
            timeout=LIMIT,
            check=False,
        )
    # fork servers and resource trackers of programs that have ended end by themselves, soon
    orphans = {child.pid for child in psutil.Process().children()} - before
    asyncio.run(wait_for_exit(orphans, within=30.0))
    *_, last = out.read_text().splitlines()
    report: dict[str, Any] = json.loads(last)
    return report


@pytest.mark.skipif(not installed(), reason="CPython's own tests are not installed here")
@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("module", MODULES)
def test_the_tests_of_cpython_pass_but_those_with_another_contract(
    module: str, tmp_path: Path
) -> None:
    report = outcome_of(module, tmp_path)
    assert report["failed"] == {}
    assert report["passed"]
    assert set(report["left_out"].values()) <= LEFT_OUT.keys()
