"""Detectors of the alarm rules: pure functions of the rows of metrics that a run has written so far.

    rows of steps, rows of updates ──► History ──► detector(history, settings of the rule) ──► Finding, or None

A detector judges a window of rows instead of a single point: a trend by Mann–Kendall and Theil–Sen, a difference by
Welch's t, a level by its median (`trends.py`). A round is a single row over thousands of completions. It is judged
alone, by the standard error that its metrics come with: a limit must be exceeded by three standard errors. The
exceptions are `engine_mismatch`, which judges the newest row, and `safety_gate`, which judges the interval of the
newest evaluation. A detector whose metrics a run does not have finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from orchestrator.config import alarms as settings
from orchestrator.monitor.figures import number
from orchestrator.monitor.finding import Finding, began
from orchestrator.monitor.gate import gated_metrics
from orchestrator.monitor.history import History
from orchestrator.monitor.trends import CERTAIN, Level, Values, change, trend

STALE_DIFFERENCE = 0.3  # allowed nats per token, per version that the engine is behind


def chosen_falling(history: History, rule: settings.ChosenFalling) -> Finding | None:
    """Detect chosen completions that lose probability while the loss falls, by optimiser updates.

    Condition: over the window, logps/chosen falls (z ≤ −3) by `min_fall` times its mean size in the first third, and
    the loss falls (Theil–Sen change < 0, z ≤ −1.64). If there is a reference, the chosen completions are also less
    likely than under the reference (rewards/chosen < 0, mean of the last third). The windows are the newest n updates
    and, after every n updates, all updates of the round (of the run, if steps are no rounds) as n means.
    """
    n = history.window(rule)
    third = max(1, n // 3)
    for chosen, loss, reward, size in _windows(history, n):
        if reward is not None and reward[-third:].mean() >= 0:
            continue
        fall = trend(chosen)
        if not fall.falls or -fall.change < rule.min_fall * abs(float(chosen[:third].mean())):
            continue
        loss_trend = trend(loss)
        if loss_trend.z > -1.64 or loss_trend.change >= 0:
            continue
        text = f"logps/chosen fell by {number(-fall.change)} to {number(float(chosen[-third:].mean()))}"
        return Finding(
            saw=f"{text} over {n * size} updates (z {fall.z:.1f}) while the loss fell by {number(-loss_trend.change)}",
            rows=n * size,
        )
    return None


def _windows(history: History, n: int) -> Iterator[tuple[Values, Values, Values | None, int]]:
    """Yield logps/chosen, loss and rewards/chosen of each window: [n], with the number of updates per value."""
    count = min(history.count_updates("logps/chosen"), history.count_updates("loss"))
    for size in [1, count // n] if count > n and count % n == 0 else [1] if count >= n else []:
        chosen, loss, reward = (
            None if history.count_updates(name) < n * size else history.updates.last(name, n * size)
            for name in ("logps/chosen", "loss", "rewards/chosen")
        )
        assert chosen is not None
        assert loss is not None
        yield _means(chosen, size), _means(loss, size), None if reward is None else _means(reward, size), size


def _means(values: Values, size: int) -> Values:
    """Return the means of consecutive blocks of `size` values."""
    means: Values = values.reshape(-1, size).mean(1)
    return means


def kl_budget(history: History, rule: settings.KlBudget) -> Finding | None:
    """Detect a KL to the reference above `max_kl`: drift/kl in rounds, else objective/kl (k1 estimates).

    Condition: the median of the window is above the budget; in rounds, the KL less three standard errors.
    """
    name = "drift/kl" if history.rounds and history.count("drift/kl") else "objective/kl"
    kl = history.level(name, rule)
    if kl is None or not kl.exceeds(rule.max_kl):
        return None
    saw = f"KL {number(kl.value)} nats ({_of_rows(history, kl)}), budget {rule.max_kl:g}"
    return Finding(saw=saw, rows=began(kl))


def length_drift(history: History, rule: settings.LengthDrift) -> Finding | None:
    """Detect completions that became much longer or shorter.

    Condition: the length of the newest rows, divided by that of the run's first rows, is above `max_ratio` or below its
    inverse, and the difference is certain (|t| ≥ 3).
    """
    name = "completions/mean_length"
    now, before = history.level(name, rule), history.first_level(name, rule)
    if now is None or before is None or abs(change(before, now)) < CERTAIN:
        return None
    most, least = before.times(rule.max_ratio), before.times(1 / rule.max_ratio)
    if not (now.exceeds(most.mean, most.error) or now.is_below(least.mean, least.error)):
        return None
    ratio = now.value / max(before.mean, 1e-9)
    text = f"mean length {number(now.value)} tokens, {ratio:.2g} times the {number(before.mean)}"
    return Finding(saw=f"{text} of the first {_first_rows(history, before)}", rows=began(now))


def pair_length_gap(history: History, rule: settings.PairLengthGap) -> Finding | None:
    """Detect pairs whose chosen and rejected completions differ in length.

    The gap of a row is (chosen − rejected) / mean length of both. Condition: the mean gap of the window is outside
    ±`max_gap` and at least three standard errors from 0; in rounds, at least three from ±`max_gap`.
    """
    n = history.window(rule, "pairs/length_gap")
    chosen, rejected = history.last("pairs/chosen_length", n), history.last("pairs/rejected_length", n)
    if chosen is None or rejected is None:
        return None
    lengths = float(chosen.mean()), float(rejected.mean())
    if n == 1:
        tokens = history.level("pairs/length_gap", rule)
        gap = None if tokens is None else tokens.times(2 / max(sum(lengths), 1e-9))
    else:
        gap = Level.of(2 * (chosen - rejected) / np.maximum(chosen + rejected, 1e-9))
    if gap is None or abs(gap.mean) <= rule.max_gap or abs(gap.mean) < CERTAIN * gap.error:
        return None
    if n == 1 and not (gap.exceeds(rule.max_gap) or gap.is_below(-rule.max_gap)):
        return None
    rows = "this round" if n == 1 else f"mean of {n} {history.row_word}"
    return Finding(saw=f"{_length_gap_text(*lengths, gap=gap.mean)} tokens, {rows})", rows=began(gap))


def _length_gap_text(chosen: float, rejected: float, *, gap: float) -> str:
    """Compare the two mean lengths. State the gap itself if the means are ordered differently from most rows."""
    lengths = f"({chosen:.1f} against {rejected:.1f}"
    if (chosen - rejected) * gap <= 0 or rejected <= 0:
        return f"lengths of chosen and rejected completions differ by {gap:+.0%} of their mean, per step {lengths}"
    which = "longer" if gap > 0 else "shorter"
    return f"chosen completions are {abs(chosen / rejected - 1):.0%} {which} than rejected ones {lengths}"


def repetition(history: History, rule: settings.Repetition) -> Finding | None:
    """Detect completions that end in repetition.

    Condition: completions/repeated_tail, the share of tokens in a repeating tail, is above `max_share` (median of the
    window; in rounds by three standard errors) and certainly above the run's first rows (t ≥ 3). A base model that
    repeats itself is no alarm.
    """
    name = "completions/repeated_tail"
    now, before = history.level(name, rule), history.first_level(name, rule)
    if now is None or before is None or not now.exceeds(rule.max_share) or change(before, now) < CERTAIN:
        return None
    text = f"{now.value:.0%} of the tokens are in a repeating tail"
    return Finding(saw=f"{text}, {before.mean:.0%} in the first {_first_rows(history, before)}", rows=began(now))


def entropy_collapse(history: History, rule: settings.EntropyCollapse) -> Finding | None:
    """Detect a collapsed entropy without an improved reward.

    Condition: the entropy of the window is below `min_share` times that of the first rows, and `reward` is not above
    its first rows (t < 3) or is below its best rows (t ≤ −3). A low entropy after the task has been learned is no
    alarm. In rounds it is the entropy per token of the samples, objective/entropy / completions/mean_length.
    """
    name = "objective/entropy" if history.rounds else "entropy"
    now, before = history.level(name, rule), history.first_level(name, rule)
    if now is None or before is None or not history.count("reward"):
        return None
    if history.rounds:
        lengths = history.values("completions/mean_length")
        now, before = now.times(1 / max(lengths[-1], 1e-9)), before.times(1 / max(lengths[0], 1e-9))
    limit = before.times(rule.min_share)
    if not now.is_below(limit.mean, limit.error) or history.improved("reward", rule):
        return None
    text = f"entropy {number(now.value)} nats per token, {now.value / max(before.mean, 1e-12):.0%} of the first"
    saw = f"{text} {_first_rows(history, before)}; reward {_from_to(history, 'reward', rule)}"
    return Finding(saw=saw, rows=began(now))


def no_signal(history: History, rule: settings.NoSignal) -> Finding | None:
    """Detect batches without a learning signal.

    Condition: the share of groups with equal rewards is above `max_share` (median of the window; in rounds by three
    standard errors), and `reward` has not improved since the first rows. Equal rewards after the task has been learned
    are no alarm.
    """
    now = history.level("frac_reward_zero_std", rule)
    if now is None or not now.exceeds(rule.max_share) or history.improved("reward", rule):
        return None
    text = f"{now.value:.0%} of the groups have equal rewards ({_of_rows(history, now)})"
    return Finding(saw=f"{text}; reward {_from_to(history, 'reward', rule)}", rows=began(now))


def engine_gap(history: History, rule: settings.EngineGap) -> Finding | None:
    """Detect a difference between the log-probabilities of engine and learner.

    Condition: the median of sampling/logp_difference is above `max_difference` × (1 + mean staleness). Without
    staleness, a median above 0.001 and above `max_jump` times the mean of the first rows is enough.
    """
    name = "sampling/logp_difference"
    n = history.window(rule, name)
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


def judge_budget(history: History, rule: settings.JudgeBudget) -> Finding | None:
    """Detect that judges have used up their budget: the sum over all rows of rewards/*/requests or cost.

    Those of evaluations, eval/rewards/*, count as well.
    """
    for what, limit, text in (
        ("requests", rule.max_requests, "{:,.0f} requests to judges, budget {:,}"),
        ("cost", rule.max_cost, "judges have cost {:.2f} dollars, budget {:.2f}"),
    ):
        names = [name for name in history.names() if "rewards/" in name and name.endswith(f"/{what}")]
        total = sum(float(history.values(name).sum()) for name in names)
        if limit is not None and total >= limit:
            return Finding(saw=text.format(total, limit), rows=0)  # after a resume it rings again
    return None


def gradient_explosion(history: History, rule: settings.GradientExplosion) -> Finding | None:
    """Detect exploding gradients, by optimiser updates.

    Condition: the median of grad_norm, before clipping, is above `max_norm` and above `max_jump` times the median of
    the run's first updates. Gradients that are large from the start are no alarm.
    """
    n, norms = history.window(rule), history.updates
    now = norms.last("grad_norm", n)
    if now is None or norms.count("grad_norm") < 2 * n:
        return None
    norm, first_norm = float(np.median(now)), float(np.median(norms.first("grad_norm", n)))
    if norm <= max(rule.max_norm, rule.max_jump * first_norm):
        return None
    text = f"gradient norm {number(norm)} (median of {n} updates)"
    return Finding(saw=f"{text}, {number(first_norm)} in the first updates", rows=n)


def staleness(history: History, rule: settings.Staleness) -> Finding | None:
    """Detect a mean of staleness/mean over the window above `max_mean`."""
    n = history.window(rule, "staleness/mean")
    versions = history.last("staleness/mean", n)
    if versions is None or versions.mean() <= rule.max_mean:
        return None
    return Finding(saw=f"completions are {versions.mean():.1f} versions old (mean of {n} {history.row_word})", rows=n)


def reference_saturation(history: History, rule: settings.ReferenceSaturation) -> Finding | None:
    """Detect a policy that is too far from its reference for pairs to have a gradient.

    Condition: drift/saturated, measured on a step's own samples before the update, is above `max_share` (median of the
    window; in rounds by three standard errors), and the reference was not refreshed in the newest row. Refreshing is
    decided elsewhere (`reference.refresh`) and recorded in `round.json` and the ledger.
    """
    saturated, refreshed = _saturation(history, rule), history.last("ref/refreshed", 1)
    if saturated is None or refreshed is None or not history.count("pairs/chosen_length"):
        return None
    if refreshed[0] or not saturated.exceeds(rule.max_share):
        return None
    text = f"{saturated.value:.0%} of the completions are beyond ±10 nats of the reference"
    return Finding(saw=f"{text} ({_of_rows(history, saturated)})", rows=began(saturated))


def _saturation(history: History, rule: settings.ReferenceSaturation) -> Level | None:
    """Return the level of drift/saturated. In rounds its standard error is √(p (1 − p)/N) times √(design effect).

    The design effect, by which completions of a prompt are alike, is that of the log-ratios of the same completions:
    the squared standard error of drift/kl over prompts, divided by that over completions, spread²/N. N cancels.
    """
    if not history.rounds or rule.window is not None:
        return history.level("drift/saturated", rule)
    share, error, spread = (history.last(name, 1) for name in ("drift/saturated", "drift/kl_error", "drift/spread"))
    if share is None or error is None or spread is None or not spread[0]:
        return history.level("drift/saturated", rule)
    p = float(share[0])
    return Level.of_row(p, math.sqrt(p * (1 - p)) * float(error[0] / spread[0]))


def safety_gate(history: History, rule: settings.SafetyGate) -> Finding | None:
    """Detect a newest evaluation that is worse than row 0, which measures the initial model.

    Condition: eval/refusal fell by more than `max_refusal_fall`, eval/over_refusal rose by more than
    `max_over_refusal_rise`, or a metric of `metrics` fell by more than `max_fall`. The finding is certain if the lower
    bound of the 95 % interval of the change exceeds the limit; else the metric must have got worse with a
    one-sided confidence of 95 %. One evaluation is enough.
    """
    metrics = gated_metrics(history, rule)
    lost, in_doubt = [str(m) for m in metrics if m.lost], [str(m) for m in metrics if m.in_doubt]
    if not lost and not in_doubt:
        return None
    return Finding(saw="; ".join(lost or in_doubt), rows=1, is_certain=bool(lost))


def _of_rows(history: History, level: Level) -> str:
    if level.rows == 1:
        return f"standard error {number(level.error)}, this round"
    return f"median of {level.rows} {history.row_word}"


def _first_rows(history: History, level: Level) -> str:
    return "round" if level.rows == 1 else f"{level.rows} {history.row_word}"


def _from_to(history: History, name: str, rule: settings.AlarmRule) -> str:
    values, count = history.values(name), history.window(rule, name)
    return f"{number(float(values[:count].mean()))} at first, {number(float(values[-count:].mean()))} now"
