"""The examples of docs/guide.md run, and its links and lists are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import ROOT
from test_examples import EXAMPLES, README, run

GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
SOURCE = (EXAMPLES / "guide.py").read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^##* (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.usefixtures("backend")
def test_the_examples_of_the_guide_hold_what_they_assert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOMULTIPROCESS_SERIALIZER")  # one is about what pickle refuses
    out, err = run("guide.py", tmp_path)
    *reports, worker, another = out.splitlines()
    assert all(re.fullmatch(r"\d+ of 100 pages, 0 failed", line) for line in reports)
    assert reports[-1].startswith("100 of 100 ")
    assert all(re.fullmatch(r"worker [01]: \d+ tasks, [\d,]+ bytes", n) for n in (worker, another))
    records = [re.sub(r"^\d+ ", "", line) for line in err.splitlines()]
    assert sorted(records) == [f"pages: page {number}" for number in range(3)]


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL))
def test_every_python_block_of_the_guide_stands_in_its_example(block: str) -> None:
    assert block in SOURCE


def test_every_function_of_the_example_is_called_or_given_to_a_pool() -> None:
    for name in re.findall(r"^(?:async )?def (\w+)", SOURCE, re.MULTILINE):
        assert len(re.findall(rf"\b{name}\b", SOURCE)) > 1, name


def test_links_to_sections_of_the_guide_resolve() -> None:
    links = re.findall(r"\]\(#([\w-]+)\)", GUIDE)
    links += re.findall(r"\]\(docs/guide\.md#([\w-]+)\)", README)
    assert set(links) - anchors(GUIDE) == set()
    sections = anchors(GUIDE) - {"using-pools"}
    assert sections - set(re.findall(r"\]\(#([\w-]+)\)", GUIDE)) == set(), "not in the contents"
