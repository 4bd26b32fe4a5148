"""Every example runs. What pages show of them is in test_docs.py."""

import ast
import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path
from statistics import quantiles
from time import monotonic
from typing import Any

import aiohttp
import pytest

from conftest import ROOT

EXAMPLES = ROOT / "examples"
FULL = os.environ.get("AIOMULTIPROCESS_TEST_SCALE") == "full"
KILLS = 20 if FULL else 1  # of workers of the service, at full scale one each second
ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and uvloop are not there")
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


def test_the_example_of_an_executor_gets_every_answer(tmp_path: Path) -> None:
    out, err = run("executor.py", tmp_path)
    total = sum(number**2 for number in range(200))
    assert re.fullmatch(
        rf"200 answers of 0\.1 s, in \d+\.\d s: their sum is {total:,}\n"
        r"perfect numbers: \[28, 496, 8128\]\n"
        r"no answer: invalid literal for int\(\).*\n",
        out,
    )
    assert err == ""


# -- the scraper -----------------------------------------------------------------------------------


class Site(ThreadingHTTPServer):
    """Pages 0, 1, 2, ...; counts how often each was asked for, and can withhold pages.

    By the query in its addresses it tells one run of a client from the other: what the first has
    asked for may arrive when the second runs.
    """

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.lock = threading.Lock()
        self.asked: dict[str, Counter[int]] = {"first": Counter(), "second": Counter()}
        self.limit: float = float("inf")  # how many are answered before `released`
        self.withheld: set[int] = set()
        self.broken: set[int] = set()
        self.released = threading.Event()

    def url(self, which: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{}}?{which}"

    def wait_for_permission(self, number: int, which: str) -> None:
        with self.lock:
            self.asked[which][number] += 1
            withheld = number in self.withheld or self.asked[which].total() > self.limit
        if withheld:
            self.released.wait()

    def handle_error(self, *args: object) -> None:
        """Write nothing: clients are interrupted here."""


class _Pages(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        name, _, which = self.path[1:].partition("?")
        number = int(name)
        self.server.wait_for_permission(number, which)
        page = f"<title>page {number}</title>".encode()
        self.send_response(500 if number in self.server.broken else 200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *args: object) -> None:
        """Write nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site
        site.released.set()
        site.shutdown()
        thread.join()


def scraper(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / "scraper.py"), "--workers", "2", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stored_pages(folder: Path) -> dict[int, str]:
    with closing(sqlite3.connect(folder / "pages.db")) as connection:
        return dict(connection.execute("select number, title from pages"))


def test_the_scraper_stores_each_page_that_its_own_server_has_served(tmp_path: Path) -> None:
    out, err = run("scraper.py", tmp_path, "--pages", "100", "--workers", "2")
    assert out.splitlines()[0] == "begin: 0 of 100 pages are stored, 0 were served"
    assert out.splitlines()[-1] == "end: 100 of 100 pages are stored, 100 were served"
    out, err = run("scraper.py", tmp_path, "--pages", "110", "--workers", "2")
    assert out.splitlines()[-1] == "end: 110 of 110 pages are stored, 10 were served"
    assert err == ""


@ON_POSIX
def test_the_scraper_fetches_nothing_again_that_it_had_stored_before_ctrl_c(
    tmp_path: Path, site: Site
) -> None:
    site.limit = 60  # all other pages are under way until Ctrl-C
    with scraper(tmp_path, "--pages", "200", "--url", site.url("first")) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line == "so far: 60 of 200 pages are stored\n":
                break
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to all its processes
        out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (130, "")
    assert out == "end: 60 of 200 pages are stored\nthe next run goes on from here\n"
    stored = set(stored_pages(tmp_path))
    assert len(stored) == 60
    site.released.set()
    out, err = run("scraper.py", tmp_path, "--pages", "200", "--url", site.url("second"))
    assert (out.splitlines()[-1], err) == ("end: 200 of 200 pages are stored", "")
    assert site.asked["second"] == Counter(set(range(200)) - stored)
    assert stored_pages(tmp_path) == {number: f"page {number}" for number in range(200)}


def test_the_scraper_stores_the_others_if_pages_fail_or_take_too_long(
    tmp_path: Path, site: Site
) -> None:
    site.withheld, site.broken = {3}, {5}
    pages = ("--pages", "20", "--timeout", "1.5")
    with scraper(tmp_path, *pages, "--url", site.url("first")) as first:
        out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (1, "")
    assert re.search(r"^page 3 failed: TaskTimeoutError: .* 1\.5 s", out, re.MULTILINE)
    assert re.search(r"^page 5 failed: .*ClientResponseError: 500, ", out, re.MULTILINE)
    assert out.endswith("end: 18 of 20 pages are stored\n")
    site.withheld, site.broken = set(), set()
    _, err = run("scraper.py", tmp_path, *pages, "--url", site.url("second"))
    assert (site.asked["second"], err) == (Counter((3, 5)), "")


# -- the service -----------------------------------------------------------------------------------


class Service:
    """The example of a service in a process of its own, and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, client: aiohttp.ClientSession) -> None:
        self.process = process
        self.client = client

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(path) as response:
            return response.status, await response.json()

    async def stats(self) -> Any:
        status, stats = await self.get("/stats")
        assert status == 200
        return stats

    async def has_running(self, tasks: int) -> None:
        while (await self.stats())["running"] < tasks:
            pass

    async def end(self) -> str:
        """SIGTERM; what the service has printed since its start."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = await self.process.communicate()
        assert self.process.returncode == 0, output.decode()
        return output.decode()


@asynccontextmanager
async def service(folder: Path, *arguments: str) -> AsyncIterator[Service]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "service.py"),
        *("--port", "0"),
        *arguments,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        output, address = b"", None
        while address is None:
            line = await process.stdout.readline()
            output += line
            assert line, output.decode()
            address = re.search(rb"running on (http://[\d.:]+)", line)
        async with aiohttp.ClientSession(address[1].decode()) as client:
            yield Service(process, client)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@ON_POSIX
async def test_the_service_answers_and_a_client_that_goes_away_frees_its_place(
    tmp_path: Path,
) -> None:
    async with service(tmp_path, "--workers", "1", "--concurrency", "1") as served:
        status, answer = await served.get("/work/10")
        assert (status, answer["sum"]) == (200, 285)
        gone = asyncio.create_task(served.get("/work/10?seconds=25"))
        await served.has_running(1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        status, _ = await served.get("/work/10")  # in the only place that there is
        stats = await served.stats()
        assert (status, stats["done"], stats["cancelled"], stats["running"]) == (200, 2, 1, 0)
        [worker] = stats["workers"]
        assert worker["pid"] == answer["pid"]
        await served.end()


@ON_POSIX
async def test_the_service_answers_the_requests_that_it_has_at_sigterm(tmp_path: Path) -> None:
    async with service(tmp_path, "--workers", "1") as served:
        last = asyncio.create_task(served.get("/work/10?seconds=0.5"))
        await served.has_running(1)
        output = await served.end()
        status, answer = await last
        assert (status, answer["sum"]) == (200, 285)
        assert "the pool has ended, 0 tasks were cut off\n" in output
        assert "Traceback" not in output


@ON_POSIX
async def test_the_service_answers_every_request_while_its_workers_are_killed(
    tmp_path: Path,
) -> None:
    statuses: Counter[int] = Counter()
    latencies: list[float] = []  # seconds
    over = False

    async def ask() -> None:
        while not over:
            begin = monotonic()
            status, _ = await served.get("/work/1000?seconds=0.02")
            latencies.append(monotonic() - begin)
            statuses[status] += 1

    async with service(tmp_path, "--workers", "2") as served:
        async with asyncio.TaskGroup() as clients:
            for _ in range(32):
                clients.create_task(ask())
            deaths = 0
            while deaths < KILLS or not (await served.stats())["retried"]:
                await served.has_running(8)
                busiest = max((await served.stats())["workers"], key=itemgetter("running"))
                os.kill(busiest["pid"], signal.SIGKILL)
                deaths += 1
                while (await served.stats())["restarts"].get("died") != deaths:
                    pass
                await asyncio.sleep(1 if FULL else 0)
            over = True
        stats = await served.stats()
        assert statuses.keys() <= {200, 503}
        assert statuses[503] == stats["lost"]
        assert statuses.total() == stats["done"] + stats["lost"]
        await served.end()
    p99 = quantiles(latencies, n=100)[-1]
    print(f"{deaths} deaths; answers by status {dict(statuses)}; p99 {p99 * 1000:.0f} ms")


# -- the notebook ----------------------------------------------------------------------------------

EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def outputs(notebook: Path) -> list[list[tuple[str, str]]]:
    """What each cell of code shows; without stderr, where bars are drawn."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        [
            (output["output_type"], "".join(output.get("text") or output["data"]["text/plain"]))
            for output in cell["outputs"]
            if output.get("name") != "stderr"
        ]
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_shows_what_its_cells_give_when_they_run(tmp_path: Path) -> None:
    folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = os.environ | {name: str(tmp_path / name) for name in folders}
    environment.pop("AIOMULTIPROCESS_SERIALIZER", None)  # cloudpickle is what this is about
    executed = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(EXAMPLES / "notebook.ipynb"), str(executed)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = outputs(executed)
    assert shown == outputs(EXAMPLES / "notebook.ipynb")
    assert ("execute_result", "(178, 871)") in shown[1]
    assert executed.read_text(encoding="utf-8").count("999/999") >= 2  # both bars came to the end


# -- the demo, and what is said of examples --------------------------------------------------------


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


def test_the_extra_of_the_examples_holds_all_that_they_import() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    [own, *others] = extras["examples"]
    names = own.removeprefix("aiomultiprocess[").removesuffix("]").split(",")
    requirements = others + [requirement for name in names for requirement in extras[name]]
    installed = {re.split(r"[<>=]", name)[0].replace("-", "_") for name in requirements}
    imported = {
        ((node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or "")
        for path in EXAMPLES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    ours = {path.stem for path in EXAMPLES.rglob("*.py")}
    roots = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - ours
    assert roots <= installed | {"aiomultiprocess"}


def test_the_readme_shows_the_quickstart_word_for_word() -> None:
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    body = source.partition('"""\n\n')[2]
    assert f"```python\n{body}```" in README
