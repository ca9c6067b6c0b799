"""The arithmetic of a comparison: by hand, and on simulated methods whose order is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from run_on_disk import run_on_disk

from orchestrator.cli.main import main
from orchestrator.compare.answer import Answer as TaskAnswer
from orchestrator.compare.answer import answer, at_equal_kl
from orchestrator.compare.frontier import KlGap, beats, front_of, matchup, mixture_at, points_of
from orchestrator.compare.page import Section, as_json, page, temperatures_card
from orchestrator.compare.run_curves import EvalPoint, RunCurve, TaskRuns
from orchestrator.evaluation.answer import Answer
from orchestrator.evaluation.statistics import Interval, crossed_bootstrap
from orchestrator.rundir.directory import RunDirectory

N, K = 200, 4
PROMPTS = tuple(f"held:{i:03}" for i in range(N))


def eval_point(step: int, gold: np.ndarray, *, kl: float = 0.0, spent: float | None = None) -> EvalPoint:
    cost = 10.0 * step if spent is None else spent
    return EvalPoint(
        step=step,
        spent={"device_seconds": cost, "seconds": cost / 4, "tokens": 100.0 * step},
        gold=gold,
        kl=np.full(len(gold), kl),
        length=np.full(len(gold), 5.0),
    )


def curve(
    method: str,
    setting: str,
    seed: int,
    *,
    gain: float,
    kl: float = 4.0,
    noise: float = 0.0,
    draw: int = 0,
    ends: float = 40.0,
) -> RunCurve:
    """Simulate a run whose gold score rises by `gain` over 40 steps, at a KL that grows to `kl`.

    `noise` is the standard deviation between seeds. All runs share the difficulty of the prompts."""
    generator = np.random.default_rng([draw, seed, *map(ord, method + setting)])
    difficulty = np.random.default_rng(draw).normal(size=(N, 1))
    offset = noise * generator.normal()

    def gold(share: float) -> np.ndarray:
        return difficulty + share * (gain + offset) + generator.normal(size=(N, K))

    evals = [eval_point(s, gold(s / 40), kl=kl * (s / 40) ** 2, spent=ends * s / 4) for s in (0, 20, 40)]
    name = f"{method}-{setting}-{seed}"
    return RunCurve(name=name, method=method, setting=setting, seed=seed, ended="all steps done", evals=tuple(evals))


def task_runs(*curves: RunCurve) -> TaskRuns:
    base = np.concatenate([one.evals[0].gold for one in curves], axis=1)
    return TaskRuns(curves=curves, prompts=PROMPTS, base=base, mode="sampled", gold="the reward", kl_of="samples")


def compared(runs: TaskRuns) -> TaskAnswer:
    return answer(runs, task="sorting", about="", unit="worker")


# ------------------------------------------------------------------------------------------------ by hand


def test_win_rate_of_two_sets_of_answers() -> None:
    ours, theirs = np.asarray([[1.0, 2.0]]), np.asarray([[1.0, 0.0, 3.0]])
    assert beats(ours, theirs)[0] == pytest.approx((0.5 + 1 + 0 + 1 + 1 + 0) / 6)
    np.testing.assert_allclose(beats(ours, ours), [0.5])


def test_the_front_has_the_points_that_none_beats_in_both() -> None:
    points = [(1.0, 0.6), (2.0, 0.55), (2.0, 0.7), (3.0, 0.7), None, (0.5, 0.4), (4.0, 0.9)]
    assert front_of(points) == [5, 0, 2, 6]


def test_between_two_evaluations_a_run_is_a_mixture() -> None:
    one = curve("PPO", "", 0, gain=1.0)  # evaluated at 0, 200 and 400 device-seconds
    found = mixture_at(one, "device_seconds", 250.0)
    assert found is not None
    assert [(weight, m.step) for weight, m in found] == [(0.75, 20), (0.25, 40)]
    assert mixture_at(one, "device_seconds", 200.0) == [(1.0, one.evals[1])]
    assert mixture_at(one, "device_seconds", 405.0) == [(1.0, one.evals[2])]  # within the slack
    assert mixture_at(one, "device_seconds", 450.0) is None  # no extrapolation
    unknown = eval_point(20, one.evals[1].gold, spent=math.nan)
    lost = RunCurve(name="", method="", setting="", seed=0, ended="", evals=(one.evals[0], unknown))
    assert mixture_at(lost, "device_seconds", 100.0) is None


def test_seeds_and_prompts_are_drawn_together() -> None:
    """Check that without spread over prompts the variance of the mean of S seeds is their variance / S, unbiased."""
    seeds = np.asarray([0.0, 1.0, 2.0, 5.0])
    values = np.repeat(seeds[:, None], 50, 1)

    def statistic(prompts: np.ndarray, weights: Any) -> np.ndarray:
        drawn.append(((prompts @ values.T) * weights[0]).sum(1) / (prompts.sum(1) * weights[0].sum(1)))
        return drawn[-1]

    drawn: list[np.ndarray] = []
    found = crossed_bootstrap(statistic, 50, [4], seed=0, num_draws=20000)
    assert found.value == 2.0
    assert np.concatenate(drawn[:-1]).var() == pytest.approx(seeds.var(ddof=1) / 4, rel=0.05)


def test_a_single_seed_leaves_the_interval_to_the_prompts() -> None:
    values = np.asarray([0.0, 1.0] * 50)
    found = crossed_bootstrap(lambda p, s: p @ values / p.sum(1) * s[0][:, 0] / s[0][:, 0], 100, [1], seed=0)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.05, rel=0.1)
    with pytest.raises(ValueError, match="at least two"):
        crossed_bootstrap(lambda p, s: p[:, 0], 1, [1], seed=0)


def test_points_of_a_method_are_over_its_seeds() -> None:
    runs = task_runs(curve("PPO", "beta 1", 0, gain=1.0), curve("PPO", "beta 1", 1, gain=1.0))
    middle, end = points_of(runs, "PPO")
    assert (middle.step, middle.is_end, end.step, end.is_end) == (20, False, 40, True)
    assert (middle.num_seeds, end.spent["device_seconds"], end.length) == (2, 400.0, 5.0)
    assert middle.kl is not None
    assert middle.kl.value == 1.0  # a quarter of 4
    wins = [beats(one.evals[2].gold, runs.base).mean() for one in runs.curves]
    assert end.win.value == pytest.approx(np.mean(wins))
    assert end.win.low < end.win.value < end.win.high
    assert middle.on_front
    assert end.on_front


# ------------------------------------------------------------------------------------------------ simulated methods


def test_a_method_that_is_better_is_ahead() -> None:
    methods = (("PPO", 0.4), ("DPO", 1.2))
    result = compared(task_runs(*(curve(m, "", s, gain=g, noise=0.05) for m, g in methods for s in range(3))))
    assert list(result.order) == ["DPO", "PPO"]
    (only,) = result.matchups["device_seconds"]
    assert (only.ours, only.theirs, only.verdict) == ("DPO", "PPO", 1)
    # P(x + 0.8 > y) of two standard normals: Φ(0.8 / √2) = 0.714
    assert only.win.low < 0.714 < only.win.high
    assert result.headline.startswith("DPO ahead at equal compute (400 worker-seconds): 7")


def test_equal_methods_show_no_difference() -> None:
    """Check the false positive rate, nominally one in twenty; with three seeds the interval itself is uncertain."""
    verdicts = []
    for draw in range(40):
        curves = [curve(m, "", s, gain=1.0, noise=0.1, draw=draw) for m in ("PPO", "DPO") for s in range(3)]
        result = matchup(task_runs(*curves), "PPO", "DPO", "device_seconds", 400.0)
        assert result is not None
        verdicts.append(result.verdict)
    assert sum(v != 0 for v in verdicts) <= 6, verdicts


def test_choosing_among_settings_is_no_advantage() -> None:
    """Check a method with eight settings against an equal one with a single setting.

    If the best setting were chosen on the prompts that judge it, its win rate would be above ½."""
    wins = []
    for draw in range(30):
        curves = [curve("PPO", f"b{i}", 0, gain=1.0, draw=draw) for i in range(8)]
        runs = task_runs(*curves, curve("DPO", "", 0, gain=1.0, draw=draw))
        result = matchup(runs, "PPO", "DPO", "device_seconds", 400.0)
        assert result is not None
        wins.append(result.win.value)
    assert abs(np.mean(wins) - 0.5) < 2.5 * np.std(wins) / math.sqrt(len(wins))


def test_at_equal_cost_the_expensive_method_is_compared_at_an_earlier_step() -> None:
    """Check two methods with the same gain per step, of which PPO costs four times as much per step."""
    cheap, expensive = (curve(m, "", 0, gain=2.0, ends=e) for m, e in (("DPO", 40.0), ("PPO", 160.0)))
    result = matchup(task_runs(cheap, expensive), "DPO", "PPO", "device_seconds", 400.0)
    assert result is not None
    assert result.verdict == 1
    by_tokens = matchup(task_runs(cheap, expensive), "DPO", "PPO", "tokens", 4000.0)
    assert by_tokens is not None
    assert by_tokens.verdict == 0


def test_at_equal_kl_the_fronts_decide() -> None:
    """Check a method with the same gain at half the KL: it is ahead at equal KL, but not at equal compute."""
    curves = [curve(m, "", s, gain=1.5, kl=k) for m, k in (("near", 4.0), ("far", 8.0)) for s in range(3)]
    result = compared(task_runs(*curves))
    (only,) = result.matchups["device_seconds"]
    assert only.verdict == 0
    (sentence,) = [at_equal_kl(a, b, gaps) for (a, b), gaps in result.gaps.items()]
    assert "near ahead at" in sentence
    assert "far ahead" not in sentence


def gap(kl: float, low: float, high: float) -> KlGap:
    return KlGap(kl=kl, difference=Interval(value=(low + high) / 2, low=low, high=high))


@pytest.mark.parametrize(
    ("gaps", "sentence"),
    [
        (
            [gap(5, -0.1, 0.1), gap(10, -0.02, 0.1)],
            "At equal KL no difference was shown between DPO and PPO (KL 5 to 10).",
        ),
        (
            [gap(1, -0.1, 0.1), gap(5, 0.04, 0.1), gap(9, 0.06, 0.14)],
            "DPO and PPO at equal KL: DPO ahead at KL ≥ 5 (+10 points [+6, +14] at KL 9); "
            "no difference shown at KL < 5.",
        ),
        (
            [gap(1, 0.02, 0.04), gap(2, -0.1, -0.06)],
            "DPO and PPO at equal KL: DPO ahead at KL < 2 (+3 points [+2, +4] at KL 1); "
            "PPO ahead at KL ≥ 2 (+8 points [+6, +10] at KL 2).",
        ),
        (
            [KlGap(kl=1, difference=None)],
            "No comparison of DPO and PPO at equal KL: they were measured at different KLs.",
        ),
    ],
)
def test_sentences_at_equal_kl(gaps: list[KlGap], sentence: str) -> None:
    assert at_equal_kl("DPO", "PPO", gaps) == sentence


def test_the_page_and_the_json_agree(tmp_path: Path) -> None:
    curves = [curve(m, x, s, gain=g) for m, x, g in (("PPO", "b1", 0.5), ("<DPO>", "b2", 1.0)) for s in (0, 1)]
    result = compared(task_runs(*curves))
    records = []
    for one in curves:
        from orchestrator.report.run_record import RunRecord

        name = one.name.strip("<>").replace("<", "").replace(">", "")
        records.append(RunRecord.read(run_on_disk(tmp_path, name), one.name))
    section = Section(answer=result, records=records, lost=["PPO b3, seed 1: a worker failed"])
    files = page("test", [section])
    html = files["report.html"]
    body = as_json(result)
    assert body["answer"].replace("<DPO>", "&lt;DPO&gt;") in html
    assert "<DPO>" not in html
    assert "2 seeds: the spread between seeds is estimated from very few of them." in html
    assert "PPO b3, seed 1: a worker failed" in html
    assert body["compared_at"] == {"device_seconds": 400.0, "seconds": 100.0, "tokens": 4000.0}
    assert len(body["points"]) == 4
    assert len(body["equal_kl"][0]["at"]) == 9
    shown = re.findall(r"!\[.*\]\((.*)\)", files["report.md"])
    assert shown == ["frontier-sorting.svg"]
    picture = ElementTree.fromstring(files["frontier-sorting.svg"])
    names = [text.strip() for text in picture.itertext() if text.strip() in ("PPO", "<DPO>")]
    assert sorted(names) == ["<DPO>", "PPO"]
    assert "var(" not in files["frontier-sorting.svg"]


def test_win_rate_over_the_temperature() -> None:
    """Check answers of the base and of a method whose scores are shifted by a known amount at each temperature."""
    one = curve("GRPO", "", 0, gain=0.0)
    base, *_, end = one.evals
    shifts = {0.0: 3.0, 0.5: 1.0}
    varied = [replace(m, by_temperature={t: m.gold + shift for t, shift in shifts.items()}) for m in (base, end)]
    runs = replace(
        task_runs(replace(one, evals=(*varied,))),
        base_by_temperature={t: base.gold + shift for t, shift in shifts.items()},
    )
    points = {(p.method, p.temperature): p.win for p in compared(runs).temperatures}
    assert set(points) == {(m, t) for m in ("GRPO", "the base") for t in (0.0, 0.5, 1.0)}
    assert points["the base", 1.0].value == 0.5
    assert points["the base", 0.5].value == pytest.approx(beats(base.gold + 1.0, base.gold).mean())
    assert points["GRPO", 0.0].value > points["GRPO", 0.5].value > points["GRPO", 1.0].value
    assert "grey: the base" in str(temperatures_card(compared(runs)))
    assert temperatures_card(compared(task_runs(one))) is None


# ------------------------------------------------------------------------------------------------ finished runs


def answers(gain: float, seed: int, *, mode: str = "sampled") -> Callable[[int], list[Answer]]:
    def at(step: int) -> list[Answer]:
        generator = np.random.default_rng([seed, step])
        return [
            Answer(
                mode=mode,  # type: ignore[arg-type]
                prompt_id=f"held:{i}",
                index=k,
                reward=float(generator.normal()) + gain * step / 40,
                scores={"gold": float(generator.normal()) - gain * step / 40, "proxy": None},
                length=5,
                log_ratio=2.0 * step / 40 if mode == "sampled" else None,
            )
            for i in range(60)
            for k in range(2)
        ]

    return at


def two_methods(tmp_path: Path, **settings: Any) -> list[RunDirectory]:
    return [
        run_on_disk(
            tmp_path,
            f"{kind}-{seed}",
            kind=kind,
            answers=answers(gain, seed + 10 * (kind == "ppo"), **settings),
            overrides=[f"seed={seed}"],
        )
        for kind, gain in (("grpo", 2.0), ("ppo", 0.3))
        for seed in (0, 1)
    ]


def test_finished_runs_are_compared_without_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(d.path) for d in two_methods(tmp_path)]
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *runs, "--output", "report"]) == 0
    printed = capsys.readouterr().out
    assert "GRPO ahead at equal" in printed
    written = ["comparison.json", "frontier-report.svg", "report.html", "report.md"]
    assert sorted(p.name for p in Path("report").iterdir()) == written
    assert main(["compare", *runs, "--output", "report", "--gold", "gold"]) == 0
    assert "PPO ahead at equal" in capsys.readouterr().out  # this scorer prefers the other method


def test_greedy_answers_and_the_kl_of_training_batches_are_enough(tmp_path: Path, capsys: Any) -> None:
    runs = [str(d.path) for d in two_methods(tmp_path, mode="greedy")]
    assert main(["compare", *runs, "--output", str(tmp_path / "report")]) == 0
    html = (tmp_path / "report" / "report.html").read_text()
    assert "The answers are greedy" in html
    assert "The KL is measured on the training batches" in html


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_on_disk(tmp_path, "a", answers=answers(1.0, 0))
    changes = ["model.path=./another", "rollout.max_completion_length=7"]
    other = run_on_disk(tmp_path, "b", answers=answers(1.0, 0), overrides=changes)
    assert main(["compare", str(good.path), str(other.path)]) == 2
    errors = capsys.readouterr().err
    assert "model.path is ./another in b and ./model in a" in errors
    assert "rollout.max_completion_length is 7 in b" in errors
    without_answers = run_on_disk(tmp_path, "c")
    assert main(["compare", str(good.path), str(without_answers.path)]) == 2
    assert "set evaluation: {num_samples: 8}" in capsys.readouterr().err
    assert main(["compare", str(good.path)]) == 2
    assert "give at least two runs" in capsys.readouterr().err
    other_good = run_on_disk(tmp_path, "d", answers=answers(1.0, 0))
    assert main(["compare", str(good.path), str(other_good.path), "--gold", "proxy"]) == 2
    assert "the scorers of this run are: gold, proxy" in capsys.readouterr().err
