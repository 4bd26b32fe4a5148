"""An environment of its own for each peer: made once below .benchmarks/, from the running Python.

AIOMULTIPROCESS_BENCHMARKS names another folder for them, which checkouts may share.

An installation that fails or takes too long is remembered as a reason, so that the peer is shown as
not installed and the next run does not wait for it again. Delete its folder to try once more.
"""

import os
import subprocess
import sys
import venv
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / ".benchmarks"
#: Several checkouts may share one: an environment is found by what it holds and its Python.
FOLDER = Path(os.environ.get("AIOMULTIPROCESS_BENCHMARKS") or HERE).resolve()
PATIENCE = 400.0  # seconds for one installation


class NotInstalledError(Exception):
    """Why a peer is not available here."""


def python_of(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of the environment `name`, which holds `requirements`."""
    tag = f"{sys.implementation.cache_tag}-{zlib.crc32(sys.base_prefix.encode()):08x}"
    folder = FOLDER / f"{name}-{tag}"
    python = folder / "bin" / "python"
    ready, failed = folder / ".ready", folder / ".failed"
    if failed.exists():
        raise NotInstalledError(failed.read_text())
    if not ready.exists():
        print(f"installing {', '.join(requirements)}", file=sys.stderr, flush=True)
        try:
            _install(folder, python, requirements)
        except NotInstalledError as error:
            failed.write_text(str(error))
            raise
        ready.touch()
    return python


def _install(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        folder.mkdir(parents=True, exist_ok=True)  # where the reason is kept
        raise NotInstalledError(f"no environment: {error}") from None
    pip = [str(python), "-m", "pip", "install", "--quiet", "--prefer-binary", *requirements]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"not installed within {PATIENCE:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalledError((lines or ["pip failed"])[-1])
