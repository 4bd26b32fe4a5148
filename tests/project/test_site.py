"""The site builds without a warning, names everything public, and works in a browser."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import aiomultiprocess
import browser
from aiomultiprocess.prometheus import PoolCollector
from conftest import ROOT

DOCS = ROOT / "docs"
WIDTHS = (390, 1440)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="built on Linux, for all systems")
in_a_browser = pytest.mark.skipif(
    browser.program() is None, reason="needs chromium; `.ci/run` installs it"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. As in `make docs`, a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--fail-on-warning", "--keep-going", "--quiet", "-b", "html")
    done = subprocess.run(
        [sys.executable, "-Pm", "sphinx", *options, "-d", folder / "trees", DOCS, folder / "html"],
        env=os.environ | {"DOCS_ONLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "html"


def pages(site: Path) -> list[str]:
    """Every page that a reader may open."""
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))


# -- the reference ---------------------------------------------------------------------------------


def documented(site: Path) -> set[str]:
    """The names of Python in the site's inventory, which other sites link by."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    return {line.split()[0] for line in lines if " py:" in line}


def methods(cls: type) -> set[str]:
    """The public methods and properties that a class of this package defines itself."""
    return {
        name
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and (callable(member) or isinstance(member, property | classmethod | staticmethod))
    }


#: Public by their names, and not to be called by programs.
OF_THE_LIBRARY = {
    "Call.may_change",
    "PoolCollector.collect",
    "PoolCollector.describe",
    "Shared.pickled",
}


def test_the_reference_has_every_public_name_and_every_public_method(site: Path) -> None:
    names = set(aiomultiprocess.__all__) - {"__author__", "__version__"}  # settings.md has these
    wanted = {f"aiomultiprocess.{name}" for name in names}
    classes = [value for name in names if isinstance(value := getattr(aiomultiprocess, name), type)]
    for cls in classes:
        own = {f"{cls.__name__}.{method}" for method in methods(cls)} - OF_THE_LIBRARY
        if not issubclass(cls, tuple | BaseException):  # fields, which their texts list
            wanted |= {f"aiomultiprocess.{name}" for name in own}
    wanted.add(f"aiomultiprocess.prometheus.{PoolCollector.__name__}")
    inherited = {name for name in wanted if name.startswith("aiomultiprocess.RoundRobin.")}
    assert wanted - inherited - documented(site) == set()


# -- in a browser ----------------------------------------------------------------------------------


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[browser.Page]:
    async with asyncio.timeout(110), browser.browser(folder) as page:
        yield page


#: What is wider than the window, but for code and tables, which scroll by themselves. (The page's
#: own `scrollWidth` says nothing: the theme cuts off what is too wide, or lets all of it scroll.)
TOO_WIDE = """
[...document.querySelectorAll(".content *")]
  .filter(e => e.checkVisibility() && !e.parentElement.closest("pre, .table-wrapper"))
  .map(e => [e.tagName, e.className, Math.round(e.getBoundingClientRect().right)])
  .filter(([, , right]) => right > document.documentElement.clientWidth + 1)
"""


@in_a_browser
async def test_no_page_complains_or_scrolls_sideways_on_a_phone_or_a_desk(
    site: Path, address: str, tmp_path: Path
) -> None:
    found = {}
    async with opened(tmp_path) as page:
        for name in pages(site):
            await page.open(address + name)
            for width in WIDTHS:
                await page.resize(width)
                if wide := await page.evaluate(TOO_WIDE):
                    found[name, width] = str(wide[:3])
            if page.complaints:
                found[name, 0] = " ".join(page.complaints)
    assert found == {}


FIRST_RESULTS = """
new Promise(found => {
  const list = document.getElementById("search-results");
  const look = () => {
    const links = [...list.querySelectorAll("li a")].map(link => link.textContent);
    if (links.length && list.querySelector("p.search-summary")?.textContent.includes("found"))
      found(links);
  };
  new MutationObserver(look).observe(list, {childList: true, subtree: true, characterData: true});
  look();
})
"""


@in_a_browser
async def test_the_search_finds_a_method_and_the_text_of_an_error(
    address: str, tmp_path: Path
) -> None:
    async with opened(tmp_path) as page:
        await page.open(f"{address}search.html?q=as_completed")
        links = await page.evaluate(FIRST_RESULTS)
        assert "aiomultiprocess.PoolResult.as_completed" in links
        await page.open(f"{address}search.html?q=pool+is+still+open")
        links = await page.evaluate(FIRST_RESULTS)
        assert any("Errors, by their message" in link for link in links)
        assert page.complaints == []


@in_a_browser
async def test_each_message_on_the_page_of_errors_has_an_anchor_of_its_own(
    address: str, tmp_path: Path
) -> None:
    async with opened(tmp_path) as page:
        await page.open(f"{address}errors.html")
        sections = "document.querySelectorAll('section:has(> h3)')"
        ids = await page.evaluate(f"[...{sections}].map(section => section.id)")
        assert len(ids) > 100
        assert len(set(ids)) == len(ids)
        assert all(ids)
