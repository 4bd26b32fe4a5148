"""The benchmark suite: `make bench`, or `make bench QUICK=1` for a short look.

It runs on the Python that runs this file (`make bench PYTHON=python3.13`), and keeps the figures of
each version; the page shows those of all (report.py).

All peers (peers.py), each in an environment of its own, do all workloads (workloads.py) in turn,
round after round: A B C B C A. A noisy minute of the machine so hurts all alike, no peer is always
the first to touch memory that the machine has not used yet, and each round gives a ratio of its
own; large values are echoed once before they are measured (measures.py says why). Reported are
medians. Sizes are such that a measurement takes a fraction of a second; the first
time that a peer meets a workload, its size and its best chunk size are looked for. A peer that does
not answer in time, or fails, is not asked the same again.
"""

import argparse
import json
import os
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

import report
from environments import FOLDER, NotInstalledError, python_of
from measures import Figures
from peers import NUMPY, PEERS
from sessions import FailedError, HungError, Session, idle, peak_memory
from workloads import (
    BY_ITEMS,
    BY_WORKERS,
    FIRST,
    MAIN,
    STREAMS,
    Workload,
)

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rounds: int
    scaling_rounds: int  # of what is slow: the series by workers and by items
    seconds: float  # a measurement takes at most about so long
    idle: float  # seconds of looking at an idle pool
    too_long: float  # seconds that a peer may take for a workload of a fixed size
    patience: float  # seconds until an answer is not waited for any more
    size: str  # which of a workload's sizes is the most that is done at a time


FULL = Scale(5, 3, seconds=0.2, idle=1.5, too_long=7.0, patience=40.0, size="size")
QUICK = Scale(3, 1, seconds=0.08, idle=0.5, too_long=0.5, patience=15.0, size="quick")
TINY = Scale(1, 1, seconds=0.01, idle=0.1, too_long=0.1, patience=30.0, size="tiny")


class Suite:
    """One run. Figures that are missing are in `failures`, by workload and peer."""

    def __init__(self, scale: Scale, pythons: dict[str, Path], log: Path) -> None:
        self._scale = scale
        self._pythons = pythons
        self._log = log
        self._sessions: dict[str, Session] = {}
        self._plans: dict[tuple[str, str], dict[str, int]] = {}
        self._hangs: Counter[str] = Counter()
        self.versions: dict[str, str] = {}
        self.failures: dict[tuple[str, str], str] = {}
        self.results: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))

    def run(self, workloads: list[Workload]) -> None:
        steps = list(self._steps(workloads))
        try:
            with tqdm(steps, unit="step", smoothing=0.05, dynamic_ncols=True) as bar:
                for number, workload, peer in bar:
                    bar.set_description(f"round {number + 1} of {self._scale.rounds}, {peer:15}")
                    self._step(workload, peer)
        finally:
            for session in self._sessions.values():
                session.kill()

    def _steps(self, workloads: list[Workload]) -> Iterator[tuple[int, Workload, str]]:
        peers, rounds = list(self._pythons), self._scale.rounds
        for number in range(rounds):
            first = number * len(peers) // rounds
            for workload in workloads:
                if number < self._rounds_of(workload):
                    for peer in peers[first:] + peers[:first]:
                        if peer in workload.peers:
                            yield number, workload, peer

    def _rounds_of(self, workload: Workload) -> int:
        if workload.once:
            return 1
        return self._scale.scaling_rounds if workload.scaling else self._scale.rounds

    def _step(self, workload: Workload, peer: str) -> None:
        if (workload.key, peer) in self.failures:
            return
        try:
            if self._hangs[peer] >= TOO_OFTEN:
                raise FailedError(f"not tried: {TOO_OFTEN} other workloads had no answer")
            if workload is FIRST:
                figures = self._life(peer)
            elif workload in STREAMS:
                figures = self._stream(workload, peer)
            else:
                figures = self._measure(self._session(peer), workload, peer)
        except Exception as error:  # noqa: BLE001 - one peer's trouble, whatever it is, is not the others'
            self.failures[workload.key, peer] = str(error) or type(error).__name__
            self._hangs[peer] += isinstance(error, HungError)
            if peer in self._sessions:
                self._sessions.pop(peer).kill()
        else:
            self.results[workload.key][peer].append(figures)

    def _measure(self, session: Session, workload: Workload, peer: str) -> Figures:
        plan = self._plan(session, workload, peer)
        patience = max(self._scale.patience, workload.patience)
        return session.ask(patience, do="measure", workload=workload.key, **plan)

    def _plan(self, session: Session, workload: Workload, peer: str) -> dict[str, int]:
        """The size, and the chunk size, of this workload for this peer."""
        plan = self._plans.get((workload.key, peer))
        if plan is None:
            size = getattr(workload, self._scale.size)
            self._refuse_what_takes_too_long(workload, peer, size)
            plan = session.ask(
                2 * self._scale.patience,
                do="calibrate",
                workload=workload.key,
                size=size,
                seconds=self._scale.seconds,
            )
            self._plans[workload.key, peer] = plan
        return plan

    def _refuse_what_takes_too_long(self, workload: Workload, peer: str, size: int) -> None:
        known = self.results["ints"].get(peer) if "ints" in self.results else None
        if known and workload in (*BY_ITEMS, *STREAMS):
            seconds = size / median(figures["rate"] for figures in known)
            if seconds > self._scale.too_long:
                raise FailedError(f"would take {seconds:.0f} s")

    def _session(self, peer: str) -> Session:
        session = self._sessions.get(peer)
        if session is None:
            session = self._sessions[peer] = Session(self._pythons[peer], peer, self._log)
            self.versions[peer] = session.who["version"]
        return session

    def _life(self, peer: str) -> Figures:
        """A pool from its making, over its idling, to its peak of memory, in a new runner."""
        session = Session(self._pythons[peer], peer, self._log, stopped=False)
        try:
            patience, size = self._scale.patience, MEMORY_ITEMS
            ask = session.ask
            figures = ask(patience, do="measure", workload=FIRST.key, size=1, chunk=1)
            figures |= idle(session.pid, self._scale.idle)
            ask(patience, do="measure", workload="ints", size=size, chunk=size // 8)
            figures["parent"], figures["workers"] = peak_memory(session.pid)
        finally:
            session.kill()
        return figures

    def _stream(self, workload: Workload, peer: str) -> Figures:
        """In a runner that does nothing else: its peak of memory is this workload's."""
        session = Session(self._pythons[peer], peer, self._log)
        try:
            figures = self._measure(session, workload, peer)
            figures["parent"], _ = peak_memory(session.pid)
        finally:
            session.kill()
        return figures


TOO_OFTEN = 3  # a peer that hangs costs `patience` each time

MEMORY_ITEMS = 20_000  # of the map whose memory is measured; the slowest peer must manage it

# They take seconds to start, and are left out of a quick run.
SLOW_STARTERS = ("ray", "dask")


def find_pythons(names: list[str], here: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The interpreter of each peer, or why there is none."""
    pythons, missing = {}, {}
    for name in names:
        entry = PEERS[name]
        if sys.version_info[:2] < entry.since:
            missing[name] = f"{report.NEEDS} {'.'.join(map(str, entry.since))}"
            continue
        if entry.requirements is None or (here and entry.requirements == (NUMPY,)):
            pythons[name] = Path(sys.executable)
            continue
        try:
            pythons[name] = python_of(entry.environment, entry.requirements)
        except NotInstalledError as error:
            missing[name] = str(error)
    return pythons, missing


def outcome(suite: Suite, scale: Scale, missing: dict[str, str]) -> dict[str, Any]:
    """All that is known after a run, as JSON can hold it."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "scale": asdict(scale),
        "versions": suite.versions,
        "missing": missing,
        "failures": [[*key, reason] for key, reason in suite.failures.items()],
        "results": suite.results,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="some minutes; nothing in docs changes"
    )
    parser.add_argument("--tiny", action="store_true", help="seconds: does the suite work at all?")
    parser.add_argument("--rounds", type=int, help="instead of the usual number")
    parser.add_argument("--peers", help="comma-separated; default: all, or those that start fast")
    parser.add_argument("--only", help="workloads, comma-separated; default: all")
    parser.add_argument(
        "--here", action="store_true", help="run what needs no installation by this interpreter"
    )
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: write the page from what is in --out"
    )
    parser.add_argument("--out", type=Path, help="folder for JSON, tables and plots")
    return parser.parse_args()


def main() -> None:
    options = parse()
    scale = TINY if options.tiny else QUICK if options.quick else FULL
    whole = scale is FULL and not options.only
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    workloads = [*MAIN, FIRST, *BY_WORKERS, *BY_ITEMS, *STREAMS]
    if options.only:
        workloads = [workload for workload in workloads if workload.key in options.only.split(",")]
    out = options.out or (ROOT / "docs" if whole else FOLDER / "quick")
    readme = ROOT / "README.md" if whole else None
    if options.page:
        report.write_page(out, readme)
        return
    peers = options.peers.split(",") if options.peers else list(PEERS)
    if options.quick and not options.peers:
        peers = [peer for peer in peers if peer not in SLOW_STARTERS]
    pythons, missing = find_pythons(peers, options.here)
    FOLDER.mkdir(parents=True, exist_ok=True)
    suite = Suite(scale, pythons, FOLDER / "runners.log")
    suite.run(workloads)
    found = outcome(suite, scale, missing)
    report.write(json.loads(json.dumps(found)), out, readme)


if __name__ == "__main__":
    main()
