"""Rewards of held-out answers at other sampling temperatures than 1, for the win rate over the temperature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.cluster.base import wait
from orchestrator.config.run import EvaluationConfig
from orchestrator.evaluation.answer import Answer
from orchestrator.evaluation.held_out import Answers, Evaluation, answers_of
from workers.reward import Reward
from workers.types import Prompt, merge_scores


class AtTemperatures:
    """Evaluator that samples answers to the held-out prompts at each of `evaluation.temperatures`. Their KL is not
    measured."""

    role = "rollout"

    def __init__(self, answers: Answers, prompts: Sequence[Prompt], evaluation: EvaluationConfig) -> None:
        """Set the engines, the prompts and the temperatures.

        Args:
            evaluation: its `temperatures`, and its `num_samples` answers to each prompt at each of them.
        """
        self._answers, self._prompts = answers, prompts
        self._num_samples, self._temperatures = evaluation.num_samples, evaluation.temperatures

    def evaluate(self, version: int) -> Evaluation:
        metrics: dict[str, float] = {}
        answers: list[Answer] = []
        # All are submitted before the first is waited for, so that engines sample while answers are scored.
        requested = [
            self._answers.sample(self._prompts, version, num_generations=self._num_samples, temperature=temperature)
            for temperature in self._temperatures
        ]
        for temperature, pending in zip(self._temperatures, requested, strict=True):
            assert pending.scores is not None
            measures = self._answers.reward.one(Reward.measure, pending.experience, None).result()
            scores = merge_scores(wait(pending.scores))
            metrics[f"eval/reward_at_temperature_{temperature:g}"] = float(np.mean(scores.rewards))
            answers += answers_of("at_temperature", scores, measures, temperature)
        return Evaluation(metrics=metrics, samples=(), answers=tuple(answers))
