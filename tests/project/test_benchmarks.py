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
# one of each kind; the others differ in their inputs
WORKLOADS = (
    "ints,plain,dicts,starmap,apply,gather,wait,skewed,bytes_1m,array_64k,beside,"
    "life,frames,workers_4,items_1000,stream_10000"
) + (",bells" if BUILT else "")

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
    found = json.loads((outcome / "benchmarks.json").read_text())
    assert found["failures"] == []
    assert found["missing"] == {}
    assert set(found["results"]) == set(WORKLOADS.split(","))
    assert set(found["results"]["ints"]) == {OURS, "multiprocessing", "run_in_executor"} | {
        "one_process"
    }
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
    assert "| children of a pool of 2 | <= 2 | 2 | met |" in page or not BUILT
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
        "    report.insert(pathlib.Path(sys.argv[1]), table)\n"
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
