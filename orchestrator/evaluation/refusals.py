"""Refusal rates of the policy on held-out prompts, by the run's own engines; the safety gate reads them."""

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
    """Evaluator of refusals: the refused share of harmful (eval/refusal) and of benign prompts (eval/over_refusal).

    The prompts are the same at every evaluation and are answered greedily.
    """

    role = "rollout"

    def __init__(
        self,
        rollout: Gang[Rollout],
        refusal: Gang[Reward],
        prompts: Mapping[str, Sequence[Prompt]],
        *,
        max_completion_length: int,
        seed: int,
        completions_per_chunk: int | None = None,
    ) -> None:
        """Set the engines and prompts.

        Args:
            rollout: engines of the run.
            refusal: workers that score a refusal 1 and an answer 0.
            prompts: by kind, "harmful" and "benign" or one of them.
            max_completion_length: in tokens.
            seed: seed of the sampling.
            completions_per_chunk: answers that all engines together sample in one call, at most; None: all.
        """
        self._completions_per_chunk = completions_per_chunk
        self._rollout, self._refusal, self._prompts = rollout, refusal, prompts
        self._sampling = Sampling(
            num_generations=1, max_completion_length=max_completion_length, temperature=0.0, seed=seed
        )

    def evaluate(self, version: int) -> Evaluation:
        chunk, gangs = self._completions_per_chunk, (self._rollout, self._refusal)
        batches = {
            kind: sample(prompts, self._sampling, *gangs, version=version, completions_per_chunk=chunk)
            for kind, prompts in self._prompts.items()
        }
        metrics: Metrics = {}
        samples: list[Sample] = []
        for kind, pending in batches.items():
            assert pending.scores is not None
            scores = merge_scores(wait(pending.scores))
            metrics[f"eval/{kind}_prompts"] = float(len(scores.rewards))
            metrics[METRICS[kind]] = float(np.mean(scores.rewards))
            samples += scores.samples
        return Evaluation(metrics=metrics, samples=tuple(samples))
