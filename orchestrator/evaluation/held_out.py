"""Greedy reward on held-out prompts, by the run's own engines and scorers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.cluster.base import Gang, wait
from orchestrator.pipeline.sources import sample
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Metrics, Prompt, Sample, Sampling, merge_scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What one evaluation found: metrics under `eval/`, and a few completions to read."""

    metrics: Metrics
    samples: tuple[Sample, ...]


class Evaluator(Protocol):
    """What is asked of time and again, about the model as it is then."""

    @property
    def role(self) -> str:
        """The gang that is busy with it."""
        ...

    def evaluate(self) -> Evaluation: ...


class Several:
    """One evaluation after the other."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = tuple(evaluators)
        self.role = self._evaluators[0].role

    def evaluate(self) -> Evaluation:
        found = [evaluator.evaluate() for evaluator in self._evaluators]
        return Evaluation(
            metrics={name: value for part in found for name, value in part.metrics.items()},
            samples=tuple(sample for part in found for sample in part.samples),
        )


class HeldOut:
    """The same prompts every time."""

    role = "rollout"

    def __init__(
        self,
        rollout: Gang[Rollout],
        reward: Gang[Reward],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        seed: int,
    ) -> None:
        self._rollout, self._reward, self._prompts = rollout, reward, prompts
        self._sampling = Sampling(
            num_generations=1, max_completion_length=max_completion_length, temperature=0.0, seed=seed
        )

    def evaluate(self) -> Evaluation:
        """Evaluate the version that the engines hold after everything asked of them before."""
        arrival = sample(self._prompts, self._sampling, self._rollout, self._reward)
        assert arrival.scores is not None
        scores = merge_scores(wait(arrival.scores))
        metrics = {
            "eval/prompts": float(len(scores.rewards)),
            "eval/reward": float(np.mean(scores.rewards)),
            "eval/reward_std": float(np.std(scores.rewards)),
        }
        for name, values in scores.by_scorer.items():
            metrics[f"eval/rewards/{name}/mean"] = float(np.nanmean(values))
            metrics[f"eval/rewards/{name}/std"] = float(np.nanstd(values))
        return Evaluation(metrics=metrics, samples=scores.samples)
