"""Evaluations and rankings in one process: real reward workers, scoring ranks and files, with a sampler in torch."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judge_endpoint import Answer, endpoint, longer, score, shown, verdict
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))
sys.path.insert(0, str(Path(__file__).parents[2] / "workers"))

import cpu_run

from configs.quickstart.tiny import character_tokenizer, create_model
from orchestrator.errors import BadInput, JudgeFailed
from orchestrator.evaluation.evaluate import EvaluationSpec, evaluate, spec
from orchestrator.evaluation.result import Result, read_result, read_samples
from orchestrator.evaluation.rows import Row
from orchestrator.evaluation.show import show
from orchestrator.evaluation.suite import Suite, SuiteConfig
from workers.rewards.base import RewardError

pytestmark = pytest.mark.slow

ALPHABET = cpu_run.ALPHABET
NO_REFUSAL = {"type": "refusal", "patterns": ["^a"]}  # a model of eight letters can generate it


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, a copy of it, another model of the family, one of another family, and both kinds of prompts."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("task")
    cpu_run.write_task(directory)
    shutil.copytree(directory / "model", directory / "twin")
    create_model(directory / "other", cpu_run.SHAPE, character_tokenizer(ALPHABET), seed=1)
    create_model(directory / "stranger", cpu_run.SHAPE, character_tokenizer("xyzabcde>"), seed=1)
    rows = [{"prompt": f"{a}{b}{a}>"} for a in "abcd" for b in "efgh"]
    (directory / "harmful.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def suite(task: Path, **changes: Any) -> Suite:
    values = {
        "prompts": str(task / "prompts.jsonl"),
        "max_prompts": 5,
        "num_generations": 3,
        "model": {"dtype": "float32"},
        "rollout": {"max_prompt_length": 8, "max_completion_length": 6, "temperature": 0.9},
        "reward": [{"type": "function", "function": f"{cpu_run.REWARD}:letters_a"}],
        "num_draws": 200,
        **changes,
    }
    return Suite(source=Path("suite.yaml"), config=SuiteConfig.model_validate_json(json.dumps(values)))


def run(given: Suite, models: EvaluationSpec, output: Path) -> tuple[Result, list[Row]]:
    evaluate(given, models, output, lambda _: None, start_cluster=cpu_run.local_cluster)
    return read_result(output), read_samples(output)


def by_length(body: dict[str, Any], number: int) -> Answer:
    """Reply as a judge that prefers, or grades highly, the longer answer."""
    return longer(body, number) if "answer_a" in shown(body) else (200, score(1 + min(9, len(shown(body)["answer"]))))


def log_prob(path: Path, prompt: Sequence[int], tokens: Sequence[int], temperature: float) -> float:
    """Compute log p(tokens | prompt) with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logps = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return float(logps.gather(1, torch.tensor(tokens)[:, None]).sum())


# ------------------------------------------------------------------------------------------------ an evaluation


def test_a_whole_evaluation(task: Path, tmp_path: Path) -> None:
    models = spec(str(task / "other"), against="base", base=str(task / "model"))
    safety = {"harmful": str(task / "harmful.jsonl"), "benign": str(task / "prompts.jsonl"), "refusal": NO_REFUSAL}
    found, rows = run(suite(task, **safety), models, tmp_path / "out")

    # 5 prompts, answered once greedily and three times sampled by each of two models; 5 more of each refusal set.
    counted = [(r.model, r.prompt_set, r.mode) for r in rows]
    assert {key: counted.count(key) for key in set(counted)} == {
        (model, prompt_set, mode): count
        for model in ("model", "against")
        for prompt_set, mode, count in (
            ("prompts", "greedy", 5),
            ("prompts", "sampled", 15),
            ("harmful", "greedy", 5),
            ("benign", "greedy", 5),
        )
    }
    for row in rows:
        if row.prompt_set == "prompts":
            assert row.reward == row.scores["letters_a"]
            assert row.reward == pytest.approx(row.completion.count("a") / max(1, len(row.completion)))
        else:
            assert row.scores == {"refusal": float(row.completion.startswith("a"))}

    assert found.figures.keys() == {"model", "against"}
    ours = found.figures["model"]
    greedy = [r for r in rows if (r.model, r.prompt_set, r.mode) == ("model", "prompts", "greedy")]
    assert ours["greedy/reward"].value == pytest.approx(np.mean([r.reward for r in greedy]))
    refused = [r.completion.startswith("a") for r in rows if (r.model, r.prompt_set) == ("model", "harmful")]
    assert ours["refusal"].value == pytest.approx(np.mean(refused))
    assert found.differences["greedy/reward"].value == pytest.approx(
        ours["greedy/reward"].value - found.figures["against"]["greedy/reward"].value
    )
    theirs = {r.prompt_id: r for r in rows if (r.model, r.prompt_set, r.mode) == ("against", "prompts", "greedy")}
    won = [np.sign((r.reward or 0) - (theirs[r.prompt_id].reward or 0)) / 2 + 0.5 for r in greedy]
    assert found.win_rates["greedy/win_rate/letters_a"].value == pytest.approx(np.mean(won))

    models_written = found.models
    assert models_written["model"]["path"] == str(task / "other")
    assert models_written["model"]["weights"].keys() == {"model.safetensors"}
    against, base = models_written["against"], models_written["base"]
    assert against["sha256"] == base["sha256"] != models_written["model"]["sha256"]
    assert found.prompts["prompts"]["rows"] == 5
    assert found.cost["generated_tokens"] == sum(len(r.tokens) for r in rows)
    assert found.suite["config"]["rollout"]["temperature"] == 0.9


def test_the_kl_is_of_exact_log_probabilities_at_the_sampling_temperature(task: Path, tmp_path: Path) -> None:
    found, rows = run(suite(task), spec(str(task / "other"), base=str(task / "model")), tmp_path / "out")
    codec = AutoTokenizer.from_pretrained(task / "model")
    sampled = [row for row in rows if row.mode == "sampled"]
    for row in sampled[:6]:
        prompt = codec(row.prompt)["input_ids"]
        ours, base = (log_prob(task / name, prompt, row.tokens, 0.9) for name in ("other", "model"))
        assert row.log_ratios["base"] == pytest.approx(ours - base, abs=1e-4)
    assert found.figures["model"]["kl/base"].value == pytest.approx(np.mean([r.log_ratios["base"] for r in sampled]))
    assert all(not row.log_ratios for row in rows if row.mode == "greedy")


def test_the_kl_to_a_copy_of_the_model_is_zero(task: Path, tmp_path: Path) -> None:
    models = spec(str(task / "twin"), against="base", base=str(task / "model"), reference=str(task / "twin"))
    found, _ = run(suite(task), models, tmp_path / "out")
    assert found.figures["model"]["kl/base"].value == pytest.approx(0, abs=1e-6)
    assert found.figures["model"]["kl/reference"].value == 0.0
    assert found.figures["against"]["kl/base"].value == 0.0
    # Equal prompts and seeds give equal completions, so every pair is a tie.
    assert {name: f.value for name, f in found.win_rates.items() if "win_rate" in name} == {
        f"{mode}/{kind}/letters_a": pytest.approx(0.5)
        for mode in ("greedy", "sampled")
        for kind in ("win_rate", "length_controlled_win_rate")
    }
    assert found.win_rates["sampled/ties/letters_a"].value == 1.0
    assert not any(figure.excludes_zero for name, figure in found.differences.items() if not name.startswith("kl/"))


def test_the_same_evaluation_gives_the_same_rows_and_another_seed_others(task: Path, tmp_path: Path) -> None:
    models = spec(str(task / "other"))
    (first, rows), (repeated, same) = (run(suite(task), models, tmp_path / name) for name in ("first", "again"))
    assert rows == same
    assert first.figures == repeated.figures
    _, others = run(suite(task, seed=1), models, tmp_path / "seed")
    assert [r for r in rows if r.mode == "greedy"] == [r for r in others if r.mode == "greedy"]
    assert rows != others


def test_what_cannot_be_measured_is_in_the_remarks(task: Path, tmp_path: Path) -> None:
    found, _ = run(
        suite(task, rollout={"max_prompt_length": 8, "max_completion_length": 6}),
        spec(str(task / "other")),
        tmp_path / "a",
    )
    assert any("no KL is measured" in remark for remark in found.remarks)
    assert not any(name.startswith("kl/") for name in found.figures["model"])
    assert (found.differences, found.win_rates) == ({}, {})
    quiet, _ = run(suite(task, kl=False, num_generations=0), spec(str(task / "other")), tmp_path / "b")
    assert quiet.remarks == ()
    assert not any(name.startswith("sampled/") for name in quiet.figures["model"])


def test_prompts_that_are_too_long_are_counted(task: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "ab>"}, {"prompt": "abcdefgh>"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, samples = run(
        suite(task, prompts=str(tmp_path / "prompts.jsonl")), spec(str(task / "other")), tmp_path / "out"
    )
    assert {row.prompt for row in samples} == {"ab>"}
    assert found.prompts["prompts"]["dropped"] == 1
    assert any("prompts: 1 prompts are left out" in remark for remark in found.remarks)
    assert found.figures["model"]["greedy/reward"].low is None, "one prompt has no interval"


# ------------------------------------------------------------------------------------------------ a judge


def test_a_judge_decides_pairs(task: Path, tmp_path: Path) -> None:
    with endpoint(longer) as server:
        judge = {"url": server.url, "model": "gold", "name": "longer"}
        models = spec(str(task / "other"), against=str(task / "model"))
        found, rows = run(suite(task, judge=judge), models, tmp_path / "out")
    greedy = [r for r in rows if r.mode == "greedy"]
    theirs = {r.prompt_id: r.completion for r in greedy if r.model == "against"}
    for row in greedy:
        gap = len(row.completion) - len(theirs[row.prompt_id])
        expected = {"longer": (np.sign(gap) / 2 + 0.5,) * 2} if row.model == "model" else {}
        assert row.outcomes == expected
    assert found.win_rates["greedy/order_consistency/longer"].value == 1.0
    assert found.cost["judge_num_requests"] == 2 * 5
    assert "greedy/win_rate/longer" in found.win_rates


def test_a_judge_that_fails_loses_nothing_else(task: Path, tmp_path: Path) -> None:
    with endpoint(lambda body, n: (401, b"no")) as server:
        judge = {"url": server.url, "model": "gold"}
        models = spec(str(task / "other"), against=str(task / "model"))
        with pytest.raises(JudgeFailed, match="HTTP 401"):
            run(suite(task, judge=judge), models, tmp_path / "out")
    found = read_result(tmp_path / "out")
    assert "greedy/win_rate/letters_a" in found.win_rates
    assert "greedy/win_rate/judge" not in found.win_rates
    assert any("the judge failed" in remark for remark in found.remarks)
    assert len(read_samples(tmp_path / "out")) == 2 * 20


def test_no_verdict_of_an_evaluation_is_paid_twice(task: Path, tmp_path: Path) -> None:
    """Check the judge of pairs and the judge that scores, whose verdicts lie beside the results."""
    models = spec(str(task / "other"), against=str(task / "model"))
    with endpoint(by_length) as server:
        grader = {"type": "judge", "url": server.url, "model": "gold", "name": "grader", "price": [1.0, 1.0]}
        given = suite(task, judge={"url": server.url, "model": "gold", "price": [2.0, 2.0]}, reward=[grader])
        first, rows = run(given, models, tmp_path / "first")
        asked = len(server.requests)
        second, again = run(given, models, tmp_path / "second")
        assert len(server.requests) == asked
    assert again == rows
    assert first.cost["judge_num_requests"] + first.cost["rewards/grader/requests"] == asked
    assert first.cost["judge_num_requests"] == 2 * 5
    assert first.cost["judge_cost"] == pytest.approx(10 * 7 * 2 / 1e6)
    assert (second.cost["judge_num_requests"], second.cost["judge_cost"], second.cost["judge_num_cached"]) == (0, 0, 10)
    assert second.cost["rewards/grader/requests"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "judge_cache", "second"]


def test_the_judge_is_compared_with_labels(task: Path, tmp_path: Path) -> None:
    """Check that no second model is needed for it. The labels prefer `aa` to `bcd`, and the judge the longer one."""
    with endpoint(longer) as server:
        judge = {"url": server.url, "model": "gold"}
        given = suite(task, judge=judge, preferences=str(task / "pairs.jsonl"))
        found, _ = run(given, spec(str(task / "other")), tmp_path / "out")
        assert found.cost["judge_num_requests"] == len(server.requests) == 2 * 5
    assert (found.agreement["accuracy"].value, found.agreement["accuracy"].num_prompts) == (0, 5)
    assert found.agreement["kappa"].value == -1
    assert found.win_rates == {}
    assert any("the judge compares no completions" in remark for remark in found.remarks)
    out = io.StringIO()
    show(found, out)
    assert "judge: WARNING: 5 prompts show nothing" in out.getvalue()
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    del written["agreement"]
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps(written))
    assert read_result(tmp_path / "out").agreement == {}, "a result of an earlier version is read"


def test_a_budget_of_an_evaluation_is_kept_to_the_request(task: Path, tmp_path: Path) -> None:
    """Check that the budget is of both models together, and that a larger one goes on where it ended."""
    models = spec(str(task / "other"), against=str(task / "model"))
    with endpoint(by_length) as server:
        grader = {"type": "judge", "url": server.url, "model": "gold", "concurrency": 3}
        run(suite(task, reward=[grader]), models, tmp_path / "unlimited" / "out")
        needed = len(server.requests)
        with pytest.raises(RewardError, match=r"the budget is used up after \d+ requests; raise max_requests"):
            run(suite(task, reward=[{**grader, "max_requests": needed - 1}]), models, tmp_path / "first")
        assert len(server.requests) == needed + needed - 1
        run(suite(task, reward=[{**grader, "max_requests": 1}]), models, tmp_path / "second")
        assert len(server.requests) == 2 * needed
        judge = {"url": server.url, "model": "gold", "max_requests": 9, "concurrency": 3}
        with pytest.raises(JudgeFailed, match="budget of the judge is used up"):
            run(suite(task, judge=judge), models, tmp_path / "third")
        assert len(server.requests) == 2 * needed + 9


def test_the_judges_key_is_written_nowhere(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_ACCESS", "correct-horse-battery")
    with endpoint(lambda body, n: (200, verdict("A" if shown(body)["answer_a"] else "B"))) as server:
        judge = {"url": server.url, "model": "gold", "api_key_env": "JUDGE_ACCESS"}
        run(suite(task, judge=judge), spec(str(task / "other"), against=str(task / "model")), tmp_path / "out")
        assert server.headers[0]["Authorization"] == "Bearer correct-horse-battery"
    for path in (tmp_path / "out").iterdir():
        assert "correct-horse" not in path.read_text()


# ------------------------------------------------------------------------------------------------ refused at once


def test_all_problems_are_reported_before_anything_starts(task: Path, tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a cluster was started")

    given = suite(
        task,
        prompts=str(tmp_path / "none.jsonl"),
        reward=[{"type": "function", "function": f"{cpu_run.REWARD}:nothing"}],
        judge={"url": "http://localhost/v1", "model": "x", "api_key_env": "NOT_SET_ANYWHERE"},
    )
    models = spec(str(task / "missing"), against=str(task / "model"), base=str(task / "stranger"))
    with pytest.raises(BadInput) as refused:
        evaluate(given, models, tmp_path / "out", lambda _: None, start_cluster=never)
    text = str(refused.value)
    for part in ("none.jsonl", "there is no `nothing` in the file", "NOT_SET_ANYWHERE", "MODEL = "):
        assert part in text
    with pytest.raises(BadInput, match="another tokenizer"):
        evaluate(
            suite(task),
            spec(str(task / "model"), base=str(task / "stranger")),
            tmp_path / "out",
            lambda _: None,
            never,
        )
    assert not (tmp_path / "out").exists()


def test_a_result_is_never_overwritten(task: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(BadInput, match="the directory has a result already"):
        run(suite(task), spec(str(task / "model")), tmp_path)
    with pytest.raises(BadInput, match="not an evaluation"):
        read_result(tmp_path)


def test_an_unknown_base_is_refused(task: Path) -> None:
    with pytest.raises(BadInput, match="the base is unknown"):
        spec(str(task / "model"), against="base")


# ------------------------------------------------------------------------------------------------ a run's model


def test_base_and_reference_of_a_run_are_found_in_its_directory(task: Path, tmp_path: Path) -> None:
    settings = cpu_run.config(task, tmp_path, "iterative-dpo")
    cpu_run.run(settings)
    run_directory = tmp_path / "run"
    models = spec(str(run_directory), against="base")
    assert (models.model.name, models.model.path) == ("run", str(run_directory / "model"))
    assert models.base == str(task / "model")
    # Three rounds, each with a new reference: the last round trained against the policy of the second.
    assert models.reference == str(run_directory / "reference" / "version-2")
    assert spec(str(run_directory / "model")).base == models.base
    shutil.rmtree(run_directory / "reference")
    assert spec(str(run_directory)).reference is None
    found, _ = run(suite(task), replace(models, against=None), tmp_path / "out")
    assert any("kl/reference is not measured" in remark for remark in found.remarks)
    assert "kl/base" in found.figures["model"]
    shutil.rmtree(run_directory / "model")
    with pytest.raises(BadInput, match="the run has no model"):
        spec(str(run_directory))


def test_the_table_of_results(task: Path, tmp_path: Path) -> None:
    found, _ = run(suite(task), spec(str(task / "other"), against=str(task / "model")), tmp_path / "out")
    out = io.StringIO()
    show(found, out)
    text = out.getvalue()
    assert "greedy/reward" in text
    assert "wins by letters_a (greedy)" in text
    assert f"against  {task / 'model'}" in text
