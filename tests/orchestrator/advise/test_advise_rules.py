"""Rules and settings of the advice: facts on both sides of each condition, and the table in docs/advise.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.advise import advice as module
from orchestrator.advise.advice import decide
from orchestrator.advise.facts import Check, Facts
from orchestrator.advise.methods import Method, recipe_of
from orchestrator.advise.rules import (
    CAUTIONS,
    ENOUGH_PAIRS,
    MANY_PAIRS,
    METHODS,
    SETTINGS,
    Caution,
    is_length_biased,
)
from orchestrator.config import load
from orchestrator.evaluation.statistics import wilson

ROOT = Path(__file__).parents[3]


class AlwaysFits:
    """Fake of `FitOf`: every method fits, except `too_large`; the files have no data for `without_data`."""

    def __init__(self, too_large: tuple[Method, ...] = (), without_data: tuple[Method, ...] = ()) -> None:
        self.too_large, self.without_data = too_large, without_data

    def __call__(self, method: Method) -> Any:
        return None if method in self.without_data else FakeFit(method=method, fits=method not in self.too_large)


class FakeFit:
    def __init__(self, *, method: Method, fits: bool) -> None:
        self.method, self.fits = method, fits


def answers(facts: Facts, fit: AlwaysFits | None = None) -> list[Method]:
    selected, _ = decide(facts, fit or AlwaysFits())
    return [rule.method for rule, _ in selected]


CHECKED = Facts(prompts=500, check=Check(reward="math", column="solution"))
PAIRS = Facts(pairs=ENOUGH_PAIRS, prompts=ENOUGH_PAIRS)
M = Method
FLIPS: dict[str, tuple[Facts, list[Method], Facts, list[Method]]] = {
    # rule: facts for which it decides, the methods; the nearest facts for which it does not, the methods
    "answers can be checked": (
        CHECKED,
        [M.grpo, M.iterative_dpo],
        replace(CHECKED, check=None),
        [M.iterative_dpo_given, M.distill],
    ),
    "checked answers in rounds": (
        replace(PAIRS, check=CHECKED.check),
        [M.grpo, M.iterative_dpo],
        PAIRS,
        [M.iterative_dpo_rm, M.dpo],
    ),
    "pairs are the model's own": (
        replace(PAIRS, own=0.5),
        [M.dpo, M.iterative_dpo_rm],
        replace(PAIRS, own=0.49),
        [M.iterative_dpo_rm, M.dpo],
    ),
    "pairs of others, enough for a reward model": (
        PAIRS,
        [M.iterative_dpo_rm, M.dpo],
        replace(PAIRS, pairs=ENOUGH_PAIRS - 1),
        [M.dpo, M.iterative_dpo_given],
    ),
    "pairs for a good reward model": (
        replace(PAIRS, pairs=MANY_PAIRS),
        [M.iterative_dpo_rm, M.ppo_rm],
        replace(PAIRS, pairs=MANY_PAIRS - 1),
        [M.iterative_dpo_rm, M.dpo],
    ),
    "more labels than pairs": (
        Facts(pairs=100, good=101, bad=100),
        [M.kto, M.dpo],
        Facts(pairs=100, good=100, bad=100),
        [M.dpo, M.kto],
    ),
    "pairs": (
        Facts(pairs=1, prompts=1),
        [M.dpo, M.iterative_dpo_given],
        Facts(pairs=0, prompts=1),
        [M.iterative_dpo_given, M.distill],
    ),
    "labels": (
        Facts(pairs=100, good=1, prompts=100),
        [M.dpo, M.kto],
        Facts(pairs=100, prompts=100),
        [M.dpo, M.iterative_dpo_given],
    ),
    "demonstrations": (
        Facts(demonstrations=1, prompts=1),
        [M.sft, M.iterative_dpo_given],
        Facts(prompts=1),
        [M.iterative_dpo_given, M.distill],
    ),
    "prompts alone": (
        Facts(demonstrations=1, prompts=1),
        [M.sft, M.iterative_dpo_given],
        Facts(demonstrations=1),
        [M.sft],
    ),
    "prompts and a larger model": (Facts(prompts=1), [M.iterative_dpo_given, M.distill], Facts(), []),
}


def test_every_rule_has_its_flip() -> None:
    assert set(FLIPS) == {rule.name for rule in METHODS}
    assert set(SETTING_FLIPS) == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("name", FLIPS)
def test_a_rule_flips_the_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, answer, others, other = FLIPS[name]
    rule = next(rule for rule in METHODS if rule.name == name)
    assert rule.when(facts)
    assert not rule.when(others)
    assert answers(facts) == answer
    assert answers(others) == other
    assert answer != other
    # No other rule gives this answer: without the rule it is another one
    monkeypatch.setattr(module, "METHODS", tuple(r for r in METHODS if r.name != name))
    assert answers(facts) != answer


def test_methods_that_do_not_fit_are_skipped_and_reported() -> None:
    selected, infeasible = decide(CHECKED, AlwaysFits(too_large=(M.grpo,)))
    assert [rule.method for rule, _ in selected] == [M.iterative_dpo, M.iterative_dpo_given]
    assert [fit.method for fit in infeasible] == [M.grpo]
    assert decide(CHECKED, AlwaysFits(too_large=tuple(M)))[0] == []
    assert answers(PAIRS, AlwaysFits(without_data=(M.iterative_dpo_rm,))) == [M.dpo, M.iterative_dpo_given]


SETTING_FLIPS: dict[str, tuple[Method, Facts, tuple[str, ...], Facts]] = {
    # setting: facts for which it is made, its overrides, the nearest facts for which it is not
    "chosen is longer": (
        M.dpo,
        Facts(longer_chosen=wilson(700, 1000), length_ratio=1.2),
        ("algorithm.loss_type=sigmoid_norm", "algorithm.beta=5.0"),
        Facts(longer_chosen=wilson(7, 10), length_ratio=1.2),  # the same share, not significant
    ),
    "annotators disagree": (
        M.dpo,
        Facts(agreement=wilson(680, 1000)),
        ("algorithm.loss_type=robust", "algorithm.label_smoothing=0.20"),
        Facts(agreement=wilson(68, 100)),
    ),
    "annotators disagree, and chosen is longer": (
        M.dpo,
        Facts(agreement=wilson(680, 1000), longer_chosen=wilson(700, 1000), length_ratio=1.2),
        ("algorithm.label_smoothing=0.20",),
        Facts(agreement=wilson(680, 1000), longer_chosen=wilson(600, 1000), length_ratio=1.2),
    ),
    "pairs of others": (M.dpo, Facts(own=0.4), ("algorithm.sft_weight=1.0",), Facts(own=0.6)),
    "labels out of balance": (
        M.kto,
        Facts(good=100, bad=150),
        ("algorithm.desirable_weight=1.5",),
        Facts(good=100, bad=100),
    ),
    # at most 8192, see below
    "long rows": (M.sft, Facts(longest=2049), ("data.max_length=3072",), Facts(longest=2048)),
}


@pytest.mark.parametrize("name", SETTING_FLIPS)
def test_a_setting_is_advised_or_not(name: str) -> None:
    method, facts, written, others = SETTING_FLIPS[name]
    setting = next(setting for setting in SETTINGS if setting.name == name)
    assert method in setting.methods
    assert setting.when(facts)
    assert not setting.when(others)
    assert setting.overrides(facts) == written


@pytest.mark.parametrize(
    "facts",
    [
        Facts(longer_chosen=wilson(700, 1000), length_ratio=2.0, agreement=wilson(600, 1000), longest=20_000),
        Facts(agreement=wilson(500, 1000), own=1.0),
        Facts(good=10, bad=100, longest=5000),
        Facts(good=100, bad=10),
    ],
)
@pytest.mark.parametrize("method", list(Method))
def test_settings_together_are_a_valid_recipe(method: Method, facts: Facts) -> None:
    for large in (False, True):
        load(recipe_of(method, large=large), module._overrides(method, facts))


def test_very_long_rows_are_truncated() -> None:
    setting = next(s for s in SETTINGS if s.name == "long rows")
    assert setting.overrides(Facts(longest=100_000)) == ("data.max_length=8192",)


def test_a_small_length_ratio_is_no_bias() -> None:
    assert is_length_biased(Facts(longer_chosen=wilson(700, 1000), length_ratio=1.11))
    assert not is_length_biased(Facts(longer_chosen=wilson(700, 1000), length_ratio=1.09))


def test_weights_of_labels_bring_them_into_balance() -> None:
    setting = next(s for s in SETTINGS if s.name == "labels out of balance")
    for good, bad in ((100, 400), (400, 100)):
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
        for override in setting.overrides(Facts(good=good, bad=bad)):
            key, _, value = override.removeprefix("algorithm.").partition("=")
            weights[key] = float(value)
        assert weights["desirable_weight"] * good == pytest.approx(weights["undesirable_weight"] * bad)


def test_the_page_has_every_rule_with_its_sources() -> None:
    rows = [line for line in (ROOT / "docs/advise.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    for rule in METHODS:
        row = next(row for row in rows if row.startswith(f"| {rule.name} |"))
        assert f"| {rule.method} |" in row
        assert all(source.removeprefix("arXiv ") in row for source in rule.sources)
    for setting in SETTINGS:
        row = next(row for row in rows if row.startswith(f"| {setting.name} |"))
        assert all(source.removeprefix("arXiv ") in row for source in setting.sources)
    named = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert [n for n in named if n in FLIPS] == [rule.name for rule in METHODS]  # in the order of evaluation


CAUTIOUS: dict[str, tuple[Facts, Facts]] = {
    # caution: facts for which it is given, the nearest facts for which it is not
    "objectives conflict": (Facts(pairs=10_000, conflicts=100), Facts(pairs=10_000, conflicts=99)),
    "few pairs": (Facts(pairs=4_999), Facts(pairs=5_000)),
    "near the target": (Facts(bad=10, own_good=0.9), Facts(bad=10, own_good=0.89)),
}


@pytest.mark.parametrize("caution", CAUTIONS, ids=lambda caution: caution.name)
def test_cautions(caution: Caution) -> None:
    given, not_given = CAUTIOUS[caution.name]
    assert (caution.when(given), caution.when(not_given), caution.when(Facts())) == (True, False, False)
    assert len(caution.what(given)) > 40
    page = (ROOT / "docs" / "advise.md").read_text()
    assert f"| {caution.name} | " in page
    assert all(source.removeprefix("arXiv ") in page for source in caution.sources)
