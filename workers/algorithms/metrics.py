"""What is known of sampled completions before anything is learned from them, under TRL's names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.algorithms.advantages import completion_sums, group_mean_std
from workers.types import SATURATED, Evidence, Experience, Finish, Floats, Metrics, Ragged

MAX_PERIOD, MIN_REPEATS = 8, 3


def rollout_metrics(evidence: Evidence) -> Metrics:
    """Facts of one step's samples.

    A completion is clipped when it did not end by itself. A figure that does not exist is left out: the
    spread within groups when each has one completion, `objective/kl` without a reference, lengths of
    terminated completions when all are clipped, rewards where nothing scores.
    """
    experience, rewards = evidence.experience, evidence.rewards
    assert experience.logprobs is not None
    metrics = {
        "objective/entropy": -float(completion_sums(experience.logprobs, experience.completions).mean()),
        "num_tokens": float(num_tokens(experience)),
    }
    if rewards is not None:
        metrics["reward"] = metrics["objective/scores"] = float(rewards.mean(dtype=np.float64))
    sizes = np.diff(experience.group_offsets)
    if rewards is not None and sizes.max() > 1:
        _, stds = group_mean_std(rewards, experience.group_offsets)
        metrics["reward_std"] = float(stds[sizes > 1].mean())
        metrics["frac_reward_zero_std"] = float((stds[sizes > 1] == 0).mean())
    kl = sequence_kl(evidence)
    if kl is not None:
        metrics["objective/kl"] = float(kl.mean())
        metrics["drift/saturated"] = float((np.abs(kl) > SATURATED).mean())
    return metrics | _completion_metrics(experience)


def sequence_kl(evidence: Evidence) -> NDArray[np.float64] | None:
    """log π(y) − log π_ref(y) of each completion [N], on average KL(π‖π_ref) in nats. None: no reference."""
    if evidence.reference_logprobs is None:
        return None
    return completion_sums(evidence.old_logprobs - evidence.reference_logprobs, evidence.experience.completions)


def penalty_metrics(rewards: Floats, kl: NDArray[np.float64] | None, beta: float) -> Metrics:
    """What a KL in the reward costs, and what is left of the rewards [N]. Nothing when there is none."""
    if kl is None or not beta:
        return {}
    cost = -beta * float(kl.mean())
    return {"objective/non_score_reward": cost, "objective/rlhf_reward": float(rewards.mean(dtype=np.float64)) + cost}


def num_tokens(experience: Experience) -> int:
    """Tokens of all completions, each counted with its prompt."""
    prompts = experience.prompt_tokens.lengths[experience.group_of]
    return int(prompts.sum() + experience.completions.lengths.sum())


def _completion_metrics(experience: Experience) -> Metrics:
    lengths, terminated = experience.completions.lengths, experience.finish == Finish.stop
    metrics = {
        "completions/clipped_ratio": float(1 - terminated.mean()),
        "completions/repeated_tail": float(repeated_tails(experience.completions, terminated).mean()),
    }
    for name, some in {"length": lengths, "terminated_length": lengths[terminated]}.items():
        if len(some):
            metrics[f"completions/mean_{name}"] = float(some.mean())
            metrics[f"completions/min_{name}"] = float(some.min())
            metrics[f"completions/max_{name}"] = float(some.max())
    return metrics


def repeated_tails(completions: Ragged, terminated: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each completion [N] the share of its tokens in a tail of equal blocks of up to 8 tokens, at least three times.

    `a b c b c b c` ends in three times `b c`: 6 of 7. A tail of period p goes back as far as each token equals the one
    p before it. The end-of-sequence token of a `terminated` completion is no part of either. Padding has period 1.
    """
    lengths = completions.lengths - terminated
    ends = completions.offsets[:-1] + lengths  # of each completion, without its end-of-sequence token
    tokens, places = completions.values, np.arange(len(completions.values))
    begins = np.repeat(completions.offsets[:-1], completions.lengths)
    longest = np.zeros(len(lengths), np.int64)
    for period in range(1, MAX_PERIOD + 1):
        equal = np.zeros(len(tokens), bool)
        equal[period:] = tokens[period:] == tokens[:-period]
        equal &= places - begins >= period
        broken = np.maximum.accumulate(np.where(equal, -1, places))  # the newest place where the tail is broken
        last = np.maximum(ends - 1, 0)
        run = np.where(lengths > 0, last - broken[last] if len(tokens) else 0, 0)
        longest = np.maximum(longest, np.where(run >= (MIN_REPEATS - 1) * period, run + period, 0))
    shares: NDArray[np.float64] = longest / np.maximum(lengths, 1)
    return shares
