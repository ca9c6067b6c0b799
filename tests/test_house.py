"""Rules for the source: sizes, import cycles, private names of libraries, and opening words of docstrings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = ("orchestrator", "workers", "benchmarks", "configs")
SOURCES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if (ROOT / name).is_file()
]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    """Return the syntax tree of every file, by its path in the repository."""
    return {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in SOURCES}


@cache
def shipped_trees() -> dict[Path, ast.Module]:
    """Return the trees of all files but the tests."""
    return {path: tree for path, tree in trees().items() if path.parts[0] in SHIPPED}


# ------------------------------------------------------------------------------------------------ sizes

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8

MANY_PARAMETERS = {
    "orchestrator/pipeline/sources.py:RolloutSource": "two gangs, their work and its limits: none belongs to another",
}
"""Constructors with more than MAX_PARAMETERS parameters, each with the reason."""


def test_files_are_short() -> None:
    sizes = {str(path): len((ROOT / path).read_text("utf-8").splitlines()) for path in shipped_trees()}
    assert {path: size for path, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_fit_a_screen() -> None:
    long = {
        f"{path}:{node.lineno} {node.name}": size
        for path, tree in shipped_trees().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def _parameters(function: Function) -> int:
    every = function.args
    return len(every.posonlyargs) + len(every.args) + len(every.kwonlyargs) - 1  # without `self`


def test_constructors_take_few_parameters() -> None:
    found = {
        f"{path}:{node.name}": _parameters(method)
        for path, tree in shipped_trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
    }
    many = {name: count for name, count in found.items() if count > MAX_PARAMETERS}
    assert sorted(many) == sorted(MANY_PARAMETERS), many


# ------------------------------------------------------------------------------------------------ imports


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _package(path: Path) -> str:
    """Return the package of a file under orchestrator/ or workers/, or the module itself if it is in no package."""
    return ".".join(path.with_suffix("").parts[:2])


def test_packages_do_not_import_each_other_in_a_ring() -> None:
    packages = {_package(path) for path in shipped_trees() if path.parts[0] in ("orchestrator", "workers")}
    uses: dict[str, set[str]] = {package: set() for package in packages}
    for path, tree in shipped_trees().items():
        if path.parts[0] in ("orchestrator", "workers"):
            named = {".".join(name.split(".")[:2]) for name in _imported(tree)}
            uses[_package(path)] |= (named & packages) - {_package(path)}
    while leaves := {package for package, used in uses.items() if not used}:
        uses = {package: used - leaves for package, used in uses.items() if package not in leaves}
    assert uses == {}, "packages in a ring, or above one"


KV = "the key-value store of the cluster, for heartbeats: its public form is an actor, which can die itself"
PRIVATE = {
    "ray._private": "loopback-only ports, SIGTERM and token authentication have no public form",
    "ray.experimental.internal_kv._internal_kv_del": KV,
    "ray.experimental.internal_kv._internal_kv_get": KV,
    "ray.experimental.internal_kv._internal_kv_put": KV,
}
"""Private names of libraries that we use, each with the reason."""


def _used(tree: ast.Module) -> Iterator[str]:
    """Yield every imported name, and every dotted name that begins with an imported module."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    yield from _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := ast.unparse(node)).partition(".")[0] in modules:
            yield name


def test_private_names_of_libraries_are_used_for_a_reason() -> None:
    private = {
        match[0]
        for tree in shipped_trees().values()
        for name in _used(tree)
        if name.partition(".")[0] not in {*SHIPPED, *sys.stdlib_module_names}
        if (match := re.match(r"[\w.]*?\._(?!_)\w+", name))
    }
    assert private == set(PRIVATE)


# ------------------------------------------------------------------------------------------------ docstrings

BANNED_OPENINGS = re.compile(
    r"`|(?:What|Whatever|Which|Whichever|Who|Whoever|Where|Wherever|How|Of|Whether|Raises|Returns|Yields|Example|Likewise"
    r"|It|Its|They|Their|Theirs|This|These|That|Those|He|She|None|So|As|Also|And|Or|But|If|When|While|For|In|With|By|On|At"
    r"|To|Not|Is|Are|There)\b"
)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("part", [*SHIPPED, "docs", "tests"])
def test_docstrings_open_with_a_verb_or_the_name_of_a_thing(part: str) -> None:
    """Check for openings that hide the subject of the sentence. Ruff's D401 checks only for the imperative."""
    wrong = [
        f"{path}:{line}: {text.splitlines()[0]}"
        for path, tree in trees().items()
        if path.parts[0] == part
        for line, text in _docstrings(tree)
        if BANNED_OPENINGS.match(text)
    ]
    assert wrong == []
