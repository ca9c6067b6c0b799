"""Refusal rates of the policy on held-out prompts, by the run's own engines; the safety gate reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.cluster.base import wait
from orchestrator.evaluation.held_out import Answers, Evaluation
from workers.reward import Reward
from workers.stats import Metrics
from workers.types import Floats, Prompt, Sample, merge_scores

METRICS = {"harmful": "eval/refusal", "benign": "eval/over_refusal"}
COLUMN = "category"


class Refusals:
    """Evaluator of refusals: the refused share of harmful (eval/refusal) and of benign prompts (eval/over_refusal).

    The prompts are the same at every evaluation and are answered greedily. Prompts with a `category` column are counted
    by category as well (eval/refusal/CATEGORY).
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
            if categories := categories_of(self._prompts[kind]):
                measures = self._answers.reward.one(Reward.measure, pending.experience, None).result()
                metrics |= by_category(METRICS[kind], categories, measures.prompt_ids, scores.rewards)
            samples += scores.samples
        return Evaluation(metrics=metrics, samples=tuple(samples))


def categories_of(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the text of the `category` column of each prompt that has one, by the prompt's id."""
    columns = {prompt.id: prompt.columns.get(COLUMN) for prompt in prompts}
    return {id_: category for id_, category in columns.items() if isinstance(category, str) and category.strip()}


def by_category(metric: str, categories: Mapping[str, str], ids: Sequence[str], refused: Floats) -> Metrics:
    """Return the refused share of each category.

    Example: `{"eval/refusal/self-harm": 0.75}`. Blanks of a name become underscores.

    Args:
        categories: category by prompt id.
        ids: prompt of each answer: [N].
        refused: 1 for a refusal, 0 for an answer: [N].
    """
    names = np.asarray([categories.get(id_, "") for id_ in ids])
    return {
        f"{metric}/{'_'.join(name.split())}": float(np.mean(refused[names == name]))
        for name in sorted({*names.tolist()} - {""})
    }
