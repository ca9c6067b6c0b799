"""Metrics of sampled completions, computed before training on them, under TRL's names."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.algorithms.advantages import completion_sums, group_mean_std
from workers.repetition import repeated_tails
from workers.stats import Metrics
from workers.types import SATURATED, Experience, Finish, Floats, ScoredBatch


def rollout_metrics(scored: ScoredBatch) -> Metrics:
    """Return the metrics of one step's samples.

    Means over completions come with their standard error over prompts, as NAME_error. A completion is clipped if it has
    no end of sequence. A metric that is undefined is left out: the spread of rewards within groups of one completion,
    `objective/kl` without a reference, lengths of terminated completions if all are clipped, rewards if there is no
    scorer.
    """
    experience, rewards = scored.experience, scored.rewards
    assert experience.logprobs is not None
    of_prompts = experience.group_of
    surprisal = -completion_sums(experience.logprobs, experience.completions)
    metrics = {
        "objective/entropy": float(surprisal.mean()),
        **error_of("objective/entropy", surprisal, of_prompts),
        "num_tokens": float(num_tokens(experience)),
    }
    if rewards is not None:
        given_rewards = rewards if scored.raw_rewards is None else scored.raw_rewards
        metrics["reward"] = metrics["objective/scores"] = float(given_rewards.mean(dtype=np.float64))
        metrics |= error_of("reward", given_rewards, of_prompts)
    for name, values in (scored.by_scorer or {}).items():
        given = np.isfinite(values)
        metrics |= error_of(f"rewards/{name}/mean", values[given], of_prompts[given])
    if (correlation := scorer_correlation(scored)) is not None:
        metrics["objective/scorer_correlation"] = correlation
    sizes = np.diff(experience.group_offsets)
    if rewards is not None and sizes.max() > 1:
        _, stds = group_mean_std(rewards, experience.group_offsets)
        metrics["reward_std"] = float(stds[sizes > 1].mean())
        metrics |= share_metrics("frac_reward_zero_std", stds[sizes > 1] == 0)
    kl = sequence_kl(scored)
    if kl is not None:
        metrics |= {"objective/kl": float(kl.mean()), **error_of("objective/kl", kl, of_prompts)}
        metrics["drift/saturated"] = float((np.abs(kl) > SATURATED).mean())
    return metrics | _completion_metrics(experience)


def scorer_correlation(scored: ScoredBatch) -> float | None:
    """Return the correlation of two scorers within groups, the mean over all pairs of scorers whose weight is not 0.

    The mean of its group is taken off each score. None: there are no two scorers whose scores differ within groups.
    """
    group_of = scored.experience.group_of
    voters = [values for name, values in (scored.by_scorer or {}).items() if scored.weights.get(name, 1.0)]
    found = []
    for one, other in combinations(voters, 2):
        given = np.flatnonzero(np.isfinite(one) & np.isfinite(other))
        x, y = (_within_groups(values[given], group_of[given]) for values in (one, other))
        if scale := math.sqrt(float((x**2).sum()) * float((y**2).sum())):
            found.append(float((x * y).sum()) / scale)
    return sum(found) / len(found) if found else None


def _within_groups(values: Floats, group_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Take the mean of its group off each value [n]; 0 if the rest is rounding."""
    means = np.bincount(group_of, weights=values) / np.maximum(np.bincount(group_of), 1)
    rest = values - means[group_of]
    return np.where(np.abs(rest) > 1e-6 * np.abs(values), rest, 0)


def sequence_kl(scored: ScoredBatch) -> NDArray[np.float64] | None:
    """Return log π(y) − log π_ref(y) of each completion, [N]: its mean estimates KL(π‖π_ref) in nats. None: there is no
    reference."""
    if scored.reference_logprobs is None:
        return None
    return completion_sums(scored.old_logprobs - scored.reference_logprobs, scored.experience.completions)


def error_of(name: str, values: NDArray[Any], group_of: NDArray[np.int64]) -> Metrics:
    """Return the standard error of the mean of `values` [n], as `name`_error. Empty for fewer than two values.

    Completions of a prompt are alike, so that the error is over G groups of them, `group_of` [n]:
    √(G/(G − 1) Σ_g (Σ_{i in g} (v_i − mean))²) / n, the cluster-robust error. With one group it is over its values.
    """
    if len(values) < 2:
        return {}
    deviations = values.astype(np.float64) - values.mean(dtype=np.float64)
    sums = np.bincount(group_of, weights=deviations)[np.unique(group_of)]
    if len(sums) < 2:
        sums = deviations
    return {f"{name}_error": math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / len(values)}


def share_metrics(name: str, values: NDArray[np.bool_]) -> Metrics:
    """Return the share of true `values` [n] and its standard error √(p(1 − p)/n), as `name` and `name`_error.

    The p and n of the error are those of Agresti and Coull (1998), with two values of each kind added, so that a share
    of 0 or 1 is not taken as certain however few values it is of.
    """
    n = len(values) + 4
    p = (float(values.sum()) + 2) / n
    return {name: float(values.mean()), f"{name}_error": math.sqrt(p * (1 - p) / n)}


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
    tails = repeated_tails(experience.completions, terminated)
    metrics = {
        "completions/clipped_ratio": float(1 - terminated.mean()),
        "completions/repeated_tail": float(tails.mean()),
        **error_of("completions/repeated_tail", tails, experience.group_of),
        **error_of("completions/mean_length", lengths, experience.group_of),
    }
    for name, some in {"length": lengths, "terminated_length": lengths[terminated]}.items():
        if len(some):
            metrics[f"completions/mean_{name}"] = float(some.mean())
            metrics[f"completions/min_{name}"] = float(some.min())
            metrics[f"completions/max_{name}"] = float(some.max())
    return metrics
