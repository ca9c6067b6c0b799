"""How well a reward model, or DPO's implicit one, tells held-out pairs apart, by the run's own encoder and learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.cluster.base import Gang, wait
from orchestrator.evaluation.held_out import Evaluation
from workers.encoder import Encoder
from workers.learner import Learner
from workers.reference import Reference
from workers.types import Example, Metrics, PairMargins, merge_margins

NUM_BINS = 10


class HeldOutPairs:
    """The same pairs every time. Tokens go from the encoder to the learner; a number for each pair comes back.

    `reference`: of DPO, whose reward is the distance from it. None: the learner is a reward model.
    """

    role = "policy"

    def __init__(
        self,
        encoder: Gang[Encoder],
        policy: Gang[Learner],
        reference: Gang[Reference] | None,
        examples: Sequence[Example],
    ) -> None:
        self._encoder, self._policy, self._reference, self._examples = encoder, policy, reference, list(examples)

    def evaluate(self) -> Evaluation:
        """Evaluate the learner as it is after everything asked of it before."""
        encoded = [self._encoder.one(Encoder.encode, self._examples)]
        reference = self._reference.all(Reference.logprobs, encoded) if self._reference else None
        margins = merge_margins(wait(self._policy.all(Learner.margins, encoded, reference)))
        return Evaluation(metrics=pair_metrics(margins), samples=())


def pair_metrics(pairs: PairMargins) -> Metrics:
    """Accuracy, mean margin and calibration error of all pairs, and the accuracy for each source that rows name.

    A margin of 0 is no right answer. Without a pair there is no figure but their count.
    """
    margins = pairs.values.astype(np.float64)
    metrics: Metrics = {"eval/pairs": float(len(margins))}
    if not len(margins):
        return metrics
    right = margins > 0
    metrics["eval/accuracy"] = float(right.mean())
    metrics["eval/margin"] = float(margins.mean())
    metrics["eval/calibration_error"] = calibration_error(margins)
    for source in sorted({s for s in pairs.sources if s is not None}):
        of_source = np.asarray([s == source for s in pairs.sources])
        metrics[f"eval/accuracy/{source}"] = float(right[of_source].mean())
    return metrics


def calibration_error(margins: NDArray[np.float64]) -> float:
    """Expected calibration error of σ(margin) as the probability that the chosen completion is preferred, in 10 equal
    bins (arXiv 1706.04599): the mean over predictions of |how often it holds − how sure it is|, taken per bin.

    Each pair is asked both ways round: σ(m) that the chosen one is better, which holds, and σ(−m) that the rejected one
    is, which does not. Else being sure of everything would be the best calibration. Margins of 0 have no error, and
    neither have margins of log 3 (σ = ¾) of which one in four points the wrong way.
    """
    assert margins.ndim == 1, margins.shape
    probabilities = np.concatenate([_sigmoid(margins), _sigmoid(-margins)])  # [2P]
    holds = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = np.bincount(bins, weights=holds - probabilities, minlength=NUM_BINS)  # of each bin: its size × its gap
    return float(np.abs(gaps).sum() / len(probabilities))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -x))
    return probabilities
