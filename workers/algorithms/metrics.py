"""Metrics of sampled completions, computed before training on them, under TRL's names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.algorithms.advantages import completion_sums, group_mean_std
from workers.repetition import repeated_tails
from workers.types import SATURATED, Experience, Finish, Floats, Metrics, ScoredBatch


def rollout_metrics(scored: ScoredBatch) -> Metrics:
    """Return the metrics of one step's samples.

    A completion is clipped if it has no end of sequence. A metric that is undefined is left out: the spread of rewards
    within groups of one completion, `objective/kl` without a reference, lengths of terminated completions if all are
    clipped, rewards if there is no scorer.
    """
    experience, rewards = scored.experience, scored.rewards
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
    kl = sequence_kl(scored)
    if kl is not None:
        metrics["objective/kl"] = float(kl.mean())
        metrics["drift/saturated"] = float((np.abs(kl) > SATURATED).mean())
    return metrics | _completion_metrics(experience)


def sequence_kl(scored: ScoredBatch) -> NDArray[np.float64] | None:
    """Return log π(y) − log π_ref(y) of each completion, [N]: its mean estimates KL(π‖π_ref) in nats. None: there is no
    reference."""
    if scored.reference_logprobs is None:
        return None
    return completion_sums(scored.old_logprobs - scored.reference_logprobs, scored.experience.completions)


def penalty_metrics(rewards: Floats, kl: NDArray[np.float64] | None, beta: float) -> Metrics:
    """Return the mean KL penalty and the mean penalised reward, given rewards [N]. Empty without a penalty."""
    if kl is None or not beta:
        return {}
    cost = -beta * float(kl.mean())
    return {"objective/non_score_reward": cost, "objective/rlhf_reward": float(rewards.mean(dtype=np.float64)) + cost}


def num_tokens(experience: Experience) -> int:
    """Count the tokens of all completions, each with its prompt."""
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
