"""Accuracy of a reward model, or of DPO's implicit reward, on held-out pairs, by the run's encoder and learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, Handle, wait
from orchestrator.evaluation.held_out import Evaluation
from workers.encoder import Encoder
from workers.learner import Learner
from workers.margins import PairMargins, merge_margins
from workers.reference import Reference
from workers.stats import Metrics
from workers.types import Example, Experience, TokenShard

NUM_BINS = 10


class HeldOutPairs:
    """Evaluator on held-out pairs, the same at every evaluation.

    The encoder sends tokens to the learner, and the learner returns one margin per pair.
    """

    role = "policy"

    def __init__(
        self,
        encoder: Gang[Encoder],
        policy: Gang[Learner],
        reference: Gang[Reference] | None,
        examples: Sequence[Example],
        *,
        adapters_off: bool = False,
    ) -> None:
        """Set the gangs and the pairs.

        Args:
            encoder: of the dataset.
            policy: learner of a reward model or of DPO.
            reference: reference of DPO, whose implicit reward is the log-ratio to it.
            examples: held-out pairs.
            adapters_off: the reference of DPO is the policy without its adapters; `reference` is None.
        """
        self._encoder, self._policy, self._reference, self._examples = encoder, policy, reference, list(examples)
        self._adapters_off = adapters_off

    def evaluate(self, version: int) -> Evaluation:
        """Evaluate the learner after all calls already submitted to it."""
        encoded = [self._encoder.one(Encoder.encode, self._examples)]
        reference = self._reference_logprobs(encoded)
        margins = merge_margins(wait(self._policy.all(Learner.margins, encoded, reference)))
        return Evaluation(metrics=pair_metrics(margins), samples=())

    def _reference_logprobs(self, encoded: Sequence[Handle[Experience]]) -> Sequence[Handle[TokenShard]] | None:
        if self._adapters_off:
            return self._policy.all(Learner.base_logprobs, encoded, 1.0, True)
        return None if self._reference is None else self._reference.all(Reference.logprobs, encoded)


def pair_metrics(pairs: PairMargins) -> Metrics:
    """Compute accuracy, mean margin and calibration error of all pairs, and the accuracy per source and per objective.

    A margin of 0 counts as wrong. Without pairs, only their count is returned.
    """
    margins = pairs.values.astype(np.float64)
    metrics: Metrics = {"eval/pairs": float(len(margins))}
    if not len(margins):
        return metrics
    correct = margins > 0
    metrics["eval/accuracy"] = float(correct.mean())
    metrics["eval/margin"] = float(margins.mean())
    metrics["eval/calibration_error"] = calibration_error(margins)
    for source in sorted({s for s in pairs.sources if s is not None}):
        in_source = np.asarray([s == source for s in pairs.sources])
        metrics[f"eval/accuracy/{source}"] = float(correct[in_source].mean())
    for objective in sorted({name for name in pairs.objectives if name is not None}):
        mine = np.asarray([name == objective for name in pairs.objectives])
        metrics |= {
            f"eval/{objective}/pairs": float(mine.sum()),
            f"eval/{objective}/accuracy": float(correct[mine].mean()),
            f"eval/{objective}/margin": float(margins[mine].mean()),
        }
    return metrics


def calibration_error(margins: NDArray[np.float64]) -> float:
    """Compute the expected calibration error of σ(margin), the probability that the chosen completion is preferred.

    Ten equal bins (arXiv 1706.04599): the mean over predictions of |frequency − confidence|, both averaged per bin.

    `margins` [P]. Each pair gives two predictions: σ(m) that the chosen completion is better, which is true, and σ(−m)
    that the rejected one is, which is false. With the first alone, the largest margins would be the best calibrated.
    Margins of 0 have no error, nor do margins of ±log 3 (σ = ¾) of which one in four is negative.
    """
    assert margins.ndim == 1, margins.shape
    probabilities = np.concatenate([_sigmoid(margins), _sigmoid(-margins)])  # [2P]
    outcomes = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = np.bincount(bins, weights=outcomes - probabilities, minlength=NUM_BINS)  # size × gap of each bin
    return float(np.abs(gaps).sum() / len(probabilities))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -x))
    return probabilities
