"""Runs whose reward is a judge at a real HTTP server on this machine: it behaves, misbehaves, or costs too much."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import cpu_run
import numpy as np
import pyarrow.parquet as parquet
import pytest
from judge_endpoint import Answer, Endpoint, endpoint, score, shown, verdict

from orchestrator.compare.runs import compare_runs
from orchestrator.config import RunConfig, load
from orchestrator.driver.driver import run_attempts
from orchestrator.driver.resume_overrides import apply_overrides
from orchestrator.errors import Alarmed
from orchestrator.rundir.directory import RunDirectory
from orchestrator.signals import StopRequest
from workers.config import PairwiseRewardConfig

pytestmark = pytest.mark.slow


def graded(body: dict[str, Any], _: int) -> Answer:
    """Reply with a grade of the number of letters a in the answer."""
    return 200, score(1 + min(9, shown(body)["answer"].count("a")))


def config(
    task: Path, output: Path, server: Endpoint, *, of: str = "grpo", compare: bool = False, **changes: Any
) -> RunConfig:
    judge = {"type": "judge", "url": server.url, "model": "gold", "timeout_s": 5.0, "max_retries": 8}
    return cpu_run.config(task, output, of, reward=[{**judge, "compare": compare}], **changes)


def more_letters_a(body: dict[str, Any], _: int) -> Answer:
    """Reply as a judge that is sure of a difference of two letters a, unsure of one, and else follows the order."""
    first, second = (shown(body)[name].count("a") for name in ("answer_a", "answer_b"))
    gap = first - second
    return 200, verdict("A" if gap > 1 or gap == 0 else "tie" if gap == 1 else "B")


def letters_a(text: str) -> int:
    """Count the letters a of a completion outside of special tokens, which the judge is not shown."""
    return re.sub("<[a-z]+>", "", text).count("a")


def run(settings: RunConfig, directory: RunDirectory | None = None) -> RunDirectory:
    """Run to the end, or until an alarm ends the run. Return its directory."""
    directory = directory or RunDirectory.create(settings, "")
    with contextlib.redirect_stdout(io.StringIO()), StopRequest() as stop, contextlib.suppress(Alarmed):
        run_attempts(settings, directory, stop, start_cluster=cpu_run.local_cluster)
    return directory


def rows(directory: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.metrics.read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "iterative-dpo-updates"])
def test_a_judge_is_the_reward_of_every_method(task: Path, tmp_path: Path, algorithm: str) -> None:
    with endpoint(graded) as server:
        directory = run(config(task, tmp_path, server, of=algorithm))
        asked = len(server.requests)
    assert directory.is_complete
    assert sum(row["rewards/judge/requests"] for row in rows(directory)) == asked > 0
    assert all(row["rewards/judge/failed"] == 0 for row in rows(directory))


@pytest.mark.parametrize(("min_margin", "least_gap"), [(0.5, 2), (0.0, 1)], ids=["in-both-orders", "not-against"])
def test_a_judge_labels_pairs_of_two_samples(task: Path, tmp_path: Path, min_margin: float, least_gap: int) -> None:
    """Check that a pair is what both orders agree on, or with min_margin 0 what neither contradicts."""
    pairs = {"min_margin": min_margin, "near_duplicate": None, "truncated_chosen": True}
    sampled = {**cpu_run.ALGORITHMS["iterative-dpo-updates"], "num_generations": 2, "prompts_per_step": 16}
    algorithm = {**sampled, "pairs": pairs}
    with endpoint(more_letters_a) as server:
        directory = run(config(task, tmp_path, server, of="iterative-dpo-updates", compare=True, algorithm=algorithm))
    asked = {tuple(shown(body).values()) for body in server.requests}
    assert all((prompt, second, first) in asked for prompt, first, second in asked), "each two in both orders"
    gaps = []
    for path in sorted(directory.path.glob("rounds/*/pairs.parquet")):
        rows = parquet.read_table(path).to_pylist()
        gaps += [letters_a(row["chosen"]) - letters_a(row["rejected"]) for row in rows]
    assert len(gaps) >= 2
    assert min(gaps) == least_gap


def test_a_model_judges_its_own_samples(task: Path, tmp_path: Path) -> None:
    """Check self-rewarding in two stages: in each, the model that samples is the one that compares the samples."""
    sampled = {**cpu_run.ALGORITHMS["iterative-dpo"], "max_steps": 1, "prompts_per_step": 16}
    judge = {"type": "pairwise", "dtype": "float32", "max_length": 32, "choices": ["a", "b"]}
    judge["template"] = "{context}{response_a}>{response_b}>"
    common = {
        "output_dir": str(tmp_path / "runs"),
        "data": {"prompts": str(task / "prompts.jsonl")},
        "rollout": cpu_run.ROLLOUT,
        "algorithm": sampled,
    }
    of_stage = ({"path": str(task / "model")}, {"from_stage": "first"})
    stages = [
        {**common, "name": name, "model": {**origin, "dtype": "float32"}, "reward": [{**judge, **origin}]}
        for name, origin in zip(("first", "second"), of_stage, strict=True)
    ]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stages": stages}))
    first, second = load(tmp_path / "recipe.yaml").stages
    assert isinstance(second.reward[0], PairwiseRewardConfig)
    assert second.model.path == second.reward[0].path == str(first.directory / "model")
    for stage in (first, second):
        (row,) = rows(run(stage))
        assert row["pairs/count"] > 4
    assert cpu_run.outcome(second.directory)[0] != cpu_run.outcome(first.directory)[0]


def test_a_judge_decides_a_comparison(task: Path, tmp_path: Path) -> None:
    """Check that win rates are by the grades of held-out answers, and that a common cache pays the base's once."""
    evaluated = {
        "data": {"prompts": str(task / "prompts.jsonl"), "eval_prompts": str(task / "heldout.jsonl")},
        "evaluation": {"every": 1, "num_samples": 2},
        "samples_per_step": 1,
    }
    with endpoint(graded) as server:
        judge = {"type": "judge", "url": server.url, "model": "gold", "weight": 0.0, "cache": str(tmp_path / "cache")}
        reward = [{"type": "function", "function": f"{cpu_run.REWARD}:letters_a"}, judge]
        directories = [
            run(cpu_run.config(task, tmp_path, algorithm, name=algorithm, reward=reward, **evaluated))
            for algorithm in ("grpo", "ppo")
        ]
        asked = [shown(body) for body in server.requests]
    assert len(asked) == len({(question["prompt"], question["answer"]) for question in asked})
    outcome = compare_runs(directories, gold="judge", output=tmp_path / "comparison")
    runs = outcome.answers[0].runs
    assert runs.gold == "judge"
    assert runs.gold_trained_on == ()
    for curve, directory in zip(runs.curves, directories, strict=True):
        last = directory.path / "evaluations" / f"step-{curve.evals[-1].step}.parquet"
        rows = [row for row in parquet.read_table(last).to_pylist() if row["mode"] == runs.mode]
        assert curve.evals[-1].gold.mean() == pytest.approx(np.mean([row["scores"]["judge"] for row in rows]))
        assert len({row["scores"]["judge"] for row in rows}) > 1


def test_a_misbehaving_judge_loses_nothing(task: Path, tmp_path: Path) -> None:
    """Check that the run ends as with a judge that answers at once. Two of three replies are errors or no verdicts."""
    troubles = itertools.cycle(
        [(429, b"slow down"), (500, b"oops"), (200, "10"), (200, 'Sure! {"reason": "", "score": 10}'), (200, b"<html>")]
    )

    def misbehaving(body: dict[str, Any], number: int) -> Answer:
        return graded(body, number) if number % 3 == 0 else next(troubles)

    with endpoint(graded) as server:
        good = run(config(task, tmp_path / "good", server))
    with endpoint(misbehaving) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.chat_endpoint.MAX_WAIT_S", 0.01)
        bad = run(config(task, tmp_path / "bad", server))
    assert cpu_run.outcome(bad.path)[0] == cpu_run.outcome(good.path)[0], "equal weights"
    assert sum(row["rewards/judge/requests"] for row in rows(bad)) > sum(
        row["rewards/judge/requests"] for row in rows(good)
    )


def test_a_budget_pauses_the_run_which_goes_on_when_it_is_raised(task: Path, tmp_path: Path) -> None:
    with endpoint(graded) as server:
        whole = run(config(task, tmp_path / "whole", server))
        settings = config(task, tmp_path / "paused", server, alarms={"judge_budget": {"max_requests": 1}})
        paused = run(settings)
        assert (paused.read_exit() or {})["cause"] == "alarm_pause"
        assert len(rows(paused)) == 1, "after its first step"
        run(settings)
        assert len(rows(paused)) == 2, "and again after the next"
        with contextlib.redirect_stdout(io.StringIO()):
            raised = apply_overrides(paused, ["alarms.judge_budget.max_requests=100000"])
        run(raised, paused)
    assert paused.is_complete
    assert cpu_run.outcome(paused.path)[0] == cpu_run.outcome(whole.path)[0]
