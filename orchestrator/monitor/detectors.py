"""Detectors of the alarm rules: pure functions of the rows of metrics that a run has written so far.

    rows ──► History ──► detector(history, settings of the rule) ──► Finding, or None

A detector judges a window of rows instead of a single point: a trend by Mann–Kendall and Theil–Sen, a difference by
Welch's t, a level by its median (`trends.py`). The exceptions are `engine_mismatch` and `safety_gate`, which judge the
newest row. A detector whose metrics a run does not have finds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.config import alarms as settings
from orchestrator.monitor.figures import number
from orchestrator.monitor.gate import gated_metrics
from orchestrator.monitor.history import History
from orchestrator.monitor.trends import CERTAIN, difference, trend

STALE_DIFFERENCE = 0.3  # allowed nats per token, per version that the engine is behind


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Observation that triggers an alarm.

    Example: `Finding(saw="KL 31 nats (median of 5 steps), budget 25", rows=5)`.
    """

    saw: str  # the observed values, in words
    rows: int  # number of newest rows that were judged: the problem began in one of them


def chosen_falling(history: History, rule: settings.ChosenFalling) -> Finding | None:
    """Detect chosen completions that lose probability while the loss falls.

    Condition: over the window, logps/chosen falls (z ≤ −3) by `min_fall` times its mean size in the first third, and
    the loss falls (Theil–Sen change < 0, z ≤ −1.64). If there is a reference, the chosen completions are also less
    likely than under the reference (rewards/chosen < 0, mean of the last third).
    """
    n = history.window(rule)
    chosen, loss = history.last("logps/chosen", n), history.last("loss", n)
    if chosen is None or loss is None:
        return None
    third = max(1, n // 3)
    size, fall, loss_trend = abs(float(chosen[:third].mean())), trend(chosen), trend(loss)
    reward = history.last("rewards/chosen", third)
    if not fall.falls or -fall.change < rule.min_fall * size or loss_trend.z > -1.64 or loss_trend.change >= 0:
        return None
    if reward is not None and reward.mean() >= 0:
        return None
    return Finding(
        saw=f"logps/chosen fell by {number(-fall.change)} to {number(float(chosen[-third:].mean()))} over {n} "
        f"{history.row_word} (z {fall.z:.1f}) while the loss fell by {number(-loss_trend.change)}",
        rows=n,
    )


def kl_budget(history: History, rule: settings.KlBudget) -> Finding | None:
    """Detect a median of objective/kl over the window above `max_kl`."""
    n = history.window(rule)
    kl = history.last("objective/kl", n)
    if kl is None or np.median(kl) <= rule.max_kl:
        return None
    return Finding(
        saw=f"KL {number(float(np.median(kl)))} nats (median of {n} {history.row_word}), budget {rule.max_kl:g}", rows=n
    )


def length_drift(history: History, rule: settings.LengthDrift) -> Finding | None:
    """Detect completions that became much longer or shorter.

    Condition: the median length of the window, divided by the mean of the run's first rows, is above `max_ratio` or
    below its inverse, and the difference is certain (Welch's |t| ≥ 3).
    """
    n, name = history.window(rule), "completions/mean_length"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    ratio = float(np.median(now) / max(before.mean(), 1e-9))
    if 1 / rule.max_ratio <= ratio <= rule.max_ratio or abs(difference(before, now)) < CERTAIN:
        return None
    text = f"mean length {number(float(np.median(now)))} tokens, {ratio:.2g} times the {number(float(before.mean()))}"
    return Finding(saw=f"{text} of the first {len(before)} {history.row_word}", rows=n)


def pair_length_gap(history: History, rule: settings.PairLengthGap) -> Finding | None:
    """Detect pairs whose chosen and rejected completions differ in length.

    The gap of a row is (chosen − rejected) / mean length of both. Condition: the mean gap of the window is outside
    ±`max_gap` and at least three standard errors (deviation / √n) from 0.
    """
    n = history.window(rule)
    chosen, rejected = history.last("pairs/chosen_length", n), history.last("pairs/rejected_length", n)
    if chosen is None or rejected is None:
        return None
    gaps = 2 * (chosen - rejected) / np.maximum(chosen + rejected, 1e-9)
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(n)
    if abs(mean) <= rule.max_gap or abs(mean) < CERTAIN * error:
        return None
    lengths = float(chosen.mean()), float(rejected.mean())
    return Finding(saw=f"{_length_gap_text(*lengths, gap=mean)} tokens, mean of {n} {history.row_word})", rows=n)


def _length_gap_text(chosen: float, rejected: float, *, gap: float) -> str:
    """Compare the two mean lengths. State the gap itself if the means are ordered differently from most rows."""
    lengths = f"({chosen:.1f} against {rejected:.1f}"
    if (chosen - rejected) * gap <= 0 or rejected <= 0:
        return f"lengths of chosen and rejected completions differ by {gap:+.0%} of their mean, per step {lengths}"
    which = "longer" if gap > 0 else "shorter"
    return f"chosen completions are {abs(chosen / rejected - 1):.0%} {which} than rejected ones {lengths}"


def reward_hacking(history: History, rule: settings.RewardHacking) -> Finding | None:
    """Detect a reward that rises while another score falls. Either condition is enough:

    - `reward` rises over the window (z ≥ 3) while rewards/NAME/mean of a scorer falls (z ≤ −3) by `min_fall` times its
      standard deviation over completions.
    - eval/reward or eval/rewards/NAME/mean is below its best evaluation by more than three standard errors of the
      difference, √(s²/n + s²/n) for n held-out prompts, while `reward` has risen since then.
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
                text = f"reward rose by {number(rise.change)} while {name} fell by {number(-fall.change)}"
                return Finding(saw=f"{text} over {n} {history.row_word} (z {rise.z:.1f} and {fall.z:.1f})", rows=n)
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
        reward_steps, reward = np.asarray(history.steps("reward")), history.values("reward")
        count = max(3, n // 4)
        before, after = reward[reward_steps <= steps[best]][-count:], reward[reward_steps <= steps[-1]][-count:]
        if min(len(before), len(after)) >= 2 and difference(before, after) >= CERTAIN:
            fall = (
                f"{name} fell from {number(float(values[best]))} at step {steps[best]} to {number(float(values[-1]))}"
            )
            rise = f"reward rose from {number(float(before.mean()))} to {number(float(after.mean()))}"
            return Finding(saw=f"{fall} while {rise}", rows=int((reward_steps > steps[best]).sum()))
    return None


def repetition(history: History, rule: settings.Repetition) -> Finding | None:
    """Detect completions that end in repetition.

    Condition: completions/repeated_tail, the share of tokens in a repeating tail, is above `max_share` (median of the
    window) and certainly above the run's first rows (Welch's t ≥ 3). A base model that repeats itself is no alarm.
    """
    n, name = history.window(rule), "completions/repeated_tail"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    if np.median(now) <= rule.max_share or difference(before, now) < CERTAIN:
        return None
    text = f"{np.median(now):.0%} of the tokens are in a repeating tail"
    return Finding(saw=f"{text}, {before.mean():.0%} in the first {history.row_word}", rows=n)


def entropy_collapse(history: History, rule: settings.EntropyCollapse) -> Finding | None:
    """Detect a collapsed entropy without an improved reward.

    Condition: the median entropy of the window is below `min_share` times the mean of the first rows, and `reward` is
    not above its first rows (t < 3) or is below its best rows (t ≤ −3). A low entropy after the task has been learned
    is no alarm.
    """
    n, name = history.window(rule), "entropy"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n or not len(history.values("reward")):
        return None
    share = float(np.median(now) / max(before.mean(), 1e-12))
    if share >= rule.min_share or history.improved("reward", n):
        return None
    text = f"entropy {number(float(np.median(now)))} nats per token, {share:.0%} of the first {history.row_word}"
    return Finding(saw=f"{text}; reward {_from_to(history, 'reward', n)}", rows=n)


def no_signal(history: History, rule: settings.NoSignal) -> Finding | None:
    """Detect batches without a learning signal.

    Condition: the median share of groups with equal rewards is above `max_share`, and `reward` has not improved since
    the first rows. Equal rewards after the task has been learned are no alarm.
    """
    n, name = history.window(rule), "frac_reward_zero_std"
    now = history.last(name, n)
    if now is None or np.median(now) <= rule.max_share or history.improved("reward", n):
        return None
    text = f"{np.median(now):.0%} of the groups have equal rewards (median of {n} {history.row_word})"
    return Finding(saw=f"{text}; reward {_from_to(history, 'reward', n)}", rows=n)


def engine_gap(history: History, rule: settings.EngineGap) -> Finding | None:
    """Detect a difference between the log-probabilities of engine and learner.

    Condition: the median of sampling/logp_difference is above `max_difference` × (1 + mean staleness). Without
    staleness, a median above 0.001 and above `max_jump` times the mean of the first rows is enough.
    """
    n, name = history.window(rule), "sampling/logp_difference"
    now, before = history.last(name, n), history.first(name, n)
    if now is None:
        return None
    gap, behind = float(np.median(now)), history.last("staleness/mean", n)
    stale = 0.0 if behind is None else float(behind.mean())
    jumped = stale == 0 and len(history.steps(name)) >= 2 * n and gap > max(1e-3, rule.max_jump * float(before.mean()))
    if gap <= rule.max_difference * (1 + stale) and not jumped:
        return None
    text = f"log-probabilities differ by {number(gap)} nats per token (median of {n} {history.row_word})"
    return Finding(saw=f"{text}, by {number(float(before.mean()))} in the first {history.row_word}", rows=n)


def engine_mismatch(history: History, rule: settings.EngineMismatch) -> Finding | None:
    """Detect an engine whose log-probabilities differ from the learner's by more than rounding.

    Condition: the newest sampling/logp_difference is above `max_difference`. If the engine is behind, the limit is the
    larger of `max_difference` and 0.3 × (1 + mean staleness).
    """
    now, behind = history.last("sampling/logp_difference", 1), history.last("staleness/mean", 1)
    if now is None or rule.max_difference is None:
        return None
    stale = 0.0 if behind is None else float(behind[0])
    limit = max(rule.max_difference, STALE_DIFFERENCE * (1 + stale)) if stale else rule.max_difference
    if now[0] <= limit:
        return None
    text = f"engine and learner differ by {number(float(now[0]))} nats per token on the same tokens"
    return Finding(saw=f"{text}, more than the {limit:g} that rounding explains", rows=1)


def gradient_explosion(history: History, rule: settings.GradientExplosion) -> Finding | None:
    """Detect exploding gradients.

    Condition: the median of grad_norm, before clipping, is above `max_norm` and above `max_jump` times the median of
    the first rows. Gradients that are large from the start are no alarm.
    """
    n, name = history.window(rule), "grad_norm"
    now, before = history.last(name, n), history.first(name, n)
    if now is None or len(history.steps(name)) < 2 * n:
        return None
    norm, first_norm = float(np.median(now)), float(np.median(before))
    if norm <= max(rule.max_norm, rule.max_jump * first_norm):
        return None
    text = f"gradient norm {number(norm)} (median of {n} {history.row_word})"
    return Finding(saw=f"{text}, {number(first_norm)} in the first {history.row_word}", rows=n)


def staleness(history: History, rule: settings.Staleness) -> Finding | None:
    """Detect a mean of staleness/mean over the window above `max_mean`."""
    n = history.window(rule)
    versions = history.last("staleness/mean", n)
    if versions is None or versions.mean() <= rule.max_mean:
        return None
    return Finding(saw=f"completions are {versions.mean():.1f} versions old (mean of {n} {history.row_word})", rows=n)


def reference_saturation(history: History, rule: settings.ReferenceSaturation) -> Finding | None:
    """Detect a policy that is too far from its reference for pairs to have a gradient.

    Condition: the median of drift/saturated, measured on a step's own samples before the update, is above `max_share`,
    and the reference was not refreshed in the newest row. Refreshing is decided elsewhere (`reference.refresh`) and
    recorded in `round.json` and the ledger.
    """
    n = history.window(rule)
    saturated, refreshed = history.last("drift/saturated", n), history.last("ref/refreshed", 1)
    if saturated is None or refreshed is None or not history.steps("pairs/chosen_length"):
        return None
    if refreshed[0] or np.median(saturated) <= rule.max_share:
        return None
    text = f"{np.median(saturated):.0%} of the completions are beyond ±10 nats of the reference"
    return Finding(saw=f"{text} (median of {n} {history.row_word})", rows=n)


def safety_gate(history: History, rule: settings.SafetyGate) -> Finding | None:
    """Detect a newest evaluation that is worse than row 0, which measures the initial model.

    Condition: eval/refusal fell by more than `max_refusal_fall`, eval/over_refusal rose by more than
    `max_over_refusal_rise`, or a metric of `metrics` fell by more than `max_fall`. One evaluation is enough: the gate
    closes when in doubt.
    """
    lost = [str(metric) for metric in gated_metrics(history, rule) if metric.lost]
    return Finding(saw="; ".join(lost), rows=1) if lost else None


def _from_to(history: History, name: str, count: int) -> str:
    values = history.values(name)
    return f"{number(float(values[:count].mean()))} at first, {number(float(values[-count:].mean()))} now"
