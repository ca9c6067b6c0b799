"""Links between pages, to files and to headings resolve, and files that pages name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cli_pages
import config_pages
import pytest
from links import ROOT_PAGES, anchor, headings, is_external, links, repository_path, rewrite, site_path
from pages import PAGES, ROOT, name_of

GENERATED = {f"docs/{uri}": text for uri, text in {**cli_pages.pages(), **config_pages.pages()}.items()}
BUILT = {"docs/reference/recipe.schema.json"}
TEXTS = {name_of(page): page.read_text("utf-8") for page in PAGES} | GENERATED
FOLDERS = ("orchestrator", "workers", "configs", "benchmarks", "docs", "requirements")
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)}|tests)/[\w./-]*\w/?)`")


def broken(name: str) -> Iterator[str]:
    text = TEXTS[name]
    images = re.findall(r'<img src="([^"]+)"', text)
    for target in [*links(text), *images]:
        if is_external(target):
            continue
        path, heading = repository_path(name, target), target.partition("#")[2]
        if path not in TEXTS and path not in BUILT and not (ROOT / path).exists():
            yield f"{target}: no {path}"
        elif heading and path in TEXTS and heading not in headings(TEXTS[path]):
            yield f"{target}: no heading {heading} in {path}"


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name: str) -> None:
    assert list(broken(name)) == []


@pytest.mark.parametrize("name", [n for n in TEXTS if n != "CHANGELOG.md" and not n.startswith("docs/evidence/")])
def test_files_that_a_page_names_exist(name: str) -> None:
    named = NAMED.findall(TEXTS[name])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_walkthrough_names_the_files_of_a_step() -> None:
    text = TEXTS["docs/how-it-is-built/walk.md"]
    named = {repository_path("docs/how-it-is-built/walk.md", target) for target in links(text)}
    assert {
        "orchestrator/driver/loop.py",
        "orchestrator/pipeline/sources.py",
        "workers/rollout.py",
        "workers/reward.py",
        "workers/reference.py",
        "workers/learner.py",
        "workers/updates.py",
        "orchestrator/pipeline/publishing.py",
        "orchestrator/driver/recorder.py",
    } <= named


def test_links_in_code_are_left_alone() -> None:
    text = "[a](b.md) `[c](d.md)`\n```\n[e](f.md)\n```\n[g](h.md#i)\n"
    assert list(links(text)) == ["b.md", "h.md#i"]
    assert rewrite(text, str.upper) == "[a](B.MD) `[c](d.md)`\n```\n[e](f.md)\n```\n[g](H.MD#I)\n"


def test_a_link_names_a_file_of_the_repository_and_a_page_of_the_site() -> None:
    walk = "docs/how-it-is-built/walk.md"
    assert repository_path(walk, "../../workers/rollout.py#x") == "workers/rollout.py"
    assert repository_path("CONTRIBUTING.md", "docs/plan.md") == "docs/plan.md"
    assert site_path("docs/plan.md") == "plan.md"
    assert site_path("SECURITY.md") == "security.md"
    assert site_path("workers/rollout.py") == "source/workers/rollout.py.md"
    assert all((ROOT / path).is_file() for path in ROOT_PAGES)


def test_headings_have_the_anchors_of_the_site() -> None:
    assert anchor("Will it fit, how long, what does it cost?") == "will-it-fit-how-long-what-does-it-cost"
    assert anchor("`type: reinforce++`") == "type-reinforce"
    assert headings("# A b\n```\n# c\n```\n## [D](e.md)\n") == {"a-b", "d"}


def test_pages_that_are_written_by_tools_are_where_the_tools_write_them() -> None:
    """Check the constants in which tools name their pages: a page that was moved is missing here."""
    tools = ("benchmarks/alarms.py", "benchmarks/back_test.py", "benchmarks/learning.py", "tests/fuzz/fuzz.py")
    tools += ("tests/faults/page.py", "tests/families/table.py", "tests/orchestrator/bad_input.py")
    tools += ("tests/workers/parity/ours.py", "tests/workers/algorithms/proof.py")
    for tool in tools:
        written = re.findall(r'"docs" / ((?:"[\w.]+"(?: / )?)+)', (ROOT / tool).read_text("utf-8"))
        assert written, tool
        for parts in written:
            assert Path(ROOT, "docs", *re.findall(r'"([\w.]+)"', parts)).is_file(), f"{tool}: {parts}"
