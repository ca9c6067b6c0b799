"""Round trips: export, answers of simulated annotators in the tool's own format, and import."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotators import PAIRS, Annotator, Label, argilla, label_studio, prefers, rows, says, write
from fakes import experience

from orchestrator.data import read_examples
from orchestrator.data.remarks import count_labels, remarks
from orchestrator.errors import BadInput
from workers.algorithms import dpo, reward_model
from workers.config import DpoConfig, RewardModelConfig
from workers.types import ScoredBatch


def right(prompt: str, first: str, second: str) -> str:
    """Prefer the right sum."""
    return "first" if first == str(int(prompt[0]) + 1) else "second"


def wrong(prompt: str, first: str, second: str) -> str:
    return {"first": "second", "second": "first"}[right(prompt, first, second)]


def answer(tool: str, export: Path, annotators: Mapping[str, Annotator]) -> list[dict[str, Any]]:
    if tool == "label-studio":
        return label_studio(export, annotators, by_email=True)
    return argilla(export, annotators, flat=tool == "argilla")


TOOLS = ("label-studio", "argilla", "argilla, nested")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_votes_come_back_on_the_right_side(here: Path, label: Label, tool: str, lines: bool) -> None:
    label("export", "pairs.jsonl", "out", "--to", tool.split(",")[0])
    shown = {record["data"]["answer_1"] if "data" in record else record["fields"]["answer_1"] for record in tasks(here)}
    assert len(shown) > 1, "which answer is first is random"
    write(here / "votes.json", answer(tool, here / "out", {"ann": right, "bob": right, "cy": wrong}), lines=lines)
    rule = ("--min-votes", 3, "--min-agreement", 0.6)
    printed = label("import", "votes.json", "labelled.jsonl", "--tasks", "out/tasks.jsonl", *rule)
    assert printed[:2] == [
        "8 preferences, 0 ties; more votes are needed for 0 tasks",
        "24 answers: 24 votes, 0 ties, 0 skipped",
    ]
    made = {row["prompt"]: row for row in rows(here / "labelled.jsonl")}
    for pair in PAIRS:
        row = made[str(pair["prompt"])]
        assert (row["chosen"], row["rejected"], row["level"]) == (pair["chosen"], pair["rejected"], pair["level"])
        assert (row["votes"], row["agreement"]) == ({"for": 2, "against": 1, "tie": 0}, 0.666667)
        assert dict(zip(row["annotators"], row["annotator_votes"], strict=True)) == {
            "ann": "for",
            "bob": "for",
            "cy": "against",
        }
    assert len(read_examples("labelled.jsonl", algorithm="dpo")) == 8
    assert (here / "labelled.more.jsonl").exists() is (here / "labelled.ties.jsonl").exists() is False


def tasks(here: Path) -> list[dict[str, Any]]:
    path = next(path for name in ("tasks.json", "records.json") if (path := here / "out" / name).exists())
    read: list[dict[str, Any]] = json.loads(path.read_text())
    return read


def test_disagreement_is_sent_out_again_and_merges(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "label-studio")
    write(here / "one.json", label_studio(here / "out", {1: right, 2: says("first")}))
    label("import", "one.json", "a.jsonl", "--tasks", "out/tasks.jsonl", "--min-votes", 2)
    first, more = rows(here / "a.jsonl"), rows(here / "a.more.jsonl")
    assert len(first) + len(more) == 8
    assert first
    assert more
    assert {row["prompt"] for row in first}.isdisjoint(row["prompt"] for row in more)
    assert all(len(task["answers"]) == 2 for task in more), "the votes are kept"

    printed = label("export", "a.more.jsonl", "again", "--to", "label-studio", "--seed", 7)
    assert printed[0].partition(" task")[0] == str(len(more))
    write(here / "two.json", label_studio(here / "again", {3: right, 4: right}, second=9))
    label("import", "two.json", "b.jsonl", "--tasks", "a.more.jsonl", "--min-votes", 2)
    second = rows(here / "b.jsonl")
    assert {row["prompt"] for row in first} | {row["prompt"] for row in second} == {pair["prompt"] for pair in PAIRS}
    assert {json.dumps(row["votes"]) for row in second} == {'{"for": 3, "against": 1, "tie": 0}'}

    # Both files at once, in any order, with the first task file, or with both: the same votes.
    every = ("one.json", "two.json", "all.jsonl", "--tasks", "out/tasks.jsonl", "--tasks", "a.more.jsonl")
    printed = label("import", *every, "--min-votes", 2)
    assert f"{2 * 8 + 2 * len(more)} answers: {2 * 8 + 2 * len(more)} votes, 0 ties, 0 skipped" in printed
    assert by_prompt(here / "all.jsonl") == by_prompt(here / "a.jsonl") | by_prompt(here / "b.jsonl")


def by_prompt(path: Path) -> dict[str, Any]:
    return {row["prompt"]: (row["chosen"], row["votes"]) for row in rows(path)}


def test_the_last_answer_of_an_annotator_counts(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "label-studio")
    write(here / "late.json", label_studio(here / "out", {1: right}, second=30))
    write(here / "early.json", label_studio(here / "out", {1: wrong}, second=10))
    for order in (("early.json", "late.json"), ("late.json", "early.json", "late.json")):
        printed = label("import", *order, f"{len(order)}.jsonl", "--tasks", "out/tasks.jsonl")
        assert printed[1] == "8 answers: 8 votes, 0 ties, 0 skipped"
        replaced = 8 * (len(order) - 1)
        told = f"note: {replaced} answers replaced: of an annotator's answers to one task the last counts"
        assert told in printed
        assert {row["chosen"] for row in rows(here / f"{len(order)}.jsonl")} == {pair["chosen"] for pair in PAIRS}


def test_ties_and_skipped_answers(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "argilla", "--max-tasks", 2)
    voters = {"a": says("tie"), "b": says("tie"), "c": says("skip"), "d": right, "e": says("tie")}
    write(here / "votes.json", argilla(here / "out", voters))
    printed = label("import", "votes.json", "x.jsonl", "--tasks", "out/tasks.jsonl", "--min-agreement", 0.66)
    assert printed[:2] == [
        "0 preferences, 2 ties; more votes are needed for 0 tasks",
        "10 answers: 2 votes, 6 ties, 2 skipped",
    ]
    assert not (here / "x.jsonl").exists()
    (first, _) = rows(here / "x.ties.jsonl")
    assert [answer["choice"] for answer in first["answers"]][:3] == ["tie", "tie", "skip"]
    # A tie is half a vote: (1 + 3/2) of 4 votes are for the right sum.
    label("import", "votes.json", "y.jsonl", "--tasks", "out/tasks.jsonl", "--min-agreement", 0.6)
    (row, _) = rows(here / "y.jsonl")
    assert (row["votes"], row["agreement"]) == ({"for": 1, "against": 0, "tie": 3}, 0.625)


def test_drafts_count_only_where_the_export_hides_that_they_are(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "argilla")
    for flat, count in ((True, 8), (False, 16)):
        write(here / "votes.json", argilla(here / "out", {"a": right, "b": says("draft")}, flat=flat))
        printed = label("import", "votes.json", f"{flat}.jsonl", "--tasks", "out/tasks.jsonl")
        assert printed[1].startswith(f"{count} answers")
        assert ("does not tell drafts" in "\n".join(printed)) is not flat


def test_an_edited_text_and_an_unknown_task_are_noticed(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "out", "--to", "label-studio")
    exported = label_studio(here / "out", {1: right, 2: right})
    exported[0]["data"]["answer_1"] += " indeed"
    exported[1]["data"]["task_id"] = "f00d"
    exported[2]["data"]["prompt"] = exported[2]["data"]["prompt"] + "\r\n"  # a browser's line end is no edit
    write(here / "votes.json", exported)
    printed = label("import", "votes.json", "x.jsonl", "--tasks", "out/tasks.jsonl")
    assert printed[0] == "6 preferences, 0 ties; more votes are needed for 2 tasks"
    edited = exported[0]["data"]["task_id"]
    assert "note: 2 answers to 1 task of no task file left out: f00d" in printed
    assert f"note: 2 answers to 1 task whose text was edited left out: {edited}" in printed


def test_a_position_that_annotators_favour_is_told(here: Path, label: Label) -> None:
    many = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(60)]
    (here / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    label("export", "many.jsonl", "out", "--to", "label-studio")
    sure = {1: lambda p, a, b: prefers(f"yes {p[:-1]}")(p, a, b)}
    write(here / "fair.json", label_studio(here / "out", sure))
    write(here / "biased.json", label_studio(here / "out", {1: says("first"), 2: says("first")}))
    (fair,) = [
        line for line in label("import", "fair.json", "f.jsonl", "--tasks", "out/tasks.jsonl") if "first:" in line
    ]
    (biased,) = [
        line for line in label("import", "biased.json", "b.jsonl", "--tasks", "out/tasks.jsonl") if "first:" in line
    ]
    assert "favour" not in fair
    assert biased.startswith("votes for the answer shown first: 100.0% [")
    assert biased.endswith("annotators favour a position")


def test_a_suggestion_is_what_the_source_prefers(here: Path, label: Label) -> None:
    label("export", "pairs.jsonl", "ls", "--to", "label-studio", "--suggest")
    for task in json.loads((here / "ls/tasks.json").read_text()):
        ((result,),) = [prediction["result"] for prediction in task["predictions"]]
        side = {"left": "answer_1", "right": "answer_2"}[result["value"]["selected"]]
        assert task["data"][side] == str(int(task["data"]["prompt"][0]) + 1)
    label("export", "pairs.jsonl", "arg", "--to", "argilla", "--suggest")
    for record in json.loads((here / "arg/records.json").read_text()):
        side = record["suggestions"]["preference"]["value"]
        assert record["fields"][side] == str(int(record["fields"]["prompt"][0]) + 1)


def test_training_reads_the_votes(here: Path, label: Label) -> None:
    """Votes of the command line reach the label of DPO and of a reward model."""
    label("export", "pairs.jsonl", "out", "--to", "argilla", "--max-tasks", 1)
    write(here / "votes.json", argilla(here / "out", {"a": right, "b": right, "c": right, "d": wrong}))
    label("import", "votes.json", "x.jsonl", "--tasks", "out/tasks.jsonl", "--margins")
    (example,) = read_examples("x.jsonl", algorithm="dpo")
    assert example.scores == (pytest.approx(math.log(4 / 2)), 0.0)
    rows = experience([([1], [[2], [3]])], prompts=(example.prompt,), rewards=example.scores)
    scored = ScoredBatch(experience=rows, rewards=rows.rewards, reference_logprobs=np.zeros(2, np.float32), values=None)
    labels = dpo.prepare(scored, DpoConfig(type="dpo"))[0].soft_labels
    assert labels is not None
    assert labels.tolist() == [0.75, 0.25]
    of_margins = dpo.prepare(scored, DpoConfig(type="dpo", soft_labels="margin"))[0].soft_labels
    assert of_margins is not None
    assert of_margins.tolist() == pytest.approx([4 / 6, 2 / 6]), "(3 + 1)/(4 + 2): the posterior mean"
    labels = reward_model.prepare(scored, RewardModelConfig(type="reward_model"))[0].soft_labels
    assert labels is not None
    assert labels.tolist() == [0.75, 0.25]
    (remark,) = remarks(count_labels([example]), DpoConfig(type="dpo"))
    assert remark.startswith("1 of 1 rows have `votes`, 1 of them divided ones; the share of the votes is their label")


@pytest.mark.parametrize(
    ("votes", "wrong"),
    [
        ({"for": -1, "against": 2}, "not a whole number"),
        ({"for": 0.5, "against": 2}, "not a whole number"),
        ({"for": 0, "against": 0, "tie": 0}, "counts no vote"),
    ],
)
def test_votes_that_count_nothing_are_refused(here: Path, votes: object, wrong: str) -> None:
    (here / "x.jsonl").write_text(json.dumps({**PAIRS[0], "votes": votes}))
    with pytest.raises(BadInput, match=wrong):
        read_examples("x.jsonl", algorithm="dpo")
