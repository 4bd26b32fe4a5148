"""The command line: `python -m tests.project.chaos` from the root of the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# `-m` has put the root on sys.path, where the folder amp_ext, which holds sources only, would be
# imported in place of the installed package. Workers find what they run below tests/, as in a test.
sys.path[:] = [
    str(ROOT / "tests" / "support"),
    str(ROOT / "tests" / "project"),
    *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT),
]

from chaos.session import Options, run  # noqa: E402  (after sys.path is right)


def options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.project.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the load and the killers (1)")
    parser.add_argument(
        "--backend", choices=["shm", "pipe", "dask"], help="default: the best of this machine"
    )
    parser.add_argument("--processes", type=int, default=2, help="workers (2)")
    parser.add_argument("--load", type=float, default=1.0, help="times the usual load (1.0)")
    parser.add_argument("--mean", type=float, default=1.0, help="seconds between deaths (1.0)")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds that are a hang (30)")
    deaths = "seconds between two blows against a host, with --backend dask (12.0)"
    parser.add_argument("--host-mean", type=float, default=12.0, help=deaths)
    trim = "RSS without what malloc holds and has not given: see how much is really kept"
    parser.add_argument("--trim", action="store_true", help=trim)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    report = run(options())
    print(*report.lines(), sep="\n")
    sys.exit(0 if report.sound else 1)
