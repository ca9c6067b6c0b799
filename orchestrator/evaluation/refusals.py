"""What the policy refuses, on held-out prompts, by the run's own engines: what the safety gate looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.cluster.base import Gang, wait
from orchestrator.evaluation.held_out import Evaluation
from orchestrator.pipeline.sources import sample
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Metrics, Prompt, Sample, Sampling, merge_scores

METRICS = {"harmful": "eval/refusal", "benign": "eval/over_refusal"}


class Refusals:
    """The same prompts every time, answered greedily: the share of harmful ones that are refused (eval/refusal), and of
    benign ones that are (eval/over_refusal). `refusal`: workers whose score is 1 for a refusal and 0 for an answer."""

    role = "rollout"

    def __init__(
        self,
        rollout: Gang[Rollout],
        refusal: Gang[Reward],
        prompts: Mapping[str, Sequence[Prompt]],
        *,
        max_completion_length: int,
        seed: int,
    ) -> None:
        """`prompts`: harmful and benign ones, or one kind of them."""
        self._rollout, self._refusal, self._prompts = rollout, refusal, prompts
        self._sampling = Sampling(
            num_generations=1, max_completion_length=max_completion_length, temperature=0.0, seed=seed
        )

    def evaluate(self) -> Evaluation:
        """Evaluate the version that the engines hold after everything asked of them before."""
        arrivals = {
            kind: sample(prompts, self._sampling, self._rollout, self._refusal)
            for kind, prompts in self._prompts.items()
        }
        metrics: Metrics = {}
        samples: list[Sample] = []
        for kind, pending in arrivals.items():
            assert pending.scores is not None
            scores = merge_scores(wait(pending.scores))
            metrics[f"eval/{kind}_prompts"] = float(len(scores.rewards))
            metrics[METRICS[kind]] = float(np.mean(scores.rewards))
            samples += scores.samples
        return Evaluation(metrics=metrics, samples=tuple(samples))
