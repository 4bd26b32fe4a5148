"""The tree keeps its shape: who imports whom, the length of functions, names, words and rule codes.

docs/architecture.md shows the subpackages. A rule here is a function over the import graph, which
has an edge for each import, also one inside a function or for a type checker alone; a test breaks
each rule once, to show that it would be noticed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "aiomultiprocess"
EXTENSION = ROOT / "amp_ext"
PUBLIC = {"core", "executor", "pool", "scheduler", "shared", "types"}

Graph = dict[str, set[str]]
Edge = tuple[str, str]


def modules() -> dict[str, Path]:
    """The path of each module of the package, by its name below `aiomultiprocess`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported_by(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What one module imports of the package, and `amp_ext` if it imports that."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ("amp_ext" for alias in node.names if alias.name.startswith("amp_ext"))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").partition(".")[0] == "amp_ext":
                yield "amp_ext"
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                full = ".".join([*base, alias.name])
                target = full if full in known else ".".join(base)
                yield target if target in known else f"{target}.__init__".lstrip(".")


def import_graph() -> Graph:
    known = modules()
    return {name: set(imported_by(name, path, known)) for name, path in known.items()}


GRAPH = import_graph()


def subpackage(module: str) -> str:
    """The subpackage of a module, or the name of one that stands at the top."""
    return module.partition(".")[0]


# -- the rules of dependency -----------------------------------------------------------------------


def only(importer: str, *allowed: str) -> Callable[[Edge], bool]:
    """Whether a module of `importer` imports more than `allowed` and its own subpackage."""

    def broken(edge: Edge) -> bool:
        source, target = edge
        return subpackage(source) == importer and not any(
            target == name or subpackage(target) == name for name in (importer, *allowed)
        )

    return broken


def imports_pool(edge: Edge) -> bool:
    """`_cli` is a program that uses the public modules, and no part of the library."""
    return edge[1] == "pool" and subpackage(edge[0]) not in ("__init__", "_cli", "executor")


def imports_core(edge: Edge) -> bool:
    return edge[1] == "core" and edge[0] not in ("__init__", "pool", "_parent.worker", "_cli.info")


def imports_cluster(edge: Edge) -> bool:
    return subpackage(edge[1]) == "_cluster" and subpackage(edge[0]) not in ("_cluster", "pool")


#: What each rule says, its check of one edge, and an edge that breaks it.
RULES: list[tuple[str, Callable[[Edge], bool], Edge]] = [
    ("of the library only `executor` imports `pool`", imports_pool, ("_parent.engine", "pool")),
    ("only `pool` imports `_cluster`", imports_cluster, ("_parent.engine", "_cluster.engine")),
    (
        "`_cluster` imports the subpackages below it, and of `_worker` only `main`",
        only(
            "_cluster", "_parent", "_worker.main", "_transport", "_wire", "_processes", "_accel",
            "types", "__version__",
        ),
        ("_cluster.host", "_worker.engine"),
    ),
    (
        "of the subpackages only `_parent.worker` imports `core`",
        imports_core,
        ("_parent.job", "core"),
    ),
    (
        "`_parent` imports what is below it, and of `_worker` only `main` and `inline`",
        only(
            "_parent", "_worker.main", "_worker.inline", "_transport", "_wire", "_processes",
            "_accel", "_arguments", "_legacy",
            "core", "scheduler", "types",
        ),
        ("_parent.worker", "_worker.engine"),
    ),
    (
        "`_worker` never imports `_parent`",
        only("_worker", "_transport", "_wire", "_processes", "_pure", "_accel", "types"),
        ("_worker.engine", "_parent.credit"),
    ),
    (
        "`_transport` knows no pool, job or task",
        only("_transport", "_wire", "_processes", "_accel"),
        ("_transport.shm", "_parent.job"),
    ),
    ("`_wire` imports `types` alone", only("_wire", "types"), ("_wire.frames", "_pure.encoder")),
    (
        "`_pure` imports `_wire` and `types`",
        only("_pure", "_wire", "types"),
        ("_pure.starter", "_worker.engine"),
    ),
    (
        "`_processes` knows `types`, and of `_wire` what exceptions need",
        only("_processes", "_wire.exceptions", "_wire.tracebacks", "types"),
        ("_processes.result", "_transport.link"),
    ),
    (
        "`_accel` chooses between `amp_ext` and `_pure`",
        only("_accel", "amp_ext", "_pure"),
        ("_accel", "_transport.link"),
    ),
    (
        "`_accel` alone imports `amp_ext`",
        lambda edge: edge[1] == "amp_ext" and edge[0] != "_accel",
        ("_transport.shm", "amp_ext"),
    ),
    (
        "`_arguments` knows `types` alone",
        only("_arguments", "types"),
        ("_arguments", "_parent.functions"),
    ),
    (
        "`types` and `scheduler` stand at the bottom",
        lambda edge: edge[0] in ("types", "scheduler") and edge[1] != "types",
        ("types", "_wire.exceptions"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "broken", "breach"), RULES, ids=[rule[0] for rule in RULES])
def test_a_rule_of_dependency_holds(
    rule: str, broken: Callable[[Edge], bool], breach: Edge
) -> None:
    edges = [(source, target) for source, targets in GRAPH.items() for target in targets]
    assert [edge for edge in edges if broken(edge)] == [], rule
    assert broken(breach), "the check would not notice a breach"
    assert breach[0] in GRAPH


def circles(graph: Graph) -> list[set[str]]:
    """The sets of modules that reach each other (by transitive closure: the graph is small)."""
    reach = {name: set(targets) for name, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set().union(*(reach.get(target, set()) for target in targets)) - targets
            if more:
                targets |= more
                changed = True
    tied = [{other for other in reach[name] if name in reach.get(other, ())} for name in reach]
    return [circle for at, circle in enumerate(tied) if circle and circle not in tied[:at]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(GRAPH) == []


def test_a_circle_would_be_found() -> None:
    graph = {**GRAPH, "types": {*GRAPH["types"], "pool"}}
    assert any({"types", "pool"} <= circle for circle in circles(graph))


def test_the_extension_imports_nothing_of_the_package() -> None:
    for path in EXTENSION.rglob("*.py*"):
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import|cimport) +aiomultiprocess", source, re.M), path


def test_a_wing_says_what_it_is_for_and_holds_no_code() -> None:
    subpackages = {subpackage(name) for name in GRAPH if "." in name}
    expected = {"_cli", "_cluster", "_parent", "_worker", "_transport", "_wire", "_pure"}
    assert expected | {"_processes"} <= subpackages
    for name in subpackages:
        (docstring,) = ast.parse((PACKAGE / name / "__init__.py").read_text()).body
        assert isinstance(docstring, ast.Expr), name


# -- functions -------------------------------------------------------------------------------------


def function_lengths() -> dict[str, int]:
    return {
        f"{name}.{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_short() -> None:
    lengths = function_lengths()
    assert {name: length for name, length in lengths.items() if length > 50} == {}
    assert median(lengths.values()) <= 6
    assert quantiles(lengths.values(), n=10)[-1] <= 15


# -- names and words -------------------------------------------------------------------------------


#: Names that the glossary of docs/architecture.md has replaced; `slot` and the like stay words.
RETIRED = [
    "Answers",
    "Calls",
    "Driver",
    "Feed",
    "Growing",
    "Growth",
    "Ledger",
    "Met",
    "Parcel",
    "Porch",
    "Share",
    "Slots",
    "Spare",
    "Suspect",
    "Suspects",
    "WANT",
    "_dispose",
    "_hush",
    "_missing",
    "_told_free",
    "_useless",
    "brief",
    "copy_short",
    "die_of",
    "distrust",
    "explained",
    "forget",
    "gather_copy",
    "gather_drop",
    "gather_take",
    "hurried",
    "kick",
    "lasting",
    "let_go",
    "parked",
    "passing",
    "plenty",
    "pressed",
    "stepper",
    "trusted",
    "untake",
    "was_met",
]

#: Idioms that say less than the plain word.
IDIOMS = (
    r"\b(is|are|was|were|be|been|being) (told|heard|had)\b",
    r"\b(tells|told|hears|heard) (of|what|who|that|by)\b",
    r"\bmay be had\b",
    r"\bcannot be had\b",
    r"\b(nobody|whoever|somebody)\b",
    r"\bbecomes? of\b",
    r"\bwhat becomes\b",
    r"\bonce and for all\b",
)


def sources() -> list[Path]:
    """The files whose words a reader of the library meets."""
    suffixes = {".py", ".pyx", ".pxd", ".pyi", ".h", ".c", ".pml"}
    found = [path for path in (ROOT / "src").rglob("*") if path.suffix in suffixes]
    found += [path for path in EXTENSION.rglob("*") if path.suffix in suffixes]
    found = [path for path in found if not path.with_suffix(".pyx").exists() or path.suffix != ".c"]
    return [*found, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def hits(pattern: str, *, flags: int = 0) -> list[str]:
    """`file:line` of each match."""
    expression = re.compile(pattern, flags)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        if path.name != "CHANGELOG.md"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if expression.search(line)
    ]


def test_no_two_public_classes_of_modules_share_a_name() -> None:
    """One name for one thing. (The twins of `_pure` in amp_ext are not read here.)"""
    homes: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert len(homes) > 100
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_retired_names_are_gone() -> None:
    # `ident` of a thread is Python's
    named = re.compile(rf"(?<!\w)({'|'.join(RETIRED)})\b|(?<![\w.])(self\.)?ident\b")
    code = [path for path in sources() if path.suffix != ".md"]
    left = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in code
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line)
    ]
    assert left == []


@pytest.mark.parametrize("idiom", IDIOMS)
def test_words_are_plain(idiom: str) -> None:
    assert hits(idiom, flags=re.I) == []


# -- rule codes ------------------------------------------------------------------------------------

CODE = re.compile(r"\b([A-Z]{3,}-\d+)\b")
DEFINITION = re.compile(r"^(?: \* | {4})?([A-Z]{3,}-\d+) {1,2}\S")


def readable() -> list[Path]:
    """Where rules are defined or cited."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    return [*sources(), *tests]


def rules_and_citations() -> tuple[list[str], list[str], set[str]]:
    """Codes that are defined (once for each definition), cited, and the prefixes of rules.

    All that looks like a code is one, but UTF-8: else a rule whose whole prefix is gone could be
    cited still.
    """
    defined: list[str] = []
    seen: list[str] = []
    for path in readable():
        for line in path.read_text(encoding="utf-8").splitlines():
            definition = DEFINITION.match(line)
            if definition:
                defined.append(definition.group(1))
            codes = CODE.findall(line)
            seen += codes[1:] if definition else codes
    prefixes = {code.partition("-")[0] for code in defined}
    return defined, [code for code in seen if code != "UTF-8"], prefixes


def test_each_rule_has_a_code_of_its_own_and_each_citation_resolves() -> None:
    defined, cited, _ = rules_and_citations()
    assert sorted(defined) == sorted(set(defined)), "two rules share a code"
    assert set(cited) - set(defined) == set(), "cited, and defined nowhere"


def test_each_rule_is_cited_somewhere() -> None:
    defined, cited, _ = rules_and_citations()
    assert set(defined) - set(cited) == set(), "a rule that nothing cites goes"
