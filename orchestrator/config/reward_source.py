"""Whether what a reward needs is there: its function, without running a line of it, or the sandbox for programs."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

from orchestrator.errors import Problems
from workers.config import CodeRewardConfig
from workers.rewards.sandbox import NoSandboxError, Sandbox

SIGNATURE = "def reward(prompts, completions, completion_ids, **columns) -> list[float | None]"
SANDBOX_FIX = "use a machine that has them, or another reward; there is no switch to do without"


def check_reward_function(function: str, where: str, problems: Problems) -> None:
    """`path/to/file.py:name` is read, not run; of `package.module:name` only the package is looked for."""
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
    _defined(tree, name, where, problems)


def check_sandbox(reward: CodeRewardConfig, where: str, problems: Problems) -> None:
    """Model output is run in a sandbox or not at all: one empty program is run in it here."""
    try:
        Sandbox(timeout_s=reward.timeout_s, memory_mib=reward.memory_mib)
    except NoSandboxError as error:
        problems.add("programs cannot be run safely on this machine", where=where, why=str(error), fix=SANDBOX_FIX)


def _defined(tree: ast.Module, name: str, where: str, problems: Problems) -> None:
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    if name in functions:
        arguments = functions[name].args
        names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        if "completions" not in names and arguments.kwarg is None:
            why = "a reward function is called by keywords"
            problems.add("takes no `completions`", where=where, why=why, fix=f"write {SIGNATURE}")
    elif name not in _other_names(tree):
        why = f"it has {', '.join(functions) or 'no functions'}"
        problems.add(f"there is no `{name}` in the file", where=where, why=why, fix=f"write {SIGNATURE}")


def _other_names(tree: ast.Module) -> set[str]:
    """Classes, assignments and imports: whether these can be called only shows when they run."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found
