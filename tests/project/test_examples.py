"""Every example runs, and what the README shows is what runs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(example: str, folder: Path, *arguments: str) -> tuple[str, str]:
    """Run an example as a user does, outside the checkout; what it printed, on both streams."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,  # orphans, such as multiprocessing's resource tracker, are not ours
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_the_quickstart_prints_its_sum_and_nothing_else(tmp_path: Path) -> None:
    total = sum(n * n for number in range(1000) for n in range(number))
    assert run("quickstart.py", tmp_path) == (f"the sum of it all is {total:,}\n", "")


def test_the_tour_holds_what_it_asserts_and_prints_nothing(tmp_path: Path) -> None:
    assert run("tour.py", tmp_path) == ("", "")


def test_the_log_parser_counts_what_its_log_holds(tmp_path: Path) -> None:
    out, err = run("log_parser.py", tmp_path)
    assert re.fullmatch(r"200,000 requests, \d\d,\d{3} failed\n(0\.\d{4} s  /page/\d+\n){3}", out)
    assert err == ""
    log = tmp_path / "access.log"
    log.write_text('10.0.0.1 [now] "GET /a" 200 0.5\nno request\n10.0.0.1 [now] "GET /b" 500 1.5\n')
    out, _ = run("log_parser.py", tmp_path, str(log))
    assert out == "2 requests, 1 failed\n1.5000 s  /b\n0.5000 s  /a\n"


def test_the_example_of_blocking_libraries_stores_every_page(tmp_path: Path) -> None:
    out, err = run("blocking.py", tmp_path)
    assert out.endswith("128 pages are stored\n")
    assert err == ""


@pytest.mark.row("G71")
def test_the_demo_does_its_three_jobs_and_prints_plain_lines_to_a_file(tmp_path: Path) -> None:
    sizes = ("--urls", "60", "--files", "40", "--numbers", "5000", "--workers", "2")
    out, err = run("demo.py", tmp_path, *sizes)
    assert re.search(r"^fetched +60 pages in .* a second: [\d,]+ characters$", out, re.MULTILINE)
    assert re.search(r"^parsed +40 files in .* a second: [\d,]+ lines, ", out, re.MULTILINE)
    assert len(re.findall(r"^mapped +5,000 ints in .* a second: ", out, re.MULTILINE)) == 2
    assert re.search(
        r"multiprocessing\.Pool\.map in chunks of (its own choice|100|1,000), "
        r"the best of 3 sizes tried$",
        out,
        re.MULTILINE,
    )
    assert "chunk sizes tried with multiprocessing.Pool.map: its own choice: " in out
    assert out.splitlines()[-1].endswith(" times the speed of multiprocessing.Pool.map")
    assert "\r" not in out
    assert err == ""  # no bar


@pytest.mark.row("G71")
def test_the_demo_installs_only_what_the_demo_imports() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    needed = {re.split(r"[<>=]", requirement)[0] for requirement in extras["demo"]}
    source = ast.parse((EXAMPLES / "demo.py").read_text(encoding="utf-8"))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in source.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    roots = {name.partition(".")[0] for name in imported}
    assert roots - sys.stdlib_module_names == needed | {"aiomultiprocess"}
    commands = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: \$\(VENV\)/\.demo$", commands, re.MULTILINE)


def test_the_readme_shows_the_quickstart_word_for_word() -> None:
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    body = source.partition('"""\n\n')[2]
    assert f"```python\n{body}```" in README


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_python_block_of_the_readme_stands_in_an_example(block: str) -> None:
    assert any(block in path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py"))
