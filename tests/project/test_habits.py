"""What the files around the source say of it: versions, history, coverage."""

import re
import subprocess
from pathlib import Path

import pytest

from aiomultiprocess.__version__ import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [__version__]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone, and has no history")
def test_blame_ignores_commits_that_are_named_by_their_subject() -> None:
    lines = (ROOT / ".git-blame-ignore-revs").read_text("utf-8").splitlines()[1:]
    named = dict(zip(lines[1::2], lines[::2], strict=True))
    if git("rev-parse", "--is-shallow-repository") == "true":
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in named)
    else:
        shown = git("log", "--no-walk=unsorted", "--format=%H%n# %s", *named).splitlines()
        assert dict(zip(shown[::2], shown[1::2], strict=True)) == named


def test_the_coverage_that_the_page_shows_is_above_the_floor() -> None:
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    (floor,) = re.findall(r"^fail_under = (\d+)", settings, re.MULTILINE)
    page = (ROOT / "docs" / "verification.md").read_text("utf-8")
    shown = dict(
        re.findall(r"^\| (\w+) \| \*\*all\*\* \| [\d,]+ \| ([\d.]+) % \|$", page, re.MULTILINE)
    )
    assert shown.keys() == {"Python", "Cython"}
    assert float(floor) <= float(shown["Python"]) < float(floor) + 5
    assert float(shown["Cython"]) >= 85
