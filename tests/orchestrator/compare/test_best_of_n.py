"""Best-of-n from the answers of the base: against all subsets by hand, and its place in a comparison."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from run_on_disk import run_on_disk

from orchestrator.compare.answer import answer
from orchestrator.compare.best_of_n import best_of_n_curves, kl_bound
from orchestrator.compare.frontier import beats_base, beats_point
from orchestrator.compare.page import Section, page
from orchestrator.compare.recipe import BestOfNConfig
from orchestrator.compare.run_curves import RunEntry, TaskRuns, read_curves
from orchestrator.errors import BadInput
from orchestrator.evaluation.answer import Answer
from orchestrator.report.run_record import RunRecord

PROMPTS, K = 12, 4


def sampled(step: int, *, seed: int, gain: float) -> list[Answer]:
    """Return answers whose proxy score is the gold score plus noise. Those of step 0 depend on the seed alone."""
    generator = np.random.default_rng([seed, step])
    answers = []
    for i in range(PROMPTS):
        for k in range(K):
            gold = float(generator.normal()) + gain * step / 40
            scores = {"gold": gold, "proxy": gold + 0.5 * float(generator.normal())}
            answers.append(
                Answer(
                    mode="sampled",
                    prompt_id=f"held:{i}",
                    index=k,
                    reward=scores["proxy"],
                    scores=scores,
                    length=5 + k,
                    log_ratio=2.0 * step / 40,
                )
            )
    return answers


@pytest.fixture
def entries(tmp_path: Path) -> list[RunEntry]:
    runs = [
        run_on_disk(
            tmp_path,
            f"{kind}-{seed}",
            kind=kind,
            answers=partial(sampled, seed=seed, gain=gain),
            overrides=[f"seed={seed}"],
        )
        for kind, gain in (("grpo", 1.0), ("ppo", 0.2))
        for seed in (0, 1)
    ]
    return [RunEntry(record=r, method=r.method, setting="") for r in map(RunRecord.read, runs)]


def task_runs(entries: list[RunEntry], *n: int, scorer: str = "proxy") -> TaskRuns:
    config = BestOfNConfig(scorer=scorer, n=n)
    return read_curves(entries, "gold", best_of_n=partial(best_of_n_curves, config))


def by_hand(n: int) -> tuple[float, float]:
    """Return the win rate of the first prompt over another answer, and its mean gold score, over all subsets."""
    answers = [a for seed in (0, 1) for a in sampled(0, seed=seed, gain=0.0) if a.prompt_id == "held:0"]
    gold = [a.scores["gold"] for a in answers]
    proxy = [a.scores["proxy"] for a in answers]
    assert len(answers) == 2 * K
    wins, chosen = [], []
    for subset in combinations(range(len(answers)), n):
        best = max(subset, key=lambda i: proxy[i])  # type: ignore[arg-type,return-value]
        chosen.append(gold[best])
        wins += [float(gold[best] > gold[i]) for i in range(len(answers)) if i not in subset]  # type: ignore[operator]
    return float(np.mean(wins)), float(np.mean(chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_it_is_the_mean_over_all_subsets(entries: list[RunEntry], n: int) -> None:
    runs = task_runs(entries, n)
    (curve,) = [c for c in runs.curves if c.method == "best-of-n"]
    point, first = curve.evals[-1], runs.prompts.index("held:0")
    win, gold = by_hand(n)
    assert beats_base(point, runs)[first] == pytest.approx(win)
    assert point.weights is not None
    assert (point.weights[first] * point.gold[first]).sum() == pytest.approx(gold)
    assert point.weights.sum(1) == pytest.approx(1.0)
    assert point.gold.shape == (PROMPTS, 2 * K), "one run of each seed: runs of one seed sample the same answers"


def test_its_kl_is_the_upper_bound(entries: list[RunEntry]) -> None:
    assert [kl_bound(n) for n in (1, 2, 16)] == pytest.approx([0.0, math.log(2) - 0.5, math.log(16) - 15 / 16])
    point = task_runs(entries, 4).curves[-1].evals[-1]
    assert point.kl == pytest.approx(kl_bound(4))


def test_choosing_by_the_gold_score_itself_wins_most(entries: list[RunEntry]) -> None:
    """Check that, with distinct scores, the best of n by the gold score beats another answer n times in n + 1."""
    point = task_runs(entries, 3, scorer="gold").curves[-1].evals[-1]
    assert point.over_base == pytest.approx(3 / 4)


def test_weighted_answers_against_others(entries: list[RunEntry]) -> None:
    runs = task_runs(entries, 1, 3)
    by_name = {curve.label: curve.evals[-1] for curve in runs.curves}
    trained = next(c for c in runs.curves if c.is_trained).evals[-1]
    one, three = by_name["best-of-n n 1"], by_name["best-of-n n 3"]
    np.testing.assert_allclose(beats_point(one, trained) + beats_point(trained, one), 1.0)
    assert beats_point(three, trained).mean() > beats_point(one, trained).mean()


def test_it_is_a_method_of_the_comparison(entries: list[RunEntry]) -> None:
    result = answer(task_runs(entries, 2, 4), task="sorting", about="", unit="GPU")
    assert set(result.order) == {"GRPO", "PPO", "best-of-n"}
    assert result.cost["device_seconds"] > 0, "the method without training does not set the cost"
    assert len(result.matchups["device_seconds"]) == 3
    records = [entry.record for entry in entries]
    files = page("test", [Section(answer=result, records=records, lost=[])])
    assert "the KL is an upper bound, log n − (n − 1)/n" in files["report.html"]
    assert "best-of-n" in files["report.md"]
    assert "4 runs" in files["report.html"], "best-of-n is no run"


def test_what_cannot_be_estimated_is_refused(entries: list[RunEntry]) -> None:
    with pytest.raises(BadInput, match=r"best_of_n\.scorer = prxy"):
        task_runs(entries, 2, scorer="prxy")
    with pytest.raises(BadInput, match=r"best_of_n\.n = 8, of 8 answers"):
        task_runs(entries, 8)
