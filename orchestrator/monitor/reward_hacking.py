"""Detector of a reward that rises while what it stands for gets worse."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.config import alarms as settings
from orchestrator.monitor.figures import number
from orchestrator.monitor.finding import Finding, began
from orchestrator.monitor.history import History
from orchestrator.monitor.trends import CERTAIN, Level, change, trend


def reward_hacking(history: History, rule: settings.RewardHacking) -> Finding | None:
    """Detect a reward that rises while another score falls. Either condition is enough:

    - `reward` rises over the window (z ≥ 3) while rewards/NAME/mean of a scorer falls (z ≤ −3) by `min_fall` times its
      standard deviation over completions. In rounds, rise and fall are differences from the first round (|t| ≥ 3).
    - eval/reward or eval/rewards/NAME/mean is below its best evaluation by more than three standard errors of the
      difference, √(s²/n + s²/n) for n held-out prompts, while `reward` has risen since then.
    """
    found = _scorer_falls_in_rounds(history, rule) if history.rounds else _scorer_falls(history, rule)
    return found or _held_out_fall(history, rule)


def _scorer_falls(history: History, rule: settings.RewardHacking) -> Finding | None:
    n = history.window(rule)
    reward = history.last("reward", n)
    if reward is None or not (rise := trend(reward)).rises:
        return None
    for name in filter(_is_scorer, history.names()):
        values, deviations = history.last(name, n), history.last(name.removesuffix("/mean") + "/std", n)
        if values is None or deviations is None:
            continue
        fall = trend(values)
        if fall.falls and -fall.change >= rule.min_fall * float(deviations.mean()):
            text = f"reward rose by {number(rise.change)} while {name} fell by {number(-fall.change)}"
            return Finding(saw=f"{text} over {n} steps (z {rise.z:.1f} and {fall.z:.1f})", rows=n)
    return None


def _scorer_falls_in_rounds(history: History, rule: settings.RewardHacking) -> Finding | None:
    reward, first = history.level("reward", rule), history.first_level("reward", rule)
    if reward is None or first is None or (rise := change(first, reward)) < CERTAIN:
        return None
    for name in filter(_is_scorer, history.names()):
        now, before = history.level(name, rule), history.first_level(name, rule)
        deviations = history.last(name.removesuffix("/mean") + "/std", 1)
        if now is None or before is None or deviations is None or (fall := change(before, now)) > -CERTAIN:
            continue
        if before.mean - now.mean >= rule.min_fall * float(deviations[0]):
            text = f"reward rose by {number(reward.mean - first.mean)} since the first round"
            text += f" while {name} fell by {number(before.mean - now.mean)}"
            return Finding(saw=f"{text} (t {rise:.1f} and {fall:.1f})", rows=began(now))
    return None


def _is_scorer(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _held_out_fall(history: History, rule: settings.RewardHacking) -> Finding | None:
    """Detect a held-out score that is certainly below its best while `reward` has risen: see `reward_hacking`."""
    for name in history.names():
        is_scorer = name.startswith("eval/rewards/") and name.endswith("/mean")
        if not history.count("eval/prompts") or not (is_scorer or name == "eval/reward"):
            continue
        spread = name.removesuffix("mean") + "std" if is_scorer else "eval/reward_std"
        values, stds, steps = history.values(name), history.values(spread), history.steps(name)
        if len(values) < 3 or len(stds) != len(values):
            continue
        best = int(values.argmax())
        error = math.hypot(stds[best], stds[-1]) / math.sqrt(history.values("eval/prompts")[-1])
        if values[best] - values[-1] <= CERTAIN * error:
            continue
        rise = _rise_since(history, rule, steps[best], steps[-1])
        if rise is not None:
            before, after = rise
            fall = (
                f"{name} fell from {number(float(values[best]))} at step {steps[best]} to {number(float(values[-1]))}"
            )
            rows = sum(step > steps[best] for step in history.steps("reward"))
            text = f"reward rose from {number(before.mean)} to {number(after.mean)}"
            return Finding(saw=f"{fall} while {text}", rows=rows)
    return None


def _rise_since(history: History, rule: settings.RewardHacking, step: int, newest: int) -> tuple[Level, Level] | None:
    """Return the level of `reward` around `step` and now, if it has certainly risen; else None.

    A round's reward is that of the version which was evaluated at the end of the round before.
    """
    if history.rounds:
        before, after = history.row_level("reward", step + 1), history.row_level("reward", newest)
    else:
        steps, reward = np.asarray(history.steps("reward")), history.values("reward")
        count = max(3, history.window(rule) // 4)
        rows = [reward[steps <= at][-count:] for at in (step, newest)]
        before, after = (Level.of(values) if len(values) >= 2 else None for values in rows)
    if before is None or after is None or change(before, after) < CERTAIN:
        return None
    return before, after
