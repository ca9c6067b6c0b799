"""Constitutions: what is wrong with one is named with its line and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import CONSTITUTIONS

from orchestrator.config.constitution import CRITIQUE, filled, read_constitution
from orchestrator.errors import BadInput

ONE = "principles:\n  - {name: honest, critique: Name what is untrue., revision: Remove it.}\n"


@pytest.mark.parametrize("path", CONSTITUTIONS, ids=str)
def test_the_shipped_constitutions_are_valid(path: Path) -> None:
    assert len(read_constitution(str(path)).principles) >= 2


def test_a_smallest_constitution(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ONE)
    constitution = read_constitution(str(tmp_path / "c.yaml"))
    (honest,) = constitution.principles
    assert (honest.name, honest.critique, honest.revision) == ("honest", "Name what is untrue.", "Remove it.")
    assert constitution.principle("honest") is honest
    assert constitution.principle("kind") is None
    assert constitution.templates.critique == CRITIQUE


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("- a\n", 0, "a constitution is a mapping of keys"),
        ("principles: []\n", 1, "principles"),
        ("templates: {}\n", 0, "principles"),
        (ONE.replace("honest", "two words"), 2, "write 1 to 64 letters"),
        (ONE.replace("Remove it.", "' '"), 2, "write what the model is asked to do"),
        (ONE.replace(", revision: Remove it.", ""), 2, "revision"),
        (ONE.replace("critique:", "critic:"), 2, "did you mean"),
        (ONE + "  - {name: honest, critique: a, revision: b}\n", 3, "an earlier principle has this name"),
        (ONE + "templates:\n  critique: '{prompt}{answer}{question}'\n", 4, "remove {question}"),
        (ONE + "templates:\n  critique: '{prompt}{critique_request}'\n", 4, "add {answer}"),
        (ONE + "templates:\n  revision: '{prompt}{answer}{revision_request}'\n", 4, "add {critique}"),
        (ONE + "templates:\n  critique: '{prompt}{answer}{critique_request}{critique}'\n", 4, "remove {critique}"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as raised:
        read_constitution(str(path))
    places = {problem.where for problem in raised.value.problems}
    assert all(place.startswith(str(path)) for place in places)
    assert not line or f"{path}:{line}" in places
    assert message in str(raised.value)
    assert all(problem.fix for problem in raised.value.problems)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_constitution(str(tmp_path / "c.yaml"))


def test_braces_in_a_text_are_not_placeholders() -> None:
    assert filled("{prompt} {answer}", prompt="{answer}", answer="{x: {}}") == "{answer} {x: {}}"
