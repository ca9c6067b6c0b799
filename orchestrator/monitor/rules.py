"""The alarms' rules: pure functions of the rows of metrics that a run has written so far.

    rows ──► History ──► rule(history, its settings) ──► Sight (what it saw), or None

Every rule judges a window of rows, never one point: a trend by Mann–Kendall and Theil–Sen, a difference by Welch's t, a
level by its median (`trends.py`). A rule whose figures a run does not have is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.config import alarms as settings
from orchestrator.monitor.figures import number
from orchestrator.monitor.gate import guarded
from orchestrator.monitor.history import History
from orchestrator.monitor.trends import CERTAIN, difference, trend

STALE_DIFFERENCE = 0.3  # nats per token and version that an engine is behind


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a rule saw. Example: `Finding(saw="kl 31 nats (median of 5 steps), budget 25", rows=5)`."""

    saw: str
    rows: int  # how far back it looked: trouble is older than the newest row by up to this many


def chosen_falling(history: History, rule: settings.ChosenFalling) -> Finding | None:
    """Over the window logps/chosen falls for certain (z ≤ −3) by `min_fall` of its mean size in the window's first
    third, and the loss falls, too (Theil–Sen change < 0, z ≤ −1.64); where there is a reference, the chosen
    completions have become less likely than under it (rewards/chosen < 0, mean of the last third)."""
    n = history.window(rule)
    chosen, loss = history.last("logps/chosen", n), history.last("loss", n)
    if chosen is None or loss is None:
        return None
    third = max(1, n // 3)
    size, fall, of_loss = abs(float(chosen[:third].mean())), trend(chosen), trend(loss)
    reward = history.last("rewards/chosen", third)
    if not fall.falls or -fall.change < rule.min_fall * size or of_loss.z > -1.64 or of_loss.change >= 0:
        return None
    if reward is not None and reward.mean() >= 0:
        return None
    return Finding(
        saw=f"logps/chosen fell by {number(-fall.change)} to {number(float(chosen[-third:].mean()))} over {n} "
        f"{history.turns} (z {fall.z:.1f}) while the loss fell by {number(-of_loss.change)}",
        rows=n,
    )


def kl_budget(history: History, rule: settings.KlBudget) -> Finding | None:
    """The median of the window of objective/kl is over `max_kl`: more than half of its rows are."""
    n = history.window(rule)
    kl = history.last("objective/kl", n)
    if kl is None or np.median(kl) <= rule.max_kl:
        return None
    return Finding(
        saw=f"KL {number(float(np.median(kl)))} nats (median of {n} {history.turns}), budget {rule.max_kl:g}", rows=n
    )


def length_drift(history: History, rule: settings.LengthDrift) -> Finding | None:
    """The median length of the window over the mean of the run's first rows is beyond `max_ratio` or below its inverse,
    and their difference is certain (Welch's |t| ≥ 3)."""
    n, name = history.window(rule), "completions/mean_length"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    ratio = float(np.median(now) / max(before.mean(), 1e-9))
    if 1 / rule.max_ratio <= ratio <= rule.max_ratio or abs(difference(before, now)) < CERTAIN:
        return None
    saw = f"mean length {number(float(np.median(now)))} tokens, {ratio:.2g} times the {number(float(before.mean()))}"
    return Finding(saw=f"{saw} of the first {len(before)} {history.turns}", rows=n)


def pair_length_gap(history: History, rule: settings.PairLengthGap) -> Finding | None:
    """(chosen − rejected) / mean length of both, of each row: its mean over the window is beyond ±`max_gap`, and at
    least three of its standard errors (deviation / √n) from 0."""
    n = history.window(rule)
    chosen, rejected = history.last("pairs/chosen_length", n), history.last("pairs/rejected_length", n)
    if chosen is None or rejected is None:
        return None
    gaps = 2 * (chosen - rejected) / np.maximum(chosen + rejected, 1e-9)
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(n)
    if abs(mean) <= rule.max_gap or abs(mean) < CERTAIN * error:
        return None
    lengths = float(chosen.mean()), float(rejected.mean())
    return Finding(saw=f"{_longer(*lengths, gap=mean)} tokens, mean of {n} {history.turns})", rows=n)


def _longer(chosen: float, rejected: float, *, gap: float) -> str:
    """The two mean lengths, and by what share of the rejected one they differ; where their order is not that of most
    rows, the gap itself."""
    told = f"({chosen:.1f} against {rejected:.1f}"
    if (chosen - rejected) * gap <= 0 or rejected <= 0:
        return f"lengths of chosen and rejected completions differ by {gap:+.0%} of their mean, step by step {told}"
    which = "longer" if gap > 0 else "shorter"
    return f"chosen completions are {abs(chosen / rejected - 1):.0%} {which} than rejected ones {told}"


def reward_hacking(history: History, rule: settings.RewardHacking) -> Finding | None:
    """`reward` rises over the window for certain (z ≥ 3), and one of these does not go with it:

    - rewards/NAME/mean of a scorer falls (z ≤ −3) by `min_fall` times its standard deviation over completions;
    - eval/reward, or eval/rewards/NAME/mean, is below its best evaluation by more than three standard errors of their
      difference, √(s²/n + s²/n) for n held-out prompts, with `reward` since then above what it was.
    """
    n = history.window(rule)
    reward = history.last("reward", n)
    if reward is None:
        return None
    rise = trend(reward)
    if rise.rises:
        for name in history.names():
            values, deviations = history.last(name, n), history.last(name.removesuffix("/mean") + "/std", n)
            if not _is_scorer(name) or values is None or deviations is None:
                continue
            fall = trend(values)
            if fall.falls and -fall.change >= rule.min_fall * float(deviations.mean()):
                saw = f"reward rose by {number(rise.change)} while {name} fell by {number(-fall.change)}"
                return Finding(saw=f"{saw} over {n} {history.turns} (z {rise.z:.1f} and {fall.z:.1f})", rows=n)
    return _held_out_fall(history, n)


def _is_scorer(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _held_out_fall(history: History, n: int) -> Finding | None:
    sizes = history.last("eval/prompts", 1)
    for name in history.names():
        is_scorer = name.startswith("eval/rewards/") and name.endswith("/mean")
        if sizes is None or not (is_scorer or name == "eval/reward"):
            continue
        spread = name.removesuffix("mean") + "std" if is_scorer else "eval/reward_std"
        values, stds, steps = history.values(name), history.values(spread), history.steps(name)
        if len(values) < 3 or len(stds) != len(values):
            continue
        best = int(values.argmax())
        error = math.sqrt((stds[best] ** 2 + stds[-1] ** 2) / sizes[0])
        if values[best] - values[-1] <= CERTAIN * error:
            continue
        told = np.asarray(history.steps("reward"))
        reward = history.values("reward")
        count = max(3, n // 4)
        before, after = reward[told <= steps[best]][-count:], reward[told <= steps[-1]][-count:]
        if min(len(before), len(after)) >= 2 and difference(before, after) >= CERTAIN:
            saw = f"{name} fell from {number(float(values[best]))} at step {steps[best]} to {number(float(values[-1]))}"
            risen = f"reward rose from {number(float(before.mean()))} to {number(float(after.mean()))}"
            return Finding(saw=f"{saw} while {risen}", rows=int((told > steps[best]).sum()))
    return None


def repetition(history: History, rule: settings.Repetition) -> Finding | None:
    """completions/repeated_tail, the share of tokens in a tail that repeats itself, is over `max_share` (median of the
    window), and certainly above the run's first rows (Welch's t ≥ 3): a base model that repeats itself was known."""
    n, name = history.window(rule), "completions/repeated_tail"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    if np.median(now) <= rule.max_share or difference(before, now) < CERTAIN:
        return None
    saw = f"{np.median(now):.0%} of the tokens are a tail that repeats itself"
    return Finding(saw=f"{saw}, {before.mean():.0%} in the first {history.turns}", rows=n)


def entropy_collapse(history: History, rule: settings.EntropyCollapse) -> Finding | None:
    """The median entropy of the window is below `min_share` of the mean of the first rows, and `reward` is not above
    its first rows (t < 3), or below its best (t ≤ −3): an entropy that is low because the task is learned is no
    alarm."""
    n, name = history.window(rule), "entropy"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n or not len(history.values("reward")):
        return None
    share = float(np.median(now) / max(before.mean(), 1e-12))
    if share >= rule.min_share or history.improved("reward", n):
        return None
    saw = f"entropy {number(float(np.median(now)))} nats per token, {share:.0%} of the first {history.turns}"
    return Finding(saw=f"{saw}; reward {_from_to(history, 'reward', n)}", rows=n)


def no_signal(history: History, rule: settings.NoSignal) -> Finding | None:
    """The median share of groups with equal rewards is over `max_share`, and `reward` has not improved since the first
    rows: groups that are equal because the task is learned are no alarm."""
    n, name = history.window(rule), "frac_reward_zero_std"
    now = history.last(name, n)
    if now is None or np.median(now) <= rule.max_share or history.improved("reward", n):
        return None
    saw = f"{np.median(now):.0%} of the groups have equal rewards (median of {n} {history.turns})"
    return Finding(saw=f"{saw}; reward {_from_to(history, 'reward', n)}", rows=n)


def engine_gap(history: History, rule: settings.EngineGap) -> Finding | None:
    """The median of sampling/logp_difference is over `max_difference` × (1 + mean staleness), or over `max_jump` times
    its mean in the first rows and over 0.001 at the same staleness."""
    n, name = history.window(rule), "sampling/logp_difference"
    now, before = history.last(name, n), history.first(name, n)
    if now is None:
        return None
    gap, behind = float(np.median(now)), history.last("staleness/mean", n)
    stale = 0.0 if behind is None else float(behind.mean())
    jumped = stale == 0 and len(history.steps(name)) >= 2 * n and gap > max(1e-3, rule.max_jump * float(before.mean()))
    if gap <= rule.max_difference * (1 + stale) and not jumped:
        return None
    saw = f"log-probabilities differ by {number(gap)} nats per token (median of {n} {history.turns})"
    return Finding(saw=f"{saw}, by {number(float(before.mean()))} in the first {history.turns}", rows=n)


def engine_mismatch(history: History, rule: settings.EngineMismatch) -> Finding | None:
    """The newest sampling/logp_difference is over `max_difference`, or where the engine is behind over (1 + mean
    staleness) times 0.3, if that is more. Nothing but rounding may differ when both hold the same weights."""
    now, behind = history.last("sampling/logp_difference", 1), history.last("staleness/mean", 1)
    if now is None or rule.max_difference is None:
        return None
    stale = 0.0 if behind is None else float(behind[0])
    limit = max(rule.max_difference, STALE_DIFFERENCE * (1 + stale)) if stale else rule.max_difference
    if now[0] <= limit:
        return None
    saw = f"engine and learner differ by {number(float(now[0]))} nats per token on the same tokens"
    return Finding(saw=f"{saw}, {limit:g} at most is rounding", rows=1)


def gradient_explosion(history: History, rule: settings.GradientExplosion) -> Finding | None:
    """The median of grad_norm, before clipping, is over `max_norm` and over `max_jump` times that of the first rows:
    a loss may be large from the start on."""
    n, name = history.window(rule), "grad_norm"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    norm, was = float(np.median(now)), float(np.median(before))
    if norm <= max(rule.max_norm, rule.max_jump * was):
        return None
    return Finding(
        saw=f"gradient norm {number(norm)} (median of {n} {history.turns}), {number(was)} in the first {history.turns}",
        rows=n,
    )


def staleness(history: History, rule: settings.Staleness) -> Finding | None:
    """The mean of staleness/mean over the window is over `max_mean`."""
    n = history.window(rule)
    versions = history.last("staleness/mean", n)
    if versions is None or versions.mean() <= rule.max_mean:
        return None
    return Finding(saw=f"completions are {versions.mean():.1f} versions old (mean of {n} {history.turns})", rows=n)


def reference_saturation(history: History, rule: settings.ReferenceSaturation) -> Finding | None:
    """The median of drift/saturated, measured on a step's own samples before it learns, is over `max_share`, and the
    reference was kept in the newest row. Whether to refresh it is the anchor's decision (`reference.refresh`), which
    `round.json` and the ledger have."""
    n = history.window(rule)
    saturated, refreshed = history.last("drift/saturated", n), history.last("ref/refreshed", 1)
    if saturated is None or refreshed is None or not history.steps("pairs/chosen_length"):
        return None
    if refreshed[0] or np.median(saturated) <= rule.max_share:
        return None
    saw = f"{np.median(saturated):.0%} of the completions are beyond ±10 nats of the reference"
    return Finding(saw=f"{saw} (median of {n} {history.turns})", rows=n)


def safety_gate(history: History, rule: settings.SafetyGate) -> Finding | None:
    """In the newest evaluation eval/refusal is more than `max_refusal_fall` below row 0, the model as it was given, or
    eval/over_refusal more than `max_over_refusal_rise` above it, or a figure of `metrics` more than `max_fall` below.
    One evaluation is enough: a gate is shut when in doubt."""
    lost = [str(figure) for figure in guarded(history, rule) if figure.lost]
    return Finding(saw="; ".join(lost), rows=1) if lost else None


def _from_to(history: History, name: str, count: int) -> str:
    values = history.values(name)
    return f"{number(float(values[:count].mean()))} at first, {number(float(values[-count:].mean()))} now"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule with its words for people."""

    see: Callable[[History, Any], Finding | None]
    why: str
    fix: str


RULES: Mapping[str, Rule] = {
    "chosen_falling": Rule(
        see=chosen_falling,
        why="the margin grows by pushing the rejected answer down faster than the chosen one; what gains is neither",
        fix="lower algorithm.learning_rate, raise algorithm.beta, add algorithm.sft_weight or dpop_lambda, or leave "
        "out pairs that hardly differ (algorithm.min_margin)",
    ),
    "kl_budget": Rule(
        see=kl_budget,
        why="far from the reference a reward or its model is no longer what it was made for",
        fix="raise algorithm.beta (kl_coef), lower algorithm.learning_rate, stop earlier, or raise "
        "alarms.kl_budget.max_kl if the held-out figures are still right",
    ),
    "length_drift": Rule(
        see=length_drift,
        why="length is the easiest thing to learn from a reward that favours it, and costs memory and time",
        fix="look at samples/; take length out of the reward (algorithm.length_alpha, overlong punishment), or "
        "raise alarms.length_drift.max_ratio where longer answers are wanted",
    ),
    "pair_length_gap": Rule(
        see=pair_length_gap,
        why="pairs that differ in length teach length, whatever else they say",
        fix="balance the pairs, or use algorithm.length_alpha, ld_alpha or loss_type sigmoid_norm",
    ),
    "reward_hacking": Rule(
        see=reward_hacking,
        why="what is optimised and what is wanted have parted ways",
        fix="compare samples/ before and after; mend the reward, raise the KL coefficient, or stop earlier",
    ),
    "repetition": Rule(
        see=repetition,
        why="a reward that counts can be filled by saying the same again",
        fix="look at samples/; punish repetition in the reward, raise the KL coefficient, lower max_completion_length",
    ),
    "entropy_collapse": Rule(
        see=entropy_collapse,
        why="equal answers have equal rewards: nothing more can be learned",
        fix="lower algorithm.learning_rate, raise algorithm.epsilon_high or the KL coefficient",
    ),
    "no_signal": Rule(
        see=no_signal,
        why="a group whose rewards are equal has no gradient: too easy, too hard, or a reward that is broken",
        fix="look at samples/ and the reward; choose prompts of another difficulty, more num_generations, or "
        "dynamic_sampling",
    ),
    "engine_gap": Rule(
        see=engine_gap,
        why="what is sampled is not what is learned: weights that did not arrive, or other arithmetic",
        fix="compare dtypes and versions of both, look for a publication that failed, and see "
        "algorithm.vllm_importance_sampling_correction",
    ),
    "engine_mismatch": Rule(
        see=engine_mismatch,
        why="the completions are not from the distribution whose probabilities are learned from: every ratio is wrong",
        fix="do not use this model: look for another dtype, context length or RoPE in the engine, and report the "
        "model's family; alarms: {engine_mismatch: {action: warn}} goes on all the same",
    ),
    "gradient_explosion": Rule(
        see=gradient_explosion,
        why="every update is as long as clipping lets it be, and leads where a few wild samples point",
        fix="lower algorithm.learning_rate, lengthen warmup_steps, look at the rewards and advantages of the step in "
        "which it began, or lower algorithm.max_grad_norm",
    ),
    "staleness": Rule(
        see=staleness,
        why="old completions are off-policy, and clipping throws their signal away",
        fix="lower max_staleness, or give the rollout engines more of the machine",
    ),
    "reference_saturation": Rule(
        see=reference_saturation,
        why="beyond 10 nats σ is flat: such pairs teach nothing and hide what the others teach",
        fix="reference.refresh: when_drifted or every_round, a smaller learning rate, or a larger algorithm.beta",
    ),
    "safety_gate": Rule(
        see=safety_gate,
        why="what the run gained is paid for with what it must not lose; its model is not written",
        fix="take an earlier checkpoint, add prompts of that kind, raise the KL coefficient",
    ),
}  # fmt: skip
