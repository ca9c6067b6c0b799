"""How much better than expected: rewards of completions and tokens, and advantages. Pure numpy.

A whole step at once. Arrays of tokens are flat: [T], laid out as `completions.values`. Sums are taken in
float64, results are float32.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workers.types import Floats, Ragged

STD_EPSILON = 1e-4  # TRL's: keeps a group of nearly equal rewards from exploding


def completion_sums(values: Floats, completions: Ragged) -> NDArray[np.float64]:
    """Sum over each completion's tokens: [T] -> [N]."""
    assert values.shape == completions.values.shape, (values.shape, completions.values.shape)
    sums = np.bincount(_owner(completions.lengths), weights=values, minlength=len(completions))
    return sums.astype(np.float64, copy=False)


def group_mean_std(
    rewards: Floats, group_offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (over n − 1) of each group's rewards: [N] -> [G], [G].

    A group of one has deviation 0.
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
    """Reward minus the mean of its group, divided by a standard deviation: [N] -> [N].

    `scale` says which: "group", the group's own (GRPO, arXiv 2402.03300); "batch", that of all rewards (arXiv
    2508.08221); "none", 1 (Dr. GRPO, arXiv 2503.20783: dividing favours very easy and very hard prompts).

    The mean of a group of G contains the completion itself, so the expected gradient is (G − 1)/G of the
    reward's. G/(G − 1) times the unscaled advantage is the leave-one-out advantage of RLOO (arXiv
    2402.14740).
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
    """Whether a group's rewards differ at all: [N] -> [G]. No group is empty."""
    starts = group_offsets[:-1]
    differ: NDArray[np.bool_] = np.maximum.reduceat(rewards, starts) > np.minimum.reduceat(rewards, starts)
    return differ


def leave_one_out(rewards: Floats, group_offsets: NDArray[np.int64]) -> Floats:
    """Reward minus the mean of the group's others: [N] -> [N]. A group of one has nothing to compare with: 0.

    G/(G − 1) times the distance from the mean of all G.
    """
    sizes = np.diff(group_offsets)
    factors = np.repeat(sizes / np.maximum(sizes - 1, 1), sizes)
    advantages: Floats = (group_advantages(rewards, group_offsets, scale="none") * factors).astype(np.float32)
    return advantages


def overlong_penalty(lengths: NDArray[np.int64], *, length: int, buffer: int) -> Floats:
    """DAPO's soft punishment of length (arXiv 2503.14476, eq. 13): [N] -> [N].

    0 up to `length` − `buffer` tokens, from there linearly down to −1 at `length`, and −1 beyond.
    """
    penalty: Floats = -np.clip((lengths - (length - buffer)) / buffer, 0, 1).astype(np.float32)
    return penalty


def penalised(rewards: Floats, kl: NDArray[np.float64] | None, beta: float) -> Floats:
    """Rewards less β times each completion's Σ_t k1: [N], [N] -> [N]. At β = 0 no KL is needed."""
    if not beta:
        return rewards
    assert kl is not None, "a KL penalty needs the reference's log-probabilities"
    return (rewards - beta * kl).astype(np.float32)


def token_rewards(scores: Floats, completions: Ragged, penalty: Floats | None) -> Floats:
    """The score [N] on each completion's last token, minus a penalty on every token [T]: -> [T].

    With penalty = β (log π − log π_ref), that is β·k1, a completion's rewards add up to
    r(y) − β log(π(y)/π_ref(y)).
    """
    assert scores.shape == (len(completions),), (scores.shape, len(completions))
    assert completions.lengths.all(), "a completion without tokens has nowhere to put its score"
    rewards = np.zeros(len(completions.values)) if penalty is None else -penalty.astype(np.float64)
    rewards[completions.offsets[1:] - 1] += scores
    return rewards.astype(np.float32)


def gae(rewards: Floats, values: Floats, completions: Ragged, *, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16): [T], [T] -> [T].

    A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t; V and A are 0 after a completion's last token.
    V_t is the value of the state in which token t is about to be chosen. A + V are the returns that a critic
    learns.
    """
    assert rewards.shape == values.shape == completions.values.shape, (rewards.shape, values.shape)
    lengths, last = completions.lengths, completions.offsets[1:] - 1
    v = values.astype(np.float64)
    advantages = rewards - v  # already right at each last token
    for back in range(1, int(lengths.max(initial=0))):
        t = last[lengths > back] - back
        advantages[t] += gamma * (v[t + 1] + lam * advantages[t + 1])
    return advantages.astype(np.float32)


def whiten(values: Floats, *, shift_mean: bool = True) -> Floats:
    """Scaled to variance 1 and, with `shift_mean`, shifted to mean 0: [T] -> [T]."""
    centre = float(values.mean(dtype=np.float64))
    whitened = (values.astype(np.float64) - centre) / math.sqrt(_std(values) ** 2 + 1e-8)
    return (whitened if shift_mean else whitened + centre).astype(np.float32)


def spread(per_completion: Floats, completions: Ragged) -> Floats:
    """Each completion's number given to all its tokens: [N] -> [T]."""
    result: Floats = np.repeat(per_completion, completions.lengths)
    return result


def _std(values: NDArray[Any]) -> float:
    return float(values.std(ddof=1, dtype=np.float64)) if len(values) > 1 else 0.0


def _owner(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the consecutive blocks each element is in: [2, 1] -> [0, 0, 1]."""
    return np.repeat(np.arange(len(sizes)), sizes)
