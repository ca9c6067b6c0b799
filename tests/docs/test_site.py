"""The site has a page for every command, every page is in its navigation, and its environment fits the project's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from typing import Any

import cli_pages
import config_pages
import pytest
import yaml
from links import ROOT_PAGES
from pages import ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def navigation(entry: Any) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from navigation(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    generated = {*cli_pages.pages(), *config_pages.pages(), *ROOT_PAGES.values()}
    assert written & generated == set()
    assert sorted(navigation(SITE["nav"])) == sorted(written | generated)


@pytest.mark.parametrize("name", cli_pages.commands())
def test_every_command_says_what_it_does(name: str) -> None:
    command = cli_pages.commands()[name]
    assert command.help
    assert [p.name for p in command.params if not p.help] == []
    page = cli_pages.pages()[cli_pages.path_of(name)]
    assert page.startswith(f"# rlhf {name}\n")
    assert [p.opts for p in command.params if p.name != "help" and p.opts[0].startswith("-")] == [
        re.findall(r"`(-[\w-]+)`", row.split(" | ")[0]) for row in page.splitlines() if row.startswith("| `-")
    ]


def test_the_site_builds_strictly() -> None:
    assert SITE["strict"] is True
    assert (ROOT / SITE["hooks"][0]).is_file()
    assert "mkdocs build" in (ROOT / "Makefile").read_text("utf-8")


def test_pins_are_those_of_the_project() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text("utf-8")
        return {package.lower().replace("_", "-"): version for package, version in PIN.findall(text)}

    ours, locked = pins("docs.txt"), pins("cpu.txt")
    shared = {"pydantic", "typer", "pyyaml", "numpy"}
    assert shared <= ours.keys() & locked.keys()
    assert {name: ours[name] for name in shared} == {name: locked[name] for name in shared}


def test_generators_need_no_more_than_the_environment_of_the_site_has() -> None:
    code = "import cli_pages, config_pages, recipe_schema, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "docs" / "generate"), str(ROOT)])}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | paths, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pinned = {name.lower().replace("_", "-") for name, _ in PIN.findall((ROOT / "requirements/docs.txt").read_text())}
    installed = packages_distributions()
    needed = {d.lower().replace("_", "-") for module in run.stdout.split() for d in installed.get(module, ())}
    assert needed - pinned <= {"rlhf-orchestrator", "pip", "setuptools", "debugpy"}


def test_the_readme_is_short_and_begins_with_what_it_is() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:25])
    assert "<img" in first
    assert "make quickstart" in first


def test_errors_that_name_a_page_name_one_that_exists() -> None:
    for source in (*ROOT.glob("orchestrator/**/*.py"), *ROOT.glob("workers/**/*.py"), *ROOT.glob("configs/**/*.yaml")):
        for page in re.findall(r"docs/[\w/-]+\.md", source.read_text("utf-8")):
            assert (ROOT / page).is_file(), f"{source}: {page}"
