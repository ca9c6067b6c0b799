"""Complete runs from a recipe to a model, and their run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attempts
import pyarrow.parquet as pq
import pytest
from attempts import Run
from transformers import AutoModelForCausalLM

from orchestrator.config import RunConfig, resolved
from workers.types import Z95

pytestmark = pytest.mark.stack

Finished = Callable[..., Run]

# Metric names are checked because dashboards depend on them.
TRAINED = {
    "step", "train/global_step", "loss", "learning_rate", "grad_norm", "entropy", "num_tokens", "num_updates",
    "timing/step", "timing/driver", "timing/learn", "timing/generate", "throughput/tokens_per_s",
}  # fmt: skip
SAMPLED = {
    "reward", "objective/scores", "objective/entropy", "rewards/letters_in_place/mean", "rewards/letters_in_place/std",
    "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "sampling/logp_difference", "sampling/logp_difference_max", "staleness/mean", "staleness/max", "timing/publish",
    "timing/score", "throughput/prompts_per_s", "progress/chunks",
}  # fmt: skip
GROUPED = {"reward_std", "frac_reward_zero_std"}
PAIRED = {
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "objective/scores_margin", "pairs/count", "ref/age", "ref/refreshed",
}  # fmt: skip
CLIPPED = {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}
CRITIC = {
    "objective/kl", "objective/non_score_reward", "objective/rlhf_reward", "policy/approxkl_avg",
    "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio",
    "val/num_eos_tokens", "val/explained_variance", "critic/learning_rate", "critic/grad_norm",
}  # fmt: skip


def test_supervised_fine_tuning(finished: Finished, qwen2: Path) -> None:
    run = finished("base", qwen2)
    assert_whole(run, attempts.recipe("base").stages[0], TRAINED)
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"] - 0.5
    assert not (run.path / "samples").exists()


def test_iterative_dpo_with_a_new_reference_every_round(finished: Finished, qwen2: Path) -> None:
    run = finished("rounds", qwen2)
    assert_whole(run, attempts.recipe("rounds").stages[1], TRAINED | SAMPLED | GROUPED | PAIRED | {"round/index"})
    assert_synchronous(run)
    assert [row["step"] for row in run.metrics if "eval/reward" in row] == [0, 1, 2]
    for index, action in ((1, "keep"), (2, "refresh")):
        record = round_of(run, index)
        assert (record["reference"]["action"], record["reference"]["version"]) == (action, index - 1)
        assert_pairs(run, index)
    assert_loads(run.path / "reference" / "version-1")


def test_iterative_dpo_with_a_new_reference_when_it_has_drifted(finished: Finished, qwen2: Path) -> None:
    run = finished("drifting", qwen2)
    assert_whole(run, attempts.recipe("drifting").stages[1], TRAINED | SAMPLED | GROUPED | PAIRED | {"round/index"})
    assert_synchronous(run)
    first, *later = (round_of(run, index)["reference"] for index in range(1, 7))
    assert first["action"] == "keep"
    assert first["drift"]["kl"] == pytest.approx(0, abs=1e-4), "the first round is sampled from the reference"
    assert {decision["action"] for decision in later} == {"keep", "refresh"}
    for step, decision in enumerate(later, start=1):
        lower = decision["drift"]["kl"] - Z95 * decision["drift"]["kl_error"]
        assert (decision["action"] == "refresh") == (lower > 0.05)
        assert (decision["version"] == step) == (decision["action"] == "refresh")
    assert not run.figures("objective/kl"), "samples at 0.7 and a reference at 1 make no KL"


def test_grpo_whose_two_engines_run_one_step_ahead(finished: Finished, qwen2: Path) -> None:
    ahead = ("name=ahead", "max_staleness=1", "rollout.num_engines=2", "algorithm.max_steps=4")
    run = finished("grpo", qwen2, *ahead)
    assert_whole(run, attempts.recipe("grpo", *ahead).stages[1], TRAINED | SAMPLED | GROUPED | CLIPPED)
    assert run.figures("staleness/max") == [0, 1, 1, 1]
    engines = sorted(path.stem for path in (run.path / "logs" / "latest").glob("rollout-*.log"))
    assert engines == ["rollout-0", "rollout-1"]


def test_ppo_with_two_ranks_and_a_critic_of_one(finished: Finished, qwen2: Path) -> None:
    run = finished("ppo", qwen2)
    assert_whole(run, attempts.recipe("ppo").stages[1], TRAINED | SAMPLED | CRITIC)
    assert_synchronous(run)
    assert run.figures("objective/kl")[0] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert [row["step"] for row in run.metrics if "eval/reward" in row] == [0, 6]


def test_offline_dpo(finished: Finished, qwen2: Path) -> None:
    run = finished("offline", qwen2)
    assert_whole(run, attempts.recipe("offline").stages[1], TRAINED | PAIRED)
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5), "log 2: the policy starts as its reference"
    assert run.metrics[-1]["rewards/margins"] > 0
    assert not (run.path / "rounds").exists()


def test_a_complete_run_is_reused_without_a_cluster(
    finished: Finished, qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished("offline", qwen2).facts
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    run = attempts.run("offline", qwen2)
    assert capsys.readouterr().out.count("complete, reused") == 2
    assert run.facts == before


# ------------------------------------------------------------------------------------------------ assertions


def assert_whole(run: Run, config: RunConfig, names: set[str]) -> None:
    """Check the run directory of a run that completed in one attempt."""
    steps, every = config.algorithm.max_steps, config.checkpoint.every
    assert steps is not None
    assert json.loads((run.path / "resolved.json").read_text()) == resolved(config)
    assert (run.path / "recipe.yaml").is_file()
    expected = [
        "ATTEMPT 0",
        "PLACED 0",
        *facts_of_steps(steps, every, sampled=config.data.prompts is not None),
        f"FINISHED {steps}",
    ]
    ahead = config.max_staleness > 0  # rollouts sampled ahead are durable before their step is planned
    assert (sorted(run.facts) if ahead else run.facts) == (sorted(expected) if ahead else expected)
    exit = dict(run.exit)
    exported = exit.pop("exported", None)  # of a run in rounds
    assert exported is None or (1 <= exported["round"] <= exported["rounds"] == steps)
    assert exit | {"message": "", "alarms": []} == {
        "cause": "completed", "message": "", "exit_code": 0, "attempt": 1, "step": steps, "resume": None, "alarms": [],
    }  # fmt: skip
    rows = [row for row in run.metrics if row["step"] > 0]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert names - row.keys() == set()
        assert None not in row.values(), "a metric that is not a number"
    kept = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert kept == sorted(f"step-{n}" for n in (steps - every, steps))
    assert_loads(run.path / "model")
    if config.data.prompts is not None:
        assert_samples(run, config)


def facts_of_steps(steps: int, checkpoint_every: int, *, sampled: bool) -> list[str]:
    facts = []
    for n in range(1, steps + 1):
        begun = ("PLANNED", "GENERATED", "SCORED") if sampled else ("PLANNED", "SCORED")
        facts += [f"{fact} {n}" for fact in (*begun, "TRAINED", "PUBLISHED", "COMMITTED")]
        facts += [f"CHECKPOINT {n}"] if n % checkpoint_every == 0 else []
    return facts


def assert_loads(directory: Path) -> None:
    _, loading = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(loading.values()), loading


def assert_samples(run: Run, config: RunConfig) -> None:
    for step in range(1, (config.algorithm.max_steps or 0) + 1):
        samples = pq.read_table(run.path / "samples" / f"step-{step}.parquet").to_pylist()
        assert len(samples) == config.samples_per_step
        for sample in samples:
            assert sample.keys() == {"prompt_id", "prompt", "completion", "reward", "version", "finish", "length"}
            assert step - 1 - config.max_staleness <= sample["version"] <= step - 1


def assert_synchronous(run: Run) -> None:
    """Check that the engine held the model of the previous stage and then every published version."""
    assert set(run.figures("staleness/max")) == {0}
    assert max(run.figures("sampling/logp_difference_max")) < 1e-4


def round_of(run: Run, index: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.path / "rounds" / str(index) / "round.json").read_text())
    assert (record["round"], record["policy_version"]) == (index, index - 1)
    return record


def assert_pairs(run: Run, index: int) -> None:
    pairs = pq.read_table(run.path / "rounds" / str(index) / "pairs.parquet").to_pylist()
    assert len(pairs) == run.figures("pairs/count")[index - 1] > 0
    for pair in pairs:
        assert pair["margin"] == pytest.approx(pair["chosen_score"] - pair["rejected_score"])
        assert pair["margin"] > 0
        assert pair["chosen_version"] == pair["rejected_version"] == index - 1
