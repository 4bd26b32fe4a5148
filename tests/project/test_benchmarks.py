"""The benchmarks run, from the runners to the tables. Nothing here asserts a time."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import BUILT, ROOT

OURS = "shm" if BUILT else "pipe"
PEERS = [OURS, "multiprocessing", "run_in_executor", "one_process", "memcpy"]
PEERS += ["ping_pong"] if sys.platform == "linux" else []
PEERS += ["interpreters"] if sys.version_info >= (3, 14) else []
VERSION = ".".join(map(str, sys.version_info[:2]))
# one of each kind; the others differ in their inputs
WORKLOADS = (
    "ints,plain,dicts,starmap,apply,gather,wait,skewed,bytes_1m,array_64k,beside,"
    "life,frames,share,workers_4,items_1000,stream_10000,stream_arrays_10000"
) + (",bells" if BUILT else "")

COLUMNS = sorted({"3.11", "3.13", "3.14", VERSION})

needs_process_groups = pytest.mark.skipif(
    sys.platform == "win32", reason="the suite stops the peers that are not measured by SIGSTOP"
)


def run(*arguments: object, status: int = 0) -> str:
    """Run Python with these arguments, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT / "tests",  # `-m` makes it importable, and the root holds a folder amp_ext
        capture_output=True,
        text=True,
        timeout=290,
        start_new_session=True,  # orphans, such as multiprocessing's helpers, are not ours
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one tiny run of the suite has written."""
    out = tmp_path_factory.mktemp("benchmarks")
    options = ["--tiny", "--here", "--peers", ",".join(PEERS), "--only", WORKLOADS, "--out", out]
    run(ROOT / "benchmarks" / "suite.py", *options)
    return out


@needs_process_groups
@pytest.mark.timeout(300)
def test_the_suite_measures_all_that_it_was_asked_for(outcome: Path) -> None:
    found = json.loads((outcome / f"benchmarks-{VERSION}.json").read_text())
    # arrays of NumPy cannot be passed to a second interpreter of a process
    assert [f for f in found["failures"] if f[:2] != ["array_64k", "interpreters"]] == []
    assert found["missing"] == {}
    assert set(found["results"]) == set(WORKLOADS.split(","))
    expected = {OURS, "multiprocessing", "run_in_executor", "one_process", "interpreters"}
    assert set(found["results"]["ints"]) == expected & set(PEERS)
    for peers in found["results"].values():
        for rounds in peers.values():
            assert [figures["seconds"] > 0 for figures in rounds] == [True]
    assert found["results"]["life"][OURS][0]["children"] == 2


@needs_process_groups
@pytest.mark.timeout(300)
def test_the_suite_writes_a_page_with_a_row_for_each_figure(outcome: Path) -> None:
    page = (outcome / "benchmarks.md").read_text()
    assert re.search(r"^\| apply, one at a time, p99 \| [\d.]+ [mu]s \| ", page, re.MULTILINE)
    assert re.search(r"^\| echo of 1 MB bytes \| [\d.]+ GB/s \| ", page, re.MULTILINE)
    assert "| multiprocessing.Pool * |" in page
    cells = " | ".join("2, met" if one == VERSION else "not measured" for one in COLUMNS)
    assert f"| children of a pool of 2 | <= 2 | {cells} |" in page or not BUILT
    for version in COLUMNS:
        assert (f"Python {version}: not measured yet" in page) == (version != VERSION)
    for drawn in re.findall(r"!\[.*\]\((img/.*)\)", page):
        assert (outcome / drawn).read_text().lstrip().startswith("<?xml")
    assert bool(re.search(r"!\[", page)) == (find_spec("matplotlib") is not None)


@needs_process_groups
def test_a_peer_that_cannot_run_is_listed_and_the_others_are_measured(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from suite import TINY, Suite\nfrom workloads import WORKLOADS\n"
        "pythons = {'executor': '/no/python', 'memcpy': sys.executable}\n"
        "pythons = {peer: pathlib.Path(python) for peer, python in pythons.items()}\n"
        "suite = Suite(TINY, pythons, pathlib.Path(sys.argv[1]))\n"
        "suite.run([WORKLOADS['bytes_64k']])\n"
        "print(*suite.failures, *suite.results['bytes_64k'])\n"
    )
    assert run(script, tmp_path / "log") == "('bytes_64k', 'executor') memcpy\n"


def test_a_run_replaces_its_own_python_and_the_page_shows_all_of_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import copy, json, pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import report\n"
        "out, docs = map(pathlib.Path, sys.argv[1:])\n"
        "found = json.loads((docs / 'benchmarks-3.11.json').read_text())\n"
        "report.write(found, out, None)\n"
        "for python, rate in ('3.13.0', 1e6), ('3.13.1', 2e6):\n"
        "    newer = copy.deepcopy(found) | {'python': python}\n"
        "    newer['results']['ints']['shm'] = [{'seconds': 1, 'rate': rate}]\n"
        "    report.write(newer, out, None)\n"
    )
    out = tmp_path / "out"
    run(script, out, ROOT / "docs")
    files = sorted(file.name for file in out.glob("*.json"))
    assert files == ["benchmarks-3.11.json", "benchmarks-3.13.json"]
    page = (out / "benchmarks.md").read_text()
    cells = r"\| map, ints \| [\d.]+ M/s \([\d.]+x\) \| 2\.0 M/s \([\d.]+x\) \| not measured \|"
    assert re.search(f"^{cells}$", page, re.MULTILINE)
    assert "Python 3.13.1, " in page
    assert "Python 3.14: not measured yet; `make bench PYTHON=python3.14` does it." in page


def test_a_goal_that_is_missed_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import goals, report\n"
        "def found(ours): return {'results': {\n"
        "    'array_1m': {'shm': [{'throughput': ours}], 'ray': [{'throughput': 2.0}],\n"
        "                 'mpire': [{'throughput': 1.0}], 'memcpy': [{'throughput': 9.0}]},\n"
        "    'cpu_1ms': {'shm': [{'efficiency': ours / 3}], 'loky': [{'efficiency': 0.8}]}}}\n"
        "for ours in 2.0, 2.5:\n"
        "    for goal in goals.all_goals(found(ours)):\n"
        "        if goal.met is not None: print(report.goal_cell(goal))\n"
    )
    assert run(script).splitlines() == [
        "1.00x (ray), **missed**",
        "66.7% (loky: 80.0%), **missed**",
        "1.25x (ray), met",
        "83.3% (loky: 80.0%), met",
    ]


def test_a_peer_that_this_python_cannot_have_is_no_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import suite\n"
        "pythons, missing = suite.find_pythons(['interpreters'], True)\n"
        "print(list(pythons), missing)\n"
    )
    has_it = sys.version_info >= (3, 14)
    expected = "['interpreters'] {}" if has_it else "[] {'interpreters': 'needs Python 3.14'}"
    assert run(script) == f"{expected}\n"


@needs_process_groups
def test_the_readme_has_the_figures_of_the_last_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import report\n"
        "last = next(iter(report.load(pathlib.Path(sys.argv[1])).values()))\n"
        "print(report.bullets(last), report.short_table(last), sep='\\n\\n')\n"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in run(script, ROOT / "docs").strip().split("\n\n"):
        assert part in readme


@needs_process_groups
def test_the_table_of_the_readme_goes_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import report\n"
        "for table in ('first', '| second |'):\n"
        "    report.insert(pathlib.Path(sys.argv[1]), 'benchmarks', table)\n"
    )
    run(script, readme)
    text = readme.read_text(encoding="utf-8")
    assert "<!-- benchmarks: begin -->\n| second |\n<!-- benchmarks: end -->" in text
    assert text.startswith("# aiomultiprocess\n")
    assert "first\n" not in text.partition("benchmarks: begin")[2].partition("end -->")[0]
    assert "## License" in text


def test_info_prints_the_version_the_backend_and_why_it_is_that_one(
    backend: str,
) -> None:
    printed = run("-m", "aiomultiprocess", "info")
    info = dict(line.split(maxsplit=1) for line in printed.splitlines() if line[:1] != " ")
    assert info["backend"] == f"{backend} (requested by AIOMULTIPROCESS_BACKEND)"
    assert info["version"].startswith("1.")
    assert "EventLoop" in info["loop"]
    assert info["ring"].endswith("each way for a worker") == BUILT
    assert info["extension"].startswith("amp_ext") == BUILT


def test_info_fails_where_no_backend_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "pigeon")
    assert "none: unknown backend 'pigeon'" in run("-m", "aiomultiprocess", "info", status=1)


def test_bench_compares_with_the_standard_library(backend: str) -> None:
    header, *rows, _ = run("-m", "aiomultiprocess", "bench", "--seconds", "0.1").splitlines()
    assert header.split(maxsplit=2)[:2] == ["aiomultiprocess,", backend]
    assert "multiprocessing.Pool" in header
    for row in rows:
        assert len(re.findall(r" [\d,]+(?= )", row)) >= 3, row


def test_workers_of_the_commands_import_no_argparse() -> None:
    code = "import sys, aiomultiprocess.__main__; print('argparse' in sys.modules)"
    assert run("-c", code) == "False\n"
