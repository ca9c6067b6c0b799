"""Every command line in the documentation can be parsed, and names recipes, make targets and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import PAGES, ROOT, command_lines, name_of
from typer.exceptions import Exit

from orchestrator.cli.main import app
from orchestrator.compare.recipe import load_comparison
from orchestrator.config import load
from orchestrator.evaluation.suite import load_suite
from orchestrator.launch.request import kind_of

LINES = [(name_of(page), line) for page in PAGES for line in command_lines(page)]
RLHF = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
OTHERS = ("pip", "vllm", "ray", "docker", "prometheus", "promtool", "kubectl")  # programs of others
MODULES_OF_OTHERS = ("pytest", "venv", "pip", "vllm")
LOADED = ("run", "validate", "submit")  # commands whose recipe and overrides can be read here


def parse(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the command's names and the values of its parameters, as the command line's own parser reads them."""
    command, names, parent = RLHF, [], None
    while True:
        context = command.make_context(names[-1] if names else "rlhf", arguments, parent=parent)
        if not hasattr(command, "commands"):
            return names, dict(context.params)
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
        names.append(name)
        parent = context


def test_the_documentation_shows_commands() -> None:
    assert len(LINES) > 60
    assert ("README.md", "make test           # install, then run all tests") in LINES


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_lines_can_be_parsed(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, arguments = Path(words[0]).name, words[1:]
    if program == "rlhf":
        check_rlhf(arguments)
    elif program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif program.startswith("python"):
        check_python(arguments)
    else:
        assert program in OTHERS, f"{page}: unknown program {program}"


def check_rlhf(arguments: list[str]) -> None:
    try:
        names, values = parse(arguments)
    except Exit:  # --version and --help
        return
    for word in arguments:
        if word.startswith(("configs/", "benchmarks/", "docs/")):
            assert (ROOT / word).is_file(), word
    recipe = values.get("recipe")
    if names[0] in LOADED and recipe is not None and (ROOT / recipe).is_file():
        read = {"comparison": load_comparison, "suite": load_suite, "recipe": load}[kind_of(ROOT / recipe)]
        read(ROOT / recipe, values["overrides"] or ())


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module = arguments[1]
        if module.partition(".")[0] not in MODULES_OF_OTHERS:
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    elif arguments[0] != "-c":
        assert (ROOT / arguments[0]).is_file(), arguments[0]


def test_a_command_line_that_is_wrong_is_noticed() -> None:
    with pytest.raises(typer.exceptions.TyperException):
        parse(["run", "recipe.yaml", "--no-such-option"])
    with pytest.raises(typer.exceptions.TyperException):
        parse(["evaluate", "runs/x"])  # without --suite
    assert parse(["ledger", "verify", "runs/x"])[0] == ["ledger", "verify"]
