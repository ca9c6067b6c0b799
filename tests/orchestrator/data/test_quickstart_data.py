"""Data written by configs/quickstart/task.py: formats, answers, and sets of a task without common prompts."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from orchestrator.data import read_examples, read_prompts
from orchestrator.data.remarks import count_labels, remarks
from workers.config import KtoConfig

TASK = Path(__file__).parents[3] / "configs" / "quickstart" / "task.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quickstart")
    runpy.run_path(str(TASK))["write_data"](directory, seed=0)
    return directory


def test_sets_of_a_task_share_no_prompt_and_no_task_trains_on_held_out_prompts(data: Path) -> None:
    task = runpy.run_path(str(TASK))
    sizes, names = task["SIZES"], list(task["SIZES"])
    rows = {name: read_prompts(str(data / f"{name}.jsonl")) for name in names}
    prompts = {name: {str(row.text).partition(">")[0] for row in own} for name, own in rows.items()}
    assert {name: len(texts) for name, texts in prompts.items()} == sizes
    first = names.index("notes")
    for own in (names[:first], names[first:]):
        assert len(set[str]().union(*(prompts[name] for name in own))) == sum(sizes[name] for name in own)
    held_out = set[str]().union(*(prompts[name] for name in names[:first] if name.startswith(task["HELD_OUT"])))
    assert not held_out & set[str]().union(*(prompts[name] for name in names[first:]))


def test_pairs_are_the_right_answer_and_the_careless_one(data: Path) -> None:
    for example in read_examples(str(data / "preferences.jsonl"), algorithm="dpo"):
        right = "".join(sorted(str(example.prompt.text).removesuffix(">")))
        assert example.completions == (right, right[:-2] + right[-1] + right[-2])


def test_feedback_says_which_answers_are_right(data: Path) -> None:
    examples = read_examples(str(data / "feedback.jsonl"), algorithm="kto")
    for example in examples:
        right = "".join(sorted(str(example.prompt.text).removesuffix(">")))
        assert example.scores == (float(example.completions == (right,)),)
    assert remarks(count_labels(examples), KtoConfig(type="kto", desirable_weight=1.3)) == []
