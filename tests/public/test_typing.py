"""The types a user sees are those of the installed package, under mypy --strict."""

import subprocess
import sys
from pathlib import Path

USAGE = Path(__file__).with_name("typing_usage.py")


def test_typical_user_code_passes_mypy_strict(tmp_path: Path) -> None:
    # From an empty folder and without our configuration, as at a user's.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--strict", "--config-file=", str(USAGE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
