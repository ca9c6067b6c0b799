"""Rewards and advantages of completions and tokens, for a whole step at once. Pure numpy.

Token arrays are flat: [T], laid out like `completions.values`. Sums are computed in float64, results are float32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.ragged import Ragged
from workers.types import Floats, ScoredBatch, TrainBatch

STD_EPSILON = 1e-4  # as in TRL: bounds the advantages of a group of nearly equal rewards


def completion_sums(values: Floats, completions: Ragged) -> NDArray[np.float64]:
    """Sum `values` over each completion's tokens: [T] -> [N]."""
    assert values.shape == completions.values.shape, (values.shape, completions.values.shape)
    sums = np.bincount(_owner(completions.lengths), weights=values, minlength=len(completions))
    return sums.astype(np.float64, copy=False)


def group_mean_std(
    rewards: Floats, group_offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation (over n − 1) of each group's rewards: [N] -> [G], [G].

    The deviation of a group of one is 0.
    """
    assert rewards.shape == (group_offsets[-1],), (rewards.shape, group_offsets[-1])
    sizes = np.diff(group_offsets)
    group_of = _owner(sizes)
    means = np.bincount(group_of, weights=rewards, minlength=len(sizes)) / np.maximum(sizes, 1)
    squares = np.bincount(group_of, weights=(rewards - means[group_of]) ** 2, minlength=len(sizes))
    return means, np.sqrt(squares / np.maximum(sizes - 1, 1))


def group_advantages(
    rewards: Floats, group_offsets: NDArray[np.int64], *, scale: Literal["group", "batch", "none"]
) -> Floats:
    """Subtract the group's mean from each reward and divide by a standard deviation: [N] -> [N].

    `scale` chooses the deviation: "group", of the group's rewards (GRPO, arXiv 2402.03300); "batch", of all rewards of
    the step (arXiv 2508.08221); "none", no division (Dr. GRPO, arXiv 2503.20783: dividing favours very easy and very
    hard prompts).

    The mean of a group of G contains the completion itself, so the expected gradient is (G − 1)/G times that of the
    reward. The unscaled advantage times G/(G − 1) is the leave-one-out advantage of RLOO (arXiv 2402.14740).
    """
    means, stds = group_mean_std(rewards, group_offsets)
    group_of = _owner(np.diff(group_offsets))
    centred = rewards - means[group_of]
    if scale == "group":
        centred /= stds[group_of] + STD_EPSILON
    elif scale == "batch":
        centred /= _std(rewards) + STD_EPSILON
    return centred.astype(np.float32)


def has_signal(rewards: Floats, group_offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each group whether its rewards differ: [N] -> [G]. No group may be empty."""
    starts = group_offsets[:-1]
    differ: NDArray[np.bool_] = np.maximum.reduceat(rewards, starts) > np.minimum.reduceat(rewards, starts)
    return differ


def leave_one_out(rewards: Floats, group_offsets: NDArray[np.int64]) -> Floats:
    """Subtract from each reward the mean of the group's other rewards: [N] -> [N]. In a group of one it is 0.

    Computed as G/(G − 1) times the distance from the mean of all G.
    """
    sizes = np.diff(group_offsets)
    factors = np.repeat(sizes / np.maximum(sizes - 1, 1), sizes)
    advantages: Floats = (group_advantages(rewards, group_offsets, scale="none") * factors).astype(np.float32)
    return advantages


def overlong_penalty(lengths: NDArray[np.int64], *, length: int, buffer: int) -> Floats:
    """Return DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): [N] -> [N].

    The punishment is 0 up to `length` − `buffer` tokens, falls linearly to −1 at `length`, and is −1 beyond.
    """
    penalty: Floats = -np.clip((lengths - (length - buffer)) / buffer, 0, 1).astype(np.float32)
    return penalty


def penalised(rewards: Floats, kl: NDArray[np.float64] | None, beta: float) -> Floats:
    """Subtract β times each completion's KL (Σ_t k1) from its reward: [N], [N] -> [N]. At β = 0 `kl` may be None."""
    if not beta:
        return rewards
    assert kl is not None, "a KL penalty needs the reference's log-probabilities"
    return (rewards - beta * kl).astype(np.float32)


def token_rewards(scores: Floats, completions: Ragged, penalty: Floats | None) -> Floats:
    """Return token rewards: each score on its completion's last token, minus a penalty per token: [N], [T] -> [T].

    With penalty = β (log π − log π_ref), which is β·k1, a completion's rewards add up to r(y) − β log(π(y)/π_ref(y)).
    """
    assert scores.shape == (len(completions),), (scores.shape, len(completions))
    assert completions.lengths.all(), "a completion without tokens has nowhere to put its score"
    rewards = np.zeros(len(completions.values)) if penalty is None else -penalty.astype(np.float64)
    rewards[completions.offsets[1:] - 1] += scores
    return rewards.astype(np.float32)


def gae(rewards: Floats, values: Floats, completions: Ragged, *, gamma: float, lam: float) -> Floats:
    """Compute generalised advantage estimation (arXiv 1506.02438, equation 16): [T], [T] -> [T].

    A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t; V and A are 0 after a completion's last token.
    V_t is the value of the state before token t. A + V are the returns that the critic is trained on.
    """
    assert rewards.shape == values.shape == completions.values.shape, (rewards.shape, values.shape)
    lengths, last = completions.lengths, completions.offsets[1:] - 1
    v = values.astype(np.float64)
    advantages = rewards - v  # final at each completion's last token
    for back in range(1, int(lengths.max(initial=0))):
        t = last[lengths > back] - back
        advantages[t] += gamma * (v[t + 1] + lam * advantages[t + 1])
    return advantages.astype(np.float32)


def whiten(values: Floats, *, shift_mean: bool = True) -> Floats:
    """Scale `values` to variance 1 and, with `shift_mean`, shift them to mean 0: [T] -> [T]."""
    centre = float(values.mean(dtype=np.float64))
    whitened = (values.astype(np.float64) - centre) / math.sqrt(_std(values) ** 2 + 1e-8)
    return (whitened if shift_mean else whitened + centre).astype(np.float32)


def spread(per_completion: Floats, completions: Ragged) -> Floats:
    """Repeat each completion's number for all its tokens: [N] -> [T]."""
    result: Floats = np.repeat(per_completion, completions.lengths)
    return result


def group_rows(
    scored: ScoredBatch, advantages: Floats, weights: Floats | None, kept: NDArray[np.int64] | None = None
) -> TrainBatch:
    """Return a batch with one group per row, so that the group's prompt is computed once.

    Args:
        advantages: of all tokens of the step, [T].
        weights: importance weights of all tokens, [T]; None: no correction.
        kept: completions to train on, [n], ascending; None: all. A group without a kept completion has no row.
    """
    experience, reference = scored.experience, scored.reference_logprobs
    assert advantages.shape == experience.completions.values.shape, advantages.shape
    kept = np.arange(len(experience.completions)) if kept is None else kept
    sizes = np.bincount(experience.group_of[kept], minlength=len(experience.prompts))
    rows = np.flatnonzero(sizes)
    tokens = experience.completions.positions(kept)
    return TrainBatch(
        prompts=experience.prompt_tokens.take(rows),
        completions=experience.completions.take(kept),
        row_offsets=np.concatenate([[0], np.cumsum(sizes[rows])]),
        old_logprobs=scored.old_logprobs[tokens],
        reference_logprobs=None if reference is None else reference[tokens],
        advantages=advantages[tokens],
        importance_weights=None if weights is None else weights[tokens],
        sources=kept,
    )


def _std(values: NDArray[Any]) -> float:
    return float(values.std(ddof=1, dtype=np.float64)) if len(values) > 1 else 0.0


def _owner(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the block that each element is in, given the block sizes: [2, 1] -> [0, 0, 1]."""
    return np.repeat(np.arange(len(sizes)), sizes)
