"""Reward on held-out prompts, greedy and sampled, by the run's own engines and scorers; and what evaluators share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.evaluation.answer import Answer, Mode
from orchestrator.pipeline.sources import PendingBatch, sample
from workers.reward import Measures, Reward
from workers.rollout import Rollout
from workers.stats import Metrics
from workers.types import Experience, Prompt, Sample, Sampling, Scores, TokenShard, merge_scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Result of one evaluation: metrics under `eval/`, a few completions to read, and a record of every answer."""

    metrics: Metrics
    samples: tuple[Sample, ...]
    answers: tuple[Answer, ...] = ()


class Evaluator(Protocol):
    """Evaluator of the current model, called repeatedly during a run."""

    @property
    def role(self) -> str:
        """Role of the gang that does the work."""
        ...

    def evaluate(self, version: int) -> Evaluation:
        """Evaluate `version` of the policy, which must have been published. An engine with another one is replaced."""
        ...


class CombinedEvaluator:
    """Several evaluators, run one after the other."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = tuple(evaluators)
        self.role = self._evaluators[0].role

    def evaluate(self, version: int) -> Evaluation:
        parts = [evaluator.evaluate(version) for evaluator in self._evaluators]
        return Evaluation(
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            samples=tuple(sample for part in parts for sample in part.samples),
            answers=tuple(answer for part in parts for answer in part.answers),
        )


BaseLogprobs: TypeAlias = Callable[[Sequence[Handle[Experience]]], Sequence[Handle[TokenShard]]]
"""Function that submits sampled completions for scoring by the initial model, at temperature 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Source of scored answers to the prompts of an evaluation."""

    rollout: Gang[Rollout]  # engines of the run
    reward: Gang[Reward]  # workers that score the answers
    max_completion_length: int  # in tokens
    seed: int  # of the sampling
    completions_per_chunk: int | None = None  # answers that all engines sample in one call, at most; None: all

    def sample(
        self, prompts: Sequence[Prompt], version: int, *, num_generations: int = 1, temperature: float = 0.0
    ) -> PendingBatch:
        """Request answers of `version` of the policy: one to each prompt and greedy, unless said otherwise."""
        sampling = Sampling(
            num_generations=num_generations,
            max_completion_length=self.max_completion_length,
            temperature=temperature,
            seed=self.seed,
        )
        chunk = self.completions_per_chunk
        return sample(prompts, sampling, self.rollout, self.reward, version=version, completions_per_chunk=chunk)


class HeldOut:
    """Evaluator on held-out prompts, the same at every evaluation: greedy answers, and optionally sampled ones."""

    role = "rollout"

    def __init__(
        self, answers: Answers, prompts: Sequence[Prompt], *, num_samples: int = 0, base: BaseLogprobs | None = None
    ) -> None:
        """Set the engines and prompts.

        Args:
            prompts: held-out prompts.
            num_samples: sampled answers per prompt, besides the greedy one.
            base: scores the sampled answers under the initial model, for eval/kl. None: no KL is measured.
        """
        self._answers, self._prompts, self._num_samples, self._base = answers, prompts, num_samples, base

    def evaluate(self, version: int) -> Evaluation:
        greedy, sampled = self._answers.sample(self._prompts, version), None
        if count := self._num_samples:
            # Submitted before waiting, so that the engines sample while the greedy answers are scored.
            sampled = self._answers.sample(self._prompts, version, num_generations=count, temperature=1.0)
        scores, answers = self._collect_answers("greedy", greedy)
        metrics = {
            "eval/prompts": float(len(scores.rewards)),
            "eval/reward": float(np.mean(scores.rewards)),
            "eval/reward_std": float(np.std(scores.rewards)),
        }
        for name, values in scores.by_scorer.items():
            if len(given := values[np.isfinite(values)]):  # a pairwise reward has no score of a single completion
                metrics[f"eval/rewards/{name}/mean"] = float(given.mean())
                metrics[f"eval/rewards/{name}/std"] = float(given.std())
        metrics |= {f"eval/rewards/{name}": number for name, number in scores.usage.items()}
        if sampled is None:
            return Evaluation(metrics=metrics, samples=scores.samples, answers=answers)
        drawn, drawn_answers = self._collect_answers("sampled", sampled)
        metrics["eval/sampled_reward"] = float(np.mean(drawn.rewards))
        for name, number in drawn.usage.items():
            metrics[f"eval/rewards/{name}"] += number
        if ratios := [a.log_ratio for a in drawn_answers if a.log_ratio is not None]:
            metrics["eval/kl"] = float(np.mean(ratios))
        return Evaluation(metrics=metrics, samples=scores.samples, answers=(*answers, *drawn_answers))

    def _collect_answers(self, mode: Mode, pending: PendingBatch) -> tuple[Scores, tuple[Answer, ...]]:
        assert pending.scores is not None
        shares = None
        if self._base is not None and mode == "sampled":
            shares = [share for chunk in pending.chunks for share in self._base(chunk.experience)]
        measures = self._answers.reward.one(Reward.measure, pending.experience, shares).result()
        scores = merge_scores(wait(pending.scores))
        return scores, answers_of(mode, scores, measures)


def answers_of(mode: Mode, scores: Scores, measures: Measures, temperature: float | None = None) -> tuple[Answer, ...]:
    """Build an answer for each completion. The index counts the completions of a prompt from 0."""
    counts: Counter[str] = Counter()
    answers = []
    for i, prompt in enumerate(measures.prompt_ids):
        answers.append(
            Answer(
                mode=mode,
                prompt_id=prompt,
                index=counts[prompt],
                reward=float(scores.rewards[i]),
                scores={name: _or_none(values[i]) for name, values in scores.by_scorer.items()},
                length=int(measures.lengths[i]),
                log_ratio=None if measures.log_ratios is None else float(measures.log_ratios[i]),
                temperature=float(mode != "greedy") if temperature is None else temperature,
            )
        )
        counts[prompt] += 1
    return tuple(answers)


def _or_none(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
