"""What holds for every test: the installed package is tested, and the extension where required."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the root on sys.path, where the folder amp_ext, which holds sources only,
# would be imported in place of the installed package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

REQUIRED = os.environ.get("AIOMULTIPROCESS_REQUIRE_EXTENSION", "") not in ("", "0")
BUILT = find_spec("amp_ext") is not None and find_spec("amp_ext.ring") is not None


def pytest_configure() -> None:
    """Refuse to run where the extension is required and missing: all else would pass by `pipe`."""
    if REQUIRED and not BUILT:
        raise pytest.UsageError(
            "AIOMULTIPROCESS_REQUIRE_EXTENSION is set, but amp_ext.ring cannot be imported: "
            "install the package with a C compiler at hand (`make test` does)"
        )


def pytest_report_header() -> str:
    """Say in the first lines what is tested."""
    return f"aiomultiprocess: extension {'built' if BUILT else 'not built (pipe only)'}"
