"""Reward on held-out prompts, greedy and sampled, by the run's own engines and scorers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.evaluation.answer import Answer, Mode
from orchestrator.pipeline.sources import PendingBatch, sample
from workers.reward import Reward
from workers.rollout import Rollout
from workers.types import Experience, Measures, Metrics, Prompt, Sample, Sampling, Scores, TokenShard, merge_scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What one evaluation found: metrics under `eval/`, a few completions to read, and the figures of all of them."""

    metrics: Metrics
    samples: tuple[Sample, ...]
    answers: tuple[Answer, ...] = ()


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
            answers=tuple(answer for part in found for answer in part.answers),
        )


Base: TypeAlias = Callable[[Sequence[Handle[Experience]]], Sequence[Handle[TokenShard]]]
"""Log-probabilities of sampled completions by the model that the run began with, at temperature 1."""


class HeldOut:
    """The same prompts every time: a greedy answer, and as many sampled ones as the recipe asks for."""

    role = "rollout"

    def __init__(
        self,
        rollout: Gang[Rollout],
        reward: Gang[Reward],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        seed: int,
        num_samples: int = 0,
        base: Base | None = None,
    ) -> None:
        """`num_samples`: per prompt, besides the greedy one; `base`: how far these have come is measured from it."""
        self._rollout, self._reward, self._prompts, self._base = rollout, reward, prompts, base
        self._greedy = Sampling(
            num_generations=1, max_completion_length=max_completion_length, temperature=0.0, seed=seed
        )
        self._sampled = replace(self._greedy, num_generations=num_samples, temperature=1.0) if num_samples else None

    def evaluate(self) -> Evaluation:
        """Evaluate the version that the engines hold after everything asked of them before."""
        greedy = sample(self._prompts, self._greedy, self._rollout, self._reward)
        # Asked for at once, so that the engines go on while the first answers are scored.
        sampled = None if self._sampled is None else sample(self._prompts, self._sampled, self._rollout, self._reward)
        scores, answers = self._graded("greedy", greedy)
        metrics = {
            "eval/prompts": float(len(scores.rewards)),
            "eval/reward": float(np.mean(scores.rewards)),
            "eval/reward_std": float(np.std(scores.rewards)),
        }
        for name, values in scores.by_scorer.items():
            metrics[f"eval/rewards/{name}/mean"] = float(np.nanmean(values))
            metrics[f"eval/rewards/{name}/std"] = float(np.nanstd(values))
        if sampled is None:
            return Evaluation(metrics=metrics, samples=scores.samples, answers=answers)
        drawn, drawn_answers = self._graded("sampled", sampled)
        metrics["eval/sampled_reward"] = float(np.mean(drawn.rewards))
        if ratios := [a.log_ratio for a in drawn_answers if a.log_ratio is not None]:
            metrics["eval/kl"] = float(np.mean(ratios))
        return Evaluation(metrics=metrics, samples=scores.samples, answers=(*answers, *drawn_answers))

    def _graded(self, mode: Mode, pending: PendingBatch) -> tuple[Scores, tuple[Answer, ...]]:
        assert pending.scores is not None
        shares = self._base(pending.experience) if self._base is not None and mode == "sampled" else None
        measures = self._reward.one(Reward.measure, pending.experience, shares).result()
        scores = merge_scores(wait(pending.scores))
        return scores, answers_of(mode, scores, measures)


def answers_of(mode: Mode, scores: Scores, measures: Measures) -> tuple[Answer, ...]:
    """One for each completion; of a prompt's completions the first has index 0."""
    counts: Counter[str] = Counter()
    found = []
    for i, prompt in enumerate(measures.prompt_ids):
        found.append(
            Answer(
                mode=mode,
                prompt_id=prompt,
                index=counts[prompt],
                reward=float(scores.rewards[i]),
                scores={name: _or_none(values[i]) for name, values in scores.by_scorer.items()},
                length=int(measures.lengths[i]),
                log_ratio=None if measures.log_ratios is None else float(measures.log_ratios[i]),
            )
        )
        counts[prompt] += 1
    return tuple(found)


def _or_none(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
