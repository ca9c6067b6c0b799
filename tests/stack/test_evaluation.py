"""End-to-end tests of `rlhf evaluate` and `rlhf rank` with real Ray, vLLM and scoring ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import SHAPE

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.cli.main import main
from orchestrator.evaluation.result import read_result, read_samples

pytestmark = pytest.mark.stack

# Three gangs of 20 CPUs leave no room for others on a head of 64 CPUs: each phase must release its workers.
SUITE = """
prompts: {data}/heldout.jsonl
harmful: {data}/heldout.jsonl
max_prompts: 24
num_generations: 3
model: {{dtype: float32}}
rollout: {{max_prompt_length: 16, max_completion_length: 8}}
reward: [{{type: function, function: "{data}/scorers.py:letters_in_place"}}]
refusal: {{type: refusal, patterns: ["^[a-f]"]}}
num_draws: 200
cluster: {{cpus_per_worker: 20}}
"""


@pytest.fixture(scope="module")
def other(qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model of the same family with other weights, and return its directory."""
    directory = tmp_path_factory.mktemp("other") / "model"
    config = {"model_type": "qwen2", "tie_word_embeddings": True, **SHAPE}
    create_model(directory, config, character_tokenizer("abcdefghijkl>"), seed=1)
    return directory


@pytest.mark.usefixtures("head")
def test_a_model_is_evaluated_against_its_base(
    qwen2: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.format(data=qwen2))
    model, out = str(qwen2 / "model"), tmp_path / "out"
    given = ["--against", "base", "--base", model, "--suite", str(tmp_path / "suite.yaml"), "--output", str(out)]
    assert main(["evaluate", str(other), *given]) == 0
    printed = capsys.readouterr().out
    assert "wins by letters_in_place (greedy)" in printed
    found, rows = read_result(out), read_samples(out)
    assert len(rows) == 2 * 24 * (1 + 3 + 1)
    ours, theirs = found.figures["model"], found.figures["against"]
    assert ours["kl/base"].value > 0.5, "two random models are far apart"
    assert theirs["kl/base"].value == 0.0
    assert ours.keys() - {"kl/base"} == theirs.keys() - {"kl/base"}
    greedy = [row for row in rows if (row.model, row.prompt_set, row.mode) == ("model", "prompts", "greedy")]
    harmful = [row for row in rows if (row.model, row.prompt_set) == ("model", "harmful")]
    assert [row.tokens for row in greedy] == [row.tokens for row in harmful], "greedy is greedy, prompt for prompt"
    assert ours["refusal"].value == pytest.approx(np.mean([row.completion[:1] in set("abcdef") for row in harmful]))
    sampled = [row for row in rows if (row.model, row.mode) == ("model", "sampled")]
    assert ours["kl/base"].value == pytest.approx(np.mean([row.log_ratios["base"] for row in sampled]), rel=1e-6)
    assert found.models["model"]["sha256"] != found.models["base"]["sha256"] == found.models["against"]["sha256"]


@pytest.mark.usefixtures("head")
def test_completions_are_ranked_by_several_scores(
    qwen2: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["max_prompts=8", "model.dtype=float32", "rollout.max_prompt_length=16", "rollout.max_completion_length=8"]
    scores = ["--by", "implicit", "--by", "policy", "--gold", f"function={qwen2}/scorers.py:letters_in_place"]
    given = ["--reference", str(qwen2 / "model"), "--prompts", str(qwen2 / "heldout.jsonl"), "-n", "4", "--json"]
    assert main(["rank", str(other), *given, *scores, "--output", str(tmp_path / "out"), *values]) == 0
    result = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "ranked.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    for line in lines:
        rewards = [completion["scores"]["implicit"] for completion in line["completions"]]
        assert rewards == sorted(rewards, reverse=True)
        assert len(rewards) == 4
    tokens = sum(completion["tokens"] for line in lines for completion in line["completions"])
    assert result["cost"]["generated_tokens"] == tokens
    assert result["cost"]["device_seconds"] > 0
    gold = np.mean([completion["gold"] for line in lines for completion in line["completions"]])
    assert result["gold"]["mean"]["value"] == pytest.approx(gold)
    assert [point["n"] for point in result["by"]["policy"]["gains"]["curve"]] == [1, 2, 4]
    assert result["by"]["implicit"]["best"]["value"] > result["by"]["implicit"]["mean"]["value"]
