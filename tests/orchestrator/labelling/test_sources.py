"""Sources of tasks: preferences, completions of a prompt, files of a run, and what is no task."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotators import Label, rows
from fakes import experience

from orchestrator.labelling.source import Tasks, tasks_of
from orchestrator.labelling.task import NO_TEXT, as_shown
from workers.files.groups_file import StoredTexts, write_groups
from workers.types import Prompt, ScoredBatch


def read(source: str, *, per_prompt: int = 1, max_tasks: int | None = None, seed: int = 0) -> Tasks:
    return tasks_of(source, split="train", per_prompt=per_prompt, max_tasks=max_tasks, seed=seed)


def jsonl(path: Path, *values: object) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def test_preferences_keep_their_columns(here: Path) -> None:
    first, *_ = read("pairs.jsonl").tasks
    assert first.source == "pairs.jsonl:1"
    assert first.columns == {"level": 1}
    assert first.completions == ("0", "2"), "in an order of their own"
    assert first.preferred == 1


def test_pairs_that_are_equal_or_repeated_are_counted(here: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    reverse = pair | {"chosen": "b", "rejected": "a"}
    found = read(jsonl(here / "x.jsonl", pair, reverse, pair | {"rejected": "a "}))
    assert (len(found.tasks), found.repeated, found.equal) == (1, 1, 1)


def test_which_is_first_is_a_fair_coin_of_the_seed(here: Path) -> None:
    source = jsonl(here / "x.jsonl", *({"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(400)))
    tasks = read(source).tasks
    first = [task.shown_first(0) for task in tasks]
    assert 150 < sum(first) < 250  # 200 ± 5 standard deviations of 10
    assert first == [task.shown_first(0) for task in tasks]
    assert first != [task.shown_first(1) for task in tasks]


def test_completions_of_a_prompt_become_pairs(here: Path) -> None:
    table = pa.table({"prompt": ["p", "q"], "completions": [["a", "b", "a", "c"], ["x", "x"]], "model": ["m", "m"]})
    pq.write_table(table, here / "generated.parquet")
    found = read("generated.parquet", per_prompt=9)
    assert {task.completions for task in found.tasks} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found.equal == 1, "the answers of q are equal"
    assert found.tasks[0].preferred is None
    assert found.tasks[0].columns == {"model": "m"}
    chosen = {read("generated.parquet", seed=seed).tasks[0].completions for seed in range(12)}
    assert len(chosen) > 1, "one pair of each prompt is drawn"


def test_ratings_say_what_the_source_prefers(here: Path) -> None:
    rated = {"prompt": "p", "completions": ["a", "b"], "ratings": [1, 5]}
    ranked = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}
    one, two = read(jsonl(here / "x.jsonl", rated, ranked)).tasks
    assert (one.completions, one.preferred, one.columns["chosen_score"]) == (("a", "b"), 1, 5.0)
    assert (two.completions, two.preferred, two.columns["chosen_score"]) == (("a", "b"), 0, -1.0)


def test_the_groups_of_a_round(here: Path) -> None:
    prompt = Prompt(id="p:1", text=[{"role": "user", "content": "hi"}], columns={"topic": "greeting"})
    batch = experience([([3], [[4], [5]])], prompts=(prompt,), logprobs=[-1.0] * 2)
    rewards = np.float32([0.25, 0.75])
    scored = ScoredBatch(experience=batch, rewards=rewards, reference_logprobs=None, values=None, by_scorer=None)
    write_groups(here / "groups.parquet", scored, StoredTexts({(4,): "hm", (5,): "hello"}))
    (task,) = read("groups.parquet").tasks
    assert task.prompt == [{"role": "user", "content": "hi"}]
    assert [as_shown(completion) for completion in task.completions] == ["hello", "hm"]
    assert task.preferred == 0
    assert task.columns == {"topic": "greeting", "chosen_score": 0.75, "rejected_score": 0.25}
    assert as_shown(task.prompt) == "user:\nhi"


def test_an_answer_without_text_is_shown_as_such() -> None:
    assert as_shown(" ") == NO_TEXT
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    assert '"name": "f"' in as_shown([call])


def test_a_limit_draws_tasks_and_counts_the_rest(here: Path, label: Label) -> None:
    printed = label("export", "pairs.jsonl", "out", "--to", "argilla", "--max-tasks", 3, "--min-votes", 2)
    assert printed[0] == "3 tasks in out: records.json, settings.json, tasks.jsonl; left out: 5 above --max-tasks"
    assert printed[-1] == "then: rlhf label import VOTES labelled.jsonl --tasks out/tasks.jsonl"
    assert json.loads((here / "out/settings.json").read_text())["distribution"]["min_submitted"] == 2
    kept = [task["source"] for task in rows(here / "out/tasks.jsonl")]
    assert kept == sorted(kept)
    assert "already exists" in label("export", "pairs.jsonl", "out", "--to", "argilla", code=2)[0]


def test_rows_that_cannot_be_compared_are_refused(here: Path, label: Label) -> None:
    source = jsonl(
        here / "x.jsonl", {"prompt": "p"}, {"prompt": "p", "completions": ["a"]}, {"prompt": "p", "chosen": "a"}
    )
    printed = "\n".join(label("export", source, "out", "--to", "argilla", code=2))
    assert "x.jsonl:1: no `completions`; the columns are prompt" in printed
    assert "x.jsonl:2: `completions` is not a list of at least 2 completions" in printed
    assert not (here / "out").exists()
    same = jsonl(here / "same.jsonl", {"prompt": "p", "chosen": "a", "rejected": "a"})
    assert "there is nothing to compare" in label("export", same, "out", "--to", "argilla", code=2)[0]


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_a_question_with_quotes_is_shown(here: Path, label: Label, tool: str) -> None:
    question = """Which is "better" & <safer>?"""
    label("export", "pairs.jsonl", "out", "--to", tool, "--question", question)
    if tool == "argilla":
        assert json.loads((here / "out/settings.json").read_text())["questions"][0]["title"] == question
    else:
        assert ElementTree.parse(here / "out/labeling_config.xml").getroot()[0].get("value") == question
