"""Check what the rewards need: functions (parsed, never run), columns, and the sandbox for programs."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TypeAlias

from orchestrator.config.run import ClusterConfig
from orchestrator.errors import Problems
from orchestrator.preflight.source import SourceSummary
from workers.config import CodeRewardConfig, FunctionRewardConfig, RefusalConfig, RefusalRewardConfig, RewardConfig
from workers.rewards.refusal_classifier import ClassifierError, RefusalClassifier
from workers.rewards.sandbox import NoSandboxError, Sandbox

SIGNATURE = "def reward(prompts, completions, completion_ids, **columns) -> list[float | None]"
ALWAYS = ("prompts", "completions", "completion_ids")
SANDBOX_FIX = "use a machine that has them, or another reward; the sandbox cannot be switched off"
COLUMNS: Mapping[str, Mapping[str, str]] = {
    # type of a reward → setting that names a column → why the reward needs it
    "math": {"solution_column": "the math reward compares answers with it"},
    "code": {"tests_column": "the code reward runs programs against its tests"},
    "json_schema": {"schema_column": "the json_schema reward validates completions against it"},
    "classifier": {"premise_column": "the classifier reads it as the premise of each completion"},
}


def check_rewards(
    rewards: Sequence[RewardConfig], cluster: ClusterConfig, data: Sequence[SourceSummary], problems: Problems
) -> None:
    """Check what the scorers of prompts need: their functions, their columns, a sandbox."""
    prompts = [source for source in data if source.key.endswith("prompts")]
    for i, reward in enumerate(rewards):
        if isinstance(reward, FunctionRewardConfig):
            columns = {source.source: source.columns for source in prompts}
            check_reward_function(reward.function, f"reward.{i}.function = {reward.function}", problems, columns)
        for key, why in COLUMNS.get(reward.type, {}).items():
            column = getattr(reward, key)
            for source in prompts:
                if column is not None and column not in source.columns:
                    others = ", ".join(source.columns) or "none"
                    problems.add(
                        f"{source.source} has no column `{column}`",
                        where=f"reward.{i}",
                        why=f"{why}; the further columns are: {others}",
                        fix=f"add the column, or set reward.{i}.{key} to another one",
                    )
        if isinstance(reward, RefusalRewardConfig):
            check_refusal(reward, f"reward.{i}", {}, problems)
        # On another cluster the reward workers check for a sandbox when they start.
        if isinstance(reward, CodeRewardConfig) and cluster.address is None and "RAY_ADDRESS" not in os.environ:
            _check_sandbox(reward, f"reward.{i}.type = code", problems)


def check_refusal(refusal: RefusalConfig, key: str, columns: Mapping[str, Iterable[str]], problems: Problems) -> None:
    """Check what a detector of refusals needs: its function, called with the rows of `columns`, or its classifier."""
    if isinstance(refusal, FunctionRewardConfig):
        check_reward_function(refusal.function, f"{key}.function = {refusal.function}", problems, columns)
    elif refusal.classifier_file is not None:
        try:
            RefusalClassifier.load(Path(refusal.classifier_file))
        except ClassifierError as error:
            where = f"{key}.classifier = {refusal.classifier_file}"
            fix = "give default, or a file that `python -m benchmarks.refusals --weights FILE` has written"
            problems.add("not a classifier of refusals", where=where, why=str(error), fix=fix)


def check_reward_function(
    function: str, where: str, problems: Problems, columns: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Check that a reward function exists and can be called, by parsing its file.

    Args:
        function: `path/to/file.py:name` or `package.module:name`.
        columns: columns of each source whose rows it is called with; None: unknown.
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
        if (file := _module_file(place)) is None:
            return
        place = str(file)
    try:
        tree = ast.parse(Path(place).expanduser().read_text("utf-8"))
    except OSError as error:
        why = f"{place}: {os.strerror(error.errno or 0).lower()}"
        problems.add("cannot be read", where=where, why=why, fix=f"relative paths start at {Path.cwd()}")
        return
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        what = f"not Python{f': line {line}' if line else ''}"
        problems.add(what, where=where, why=getattr(error, "msg", str(error)), fix="correct the file")
        return
    _check_definition(tree, name, where, problems, columns or {})


def _check_sandbox(reward: CodeRewardConfig, where: str, problems: Problems) -> None:
    """Check that this machine has a sandbox, by running an empty program in it."""
    try:
        Sandbox(timeout_s=reward.timeout_s, memory_mib=reward.memory_mib)
    except NoSandboxError as error:
        problems.add("programs cannot be run safely on this machine", where=where, why=str(error), fix=SANDBOX_FIX)


def _module_file(module: str) -> Path | None:
    """Return the file of a Python module without importing its package; None: not found, or not a .py file."""
    path: Iterable[str] | None = None
    spec = None
    for i in range(module.count(".") + 1):
        name = ".".join(module.split(".")[: i + 1])
        spec = PathFinder.find_spec(name, [os.getcwd(), *sys.path] if path is None else list(path))
        if spec is None:
            return None
        path = spec.submodule_search_locations or ()
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def _check_definition(
    tree: ast.Module, name: str, where: str, problems: Problems, columns: Mapping[str, Iterable[str]]
) -> None:
    statements = list(_statements(tree.body))
    functions = {n.name: n for n in statements if isinstance(n, Function)}
    others = _other_names(statements)
    if name in functions and name not in others:
        if not functions[name].decorator_list:  # a decorator may change its signature
            _check_arguments(functions[name].args, where, problems, columns)
    elif name not in others and name not in functions and "*" not in others:
        why = f"it has {', '.join(functions) or 'no functions'}"
        problems.add(f"there is no `{name}` in the file", where=where, why=why, fix=f"write {SIGNATURE}")


def _check_arguments(
    arguments: ast.arguments, where: str, problems: Problems, columns: Mapping[str, Iterable[str]]
) -> None:
    """Check that a function takes the keywords prompts, completions, completion_ids and every column of the rows."""
    positional = [a.arg for a in arguments.posonlyargs]
    named = [a.arg for a in arguments.args]
    optional = {*(positional + named)[len(positional + named) - len(arguments.defaults) :]}
    keyword = {a.arg: default for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    needed = [name for name in named if name not in optional] + [n for n, default in keyword.items() if default is None]
    why = "a reward function is called by keywords"
    if "completions" not in {*named, *keyword} and arguments.kwarg is None:
        problems.add("takes no `completions`", where=where, why=why, fix=f"write {SIGNATURE}")
        return
    if positional_only := [name for name in positional if name not in optional]:
        what = f"takes {_listed(positional_only)} by position only"
        problems.add(what, where=where, why=why, fix="remove the `/` from its parameters")
    for source, of_source in columns.items():
        given = [*ALWAYS, *(name for name in of_source if name not in ALWAYS)]
        refused = [name for name in given if name not in {*named, *keyword}]
        if refused and arguments.kwarg is None:
            with_columns = f"{why}, with every column of {source}"
            fix = f"add **columns: {SIGNATURE}"
            problems.add(f"takes no {_listed(refused)}", where=where, why=with_columns, fix=fix)
        if missing := [name for name in needed if name not in given]:
            available = f"beside the prompt {source} has {', '.join(given[len(ALWAYS) :]) or 'no columns'}"
            fix = "add the column to the data, or give the parameter a default"
            problems.add(f"needs {_listed(missing)}, which no row has", where=where, why=available, fix=fix)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, including those within `if`, `try` and `with`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody") if isinstance(node, ast.If | ast.Try | ast.With) else ():
            yield from _statements(getattr(node, part, ()))
        if isinstance(node, ast.Try):
            yield from (inner for handler in node.handlers for inner in _statements(handler.body))


def _other_names(statements: Iterable[ast.stmt]) -> set[str]:
    """Return names bound by classes, assignments and imports, which cannot be checked without running the module."""
    names: set[str] = set()
    for node in statements:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
