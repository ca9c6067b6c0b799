"""Rewards of held-out answers at other sampling temperatures than 1, for the win rate over the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.cluster.base import Gang, wait
from orchestrator.config.run import EvaluationConfig
from orchestrator.evaluation.answer import Answer
from orchestrator.evaluation.held_out import Evaluation, answers_of
from orchestrator.pipeline.sources import PendingBatch, sample
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Prompt, Sampling, merge_scores


class AtTemperatures:
    """Evaluator that samples answers to the held-out prompts at each of `evaluation.temperatures`. Their KL is not
    measured."""

    role = "rollout"

    def __init__(
        self,
        rollout: Gang[Rollout],
        reward: Gang[Reward],
        prompts: Sequence[Prompt],
        *,
        evaluation: EvaluationConfig,
        max_completion_length: int,
        seed: int,
        completions_per_chunk: int | None = None,
    ) -> None:
        """Set the engines, the prompts and the temperatures.

        Args:
            rollout: engines of the run.
            reward: scorers of the run.
            prompts: held-out prompts.
            evaluation: its `temperatures`, and its `num_samples` answers to each prompt at each of them.
            max_completion_length: in tokens.
            seed: seed of the sampling.
            completions_per_chunk: answers that all engines together sample in one call, at most; None: all.
        """
        self._rollout, self._reward, self._prompts = rollout, reward, prompts
        self._completions_per_chunk = completions_per_chunk
        first = Sampling(
            num_generations=evaluation.num_samples,
            max_completion_length=max_completion_length,
            temperature=1.0,
            seed=seed,
        )
        self._samplings = [replace(first, temperature=temperature) for temperature in evaluation.temperatures]

    def evaluate(self, version: int) -> Evaluation:
        metrics: dict[str, float] = {}
        answers: list[Answer] = []
        # All are submitted before the first is waited for, so that engines sample while answers are scored.
        for sampling, pending in [(sampling, self._sample(sampling, version)) for sampling in self._samplings]:
            assert pending.scores is not None
            measures = self._reward.one(Reward.measure, pending.experience, None).result()
            scores = merge_scores(wait(pending.scores))
            metrics[f"eval/reward_at_temperature_{sampling.temperature:g}"] = float(np.mean(scores.rewards))
            answers += answers_of("at_temperature", scores, measures, sampling.temperature)
        return Evaluation(metrics=metrics, samples=(), answers=tuple(answers))

    def _sample(self, sampling: Sampling, version: int) -> PendingBatch:
        chunk = self._completions_per_chunk
        gangs = (self._rollout, self._reward)
        return sample(self._prompts, sampling, *gangs, version=version, completions_per_chunk=chunk)
