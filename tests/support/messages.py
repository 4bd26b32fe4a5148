"""The texts of errors, log records, warnings and notes in the library's source, found by `ast`.

`found()` lists them as templates: each value that is put in at run time is `…`. `of_extension()`
does so for Cython, by the look of it, and `reasons()` for functions that return a text. The tests
of the docs compare them with docs/errors.md.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILLED = "…"

#: Functions and methods that get a text first, and what becomes of it. The loop's handler of
#: exceptions gets it in a dict, and writes it to the log unless the program has set another.
CARRIERS = {
    "add_note": "note",
    "noted": "note",
    "out_of_memory": "MemoryError",
    "_exit_after": "log",
    "call_exception_handler": "log",
}
LOGGED = frozenset({"warning", "error", "exception", "critical"})
LOGGERS = frozenset({"log", "_log", "logger"})

#: Kinds whose first argument is the whole text. Errors may make theirs of what they get.
WHOLE = frozenset({"log", "note", "warning"})


class Message(NamedTuple):
    """One text, and where it stands."""

    text: str
    module: str
    line: int
    kind: str  # the exception's type, "log", "note" or "warning"


class Unknown(NamedTuple):
    """A text that is not in the call that carries it."""

    code: str
    module: str
    kind: str


def found(package: Path) -> tuple[list[Message], list[Unknown]]:
    """The texts of all modules, and the calls whose text could not be found."""
    trees = {
        path.relative_to(package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }
    own = {module: _constants(tree) for module, tree in trees.items()}
    imported = {name: text for constants in own.values() for name, text in constants.items()}
    messages: list[Message] = []
    unknown: list[Unknown] = []
    for module, tree in trees.items():
        constants = {**imported, **own[module]}
        assigned = _assigned(tree)
        for node in ast.walk(tree):
            kind = _kind(node)
            if kind is None or not isinstance(node, ast.Call) or not node.args:
                continue
            carried = _carried(node)
            code = ast.unparse(carried)
            texts = list(_texts(assigned.get((node, code), carried), constants))
            messages += (Message(text, module, node.lineno, kind) for text in texts)
            if not texts:
                unknown.append(Unknown(code, module, kind))
    return messages, unknown


def of_extension(folder: Path) -> list[Message]:
    """The texts of the errors that .pyx files raise."""
    raised = re.compile(r'raise (\w+)\(\s*(f?"(?:[^"\\]|\\.)*")')
    return [
        Message(
            text, f"{folder.name}/{path.name}", code.count("\n", 0, match.start()) + 1, match[1]
        )
        for path in sorted(folder.glob("*.pyx"))
        if (code := path.read_text(encoding="utf-8"))
        for match in raised.finditer(code)
        for text in _texts(ast.parse(match[2], mode="eval").body, {})
    ]


def reasons(module: Path, prefix: str) -> list[Message]:
    """The texts that functions of a module return whose names begin so."""
    return [
        Message(text, module.name, node.lineno, "reason")
        for function in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(function, ast.FunctionDef) and function.name.startswith(prefix)
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and node.value is not None
        for text in _texts(node.value, {})
    ]


def _constants(tree: ast.Module) -> dict[str, str]:
    """Strings that a module gives names to."""
    named: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        texts = list(_texts(node.value, named))
        if isinstance(target, ast.Name) and texts and target.id != "__version__":
            named[target.id] = texts[0]
    return named


def _assigned(tree: ast.Module) -> dict[tuple[ast.Call, str], ast.expr]:
    """For calls that carry a whole text: those that names and attributes stand for there.

    Names are those of the call's function, attributes those of its class.
    """
    meant: dict[tuple[ast.Call, str], ast.expr] = {}
    for scope in ast.walk(tree):  # the outer ones first
        if not isinstance(scope, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        of_class, nodes = isinstance(scope, ast.ClassDef), list(ast.walk(scope))
        texts = {
            ast.unparse(target): node.value
            for node in nodes
            if isinstance(node, ast.Assign) and any(_texts(node.value, {}))
            for target in node.targets
            if isinstance(target, ast.Attribute if of_class else ast.Name)
        }
        calls = [node for node in nodes if isinstance(node, ast.Call) and _kind(node) in WHOLE]
        meant |= {(call, name): text for call in calls for name, text in texts.items()}
    return meant


def _carried(call: ast.Call) -> ast.expr:
    """The expression of the text that a call carries."""
    match call.args[0]:
        case ast.Dict(keys=[ast.Constant(value="message"), *_], values=[text, *_]):
            return text
        case what:
            return what


def _kind(node: ast.AST) -> str | None:
    """What kind of message a call carries; None for any other node."""
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    if isinstance(function, ast.BoolOp):  # one type or another
        function = function.values[-1]
    if isinstance(function, ast.Attribute):
        if (_name(function.value), function.attr) == ("warnings", "warn"):
            return "warning"
        if function.attr in LOGGED and _name(function.value) in LOGGERS:
            return "log"
        if (_name(function.value), function.attr) == ("notes", "append"):
            return "note"
        name = function.attr
    else:
        name = _name(function)
    return CARRIERS.get(name, name if _is_exception(name) else None)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_exception(name: str) -> bool:
    known = getattr(builtins, name, None)
    is_builtin = isinstance(known, type) and issubclass(known, BaseException)
    return is_builtin or bool(re.fullmatch(r"[A-Z]\w*(Error|Exception|ProcessPool)", name))


def _texts(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    """The templates that an expression may give."""
    match node:
        case ast.Constant(value=str(text)):
            yield re.sub(r"%[srdg]|{}", FILLED, text)
        case ast.JoinedStr():
            yield "".join(_part(part, constants) for part in node.values)
        case ast.Name(id=name) if name in constants:
            yield constants[name]
        case ast.IfExp():
            yield from _texts(node.body, constants)
            yield from _texts(node.orelse, constants)
        case ast.Call(func=ast.Attribute(attr="format", value=template)):
            yield from _texts(template, constants)


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
        return constants.get(part.value.id, FILLED)
    return FILLED
