"""Votes and task files that cannot be used: each is refused with its line and a fix, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from annotators import PAIRS, Label, label_studio, rows, says, write
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import BadInput, Problem
from orchestrator.labelling.importing import Report, collect

KEYS = {
    *(
        "annotations",
        "data",
        "task_id",
        "result",
        "value",
        "type",
        "selected",
        "choices",
        "completed_by",
        "was_cancelled",
    ),
    *("id", "fields", "responses", "preference", "user_id", "status", "prompt", "answer_1", "answer_2", "updated_at"),
    *("preference.responses", "preference.responses.users", "preference.responses.status"),
}


def malformed(here: Path, label: Label, records: object) -> str:
    path = write(here / "votes.json", records) if isinstance(records, list) else here / "votes.json"
    if isinstance(records, str):
        path.write_text(records)
    label_args = ("import", path, "x.jsonl", "--tasks", "out/tasks.jsonl")
    printed = "\n".join(label(*label_args, code=2))
    assert not (here / "x.jsonl").exists()
    assert "fix: " in printed
    return printed


def test_malformed_votes_are_refused_with_line_and_fix(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "label-studio")
    good = label_studio(here / "out", {1: says("first")})
    lines = json.dumps(good, indent=2).splitlines()
    second = 1 + [i for i, line in enumerate(lines) if line == "  {"][1]
    broken = json.loads(json.dumps(good))
    broken[1]["annotations"][0]["completed_by"] = None
    assert f"votes.json:{second}: an annotation without `completed_by`" in malformed(here, label, broken)
    broken = json.loads(json.dumps(good))
    broken[1]["annotations"][0]["result"] += label_studio(here / "out", {1: says("tie")})[0]["annotations"][0]["result"]
    assert f"votes.json:{second}: an annotation says first and tie" in malformed(here, label, broken)
    minimal = [{"id": 1, "prompt": "p", "answer_1": "a", "answer_2": "b", "annotator": 1, "annotation_id": 7}]
    assert "export as JSON, not JSON-MIN" in malformed(here, label, minimal)
    assert "a record of no known tool; its keys are prompt" in malformed(here, label, [{"prompt": "p"}])
    assert "0 records" in malformed(here, label, [])
    assert "the array has no end" in malformed(here, label, json.dumps(good)[:-1])
    assert "not JSON" in malformed(here, label, json.dumps(good)[:-40])
    assert "the record is a number" in malformed(here, label, "[1]")
    assert "cannot be read" in "\n".join(label("import", "no.json", "x.jsonl", "--tasks", "out/tasks.jsonl", code=2))


def test_other_mistakes_are_refused(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "label-studio")
    write(here / "votes.json", label_studio(here / "out", {1: says("first")}))
    votes = ("import", "votes.json", "x.jsonl", "--tasks", "out/tasks.jsonl")
    assert "above 0.5" in "\n".join(label(*votes, "--min-agreement", 0.5, code=2))
    assert "there is no such task file" in label(*votes[:3], "--tasks", "no.jsonl", code=2)[0]
    assert "call it .jsonl" in "\n".join(label("import", "votes.json", "x.json", *votes[3:], code=2))
    assert "not a line of a task file" in label(*votes[:3], "--tasks", "pairs.jsonl", code=2)[0]
    edited = (here / "out/tasks.jsonl").read_text().replace('"1+1="', '"1 + 1 ="')
    (here / "edited.jsonl").write_text(edited)
    assert "the texts are not those of `task_id`" in label(*votes[:3], "--tasks", "edited.jsonl", code=2)[0]
    label(*votes)
    assert "already exists" in label(*votes, code=2)[0]
    assert len(PAIRS) == len(rows(here / "x.jsonl"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.sampled_from(["preference", "answer_1", "left"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(KEYS)), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(record=st.dictionaries(st.sampled_from(sorted(KEYS)), JSON))
def test_any_record_is_read_or_refused(record: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("x") / "votes.json", [record])
    problems: tuple[Problem, ...] = ()
    try:
        collect({}, [path], Report())
    except BadInput as error:
        problems = error.problems
    assert all(problem.where.startswith(f"{path}:2") and problem.fix for problem in problems)
