"""Whether what a reward needs is there: its function, without running a line of it, or the sandbox for programs."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypeAlias

from orchestrator.errors import Problems
from workers.config import CodeRewardConfig
from workers.rewards.sandbox import NoSandboxError, Sandbox

SIGNATURE = "def reward(prompts, completions, completion_ids, **columns) -> list[float | None]"
ALWAYS = ("prompts", "completions", "completion_ids")
SANDBOX_FIX = "use a machine that has them, or another reward; there is no switch to do without"


def check_reward_function(
    function: str, where: str, problems: Problems, columns: Mapping[str, Iterable[str]] | None = None
) -> None:
    """`path/to/file.py:name` is read, not run; so is `package.module:name` where its file can be found.

    `columns`: those of each source whose rows it will be called with; None: not known here.
    """
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        fix = "give path/to/file.py:name or package.module:name"
        problems.add("not of the form FILE.py:NAME", where=where, fix=fix)
        return
    if not place.endswith(".py"):
        package = place.split(".")[0]
        here = Path(package).is_dir() or Path(f"{package}.py").is_file()
        if not here and importlib.util.find_spec(package) is None:
            why = f"there is no package {package} in this environment"
            fix = "install it, or give path/to/file.py:name"
            problems.add("cannot be imported", where=where, why=why, fix=fix)
            return
        if (found := _module_file(place)) is None:
            return
        place = str(found)
    try:
        tree = ast.parse(Path(place).expanduser().read_text("utf-8"))
    except OSError as error:
        why = f"{place}: {os.strerror(error.errno or 0).lower()}"
        problems.add("cannot be read", where=where, why=why, fix=f"relative paths start at {Path.cwd()}")
        return
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        what = f"not Python{f': line {line}' if line else ''}"
        problems.add(what, where=where, why=getattr(error, "msg", str(error)), fix="mend the file")
        return
    _defined(tree, name, where, problems, columns or {})


def check_sandbox(reward: CodeRewardConfig, where: str, problems: Problems) -> None:
    """Model output is run in a sandbox or not at all: one empty program is run in it here."""
    try:
        Sandbox(timeout_s=reward.timeout_s, memory_mib=reward.memory_mib)
    except NoSandboxError as error:
        problems.add("programs cannot be run safely on this machine", where=where, why=str(error), fix=SANDBOX_FIX)


def _module_file(module: str) -> Path | None:
    """Where a module of Python lies, without importing a package; None: nowhere, or it is of another kind."""
    path: Iterable[str] | None = None
    found = None
    for i in range(module.count(".") + 1):
        name = ".".join(module.split(".")[: i + 1])
        found = PathFinder.find_spec(name, [os.getcwd(), *sys.path] if path is None else list(path))
        if found is None:
            return None
        path = found.submodule_search_locations or ()
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def _defined(tree: ast.Module, name: str, where: str, problems: Problems, columns: Mapping[str, Iterable[str]]) -> None:
    statements = list(_statements(tree.body))
    functions = {n.name: n for n in statements if isinstance(n, Function)}
    others = _other_names(statements)
    if name in functions and name not in others:
        if not functions[name].decorator_list:  # a decorator may make another signature of it
            _callable(functions[name].args, where, problems, columns)
    elif name not in others and name not in functions and "*" not in others:
        why = f"it has {', '.join(functions) or 'no functions'}"
        problems.add(f"there is no `{name}` in the file", where=where, why=why, fix=f"write {SIGNATURE}")


def _callable(arguments: ast.arguments, where: str, problems: Problems, columns: Mapping[str, Iterable[str]]) -> None:
    """It is called by keywords: with prompts, completions, completion_ids and every column of the rows."""
    positional = [a.arg for a in arguments.posonlyargs]
    named = [a.arg for a in arguments.args]
    optional = {*(positional + named)[len(positional + named) - len(arguments.defaults) :]}
    keyword = {a.arg: default for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    needed = [name for name in named if name not in optional] + [n for n, default in keyword.items() if default is None]
    why = "a reward function is called by keywords"
    if "completions" not in {*named, *keyword} and arguments.kwarg is None:
        problems.add("takes no `completions`", where=where, why=why, fix=f"write {SIGNATURE}")
        return
    if stuck := [name for name in positional if name not in optional]:
        what = f"takes {_listed(stuck)} by position alone"
        problems.add(what, where=where, why=why, fix="remove the `/` from its parameters")
    for source, there in columns.items():
        given = [*ALWAYS, *(name for name in there if name not in ALWAYS)]
        refused = [name for name in given if name not in {*named, *keyword}]
        if refused and arguments.kwarg is None:
            whose = f"{why}, with every column of {source}"
            problems.add(f"takes no {_listed(refused)}", where=where, why=whose, fix=f"add **columns: {SIGNATURE}")
        if lacking := [name for name in needed if name not in given]:
            has = f"beside the prompt {source} has {', '.join(given[len(ALWAYS) :]) or 'no columns'}"
            fix = "add the column to the data, or give the parameter a default"
            problems.add(f"needs {_listed(lacking)}, which no row has", where=where, why=has, fix=fix)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module, those within `if` and `try` too."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try | ast.With) else ():
            yield from _statements(getattr(node, part, ()))
        if isinstance(node, ast.Try):
            yield from (inner for handler in node.handlers for inner in _statements(handler.body))


def _other_names(statements: Iterable[ast.stmt]) -> set[str]:
    """Classes, assignments and imports: whether these can be called only shows when they run."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found
