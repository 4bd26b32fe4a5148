"""What the README and docs/ say is so: blocks run, links resolve, messages and commands exist.

Each Python block of a page stands, word for word, in a program of examples/ (or in a cell of its
notebook), and each of these programs is run by the suite; of the program's imports, a block begins
with those that it needs. The few blocks that need a cluster of machines are parsed, and their names
looked up. test_site.py builds the pages and opens them in a browser.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import configparser
import importlib
import inspect
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest

import messages
from aiomultiprocess import Pool, PoolTerminatedError, TaskTimeoutError, WorkerLostError
from aiomultiprocess.prometheus import PoolCollector
from conftest import ROOT
from cpython_executor_tests import INTERNAL, LEFT_OUT
from test_examples import EXAMPLES, ON_POSIX, run

DOCS = ROOT / "docs"
SITE = "https://omnilib.github.io/aiomultiprocess/"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
}
PROGRAMS = {
    path.relative_to(EXAMPLES).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(EXAMPLES.rglob("*.py"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = PROJECT["urls"]["Source"] + "/blob/main/"

FENCE = re.compile(r"^(`{3,})([^`\n]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)

#: Stands before a block of a program that needs what no test can have.
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n\Z")


def blocks(*languages: str, run: bool = True) -> list[object]:
    """The fenced blocks in these languages, as parameters of a test, named by their page.

    Those that no test can run are left out, or, with `run=False`, all others.
    """
    return [
        pytest.param(block, id=f"{page}:{text[: match.start()].count(chr(10)) + 1}")
        for page, text in PAGES.items()
        for match in FENCE.finditer(text)
        for language, block in [(match[2], match[3])]
        if language in languages and run is not bool(NOT_RUN.search(text[: match.start()]))
    ]


# -- blocks of code --------------------------------------------------------------------------------


def cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) + "\n" for cell in notebook["cells"]]


IMPORTS = re.compile(r"(?:(?:from|import) .*\n|\n)*")


def imported(text: str) -> set[tuple[str | None, str]]:
    """What a block or a program imports at its top level: modules and names."""
    return {
        (getattr(node, "module", None), name.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def stands_in(block: str, program: str) -> bool:
    """Whether a block is a part of a program, after imports that are the program's."""
    if block in program:
        return True
    imports = IMPORTS.match(block)[0]
    body = block.removeprefix(imports)
    at_any_depth = [textwrap.indent(body, " " * 4 * depth) for depth in range(4)]
    return any(part in program for part in at_any_depth) and imported(imports) <= imported(program)


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_stands_in_an_example(block: str) -> None:
    assert any(stands_in(block, program) for program in [*PROGRAMS.values(), *cells()])


@pytest.mark.parametrize("block", blocks("python", run=False))
def test_a_block_that_cannot_run_is_python_and_uses_names_and_parameters_that_exist(
    block: str,
) -> None:
    for module, name in imported(block):
        if module in {"aiomultiprocess", "distributed"}:
            assert hasattr(importlib.import_module(module), name)
    known = set(inspect.signature(Pool).parameters)
    of_pools = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Pool"
    ]
    assert of_pools != []
    assert all(parameters <= known for parameters in of_pools)
    bound, used = names([block])
    assert used <= bound


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_block_of_toml_is_read_as_such(block: str) -> None:
    assert tomllib.loads(block) != {}


def names(blocks: list[str]) -> tuple[set[str], set[str]]:
    """The names that blocks bind, and those that they use."""
    bound, used = set(), set()
    for node in [node for block in blocks for node in ast.walk(ast.parse(block))]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.arg():
                bound.add(node.arg)
            case ast.alias():
                bound.add(node.asname or node.name.partition(".")[0])
            case ast.ExceptHandler(name=str()):
                bound.add(node.name)
            case ast.Name():
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    return bound, used


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/how-to/")])
def test_a_how_to_page_imports_defines_or_names_all_that_its_blocks_use(page: str) -> None:
    text = PAGES[page]
    bound, used = names([match[3] for match in FENCE.finditer(text) if match[2] == "python"])
    if "#a-frame-for-the-examples" in text:
        bound |= names([PROGRAMS["frame.py"]])[0]
    code = " ".join(re.findall(r"`([^`]+)`", FENCE.sub("", text)))
    named = set(re.findall(r"\w+", code)) | {"__file__"}
    assert used - bound - named - set(dir(builtins)) == set()


def test_the_frame_of_the_how_to_pages_runs(tmp_path: Path) -> None:
    assert run("frame.py", tmp_path) == ("['page 0', 'page 1', 'page 2']\n", "")


def test_every_example_is_run_by_a_test() -> None:
    paths = [*(ROOT / "tests" / "project").glob("*.py"), *(ROOT / "tests" / "cluster").glob("*.py")]
    tests = "".join(path.read_text(encoding="utf-8") for path in paths)
    missing = [name for name in PROGRAMS if f'"{name}"' not in tests and name not in IN_PYTEST]
    assert missing == []


def test_every_block_is_in_a_language_that_is_checked_here() -> None:
    languages = {match[2] for text in PAGES.values() for match in FENCE.finditer(text)}
    directives = {name for name in languages if re.fullmatch(r"\{[a-z-]+\}.*", name)}
    assert languages - directives <= {"python", "sh", "text", "ini", "toml", "dockerfile"}


@pytest.mark.usefixtures("backend")
def test_the_examples_of_the_how_to_pages_hold_what_they_assert(
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


def test_every_function_of_the_how_to_pages_is_called_or_given_to_a_pool() -> None:
    source = PROGRAMS["guide.py"]
    for name in re.findall(r"^(?:async )?def (\w+)", source, re.MULTILINE):
        assert len(re.findall(rf"\b{name}\b", source)) > 1, name


def test_the_numerical_example_computes_what_it_asserts(tmp_path: Path) -> None:
    assert run("numerical.py", tmp_path) == ("pi is about 3.1412\n", "")


@ON_POSIX
@pytest.mark.usefixtures("backend")
def test_the_example_of_arrays_computes_what_it_asserts(tmp_path: Path) -> None:
    total = sum(number**2 for number in range(16))
    out, err = run("arrays.py", tmp_path)
    assert out == f"the sum of 16 squares is {total:,}\neach point is nearest to itself\n"
    assert err == ""


# -- the tutorial ----------------------------------------------------------------------------------

TUTORIAL = PAGES["docs/tutorial.md"]
STEPS = ["tutorial/first.py", "tutorial/website.py", "tutorial/pages.py", "tutorial/scraper.py"]
PORT = "8099"  # of the web site, as the reader runs it


@asynccontextmanager
async def website(folder: Path, port: str) -> AsyncIterator[None]:
    """The web site of the tutorial, once it answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(folder / "website.py"), start_new_session=True
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            answer = None
            while answer != 200 and process.returncode is None:
                try:
                    async with client.get("/0") as response:
                        answer = response.status
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
        assert process.returncode is None
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def python(folder: Path, program: str) -> tuple[str, str]:
    """What a program of the tutorial prints, on both streams."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, program),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    out, err = await process.communicate()
    return out.decode(), err.decode()


def save_programs(folder: Path, port: str) -> None:
    """Do what the tutorial says: save each program under the name that stands before it."""
    text = TUTORIAL
    for step in STEPS:
        name = step.rpartition("/")[2]
        assert f"`{name}`" in text.partition("```python\n")[0]
        program, _, text = text.partition("```python\n")[2].partition("```")
        (folder / name).write_text(program.replace(PORT, port), encoding="utf-8")


@ON_POSIX
async def test_a_reader_who_saves_the_programs_of_the_tutorial_sees_what_it_shows(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    save_programs(tmp_path, port)
    first, pages, error, scraper = [m[3] for m in FENCE.finditer(TUTORIAL) if m[2] == "text"]
    assert await python(tmp_path, "first.py") == (first, "")
    async with website(tmp_path, port):
        out, err = await python(tmp_path, "pages.py")
        assert (re.sub(r"\d+\.\d s", "1.0 s", out), err) == (pages, "")
        assert await python(tmp_path, "scraper.py") == (scraper, "")
        program = (tmp_path / "pages.py").read_text(encoding="utf-8")
        (tmp_path / "pages.py").write_text(program.replace(", return_exceptions=True", ""))
        out, err = await python(tmp_path, "pages.py")
        assert error.replace(PORT, port) in err


# -- tests and coverage ----------------------------------------------------------------------------

#: Examples that are tests or what they test: the next test runs them.
IN_PYTEST = {"testing/test_words.py", "testing/words.py"}


def test_the_tests_of_an_example_pass_and_coverage_sees_its_workers(tmp_path: Path) -> None:
    page = PAGES["docs/how-to/testing.md"]
    ((_, _, configuration),) = re.findall(r"^(```)(ini)\n(.*?)^```$", page, re.DOTALL | re.M)
    assert configparser.ConfigParser().read_string(configuration) is None
    for name in IN_PYTEST:
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / ".coveragerc").write_text(configuration)
    scope = "asyncio_default_fixture_loop_scope = function"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{scope}\n")
    commands = next(m[3] for m in FENCE.finditer(page) if m[2] == "sh").splitlines()
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^words\.py +\d+ +0 +100%$", done.stdout, re.MULTILINE)  # `count` runs there


# -- commands --------------------------------------------------------------------------------------


def _installs(arguments: list[str]) -> bool:
    extras = PROJECT["optional-dependencies"]
    for requirement in arguments[1:]:
        name, _, extra = requirement.rstrip("]").partition("[")
        if name == PROJECT["name"] and extra and extra not in extras:
            return False
    return arguments[0] == "install"


def _makes(arguments: list[str]) -> bool:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    return {word for word in arguments if "=" not in word} <= targets


def _runs(arguments: list[str]) -> bool:
    if arguments[:2] == ["-m", "aiomultiprocess"]:
        return arguments[2] in {"info", "bench", "top"}  # test_benchmarks.py, test_cli.py run them
    return not {arguments[0], f"tutorial/{arguments[0]}"}.isdisjoint(PROGRAMS)


def _is_of_dask(arguments: list[str]) -> bool:
    """Whether dask has the command, and its options."""
    command = importlib.import_module(f"distributed.cli.dask_{arguments[0]}").main
    known = {option for parameter in command.params for option in parameter.opts}
    return {word for word in arguments if word.startswith("--")} <= known


COMMANDS: dict[str, Callable[[list[str]], bool]] = {
    "pip": _installs,
    "make": _makes,
    "python": _runs,
    "dask": _is_of_dask,
    "coverage": lambda arguments: True,  # run above
    "towncrier": lambda arguments: arguments[0] == "create",
    "pre-commit": lambda arguments: arguments[0] in {"install", "run"},
}


@pytest.mark.parametrize("block", blocks("sh"))
def test_every_command_that_is_shown_exists(block: str) -> None:
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]  # a variable of the environment
        assert not words or COMMANDS[words[0]](words[1:]), line


@pytest.mark.parametrize("block", blocks("dockerfile"))
def test_an_image_is_of_a_python_that_is_supported_and_copies_an_example(block: str) -> None:
    (version,) = re.findall(r"^FROM python:(\d\.\d+)-slim$", block, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    (packages,) = re.findall(r"^RUN pip install --no-cache-dir (.*)$", block, re.MULTILINE)
    (name,) = re.findall(r"^COPY (\S+) \.$", block, re.MULTILINE)
    assert f'CMD ["python", "{name}"]' in block
    imported = set(re.findall(r"^(?:from|import) (\w+)", PROGRAMS[name], re.MULTILINE))
    assert imported - sys.stdlib_module_names == set(packages.split())


@pytest.mark.parametrize("reason", sorted(set(LEFT_OUT.values()) - {INTERNAL}))
def test_the_page_on_executors_has_each_difference_from_cpython(reason: str) -> None:
    assert reason in " ".join(PAGES["docs/how-to/threads.md"].split())


def test_the_reference_lists_every_metric() -> None:
    listed = re.findall(r"^\| `(aiomultiprocess_\w+)`", PAGES["docs/reference/statistics.md"], re.M)
    no_pool = Mock(spec=["stats", "_engine"])
    names = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in PoolCollector(no_pool).describe()
    }
    assert set(listed) == names


# -- links and length ------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", text)
    headings = re.findall(r"^##* (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    """Links of a page to files or headings that are not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if link.startswith(SOURCES):
            target, _, anchor = link.removeprefix(SOURCES).partition("#")
        elif link.startswith(SITE):
            name = link.removeprefix(SITE).replace(".html", ".md") or "index.md"
            target, _, anchor = f"docs/{name}".partition("#")
        elif re.match(r"https?:|mailto:", link):
            continue
        else:
            path, _, anchor = link.partition("#")
            folder = (ROOT / page).parent
            target = (folder / path).resolve().relative_to(ROOT).as_posix() if path else page
        headings = anchors(PAGES[target]) if anchor and target in PAGES else {anchor}
        if not (ROOT / target).exists() or anchor not in headings:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    assert broken_links(page, PAGES[page]) == []


def test_the_readme_has_no_link_that_is_dead_on_the_package_index() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES["README.md"])
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130


# -- errors ----------------------------------------------------------------------------------------

ERRORS = PAGES["docs/errors.md"]

#: Types of errors that only say why a link or a journal is broken; the log shows them as the cause.
CAUSES = {"CorruptHeaderError", "CorruptFrameError"}

#: Errors of misuse inside the library, which no program can cause: module, beginning of the text.
INTERNAL = [
    ("_parent/line.py", ""),
    ("_processes/descriptors.py", "the descriptor is closed"),
    ("_pure/buffer_builder.py", ""),
    ("_pure/encoder.py", "start is "),
    ("_pure/journal.py", ""),
    ("_pure/tasks.py", "there is no memory to send the result"),  # carries the error that is shown
    ("_transport/endpoint.py", "a link "),
    ("_transport/endpoint.py", "drain_dead()"),
    ("_transport/shm.py", "the links of one backend"),
    ("executor.py", "its pool is broken"),  # stands in for the reason, which is always known
]
#: Of amp_ext, by its type: `_transport` and the codec of this package are the only callers.
INTERNAL_TYPES = {"IndexError", "RingError", "TypeError", "ValueError"}
INTERNAL += [
    ("amp_ext/journal.pyx", ""),
    ("amp_ext/ring.pyx", ""),  # RingCorruptError is shown as the cause of a WorkerLostError
]

#: Texts that a call puts together elsewhere: of each, where the suite sees its text on the page.
COMPOSED = {
    ("WorkerLostError", "self.function.label"): "its __str__",
    ("WorkerLostError", "what"): "its __str__, tried below",
    ("ExecutorWorkerLostError", "error.task"): "its __str__",
    ("TaskTimeoutError", "task_label(owner, handle)"): "its __str__, tried below",
    ("TaskTimeoutError", "*what"): "its __str__",
    ("CancelledError", "*error.args"): "a copy",
    ("PicklingError", "message"): "the text of UnsendableError, with the task's name",
    ("ProxyException", "message.text"): "what the user's function raised",
    ("ProxyException", "text"): "what the user's function raised",
    ("OSError", "errno.EMFILE"): "the system's error: no descriptor is left",
    ("StopIteration", "result"): "no error",
    ("StopIteration", "value"): "no error",
    ("TracebackException", "type(exc)"): "no error",
    ("log", "what"): "what `_exit_after` gets, in a worker or inline",
    ("note", "why"): "what the log says of the killed worker, or why a host could not start it",
}

FOUND, UNKNOWN = messages.found(ROOT / "src" / "aiomultiprocess")
FOUND += [
    message
    for message in messages.of_extension(ROOT / "amp_ext")
    if message.kind not in INTERNAL_TYPES
]
FOUND += messages.reasons(ROOT / "src/aiomultiprocess/_transport/select.py", "_probe")


def headings() -> list[str]:
    """The messages that are headings of docs/errors.md."""
    return [text.strip() for _, text in re.findall(r"^### (`+)(.+?)\1$", ERRORS, re.MULTILINE)]


def is_shown_to_users(message: messages.Message) -> bool:
    return message.kind not in CAUSES and not any(
        message.module == module and message.text.startswith(text) for module, text in INTERNAL
    )


def test_every_message_of_the_library_is_on_the_page_of_errors() -> None:
    wanted = {message.text: message for message in FOUND if is_shown_to_users(message)}
    missing = [
        f"### `{text}`\n\n`{message.kind}`. (from {message.module})"
        for text, message in wanted.items()
        if text not in headings()
    ]
    assert not missing, "add to docs/errors.md:\n\n" + "\n\n".join(missing)


def test_every_text_that_is_put_together_elsewhere_is_known() -> None:
    assert {(unknown.kind, unknown.code) for unknown in UNKNOWN} == COMPOSED.keys()


def no_guard() -> BaseException:
    from aiomultiprocess._processes.spawn import NO_GUARD

    return RuntimeError(NO_GUARD)


def test_the_page_of_errors_has_no_message_that_is_gone() -> None:
    texts = {message.text for message in FOUND if is_shown_to_users(message)}
    raised = [
        WorkerLostError("main.f", 7, -9),
        WorkerLostError("main.f", 7, 1),
        WorkerLostError("main.f", 7, None),
        WorkerLostError("main.f", 7, None, "tcp://a:1", "it has not answered for 9 s"),
        WorkerLostError("main.f", None, None, "tcp://a:1"),
        TaskTimeoutError("main.f", 0.5),
        TaskTimeoutError("main.f", 0.5, killed=True),
        PoolTerminatedError("the pool was terminated"),
        no_guard(),
    ]
    for heading in set(headings()) - texts:
        pattern = re.escape(heading).replace(messages.FILLED, ".+?")
        assert any(re.fullmatch(pattern, str(error)) for error in raised), heading
    patterns = [re.escape(heading).replace(messages.FILLED, ".+?") for heading in headings()]
    for error in raised:
        assert any(re.fullmatch(pattern, str(error)) for pattern in patterns), str(error)


def test_no_message_is_explained_twice() -> None:
    assert len(headings()) == len(set(headings()))
