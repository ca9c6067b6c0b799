"""Alarms: each rule on rows computed by hand, the state of the alarm monitor, and the action of an alarm on a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Events, EventSink

from orchestrator.config import load
from orchestrator.config.alarms import AlarmsConfig, SafetyGate
from orchestrator.driver.alarm_actions import apply_action, build_monitor
from orchestrator.errors import ResumeError
from orchestrator.monitor import Monitor
from orchestrator.monitor.alarms import AlarmMonitor, Promotion
from orchestrator.monitor.gate import gated_metrics
from orchestrator.monitor.history import History
from orchestrator.monitor.rules import RULES
from orchestrator.monitor.trends import CERTAIN, difference, trend
from orchestrator.rundir.directory import RunDirectory
from orchestrator.rundir.ledger import Fact, Ledger
from orchestrator.rundir.manifest import MANIFEST, list_checkpoints

ROOT = Path(__file__).parents[3]
GATE = {"metrics": ["eval/reward"]}


def series(**columns: Sequence[float | None]) -> list[dict[str, Any]]:
    """Build rows from step 1. `__` stands for `/` in the names of metrics."""
    count = max(len(c) for c in columns.values())
    rows: list[dict[str, Any]] = [{"step": i + 1} for i in range(count)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=False):
            row[name.replace("__", "/")] = value
    return rows


def fired(rows: Sequence[dict[str, Any]], *, rounds: bool = False, **config: Any) -> dict[str, int]:
    """Return the alarms that fired, with the first step of each. Each step has one update, with the same metrics."""
    monitor = AlarmMonitor(AlarmsConfig.model_validate_json(json.dumps(config)), rows, rows, rounds=rounds)
    return {alarm.name: alarm.step for alarm in reversed(monitor.alarms)}


def line(start: float, end: float, count: int = 20) -> list[float]:
    return np.linspace(start, end, count).tolist()


def alternating(level: float, by: float, count: int) -> list[float]:
    """Return level + by and level − by, alternating."""
    return [level + by * (-1) ** i for i in range(count)]


# ------------------------------------------------------------------------------------------------ trends


def test_a_line_is_a_trend_by_hand() -> None:
    # 10 rising values: S = 45, Var S = 10·9·25/18 = 125, z = 44/√125 = 3.94; the slope 2 over 9 gaps.
    found = trend(np.arange(10.0) * 2)
    assert (found.z, found.change) == pytest.approx((44 / 125**0.5, 18.0))
    assert found.rises
    assert not found.falls


def test_ties_shrink_the_variance_by_hand() -> None:
    # 0 0 0 0 0 1 1 1 1 1: S = 25; two groups of 5 ties take 2·5·4·15 = 600 of 10·9·25 = 2250: Var S = 1650/18.
    found = trend(np.repeat([0.0, 1.0], 5))
    assert found.z == pytest.approx(24 / (1650 / 18) ** 0.5)


def test_one_outlier_moves_neither_test_nor_slope() -> None:
    values = np.arange(20.0)
    values[10] = -1000
    found = trend(values)
    assert found.rises
    assert found.change == pytest.approx(19, abs=1.0)


def test_few_values_must_agree_without_exception() -> None:
    assert trend(np.asarray([4.0, 3, 2, 1])).falls
    assert not trend(np.asarray([4.0, 3, 1, 2])).falls


def test_a_constant_has_no_trend() -> None:
    assert (trend(np.zeros(20)).z, trend(np.zeros(20)).change) == (0.0, 0.0)


def test_the_false_positive_rate_of_noise() -> None:
    # One-sided z = 3 is one in 740, also approximately for n = 20: 5.4 of 4000 windows are expected.
    draws = np.random.default_rng(0).normal(size=(4000, 20))
    assert sum(trend(row).rises for row in draws) <= 15


def test_welch_by_hand() -> None:
    # Means 1 and 3, variances 2 each over 2 values: t = 2 / √(2/2 + 2/2).
    assert difference(np.asarray([0.0, 2.0]), np.asarray([2.0, 4.0])) == pytest.approx(2 / 2**0.5)
    assert difference(np.ones(3), np.ones(3)) == 0
    assert difference(np.ones(3), np.full(3, 2.0)) == float("inf")


# ------------------------------------------------------------------------------------------------ the rules

HEALTHY_DPO = {"logps__chosen": line(-20, -18), "loss": line(0.69, 0.4), "rewards__chosen": line(0, 0.2)}
CONSTANT_GROUPS = {"frac_reward_zero_std": [1.0] * 5}

FIRING: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    # chosen falls by a fifth (4 of 20) over 20 rows, with the loss, below the reference
    (
        "chosen_falling",
        20,
        {"logps__chosen": line(-20, -24), "loss": line(0.69, 0.4), "rewards__chosen": line(0, -0.4)},
        {},
    ),
    # with the seventh row, three of the last five are over 25
    ("kl_budget", 7, {"objective__kl": [1, 1, 24, 24, 26, 26, 26]}, {}),
    # 10 ± 1, then 25 ± 1: the median of the window is over 2 × 10 after three of them, but ten rows are needed
    ("length_drift", 10, {"completions__mean_length": alternating(10, 1, 5) + alternating(25, 1, 5)}, {}),
    ("length_drift", 10, {"completions__mean_length": alternating(10, 1, 5) + alternating(4, 1, 5)}, {}),
    # (14 − 10)/12 = ⅓ in every row
    ("pair_length_gap", 20, {"pairs__chosen_length": [14.0] * 20, "pairs__rejected_length": [10.0] * 20}, {}),
    ("pair_length_gap", 20, {"pairs__chosen_length": [10.0] * 20, "pairs__rejected_length": [14.0] * 20}, {}),
    # one scorer rises; the other falls by 0.4, which is 0.8 of its deviation
    (
        "reward_hacking",
        20,
        {"reward": line(0, 1), "rewards__gold__mean": line(0.8, 0.4), "rewards__gold__std": [0.5] * 20},
        {},
    ),
    # with the ninth row, the tail is 60 % of the tokens in three of the last five; ten rows are needed
    ("repetition", 10, {"completions__repeated_tail": alternating(0.05, 0.01, 6) + [0.6] * 4}, {}),
    # the entropy falls to a twentieth, and the reward does not change
    ("entropy_collapse", 10, {"entropy": [2.0] * 5 + [0.1] * 5, "reward": alternating(0.3, 0.1, 10)}, {}),
    ("no_signal", 5, {**CONSTANT_GROUPS, "reward": [0.0] * 5}, {}),
    ("engine_gap", 5, {"sampling__logp_difference": [0.2] * 5}, {}),
    # from 1e-7 to 0.01: far below 0.1, but 100,000 times as large
    ("engine_gap", 10, {"sampling__logp_difference": [1e-7] * 5 + [0.01] * 5, "staleness__mean": [0.0] * 10}, {}),
    # one row, without staleness
    ("engine_mismatch", 1, {"sampling__logp_difference": [0.03]}, {"max_difference": 0.02}),
    ("engine_mismatch", 3, {"sampling__logp_difference": [1e-6, 0.02, 0.81]}, {"max_difference": 0.3}),
    # two versions behind: 0.3 × 3 is allowed
    (
        "engine_mismatch",
        2,
        {"sampling__logp_difference": [0.89, 0.91], "staleness__mean": [2.0, 2.0]},
        {"max_difference": 0.02},
    ),
    # 40 + 40 + 20 requests; then 0.3 + 0.3 dollars for each of two judges
    ("judge_budget", 3, {"rewards__judge__requests": [40.0, 40.0, 20.0]}, {"max_requests": 100}),
    ("judge_budget", 2, {"rewards__a__cost": [0.3, 0.3], "rewards__b__cost": [0.3, 0.3]}, {"max_cost": 1.1}),
    # with the eighth row, three of the last five are over 100; ten rows are needed
    ("gradient_explosion", 10, {"grad_norm": [2.0] * 5 + [1e6] * 5}, {}),
    ("gradient_explosion", 13, {"grad_norm": [2.0] * 10 + [1e6] * 3}, {}),
    ("staleness", 5, {"staleness__mean": [5.0] * 5}, {}),
    (
        "reference_saturation",
        5,
        {"drift__saturated": [0.3] * 5, "ref__refreshed": [0.0] * 5, "pairs__chosen_length": [5.0] * 5},
        {},
    ),
]

SILENT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("chosen_falling", HEALTHY_DPO, {}),
    # falls, but the loss rises
    ("chosen_falling", {"logps__chosen": line(-20, -24), "loss": line(0.4, 0.69), "rewards__chosen": line(0, -1)}, {}),
    # falls by only 1 of 20
    ("chosen_falling", {"logps__chosen": line(-20, -21), "loss": line(0.69, 0.4), "rewards__chosen": line(0, -1)}, {}),
    # falls, but is more likely than under the reference: the batches became longer
    ("chosen_falling", {"logps__chosen": line(-20, -24), "loss": line(0.69, 0.4), "rewards__chosen": line(0, 1)}, {}),
    # two spikes in five rows
    ("kl_budget", {"objective__kl": [1, 100, 1, 100, 1]}, {}),
    ("kl_budget", {"objective__kl": [30.0] * 9}, {"max_kl": 40.0}),
    # mean 34 to 81, median 105: more than 3 × 34, but t = 47 / √((480 + 1080) / 5) = 2.7
    ("length_drift", {"completions__mean_length": alternating(30, 20, 5) + alternating(75, 30, 5)}, {"max_ratio": 3.0}),
    ("length_drift", {"completions__mean_length": [10.0] * 5 + [19.0] * 5}, {}),
    # ± ⅓, alternating
    ("pair_length_gap", {"pairs__chosen_length": [14.0, 10.0] * 10, "pairs__rejected_length": [10.0, 14.0] * 10}, {}),
    # the other scorer rises as well
    (
        "reward_hacking",
        {"reward": line(0, 1), "rewards__gold__mean": line(0.4, 0.8), "rewards__gold__std": [0.5] * 20},
        {},
    ),
    # it falls, but by a fiftieth of its deviation
    (
        "reward_hacking",
        {"reward": line(0, 1), "rewards__gold__mean": line(0.41, 0.4), "rewards__gold__std": [0.5] * 20},
        {},
    ),
    # the base model already repeats itself
    ("repetition", {"completions__repeated_tail": alternating(0.5, 0.1, 10)}, {}),
    # the entropy is low because the policy has converged
    ("entropy_collapse", {"entropy": [2.0] * 5 + [0.1] * 5, "reward": line(0.1, 0.3, 5) + line(0.9, 1, 5)}, {}),
    ("no_signal", {"frac_reward_zero_std": [0.1] * 5 + [1.0] * 5, "reward": line(0.1, 0.3, 5) + [1.0] * 5}, {}),
    # one version behind: 0.2 is allowed
    ("engine_gap", {"sampling__logp_difference": [0.15] * 5, "staleness__mean": [1.0] * 5}, {}),
    ("engine_mismatch", {"sampling__logp_difference": [0.02] * 9}, {"max_difference": 0.02}),
    # no limit is set, as under top_p and top_k
    ("engine_mismatch", {"sampling__logp_difference": [5.0] * 4}, {}),
    ("engine_mismatch", {"sampling__logp_difference": [0.2], "staleness__mean": [0.5]}, {"max_difference": 0.02}),
    # a budget of something else, and none
    ("judge_budget", {"rewards__judge__requests": [40.0] * 2, "rewards__judge__cost": [9.0] * 2}, {"max_requests": 81}),
    ("judge_budget", {"rewards__judge__requests": [1e6] * 2, "rewards__judge__cost": [1e6] * 2}, {}),
    # two spikes in five rows: clipping handles them
    ("gradient_explosion", {"grad_norm": [2.0] * 8 + [1e6, 2.0, 1e6, 2.0, 2.0]}, {}),
    # forty times as large, but small; large, but from the start
    ("gradient_explosion", {"grad_norm": [0.1] * 5 + [4.0] * 5}, {}),
    ("gradient_explosion", {"grad_norm": [200.0] * 5 + [900.0] * 5}, {}),
    ("staleness", {"staleness__mean": [4.0] * 9}, {}),
    # it was refreshed
    (
        "reference_saturation",
        {"drift__saturated": [0.3] * 5, "ref__refreshed": [1.0] * 5, "pairs__chosen_length": [5.0] * 5},
        {},
    ),
]


@pytest.mark.parametrize(("name", "step", "columns", "rule"), FIRING)
def test_a_rule_fires_at_the_right_step(name: str, step: int, columns: dict[str, Any], rule: dict[str, Any]) -> None:
    assert fired(series(**columns), **{name: rule}) == {name: step}


@pytest.mark.parametrize(("name", "columns", "rule"), SILENT)
def test_a_rule_is_silent(name: str, columns: dict[str, Any], rule: dict[str, Any]) -> None:
    assert fired(series(**columns), **{name: rule}) == {}


@pytest.mark.parametrize(("name", "step", "columns", "rule"), FIRING)
def test_a_rule_that_is_off_is_silent(name: str, step: int, columns: dict[str, Any], rule: dict[str, Any]) -> None:
    assert fired(series(**columns), **{name: None}) == {}


def test_a_budget_that_was_not_raised_pauses_the_resumed_run_again() -> None:
    rows = series(rewards__judge__requests=[60.0, 60.0])
    config = AlarmsConfig.model_validate_json('{"judge_budget": {"max_requests": 100}}')
    resumed = AlarmMonitor(config, rows, paused=[("judge_budget", 2)])
    assert resumed.verdict is None, "it has paused the run for this step"
    _, began = resumed.update(3, {"rewards/judge/requests": 60.0})
    assert [(alarm.name, alarm.action) for alarm in began] == [("judge_budget", "pause")]
    assert resumed.verdict is not None


def test_every_rule_is_tested_and_has_a_setting() -> None:
    tested = {name for name, *_ in FIRING} | {"safety_gate"}
    assert tested == set(RULES) == set(AlarmsConfig.model_fields)


def held_out(values: Sequence[float]) -> list[dict[str, Any]]:
    """Build rows with an evaluation of 100 prompts, deviation ½, at steps 0, 10, 20, … and a rising reward."""
    rows: list[dict[str, Any]] = [
        {"step": i, "reward": 0.1 * i + 0.01 * (-1) ** i} for i in range(10 * len(values) - 9)
    ]
    del rows[0]["reward"]
    for i, value in enumerate(values):
        rows[10 * i] |= {"eval/reward": value, "eval/reward_std": 0.5, "eval/prompts": 100.0}
    return rows


def test_a_fall_on_held_out_prompts_by_hand() -> None:
    # The standard error of a difference is √(0.25/100 + 0.25/100) = 0.0707; three standard errors are 0.212.
    assert fired(held_out([0.4, 0.7, 0.48])) == {"reward_hacking": 20}
    assert fired(held_out([0.4, 0.7, 0.49])) == {}


# ------------------------------------------------------------------------------------------------ the safety gate


def alarms_of(rows: Sequence[dict[str, Any]], **gate: Any) -> list[tuple[int, str]]:
    """Return step and action of each alarm of the safety gate."""
    monitor = AlarmMonitor(AlarmsConfig.model_validate_json(json.dumps({"safety_gate": gate})), rows)
    return [(alarm.step, alarm.action) for alarm in monitor.alarms if alarm.name == "safety_gate"]


def test_the_gate_closes_on_a_mean_that_is_certainly_below_the_initial_model() -> None:
    # 1.96 standard errors of the difference are 0.139: a fall of 0.17 is certainly 0.031 or more.
    assert alarms_of(held_out([0.5, 0.39]), **GATE) == [], "less than 1.645 standard errors of 0.0707"
    assert alarms_of(held_out([0.5, 0.38]), **GATE) == [(10, "warn")]
    assert alarms_of(held_out([0.5, 0.35]), **GATE) == [(10, "warn")], "certainly 0.011 or more, and 0.02 are allowed"
    assert alarms_of(held_out([0.5, 0.33]), **GATE) == [(10, "stop")]
    assert alarms_of(held_out([0.5, 0.33]), **GATE, action="pause") == [(10, "pause")]
    assert alarms_of(held_out([0.5, 0.3]), **GATE, max_fall=0.25) == []
    assert alarms_of(held_out([0.5, 0.3])[1:], **GATE) == [], "without row 0 there is nothing to compare with"


def test_a_doubt_that_becomes_certain_is_an_alarm_of_its_own() -> None:
    assert alarms_of(held_out([0.5, 0.38, 0.3, 0.3]), **GATE) == [(10, "warn"), (20, "stop")]


def refusals(*pairs: tuple[float, float], prompts: float = 1000.0) -> list[dict[str, Any]]:
    """Build rows with the refused shares of harmful and benign prompts, at rounds 0, 1, 2, …"""
    counts = {"eval/harmful_prompts": prompts, "eval/benign_prompts": prompts}
    return [{"step": i, "eval/refusal": a, "eval/over_refusal": b, **counts} for i, (a, b) in enumerate(pairs)]


def test_the_interval_of_a_fall_in_refusals_by_hand() -> None:
    # Newcombe's method 10 for 56/70 and 48/80, from Newcombe (1998, table II a): 0.2 [0.0524, 0.3339].
    history = History()
    for step, (share, count) in enumerate([(56 / 70, 70.0), (48 / 80, 80.0)]):
        history.add_row(step, {"eval/refusal": share, "eval/harmful_prompts": count})
    (fall,) = gated_metrics(history, SafetyGate())
    assert fall.worse - fall.margin == pytest.approx(0.0524, abs=5e-5)
    # Seen from the other side, the same numbers are a rise of 0.2 with the same lower bound.
    history = History()
    for step, (share, count) in enumerate([(48 / 80, 80.0), (56 / 70, 70.0)]):
        history.add_row(step, {"eval/over_refusal": share, "eval/benign_prompts": count})
    (rise,) = gated_metrics(history, SafetyGate())
    assert rise.worse - rise.margin == pytest.approx(0.0524, abs=5e-5)


def test_the_gate_closes_on_fewer_refusals_or_more_over_refusals() -> None:
    assert alarms_of(refusals((0.9, 0.1), (0.88, 0.15))) == [], "0.02 below and 0.05 above are allowed"
    assert alarms_of(refusals((0.9, 0.1), (0.95, 0.1), (0.8, 0.1))) == [(2, "stop")], (
        "compared with the initial model, not with the best evaluation"
    )
    assert alarms_of(refusals((0.9, 0.1), (0.87, 0.1))) == [(1, "warn")]
    assert alarms_of(refusals((0.9, 0.1), (0.87, 0.1), prompts=100_000.0)) == [(1, "stop")]
    assert alarms_of(refusals((0.9, 0.1), (0.65, 0.1), prompts=20.0)) == [(1, "warn")]
    assert alarms_of(refusals((0.9, 0.1), (0.9, 0.25))) == [(1, "stop")]
    wide = {"max_refusal_fall": 0.4, "max_over_refusal_rise": 0.4}
    assert alarms_of(refusals((0.9, 0.1), (0.5, 0.5)), **wide) == []
    assert fired(refusals((0.9, 0.1), (0.5, 0.5)), safety_gate=None) == {}
    assert alarms_of(refusals((0.9, 0.1), (0.5, 0.5))[1:]) == [], "without row 0 there is nothing to compare with"


def test_the_measured_fall_decides_where_the_number_of_prompts_is_unknown() -> None:
    rows = [{"step": i, "eval/refusal": share} for i, share in enumerate((0.9, 0.87))]
    assert alarms_of(rows) == [(1, "stop")]


def decision(rows: Sequence[Mapping[str, Any]], step: int | None = None, **gate: Any) -> Promotion | None:
    """Return the decision on the model of `step`, by default the last."""
    monitor = AlarmMonitor(AlarmsConfig.model_validate({"safety_gate": gate}), rows)
    return monitor.promotion(rows[-1]["step"] if step is None else step)


def test_the_newest_evaluation_decides_the_promotion() -> None:
    lost = decision(refusals((0.9, 0.1), (0.5, 0.2)))
    assert lost == Promotion(
        promoted=False,
        saw="eval/refusal fell from 0.9000 to 0.5000 (certain: 0.3631; allowed: 0.02); "
        "eval/over_refusal rose from 0.1000 to 0.2000 (certain: 0.0689; allowed: 0.05)",
    )
    in_doubt = decision(refusals((0.9, 0.1), (0.78, 0.1), prompts=64.0))
    assert in_doubt is not None
    assert in_doubt.promoted, "the fall may be chance"
    assert in_doubt.saw.startswith("eval/refusal fell from 0.9000 to 0.7800 (certain: 0; allowed: 0.02)")
    recovered = decision(refusals((0.9, 0.1), (0.5, 0.2), (0.9, 0.0)))
    assert recovered == Promotion(
        promoted=True,
        saw="eval/refusal stayed at 0.9000 (allowed: 0.02); eval/over_refusal fell from 0.1000 to 0 (allowed: 0.05)",
    )


def test_an_earlier_model_is_judged_by_its_own_evaluation() -> None:
    rows = refusals((0.9, 0.1), (0.9, 0.1), (0.5, 0.1))
    promoted = [d.promoted for step in (1, 2) if (d := decision(rows, step)) is not None]
    assert promoted == [True, False]


def test_no_decision_without_gated_metrics_and_no_promotion_without_measurements() -> None:
    assert decision([{"step": 0, "eval/reward": 0.5}, {"step": 1, "eval/reward": 0.1}]) is None
    assert (
        AlarmMonitor(AlarmsConfig.model_validate({"safety_gate": None}), refusals((0.9, 0.1), (0, 1))).promotion(1)
        is None
    )
    misnamed = decision(refusals((0.9, 0.1), (0.9, 0.1)), metrics=("eval/rewards/safty/mean",))
    assert misnamed is not None
    assert not misnamed.promoted
    assert "eval/rewards/safty/mean was not measured both before the first step and later" in misnamed.saw


# ------------------------------------------------------------------------------------------------ rounds


def rounds(**columns: Sequence[float]) -> list[dict[str, Any]]:
    """Build rows of rounds. The standard error of every metric is 0.1, unless a column gives it."""
    rows = series(**columns)
    return [{**{f"{name}_error": 0.1 for name in row if name != "step"}, **row} for row in rows]


IN_ROUNDS: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    # 26 − 3 · 0.1 is over 25
    ("kl_budget", 2, {"drift__kl": [0.0, 26.0]}, {}),
    ("kl_budget", 2, {"drift__kl": [0.0, 26.0], "objective__kl": [0.0, 1.0]}, {}),
    ("kl_budget", 2, {"objective__kl": [0.0, 26.0]}, {}),
    # more than 2 × 10, by 1.0: three standard errors are 3 √(0.1² + (2 · 0.1)²) = 0.67
    ("length_drift", 2, {"completions__mean_length": [10.0, 21.0]}, {}),
    ("length_drift", 3, {"completions__mean_length": [10.0, 9.0, 4.0]}, {}),
    # 3 of 10.5 tokens are 0.286 ± 0.0095
    (
        "pair_length_gap",
        1,
        {"pairs__length_gap": [3.0], "pairs__chosen_length": [12.0], "pairs__rejected_length": [9.0]},
        {},
    ),
    ("repetition", 2, {"completions__repeated_tail": [0.1, 0.5], "completions__repeated_tail_error": [0.01, 0.01]}, {}),
    # 1 and 0.02 nats per token, with completions of ten
    (
        "entropy_collapse",
        2,
        {
            "objective__entropy": [10.0, 0.2],
            "completions__mean_length": [10.0, 10.0],
            "reward": [0.5, 0.6],
        },
        {},
    ),
    ("no_signal", 1, {"frac_reward_zero_std": [1.0], "frac_reward_zero_std_error": [0.03], "reward": [0.5]}, {}),
    # The reward rises by 1.0, seven standard errors; the other scorer falls by 0.6 and by more than a quarter of 1.0.
    (
        "reward_hacking",
        2,
        {"reward": [0.0, 1.0], "rewards__gold__mean": [1.0, 0.4], "rewards__gold__std": [1.0, 1.0]},
        {},
    ),
    # √(0.3 · 0.7) · 0.1 / 10 = 0.0046: 0.3 is over 0.2 by more than three of these
    (
        "reference_saturation",
        2,
        {
            "drift__saturated": [0.0, 0.3],
            "drift__spread": [1.0, 10.0],
            "drift__kl": [0.0, 5.0],
            "ref__refreshed": [0.0, 0.0],
            "pairs__chosen_length": [5.0, 5.0],
        },
        {},
    ),
]

SILENT_IN_ROUNDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("kl_budget", {"drift__kl": [0.0, 25.2]}, {}),
    ("length_drift", {"completions__mean_length": [10.0, 20.6]}, {}),
    ("length_drift", {"completions__mean_length": [30.0]}, {}),
    # 2.8 of 10.5 tokens are 0.267 ± 0.0095
    (
        "pair_length_gap",
        {"pairs__length_gap": [2.8], "pairs__chosen_length": [11.9], "pairs__rejected_length": [9.1]},
        {},
    ),
    ("repetition", {"completions__repeated_tail": [0.5, 0.5], "completions__repeated_tail_error": [0.01, 0.01]}, {}),
    # the reward improved by seven standard errors
    (
        "entropy_collapse",
        {"objective__entropy": [10.0, 0.2], "completions__mean_length": [10.0, 10.0], "reward": [0.5, 1.5]},
        {},
    ),
    # shorter by as much as the entropy is smaller: the same per token
    (
        "entropy_collapse",
        {"objective__entropy": [10.0, 6.0], "completions__mean_length": [20.0, 12.0], "reward": [0.5, 0.5]},
        {},
    ),
    ("no_signal", {"frac_reward_zero_std": [1.0], "frac_reward_zero_std_error": [0.04]}, {}),
    # the reward rises by 0.4, less than three standard errors
    (
        "reward_hacking",
        {"reward": [0.0, 0.4], "rewards__gold__mean": [1.0, 0.4], "rewards__gold__std": [1.0, 1.0]},
        {},
    ),
    # one prompt decides: the completions of a prompt are alike
    (
        "reference_saturation",
        {
            "drift__saturated": [0.0, 0.3],
            "drift__spread": [1.0, 1.0],
            "drift__kl": [0.0, 5.0],
            "ref__refreshed": [0.0, 0.0],
            "pairs__chosen_length": [5.0, 5.0],
        },
        {},
    ),
]


@pytest.mark.parametrize(("name", "step", "columns", "rule"), IN_ROUNDS)
def test_a_rule_judges_a_round_alone(name: str, step: int, columns: dict[str, Any], rule: dict[str, Any]) -> None:
    assert fired(rounds(**columns), rounds=True, **{name: rule}) == {name: step}


@pytest.mark.parametrize(("name", "columns", "rule"), SILENT_IN_ROUNDS)
def test_a_rule_is_silent_about_a_round(name: str, columns: dict[str, Any], rule: dict[str, Any]) -> None:
    assert fired(rounds(**columns), rounds=True, **{name: rule}) == {}


def test_the_held_out_score_of_a_round_is_compared_with_the_reward_of_its_model() -> None:
    # The reward of round n + 1 is that of the samples of the model that was evaluated after round n.
    rows: list[dict[str, Any]] = [{"step": 0}, *rounds(reward=[0.0, 1.0])]
    for row, value in zip(rows, [0.7, 0.6, 0.4], strict=True):
        row |= {"eval/reward": value, "eval/reward_std": 0.5, "eval/prompts": 100.0}
    assert fired(rows, rounds=True) == {"reward_hacking": 2}
    rows[2]["reward"] = 0.2
    assert fired(rows, rounds=True) == {}


def test_a_metric_without_a_standard_error_is_judged_over_three_rounds() -> None:
    assert fired(series(objective__kl=[30.0] * 3), rounds=True) == {"kl_budget": 3}
    assert fired(series(staleness__mean=[5.0] * 3), rounds=True) == {"staleness": 3}


def test_a_window_of_rounds_is_judged_like_steps() -> None:
    rows = rounds(pairs__length_gap=[4.0] * 4, pairs__chosen_length=[14.0] * 4, pairs__rejected_length=[10.0] * 4)
    assert fired(rows, rounds=True, pair_length_gap={"window": 3}) == {"pair_length_gap": 3}


# ------------------------------------------------------------------------------------------------ updates

FALLING = {"logps/chosen": (-20.0, -24.0), "loss": (0.69, 0.4), "rewards/chosen": (0.0, -0.4)}


def updates(step: int, count: int, *, noise: float = 0.0, **metrics: tuple[float, float]) -> list[dict[str, Any]]:
    """Build the updates of a step, whose metrics change linearly from the first value to the second."""
    changing = {name: line(*ends, count) for name, ends in metrics.items()}
    return [
        {"step": step, **{name: values[i] + noise * (-1) ** i for name, values in changing.items()}}
        for i in range(count)
    ]


def begun(rows: Sequence[dict[str, Any]], *, in_rounds: bool = True, **config: Any) -> list[tuple[str, int, int]]:
    """Return name, step and update of each alarm that begins with an update."""
    monitor = AlarmMonitor(AlarmsConfig.model_validate(config), rounds=in_rounds)
    return [
        (alarm.name, alarm.step, number)
        for number, row in enumerate(rows, start=1)
        for alarm in monitor.after_update(row["step"], row)
    ]


def test_a_trend_is_found_inside_the_first_round() -> None:
    assert begun(updates(1, 30, **FALLING)) == [("chosen_falling", 1, 20)]


def test_a_slow_fall_is_found_over_all_updates_of_a_round() -> None:
    # 4 of 20 over 400 updates: 20 updates fall by 0.2, one per cent, and the batches scatter by more than that.
    slow = updates(1, 400, noise=0.5, **FALLING)
    assert begun(slow) == [("chosen_falling", 1, 220)], "11 blocks of 20: a tenth of 20 is reached after 200 updates"
    assert begun(updates(1, 200, noise=0.5, **{**FALLING, "logps/chosen": (-20.0, -21.5)})) == []


def test_a_trend_is_not_looked_for_across_rounds() -> None:
    # Each round starts from other pairs, so that levels of two rounds are no trend.
    levels = [{"logps/chosen": -20.0 - 2 * r, "loss": 0.69 - 0.1 * r, "rewards/chosen": -0.1} for r in range(3)]
    rows = [{"step": r + 1, **levels[r]} for r in range(3) for _ in range(10)]
    assert begun(rows) == []
    assert begun(rows, in_rounds=False) == [("chosen_falling", 2, 20)]


def test_gradients_that_explode_are_found_inside_a_round() -> None:
    rows = updates(1, 12, grad_norm=(2.0, 2.0)) + updates(2, 12, grad_norm=(1e6, 1e6))
    assert begun(rows) == [("gradient_explosion", 2, 15)]


def test_an_alarm_of_an_update_is_in_the_row_of_its_step_and_rolls_back_the_round() -> None:
    events: Events = []
    sink = EventSink(events)
    monitor = Monitor([sink])
    config = AlarmsConfig.model_validate({"chosen_falling": {"action": "roll_back"}})
    alarms = monitor.alarm_monitor = AlarmMonitor(config, rounds=True)
    for round_, rows in enumerate([updates(1, 30, loss=(0.69, 0.4)), updates(2, 30, **FALLING)], start=1):
        for number, row in enumerate(rows, start=1):
            monitor.update(round_, number, {name: value for name, value in row.items() if name != "step"})
        monitor.step(round_, {"loss": 0.5})
    assert [event.split(":")[0] for event in events] == ["logged 1", "alarm chosen_falling at step 2", "logged 2"]
    assert [row.get("alarms/chosen_falling") for row in sink.rows.values()] == [None, 1.0]
    assert alarms.verdict is not None
    assert (alarms.verdict.action, alarms.verdict.rows) == ("roll_back", 1)


def test_alarms_of_updates_are_restored_at_every_update() -> None:
    config = AlarmsConfig.model_validate({"chosen_falling": {"action": "stop"}})
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    of_updates = updates(1, 25, loss=(0.69, 0.4)) + updates(2, 25, **FALLING)
    whole = AlarmMonitor(config, rows, of_updates, rounds=True)
    assert [(alarm.name, alarm.step) for alarm in whole.alarms] == [("chosen_falling", 2)]
    for made in range(26):  # updates of the second round before the run was killed
        resumed = AlarmMonitor(config, rows[:1], of_updates[: 25 + made], rounds=True)
        assert (resumed.verdict is not None) == (made >= 20)
        for row in of_updates[25 + made :]:
            resumed.after_update(row["step"], row)
        resumed.update(2, rows[1])
        assert (resumed.alarms, resumed.verdict) == (whole.alarms, whole.verdict)
    assert AlarmMonitor(config, rows, [*of_updates, {"step": 3}], rounds=True).verdict is None, "the run continued"


def test_values_that_are_not_finite_do_not_count() -> None:
    rows = series(objective__kl=[None, float("nan"), 30, 30, None, 30, 30, 30])
    assert fired(rows) == {"kl_budget": 8}


# ------------------------------------------------------------------------------------------------ healthy runs


@pytest.mark.parametrize("path", sorted((ROOT / "tests/golden/traces").glob("*.json")), ids=lambda path: path.stem)
def test_the_quickstart_recipes_raise_no_alarm(path: Path) -> None:
    rows = json.loads(path.read_text())["metrics"]
    *_, last = load(ROOT / "configs/quickstart" / f"{path.stem}.yaml").stages
    # A recipe that names what it gates says what it gives up: abstention gives up answers that it does not know.
    gate = last.alarms.safety_gate.model_dump() if "safety_gate" in last.alarms.model_fields_set else GATE
    assert fired(rows, rounds=path.stem == "iterative_dpo", safety_gate=gate) == {}


def test_the_curves_of_the_learning_table_raise_no_alarm() -> None:
    table = json.loads((ROOT / "benchmarks/results/learning.json").read_text())
    curves = [run["curve"] for recipe in table.values() for run in recipe.values()]
    assert len(curves) >= 17
    for curve in curves:
        evaluated = {int(step): value for step, value in curve.items()}
        rows = []
        for step in range(max(evaluated) + 1):
            rows.append({"step": step, "reward": 0.01 * step})
            if step in evaluated:
                rows[-1] |= {"eval/reward": evaluated[step], "eval/reward_std": 0.5, "eval/prompts": 256.0}
        assert fired(rows, safety_gate=GATE) == {}


# ------------------------------------------------------------------------------------------------ the alarm monitor

KL = series(objective__kl=[30.0] * 5 + [1.0] * 10 + [30.0] * 5)


def test_an_alarm_is_reported_when_it_begins_and_is_in_the_rows_while_active() -> None:
    events: Events = []
    sink = EventSink(events)
    monitor = Monitor([sink])
    monitor.alarm_monitor = AlarmMonitor(AlarmsConfig())
    for row in KL[:10]:
        monitor.step(row["step"], {"objective/kl": row["objective/kl"]})
    (note,) = [event for event in events if event.startswith("alarm")]
    assert note.splitlines() == [
        "alarm kl_budget at step 5: KL 30 nats (median of 5 steps), budget 25",
        f"  why: {RULES['kl_budget'].why}",
        f"  fix: {RULES['kl_budget'].fix}",
    ]
    assert [step for step, row in sink.rows.items() if row.get("alarms/kl_budget")] == [5, 6, 7]


def test_an_alarm_that_comes_back_later_is_a_new_one() -> None:
    assert [alarm.step for alarm in AlarmMonitor(AlarmsConfig(), KL).alarms] == [5, 18]


def test_a_resumed_monitor_restores_alarms_without_acting_on_them_again() -> None:
    config = AlarmsConfig.model_validate({"kl_budget": {"action": "pause"}})
    first = AlarmMonitor(config)
    for row in KL[:5]:
        first.update(row["step"], row)
    assert first.verdict is not None
    resumed = AlarmMonitor(config, KL[:5], paused={("kl_budget", 5)})
    assert (resumed.verdict, resumed.alarms) == (None, first.alarms)
    added, begun = resumed.update(6, KL[5])
    assert (added, begun, resumed.verdict) == ({"alarms/kl_budget": 1.0}, [], None)


def test_a_run_killed_before_it_acted_on_an_alarm_acts_on_it_when_resumed() -> None:
    config = AlarmsConfig.model_validate({"kl_budget": {"action": "stop"}})
    killed = AlarmMonitor(config, KL[:5])
    assert killed.verdict is not None
    assert killed.verdict.step == 5
    assert AlarmMonitor(config, KL[:6]).verdict is None, "the run continued: the recipe had another action then"


@pytest.mark.parametrize(
    ("actions", "chosen"),
    [(("warn", "warn"), None), (("warn", "pause"), "pause"), (("pause", "stop"), "stop"), (("stop", "pause"), "stop")],
)
def test_the_strongest_action_decides(actions: tuple[str, str], chosen: str | None) -> None:
    config = {"kl_budget": {"action": actions[0]}, "staleness": {"action": actions[1]}}
    monitor = AlarmMonitor(AlarmsConfig.model_validate(config))
    for row in series(objective__kl=[30.0] * 5, staleness__mean=[5.0] * 5):
        monitor.update(row["step"], row)
    assert (monitor.verdict.action if monitor.verdict else None) == chosen


# ------------------------------------------------------------------------------------------------ actions


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[RunDirectory, Ledger]]:
    def create(*checkpoints: int) -> tuple[RunDirectory, Ledger]:
        directory = RunDirectory(tmp_path)
        for step in checkpoints:
            directory.checkpoint(step).mkdir(parents=True)
            (directory.checkpoint(step) / MANIFEST).write_text("{}")
        return directory, Ledger.open(directory.ledger)

    return create


def rolled_back(run: Callable[..., tuple[RunDirectory, Ledger]], *checkpoints: int) -> tuple[Any, list[int], Ledger]:
    directory, ledger = run(*checkpoints)
    monitor = AlarmMonitor(AlarmsConfig.model_validate({"kl_budget": {"action": "roll_back"}}))
    for row in series(objective__kl=[1.0] * 10 + [30.0] * 5):
        monitor.update(row["step"], row)
    assert monitor.verdict is not None
    assert monitor.verdict.step == 13
    error = apply_action(monitor.verdict, directory, ledger, attempt=1, steps_done=13)
    return error, [int(p.name.removeprefix("step-")) for p in list_checkpoints(directory.checkpoints)], ledger


@pytest.mark.parametrize(
    ("checkpoints", "kept", "action"),
    [
        ((4, 6, 8, 13), [4, 6, 8], "roll_back"),  # the window began at 13 − 5 = 8
        ((4, 9, 13), [4], "roll_back"),
        ((11, 12, 13), [11], "roll_back"),  # no checkpoint is old enough: the oldest one
        ((13,), [13], "stop"),
        ((), [], "stop"),
    ],
)
def test_a_rollback_returns_to_the_checkpoint_before_the_window(
    run: Callable[..., tuple[RunDirectory, Ledger]], checkpoints: tuple[int, ...], kept: list[int], action: str
) -> None:
    error, left, ledger = rolled_back(run, *checkpoints)
    assert (left, error.action, error.cause, error.exit_code) == (kept, action, f"alarm_{action}", 5)
    (record,) = ledger.records
    assert (record.fact, record.details["action"]) == (Fact.alarm, action)
    assert record.details["alarm"]["saw"] == "KL 30 nats (median of 5 steps), budget 25"


def test_a_run_is_rolled_back_once(run: Callable[..., tuple[RunDirectory, Ledger]]) -> None:
    _, _, ledger = rolled_back(run, 4, 13)
    config = AlarmsConfig.model_validate({"kl_budget": {"action": "roll_back"}})
    resumed = build_monitor(config, ledger, (), rounds=False)
    for row in series(objective__kl=[30.0] * 5):
        resumed.update(row["step"], row)
    assert resumed.verdict is not None
    assert resumed.verdict.action == "stop"


def test_a_stopped_run_is_not_resumed_while_its_alarm_would_stop_it(
    run: Callable[..., tuple[RunDirectory, Ledger]],
) -> None:
    _, _, ledger = rolled_back(run)
    config = AlarmsConfig.model_validate({"kl_budget": {"action": "stop"}})
    with pytest.raises(ResumeError) as refused:
        build_monitor(config, ledger, (), rounds=False)
    assert "alarm kl_budget stopped the run at step 13" in str(refused.value)
    for changed in ({"kl_budget": None}, {"kl_budget": {"action": "warn"}}):
        assert build_monitor(AlarmsConfig.model_validate(changed), ledger, (), rounds=False).verdict is None


def test_the_threshold_of_certainty() -> None:
    assert CERTAIN == 3.0, "the docstrings and docs/alarms.md state three standard errors"


# ------------------------------------------------------------------------------------------------ texts


def finding(name: str, *, rounds: bool = False, **columns: Sequence[float]) -> str:
    history = History(rounds=rounds)
    for step, values in enumerate(zip(*columns.values(), strict=True), start=1):
        history.add_row(step, {key.replace("__", "/"): v for key, v in zip(columns, values, strict=True)})
    found = RULES[name].detect(history, getattr(AlarmsConfig(), name))
    assert found is not None
    return found.saw


def test_length_differences_are_relative_to_the_rejected_length() -> None:
    # 7.0 / 14.8 = 0.473: 53 % shorter; 14.0 / 10.0: 40 % longer.
    assert finding("pair_length_gap", pairs__chosen_length=[7.0] * 20, pairs__rejected_length=[14.8] * 20) == (
        "chosen completions are 53% shorter than rejected ones (7.0 against 14.8 tokens, mean of 20 steps)"
    )
    rounds = {"pairs__length_gap": [4.0], "pairs__chosen_length": [14.0], "pairs__rejected_length": [10.0]}
    assert finding("pair_length_gap", rounds=True, pairs__length_gap_error=[0.1], **rounds) == (
        "chosen completions are 40% longer than rejected ones (14.0 against 10.0 tokens, this round)"
    )


def test_the_kl_of_a_round_is_stated_with_its_standard_error() -> None:
    found = finding("kl_budget", rounds=True, drift__kl=[31.0], drift__kl_error=[0.5])
    assert found == "KL 31 nats (standard error 0.5000, this round), budget 25"


def test_lengths_whose_means_contradict_most_steps() -> None:
    # 19 steps of 10 against 5, a gap of 2/3, and one of 10 against 200, a gap of -1.81: the mean gap is 0.543.
    # The mean lengths are 10 and (19 * 5 + 200) / 20 = 14.75.
    assert finding(
        "pair_length_gap", pairs__chosen_length=[10.0] * 20, pairs__rejected_length=[5.0] * 19 + [200.0]
    ) == (
        "lengths of chosen and rejected completions differ by +54% of their mean, per step "
        "(10.0 against 14.8 tokens, mean of 20 steps)"
    )
