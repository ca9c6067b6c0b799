"""Refusal rates of the policy on held-out prompts, by the run's own engines; the safety gate reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.cluster.base import wait
from orchestrator.evaluation.held_out import Answers, Evaluation
from workers.stats import Metrics
from workers.types import Prompt, Sample, merge_scores

METRICS = {"harmful": "eval/refusal", "benign": "eval/over_refusal"}


class Refusals:
    """Evaluator of refusals: the refused share of harmful (eval/refusal) and of benign prompts (eval/over_refusal).

    The prompts are the same at every evaluation and are answered greedily.
    """

    role = "rollout"

    def __init__(self, answers: Answers, prompts: Mapping[str, Sequence[Prompt]]) -> None:
        """Set the engines and prompts.

        Args:
            answers: its workers score a refusal 1 and an answer 0.
            prompts: by kind, "harmful" and "benign" or one of them.
        """
        self._answers, self._prompts = answers, prompts

    def evaluate(self, version: int) -> Evaluation:
        batches = {kind: self._answers.sample(prompts, version) for kind, prompts in self._prompts.items()}
        metrics: Metrics = {}
        samples: list[Sample] = []
        for kind, pending in batches.items():
            assert pending.scores is not None
            scores = merge_scores(wait(pending.scores))
            metrics[f"eval/{kind}_prompts"] = float(len(scores.rewards))
            metrics[METRICS[kind]] = float(np.mean(scores.rewards))
            samples += scores.samples
        return Evaluation(metrics=metrics, samples=tuple(samples))
