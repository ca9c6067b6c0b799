"""Metrics of a reward model on held-out pairs, computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import Events, FakeEncoder, RecordingGang

from orchestrator.cluster.local import LocalGang
from orchestrator.evaluation.held_out import CombinedEvaluator, Evaluation
from orchestrator.evaluation.preferences import HeldOutPairs, calibration_error, pair_metrics
from workers.margins import PairMargins
from workers.stats import Metrics
from workers.types import Example, Prompt

LN3, LN9 = math.log(3), math.log(9)


Names = Sequence[str | None] | None


def margins(values: Sequence[float], sources: Names = None, objectives: Names = None) -> PairMargins:
    count = len(values)
    return PairMargins(
        groups=np.arange(count),
        values=np.float32(values),
        sources=tuple(sources or [None] * count),
        objectives=tuple(objectives or [None] * count),
    )


def test_accuracy_and_margin_by_source() -> None:
    metrics = pair_metrics(margins([2.0, -1.0, 0.0, 3.0], ["web", "book", None, "web"]))
    assert metrics.pop("eval/calibration_error") > 0
    assert metrics == {
        "eval/pairs": 4,
        "eval/accuracy": 0.5,  # a tie is not correct
        "eval/margin": 1.0,
        "eval/accuracy/book": 0.0,
        "eval/accuracy/web": 1.0,
    }


def test_accuracy_and_margin_by_objective() -> None:
    metrics = pair_metrics(margins([2.0, -1.0, 0.0, 3.0], objectives=["safety", "help", None, "safety"]))
    assert {name: value for name, value in metrics.items() if name.count("/") == 2} == {
        "eval/safety/pairs": 2,
        "eval/safety/accuracy": 1.0,
        "eval/safety/margin": 2.5,
        "eval/help/pairs": 1,
        "eval/help/accuracy": 0.0,
        "eval/help/margin": -1.0,
    }


def test_no_pair_has_no_figures() -> None:
    assert pair_metrics(margins([])) == {"eval/pairs": 0}


def test_calibration() -> None:
    assert calibration_error(np.zeros(5)) == 0
    # Confidence ¾, correct three times in four.
    assert calibration_error(np.array([LN3, LN3, LN3, -LN3])) == pytest.approx(0)
    # Confidence ¾, always correct: each prediction is ¼ off.
    assert calibration_error(np.full(4, LN3)) == pytest.approx(0.25)
    # Always wrong: ¾ off.
    assert calibration_error(np.full(4, -LN3)) == pytest.approx(0.75)
    # Two bins in each direction: 0.9 and always correct, 0.75 and correct half the time: (0.1 + 0.25) / 2.
    assert calibration_error(np.array([LN9 + 0.001, LN9 + 0.001, LN3, -LN3])) == pytest.approx(0.175, abs=1e-3)


def test_extreme_margins_do_not_overflow() -> None:
    assert calibration_error(np.array([-1e4, -1e4])) == 1
    assert calibration_error(np.array([1e4, 1e4])) == 0


def test_tokens_go_from_the_encoder_to_the_learner() -> None:
    events: Events = []
    encoder: Any = LocalGang("dataset", [FakeEncoder(events)])
    answers = {"margins": margins([1.0, -1.0, 2.0, 0.5])}
    policy: Any = RecordingGang("policy", 1, answers, events)
    examples = [Example(prompt=Prompt(id=str(i), text="a"), completions=("b", "c")) for i in range(4)]
    evaluator = HeldOutPairs(encoder, policy, None, examples)
    found = evaluator.evaluate(0)
    assert found.metrics["eval/accuracy"] == 0.75
    assert found.samples == ()
    assert evaluator.role == "policy"
    assert [event.split(":")[0] for event in events] == ["encoder", "policy.margins", "wait for policy.margins 0"]


def test_dpo_calls_the_reference_first_and_evaluators_combine() -> None:
    events: Events = []
    encoder: Any = LocalGang("dataset", [FakeEncoder(events)])
    policy: Any = RecordingGang("policy", 1, {"margins": margins([1.0, -1.0])}, events)
    reference: Any = RecordingGang("reference", 2, {"logprobs": "share"}, events)
    examples = [Example(prompt=Prompt(id=str(i), text="a"), completions=("b", "c")) for i in range(2)]
    pairs = HeldOutPairs(encoder, policy, reference, examples)
    found = CombinedEvaluator([Fixed({"eval/reward": 0.25}), pairs]).evaluate(0)
    assert (found.metrics["eval/reward"], found.metrics["eval/accuracy"]) == (0.25, 0.5)
    assert [event.split(":")[0] for event in events][1:3] == ["reference.logprobs", "policy.margins"]
    encoded, shares = policy.arguments[0]
    assert len(encoded) == 1
    assert len(shares) == 2


def test_without_adapters_the_policy_is_its_own_reference() -> None:
    events: Events = []
    encoder: Any = LocalGang("dataset", [FakeEncoder(events)])
    policy: Any = RecordingGang("policy", 2, {"base_logprobs": "share", "margins": margins([1.0, -1.0])}, events)
    examples = [Example(prompt=Prompt(id=str(i), text="a"), completions=("b", "c")) for i in range(2)]
    assert HeldOutPairs(encoder, policy, None, examples, adapters_off=True).evaluate(0).metrics["eval/accuracy"] == 0.5
    called = [event.split(":")[0] for event in events if event.startswith("policy.")]
    assert called == ["policy.base_logprobs", "policy.margins"]
    (_, temperature, cached), (_, shares) = policy.arguments
    assert (temperature, cached, len(shares)) == (1.0, True, 2)


class Fixed:
    role = "rollout"

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def evaluate(self, version: int) -> Evaluation:
        return Evaluation(metrics=self._metrics, samples=())
