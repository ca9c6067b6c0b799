"""A step in several spans makes the same updates and reports the same metrics as in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import experience
from torch_engine import TorchEngine, learner_of

from workers.learner import Learner
from workers.spans import UpdateRange, merge_spans
from workers.types import Experience, StepStats, TokenShard, merge_ranks

DPO = {"type": "dpo", "batch_size": 1, "num_iterations": 2, "learning_rate": 0.01}
PAIRS = [([3, 4], [[6, 7, 1], [5, 1]]), ([9], [[5, 1], [7, 7, 1]]), ([11], [[4, 1], [1]])]
UPDATES = 6  # three pairs, twice


def learn(model: Path, *spans: UpdateRange) -> tuple[StepStats, TorchEngine]:
    """Make one step on PAIRS, with a reference equal to the policy."""
    learner, engine = learner_of(model, DPO)
    parts = [experience(PAIRS, rewards=[1.0, 0.0] * 3)]
    reference = [learner.infer(parts)]
    spans_stats = [merge_ranks([_step(learner, parts, reference, span)]) for span in spans]
    whole = spans_stats[0]
    for stats in spans_stats[1:]:
        whole = merge_spans(whole, stats)
    return whole, engine


def _step(
    learner: Learner, parts: Sequence[Experience], reference: Sequence[TokenShard], span: UpdateRange
) -> StepStats:
    return learner.step(0, parts, None, reference, None, span=span)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_two_spans_are_the_step(model: Path, cut: int) -> None:
    whole, once = learn(model, UpdateRange())
    parts, twice = learn(model, UpdateRange(first=0, count=cut), UpdateRange(first=cut))
    assert whole.facts["num_updates"] == parts.facts["num_updates"] == UPDATES
    assert parts.left == whole.left == 0
    for name, weight in once.weights():
        assert torch.equal(weight, dict(twice.weights())[name]), name
    for kind in ("sums", "maxima", "minima"):
        assert getattr(parts, kind) == pytest.approx(getattr(whole, kind), rel=1e-6), kind
    clocks = {"timing/learn"}
    assert {n: v for n, v in parts.facts.items() if n not in clocks} == pytest.approx(
        {n: v for n, v in whole.facts.items() if n not in clocks}, rel=1e-6
    )


def test_a_span_reports_the_remaining_updates(model: Path) -> None:
    stats, _ = learn(model, UpdateRange(first=0, count=2))
    assert (stats.left, stats.facts["num_updates"]) == (4, 2)


def test_mean_norms_are_of_all_updates() -> None:
    def stats(norm: float, updates: float) -> StepStats:
        facts = {"grad_norm": norm, "num_updates": updates, "timing/learn": 1.0}
        return StepStats(sums={"loss": 0.25}, maxima={"m": norm}, minima={"m": norm}, facts=facts, left=1)

    found = merge_spans(stats(1.0, 3.0), stats(5.0, 1.0))
    assert found.facts == {"grad_norm": 2.0, "num_updates": 4.0, "timing/learn": 2.0}  # (1 · 3 + 5 · 1) / 4
    assert (found.sums, found.maxima, found.minima) == ({"loss": 0.5}, {"m": 5.0}, {"m": 1.0})
